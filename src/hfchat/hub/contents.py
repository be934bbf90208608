"""The texts in files of any kind, whatever their encoding, packed or in tables; or why nobody can look at them."""

import codecs
import io
import json
import lzma
import shutil
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from hfchat.character_encodings import as_utf8, detect

_BLOCK = 1 << 20  # bytes of a text at a time
_OVERLAP = 4096  # characters of one block that come with the next one too: what is looked for may lie across
_HEAD = 1 << 16  # bytes by which it is told what a file is
_ROWS = 256  # of a table at a time
_MAX_DEPTH = 8  # archives within archives
_IN_MEMORY = 64 << 20  # bytes of an archive's file; more are put on the disk for as long as it is read
_MAX_HEADER = 100 << 20  # bytes of safetensors' header, the limit of the library
# How a compressed file begins, and what pyarrow calls the way in which it is compressed.
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4"}
_XZ = b"\xfd7zXZ\0"  # which pyarrow does not know
# Pictures, sounds and fonts; what is written into them in words stands there as it is.
_MEDIA = (
    b"\x89PNG\r\n", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"\0\0\1\0", b"ID3", b"OggS", b"fLaC", b"wOFF", b"wOF2",
    b"OTTO", b"\0\1\0\0\0",
)  # fmt: skip
_CONTROL = frozenset(map(chr, {*range(32), 127} - set(b"\t\n\v\f\r\b\x1b")))
# The share of control characters in a text, and how many a short one may have. Of random bytes it is a tenth.
_MOST_CONTROL, _FEW_CONTROL = 0.01, 8
# What the libraries raise for a file that is broken or that they do not know.
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


def pieces(name: str, file: Path) -> Iterator[Piece]:
    """All text in a file, a part at a time.

    Compressed files are unpacked (gzip, bzip2, xz, zstandard, LZ4, Brotli), archives are gone through (tar, zip),
    Parquet and Arrow files are read row by row, each as a line of JSON; of safetensors, the header is read. A text may
    be in any encoding: bytes that are not valid become lone surrogates, around which everything in ASCII is as it was.

    Args:
        name: The name of the file. A `tokenizer.json` is read without its vocabulary, which has pieces of paths, and
            words like "password", with numbers beside them.
        file: Where it is.

    Raises:
        UnreadableError: If it is broken, encrypted, or of a kind that is not known.
    """
    try:
        with file.open("rb") as stream:
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

    # Names may say anything, so that the first bytes decide wherever a format has some of its own.
    codec = next((codec for magic, codec in _COMPRESSED.items() if head.startswith(magic)), None)
    try:
        if codec or suffix == ".br":
            with pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), codec or "brotli") as unpacked:
                yield from _of_stream(name.removesuffix(suffix), cast(BinaryIO, unpacked), inside, depth + 1)
        elif head.startswith(_XZ):
            with lzma.LZMAFile(stream) as unpacked:
                yield from _of_stream(name.removesuffix(suffix), cast(BinaryIO, unpacked), inside, depth + 1)
        elif head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
            yield from _of_zip(_seekable(stream), inside, depth)
        elif head[257:262] == b"ustar":
            yield from _of_tar(_seekable(stream), inside, depth)
        elif head.startswith(b"PAR1"):
            with pq.ParquetFile(_seekable(stream)) as table:
                yield from _of_table(table.schema_arrow, table.iter_batches(_ROWS), inside)
        elif head.startswith(b"ARROW1"):
            with pa.ipc.open_file(_seekable(stream)) as table:
                yield from _of_table(table.schema, map(table.get_batch, range(table.num_record_batches)), inside)
        elif head.startswith(b"\xff\xff\xff\xff"):  # a stream of Arrow tables, which is what `datasets` writes
            with pa.ipc.open_stream(stream) as table:
                yield from _of_table(table.schema, table, inside)
        elif suffix == ".safetensors":
            yield Piece(_header_of_safetensors(stream), inside=inside)
        elif PurePosixPath(name).name == "tokenizer.json":
            yield Piece(_without_vocabulary(stream.read().decode("utf-8", "surrogateescape")), inside=inside)
        elif head.startswith(_MEDIA) or suffix == ".model":  # SentencePiece's
            yield from _of_text(stream, Piece("", inside=inside, is_text=False))
        else:
            _check_text(head)
            yield from _of_text(as_utf8(stream), Piece("", inside=inside))
    except _BROKEN as error:
        reason = " ".join(str(error).split())[:100]
        raise UnreadableError(
            f"is broken or of a kind that is not known ({reason or type(error).__name__})", inside
        ) from error


def _seekable(stream: BinaryIO) -> BinaryIO:
    """The same, in which one can go back."""
    if stream.seekable():
        return stream
    copy = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115  (goes with the generator that reads it)
    shutil.copyfileobj(stream, copy)
    copy.seek(0)
    return cast(BinaryIO, copy)


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


def _of_table(schema: pa.Schema, batches: Iterable[pa.RecordBatch], inside: str) -> Iterator[Piece]:
    """Its metadata, and all columns in which text may be, at whatever depth, by rows."""
    notes = [schema.metadata or {}, *(field.metadata or {} for field in schema)]
    if any(notes):
        yield Piece(json.dumps([[*map(_as_text, note.items())] for note in notes]), inside=inside, is_text=False)
    wanted = [number for number, field in enumerate(schema) if _may_hold_text(field.type)]
    row = 1
    for batch in batches:
        for start in range(0, batch.num_rows if wanted else 0, _ROWS):
            rows = batch.select(wanted).slice(start, _ROWS).to_pylist()
            lines = (json.dumps(values, ensure_ascii=False, default=_as_text) for values in rows)
            yield Piece("\n".join(lines), row + start, inside, is_text=False)
        row += batch.num_rows


def _may_hold_text(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        return _may_hold_text(kind.storage_type)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return _may_hold_text(kind.value_type)
    if pa.types.is_nested(kind):
        return any(_may_hold_text(kind.field(number).type) for number in range(kind.num_fields))
    return not (pa.types.is_primitive(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind))


def _as_text(value: Any) -> str:
    """What JSON cannot hold."""
    if isinstance(value, tuple):
        return ": ".join(map(_as_text, value))
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


def _header_of_safetensors(stream: BinaryIO) -> str:
    """All of the file that is not numbers."""
    size = int.from_bytes(stream.read(8), "little")
    if size > _MAX_HEADER:
        raise ValueError("the header of safetensors is too long")
    return json.dumps(json.loads(stream.read(size)), indent=2, ensure_ascii=False)


def _without_vocabulary(text: str) -> str:
    """A `tokenizer.json` without what is in a vocabulary; any other text as it is."""
    try:
        tokenizer = json.loads(text)
        tokenizer.get("model", {}).update(vocab=None, merges=None)
    except (ValueError, AttributeError):
        return text
    return json.dumps(tokenizer, indent=2, ensure_ascii=False)


def _check_text(head: bytes) -> None:
    """Raise a `ValueError` unless the beginning of a file is that of a text."""
    if head.startswith(b"%PDF-"):
        raise ValueError("a PDF is compressed inside")
    encoding, mark = detect(head)
    text = head[mark:].decode(encoding, "replace")
    if sum(map(_CONTROL.__contains__, text)) > max(_FEW_CONTROL, _MOST_CONTROL * len(text)):
        raise ValueError("neither a text nor a table nor an archive")


def _of_text(stream: BinaryIO, whole: Piece) -> Iterator[Piece]:
    """A text, or bytes with words between them, in blocks.

    Where there is a NUL in a block, it is given without any too: some programs add UTF-16 to a file in ASCII.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    rest, line = "", 1
    while block := stream.read(_BLOCK):
        text = rest + decoder.decode(block)
        yield replace(whole, text=text, line=line)
        if "\0" in text:
            yield replace(whole, text=text.replace("\0", ""), line=line)
        rest = text[-_OVERLAP:]
        line += text.count("\n", 0, len(text) - len(rest))
