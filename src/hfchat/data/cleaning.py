"""Clean the text of documents, and remove those that would teach a model little."""

import re
from collections import Counter

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.formatters.base import BaseFormatter
from datatrove.pipeline.writers.disk_base import DiskWriter

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufeff\ud800-\udfff]")
_TRAILING_SPACE = re.compile(r"[ \t]+(?=\n|$)")
_BLANK_LINES = re.compile(r"\n{3,}")


class CleanText(BaseFormatter):
    """Unifies line ends, drops control characters and lone surrogates, trailing spaces, and runs of blank lines."""

    name = "🧽 Clean text"

    def format(self, text: str) -> str:
        text = _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
        return _BLANK_LINES.sub("\n\n", _TRAILING_SPACE.sub("", text)).strip()


class QualityFilter(BaseFilter):
    """Removes documents that are too short, mostly not words, or mostly the same lines again.

    The rules and the defaults of the last two are those of Gopher (arXiv:2112.11446, appendix A1.1 and table A1).

    Args:
        min_characters: Shorter documents are removed as `too_short`.
        min_alphabetic_words: Least share of words that hold a letter; fewer is `few_words`.
        max_duplicate_lines: Greatest share of lines that occurred before in the document; more is `repeated_lines`.
    """

    name = "🪶 Quality"

    def __init__(
        self,
        min_characters: int = 200,
        min_alphabetic_words: float = 0.8,
        max_duplicate_lines: float = 0.3,
        exclusion_writer: DiskWriter | None = None,
    ):
        super().__init__(exclusion_writer)
        self.min_characters = min_characters
        self.min_alphabetic_words = min_alphabetic_words
        self.max_duplicate_lines = max_duplicate_lines

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        if len(doc.text) < self.min_characters:
            return False, "too_short"
        words = doc.text.split()
        if sum(any(map(str.isalpha, word)) for word in words) < self.min_alphabetic_words * len(words):
            return False, "few_words"
        lines = [line for line in map(str.strip, doc.text.split("\n")) if line]
        if len(lines) - len(Counter(lines)) > self.max_duplicate_lines * len(lines):
            return False, "repeated_lines"
        return True
