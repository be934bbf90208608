"""From markup to text, in a process with limits of time and memory: some pages are too much for any extractor."""

import multiprocessing
import os
import resource
import sys
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.extractors.base import ExtractorSandbox

from hfchat.processes import end_with_parent

# What the process of an extractor may take beside what it has at its start. Of 8 GB that a page of 50 MB can make of
# itself, a page of the Web's usual size takes a hundredth.
MEMORY = 1 << 30


class Extraction:
    """Turns the text of documents into what `extract` makes of it, within a limit of time, and on Linux of memory.

    datatrove's extractors do the same in the same sandbox, but drop the documents that fail. Here they get a
    `filter_reason`: `extraction_timeout`, `extraction_failed` or `extraction_empty`.

    Args:
        extract: From markup to text; a function of a module, so that it can be sent to another process.
        timeout: Seconds of wall-clock time that one document may take.
        memory: Bytes that it may take.
    """

    def __init__(self, extract: Callable[[str], str | None], timeout: float, memory: int = MEMORY):
        self.extract, self.timeout, self.memory = extract, timeout, memory

    def run(self, documents: Iterator[Document]) -> Iterator[Document]:
        """Passes on documents that have a `filter_reason` already as they are."""
        self.extract("")  # imports its library here, where no clock runs; the sandbox is forked from this process
        with _Sandbox(self.timeout, self.memory) as sandbox:
            for document in documents:
                if "filter_reason" not in document.metadata:
                    self._extract(document, sandbox)
                yield document

    def _extract(self, document: Document, sandbox: "_Sandbox") -> None:
        about = document.metadata
        about["step"] = "extract"
        try:
            text = sandbox.process_document(document.text, self._guarded)
        except TimeoutError:
            about["filter_reason"], about["filter_score"] = "extraction_timeout", self.timeout
        except EOFError:
            about["filter_reason"], about["filter_detail"] = "extraction_failed", "the extractor's process died"
        except MemoryError:
            about["filter_reason"] = "extraction_failed"
            about["filter_detail"] = f"it needs more than {self.memory:,} bytes of memory"
            sandbox.end_process()  # what it holds may be in pieces
        except RuntimeError as error:
            about["filter_reason"], about["filter_detail"] = "extraction_failed", str(error)
        else:
            if text and text.strip():
                document.text = text
                about["step"] = "read"
            else:
                about["filter_reason"] = "extraction_empty"

    def _guarded(self, text: str) -> str | Exception | None:
        peak = _address_space("VmPeak")
        try:
            found = self.extract(text)
            # A parser that gets no memory may give up without a word.
            return found if found or not self._is_short_of_memory(peak) else MemoryError()
        except MemoryError:
            return MemoryError()
        except Exception as error:  # of any parser; the sandbox raises what it is handed
            return RuntimeError(f"{type(error).__name__}: {error}"[:300])

    def _is_short_of_memory(self, peak_before: int) -> bool:
        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        peak = _address_space("VmPeak")
        return limit != resource.RLIM_INFINITY and peak > peak_before and limit - peak < self.memory // 2


def _address_space(name: str) -> int:
    """A size of this process, in bytes; `name` as in proc(5), `/proc/pid/status`. 0 where that is not there."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)


class _Sandbox(ExtractorSandbox):
    """datatrove's, but forked, and with a process that ends with the one that started it (on Linux, even by SIGKILL).

    datatrove's starts its process in the way of the one it is in: in a worker of a pool that is a server of forks,
    which would have to be sent the extractor and import its library within the time that one document may take.
    """

    def __init__(self, timeout: float, memory: int):
        super().__init__(timeout)
        self.memory = memory

    def end_process(self) -> None:
        """End the process; the next document gets a new one."""
        self._cleanup_process()

    def _ensure_process(self, extract_fn: Callable[[str], Any]) -> None:
        if self.process is not None and self.process.is_alive():
            return
        if self.process is not None:
            self._cleanup_process()
        context = multiprocessing.get_context("fork")
        self.parent = os.getpid()
        self.parent_conn, self.child_conn = context.Pipe()
        self.process = context.Process(target=self._worker, args=(self.child_conn, extract_fn), daemon=True)
        self.process.start()
        self.child_conn.close()  # so that its death is the end of the pipe
        self.all_processes.append(self.process)
        self.parent_conn.recv()  # it is ready; the library was imported before the fork

    def _worker(self, conn: Connection, extract_fn: Callable[[str], Any]) -> None:
        end_with_parent(self.parent)
        if sys.platform == "linux":  # elsewhere the kernel keeps no such limit
            _, most = resource.getrlimit(resource.RLIMIT_AS)
            allowed = _address_space("VmSize") + self.memory
            resource.setrlimit(
                resource.RLIMIT_AS, (allowed if most == resource.RLIM_INFINITY else min(allowed, most), most)
            )
        super()._worker(conn, extract_fn)
