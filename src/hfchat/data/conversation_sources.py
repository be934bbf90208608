"""Where conversations come from: one entry of `sources` in the YAML is one source, and gives rows."""

import csv
import functools
import gzip
import io
import itertools
import json
import lzma
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import IO, Any

from fsspec.core import has_magic

from hfchat.data.conversation_formats import FORMATS, TAKES_INSTRUCTION, Row, find_format
from hfchat.data.readers import EXCERPT_CHARACTERS
from hfchat.errors import UserError

_READERS = {".jsonl": "json", ".ndjson": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
_COMPRESSED = (".gz", ".bz2", ".xz")
_DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError)
_HUB_KEYS = {"config", "split", "revision"}
_KEYS = {"path", "format", "name", "license", "url", "limit", "storage_options", "target_path", "instruction"}
_TYPES = {"limit": int, "storage_options": dict}


class ConversationSource(dict):
    """One source of conversations.

    `path` is a file or glob (`.jsonl`, `.ndjson`, `.json`, `.parquet`, `.csv`), on this machine or as an fsspec URL,
    or a dataset's folder or Hub id, with `config`, `split` (train) and `revision` (pin it). Files but Parquet may be
    compressed (`.gz`, `.bz2`, `.xz`). `format` is seen from the columns, or given:

    - `messages`: `messages` with `role` and `content` as in OpenAI's API, also `tool_calls`, and `tools` beside them.
    - `sharegpt`: `conversations` with `from` and `value`.
    - `alpaca`: `instruction`, `input` and `output`, or Self-Instruct's `instances` of the last two.
    - `prompt-completion`, `question-answer`: the columns of these names, as texts; the first also as messages.
    - `dialogsum`: `dialogue` and `summary`; `instruction` is what the prompt asks for.
    - `parallel-text`: line by line, `path` is translated in `target_path`; `instruction` must say what to do.
    - `preference`: `chosen` and `rejected`, as messages, as HH-RLHF's texts, or as answers to a `prompt`.
    - `thumbs`: `prompt` and `completion`, or `messages`, with `label` (true or false).

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
        """The format, seen from the first row's columns where it is not given.

        Raises:
            UserError: If there is no row, no format has these columns, or it takes no `instruction`.
        """
        if "target_path" in self:
            return "parallel-text"
        if "format" in self:
            return self["format"]
        first = next((row.value for row in self.rows() if isinstance(row.value, dict)), None)
        if first is None:
            raise UserError(f"sources: {self['path']}: has no rows")
        format = find_format(first)
        if format is None:
            raise UserError(
                f"sources: {self['path']}: no format has the columns {', '.join(first)}; rename them, or give 'format'"
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
                        yield Row(value, f"{name} (row {number})", fault)
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
                for number, lines in enumerate(itertools.zip_longest(source, target), start=1):
                    counts.update(position for position, line in enumerate(lines) if line is not None)
                    if None not in lines:
                        texts = [line.decode("utf-8", "surrogateescape").strip() for line in lines]
                        yield Row(dict(zip(("source", "target"), texts, strict=True)), f"{name} (row {number})")
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
            dataset = load_dataset(
                self["path"], self.get("config"), split=split, revision=self.get("revision"), streaming=True
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


def _read_json(stream: IO[bytes], name: str) -> Iterator[tuple[int, Any, str | None]]:
    """Rows of JSON lines, or of a file that is one list."""
    first = next((line for line in stream if line.strip()), b"")
    if first.lstrip(b"\xef\xbb\xbf \t").startswith(b"["):
        try:
            rows = json.loads(first + stream.read())
        except ValueError as error:
            raise UserError(f"sources: {name}: not JSON: {error}") from error
        yield from ((number, row, None) for number, row in enumerate(rows, start=1))
        return
    stream.seek(0)
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line), None
        except (ValueError, RecursionError) as error:
            yield (
                number,
                line.decode("utf-8", "backslashreplace")[:EXCERPT_CHARACTERS].rstrip("\n"),
                f"not JSON: {error}",
            )


def _read_csv(stream: IO[bytes], name: str) -> Iterator[tuple[int, Any, str | None]]:
    csv.field_size_limit(2**31 - 1)
    text = io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline="")
    reader = csv.DictReader(text)
    for number in itertools.count(1):
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield number, "", f"not CSV: {error}"
            continue
        if None in row or None in row.values():
            cells = [cell for key, cell in row.items() if key is not None and cell is not None] + row.get(None, [])
            fault = f"has {len(cells)} fields, the header has {len(reader.fieldnames)}"
            yield number, json.dumps(cells, ensure_ascii=False)[:EXCERPT_CHARACTERS], fault
        else:
            yield number, row, None


def _read_parquet(stream: IO[bytes], name: str) -> Iterator[tuple[int, Any, str | None]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        for batch in pq.ParquetFile(stream).iter_batches(batch_size=256):
            for row in batch.to_pylist():
                number += 1
                yield number, row, None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"sources: {name}: cannot read row {number + 1}: {str(error).splitlines()[0]}") from error
