"""From markup to text, in a process of its own with a hard time limit: some pages make any extractor hang."""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.extractors.base import ExtractorSandbox

from hfchat.processes import end_with_parent


class Extraction:
    """Turns the text of documents into what `extract` makes of it, within a time limit.

    datatrove's extractors do the same in the same sandbox, but drop the documents that fail. Here they get a
    `filter_reason`: `extraction_timeout`, `extraction_failed` or `extraction_empty`.

    Args:
        extract: From markup to text; a function of a module, so that it can be sent to another process.
        timeout: Seconds of wall-clock time that one document may take.
    """

    def __init__(self, extract: Callable[[str], str | None], timeout: float):
        self.extract, self.timeout = extract, timeout

    def run(self, documents: Iterator[Document]) -> Iterator[Document]:
        """Passes on documents that have a `filter_reason` already as they are."""
        self.extract("")  # imports its library here, where no clock runs; the sandbox is forked from this process
        with _Sandbox(self.timeout) as sandbox:
            for document in documents:
                if "filter_reason" not in document.metadata:
                    self._extract(document, sandbox)
                yield document

    def _extract(self, document: Document, sandbox: ExtractorSandbox) -> None:
        about = document.metadata
        about["step"] = "extract"
        try:
            text = sandbox.process_document(document.text, self._guarded)
        except TimeoutError:
            about["filter_reason"], about["filter_score"] = "extraction_timeout", self.timeout
        except EOFError:
            about["filter_reason"], about["filter_detail"] = "extraction_failed", "the extractor's process died"
        except RuntimeError as error:
            about["filter_reason"], about["filter_detail"] = "extraction_failed", str(error)
        else:
            if text and text.strip():
                document.text = text
                about["step"] = "read"
            else:
                about["filter_reason"] = "extraction_empty"

    def _guarded(self, text: str) -> str | RuntimeError | None:
        try:
            return self.extract(text)
        except Exception as error:  # of any parser; the sandbox raises what it is handed
            return RuntimeError(f"{type(error).__name__}: {error}"[:300])


class _Sandbox(ExtractorSandbox):
    """datatrove's, but forked, and with a process that ends with the one that started it (on Linux, even by SIGKILL).

    datatrove's starts its process in the way of the one it is in: in a worker of a pool that is a server of forks,
    which would have to be sent the extractor and import its library within the time that one document may take.
    """

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
        super()._worker(conn, extract_fn)
