"""Why a document is removed: a note from the block that decides it to the writer of removed documents."""

from dataclasses import dataclass
from typing import Self

from datatrove.data import Document

_KEY = "removal"


@dataclass(frozen=True)
class Removal:
    """Why a document is removed.

    Attributes:
        reason: A name such as `too_short`. It is also the folder of the documents that are removed for it.
        score: The value that missed a threshold.
        detail: What was found, for a reader.
        step: The step that removes it; None for the one that the writer belongs to.
    """

    reason: str
    score: float | None = None
    detail: str | None = None
    step: str | None = None

    def note(self, document: Document) -> tuple[bool, str]:
        """Note it in the document. Returns what a filter of datatrove returns for a document that it removes."""
        document.metadata[_KEY] = self
        return False, self.reason

    @classmethod
    def of(cls, document: Document) -> Self | None:
        """What was noted in a document; from a filter of datatrove itself that is the reason alone."""
        if _KEY in document.metadata:
            return document.metadata[_KEY]
        reason = document.metadata.get("filter_reason")
        return cls(reason) if reason else None
