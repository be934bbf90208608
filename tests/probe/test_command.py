"""`hfchat probe` as a program: against `hfchat serve` with a real, tiny model, and what it refuses."""

import json
import shlex
import sys

import pytest

from hfchat.cli import main
from tests.conftest import random_llama
from tests.probe.faults import header

# The server's own limits for slow clients, shortened: they are waited for.
SERVE = """
from hfchat.serving.http import app
from hfchat.serving.http import connections
app._MAX_BODY_S = connections._HEADERS_S = 5
from hfchat.cli import main
main()
"""


@pytest.fixture(scope="module")
def talkative_model(tokenizer, tmp_path_factory):
    """A folder with a tiny chat model that knows nothing and does not stop."""
    import torch

    from hfchat.chat_template import record_fingerprint

    model = random_llama(
        tokenizer,
        max_position_embeddings=4096,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.3,  # logits far enough apart that no rounding decides between two tokens
        tie_word_embeddings=False,
    )
    with torch.no_grad():
        for token in tokenizer.added_tokens_decoder:
            model.lm_head.weight[token] = 0  # never the likeliest one
    record_fingerprint(tokenizer, model)
    folder = tmp_path_factory.mktemp("talkative")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def probe(*arguments):
    """Run the command in this process. Returns its exit status."""
    with pytest.raises(SystemExit) as ended:
        main(["probe", *map(str, arguments)])
    return ended.value.code


def test_our_server_passes_all_of_it(talkative_model, free_port, tmp_path, capsys):
    options = ["--port", str(free_port), "--drain-seconds", "1", "--engine", "transformers"]
    command = shlex.join([sys.executable, "-c", SERVE, "serve", str(talkative_model), *options])
    report = tmp_path / "report.json"
    code = probe(
        f"http://127.0.0.1:{free_port}/v1", "--command", command, "--json", report, "--patience", 4
    )  # patience: CI's machines are busy
    checks = json.loads(report.read_text())["checks"]
    assert [check for check in checks if check["verdict"] == "FAIL"] == []
    assert [check["check"] for check in checks if check["verdict"] == "skip"] == [
        "a stranger is 401: no key",
        "a stranger is 401: a wrong key",
        "reasoning is apart from the answer",
    ]
    assert code == 0
    assert "│ shutdown    │    3 │    0 │    0 │" in capsys.readouterr().out


def test_a_failure_is_status_1(server, tmp_path, capsys):
    server.faults.fault = header("content-type", "text/plain")
    report = tmp_path / "report.json"
    try:
        assert probe(f"{server.url}/", "--only", "shapes", "--json", report) == 1
    finally:
        server.faults.fault = None
    written = json.loads(report.read_text())
    failed = [check for check in written["checks"] if check["verdict"] == "FAIL"]
    assert [check["check"] for check in failed] == ["the models are listed", "a chat is answered"]
    assert "text/plain" in failed[0]["seen"]
    assert "GET /models" in failed[0]["why"]
    assert written["verdicts"]["FAIL"] == 2
    assert "shutdown" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["ftp://127.0.0.1/v1"], "URL must be"),
        (["http://127.0.0.1:99999/v1"], "URL must be"),
        (["http://127.0.0.1:1/v1"], "no server answers there"),
        (["http://127.0.0.1:1/v1", "--patience", "nan"], "--patience"),
        (["http://127.0.0.1:1/v1", "--only", "shape"], "shapes"),
        (["http://127.0.0.1:1/v1", "--api-key-env", "HFCHAT_NO_SUCH"], "HFCHAT_NO_SUCH"),
        (["http://127.0.0.1:1/v1", "--pid", "99999999"], "no such process"),
        (["http://127.0.0.1:1/v1", "--command", "hfchat-no-such-program"], "cannot be started"),
        (["http://127.0.0.1:1/v1", "--command", "false"], "status 1"),
        (["http://127.0.0.1:1/v1", "--json", "/no/such/folder/x.json"], "no such folder"),
    ],
)
def test_bad_input_is_one_line_and_status_2(capsys, arguments, word):
    assert probe(*arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert word in lines[0]
