"""The process of the server that is probed: the probe starts it, or it runs already."""

import asyncio
import contextlib
import functools
import os
import shlex
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import IO

import httpx

from hfchat.errors import UserError
from hfchat.processes import signal_with_parent

_START_S = 600.0


@dataclass(frozen=True)
class ServerProcess:
    """A process. Its exit status is known only if the probe has started it."""

    pid: int
    started: subprocess.Popen | None = None

    def terminate(self) -> None:
        """Ask it to stop, as container runtimes and service managers do."""
        os.kill(self.pid, signal.SIGTERM)

    def is_running(self) -> bool:
        if self.started is not None:
            return self.started.poll() is None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    @property
    def exit_status(self) -> int | None:
        """None while it runs, and if the probe has not started it."""
        return None if self.started is None else self.started.poll()


def running(pid: int) -> ServerProcess:
    """A process that runs already.

    Raises:
        UserError: If there is no such process, or it belongs to another user.
    """
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        raise UserError(f"--pid {pid}: there is no such process") from None
    except PermissionError:
        raise UserError(f"--pid {pid}: the process belongs to another user") from None
    return ServerProcess(pid)


@contextlib.asynccontextmanager
async def start(command: str, url: str) -> AsyncIterator[ServerProcess]:
    """Start a server, wait until it answers at `url`, and end it.

    Raises:
        UserError: If the program does not exist, the server ends before it answers, or another one answers there.
    """
    async with httpx.AsyncClient(trust_env=False) as client:
        with contextlib.suppress(httpx.HTTPError):
            await client.get(url)
            raise UserError(f"--command: a server answers at {url} already; stop it, or choose another port")
    with tempfile.TemporaryFile() as log:
        try:
            # It has a session of its own: Ctrl-C is for the probe, which then ends it. If the probe is killed, the
            # kernel ends it.
            process = subprocess.Popen(
                shlex.split(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=functools.partial(signal_with_parent, signal.SIGKILL),
            )
        except (OSError, ValueError, IndexError) as error:
            raise UserError(f"--command {command!r} cannot be started: {error}") from error
        try:
            await _wait_for_answer(process, url, command, log)
            yield ServerProcess(process.pid, process)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


async def _wait_for_answer(process: subprocess.Popen, url: str, command: str, log: IO[bytes]) -> None:
    async with httpx.AsyncClient(timeout=10, trust_env=False) as client:
        end = asyncio.get_running_loop().time() + _START_S
        while asyncio.get_running_loop().time() < end:
            if process.poll() is not None:
                log.seek(0)
                last = (log.read().decode(errors="replace").strip() or "it printed nothing").splitlines()[-1]
                raise UserError(f"--command {command!r} ended with status {process.returncode}: {last}")
            with contextlib.suppress(httpx.HTTPError):
                if (await client.get(f"{url}/models")).status_code < 500:
                    return
            await asyncio.sleep(0.2)
    raise UserError(f"--command {command!r}: nothing answers at {url} after {_START_S:g} s")
