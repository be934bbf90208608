"""From markup to text, in a process with limits of time and memory: some pages are too much for any extractor."""

import contextlib
import multiprocessing
import os
import resource
import sys
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path

from datatrove.data import Document

from hfchat.data.removal import Removal
from hfchat.processes import end_with_parent

# What the process of an extractor may take beside what it has at its start. Of 8 GB that a page of 50 MB can make of
# itself, a page of the Web's usual size takes a hundredth.
MEMORY = 1 << 30


class Extraction:
    """Turns the text of documents into what `extract` makes of it, within a limit of time, and on Linux of memory.

    datatrove's extractors drop the documents that fail. Here they are removed as `extraction_timeout`,
    `extraction_failed` or `extraction_empty`.

    Args:
        extract: From markup to text.
        timeout: Seconds of wall-clock time that one document may take.
        memory: Bytes that it may take.
    """

    def __init__(self, extract: Callable[[str], str | None], timeout: float, memory: int = MEMORY):
        self.extract, self.timeout, self.memory = extract, timeout, memory

    def run(self, documents: Iterator[Document]) -> Iterator[Document]:
        """Passes on documents that are removed already as they are."""
        self.extract("")  # imports its library here, where no clock runs; the sandbox is forked from this process
        with contextlib.closing(_Sandbox(self.extract, self.timeout, self.memory)) as sandbox:
            for document in documents:
                if not Removal.of(document):
                    result = sandbox.extract(document.text)
                    if isinstance(result, Removal):
                        result.note(document)
                    else:
                        document.text = result
                yield document


class _Sandbox:
    """Calls an extractor in a process of its own, which ends with this one (on Linux, even by SIGKILL).

    datatrove's (`ExtractorSandbox`, read in 0.10.1) starts its process as the one was started that it is in: in a
    worker of a pool that is by a server of forks, which has to import the extractor's library within the time that one
    document may take. It has no limit of memory, and its process outlives a run that is killed.
    """

    def __init__(self, extract: Callable[[str], str | None], timeout: float, memory: int):
        self._extract, self._timeout, self._memory = extract, timeout, memory
        self._process: ForkProcess | None = None
        self._out_of_memory = Removal(
            "extraction_failed", detail=f"it needs more than {memory:,} bytes of memory", step="extract"
        )

    def extract(self, text: str) -> str | Removal:
        """The text that the extractor finds, or why it finds nothing."""
        if self._process is None:
            self._start()
        try:
            self._pipe.send(text)
            if not self._pipe.poll(self._timeout):
                self.close()
                return Removal("extraction_timeout", score=self._timeout, step="extract")
            result = self._pipe.recv()
        except (EOFError, ConnectionError):
            self.close()
            return Removal("extraction_failed", detail="the extractor's process died", step="extract")
        if result == self._out_of_memory:
            self.close()  # what it holds may be in pieces
        return result

    def close(self) -> None:
        """End the process; the next document gets a new one."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._process = None

    def _start(self) -> None:
        self._pipe, far_end = multiprocessing.Pipe()
        context = multiprocessing.get_context("fork")
        self._process = context.Process(target=self._work, args=(far_end, os.getpid()), daemon=True)
        self._process.start()
        far_end.close()  # so that the end of the process is the end of the pipe

    def _work(self, pipe: Connection, parent: int) -> None:
        end_with_parent(parent)
        self._pipe.close()
        if sys.platform == "linux":  # elsewhere the kernel keeps no such limit
            with contextlib.suppress(OSError):  # if the machine runs out of memory, this process is to be killed first
                Path("/proc/self/oom_score_adj").write_text("1000")
            _, most = resource.getrlimit(resource.RLIMIT_AS)
            allowed = _address_space("VmSize") + self._memory
            resource.setrlimit(
                resource.RLIMIT_AS, (allowed if most == resource.RLIM_INFINITY else min(allowed, most), most)
            )
        with contextlib.suppress(EOFError):
            while True:
                pipe.send(self._attempt(pipe.recv()))

    def _attempt(self, text: str) -> str | Removal:
        peak = _address_space("VmPeak")
        try:
            found = self._extract(text)
        except MemoryError:
            return self._out_of_memory
        except Exception as error:  # any parser has errors of its own
            detail = f"{type(error).__name__}: {error}"[:300]
            return Removal("extraction_failed", detail=detail, step="extract")
        # A parser that gets no memory may give up without a word.
        if not found and self._is_short_of_memory(peak):
            return self._out_of_memory
        return found if found and found.strip() else Removal("extraction_empty", step="extract")

    def _is_short_of_memory(self, peak_before: int) -> bool:
        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        peak = _address_space("VmPeak")
        return limit != resource.RLIM_INFINITY and peak > peak_before and limit - peak < self._memory // 2


def _address_space(name: str) -> int:
    """A size of this process, in bytes; `name` as in proc(5), `/proc/pid/status`. 0 where that is not there."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)
