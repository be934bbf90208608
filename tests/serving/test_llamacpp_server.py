"""`hfchat serve` over the real llama.cpp with a tiny model, behind guards: a stream that is guarded, and a kill."""

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import openai
import pytest

from tests.servers.speaker import LEARNED, needs_llamacpp
from tests.serving.conftest import wait_until

pytestmark = needs_llamacpp
GUARDS = "- {type: lexicon, action: block, message: No., applies_to: [answer]}"


@pytest.fixture(scope="module")
def process(speaker_gguf, speaker_cache, tmp_path_factory):
    """The process of a server at a free port, which is its last argument, and its log."""
    folder = tmp_path_factory.mktemp("serve")
    guards, log = folder / "guards.yaml", folder / "log"
    guards.write_text(GUARDS)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "hfchat.cli", "serve", str(speaker_gguf), "--guards", str(guards), "--port", port]
    environment = os.environ | {"HFCHAT_CACHE": str(speaker_cache)}
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output, env=environment) as running:
        try:
            wait_until(lambda: b"engine llamacpp" in log.read_bytes() or running.poll() is not None, 120)
            assert running.poll() is None, log.read_text()
            yield running, log
        finally:
            running.terminate()
            assert running.wait(30) == 0
            children = [pid for pid in _processes() if str(speaker_gguf) in _command(pid)]
            assert children == []


def _processes():
    return [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit()]


def _command(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def child_of(running):
    """Of the server's own descendants: the one that is llama.cpp's, not its keeper."""
    found = [pid for pid in _processes() if "llamacpp_server" in _command(pid) and "keeper" not in _command(pid)]
    (child,) = [pid for pid in found if running.pid in _ancestors(pid)]
    return child


def _ancestors(pid):
    ancestors = []
    with suppress(OSError):  # it has ended since
        while pid > 1:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            ancestors.append(pid)
    return ancestors


@pytest.fixture
def client(process):
    return openai.OpenAI(base_url=f"http://127.0.0.1:{process[0].args[-1]}/v1", api_key="none", max_retries=0)


def stream(client, question, **fields):
    (model,) = client.models.list().data
    messages = [{"role": "user", "content": question}]
    return client.chat.completions.create(model=model.id, messages=messages, stream=True, temperature=0, **fields)


def test_what_a_guard_blocks_is_never_streamed(client):
    chunks = [chunk.choices[0] for chunk in stream(client, "Swear")]
    text = "".join(chunk.delta.content or "" for chunk in chunks)
    assert text == "Well, \n\nNo."
    assert chunks[-1].finish_reason == "content_filter"
    assert "sh" not in text
    greeting = "".join(chunk.choices[0].delta.content or "" for chunk in stream(client, "Greet"))
    assert greeting == LEARNED["Greet"]


@pytest.mark.parametrize("fields", [{"temperature": 0}, {"temperature": 2.0, "seed": 1, "logit_bias": {"7": 5}}])
def test_json_is_valid_whatever_the_model_would_say(client, fields):
    schema = {
        "type": "object",
        "properties": {"swears": {"type": "boolean"}, "word": {"enum": ["東京", "shoot"]}},
        "required": ["swears", "word"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "verdict", "schema": schema, "strict": True}}
    (model,) = client.models.list().data
    messages = [{"role": "user", "content": "Swear"}]
    answer = client.chat.completions.create(
        model=model.id, messages=messages, response_format=form, max_tokens=120, **fields
    )
    assert answer.choices[0].finish_reason == "stop"
    said = json.loads(answer.choices[0].message.content)
    assert said.keys() == {"swears", "word"}
    assert said["word"] in ("東京", "shoot")
    assert isinstance(said["swears"], bool)


def test_kill_9_of_llamacpp_in_a_stream_is_an_error_event_and_the_next_answer_comes(client, process):
    running, log = process
    # Twice, because a crash after a whole answer is not one in a row; more often where the answers were over too soon.
    broken = 0
    for _ in range(20):
        child = child_of(running)
        # So many answers that hardly ever all are over when the first of them has begun.
        chunks = stream(client, "What is a tokenizer?", n=8, max_tokens=200, extra_body={"temperature": 2.0})
        next(chunks)
        os.kill(child, signal.SIGKILL)
        try:
            list(chunks)
        except openai.APIError as error:
            broken += "broke the answer off" in str(error)
        greeting = "".join(chunk.choices[0].delta.content or "" for chunk in stream(client, "Greet"))
        assert greeting == LEARNED["Greet"]
        assert child_of(running) != child
        if broken == 2:
            break
    assert broken == 2
    # Its log does not have what people ask.
    assert "tokenizer?" not in log.read_text()
    assert "Greet" not in log.read_text()
