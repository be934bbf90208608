"""vLLM as a child engine: against a scripted `vllm serve`, and a real one where `HFCHAT_VLLM` is its bin folder.

The chunks and the logs are those of vLLM 0.32.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from hfchat.chat import Chat
from hfchat.engines.child import ChildServer
from hfchat.engines.choice import Choice
from hfchat.engines.dialect import Chunk, EngineFailureError, ScoredText, TokenRequest
from hfchat.engines.vllm import Vllm, check_installed
from hfchat.errors import UserError
from hfchat.serving.engines.engine import EngineError, Sampling
from hfchat.serving.settings import ServerSettings
from hfchat.serving.versions import children

PROGRAM = Path(__file__).parents[1] / "servers" / "vllm_serve.py"
MESSAGES = [{"role": "user", "content": "hello"}]
HELLO = Chat(MESSAGES)


@pytest.fixture
def script(tmp_path, monkeypatch, tokenizer) -> Path:
    """The folder of a scripted `vllm` (see `tests.servers.vllm_serve`), which is the one on the PATH."""
    program = tmp_path / "bin" / "vllm"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{PROGRAM}" "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    folder = tmp_path / "script"
    folder.mkdir()
    monkeypatch.setenv("VLLM_SCRIPT", str(folder))
    words = [[word, tokenizer.encode(word, add_special_tokens=False)] for word in ("Hello", " there", ", you")]
    (folder / "chunks.json").write_text(json.dumps([*words, ["", [tokenizer.eos_token_id]]]))
    return folder


def model_of(max_length: int) -> SimpleNamespace:
    """The configuration of a model."""
    text = SimpleNamespace(max_position_embeddings=max_length)
    return SimpleNamespace(get_text_config=lambda: text)


def lora(folder: Path, **config) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"r": 8, **config}))
    return folder


def asked(script: Path) -> list[dict]:
    return [json.loads(line) for line in (script / "requests.jsonl").read_text().splitlines()]


def is_gone(script: Path) -> bool:
    """Whether the second process of the scripted vLLM ends within a few seconds."""
    engine = int((script / "engine.pid").read_text())
    end = time.monotonic() + 20
    while psutil.pid_exists(engine) and psutil.Process(engine).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


# Arguments


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--structured-outputs-config.backend xgrammar", "grammars are llguidance's"),
        ("--structured_outputs_config '{}'", "grammars are llguidance's"),
        ("--reasoning-parser qwen3", "--reasoning-parser out"),
        ("--port 9000", "--port out"),
        ("--po 9000", "--po out"),  # argparse knows it
        ("--tensor-parallel-size 2 --host=0.0.0.0", "--host out"),
        ("--api-key secret", "--api-key out"),
        ("--served_model_name mine", "--served-model-name out"),
        ("--root-path /v2", "--root-path out"),
        ("--ssl-keyfile key.pem", "--ssl-keyfile out"),
        ("--uds /tmp/socket", "--uds out"),
        ("--config vllm.yaml", "--config out"),
        ("--dtype half", "use --weights"),
        ("--enable-lora", "use --adapter"),
        ("--max-num-seqs 4", "use --max-concurrent-requests"),
        ("--max-model-len auto", "number of tokens"),
        ("--max-model-len", "number of tokens"),
        ("--quantization 'fp8", "write them as in a shell"),
    ],
)
def test_arguments_that_would_break_what_stands_in_front_are_refused(arguments, words, tmp_path):
    with pytest.raises(UserError, match="--engine-args: ") as refusal:
        Vllm(tmp_path, slots=4, engine_args=arguments)
    assert words in str(refusal.value)
    assert "secret" not in str(refusal.value)


def test_a_model_that_brings_code_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"auto_map": {"AutoModelForCausalLM": "owner/repository--code.Mine"}}')
    with pytest.raises(UserError, match=r"config\.json: auto_map asks whoever loads the model to run code"):
        Vllm(tmp_path, 1)


def test_other_arguments_go_through(tmp_path):
    arguments = ["--tensor-parallel-size", "4", "--max-model-len", "8192", "--model-impl", "vllm", "-O", "2"]
    command = Vllm(tmp_path, slots=4, engine_args=" ".join(arguments)).program.command
    assert command[-8:] == arguments


@pytest.mark.parametrize(
    ("arguments", "context"),
    [
        ("", 4096),
        ("--max-model-len 1024", 1024),
        ("--max_model_len=1024 --enforce-eager", 1024),
        ("--max-model-len 512 --max-model-len 2048", 2048),
        ("--max-model-len 100000", 4096),
        ("--max-num-batched-tokens 1024", 4096),
    ],
)
def test_the_context_is_that_of_the_model_or_of_the_arguments(arguments, context, tmp_path):
    assert Vllm(tmp_path, slots=4, engine_args=arguments).context(model_of(4096)) == context


def test_what_speculative_decoding_cannot_do_is_said(tmp_path):
    assert Vllm(tmp_path, slots=4, engine_args="--max-model-len 64").cannot == {}
    speculative = Vllm(tmp_path, slots=4, engine_args="--speculative-config '{}'")
    assert speculative.cannot.keys() == {"logit_bias", "min_p"}


def test_adapters_are_given_to_vllm_with_a_rank_that_it_knows(tmp_path):
    adapters = {"one": lora(tmp_path / "a, b=c"), "base": lora(tmp_path / "two", rank_pattern={"q_proj": 33})}
    engine = Vllm(tmp_path, slots=4, adapters=adapters)
    command = list(engine.program.command)
    assert command[command.index("--max-lora-rank") + 1] == "64"
    modules = [json.loads(module) for module in command[command.index("--lora-modules") + 1 :]]
    assert [module["path"] for module in modules] == [str(tmp_path / "a, b=c"), str(tmp_path / "two")]
    # The base is not taken for an adapter of that name.
    names = [engine.body(TokenRequest([1], 1, adapter=adapter))["model"] for adapter in (None, "one", "base")]
    assert names[1:] == [module["name"] for module in modules]
    assert len(set(names)) == 3


def test_an_adapter_with_tokens_of_its_own_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"--adapter mine: .* merge it"):
        Vllm(tmp_path, slots=4, adapters={"mine": lora(tmp_path / "mine", trainable_token_indices={"embed": [7]})})


def test_where_vllm_is_not_installed_one_line_says_how(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="pip install vllm"):
        check_installed()


# Chunks


def event(text="", ids=(), reason=None, logprobs=None) -> bytes:
    choice = {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": reason, "stop_reason": None}
    choices = [choice | {"prompt_token_ids": None, "token_ids": list(ids)}]
    return json.dumps(
        {"id": "cmpl-8d3b6aac", "object": "text_completion", "model": "base", "choices": choices}
    ).encode()


def named(*tokens: tuple[int, dict[int, float]]) -> dict:
    """vLLM's log probabilities of tokens, the chosen one first."""
    return {
        "text_offset": [0] * len(tokens),
        "tokens": [f"token_id:{chosen}" for chosen, _ in tokens],
        "token_logprobs": [logprobs[chosen] for chosen, logprobs in tokens],
        "top_logprobs": [{f"token_id:{id}": value for id, value in logprobs.items()} for _, logprobs in tokens],
    }


def reader(tmp_path, **request):
    codes = {57: b"I", 5248: b"'m", 245: b"\xe2", 9: b"It", 2: b"<|im_end|>"}
    engine = Vllm(tmp_path, slots=1, token_bytes=codes.__getitem__)
    return engine.reader(TokenRequest([1], 9, ends=frozenset({2}), **request))


def test_chunks_are_text_tokens_and_an_end(tmp_path):
    answer = reader(tmp_path)
    assert answer.read(event("I", [57])) == Chunk("I", 1, ids=[57])
    assert answer.read(event("", [245])) == Chunk("", 1, ids=[245])  # a part of a character
    assert answer.read(event("'m", [5248, 2], "stop")) == Chunk("'m", 2, "stop", ids=[5248, 2])
    usage = {"choices": [], "usage": {"prompt_tokens": 40, "total_tokens": 80, "completion_tokens": 40}}
    assert answer.read(json.dumps(usage).encode()) is None
    assert reader(tmp_path).read(event(" I", [57], "length")).finish_reason == "length"


def test_the_form_of_an_answer_and_biases_are_sent(tmp_path):
    engine = Vllm(tmp_path, slots=1)
    command = list(engine.program.command)
    assert command[command.index("--structured-outputs-config.backend") + 1] == "guidance"
    plain = engine.body(TokenRequest([1], 9, top_k=5, min_p=0.5, repetition_penalty=1.5))
    assert plain == plain | {"top_k": 5, "min_p": 0.5, "repetition_penalty": 1.5}
    grammar = '%llguidance {}\nstart: "a"'
    asked = engine.body(TokenRequest([1], 9, logit_bias={7: -1.5}, grammar=grammar, kept=frozenset({3})))
    assert json.loads(json.dumps(asked)) == json.loads(json.dumps(engine.body(TokenRequest([1], 9)))) | {
        "logit_bias": {"7": -1.5},
        "structured_outputs": {"grammar": grammar},
        "skip_special_tokens": False,
    }


def test_only_the_special_tokens_that_are_kept_are_text(tmp_path):
    engine = Vllm(tmp_path, slots=1, special_tokens={2: "<|im_end|>", 3: "[CALL]", 4: "<|im_start|>"})
    request = TokenRequest([1], 9, ends=frozenset({2}), kept=frozenset({3}))
    answer = engine.reader(request)
    assert answer.read(event("I[CALL]<|im_start|>", [57, 3, 4])).text == "I[CALL]"
    assert answer.read(event("<|im_start|>'m", [4, 5248])).text == "'m"
    assert answer.read(event("<|im_start|>", [57, 58, 2], "stop")).text == "<|im_start|>"  # spelled in ordinary ones
    # Without any, vLLM drops all of them itself.
    assert engine.reader(TokenRequest([1], 9)).read(event("<|im_start|>", [57, 4])).text == "<|im_start|>"


def test_log_probabilities_are_named_by_the_bytes_of_their_tokens(tmp_path):
    logprobs = named((57, {57: -2.5, 9: -0.25, 5248: -1.5}), (245, {245: -0.5, 9: -2.0}), (2, {2: -0.75, 9: -1.0}))
    chunk = reader(tmp_path, logprobs=2).read(event("I", [57, 245, 2], "stop", logprobs))
    assert chunk.tokens == 3
    # The chosen one is not among the two likeliest, and the end of the turn has none.
    likeliest = [ScoredText("It", -0.25, b"It"), ScoredText("'m", -1.5, b"'m")]
    half = ScoredText("\ufffd", -0.5, b"\xe2")
    assert chunk.logprobs == [
        (ScoredText("I", -2.5, b"I"), likeliest),
        (half, [half, ScoredText("It", -2.0, b"It")]),
    ]
    alone = reader(tmp_path, logprobs=0).read(event("I", [57], None, named((57, {57: -2.5}))))
    assert alone.logprobs == [(ScoredText("I", -2.5, b"I"), [])]


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (
            b'{"error": {"message": "EngineCore encountered an issue. See stack trace (above) for the root cause.", '
            b'"type": "InternalServerError", "param": null, "code": 500}}',
            "EngineCore encountered an issue",
        ),
        (b'{"error": "Unauthorized"}', "not a part of an answer"),
        (b"[]", "not a part of an answer"),
        (b"half of a", "not a part of an answer"),
        (b'{"choices": [{"index": 0}]}', "not a part of an answer"),
        (event("I", [57], "abort"), "abort"),
    ],
)
def test_what_is_not_an_answer_is_a_failure(sent, words, tmp_path):
    with pytest.raises(EngineFailureError, match=words):
        reader(tmp_path).read(sent)


# Why it ended

ENGINE = "(EngineCore pid=12079) ERROR 11-30 20:35:08 [core.py:1510] "
MEMORY = (
    "Available memory on node 0 (16.32/23.54 GiB) on kv cache allocation is less than requested memory for kv (1000.0 "
    "GiB). Decrease --kv-cache-memory-bytes, VLLM_CPU_KVCACHE_SPACE, or reduce CPU memory used by other processes."
)
HEADS = "Total number of attention heads (9) must be divisible by tensor parallel size (4)."


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (
            ["usage: vllm serve [model_tag] [options]", "vllm serve: error: argument --dtype: invalid choice: 'foo'"],
            "argument --dtype: invalid choice: 'foo'; correct --engine-args",
        ),
        (
            [
                "pydantic_core._pydantic_core.ValidationError: 1 validation error for VllmConfig",
                f"  Value error, {HEADS} [type=value_error, input_value=ArgsKwargs((), {{'model_co...",
                "    For further information visit https://errors.pydantic.dev/2.14/v/value_error",
            ],
            HEADS,
        ),
        (
            [
                f"(Worker pid=12095) ERROR 11-30 20:35:08 [multiproc_executor.py:1063] ValueError: {MEMORY}",
                f"{ENGINE}Traceback (most recent call last):",
                f"{ENGINE}RuntimeError: Worker failed with error '{MEMORY}', please check the stack trace above for "
                "the root cause",
                f"{ENGINE}RuntimeError: cancelled",
                f"{ENGINE}Worker proc VllmWorker-0 died unexpectedly (exit code: None), shutting down executor.",
                "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
                "  warnings.warn('resource_tracker: There appear to be %d '",
            ],
            MEMORY,
        ),
        (
            [
                f"{ENGINE}Worker proc VllmWorker-0 died unexpectedly (exit code: None), shutting down executor.",
                f"{ENGINE}RuntimeError: cancelled",
            ],
            "Worker proc VllmWorker-0 died unexpectedly (exit code: None), shutting down executor.",
        ),
        (["(APIServer pid=9) INFO 11-30 20:13:37 [entry.py:140] Starting vLLM server"], None),
    ],
    ids=["argument", "value", "memory", "death", "nothing"],
)
def test_the_line_of_its_log_that_says_why_it_ended_is_found(lines, reason, tmp_path):
    complaint = Vllm(tmp_path, slots=1).program.complaint(lines)
    assert complaint == reason or complaint.startswith(f"{reason} (`vllm serve --help")


# The child


def test_what_vllm_refuses_is_said_before_it_listens(script, chat_model):
    with (
        pytest.raises(UserError, match="vLLM ended with status 2: unrecognized arguments: --no-such-thing 3; correct"),
        ChildServer(Vllm(chat_model, slots=4, engine_args="--no-such-thing 3").program),
    ):
        pass


def test_it_has_the_modules_of_its_own_environment_and_nothing_of_it_is_left(script, chat_model):
    with ChildServer(Vllm(chat_model, slots=4).program):
        pass
    assert json.loads((script / "path.json").read_text()) == os.environ.get("PYTHONPATH")
    assert is_gone(script)


def test_nothing_of_it_is_left_when_we_are_killed(script, chat_model):
    code = (
        "import pathlib, sys\nfrom hfchat.engines.child import ChildServer\nfrom hfchat.engines.vllm import Vllm\n"
        "with ChildServer(Vllm(pathlib.Path(sys.argv[1]), 4).program):\n    print('listens', flush=True)\n    input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(chat_model)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "listens\n"
        process.kill()
    assert is_gone(script)


def engine_of(chat_model: Path, **settings):
    settings = ServerSettings(model=str(chat_model), engine="vllm", **settings)
    from hfchat.models import load_tokenizer

    tokenizers = {settings.model_id: load_tokenizer(str(chat_model))}
    choice = Choice("vllm", settings.weights, asked_for=True)
    (engine,) = children.load(str(chat_model), settings, choice, {}, tokenizers).values()
    return engine


async def answer(engine, chat=HELLO, heard=lambda text: None, **sampling):
    """The pieces of an answer, whose texts are heard while it is given."""
    prompt, pieces = await engine.encode(chat), []
    async for piece in engine.stream(prompt, Sampling(max_tokens=20, **sampling)):
        heard(piece.text)
        pieces.append(piece)
    return pieces


async def running(engine, use):
    try:
        await engine.start()
        return await use(engine)
    finally:
        await engine.stop()


def test_a_model_answers_by_vllm(script, chat_model, tokenizer):
    async def use(engine):
        return await answer(engine, temperature=0.5, top_p=0, seed=7, logprobs=2)

    engine = engine_of(chat_model, weights="float32", engine_args="--max-model-len 64", max_concurrent_requests=3)
    pieces = asyncio.run(running(engine, use))
    assert "".join(piece.text for piece in pieces) == "Hello there, you"
    assert pieces[-1].finish_reason == "stop"
    assert engine.context_length == 64
    tokens = [token for piece in pieces for token in piece.logprobs]
    assert b"".join(token.chosen.bytes for token in tokens) == b"Hello there, you"
    assert all(len(token.top) == 2 for token in tokens)
    assert sum(piece.tokens for piece in pieces) == len(tokens) + 1

    # It was started, and asked, as it should be: `ready` asks first.
    arguments = json.loads((script / "arguments.json").read_text())
    assert arguments["dtype"] == "float32"
    assert arguments["host"] == "127.0.0.1"
    assert arguments["max_num_seqs"] > 3
    assert arguments["max_model_len"] == 64
    (_, request) = asked(script)
    assert request["prompt"] == tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True)["input_ids"]
    assert request["stop_token_ids"] == [tokenizer.eos_token_id]
    assert (request["temperature"], request["top_p"]) == (0, 1)  # vLLM refuses a top_p of 0, which is greedy
    assert (request["seed"], request["max_tokens"], request["logprobs"]) == (7, 20, 2)
    assert is_gone(script)


def test_hfchat_serve_ends_with_the_complaint_of_vllm_before_it_is_ready(script, chat_model, free_port):
    command = "from hfchat.cli import main; main()"
    arguments = ["serve", str(chat_model), "--port", str(free_port), "--engine", "vllm", "--engine-args", "--no 3"]
    done = subprocess.run(
        [sys.executable, "-c", command, *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2, done
    lines = [line for line in done.stderr.splitlines() if not line.startswith("{")]  # the log
    assert len(lines) == 1, lines
    assert lines[0].startswith(
        "error: vLLM ended with status 2: unrecognized arguments: --no 3; correct --engine-args"
    )
    assert "chat at" not in done.stdout


def test_a_stream_that_is_cut_fails_and_the_next_request_is_answered(script, chat_model):
    async def use(engine):
        first = int((script / "engine.pid").read_text())
        (script / "die").touch()
        texts = []
        with pytest.raises(EngineError, match="broke the answer off"):
            await answer(engine, heard=texts.append)
        assert texts == ["Hello", " there"]
        await answer(engine, heard=texts.append)
        assert "".join(texts[2:]) == "Hello there, you"
        assert engine.restarts == 1
        return first

    first = asyncio.run(running(engine_of(chat_model), use))
    assert not psutil.pid_exists(first) or psutil.Process(first).status() == psutil.STATUS_ZOMBIE
    assert is_gone(script)


def test_what_a_dying_vllm_refuses_is_answered_after_the_restart(script, chat_model):
    """Where only its engine has died, vLLM answers for a while before it ends."""

    async def use(engine):
        (script / "dead").touch()
        pieces = await answer(engine)
        assert "".join(piece.text for piece in pieces) == "Hello there, you"
        assert engine.restarts == 1

    asyncio.run(running(engine_of(chat_model), use))


@pytest.mark.skipif("HFCHAT_VLLM" not in os.environ, reason="HFCHAT_VLLM does not name the bin folder of a vLLM")
def test_a_real_vllm_answers(chat_model, monkeypatch):
    """Takes a minute or two. On a CPU, `VLLM_CPU_KVCACHE_SPACE=1` keeps it small."""
    monkeypatch.setenv("PATH", os.environ["HFCHAT_VLLM"], prepend=os.pathsep)

    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["東京", 7]}}}

    async def use(engine):
        twice = [await answer(engine, logprobs=3) for _ in range(2)]
        formed = [await answer(engine, Chat(MESSAGES, response_format=form), temperature=t) for t in (0, 1, 1)]
        return *twice, formed

    first, second, formed = asyncio.run(running(engine_of(chat_model, engine_args="--enforce-eager"), use))
    for pieces in formed:
        assert "".join(piece.text for piece in pieces) in ('"東京"', "7")
        assert pieces[-1].finish_reason == "stop"
    tokens = [token for piece in first for token in piece.logprobs]
    assert 0 < len(tokens) <= 20
    assert all(token.chosen == token.top[0] for token in tokens), "it was asked for the likeliest"
    assert "".join(piece.text for piece in first) == "".join(piece.text for piece in second)
