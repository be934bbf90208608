"""The records of WARC and ARC files, read in bounded memory and such that one that is damaged costs itself.

warcio parses their headers. Its iterator is not used: it reads lines of any length, refuses a file that was packed as
a whole, takes what cannot be unpacked for the end of a record, and ends at the first record that is damaged.
"""

import bz2
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, Any

from hfchat.character_encodings import reader_of

if TYPE_CHECKING:
    from warcio.statusandheaders import StatusAndHeaders

# The headers of a record may have so many bytes, and those of HTTP in it.
MAX_HEADER_BYTES = 1 << 18
_WINDOW = 1 << 16
# A damaged record may hide others, so it is searched for them: for each byte of a file, so many bytes are read again.
_READ_AGAIN = 4
_BEGINNING = re.compile(rb"WARC/\d+\.\d+\s", re.IGNORECASE)
_WARC = b"WARC/"
_ARC_FILE = b"filedesc://"
_ARC_BEGINNING = re.compile(rb"[a-z][a-z0-9+.-]*:.* \d{14} \S* \d+\s*\Z", re.IGNORECASE)
# The head of a gzip member: its flags, any time, and the values that are given to the level and the operating system.
_MEMBER = re.compile(rb"\x1f\x8b\x08[\x00-\x1f].{4}[\x00\x02\x04][\x00-\x0d\xff]", re.DOTALL)
_MEMBER_HEAD = 1 << 12  # enough of one to see how what is packed in it begins


class DamageError(ValueError):
    """Why a record, or what stands in the place of one, cannot be read."""


class WarcRecord:
    """One record, to be read before the next one is asked for.

    Attributes:
        headers: Its own headers; those of ARC have the names of WARC.
        kind: Its `WARC-Type`, in lower case.
    """

    def __init__(self, headers: "StatusAndHeaders", length: int, reader: "_Reader"):
        self.headers = headers
        self.kind = (headers.get_header("WARC-Type") or "").strip().lower()
        self._left, self._reader = length, reader
        self._damage: str | None = None

    def read(self, size: int) -> bytes:
        """Up to `size` bytes of what the record holds; fewer only at its end, or where it is damaged."""
        return self._taken(self._reader.read, size)

    def readline(self, size: int) -> bytes:
        return self._taken(self._reader.readline, size)

    def _taken(self, read: Callable[[int], bytes], size: int) -> bytes:
        try:
            content = read(min(size, self._left))
        except (zlib.error, DamageError) as error:
            self._damage, self._left = f"its compression is broken: {error}", 0
            return b""
        self._left -= len(content)
        return content

    def damage(self) -> str | None:
        """Pass over the rest of the record. Says what is wrong with it, or with its length."""
        while self._damage is None and self.read(_WINDOW):
            pass
        if self._damage is None and self._left:
            self._damage = f"the record is cut off, {self._left:,} bytes before its end"
        if self._damage is None:
            try:
                if not self._reader.is_between_records():
                    self._damage = "the record is longer than its Content-Length"
            except zlib.error as error:  # the checksum, too
                self._damage = f"its compression is broken: {error}"
        return self._damage


def read_records(stream: IO[bytes]) -> Iterator[WarcRecord | DamageError]:
    """The records of a file, plain or in gzip: each record packed by itself, as is the rule, or all together.

    Where several damages follow each other, the first is told.

    Args:
        stream: Open file. Any compression but gzip is unpacked already. It is sought in if it can be.
    """
    reader = _Reader(stream)
    told = False
    while True:
        try:
            if not reader.find_record():
                return
            record = reader.record()
            yield record
            damage = record.damage()
        except (zlib.error, DamageError) as error:
            damage = str(error) if isinstance(error, DamageError) else f"its compression is broken: {error}"
            if not told:
                yield DamageError(damage)
        told = bool(damage)
        if damage:
            reader.skip_damage()


def header_lines(readline: Callable[[int], bytes]) -> bytes:
    """Lines up to an empty one.

    Raises:
        DamageError: If they are too long for headers.
    """
    content = bytearray()
    while line := readline(MAX_HEADER_BYTES):
        content += line
        if not line.strip():
            break
        if len(content) >= MAX_HEADER_BYTES:
            raise DamageError(f"headers of more than {MAX_HEADER_BYTES:,} bytes")
    return bytes(content)


class _Reader:
    """Lines and bytes of a file, unpacked, and where in it records begin."""

    def __init__(self, stream: IO[bytes]):
        beginning = stream.read(2)
        self._source: _Source = (_Gzip if beginning == b"\x1f\x8b" else _Plain)(stream, beginning)
        self._buffer: io.BufferedReader = io.BufferedReader(self._source, _WINDOW)
        self._line = b""  # one that has been looked at, but not taken
        self._is_arc = False
        self._offset = self._furthest = self._read_again = self._record_began = 0

    def read(self, size: int) -> bytes:
        content = self._buffer.read(size)
        self._offset += len(content)
        return content

    def readline(self, size: int) -> bytes:
        line = self._buffer.readline(size)
        self._offset += len(line)
        return line

    def find_record(self) -> bool:
        """Whether anything but empty lines follows."""
        while not self._line.strip():
            self._line = self.readline(_WINDOW)
            if not self._line and not self._source.next_section():
                return False
        return True

    def is_between_records(self) -> bool:
        """Whether the beginning of a record follows, or the end of what one was packed in."""
        self._source.pauses = True  # a member that follows is read only when its record is asked for
        try:
            while not self._line.strip() and (line := self.readline(_WINDOW)):
                self._line = line
        except DamageError:
            pass  # found again by who asks for the next record
        finally:
            self._source.pauses = False
        return not self._line.strip() or self._begins_record(self._line)

    def _begins_record(self, line: bytes) -> bool:
        return bool(_BEGINNING.match(line) or (self._is_arc and _ARC_BEGINNING.match(line)))

    def record(self) -> WarcRecord:
        """The record that begins with the line that was found.

        Raises:
            DamageError: If there is no record.
        """
        line, self._line = self._line, b""
        self._record_began = self._offset - len(line)
        self._is_arc = self._is_arc or line.startswith(_ARC_FILE)
        if not self._begins_record(line):
            raise DamageError("no record stands in the place of one")
        headers = _arc_headers(line) if self._is_arc else parse_headers(line + header_lines(self.readline))
        length = (headers.get_header("Content-Length") or "").strip()
        if not re.fullmatch("[0-9]{1,18}", length):
            raise DamageError("the record has no Content-Length")
        return WarcRecord(headers, int(length), self)

    def skip_damage(self) -> None:
        """Go on at the next line that begins a record: after the beginning of the damaged one, where that can be."""
        begins_line = not self._line or self._line.endswith(b"\n")  # what is read next
        self._furthest = max(self._furthest, self._offset)
        again = self._offset - self._record_began - 1
        if self._source.is_broken:
            self._source.next_member()
            self._restart()
            begins_line = True
        elif self._source.seekable() and self._read_again + again <= _READ_AGAIN * self._furthest:
            self._read_again += again
            self._offset = self._buffer.seek(self._record_began + 1)
            begins_line = False
        self._line = b""
        while not (begins_line and self._begins_record(self._line)):
            try:
                begins_line = begins_line if not self._line else self._line.endswith(b"\n")
                self._line = self.readline(_WINDOW)
                if not self._line:
                    if not self._source.next_section():
                        return
                    begins_line = True
            except (zlib.error, DamageError):
                self._source.next_member()
                self._restart()
                begins_line = True

    def _restart(self) -> None:
        self._buffer.detach()
        self._buffer, self._line = io.BufferedReader(self._source, _WINDOW), b""


def parse_headers(content: bytes) -> "StatusAndHeaders":
    """The first line, of WARC or HTTP, and the headers below it."""
    from warcio.statusandheaders import StatusAndHeadersParser

    return StatusAndHeadersParser([], verify=False).parse(io.BytesIO(content))


def _arc_headers(line: bytes) -> "StatusAndHeaders":
    from warcio.statusandheaders import StatusAndHeaders

    url, _, date, _, length = line.decode("utf-8", errors="replace").rstrip().rsplit(" ", 4)
    date = f"{date[:4]}-{date[4:6]}-{date[6:8]}T{date[8:10]}:{date[10:12]}:{date[12:]}Z"
    kind = "warcinfo" if line.startswith(_ARC_FILE) else "response"
    headers = [("WARC-Type", kind), ("WARC-Target-URI", url), ("WARC-Date", date), ("Content-Length", length)]
    return StatusAndHeaders("", headers)


class _Source(io.RawIOBase):
    """Bytes of a file as they are without its compression.

    Attributes:
        pauses: Whether it ends before anything that is packed by itself.
        is_broken: Whether what is packed cannot be unpacked any further.
    """

    pauses = is_broken = False

    def __init__(self, stream: IO[bytes]):
        super().__init__()
        self._stream = stream

    def readable(self) -> bool:
        return True

    def next_section(self) -> bool:
        """Whether something follows, which is read from now on."""
        return False

    def next_member(self) -> None:
        """Go on behind what is broken."""


class _Plain(_Source):
    """A file that is not packed."""

    def __init__(self, stream: IO[bytes], beginning: bytes):
        super().__init__(stream)
        self._ready, self._read = beginning, reader_of(stream)

    def seekable(self) -> bool:
        # To go back in a packed file is to unpack it again
        return self._stream.seekable() and not isinstance(self._stream, bz2.BZ2File | lzma.LZMAFile)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._ready = b""
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell() - len(self._ready)

    def readinto(self, buffer: Any) -> int:
        content, self._ready = self._ready or self._read(len(buffer)), b""
        buffer[: len(content)] = content
        return len(content)


class _Gzip(_Source):
    """A file of gzip members. It ends before each that begins with a record, until `next_section`."""

    def __init__(self, stream: IO[bytes], beginning: bytes):
        super().__init__(stream)
        self._packed = beginning
        self._position = len(beginning)  # in the file, after `_packed`
        self._member: Any = None
        self._began = 0  # the member, in the file
        self._may_begin = True

    def readinto(self, buffer: Any) -> int:
        while self._member or self._next():
            try:
                content = self._member.decompress(self._packed, len(buffer))
            except zlib.error:
                self.is_broken = True
                raise
            finished = self._member.eof
            self._packed = self._member.unused_data if finished else self._member.unconsumed_tail
            if finished:
                self._member = None
            if content:
                buffer[: len(content)] = content
                return len(content)
            if not finished and not self._packed and not self._fill():
                break  # the file is cut off
        return 0

    def _fill(self) -> bool:
        more = self._stream.read(_WINDOW)
        self._packed += more
        self._position += len(more)
        return bool(more)

    def _next(self) -> bool:
        """Begin a member. False at the end of the file, and where one begins that begins with a record."""
        self._packed = self._packed.lstrip(b"\0")  # some tools fill up the last block of a file
        while len(self._packed) < _MEMBER_HEAD and self._fill():
            self._packed = self._packed.lstrip(b"\0")
        if not self._packed:
            return False
        if not self._packed.startswith(b"\x1f\x8b"):
            self.is_broken = True
            raise DamageError("no packed record follows the last one")
        if not self._may_begin and (self.pauses or _beginning(self._packed) == _WARC):
            return False
        self._may_begin = False
        self._began, self._member = self._position - len(self._packed), zlib.decompressobj(16 + zlib.MAX_WBITS)
        return True

    def next_section(self) -> bool:
        if self._member:
            self._member = None
            raise DamageError("the file is cut off within a packed record")
        self._may_begin = True
        return bool(self._packed)

    def next_member(self) -> None:
        # At the next that begins with a record, after the beginning of this one; or at the end of the file
        self.is_broken, self._may_begin, self._member, self._packed = False, True, None, b""
        if not self._stream.seekable():
            self._stream = io.BytesIO()
            return
        self._position = self._stream.seek(self._began + 1)
        while self._fill():
            for found in _MEMBER.finditer(self._packed):
                if _beginning(self._packed[found.start() : found.start() + _MEMBER_HEAD]) == _WARC:
                    self._packed = self._packed[found.start() :]
                    return
            self._packed = self._packed[-_MEMBER_HEAD:]  # a member may begin at the end of the window
        self._packed = b""


def _beginning(member: bytes) -> bytes:
    """The beginning of what is packed, as much as `_WARC` has; nothing if it is broken."""
    try:
        unpacker = zlib.decompressobj(16 + zlib.MAX_WBITS)
        return unpacker.decompress(member[:_MEMBER_HEAD], len(_WARC)).upper()
    except zlib.error:
        return b""
