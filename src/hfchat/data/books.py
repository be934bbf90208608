"""Plain-text books of Project Gutenberg: what its volunteers put around the text of the author is cut off."""

import re
from collections.abc import Iterator
from functools import partial
from typing import IO

from hfchat.data.readers import LazyRecord, Record, Skipped, parse_text

# The marks have changed since 1991: https://www.gutenberg.org/policy/license.html and its older "small print".
_START = re.compile(
    r"^(?:\*{3} ?START OF (?:TH(?:E|IS) )?PROJECT GUTENBERG[\s\S]{0,300}?\*{3}"
    r"|\*END ?\*? ?THE SMALL PRINT[^\n]*"
    r"|\*{3} ?END OF THE SMALL PRINT[^\n]*)[ \t]*$",
    re.IGNORECASE | re.MULTILINE,
)
_END = re.compile(
    r"^(?:\*{3} ?END OF (?:TH(?:E|IS) )?PROJECT GUTENBERG"
    r"|End of (?:The |this )?Project Gutenberg(?:'s)?\b"
    r"|End of the Project Gutenberg)",
    re.IGNORECASE | re.MULTILINE,
)
_CREDITS = re.compile(r"\A\s*(?:Produced by|E-text prepared by|Transcribed by)\b[\s\S]*?(?:\n\s*\n|\Z)", re.IGNORECASE)
_FIELD = re.compile(r"^(Title|Author|Language):[ \t]*(.+?)[ \t]*$", re.MULTILINE)


def parse_book(
    stream: IO[bytes], max_bytes: int, *, separator: str | None = None, encoding: str | None = None
) -> Iterator[LazyRecord]:
    """A book per file; the header's title and author become metadata."""
    for record in parse_text(stream, max_bytes, separator=separator, encoding=encoding):
        yield partial(_without_header, record)


def _without_header(make: LazyRecord) -> Record | Skipped:
    record = make()
    if isinstance(record, Record) and record.fault is None:
        record.text, header = split_header(record.text)
        record.metadata |= {name.lower(): value for name, value in _FIELD.findall(header) if name != "Language"}
    return record


def split_header(text: str) -> tuple[str, str]:
    """The text of a book without the header, licence and credits of Project Gutenberg, and that header.

    A text without their marks is returned as it is.
    """
    text = text.replace("\r\n", "\n").removeprefix("\ufeff")
    start = None
    for mark in _START.finditer(text, 0, 100_000):
        start = mark  # the last: older files have the small print, then a mark
    begin = start.end() if start else 0
    end = _END.search(text, begin)
    body = text[begin : end.start() if end else len(text)]
    if start:
        body = _CREDITS.sub("", body, count=1)
    return (body.strip() + "\n" if start or end else text), text[:begin]
