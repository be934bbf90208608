"""Read the records of files so that one that cannot be read costs itself, and no document goes uncounted.

datatrove's readers log what they cannot read, or stop at it. Here each such record becomes a document with a
`filter_reason`, which `SourceStep` writes to the removed ones.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

from datatrove.data import Document, DocumentsPipeline
from datatrove.io import DataFolder
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.readers import HuggingFaceDatasetReader
from datatrove.pipeline.writers.disk_base import DiskWriter

from hfchat.data.extraction import Extraction
from hfchat.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

# What of a document that is too large is kept among the removed ones.
EXCERPT_CHARACTERS = 100_000


@dataclass
class Record:
    """One record of a file.

    Attributes:
        text: Its text, or what of it could be read.
        metadata: Its `url`, `date`, `license` and so on, where it has them; and its `id`.
        fault: Why it is no document: `(reason, detail)`.
    """

    text: str
    metadata: dict[str, str] = field(default_factory=dict)
    fault: tuple[str, str] | None = None


# From an open binary file and the greatest size of a document in bytes, to records; None for one that is no document.
Parser = Callable[[IO[bytes], int], Iterator[Record | None]]


class FileReader(PipelineStep):
    """Reads the files of one source.

    The files are dealt out to the tasks. Where there are fewer files than tasks, the tasks that share a file deal out
    its records, so that one large dump is cleaned in parallel; each of them reads through the file, which costs little
    beside what is then done with the documents.

    Args:
        folder: Of the files.
        files: Paths in it.
        parse: What takes a file apart.
        compression: Of the files: `infer` by their names, or None if `parse` sees to it.
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
        compression: str | None,
        provenance: dict[str, str],
        max_document_bytes: int,
    ):
        super().__init__()
        self.folder, self.files, self.parse, self.compression = folder, list(files), parse, compression
        self.provenance, self.max_document_bytes = provenance, max_document_bytes

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        for file, share, shares in deal(self.files, rank, world_size):
            for number, record in enumerate(self._records(file)):
                if record is None:
                    if number % shares == share:
                        self.stat_update("skipped")
                elif number % shares == share:
                    yield self._document(record, file, number)

    def _records(self, file: str) -> Iterator[Record | None]:
        try:
            with self.folder.open(file, "rb", compression=self.compression) as stream:
                yield from self.parse(stream, self.max_document_bytes)
        except (UserError, GeneratorExit):
            raise
        except Exception as error:  # of any decompressor or parser: what it has read so far stands
            yield Record("", fault=("unreadable", one_line(error)))

    def _document(self, record: Record, file: str, number: int) -> Document:
        place = f"{self.provenance['source']}/{file}"
        own_id = record.metadata.get("id") or f"{place}/{number}"
        return _document(record, self.provenance, own_id, f"{place}#{number}")


def _document(record: Record, provenance: dict[str, str], own_id: str, place: str) -> Document:
    """The document of a record; one with a fault is known by its place, as its own id may be what is broken."""
    metadata = provenance | {name: value for name, value in record.metadata.items() if name != "id"}
    if record.fault:
        metadata["filter_reason"], metadata["filter_detail"] = record.fault
    return Document(record.text, place if record.fault else own_id, metadata=metadata)


def deal(files: Sequence[str], rank: int, world_size: int) -> Iterator[tuple[str, int, int]]:
    """The files of a task, each with the share of its records that is the task's: `(file, share, shares)`."""
    if len(files) >= world_size:
        for file in files[rank::world_size]:
            yield file, 0, 1
    elif files:
        position = rank % len(files)
        yield files[position], rank // len(files), len(range(position, world_size, len(files)))


class HubReader(HuggingFaceDatasetReader):
    """Reads a dataset of the Hub, or of a folder.

    `limit` is the greatest number of rows in all. It is dealt out evenly: a task whose share of the dataset is smaller
    than its part of the limit leaves the rest of that part unused.
    """

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

    def get_document_from_dict(self, data: dict[str, Any], source_file: str, id_in_file: int | str) -> Document:
        """datatrove's drops rows without text, uncounted; here each row becomes a document."""
        if self.text_key not in data:
            raise UserError(f"sources: {self.dataset}: no column '{self.text_key}', only {sorted(data)}")
        record = _from_row(data, self.text_key)
        name = self.provenance["source"]
        own_id = f"{name}/{record.metadata.get('id', id_in_file)}"
        return _document(record, self.provenance, own_id, f"{name}#{id_in_file}")


class SourceStep(PipelineStep):
    """Adds the documents of one source to the pipeline, and writes those that are none to the removed ones.

    Every document read is passed on or removed, as `unreadable`, `too_large`, `empty`, or by the extraction; the
    statistic `read` counts them all.

    Args:
        reader: Yields documents; those that have a `filter_reason` are removed for it.
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
                if "filter_reason" in document.metadata:
                    self.stat_update("dropped")
                    removed.write(document, rank)
                else:
                    del document.metadata["step"]
                    self.update_doc_stats(document)
                    yield document
        if skipped := self.reader.stats["skipped"].total:
            self.stat_update("skipped", value=skipped)

    def _usable(self, documents: Iterator[Document]) -> Iterator[Document]:
        for document in documents:
            self.stat_update("read")
            about = document.metadata
            if self.strict and about.get("filter_reason") == "unreadable":
                raise UserError(f"{document.id} cannot be read: {about['filter_detail']}")
            about.setdefault("step", "read")
            if "filter_reason" not in about:
                size = len(document.text.encode("utf-8", errors="surrogatepass"))
                if size > self.max_document_bytes:
                    about["filter_reason"], about["filter_score"] = "too_large", float(size)
                elif not document.text.strip():
                    about["filter_reason"] = "empty"
            if "filter_reason" in about:
                document.text = document.text[:EXCERPT_CHARACTERS]
            yield document


def parse_text(stream: IO[bytes], max_bytes: int, separator: str | None, encoding: str) -> Iterator[Record]:
    """Plain text: the whole file, or what stands between separators, is a document."""
    for part in _parts(stream, separator.encode(encoding) if separator else None, max_bytes):
        yield _decoded(part, encoding, max_bytes)


def parse_json_lines(stream: IO[bytes], max_bytes: int, text_key: str) -> Iterator[Record]:
    """A JSON object per line. Its keys `id`, `url`, `date`, `license` and `title` are kept."""
    longest = 4 * max_bytes  # escapes take up to six bytes for what is two in UTF-8
    for line in _parts(stream, b"\n", longest):
        if not line.strip():
            continue
        if len(line) > longest:
            excerpt = line[: 4 * EXCERPT_CHARACTERS].decode("utf-8", errors="replace")
            yield Record(excerpt, fault=("too_large", f"the line has more than {longest:,} bytes"))
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
            yield Record("", fault=("unreadable", one_line(error)))
            continue
        yield _from_row(row, text_key)


def parse_parquet(stream: IO[bytes], max_bytes: int, text_key: str) -> Iterator[Record]:
    """A document per row, read row group by row group.

    Raises:
        UserError: If there is no column `text_key`.
    """
    import pyarrow.parquet as pq

    with pq.ParquetFile(stream) as file:
        names = file.schema_arrow.names
        if text_key not in names:
            raise UserError(f"{getattr(stream, 'path', 'a Parquet file')}: no column '{text_key}', only {names}")
        columns = [name for name in (text_key, *_OWN_KEYS) if name in names]
        for group in range(file.num_row_groups):
            for batch in file.iter_batches(batch_size=64, row_groups=[group], columns=columns):
                yield from _from_batch(batch, text_key)


def _from_batch(batch: "pa.RecordBatch", text_key: str) -> Iterator[Record]:
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError as error:  # Parquet does not check its strings; find the row
        if batch.num_rows == 1:
            yield Record("", fault=("unreadable", one_line(error)))
        else:
            for row in range(batch.num_rows):
                yield from _from_batch(batch.slice(row, 1), text_key)
    else:
        for row in rows:
            yield _from_row(row, text_key)


_OWN_KEYS = ("id", "url", "date", "license", "title")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can write it, UTF-8 cannot


def _from_row(row: Any, text_key: str) -> Record:
    if not isinstance(row, dict) or text_key not in row or not isinstance(row[text_key], str | None):
        keys = f"only {sorted(row)}" if isinstance(row, dict) else "as it is no mapping"
        return Record("", fault=("unreadable", f"no text under the key '{text_key}', {keys}"[:300]))
    text = row[text_key] or ""
    metadata = {name: str(row[name]) for name in _OWN_KEYS if row.get(name)}
    for name, value in {text_key: text, **metadata}.items():
        if _LONE_SURROGATE.search(value):
            return Record("", fault=("unreadable", f"the value of '{name}' holds half a surrogate pair"))
    return Record(text, metadata)


def _decoded(content: bytes, encoding: str, max_bytes: int) -> Record:
    if len(content) > max_bytes:
        text = content[:max_bytes].decode(encoding, errors="replace")[:EXCERPT_CHARACTERS]
        return Record(text, fault=("too_large", f"more than {max_bytes:,} bytes"))
    try:
        return Record(content.decode(encoding).removeprefix("\ufeff"))  # a byte order mark is no text
    except UnicodeDecodeError as error:
        return Record(content.decode(encoding, errors="replace"), fault=("unreadable", one_line(error)))


def _parts(stream: IO[bytes], separator: bytes | None, max_bytes: int) -> Iterator[bytes]:
    """What stands between separators; of a part of more than `max_bytes`, the first `max_bytes + 1` and no more."""
    # read1 gives what there is before the place where a compressed file breaks; read would lose it.
    read = getattr(stream, "read1", stream.read)
    part = bytearray()
    if separator is None:
        while len(part) <= max_bytes and (chunk := read(1 << 16)):
            part += chunk
        yield bytes(part[: max_bytes + 1])
        return
    skipping, searched = False, 0
    while chunk := read(1 << 16):
        part += chunk
        begin = 0
        end = part.find(separator, searched)
        while end >= 0:
            if not skipping:
                yield bytes(part[begin:end])
            skipping = False
            begin = end + len(separator)
            end = part.find(separator, begin)
        del part[:begin]
        # The end may be the beginning of a separator.
        searched = max(0, len(part) - len(separator) + 1)
        if len(part) > max_bytes + len(separator):
            if not skipping:
                yield bytes(part[: max_bytes + 1])
            del part[:searched]
            skipping, searched = True, 0
    if not skipping and part:
        yield bytes(part)


def one_line(error: Exception) -> str:
    """An error as the `detail` of a removed row: its class and message, at most 300 characters."""
    message = " ".join(str(error).split())
    return "".join(
        character if character.isprintable() else "\ufffd" for character in f"{type(error).__name__}: {message}"[:300]
    )
