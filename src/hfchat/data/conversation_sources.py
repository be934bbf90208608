"""Where conversations come from: one entry of `sources` in the YAML is one source, and gives rows."""

import functools
import gzip
import itertools
import json
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Self

import pyarrow as pa
import pydantic
from fsspec.core import has_magic

from hfchat.character_encodings import as_utf8
from hfchat.data.conversation_formats import FORMATS, TAKES_INSTRUCTION, find_format
from hfchat.data.files import UNPACK, digest_of_files, find_files, open_unpacked
from hfchat.data.rows import (
    EXCERPT_CHARACTERS,
    LINE_END,
    LazyRow,
    Row,
    csv_rows,
    json_rows,
    one_line,
    parquet_rows,
    parts,
)
from hfchat.dataset import as_before_arrow
from hfchat.dataset_files import readable
from hfchat.entries import Entry
from hfchat.errors import UserError
from hfchat.lineage import Input, describe

_READERS: dict[str, Callable[[IO[bytes], str, int], Iterator[LazyRow]]] = {
    ".jsonl": json_rows, ".ndjson": json_rows, ".json": json_rows, ".parquet": parquet_rows, ".csv": csv_rows,
    ".tsv": csv_rows,
}  # fmt: skip
_DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError)
# A million tokens are a twentieth of it. What is written in a few bytes of a compressed file may fill any memory.
MAX_ROW_BYTES = 20_000_000
_LOOKED_AT = 100  # rows, for the format


class ConversationSource(Entry):
    """One source of conversations.

    `path` is a file or glob (`.jsonl`, `.ndjson`, `.json`, `.parquet`, `.csv`, `.tsv`), on this machine or as a URL of
    fsspec, or a dataset's folder or Hub id, with `config`, `split` (train) and `revision` (pin it). Files but Parquet
    may be compressed (`.gz`, `.bz2`, `.xz`, `.zst`), and in UTF-8, UTF-16 or UTF-32; the columns of a CSV may be
    separated by commas, semicolons, tabs or bars. A row of more than `MAX_ROW_BYTES` is removed. `format` is seen from
    the columns, or given:

    - `messages`: `messages` with `role` and `content` as in OpenAI's API, also `tool_calls`, and `tools` beside them.
    - `sharegpt`: `conversations` with `from` and `value`.
    - `alpaca`: `instruction`, `input` and `output` (Dolly: `context` and `response`), or Self-Instruct's `instances`.
    - `prompt-completion`, `question-answer`: the columns of these names, as texts, and maybe `context`; the first also
      as messages, the second also with SQuAD's `answers`.
    - `function-calls`: `query`, and in `answers` the calls of `tools` that answer it, as xLAM and APIGen have them.
    - `dialogsum`: `dialogue` and `summary`; `instruction` is what the prompt asks for.
    - `parallel-text`: line by line, `path` is translated in `target_path`; `instruction` must say what to do.
    - `preference`: `chosen` and `rejected`, as messages, as HH-RLHF's texts, or as answers to a `prompt`.
    - `thumbs`: `prompt` and `completion`, or `messages`, with `label` (true or false).

    In each there may be `system` (what the system says), `history` (pairs of earlier questions and answers) and
    `tools`. Columns and fields that are not used are counted in the report.

    `limit` takes the first so many rows. `license`, `url` and `name` go into the dataset card, `name` into each row;
    `storage_options` go to fsspec.
    """

    path: str
    format: str | None = None
    name: str | None = None
    license: str = "unknown"
    url: str = ""
    limit: int | None = pydantic.Field(default=None, ge=1)
    storage_options: dict[str, object] = pydantic.Field(default_factory=dict)
    target_path: str | None = None
    instruction: str | None = None
    config: str | None = None
    split: str | None = None
    revision: str | None = None

    @classmethod
    def title(cls, fields: Mapping[str, object]) -> str:
        return f"source {fields['path']}" if "path" in fields else "each of sources"

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        format = self.format or ("parallel-text" if self.target_path else None)
        if format not in (None, *FORMATS):
            raise ValueError(f"format must be one of {', '.join(FORMATS)}, not {format!r}")
        if format == "parallel-text" and not (self.target_path and self.instruction):
            raise ValueError("parallel-text needs 'target_path' and 'instruction'")
        if self.target_path and format != "parallel-text":
            raise ValueError(f"'target_path' is a key of parallel-text, not of {format}")
        if self.instruction and format not in (None, *TAKES_INSTRUCTION):
            raise ValueError(f"'instruction' is a key of {' and '.join(TAKES_INSTRUCTION)}, not of {format}")
        for key in ("config", "split", "revision"):
            if getattr(self, key) and not self.is_hub:
                raise ValueError(f"unknown key '{key}'; files do not take it, only datasets do")
        return self

    @property
    def label(self) -> str:
        """Its name, or its path."""
        return self.name or self.path

    @property
    def is_hub(self) -> bool:
        return not self.target_path and self._reader is None

    @property
    def _reader(self) -> Callable[[IO[bytes], str, int], Iterator[LazyRow]] | None:
        name = self.path.lower()
        for suffix in UNPACK:
            name = name.removesuffix(suffix)
        return _READERS.get(name[name.rfind(".") :])

    def describe(self) -> Input:
        """The source as an input of the stage.

        Raises:
            UserError: If there is no such file.
        """
        if self.is_hub:
            digests = [f"{describe(self.path)['sha256']}@{self.revision or 'main'}"]
        else:
            paths = filter(None, (self.path, self.target_path))
            digests = [digest_of_files(path, self.storage_options) for path in paths]
        return {"path": self.path, "sha256": json.dumps(digests), "licenses": [self.license]}

    def find_format(self) -> str:
        """The format, seen from the columns of the first rows where it is not given.

        Raises:
            UserError: If there is no row, no format has these columns, or it takes no `instruction`.
        """
        if self.target_path:
            return "parallel-text"
        if self.format:
            return self.format
        first = next(self.rows(), None)
        if first is None:
            raise UserError(f"sources: {self.path}: has no rows")
        # A first row may be broken or lack a value, so the first that has the columns of a format decides.
        mappings = (row.value for row in self.rows() if isinstance(row.value, dict) and not row.fault)
        format, columns = None, None
        for value in itertools.islice(mappings, _LOOKED_AT):
            format, columns = find_format(value), columns or list(value)
            if format is not None:
                break
        if columns is None:
            fault = first.fault or "is not a mapping of columns"
            raise UserError(f"sources: {first.place}: {fault}; no other row can be read either")
        if format is None:
            raise UserError(
                f"sources: {self.path}: no format has the columns {', '.join(columns)}; rename them, or give 'format'"
            )
        if self.instruction and format not in TAKES_INSTRUCTION:
            raise UserError(f"sources: {self.path}: the format {format} does not take 'instruction'")
        return format

    def rows(self) -> Iterator[Row]:
        """All rows, in order.

        Raises:
            UserError: If the source cannot be opened, or if parallel texts have different numbers of lines.
        """
        if self.target_path:
            rows = self._parallel_rows(self.target_path)
        elif read := self._reader:
            rows = self._file_rows(read)
        else:
            rows = self._hub_rows()
        return itertools.islice(rows, self.limit)

    def _file_rows(self, read: Callable[[IO[bytes], str, int], Iterator[LazyRow]]) -> Iterator[Row]:
        for name, open_file in self._files(self.path):
            number = 0
            try:
                with open_file() as stream:
                    for make in read(stream, name, MAX_ROW_BYTES):
                        yield make()
                        number += 1
            except (*_DAMAGED, OSError, pa.ArrowException) as error:
                if read is parquet_rows:
                    raise UserError(f"sources: {name}: cannot read row {number + 1}: {one_line(error)}") from error
                if isinstance(error, OSError) and error.errno is not None:
                    raise UserError(f"sources: {name}: {error}") from error
                yield Row("", f"{name} (row {number + 1})", f"the rest of the file cannot be read: {error}")

    def _parallel_rows(self, target_path: str) -> Iterator[Row]:
        (name, open_source), *more = self._files(self.path)
        (target_name, open_target), *more_targets = self._files(target_path)
        if more or more_targets:
            raise UserError(f"sources: {self.path}: parallel-text takes one file and its translation, not several")
        counts = [0, 0]
        try:
            with open_source() as source, open_target() as target:
                files = [parts(as_utf8(stream), LINE_END, MAX_ROW_BYTES) for stream in (source, target)]
                for number, (line, translation) in enumerate(itertools.zip_longest(*files), start=1):
                    if line is not None:
                        counts[0] = number
                    if translation is not None:
                        counts[1] = number
                    if line is not None and translation is not None:
                        yield _pair(line, translation, f"{name} (row {number})")
        except (*_DAMAGED, OSError) as error:
            raise UserError(f"sources: {name}, {target_name}: {error}") from error
        if counts[0] != counts[1]:
            raise UserError(
                f"sources: {name} has {counts[0]:,} lines and {target_name} has {counts[1]:,}; "
                "each line must have its translation in the other file"
            )

    def _hub_rows(self) -> Iterator[Row]:
        from datasets import load_dataset

        split = self.split or "train"
        try:
            path = Path(self.path)
            dataset = load_dataset(
                str(readable(path)) if path.is_dir() else self.path,
                self.config,
                split=split,
                revision=self.revision,
                streaming=True,
            )
            schema = dataset.features.arrow_schema if dataset.features else None
            for number, value in enumerate(dataset, start=1):
                written = value if schema is None else as_before_arrow(value, schema)
                yield Row(written, f"{self.path} (row {number})")
        except Exception as error:  # the errors of the builders have no common base
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"sources: {self.path}: cannot load split '{split}' of a dataset: {reason} "
                f"(a file must end in {', '.join(_READERS)})"
            ) from error

    def _files(self, path: str) -> list[tuple[str, Callable[[], AbstractContextManager[IO[bytes]]]]]:
        """Name and opener of each file that the path names."""
        folder, files = find_files(path, self.storage_options)
        above = "/".join(itertools.takewhile(lambda part: not has_magic(part), path.split("/")[:-1]))
        prefix = above and f"{above}/"
        return [(f"{prefix}{file}", functools.partial(open_unpacked, folder, file)) for file in files]


def _pair(source: bytes, target: bytes, place: str) -> Row:
    """A line and its translation. Bytes that are not valid become lone surrogates."""
    texts = {"source": source.decode("utf-8", "surrogateescape"), "target": target.decode("utf-8", "surrogateescape")}
    if max(len(source), len(target)) > MAX_ROW_BYTES:
        excerpts = {name: text[:EXCERPT_CHARACTERS] for name, text in texts.items()}
        return Row(excerpts, place, f"has more than {MAX_ROW_BYTES:,} bytes", "too_large")
    return Row({name: text.strip() for name, text in texts.items()}, place)
