"""The texts in files of any kind, whatever their encoding, packed or in tables; or why nobody can look at them."""

import bz2
import codecs
import gzip
import io
import json
import lzma
import shutil
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from hfchat.hub.leaks import readable_text

if TYPE_CHECKING:
    import pyarrow as pa

_BLOCK = 1 << 20  # bytes of a text at a time
_OVERLAP = 4096  # characters of one block that come with the next one too: what is looked for may lie across
_HEAD = 1 << 16  # bytes by which it is told what a file is
_ROWS = 256  # of a table at a time
_MAX_DEPTH = 8  # archives within archives
_IN_MEMORY = 64 << 20  # bytes of an archive's file; more are put on the disk for as long as it is read
_MAX_HEADER = 100 << 20  # bytes of safetensors' header, as the library has it
_COMPRESSED = {b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4"}
_BYTE_ORDER_MARKS = (  # that of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
_WITHOUT_MARK = ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")
# Pictures, sounds and fonts; what is written into them in words stands there as it is.
_MEDIA = (
    b"\x89PNG\r\n", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"\0\0\1\0", b"ID3", b"OggS", b"fLaC", b"wOFF", b"wOF2",
    b"OTTO", b"\0\1\0\0\0",
)  # fmt: skip
_CONTROL = frozenset(map(chr, {*range(32), 127} - set(b"\t\n\v\f\r\b\x1b")))
_MOST_CONTROL, _FEW_CONTROL = 0.01, 8  # share of the characters of a text, and how many of a short one; of random
# bytes it is a tenth
# What the libraries raise of a file that is broken or that they do not know.
_BROKEN = (
    OSError, EOFError, ValueError, KeyError, RuntimeError, NotImplementedError, RecursionError, zlib.error,
    struct.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError,
)  # fmt: skip


class UnreadableError(Exception):
    """Nobody can look at what is in a file. Says why, and which file of an archive it is."""

    def __init__(self, reason: str, inside: str = ""):
        super().__init__(reason)
        self.inside = inside


@dataclass(frozen=True)
class Piece:
    """A part of the text in a file.

    Attributes:
        text: The part; the next one begins with its end once more.
        line: The number of its first line, from 1, or of a table that of the row. A row has one line.
        inside: The file within an archive.
        is_text: Whether it was written as a text, not as rows or bytes.
    """

    text: str
    line: int = 1
    inside: str = ""
    is_text: bool = True


def pieces(name: str, file: Path | bytes) -> Iterator[Piece]:
    """All text in a file, a part at a time.

    Compressed files are unpacked (gzip, bzip2, xz, zstandard, LZ4, Brotli), archives are gone through (tar, zip),
    Parquet and Arrow files are read row by row, each as a line of JSON; of safetensors, the header is read. A text may
    be in any encoding: bytes that are no UTF-8 become lone surrogates, around which everything in ASCII is as it was.

    Args:
        name: The file's; of a `tokenizer.json` all is read but the vocabulary, which has pieces of paths, and words
            like "password", with numbers beside them.
        file: Where it is, or what is in it.

    Raises:
        UnreadableError: If it is broken, encrypted, or of a kind that is not known.
    """
    try:
        with io.BytesIO(file) if isinstance(file, bytes) else file.open("rb") as stream:
            yield from _of_stream(name, stream, "", 0)
    except OSError as error:
        raise UnreadableError(f"cannot be read ({error.strerror or error})") from error


def _of_stream(name: str, stream: BinaryIO, inside: str, depth: int) -> Iterator[Piece]:
    """The content of a file, or of one within an archive."""
    if depth > _MAX_DEPTH:
        raise UnreadableError(f"is packed more than {_MAX_DEPTH} times", inside)
    stream = io.BufferedReader(cast(io.RawIOBase, stream), _HEAD)
    head = stream.peek(_HEAD)
    suffix = PurePosixPath(name).suffix.lower()
    try:
        if open_compressed := _compression(head, suffix):
            with open_compressed(stream) as unpacked:
                yield from _of_stream(name.removesuffix(suffix), cast(BinaryIO, unpacked), inside, depth + 1)
        elif head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
            yield from _of_zip(_seekable(stream), inside, depth)
        elif head[257:262] == b"ustar":
            yield from _of_tar(_seekable(stream), inside, depth)
        elif head.startswith(b"PAR1"):
            yield from _of_parquet(_seekable(stream), inside)
        elif head.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
            yield from _of_arrow(_seekable(stream), inside, is_file=head.startswith(b"ARROW1"))
        elif suffix == ".safetensors":
            yield Piece(_header_of_safetensors(stream), inside=inside)
        elif PurePosixPath(name).name == "tokenizer.json":
            content = stream.read()
            text = readable_text("tokenizer.json", content)
            yield Piece(content.decode("utf-8", "surrogateescape") if text is None else text, inside=inside)
        else:
            yield from _of_bytes(stream, _encoding(head, suffix), inside)
    except _BROKEN as error:
        reason = " ".join(str(error).split())[:100]
        raise UnreadableError(
            f"is broken or of a kind that is not known ({reason or type(error).__name__})", inside
        ) from (error)


def _seekable(stream: BinaryIO) -> BinaryIO:
    """The same, in which one can go back."""
    if stream.seekable():
        return stream
    copy = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115  (goes with the generator that reads it)
    shutil.copyfileobj(stream, copy)
    copy.seek(0)
    return cast(BinaryIO, copy)


def _compression(head: bytes, suffix: str) -> Callable[[BinaryIO], Any] | None:
    """How to open what is compressed."""
    import pyarrow as pa

    if head.startswith(b"\x1f\x8b"):
        return lambda stream: gzip.GzipFile(fileobj=stream)
    if head.startswith(b"BZh"):
        return bz2.BZ2File
    if head.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMAFile
    codec = _COMPRESSED.get(head[:4]) or ("brotli" if suffix == ".br" else None)
    if codec is None:
        return None
    return lambda stream: pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), codec)


def _of_zip(stream: BinaryIO, inside: str, depth: int) -> Iterator[Piece]:
    with zipfile.ZipFile(stream) as archive:
        for member in archive.infolist():
            if not member.is_dir():
                place = _within(inside, member.filename)
                if member.flag_bits & 1:
                    raise UnreadableError("is encrypted", place)
                with archive.open(member) as file:
                    yield from _of_stream(member.filename, cast(BinaryIO, file), place, depth + 1)


def _of_tar(stream: BinaryIO, inside: str, depth: int) -> Iterator[Piece]:
    with tarfile.open(fileobj=stream, mode="r:") as archive:
        for member in archive:
            if member.isfile():
                file = cast(BinaryIO, archive.extractfile(member))
                yield from _of_stream(member.name, file, _within(inside, member.name), depth + 1)


def _within(inside: str, name: str) -> str:
    return f"{inside}!{name}" if inside else name


def _of_parquet(stream: BinaryIO, inside: str) -> Iterator[Piece]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(stream) as file:
        yield from _of_table(file.schema_arrow, file.iter_batches(_ROWS), inside)


def _of_arrow(stream: BinaryIO, inside: str, is_file: bool) -> Iterator[Piece]:
    """The tables of an Arrow file, or of a stream, which is what `datasets` writes."""
    import pyarrow as pa

    if is_file:
        with pa.ipc.open_file(stream) as reader:
            batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
            yield from _of_table(reader.schema, batches, inside)
    else:
        with pa.ipc.open_stream(stream) as reader:
            yield from _of_table(reader.schema, reader, inside)


def _of_table(schema: "pa.Schema", batches: "Iterator[pa.RecordBatch]", inside: str) -> Iterator[Piece]:
    """Its metadata, and all columns in which text may be, at whatever depth, by rows."""
    notes = [schema.metadata or {}, *(field.metadata or {} for field in schema)]
    if any(notes):
        yield Piece(json.dumps([[*map(_as_text, note.items())] for note in notes]), inside=inside, is_text=False)
    wanted = [number for number, field in enumerate(schema) if _may_hold_text(field.type)]
    row = 1
    for batch in batches:
        for start in range(0, batch.num_rows if wanted else 0, _ROWS):
            rows = batch.select(wanted).slice(start, _ROWS).to_pylist()
            lines = (json.dumps(one, ensure_ascii=False, default=_as_text) for one in rows)
            yield Piece("\n".join(lines), row + start, inside, is_text=False)
        row += batch.num_rows


def _may_hold_text(of: "pa.DataType") -> bool:
    import pyarrow as pa

    if isinstance(of, pa.BaseExtensionType):
        return _may_hold_text(of.storage_type)
    if pa.types.is_dictionary(of) or pa.types.is_run_end_encoded(of):
        return _may_hold_text(of.value_type)
    if pa.types.is_nested(of):
        return any(_may_hold_text(of.field(number).type) for number in range(of.num_fields))
    return not (pa.types.is_primitive(of) or pa.types.is_decimal(of) or pa.types.is_null(of))


def _as_text(value: Any) -> str:
    """What JSON cannot hold."""
    if isinstance(value, tuple):
        return ": ".join(map(_as_text, value))
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


def _header_of_safetensors(stream: BinaryIO) -> str:
    """All of the file that is no number."""
    size = int.from_bytes(stream.read(8), "little")
    if size > _MAX_HEADER:
        raise ValueError("the header of safetensors is too long")
    return json.dumps(json.loads(stream.read(size)), indent=2, ensure_ascii=False)


def _encoding(head: bytes, suffix: str) -> str | None:
    """That of a text; None of a picture and the like, whose bytes are looked at as they are.

    Raises:
        ValueError: If it is neither.
    """
    for mark, encoding in _BYTE_ORDER_MARKS:
        if head.startswith(mark):
            return encoding
    if head.startswith(_MEDIA) or suffix == ".model":  # SentencePiece's
        return None
    if head.startswith(b"%PDF-"):
        raise ValueError("a PDF is compressed inside")
    if _is_text(head.decode("utf-8", "surrogateescape")):
        return "utf-8"
    if wide := {encoding: text for encoding in _WITHOUT_MARK if (text := _decoded(head, encoding))}:
        return max(wide, key=lambda encoding: sum(map(str.isascii, wide[encoding])))
    raise ValueError("neither a text nor a table nor an archive")


def _decoded(head: bytes, encoding: str) -> str | None:
    try:  # a character may be cut at the end of the head
        text = codecs.getincrementaldecoder(encoding)().decode(head)
    except UnicodeDecodeError:
        return None
    return text if _is_text(text) else None


def _is_text(text: str) -> bool:
    control = sum(character in _CONTROL for character in text)
    return control <= max(_FEW_CONTROL, _MOST_CONTROL * len(text))


def _of_bytes(stream: BinaryIO, encoding: str | None, inside: str) -> Iterator[Piece]:
    """In blocks. Where there is a NUL in them, also without any: some programs add UTF-16 to a file in ASCII."""
    errors = "surrogateescape" if encoding in (None, "utf-8", "utf-8-sig") else "replace"
    decoder = codecs.getincrementaldecoder(encoding or "utf-8")(errors)
    whole = Piece("", inside=inside, is_text=encoding is not None)
    rest, line = "", 1
    while block := stream.read(_BLOCK):
        text = rest + decoder.decode(block)
        yield replace(whole, text=text, line=line)
        if "\0" in text:
            yield replace(whole, text=text.replace("\0", ""), line=line)
        rest = text[-_OVERLAP:]
        line += text.count("\n", 0, len(text) - len(rest))
