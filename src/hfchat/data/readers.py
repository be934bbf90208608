"""Read the records of files so that one that cannot be read costs itself, and no document goes uncounted.

datatrove's readers log what they cannot read, or stop at it. Here each such record becomes a document with a
`Removal`, which `SourceStep` writes to the removed ones.
"""

import re
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import IO, Any

from datatrove.data import Document, DocumentsPipeline
from datatrove.io import DataFolder
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.readers import HuggingFaceDatasetReader
from datatrove.pipeline.writers.disk_base import DiskWriter

from hfchat.character_encodings import as_utf8
from hfchat.data.extraction import Extraction
from hfchat.data.files import open_unpacked
from hfchat.data.removal import Removal
from hfchat.data.rows import (
    BYTE_ORDER_MARK,
    EXCERPT_CHARACTERS,
    LazyRow,
    json_lines,
    one_line,
    parquet_rows,
    parts,
)
from hfchat.errors import UserError


@dataclass
class Record:
    """One record of a file.

    Attributes:
        text: Its text, or what of it could be read.
        metadata: Its `url`, `date`, `license` and so on, where it has them; and its `id`.
        fault: Why it cannot be a document: `(reason, detail)`.
    """

    text: str
    metadata: dict[str, str] = field(default_factory=dict)
    fault: tuple[str, str] | None = None


@dataclass
class Skipped:
    """A record that is not a document, and is only counted.

    Attributes:
        reason: What it is, in one of a few ways.
        fault: Always None, as for a document.
    """

    reason: str
    fault: None = None


# What is counted: records that are skipped, by their reason, and files that hold several records, by their source.
SKIPPED = "skipped: "
DIVIDED = "divided files: "

# Records are made when they are called: tasks that share a file make only their own, each before it asks for the next.
LazyRecord = Callable[[], Record | Skipped]
# From an open binary file, and the greatest size of a document in bytes, to all records in their order.
Parser = Callable[[IO[bytes], int], Iterator[LazyRecord]]


class FileReader(PipelineStep):
    """Reads the files of one source.

    The files are dealt out to the tasks. Where there are fewer files than tasks, the tasks that share a file deal out
    its records, so that one large dump is cleaned in parallel; each of them reads through the file, but makes no more
    than its own records of it.

    Args:
        folder: The folder of the files.
        files: Their paths in it.
        parse: What takes a file apart.
        packed: Endings of names of files that are unpacked here, of `UNPACK`; `parse` sees to any others.
        provenance: `source`, `license` and `url` of every document whose record does not have its own.
        max_document_bytes: Larger documents (in UTF-8) are not documents.
    """

    type = "📖 - READER"
    name = "🗂 Files"

    def __init__(
        self,
        folder: DataFolder,
        files: Sequence[str],
        parse: Parser,
        packed: Collection[str],
        provenance: dict[str, str],
        max_document_bytes: int,
    ):
        super().__init__()
        self.folder, self.files, self.parse, self.packed = folder, list(files), parse, packed
        self.provenance, self.max_document_bytes = provenance, max_document_bytes

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        for file, mine in deal(self.files, rank, world_size):
            for number, record in self._records(file, mine):
                if isinstance(record, Skipped):
                    self.stat_update("skipped", SKIPPED + record.reason)
                else:
                    yield self._document(record, file, number)

    def _records(self, file: str, mine: range) -> Iterator[tuple[int, Record | Skipped]]:
        number = -1
        try:
            with open_unpacked(self.folder, file, self.packed) as stream:
                for number, make in enumerate(self.parse(stream, self.max_document_bytes)):
                    if number in mine:
                        yield number, _made(make)
        except UserError:
            raise
        except Exception as error:  # of any decompressor or parser: what it has read so far stands
            number += 1
            if number in mine:
                yield number, _unreadable(error)
        if number > 0:
            self.stat_update(DIVIDED + self.provenance["source"])

    def _document(self, record: Record, file: str, number: int) -> Document:
        place = f"{self.provenance['source']}/{file}"
        own_id = record.metadata.get("id") or f"{place}/{number}"
        return _document(record, self.provenance, own_id, f"{place}#{number}")


def _document(record: Record, provenance: dict[str, str], own_id: str, place: str) -> Document:
    """The document of a record; one with a fault is known by its place, as its own id may be what is broken."""
    metadata = provenance | {name: value for name, value in record.metadata.items() if name != "id"}
    document = Document(record.text, place if record.fault else own_id, metadata=metadata)
    if record.fault:
        reason, detail = record.fault
        Removal(reason, detail=detail, step="read").note(document)
    return document


def _made(make: LazyRecord) -> Record | Skipped:
    try:
        return make()
    except UserError:
        raise
    except Exception as error:  # of any parser
        return _unreadable(error)


def _unreadable(error: Exception) -> Record:
    return Record("", fault=("unreadable", one_line(error)))


def deal(files: Sequence[str], rank: int, world_size: int) -> Iterator[tuple[str, range]]:
    """The files of a task, each with the numbers of the records in it that are the task's."""
    if len(files) >= world_size:
        for file in files[rank::world_size]:
            yield file, range(sys.maxsize)
    elif files:
        position = rank % len(files)
        yield files[position], range(rank // len(files), sys.maxsize, len(range(position, world_size, len(files))))


class HubReader(HuggingFaceDatasetReader):
    """Reads a dataset of the Hub, or of a folder.

    `limit` is the greatest number of rows in all. It is dealt out evenly: a task whose share of the dataset is smaller
    than its part of the limit leaves the rest of that part unused.
    """

    limit: int

    def __init__(self, *args: Any, provenance: dict[str, str], **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.total, self.provenance = self.limit, provenance

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        if self.total >= 0:
            self.limit = self.total // world_size + (rank < self.total % world_size)
        try:
            yield from super().run(data, rank, world_size)
        except (OSError, ValueError) as error:  # no such dataset, configuration, split or revision; no network
            raise UserError(f"sources: {self.dataset}: {one_line(error)}") from error

    def get_document_from_dict(self, data: dict[str, object], source_file: str, id_in_file: int | str) -> Document:
        """datatrove's drops rows without text, uncounted; here each row becomes a document."""
        if self.text_key not in data:
            raise UserError(f"sources: {self.dataset}: no column '{self.text_key}', only {sorted(data)}")
        record = _from_row(data, self.text_key)
        name = self.provenance["source"]
        own_id = f"{name}/{record.metadata.get('id', id_in_file)}"
        return _document(record, self.provenance, own_id, f"{name}#{id_in_file}")


class SourceStep(PipelineStep):
    """Adds the documents of one source to the pipeline, and writes what cannot be one to the removed ones.

    Every document read is passed on or removed, as `unreadable`, `too_large`, `empty`, or by the extraction; the
    statistic `read` counts them all.

    Args:
        reader: Yields documents; those with a `Removal` are removed for it.
        extraction: From markup to text, for this source's documents only.
        removed_writer: Makes a writer of removed documents.
        strict: Raise for what cannot be read.
        max_document_bytes: Larger documents (in UTF-8) are removed.
    """

    type = "📖 - READER"
    name = "🧺 Source"

    def __init__(
        self,
        reader: PipelineStep,
        extraction: Extraction | None,
        removed_writer: Callable[[], DiskWriter],
        strict: bool,
        max_document_bytes: int,
    ):
        super().__init__()
        self.reader, self.extraction, self.removed_writer = reader, extraction, removed_writer
        self.strict, self.max_document_bytes = strict, max_document_bytes

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        if data:
            yield from data
        with self.removed_writer() as removed:
            documents = self._usable(self.reader.run(None, rank, world_size))
            if self.extraction:
                documents = self.extraction.run(documents)
            for document in documents:
                # An entity such as &#xD800; or an odd codec gives what UTF-8, so Parquet, cannot hold.
                document.text = _LONE_SURROGATE.sub("\ufffd", document.text)
                if Removal.of(document):
                    self.stat_update("dropped")
                    removed.write(document, rank)
                else:
                    self.update_doc_stats(document)
                    yield document
        for name, metric in self.reader.stats.stats.items():
            if name.startswith(("skipped", SKIPPED, DIVIDED)):
                self.stat_update(name, value=metric.total)

    def _usable(self, documents: Iterator[Document]) -> Iterator[Document]:
        for document in documents:
            self.stat_update("read")
            if not (removal := Removal.of(document)):
                size = len(document.text.encode("utf-8", errors="surrogatepass"))
                if size > self.max_document_bytes:
                    removal = Removal("too_large", score=float(size), step="read")
                elif not document.text.strip():
                    removal = Removal("empty", step="read")
            if removal:
                if self.strict and removal.reason == "unreadable":
                    raise UserError(f"{document.id} cannot be read: {removal.detail}")
                removal.note(document)
                document.text = document.text[:EXCERPT_CHARACTERS]
            yield document


def parse_text(
    stream: IO[bytes], max_bytes: int, *, separator: str | None = None, encoding: str | None = None
) -> Iterator[LazyRecord]:
    """Plain text: the whole file, or what stands between separators, is a document.

    Args:
        stream: Open file.
        max_bytes: Largest size of a document.
        separator: A line end in it stands for any, that of Windows, too.
        encoding: See `hfchat.character_encodings`.
    """
    text = as_utf8(stream, encoding)
    for part in parts(text, _line_ends_as_any(separator) if separator else None, max_bytes):
        yield partial(_decoded, part, text.encoding, max_bytes)


def _line_ends_as_any(separator: str) -> re.Pattern[bytes]:
    lines = separator.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return re.compile(rb"(?:\r\n|\r|\n)".join(re.escape(line.encode()) for line in lines))


def parse_json_lines(stream: IO[bytes], max_bytes: int, *, text_key: str) -> Iterator[LazyRecord]:
    """A JSON object per line. Its keys `id`, `url`, `date`, `license` and `title` are kept."""
    # Escapes take up to six bytes for what is two in UTF-8
    for row in json_lines(stream, "", 4 * max_bytes):
        yield partial(_record, row, text_key)


def parse_parquet(stream: IO[bytes], max_bytes: int, *, text_key: str) -> Iterator[LazyRecord]:
    """A document per row, with the same keys beside the text.

    Raises:
        UserError: If there is no column `text_key`.
    """
    name = getattr(stream, "path", "a Parquet file")
    for row in parquet_rows(stream, name, max_bytes, (text_key, *_OWN_KEYS)):
        yield partial(_record, row, text_key)


def _record(make: LazyRow, text_key: str) -> Record:
    row = make()
    if row.fault is None:
        return _from_row(row.value, text_key)
    return Record(str(row.value), fault=("unreadable" if row.reason == "malformed" else row.reason, row.fault))


_OWN_KEYS = ("id", "url", "date", "license", "title")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can write it, UTF-8 cannot


def _from_row(row: object, text_key: str) -> Record:
    if not isinstance(row, dict) or text_key not in row:
        keys = f"only {sorted(row)}" if isinstance(row, dict) else "because it is not a mapping"
        return Record("", fault=("unreadable", f"no text under the key '{text_key}', {keys}"[:300]))
    text = row[text_key]
    if text is None:
        return Record("", fault=("empty", f"the value of '{text_key}' is null"))
    if not isinstance(text, str):
        return Record(
            "", fault=("unreadable", f"the value of '{text_key}' is no text, but of the type {type(text).__name__}")
        )
    metadata = {name: str(row[name]) for name in _OWN_KEYS if row.get(name)}
    for name, value in {text_key: text, **metadata}.items():
        try:
            value.encode("utf-8", "surrogateescape").decode()
        except UnicodeEncodeError:
            return Record("", fault=("unreadable", f"the value of '{name}' holds half a surrogate pair"))
        except UnicodeDecodeError as error:
            return Record("", fault=("unreadable", one_line(error)))
    return Record(text, metadata)


def _decoded(content: bytes, encoding: str, max_bytes: int) -> Record:
    content = content.removeprefix(BYTE_ORDER_MARK)  # where files with one have been joined
    if len(content) > max_bytes:
        text = content[:max_bytes].decode(errors="replace")[:EXCERPT_CHARACTERS]
        return Record(text, fault=("too_large", f"more than {max_bytes:,} bytes"))
    try:
        return Record(content.decode())
    except UnicodeDecodeError as error:
        detail = one_line(error) if encoding == "utf-8" else f"UnicodeDecodeError: it is not all {encoding}"
        return Record(content.decode(errors="replace"), fault=("unreadable", detail))
