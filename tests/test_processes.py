import os
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import psutil
import pytest

from hfchat import processes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's end")

# The parent's own output goes nowhere, so that the pipe is closed when the child has ended.
PARENT = """
    import os, subprocess, sys
    child = subprocess.Popen([sys.executable, "-c", {child!r}], stdout=int(sys.argv[1]), pass_fds=[int(sys.argv[1])])
    sys.stdin.readline()
    os._exit(0)
"""


@pytest.fixture
def orphan():
    """Starts a process, ends its parent when it has printed a line, and returns what else it printed until its end."""
    parents = []

    def run(code):
        reading, writing = os.pipe()
        child = textwrap.dedent(code)
        command = [sys.executable, "-c", textwrap.dedent(PARENT).format(child=child), str(writing)]
        parent = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[writing], text=True)
        parents.append(parent)
        os.close(writing)
        with os.fdopen(reading) as output:
            assert output.readline() == "ready\n"
            parent.communicate("\n", timeout=60)
            return output.read()

    yield run
    for parent in parents:
        parent.kill()
        parent.wait()


def test_a_process_is_signalled_when_its_parent_ends(orphan):
    printed = orphan(
        """
        import signal, sys, time
        from hfchat.processes import signal_with_parent

        def say_goodbye(number, _):
            print("got", signal.Signals(number).name, flush=True)
            sys.exit()

        signal.signal(signal.SIGTERM, say_goodbye)
        signal_with_parent(signal.SIGTERM)
        print("ready", flush=True)
        time.sleep(20)
        print("was left alone", flush=True)
        """
    )
    assert printed == "got SIGTERM\n"


def test_a_process_is_killed_when_its_parent_ends(orphan):
    printed = orphan(
        """
        import os, signal, time
        from hfchat.processes import end_with_parent

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end_with_parent(os.getppid())
        print("ready", flush=True)
        time.sleep(20)
        print("was left alone", flush=True)
        """
    )
    assert printed == ""


def test_a_process_whose_parent_has_ended_already_ends_at_once():
    code = "import os; from hfchat.processes import end_with_parent; end_with_parent(os.getppid() + 1); print('on')"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (finished.returncode, finished.stdout) == (1, "")


@pytest.mark.parametrize(
    ("limit", "used", "left"),
    [
        (2**30, 2**29, 2**29 + 3000),  # what has been read of files counts as used, and is given back
        (2**30, 2**31, 0),
        (2**60, 2**29, None),
        ("max", 2**29, None),
    ],
)
def test_a_container_has_what_its_limit_leaves(tmp_path, monkeypatch, limit, used, left):
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text(f"{used}\n")
    (tmp_path / "memory.stat").write_text(f"anon 7\nactive_file 1000\ninactive_file 2000\nslab {2**28}\n")
    monkeypatch.setattr(processes, "_CGROUP", tmp_path)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**40))
    assert processes.available_bytes() == (2**40 if left is None else left)


def test_without_a_container_it_is_what_the_machine_has_left(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "_CGROUP", tmp_path)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**40))
    assert processes.available_bytes() == 2**40
