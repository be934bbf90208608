"""Where conversations come from: one entry of `sources` in the YAML is one source, and gives rows."""

import csv
import functools
import gzip
import io
import itertools
import json
import lzma
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from fsspec.core import has_magic

from hfchat.character_encodings import as_utf8
from hfchat.data.conversation_formats import FORMATS, TAKES_INSTRUCTION, Row, find_format
from hfchat.data.readers import EXCERPT_CHARACTERS
from hfchat.dataset_files import find_delimiter, readable
from hfchat.errors import UserError

_READERS = {".jsonl": "json", ".ndjson": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".tsv": "csv"}
_COMPRESSED = (".gz", ".bz2", ".xz")
_DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError)
_HUB_KEYS = {"config", "split", "revision"}
_KEYS = {"path", "format", "name", "license", "url", "limit", "storage_options", "target_path", "instruction"}
_TYPES = {"limit": int, "storage_options": dict}
# A million tokens are a twentieth of it. What is written in a few bytes of a compressed file may fill any memory.
MAX_ROW_BYTES = 20_000_000
_LOOKED_AT = 100  # rows, for the format
_BATCH_BYTES = 256_000_000  # of Parquet
_PIECE = 1 << 16
_LINE_ENDS = ("\n", "\r")
_TOO_LARGE = f"has more than {MAX_ROW_BYTES:,} bytes"


class ConversationSource(dict):
    """One source of conversations.

    `path` is a file or glob (`.jsonl`, `.ndjson`, `.json`, `.parquet`, `.csv`, `.tsv`), on this machine or as a URL of
    fsspec, or a dataset's folder or Hub id, with `config`, `split` (train) and `revision` (pin it). Files but Parquet
    may be compressed (`.gz`, `.bz2`, `.xz`), and in UTF-8, UTF-16 or UTF-32; the columns of a CSV may be separated by
    commas, semicolons, tabs or bars. A row of more than `MAX_ROW_BYTES` is removed. `format` is seen from the columns,
    or given:

    - `messages`: `messages` with `role` and `content` as in OpenAI's API, also `tool_calls`, and `tools` beside them.
    - `sharegpt`: `conversations` with `from` and `value`.
    - `alpaca`: `instruction`, `input` and `output` (Dolly: `context` and `response`), or Self-Instruct's `instances`.
    - `prompt-completion`, `question-answer`: the columns of these names, as texts, and maybe `context`; the first also
      as messages, the second also with SQuAD's `answers`.
    - `dialogsum`: `dialogue` and `summary`; `instruction` is what the prompt asks for.
    - `parallel-text`: line by line, `path` is translated in `target_path`; `instruction` must say what to do.
    - `preference`: `chosen` and `rejected`, as messages, as HH-RLHF's texts, or as answers to a `prompt`.
    - `thumbs`: `prompt` and `completion`, or `messages`, with `label` (true or false).

    In each there may be `system` (what the system says), `history` (pairs of earlier questions and answers) and
    `tools`. Columns and fields that are not used are counted in the report.

    `limit` takes the first so many rows. `license`, `url` and `name` go into the dataset card, `name` into each row;
    `storage_options` go to fsspec.

    Raises:
        ValueError: For a format that there is not, or a key that it does not take.
    """

    def __init__(self, value: dict[str, Any] | str):
        value = json.loads(value) if isinstance(value, str) else value
        if not isinstance(value, dict) or not isinstance(value.get("path"), str):
            raise ValueError("each of sources must be a mapping with a 'path'")
        super().__init__(value)
        place = f"source {self['path']}"
        known = _KEYS | (_HUB_KEYS if self.is_hub else set())
        if unknown := self.keys() - known:
            raise ValueError(f"{place}: unknown key '{min(unknown)}'; it takes {', '.join(sorted(known))}")
        for key, item in self.items():
            expected = _TYPES.get(key, str)
            if not isinstance(item, expected) or isinstance(item, bool):
                raise ValueError(f"{place}: '{key}' must be a {expected.__name__}, not {item!r}")
        if self.get("limit", 1) < 1:
            raise ValueError(f"{place}: 'limit' must be at least 1, not {self['limit']}")
        format = self.get("format", "parallel-text" if "target_path" in self else None)
        if format not in (None, *FORMATS):
            raise ValueError(f"{place}: format must be one of {', '.join(FORMATS)}, not {format!r}")
        if format == "parallel-text" and not {"target_path", "instruction"} <= self.keys():
            raise ValueError(f"{place}: parallel-text needs 'target_path' and 'instruction'")
        if "target_path" in self and format != "parallel-text":
            raise ValueError(f"{place}: 'target_path' is a key of parallel-text, not of {format}")
        if "instruction" in self and format not in (None, *TAKES_INSTRUCTION):
            raise ValueError(f"{place}: 'instruction' is a key of {' and '.join(TAKES_INSTRUCTION)}, not of {format}")

    @property
    def name(self) -> str:
        return self.get("name", self["path"])

    @property
    def license(self) -> str:
        return self.get("license", "unknown")

    @property
    def is_hub(self) -> bool:
        return "target_path" not in self and self._reader is None

    @property
    def _reader(self) -> str | None:
        name = self["path"]
        for suffix in _COMPRESSED:
            name = name.removesuffix(suffix)
        return _READERS.get(name[name.rfind(".") :])

    def describe(self) -> dict[str, Any]:
        """The source as an input of the stage: `{"path", "sha256", "licenses"}`.

        Raises:
            UserError: If it names files and there are none.
        """
        from hfchat.data.sources import Source

        common = {key: self[key] for key in ("license", "revision", "storage_options") if key in self}
        kind = "hub" if self.is_hub else "text"  # for files, all that counts of the kind is that they are files
        paths = [self[key] for key in ("path", "target_path") if key in self]
        found = [Source({"path": path, "kind": kind, **common}).describe() for path in paths]
        return found[0] | {"sha256": json.dumps([one["sha256"] for one in found])}

    def find_format(self) -> str:
        """The format, seen from the columns of the first rows where it is not given.

        Raises:
            UserError: If there is no row, no format has these columns, or it takes no `instruction`.
        """
        if "target_path" in self:
            return "parallel-text"
        if "format" in self:
            return self["format"]
        first = next(self.rows(), None)
        if first is None:
            raise UserError(f"sources: {self['path']}: has no rows")
        # A first row may lack a value, or be none: the first that has the columns of a format says which it is.
        mappings = (row.value for row in self.rows() if isinstance(row.value, dict) and not row.fault)
        format, columns = None, None
        for value in itertools.islice(mappings, _LOOKED_AT):
            format, columns = find_format(value), columns or list(value)
            if format is not None:
                break
        if columns is None:
            fault = first.fault or "is no mapping of columns"
            raise UserError(f"sources: {first.place}: {fault}; no other row can be read either")
        if format is None:
            raise UserError(
                f"sources: {self['path']}: no format has the columns {', '.join(columns)}; "
                "rename them, or give 'format'"
            )
        if "instruction" in self and format not in TAKES_INSTRUCTION:
            raise UserError(f"sources: {self['path']}: 'instruction' is no key of the format {format}")
        return format

    def rows(self) -> Iterator[Row]:
        """All rows, in order.

        Raises:
            UserError: If the source cannot be opened, or if parallel texts have different numbers of lines.
        """
        if "target_path" in self:
            rows = self._parallel_rows()
        elif self.is_hub:
            rows = self._hub_rows()
        else:
            rows = self._file_rows()
        return itertools.islice(rows, self.get("limit"))

    def _file_rows(self) -> Iterator[Row]:
        read = {"json": _read_json, "csv": _read_csv, "parquet": _read_parquet}[self._reader]
        for name, open_file in self._files(self["path"]):
            number = 0
            try:
                with open_file() as stream:
                    for number, value, fault in read(stream, name):
                        reason = "too_large" if fault == _TOO_LARGE else "malformed"
                        yield Row(value, f"{name} (row {number})", fault, reason)
            except (*_DAMAGED, OSError) as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise UserError(f"sources: {name}: {error}") from error
                yield Row("", f"{name} (row {number + 1})", f"the rest of the file cannot be read: {error}")

    def _parallel_rows(self) -> Iterator[Row]:
        (name, open_source), *more = self._files(self["path"])
        (target_name, open_target), *more_targets = self._files(self["target_path"])
        if more or more_targets:
            raise UserError(f"sources: {self['path']}: parallel-text takes one file and its translation, not several")
        counts = Counter()
        try:
            with open_source() as source, open_target() as target:
                pairs = itertools.zip_longest(_lines(_text(source)), _lines(_text(target)))
                for number, lines in enumerate(pairs, start=1):
                    counts.update(position for position, line in enumerate(lines) if line is not None)
                    if None not in lines:
                        too_large = max(map(len, lines)) > MAX_ROW_BYTES
                        texts = [line[:EXCERPT_CHARACTERS] if too_large else line.strip() for line in lines]
                        value = dict(zip(("source", "target"), texts, strict=True))
                        row = Row(value, f"{name} (row {number})")
                        yield Row(value, row.place, _TOO_LARGE, "too_large") if too_large else row
        except (*_DAMAGED, OSError) as error:
            raise UserError(f"sources: {name}, {target_name}: {error}") from error
        if counts[0] != counts[1]:
            raise UserError(
                f"sources: {name} has {counts[0]:,} lines and {target_name} has {counts[1]:,}; "
                "each line must have its translation in the other file"
            )

    def _hub_rows(self) -> Iterator[Row]:
        from datasets import load_dataset

        split = self.get("split", "train")
        try:
            path = Path(self["path"])
            dataset = load_dataset(
                str(readable(path)) if path.is_dir() else self["path"],
                self.get("config"),
                split=split,
                revision=self.get("revision"),
                streaming=True,
            )
            for number, value in enumerate(dataset, start=1):
                yield Row(value, f"{self['path']} (row {number})")
        except Exception as error:  # the errors of the builders have no common base
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"sources: {self['path']}: cannot load split '{split}' of a dataset: {reason} "
                f"(a file must end in {', '.join(_READERS)})"
            ) from error

    def _files(self, path: str) -> list[tuple[str, Callable[[], IO[bytes]]]]:
        """Name and opener of each file that the path names."""
        from hfchat.data.sources import find_files

        folder, files = find_files(path, self.get("storage_options", {}))
        parts = path.split("/")[:-1]
        above = "/".join(itertools.takewhile(lambda part: not has_magic(part), parts))
        prefix = above and f"{above}/"
        return [(f"{prefix}{file}", functools.partial(folder.open, file, "rb", compression="infer")) for file in files]


def _text(stream: IO[bytes]) -> io.TextIOWrapper:
    """A file as text, whatever its encoding; bytes that are not valid in it become lone surrogates."""
    return io.TextIOWrapper(as_utf8(stream), "utf-8", "surrogateescape", newline="")


def _lines(text: io.TextIOWrapper, begin: str = "") -> Iterator[str]:
    """The lines, with their ends; of one that is longer than `MAX_ROW_BYTES`, its beginning.

    Args:
        text: From `_text`.
        begin: What was read of the first line.
    """
    line = begin
    while True:
        if not line.endswith(_LINE_ENDS):
            line += text.readline(MAX_ROW_BYTES + 1 - len(line))
        if not line:
            return
        yield line
        if len(line) > MAX_ROW_BYTES:
            while line and not line.endswith(_LINE_ENDS):
                line = text.readline(_PIECE)
        line = ""


def _read_json(stream: IO[bytes], name: str) -> Iterator[tuple[int, Any, str | None]]:
    """Rows of JSON lines, or of a file that is one list."""
    text = _text(stream)
    begin, number = "", 1
    while not begin.strip() and (begin := text.readline(_PIECE)):
        number += begin.endswith(_LINE_ENDS) and not begin.strip()
    if begin.lstrip().startswith("["):
        yield from _parse_list(_items(itertools.chain([begin], iter(lambda: text.read(_PIECE), ""))), name)
        return
    for row, line in enumerate(_lines(text, begin), start=number):
        if len(line) > MAX_ROW_BYTES:
            yield row, line[:EXCERPT_CHARACTERS], _TOO_LARGE
        elif line.strip():
            value, fault = _parse(line)
            yield row, value, fault


def _parse(text: str) -> tuple[Any, str | None]:
    try:
        return json.loads(text), None
    except (ValueError, RecursionError) as error:
        return text[:EXCERPT_CHARACTERS].rstrip("\n"), f"not JSON: {error}"


def _parse_list(items: Iterator[str], name: str) -> Iterator[tuple[int, Any, str | None]]:
    for number, item in enumerate(items, start=1):
        if len(item) > MAX_ROW_BYTES:
            yield number, item[:EXCERPT_CHARACTERS], _TOO_LARGE
            continue
        value, fault = _parse(item)
        if fault:
            raise UserError(f"sources: {name}: {fault} (item {number} of the list)")
        yield number, value, None


_IN_TEXT, _OUTSIDE = re.compile(r'["\\]'), re.compile(r'[\[\]{},"]')


def _items(pieces: Iterator[str]) -> Iterator[str]:
    """The items of a list in JSON, as they are written; of one longer than `MAX_ROW_BYTES`, its beginning.

    The list is never whole in memory. Text that is not valid JSON becomes a faulty item.
    """
    item: list[str] = []
    length, depth, in_text, escaped, is_first = 0, 0, False, False, True
    for piece in pieces:
        begin, position = 0, 0
        if escaped:  # a piece ended within an escape, as those of an item that is too long do
            position, escaped = 1, False
        while found := (_IN_TEXT if in_text else _OUTSIDE).search(piece, position):
            sign, position = found[0], found.end()
            if sign == "\\":
                position, escaped = position + 1, position == len(piece)
            elif sign == '"':
                in_text = not in_text
            elif sign in "[{":
                depth += 1
                begin = position if depth == 1 else begin
            elif sign in "]}":
                depth -= 1
            if not in_text and (depth == 0 or (sign == "," and depth == 1)):
                text = "".join([*item, piece[begin : found.start()]])
                if depth or not is_first or text.strip():
                    yield text
                item, length, begin, is_first = [], 0, position, False
                if depth == 0:
                    if rest := piece[position:].strip() or next(filter(str.strip, pieces), "").strip():
                        yield f"{rest} (after the list)"
                    return
        if length <= MAX_ROW_BYTES and depth:
            item.append(piece[begin:])
            length += len(item[-1])
    yield "".join([*item, "\n(the list has no end)"])


def _read_csv(stream: IO[bytes], name: str) -> Iterator[tuple[int, Any, str | None]]:
    csv.field_size_limit(MAX_ROW_BYTES)
    lines = _bounded(_lines(_text(stream)))
    first = next(lines, "")
    if declared := re.match(r"sep=(.)\s*$", first):  # as Excel writes it
        delimiter, first = declared[1], next(lines, "")
    else:
        delimiter = find_delimiter(first)
    reader = csv.DictReader(itertools.chain([first], lines), delimiter=delimiter)
    header = reader.fieldnames or []
    if twice := [column for column, count in Counter(header).items() if count > 1]:
        raise UserError(f"sources: {name}: the header has the column '{twice[0]}' more than once; rename one")
    for number in itertools.count(1):
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield number, "", _TOO_LARGE if "field larger" in str(error) else f"not CSV: {error}"
            continue
        if None in row or None in row.values():
            cells = [cell for key, cell in row.items() if key is not None and cell is not None] + row.get(None, [])
            fault = f"has {len(cells)} fields, the header has {len(header)}"
            yield number, json.dumps(cells, ensure_ascii=False)[:EXCERPT_CHARACTERS], fault
        else:
            yield number, row, None


def _bounded(lines: Iterator[str]) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if len(line) > MAX_ROW_BYTES:  # where the next row begins is in what was not read
            raise EOFError(f"line {number} {_TOO_LARGE}")
        yield line


def _read_parquet(stream: IO[bytes], name: str) -> Iterator[tuple[int, Any, str | None]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        file = pq.ParquetFile(stream)
        for group in range(file.num_row_groups):
            # A value that many rows share stands in the file once, and in memory once a row.
            size = max(file.metadata.row_group(group).total_byte_size, 1)
            rows = min(max(_BATCH_BYTES // size, 1), 256)
            for batch in file.iter_batches(batch_size=rows, row_groups=[group]):
                for position in range(batch.num_rows):
                    number += 1
                    row = batch.slice(position, 1)
                    if row.nbytes > MAX_ROW_BYTES:
                        yield number, "", _TOO_LARGE
                    else:
                        yield number, row.to_pylist()[0], None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"sources: {name}: cannot read row {number + 1}: {str(error).splitlines()[0]}") from error
