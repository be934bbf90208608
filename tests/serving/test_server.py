"""`hfchat serve` as a program: what it refuses before it loads anything, and how it ends."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest

from hfchat.cli import main
from hfchat.errors import UserError
from hfchat.registry.versions import Registry
from hfchat.serving import server
from hfchat.serving.http.app import create_app
from hfchat.serving.server import limit_spinning, serve
from hfchat.serving.settings import ServerSettings
from hfchat.serving.versions import loading
from hfchat.serving.versions.models import ServedModels


@pytest.fixture
def taken():
    """A port that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def command(*arguments, before=""):
    return [sys.executable, "-c", f"{before}\nfrom hfchat.cli import main\nmain()", "serve", *map(str, arguments)]


def refuse(*arguments, before="") -> str:
    """Run `hfchat serve`, which must refuse with exit status 2 and one line, and return that line."""
    done = subprocess.run(command(*arguments, before=before), capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    return tmp_path


def test_a_taken_port_is_refused_at_once(folder, taken):
    line = refuse(folder, "--port", taken, before="import sys; sys.modules['torch'] = None")  # nothing heavy yet
    assert f"port {taken}" in line
    assert "--port" in line


@pytest.mark.parametrize(
    ("given", "added"),
    [
        ({}, {"GOMP_SPINCOUNT": "3000", "KMP_BLOCKTIME": "0"}),
        ({"GOMP_SPINCOUNT": "9"}, {"KMP_BLOCKTIME": "0"}),
        ({"KMP_BLOCKTIME": "200"}, {"GOMP_SPINCOUNT": "3000"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {}),
    ],
)
def test_threads_spin_for_a_while_where_the_environment_does_not_say(given, added):
    environ = dict(given)
    limit_spinning(environ)
    assert environ == given | added


def test_missing_packages_are_named(folder):
    line = refuse(folder, before="import sys; sys.modules['uvicorn'] = None")
    assert "pip install 'hfchat[serving]'" in line


def test_a_base_model_is_refused(tmp_path, tiny_tokenizer, free_port):
    import copy

    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert "chat template" in refuse(tmp_path, "--port", free_port)


def test_another_template_is_refused_unless_allowed(tmp_path, tiny_tokenizer, tiny_model, free_port):
    tiny_tokenizer.save_pretrained(tmp_path)
    tiny_model.save_pretrained(tmp_path)
    template = tmp_path / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    settings = {"model": str(tmp_path), "port": free_port}
    with pytest.raises(UserError, match="template"):
        serve(ServerSettings(**settings))
    models = loading.served_models(str(tmp_path), ServerSettings(**settings, allow_template_mismatch=True))
    assert [model.id for model in models.list()] == [tmp_path.name]


def test_a_registry_of_which_no_version_answers_says_what_would_let_one(tmp_path, free_port):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    folder, database = tmp_path / "assistant", tmp_path / "feedback.db"
    Registry(folder).add(model)
    with pytest.raises(UserError, match=f"no version answers yet; `hfchat models promote {folder} v1`"):
        serve(ServerSettings(model=str(folder), port=free_port, feedback=str(database)))
    assert not database.exists()


def test_a_trusted_key_must_be_one(tmp_path, free_port):
    settings = ServerSettings(
        model=str(tmp_path), port=free_port, feedback=str(tmp_path / "f.db"), trusted_keys=("web",)
    )
    with pytest.raises(UserError, match="--trusted-keys web: there is no API key of this name"):
        serve(settings)


def test_no_database_is_made_for_a_model_that_is_none(tmp_path, free_port):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    database = tmp_path / "feedback.db"
    with pytest.raises(UserError, match="tokenizer"):
        serve(ServerSettings(model=str(model), port=free_port, feedback=str(database)))
    assert not database.exists()


def test_missing_folders_and_bad_settings(tmp_path, free_port):
    with pytest.raises(UserError, match="no such model folder"):
        serve(ServerSettings(model=str(tmp_path / "missing"), port=free_port))
    for bad in (
        {"port": 0},
        {"port": 70_000},
        {"max_concurrent_requests": 0},
        {"max_waiting_requests": -1},
        {"max_wait_seconds": 0},
        {"max_generation_seconds": float("nan")},
        {"drain_seconds": -1},
        {"default_max_tokens": 0},
        {"requests_per_minute": 0},
    ):
        with pytest.raises(UserError, match=next(iter(bad)).replace("_", "-")):
            ServerSettings(model="m", **bad)
    with pytest.raises(UserError, match="--host"):
        server.bind("203.0.113.7", free_port)  # an address for documentation, so nobody's


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"host": "0.0.0.0"}, "hfchat api-key"),
        ({"host": "192.168.0.2"}, "--allow-anyone"),
        ({"requests_per_minute": 5}, "--requests-per-minute"),
        ({"api_keys": "missing"}, "--api-keys missing"),
    ],
)
def test_without_keys_only_this_machine_is_served(folder, free_port, monkeypatch, settings, word):
    monkeypatch.delenv("HFCHAT_API_KEYS", raising=False)
    with pytest.raises(UserError, match=word):
        serve(ServerSettings(model=str(folder), port=free_port, **settings))


@pytest.mark.parametrize("settings", [{}, {"host": "localhost"}, {"host": "0.0.0.0", "allow_anyone": True}])
def test_this_machine_or_everybody_on_request(folder, free_port, monkeypatch, settings):
    monkeypatch.delenv("HFCHAT_API_KEYS", raising=False)
    _stop_at_loading(monkeypatch)
    with pytest.raises(UserError, match="stop here"):
        serve(ServerSettings(model=str(folder), port=free_port, **settings))


def test_with_keys_other_machines_are_served(folder, free_port, monkeypatch, capsys):
    main(["api-key", "alice"])
    key, entry = (line.split(":  ")[1] for line in capsys.readouterr().out.splitlines())
    assert key not in entry
    monkeypatch.setenv("HFCHAT_API_KEYS", entry)
    _stop_at_loading(monkeypatch)
    with pytest.raises(UserError, match="stop here"):
        serve(ServerSettings(model=str(folder), host="0.0.0.0", port=free_port, requests_per_minute=5))


def _stop_at_loading(monkeypatch):
    def stop_here(folder, settings):
        raise UserError("stop here")

    monkeypatch.setattr(loading, "served_models", stop_here)


@pytest.mark.parametrize("origin", ["*", "null", "example.org", "https://example.org/", "https://Example.org", ""])
def test_an_origin_is_a_whole_one(origin):
    with pytest.raises(UserError, match="--allow-origin"):
        ServerSettings(model="m", allow_origins=("https://chat.example.org:8443", origin))
    with pytest.raises(UserError, match="--allow-frame"):
        ServerSettings(model="m", allow_frames=(origin,))


def test_names_and_addresses(tmp_path):
    assert ServerSettings(model=str(tmp_path)).model_id == tmp_path.name
    assert ServerSettings(model="org/model").model_id == "org/model"
    assert ServerSettings(model="org/model", served_model_name="mine").model_id == "mine"
    assert ServerSettings(model="m", host="::1", port=80).url == "http://[::1]:80"
    local = {"127.0.0.1": True, "::1": True, "localhost": True, "0.0.0.0": False, "192.168.0.2": False, "me": False}
    assert {host: ServerSettings(model="m", host=host).is_local for host in local} == local


@pytest.mark.parametrize("engine", ["transformers", "llamacpp"])
def test_ctrl_c_lets_a_stream_end_and_is_a_success(tmp_path, tiny_tokenizer, tiny_model, free_port, engine):
    tiny_tokenizer.save_pretrained(tmp_path)
    tiny_model.save_pretrained(tmp_path)
    process = subprocess.Popen(
        command(tmp_path, "--port", free_port, "--served-model-name", "tiny", "--engine", engine),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    try:
        assert process.stdout.readline().startswith("loading ")
        announced = process.stdout.readline()
        url = re.fullmatch(r"chat at (http://127\.0\.0\.1:\d+)\n", announced)[1]
        body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "stream": True, "max_tokens": 300}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=30) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGINT)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert re.search(r'"finish_reason":"(length|stop)"', rest[-2])
        assert process.wait(20) == 0
        assert "Traceback" not in process.stderr.read()
    finally:
        watchdog.cancel()
        process.kill()
        process.communicate()


def run_and_signal(engine, port, number, signals=1, drain_seconds=0.3, during=lambda: None):
    """Run the server in this thread, signal in the middle of a stream, and return the stream's lines."""
    ready = threading.Event()
    lines = []

    def read_and_signal():
        ready.wait(10)
        body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
        with httpx.stream("POST", f"http://127.0.0.1:{port}/v1/chat/completions", json=body, timeout=60) as response:
            for line in response.iter_lines():
                if not lines:
                    for _ in range(signals):
                        os.kill(os.getpid(), number)
                        time.sleep(0.3)
                    during()
                if line:
                    lines.append(line)

    client = threading.Thread(target=read_and_signal)
    client.start()
    settings = ServerSettings(model="tiny", port=port, drain_seconds=drain_seconds)
    models = ServedModels.of("tiny", engine)
    server.Server(create_app(settings, models), models, settings, announce=ready.set).run()
    client.join(10)
    return lines


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stream_that_does_not_end_is_told_so(scripted, free_port, number):
    *_, error, done = run_and_signal(scripted(held=True), free_port, number)
    assert "shutting down" in error
    assert done == "data: [DONE]"


def test_a_second_signal_does_not_wait(scripted, free_port):
    lines = run_and_signal(scripted(held=True), free_port, signal.SIGTERM, signals=2, drain_seconds=20)
    assert "shutting down" in lines[-2]
    assert lines[-1] == "data: [DONE]"
    assert ": keep-alive" not in lines  # one comes after 15 s


def test_while_it_drains_running_streams_end_and_new_requests_are_refused(scripted, free_port):
    engine = scripted(held=True)
    answers = []

    def during():
        url = f"http://127.0.0.1:{free_port}"
        body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
        answers.append(httpx.post(f"{url}/v1/chat/completions", json=body))
        answers.append(httpx.get(f"{url}/ready"))
        answers.append(httpx.get(f"{url}/health"))
        engine.release()

    *_, last, done = run_and_signal(engine, free_port, signal.SIGTERM, drain_seconds=60, during=during)
    assert '"finish_reason":"stop"' in last
    assert done == "data: [DONE]"
    assert [answer.status_code for answer in answers] == [503, 503, 200]
    assert int(answers[0].headers["retry-after"]) > 0
    assert answers[0].json()["error"]["code"] == "shutting_down"
