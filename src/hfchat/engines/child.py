"""A server that runs as a child of this process: on loopback, with a key of its own, and never longer than we do."""

import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from types import TracebackType
from typing import Self

from hfchat.errors import UserError
from hfchat.processes import limit_spinning

_LOGGER = logging.getLogger("hfchat.engines")
_KEEPER = str(Path(__file__).with_name("keeper.py"))  # as a file, because a `PYTHONPATH` would be the child's as well
_KEPT_LINES = 400  # of its log, for the message when it ends; vLLM's processes print a traceback each
_POLL_S = 0.1
_END_S = 10.0  # the keeper gives it 5 s
_HOST = "127.0.0.1"
_OPENER = urllib.request.build_opener(
    urllib.request.ProxyHandler({})
)  # a proxy of the environment is not for loopback


@dataclass(frozen=True)
class Program:
    """What is run as a child server.

    Attributes:
        name: For messages and the log.
        command: Its arguments; `{port}` in one of them stands for the port.
        key_variable: The environment variable that it reads its API key from. Arguments are there for all to see.
        environment: Other variables, beside those of this process.
        complaint: Finds in the last lines of its log why it has ended; None if they do not say.
        key_value: What the variable says for a key.
    """

    name: str
    command: Sequence[str]
    key_variable: str
    environment: dict[str, str] = field(default_factory=dict)
    complaint: Callable[[Sequence[str]], str | None] = lambda lines: lines[-1] if lines else None
    key_value: Callable[[str], str] = str


class ChildServer:
    """A `Program` that is running, or was. As a context manager it is started, listens inside, and is stopped.

    Its log goes to ours, logger `hfchat.engines`. It is ended with this process, also when that is killed.

    Attributes:
        program: What is run.
        url: Where it listens, such as `http://127.0.0.1:8123`.
        key: The API key that it asks for.
    """

    def __init__(self, program: Program, on_exit: Callable[[], None] = lambda: None):
        """
        Args:
            program: What to run.
            on_exit: Called by a thread when it has ended, for whatever reason.
        """
        self.program = program
        self.key = secrets.token_urlsafe(32)
        self.url = ""
        self._on_exit = on_exit
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._keeper: subprocess.Popen[bytes] | None = None
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self.start()
        try:
            self.wait_until_it_listens()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start it, on a free port. It is not listening yet."""
        port = _free_port()
        self.url = f"http://{_HOST}:{port}"
        command = [argument.replace("{port}", str(port)) for argument in self.program.command]
        key_value = self.program.key_value(self.key)
        variables = os.environ | self.program.environment | {self.program.key_variable: key_value}
        limit_spinning(variables)
        # A group of its own, so that a Ctrl-C is for us alone, and nothing of it is left when it has ended.
        self._keeper = keeper = subprocess.Popen(
            [sys.executable, _KEEPER, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=variables,
            start_new_session=True,
        )
        reading = threading.Thread(target=self._read_log, args=(keeper,), name="engine-log", daemon=True)
        waiting = threading.Thread(target=self._wait, args=(keeper, reading), name="engine-wait", daemon=True)
        self._threads = [reading, waiting]
        for thread in self._threads:
            thread.start()

    def wait_until_it_listens(self) -> None:
        """Return when it says that it is alive (`/health`), however long it loads its model.

        Raises:
            UserError: If it has ended. Says why.
        """
        while not self._is_healthy():
            if not self.is_running:
                raise UserError(self.why_ended())
            time.sleep(_POLL_S)

    @property
    def is_running(self) -> bool:
        return self._keeper is not None and self._keeper.poll() is None

    def why_ended(self) -> str:
        """Why it has ended, as far as its log says."""
        for thread in self._threads:  # so that the last lines are there
            thread.join(1.0)
        status = self._keeper.returncode if self._keeper is not None else None
        reason = self.program.complaint(list(self._lines)) or "its log does not say why"
        if status is not None and status < 0:  # the keeper itself was killed
            status = 128 - status
        how = f"was killed by signal {status - 128}" if status and status > 128 else f"ended with status {status}"
        return f"{self.program.name} {how}: {reason}"

    def stop(self) -> None:
        """End it and all that it has started."""
        keeper = self._keeper
        if keeper is None:
            return
        if keeper.stdin is not None:
            with suppress(OSError):
                keeper.stdin.close()
        try:
            keeper.wait(_END_S)
        except subprocess.TimeoutExpired:
            keeper.kill()
        # A thread kills what is left of its group; later, the group's number may be that of another.
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(_END_S)

    def _is_healthy(self) -> bool:
        try:
            with _OPENER.open(f"{self.url}/health", timeout=5) as response:
                return response.status == 200
        except (OSError, HTTPException):
            return False

    def _read_log(self, keeper: subprocess.Popen[bytes]) -> None:
        assert keeper.stdout is not None  # it is a pipe
        with keeper.stdout:
            for line in keeper.stdout:
                text = line.decode(errors="replace").rstrip()
                if text:
                    self._lines.append(text)
                    _LOGGER.info("%s: %s", self.program.name, text)

    def _wait(self, keeper: subprocess.Popen[bytes], reading: threading.Thread) -> None:
        keeper.wait()
        _kill_group(keeper.pid)
        reading.join(1.0)
        self._on_exit()


def _kill_group(leader: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def _free_port() -> int:
    with socket.create_server((_HOST, 0)) as listener:
        return listener.getsockname()[1]
