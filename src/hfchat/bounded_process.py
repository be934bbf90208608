"""Work that may never end, in a process that can be stopped: a thread cannot be.

A process answers questions one by one, each within bounds of time and memory, and the next question gets a new process
if one was stopped. `ProcessPoolExecutor` has no way to stop its worker before Python 3.14 (`kill_workers`).
"""

import itertools
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from hfchat.chat import Json

_LENGTH = struct.Struct(">I")
_START_S = 60.0  # a large vocabulary on a slow machine
_numbers = itertools.count()

T = TypeVar("T")


class ProcessStoppedError(Exception):
    """The process was stopped: the message says what was too much, "more than 10 s" or "too much memory"."""


class Subject:
    """What a process is asked about, such as a tokenizer. It is sent there once.

    Args:
        arguments: What `setup` of `serve` makes it of.
    """

    def __init__(self, *arguments: object):
        self.number = next(_numbers)
        self.setup = pickle.dumps((self.number, "setup", arguments))


class BoundedProcess:
    """A process that runs `serve`, begun when it is needed. It ends when this one does. Any thread may ask it.

    Args:
        module: What it runs.
    """

    def __init__(self, module: str):
        self._module = module
        self._one_at_a_time = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._knows: set[int] = set()
        self._unwanted: set[int] = set()

    def ask(self, subject: Subject, seconds: float, method: str, *arguments: object) -> Json:
        """The answer to a question.

        Args:
            subject: What it is about.
            seconds: How long it may take.
            method: As `answer` of `serve` gets it, with the arguments.

        Raises:
            ProcessStoppedError: If it took more time, or too much memory.
        """
        with self._one_at_a_time:
            # The last one, unless it was stopped; a new one knows no subject yet.
            child = self._child
            if child is None or child.poll() is not None:
                child = self._start()
            if subject.number not in self._knows:
                self._exchange(child, subject.setup, seconds + _START_S)
                self._knows.add(subject.number)
            for gone in self._knows & self._unwanted:
                self._exchange(child, pickle.dumps((gone, "forget", ())), seconds)
                self._knows.discard(gone)
            return self._exchange(child, pickle.dumps((subject.number, method, arguments)), seconds)

    def forget(self, subject: Subject) -> None:
        """Let the process forget a subject when it is next asked something."""
        self._unwanted.add(subject.number)

    def _start(self) -> subprocess.Popen[bytes]:
        path = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), *sys.path]))
        self._knows = set()
        self._child = subprocess.Popen(
            [sys.executable, "-m", self._module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": path, "USE_TORCH": "0", "TRANSFORMERS_VERBOSITY": "error"},
        )
        child = self._child
        try:
            self._exchange(child, pickle.dumps((0, "ready", ())), _START_S)
        except ProcessStoppedError as error:
            raise ProcessStoppedError("all the time to start; the log has its own message") from error
        return child

    def _exchange(self, child: subprocess.Popen[bytes], message: bytes, seconds: float) -> Json:
        """Its answer to a message. If none comes in time, the process is stopped."""
        assert child.stdin is not None  # both are pipes
        assert child.stdout is not None
        timed_out = threading.Event()

        def stop() -> None:
            timed_out.set()
            child.kill()

        # A pipe has no time limit of its own, so a timer ends the process, and with it the wait.
        timer = threading.Timer(seconds, stop)
        timer.daemon = True
        timer.start()
        try:
            child.stdin.write(_LENGTH.pack(len(message)) + message)
            child.stdin.flush()
            line = child.stdout.readline()
        except OSError:
            line = b""
        finally:
            timer.cancel()
        if line:
            return json.loads(line)

        # It was killed, here or by the kernel, and the next question gets a new one.
        child.kill()
        child.wait()
        child.stdin.close()
        child.stdout.close()
        self._child = None
        raise ProcessStoppedError(f"more than {seconds:g} s" if timed_out.is_set() else "too much memory")


def serve(setup: Callable[..., T], answer: Callable[..., Json], memory_bytes: int, seconds: float) -> None:
    """Answer questions until the other end is closed. The whole program of such a process.

    Args:
        setup: Makes a subject of its arguments.
        answer: Called with a subject, the method that is asked for, and its arguments.
        memory_bytes: What the process may take beyond what it has when its subjects are there.
        seconds: Twice this time of a processor for one question, and the kernel ends the process: whoever asked may
            have been killed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the server, which lets running answers end
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # so that nothing that is printed is taken for an answer
    questions = sys.stdin.buffer
    subjects: dict[int, Any] = {}
    while header := questions.read(_LENGTH.size):
        number, method, arguments = pickle.loads(questions.read(*_LENGTH.unpack(header)))
        answered: Json = {}
        if method == "setup":
            bound_memory(None)
            subjects[number] = setup(*arguments)
            bound_memory(memory_bytes)
        elif method in ("ready", "forget"):
            subjects.pop(number, None)
        else:
            _bound_time(seconds)
            answered = answer(subjects[number], method, *arguments)
        answers.write(json.dumps(answered).encode() + b"\n")
        answers.flush()


def bound_memory(more: int | None) -> None:
    """Let this process take so many more bytes than it has, or any number, where the kernel can tell: on Linux."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = resource.RLIM_INFINITY if more is None else pages * resource.getpagesize() + more
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def _bound_time(seconds: float) -> None:
    with suppress(ImportError, OSError, ValueError):
        import resource

        used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
        resource.setrlimit(resource.RLIMIT_CPU, (int(used + 2 * seconds) + 1, resource.RLIM_INFINITY))
