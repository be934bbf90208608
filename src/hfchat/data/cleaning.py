"""Clean the text of documents, and remove those that would teach a model little."""

import re
from collections import Counter

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.formatters import FTFYFormatter
from datatrove.pipeline.formatters.base import BaseFormatter
from datatrove.pipeline.writers.disk_base import DiskWriter

# What ends a line or a page beside a line feed (https://www.unicode.org/reports/tr14/: CR, NL, BK).
_LINE_END = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
_LINE_END_OR_DOTS = re.compile("\r\n|[\r\x0b\x0c\u2028\u2029]")
_OTHER_C1 = re.compile("[\x80-\x84\x86-\x9f]")
_SEPARATOR = re.compile("[\x1c-\x1f]")  # of files, groups, records and units: words on both sides of one are two
_CONTROL = re.compile("[\x00-\x08\x0e-\x1b\x7f\x80-\x84\x86-\x9f\ufeff\ud800-\udfff]")
_BLANK_LINES = re.compile("\n{3,}")


class FixText(FTFYFormatter):
    """Repairs mojibake with ftfy, as datatrove's does, which would delete some characters that separate words."""

    def format(self, text: str) -> str:
        # Among other C1 characters, U+0085 is the ellipsis of Windows-1252, which ftfy repairs; alone it ends a line.
        ends = _LINE_END_OR_DOTS if _OTHER_C1.search(text) else _LINE_END
        return super().format(_SEPARATOR.sub(" ", ends.sub("\n", text)))


class CleanText(BaseFormatter):
    """Unifies line ends, and drops control characters, lone surrogates, trailing spaces and runs of blank lines.

    Characters that separate lines, pages or words still do: a form feed becomes a line feed.
    """

    name = "🧽 Clean text"

    def format(self, text: str) -> str:
        text = _CONTROL.sub("", _SEPARATOR.sub(" ", _LINE_END.sub("\n", text)))
        # A line at a time: a regular expression would go over the spaces within a line from each of them.
        text = "\n".join(line.rstrip(" \t") for line in text.split("\n"))
        return _BLANK_LINES.sub("\n\n", text).strip()


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
