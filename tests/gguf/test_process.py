import os
import signal

import pytest

from hfchat.errors import UserError
from hfchat.gguf.process import work_in_process

MODULE = """
import os, sys
from hfchat.errors import UserError
from hfchat.gguf.process import as_process

def main():
    {body}

as_process(main)
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")

    def write(body):
        (tmp_path / "native_work.py").write_text(MODULE.format(body=body))
        return "native_work"

    return write


def test_a_crash_of_native_code_is_one_line(module):
    with pytest.raises(UserError, match="its process was ended by SIGSEGV; report it"):
        work_in_process(module(f"os.kill(os.getpid(), {int(signal.SIGSEGV)})"))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise UserError('no such\\n thing')", "no such thing"),
        ("raise ValueError('wrong')", "ValueError: wrong"),
        ("raise OSError(28, 'x')", "No space left on device; make room"),
        ("sys.exit(1)", "SystemExit: 1"),
        ("os._exit(3)", "its process ended without a word"),
    ],
)
def test_what_it_raises_becomes_the_reason(module, body, reason):
    with pytest.raises(UserError) as caught:
        work_in_process(module(body))
    assert str(caught.value) == reason


def test_what_it_prints_is_the_result(module):
    assert work_in_process(module("print(os.sys.argv[1:])"), "a", "b") == "['a', 'b']\n"
