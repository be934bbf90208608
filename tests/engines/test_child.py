"""A child server: how it begins, what of it is left when it ends, and what is said of that."""

import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from hfchat.engines.child import ChildServer, Program
from hfchat.errors import UserError
from tests.servers.llamacpp import Scripted
from tests.serving.conftest import wait_until

KEY = "CHILD_KEY"
# Starts a grandchild that no SIGTERM ends, writes what it is into a file, and waits.
PROGRAM = """
import json, os, subprocess, sys, time
ignores = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(99)"
grandchild = subprocess.Popen([sys.executable, "-S", "-c", ignores], stdout=subprocess.PIPE)
grandchild.stdout.readline()
facts = {
    "key": os.environ["CHILD_KEY"], "arguments": sys.argv, "session": os.getsid(0), "group": os.getpgid(0),
    "pids": [os.getpid(), os.getppid(), grandchild.pid],
}
open(sys.argv[2] + ".new", "w").write(json.dumps(facts))
os.rename(sys.argv[2] + ".new", sys.argv[2])
print("it runs on " + sys.argv[1], flush=True)
if "ends" in sys.argv:
    sys.exit(7)
time.sleep(99)
"""


def program(file, *more):
    return Program("program", [sys.executable, "-S", "-c", PROGRAM, "{port}", str(file), *more], KEY)


def facts_of(file):
    wait_until(file.exists, 20)
    return json.loads(file.read_text())


def is_alive(pid):
    """A zombie, whose parent has not read its status yet, is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def nothing_is_left(facts):
    wait_until(lambda: not any(map(is_alive, facts["pids"])), 20)


@pytest.fixture
def started(tmp_path):
    """A child that runs, what it knows of itself, and an event that its end is told by."""
    ended = threading.Event()
    child = ChildServer(program(tmp_path / "facts"), ended.set)
    child.start()
    yield child, facts_of(tmp_path / "facts"), ended
    child.stop()


def test_the_key_is_in_the_environment_only(started):
    child, facts, _ = started
    assert facts["key"] == child.key
    assert child.key not in " ".join(facts["arguments"])
    for pid in facts["pids"]:
        assert child.key.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert child.url == f"http://127.0.0.1:{facts['arguments'][1]}"
    assert len(child.key) > 30


def test_two_children_share_neither_key_nor_port(tmp_path):
    children = [ChildServer(program(tmp_path / name)) for name in "ab"]
    for child in children:
        child.start()
    try:
        assert len({child.key for child in children} | {child.url for child in children}) == 4
    finally:
        for child in children:
            child.stop()


def test_a_ctrl_c_of_the_terminal_does_not_reach_it(started):
    _, facts, _ = started
    assert facts["session"] == facts["group"] != os.getsid(0)


def test_stop_ends_it_and_what_it_has_started(started):
    child, facts, ended = started
    assert child.is_running
    child.stop()
    nothing_is_left(facts)
    assert not child.is_running
    assert ended.is_set()
    child.stop()  # which changes nothing


@pytest.mark.parametrize("which", [0, 1], ids=["program", "keeper"])
def test_kill_9_leaves_nothing_and_is_told(started, which):
    child, facts, ended = started
    os.kill(facts["pids"][which], signal.SIGKILL)
    assert ended.wait(20)
    nothing_is_left(facts)
    assert not child.is_running
    assert child.why_ended().startswith("program was killed by signal 9: it runs on ")


def test_its_end_is_told(tmp_path):
    ended = threading.Event()
    child = ChildServer(program(tmp_path / "facts", "ends"), ended.set)
    child.start()
    assert ended.wait(20)
    assert child.why_ended().startswith("program ended with status 7: it runs on ")
    nothing_is_left(facts_of(tmp_path / "facts"))


def test_nothing_outlives_us(tmp_path):
    """However we end: neither the program nor what it has started, which no SIGTERM ends."""
    ours = """
        import json, sys, time
        from hfchat.engines.child import ChildServer, Program
        ChildServer(Program("program", json.loads(sys.argv[1]), sys.argv[2])).start()
        time.sleep(99)
    """
    command = json.dumps(program(tmp_path / "facts").command)
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(ours), command, KEY]) as process:
        facts = facts_of(tmp_path / "facts")
        assert all(map(is_alive, facts["pids"]))
        process.kill()
    nothing_is_left(facts)


def test_its_log_goes_to_ours(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="hfchat.engines"):
        child = ChildServer(program(tmp_path / "facts", "ends"))
        child.start()
        wait_until(lambda: not child.is_running, 20)
        child.why_ended()
    (record,) = caplog.records
    assert record.name == "hfchat.engines"
    assert record.getMessage() == f"program: it runs on {child.url.rpartition(':')[2]}"


def test_one_that_ends_at_once_is_one_line_that_says_why(tmp_path):
    scripted = Scripted(tmp_path, start="die")
    with pytest.raises(UserError) as refused, ChildServer(scripted.program):
        pass
    assert str(refused.value) == "llama.cpp ended with status 3: error: no such model"


def test_a_program_that_does_not_exist_is_one_line():
    nothing = ChildServer(Program("nothing", ["/no-such-program"], KEY))
    with pytest.raises(UserError, match=r"^nothing ended with status 1: .*no-such-program"), nothing:
        pass


def test_inside_it_listens_whatever_proxy_there_is(tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    scripted = Scripted(tmp_path)
    with ChildServer(scripted.program) as child:
        assert child.is_running
        (pid,) = scripted.pids
    assert not is_alive(pid)
