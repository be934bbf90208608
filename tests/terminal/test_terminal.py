"""`hfchat chat` as a person has it: in a terminal, with Ctrl-C, and with a model of this machine."""

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import time

import psutil
import pytest

from hfchat.serving.engines.engine import Piece
from tests.serving.conftest import wait_until

COMMAND = [sys.executable, "-c", "from hfchat.cli import main; main()", "chat"]
CTRL_C, CTRL_D = b"\x03", b"\x04"


class Terminal:
    """A program in a terminal of its own: what is typed into it, and what it has shown."""

    def __init__(self, *arguments):
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=os.environ | {"TERM": "xterm"},
            preexec_fn=lambda: os.login_tty(os.dup(slave)),
        )
        os.close(slave)
        self.shown = ""

    def type(self, keys: bytes):
        os.write(self._master, keys)

    def wait_for(self, text: str, seconds: float = 20):
        """Wait until this is shown, and forget what was shown up to it."""
        deadline = time.monotonic() + seconds
        while text not in self.shown:
            assert time.monotonic() < deadline, self.shown
            if not select.select([self._master], [], [], 0.1)[0]:
                continue
            try:
                self.shown += os.read(self._master, 4096).decode(errors="replace")
            except OSError:  # how Linux says that nobody has the other side open any more
                assert text in self.shown, self.shown
        before, _, self.shown = self.shown.partition(text)
        return before

    def type_until(self, keys: bytes, text: str):
        """Type again and again until this is shown: Python does not see a Ctrl-C just before it begins to read."""
        for _ in range(20):
            self.type(keys)
            with contextlib.suppress(AssertionError):
                return self.wait_for(text, 1)
        raise AssertionError(self.shown)

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self._master)


@pytest.fixture
def terminal():
    opened = []

    def open_terminal(*arguments):
        opened.append(Terminal(*arguments))
        return opened[-1]

    yield open_terminal
    for one in opened:
        one.close()


@pytest.fixture
def eventually():
    return wait_until


def test_ctrl_c_stops_an_answer_and_ctrl_d_leaves(terminal, serve, scripted, eventually):
    pieces = [Piece("", 1, reasoning="Let me think."), "\x1b]0;steered\x07One", " two"]
    served = serve(scripted(pieces=pieces, held=True))
    chat = terminal(f"{served.url}/v1")
    chat.wait_for("> ")
    chat.type(b"Count\n")
    chat.wait_for("\x1b[2mLet me think.\x1b[0m")  # dimmed
    chat.type(CTRL_C)
    chat.wait_for("[stopped]")
    eventually(lambda: served.engine.active == 0)  # the server was told

    # What the model says does not steer the terminal, and the conversation goes on.
    served.engine.release()
    chat.wait_for("> ")
    chat.type(b"/retry\n")
    chat.wait_for("\\x1b]0;steered\\x07One two")
    chat.wait_for("> ")
    chat.type_until(CTRL_C, "Ctrl-D or /quit leaves")
    chat.wait_for("> ")
    chat.type(CTRL_D)
    assert chat.process.wait(20) == 0


def test_a_model_of_this_machine_is_served_for_the_conversation(tiny_folder, tmp_path):
    finished = subprocess.run(
        [*COMMAND, str(tiny_folder), "--max-tokens", "4", "--engine", "transformers"],
        input="Hi\n", capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.endswith("\n")
    assert finished.stderr.startswith(f"loading {tiny_folder}\n")
    assert not servers_of(tiny_folder)


def test_a_killed_chat_leaves_no_server_behind(tiny_folder, eventually):
    chat = subprocess.Popen([*COMMAND, str(tiny_folder)], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: servers_of(tiny_folder), seconds=60)
    finally:
        chat.send_signal(signal.SIGKILL)
        chat.wait()
        chat.stdin.close()
    eventually(lambda: not servers_of(tiny_folder), seconds=60)


def test_a_model_that_is_not_there_is_one_line():
    finished = subprocess.run(
        [*COMMAND, "/no/such"], input="", capture_output=True, text=True, check=False, timeout=120
    )
    assert finished.returncode == 2
    assert finished.stderr.splitlines()[1:] == [
        "error: hfchat serve ended with status 2: /no/such: no such model folder"
    ]


def servers_of(folder):
    """The processes that serve the model in this folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "serve" in words and str(folder) in words:
            found.append(process.pid)
    return found
