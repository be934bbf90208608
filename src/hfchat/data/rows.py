"""Rows of files: JSON lines, a list in JSON, CSV and Parquet. What cannot be read is a row with a fault.

A row takes no more memory than its reader is told, however few bytes of a compressed file it is packed in. Text may be
in UTF-8, UTF-16 or UTF-32.
"""

import csv
import io
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hfchat.character_encodings import as_utf8, reader_of
from hfchat.dataset import as_before_arrow
from hfchat.dataset_files import find_delimiter
from hfchat.errors import UserError

# How much is kept of a row that is too large or cannot be read.
EXCERPT_CHARACTERS = 100_000
LINE_END = re.compile(rb"\r\n?|\n")
BYTE_ORDER_MARK = "\ufeff".encode()
_PIECE = 1 << 16


@dataclass
class Row:
    """One row of a source.

    Attributes:
        value: The row, or the beginning of one that cannot be read.
        place: Where it stands: `"chats.jsonl (row 12)"`, counted from 1; lines in JSON lines.
        fault: Why it cannot be read.
        reason: What that is called among the removed ones.
    """

    value: object
    place: str
    fault: str | None = None
    reason: str = "malformed"


# A row is made when it is called: tasks that share a file make only their own.
LazyRow = Callable[[], Row]


def one_line(error: Exception) -> str:
    """An error as the `detail` of a removed row: its class and message, at most 300 characters."""
    message = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
    return "".join(character if character.isprintable() else "\ufffd" for character in message)


def parts(stream: IO[bytes], separator: re.Pattern[bytes] | None, max_bytes: int) -> Iterator[bytes]:
    """What stands between separators; of a part of more than `max_bytes`, the first `max_bytes + 1` and no more."""
    read = reader_of(stream)
    part = bytearray()
    if separator is None:
        while len(part) <= max_bytes and (chunk := read(_PIECE)):
            part += chunk
        yield bytes(part[: max_bytes + 1])
        return
    longest = len(separator.pattern)  # of what it matches, at most
    skipping, searched, ended = False, 0, False
    while not ended:
        chunk = read(_PIECE)
        part += chunk
        ended = not chunk
        begin = 0
        # What ends with the chunk may go on in the next one, as the line end of Windows does.
        while (found := separator.search(part, searched)) and (ended or found.end() < len(part)):
            if not skipping:
                yield bytes(part[begin : found.start()])
            skipping = False
            begin = searched = found.end()
        # The end may be the beginning of a separator.
        searched = (found.start() if found else max(searched, len(part) - longest + 1)) - begin
        del part[:begin]
        # A part that is too large is given once; what follows in it is passed over.
        if len(part) > max_bytes + longest:
            if not skipping:
                yield bytes(part[: max_bytes + 1])
            del part[:searched]
            skipping, searched = True, 0
    if not skipping and part:
        yield bytes(part)


def json_lines(stream: IO[bytes], name: str, max_bytes: int) -> Iterator[LazyRow]:
    """A JSON value per line that is not empty."""
    return _lines_from(as_utf8(stream), 1, name, max_bytes)


def _lines_from(text: io.BufferedReader, first: int, name: str, max_bytes: int) -> Iterator[LazyRow]:
    for number, line in enumerate(parts(text, LINE_END, max_bytes), start=first):
        if line.strip():
            yield partial(_parse_json, line, f"{name} (row {number})", max_bytes)


def json_rows(stream: IO[bytes], name: str, max_bytes: int) -> Iterator[LazyRow]:
    """JSON lines, or a file that is one list, which is never whole in memory.

    Raises:
        UserError: If the list is not valid JSON.
    """
    text, first = as_utf8(stream), 1
    while (ahead := text.peek(1)) and ahead.isspace():
        first += len(LINE_END.findall(text.read(len(ahead))))
    if not ahead.lstrip().startswith(b"["):
        yield from _lines_from(text, first, name, max_bytes)
        return
    for number, item in enumerate(_items(text, name, max_bytes), start=1):
        yield partial(_parse_item, item, name, number, max_bytes)


def _parse_item(item: bytes, name: str, number: int, max_bytes: int) -> Row:
    row = _parse_json(item, f"{name} (row {number})", max_bytes)
    if row.reason == "malformed" and row.fault:
        raise UserError(f"sources: {name}: {row.fault} (item {number} of the list)")
    return row


def _parse_json(content: bytes, place: str, max_bytes: int) -> Row:
    if len(content) > max_bytes:
        return Row(_beginning(content), place, f"has more than {max_bytes:,} bytes", "too_large")
    if _holds_too_much(content):
        return Row(_beginning(content), place, f"has more than {_MOST_JSON:,} bytes beside its strings", "too_large")
    try:
        try:
            return Row(json.loads(content), place)
        except UnicodeDecodeError:  # what is used of the row may be valid: its users see the lone surrogates
            return Row(json.loads(content.decode("utf-8", "surrogateescape")), place)
    except (ValueError, RecursionError) as error:
        return Row(_beginning(content), place, f"not JSON: {error}")


def _beginning(content: bytes) -> str:
    return content[: 4 * EXCERPT_CHARACTERS].decode("utf-8", "replace")[:EXCERPT_CHARACTERS]


_MOST_JSON = 1 << 22
_JSON_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\Z)', re.DOTALL)


def _holds_too_much(content: bytes) -> bool:
    """Whether it holds so many values that they would fill the memory: `[]` are two bytes, and 56 of Python's."""
    return len(content) > _MOST_JSON and len(_JSON_STRING.sub(b"", content)) > _MOST_JSON


_IN_STRING, _OUTSIDE = re.compile(rb'["\\]'), re.compile(rb'[\[\]{},"]')


def _items(text: io.BufferedReader, name: str, max_bytes: int) -> Iterator[bytes]:
    """The items of a list in JSON, as they are written; of one that is longer than `max_bytes`, its beginning."""
    item = bytearray()
    depth, in_string, escaped, is_first = 0, False, False, True
    while piece := text.read1(_PIECE):
        begin, position = 0, int(escaped)  # the last piece may have ended within an escape
        escaped = False
        while found := (_IN_STRING if in_string else _OUTSIDE).search(piece, position):
            sign, position = found[0], found.end()
            if sign == b"\\":
                position, escaped = position + 1, position == len(piece)
            elif sign == b'"':
                in_string = not in_string
            elif sign in b"[{":
                depth += 1
                begin = position if depth == 1 else begin
            elif sign in b"]}":
                depth -= 1
                # A comma of the list itself, or its end, ends an item
            if not in_string and (depth == 0 or (sign == b"," and depth == 1)):
                item += piece[begin : found.start()]
                if depth or not is_first or item.strip():
                    yield bytes(item)
                item.clear()
                begin, is_first = position, False
                if depth == 0:
                    if piece[position:].strip() or any(map(bytes.strip, iter(partial(text.read1, _PIECE), b""))):
                        raise UserError(f"sources: {name}: not JSON: something follows the list")
                    return
        if len(item) <= max_bytes and depth:
            item += piece[begin:]
    if len(item) <= max_bytes:
        raise UserError(f"sources: {name}: not JSON: the list has no end")
    yield bytes(item)


def csv_rows(stream: IO[bytes], name: str, max_bytes: int) -> Iterator[LazyRow]:
    """Rows below a header; the columns are separated by what separates most of them in the header, or by `sep=`.

    Raises:
        UserError: If the header names a column twice.
        EOFError: For a line that is too long: where the next row begins is in what was not read.
    """
    csv.field_size_limit(max_bytes)
    lines = _bounded_lines(io.TextIOWrapper(as_utf8(stream), "utf-8", "surrogateescape", newline=""), max_bytes)
    first = next(lines, "")
    if declared := re.match(r"sep=(.)\s*$", first):  # as Excel writes it
        delimiter, first = declared[1], next(lines, "")
    else:
        delimiter = find_delimiter(first)
    # A header decides how many fields each row has
    reader = csv.reader(itertools.chain([first], lines), delimiter=delimiter)
    header = next(reader, [])
    if twice := [column for column, count in Counter(header).items() if count > 1]:
        raise UserError(f"sources: {name}: the header has the column '{twice[0]}' more than once; rename one")
    number = 1
    while True:
        place = f"{name} (row {number})"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "field larger" in str(error):
                yield partial(Row, "", place, f"has more than {max_bytes:,} bytes", "too_large")
            else:
                yield partial(Row, "", place, f"not CSV: {error}")
        else:
            if not cells:  # an empty line
                continue
            yield partial(_csv_row, cells, header, place)
        number += 1


def _csv_row(cells: Sequence[str], header: Sequence[str], place: str) -> Row:
    if len(cells) == len(header):
        return Row(dict(zip(header, cells, strict=True)), place)
    excerpt = json.dumps(cells, ensure_ascii=False)[:EXCERPT_CHARACTERS]
    return Row(excerpt, place, f"has {len(cells)} fields, the header has {len(header)}")


def _bounded_lines(text: io.TextIOWrapper, max_bytes: int) -> Iterator[str]:
    for number, line in enumerate(iter(partial(text.readline, max_bytes + 1), ""), start=1):
        if len(line) > max_bytes:
            raise EOFError(f"line {number} has more than {max_bytes:,} bytes")
        yield line


# How much of a row group is unpacked at a time, and how much larger than in the file it may be beyond that.
_MOST_UNPACKED = 1 << 26
_MOST_RATIO = 100


def parquet_rows(stream: IO[bytes], name: str, max_bytes: int, columns: Sequence[str] = ()) -> Iterator[LazyRow]:
    """The rows of a Parquet file, read some at a time. What rows have in common is in memory once.

    Args:
        stream: Open file that can be sought in.
        name: Its name.
        max_bytes: Size of the largest row.
        columns: What to read of each, where it is there; the first must be. By default, all.

    Raises:
        UserError: If the first of `columns` is not there.
    """
    with pq.ParquetFile(stream) as file:
        names = file.schema_arrow.names
        if columns and columns[0] not in names:
            raise UserError(f"{name}: no column '{columns[0]}', only {names}")
        wanted = [column for column in columns or names if column in names]
        leaves = [file.schema.column(i) for i in range(len(file.schema))]
        metadata = file.metadata
    leaves = [leaf for leaf in leaves if _is_in(leaf.path, wanted)]
    texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
    number = 0
    # A value that many rows have is written once: as a dictionary it is also read once.
    with pq.ParquetFile(stream, metadata=metadata, read_dictionary=texts) as file:
        for group in range(file.num_row_groups):
            rows, size, packed = _size_of_group(metadata.row_group(group), wanted)
            if size > max(_MOST_UNPACKED, max_bytes) and size > _MOST_RATIO * packed:
                number += 1
                about = f"a group of {rows:,} rows unpacks from {packed:,} to {size:,} bytes"
                yield partial(Row, "", f"{name} (row {number})", about, "too_large")
                continue
            at_a_time = max(1, min(64, _MOST_UNPACKED * rows // max(size, 1)))
            for batch in file.iter_batches(at_a_time, row_groups=[group], columns=wanted):
                most = max_bytes if _size(batch) > max_bytes else None
                for position in range(batch.num_rows):
                    number += 1
                    yield partial(_parquet_row, batch, position, f"{name} (row {number})", most)


def _is_in(path: str, columns: Collection[str]) -> bool:
    """Whether a leaf belongs to one of the columns, whose names may have dots as the path of the leaf does."""
    return any(f"{path}.".startswith(f"{column}.") for column in columns)


def _size_of_group(group: Any, wanted: Collection[str]) -> tuple[int, int, int]:
    """Rows of a row group, and bytes of the wanted columns, unpacked and in the file."""
    columns = [group.column(i) for i in range(group.num_columns)]
    columns = [column for column in columns if _is_in(column.path_in_schema, wanted)]
    unpacked = sum(column.total_uncompressed_size for column in columns)
    return group.num_rows, unpacked, sum(column.total_compressed_size for column in columns)


def _parquet_row(batch: pa.RecordBatch, position: int, place: str, max_bytes: int | None) -> Row:
    row = batch.slice(position, 1)
    if max_bytes is not None and (size := _size(row)) > max_bytes:
        return Row(_excerpt(row.column(0)), place, f"has {size:,} bytes, more than {max_bytes:,}", "too_large")
    try:
        return Row(as_before_arrow(row.to_pylist()[0], row.schema), place)
    except UnicodeDecodeError as error:  # Parquet does not check its strings
        return Row("", place, one_line(error))


def _size(values: Any) -> int:
    """Bytes of an array or batch when each of its values is made, also those that it has in common."""
    if isinstance(values, pa.RecordBatch):
        return sum(map(_size, values.columns))
    if isinstance(values, pa.ExtensionArray):
        return _size(values.storage)
    if isinstance(values, pa.StructArray):
        return sum(map(_size, values.flatten()))
    if isinstance(values, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray):
        return _size(values.flatten())
    if isinstance(values, pa.DictionaryArray):
        return pc.sum(pc.binary_length(values.dictionary).take(values.indices)).as_py() or 0
    return values.nbytes


def _excerpt(column: Any) -> str:
    """The beginning of a text that is not to be made whole."""
    value = column[0]
    if isinstance(column, pa.DictionaryArray) and value.is_valid:
        value = column.dictionary[value.index.as_py()]
    if not isinstance(value, pa.StringScalar | pa.LargeStringScalar) or not value.is_valid:
        return ""
    return value.as_buffer()[: 4 * EXCERPT_CHARACTERS].to_pybytes().decode("utf-8", "replace")
