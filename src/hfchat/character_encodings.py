"""Text files in the encodings that people have: the byte order mark decides, then what was named, else UTF-8.

A byte order mark is never part of a text. Line ends stay as they are, except in `read_text`.
"""

import codecs
import io
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

# Those of UTF-32 first: the mark of UTF-16-LE is the beginning of one of them.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def detect(beginning: bytes, encoding: str | None = None) -> tuple[str, int]:
    """The encoding of a text, and the length of its byte order mark.

    Args:
        beginning: The first four bytes or more.
        encoding: The encoding of a text without a mark; by default UTF-8, or UTF-16 or UTF-32 if the zeros say so.
    """
    for mark, name in _MARKS:
        if beginning.startswith(mark):
            return name, len(mark)
    return encoding or _by_zeros(beginning), 0


def _by_zeros(beginning: bytes) -> str:
    # No text of another encoding holds a zero. That a text begins with ASCII is what JSON's detection assumes, too.
    zeros = "".join("01"[byte == 0] for byte in beginning[:4])
    return {"0111": "utf-32-le", "1110": "utf-32-be", "0101": "utf-16-le", "1010": "utf-16-be"}.get(zeros, "utf-8")


def decode(content: bytes, encoding: str | None = None) -> str:
    """The text of a whole file, see `detect`.

    Raises:
        UnicodeDecodeError: For bytes that are not valid in the encoding.
    """
    encoding, mark = detect(content, encoding)
    return content[mark:].decode(encoding).removeprefix("\ufeff")  # two marks, or one in another encoding than UTF


def read_text(path: Path, encoding: str | None = None) -> str:
    """The text of a file, see `decode`; every line end is a line feed, as with `Path.read_text`."""
    return decode(path.read_bytes(), encoding).replace("\r\n", "\n").replace("\r", "\n")


def reader_of(stream: IO[bytes]) -> Callable[[int], bytes]:
    """`read1` where there is one: it gives what comes before the place where a compressed file breaks."""
    return getattr(stream, "read1", stream.read)


class Utf8Reader(io.BufferedReader):
    """A text in UTF-8 without a byte order mark, so that it can be split at bytes. It cannot be sought in.

    Bytes that are not valid in the encoding become bytes that are not valid in UTF-8: who decodes a part of the
    stream finds the fault in that part. As text: `io.TextIOWrapper(as_utf8(stream), "utf-8", newline="")`.

    Attributes:
        encoding: The one that the text had.
    """

    def __init__(self, recoded: "_Utf8"):
        super().__init__(recoded, 1 << 16)
        self.encoding = recoded.encoding


def as_utf8(stream: IO[bytes], encoding: str | None = None) -> Utf8Reader:
    """The same text in UTF-8.

    Args:
        stream: Open binary file, at its beginning.
        encoding: See `detect`.

    Raises:
        LookupError: For an encoding that Python does not know.
    """
    return Utf8Reader(_Utf8(stream, encoding))


class _Utf8(io.RawIOBase):
    def __init__(self, stream: IO[bytes], encoding: str | None):
        super().__init__()
        self._read = reader_of(stream)
        beginning = b""
        while len(beginning) < 4 and (more := self._read(4 - len(beginning))):
            beginning += more
        name, mark = detect(beginning, encoding)
        self._ready = beginning[mark:]
        self.encoding = name = codecs.lookup(name).name
        self._decoder: codecs.IncrementalDecoder | None = None
        if name != "utf-8":
            # Half a pair of surrogates is the one thing that UTF-16 can hold and UTF-8 cannot.
            self._decoder = codecs.getincrementaldecoder(name)(
                "surrogatepass" if name.startswith(("utf-16", "utf-32")) else "surrogateescape"
            )
            self._ready = _recoded(self._decoder, self._ready)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            chunk = self._read(len(buffer))
            if self._decoder is None:
                self._ready = chunk
            elif chunk:
                self._ready = _recoded(self._decoder, chunk)
            else:
                self._ready, self._decoder = _recoded(self._decoder, b"", final=True), None
            if not chunk:
                break
        size = min(len(buffer), len(self._ready))
        buffer[:size], self._ready = self._ready[:size], self._ready[size:]
        return size


def _recoded(decoder: codecs.IncrementalDecoder, chunk: bytes, final: bool = False) -> bytes:
    try:
        return decoder.decode(chunk, final).encode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        if not final:
            raise
        return b"\xff"  # the file ends within a character
