"""Where documents come from: one entry of `sources` in the YAML is one source."""

import itertools
import re
from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal, get_args

import pydantic
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.writers.disk_base import DiskWriter

from hfchat.data.books import parse_book
from hfchat.data.extraction import Extraction
from hfchat.data.files import UNPACK, digest_of_files, find_files
from hfchat.data.installed_docs import InstalledDocsReader, describe_installation
from hfchat.data.mediawiki import parse_dump, wikitext_to_text
from hfchat.data.readers import FileReader, HubReader, Parser, SourceStep, parse_json_lines, parse_parquet, parse_text
from hfchat.data.web import html_to_text, parse_warc
from hfchat.entries import Entry
from hfchat.lineage import Input, describe

INSTALLED_DOCS = "installed-docs"
_SUFFIXES = {
    ".txt": "text",
    ".md": "text",
    ".jsonl": "json-lines",
    ".ndjson": "json-lines",
    ".parquet": "parquet",
    ".warc": "warc",
    ".wet": "wet",
    ".xml": "mediawiki",
}


class Source(Entry):
    """One source of documents.

    `path` is a file or glob, here or as an fsspec URL (`s3://`, `gs://`, `hf://`, `webhdfs://`, ...), the id of a Hub
    dataset, or `installed-docs`. `kind` is seen from its name, or given:

    - `text` (`.txt`, `.md`): each file is a document, or with `separator` what stands between; `encoding` is that of
      files that do not begin with a byte order mark (utf-8).
    - `gutenberg`: the same, without Project Gutenberg's header and licence.
    - `json-lines` (`.jsonl`, `.ndjson`) and `parquet`: the text is under `text_key`.
    - `warc`, `wet`: Common Crawl. HTML becomes text in at most `timeout` seconds (20) a page.
    - `mediawiki` (`.xml`): a dump of Wikipedia; `namespaces` ([0]), `timeout` (20).
    - `hub`: a dataset's id or folder, with `text_key`, `config`, `split` (train), `revision` (pin it), `limit`
      (rows, in all), `streaming` (true).
    - `installed-docs`: the documentation of installed Python packages, `max_bytes_per_package` (1,000,000).

    All but Parquet may be compressed (`.gz`, `.bz2`, `.xz`, `.zst`). `license`, `url` and `name` become each
    document's provenance where a record has none of its own; `storage_options` go to fsspec, e.g. `{anon: true}`.
    """

    path: str
    kind: str

    @classmethod
    def title(cls, fields: Mapping[str, object]) -> str:
        return f"source {fields['path']}" if "path" in fields else "each of sources"

    @classmethod
    def alternatives(cls) -> tuple[type["Source"], ...]:
        return InstalledDocs, TextFiles, JsonLines, ParquetFiles, Crawl, CrawlText, WikiDump, HubDataset

    @classmethod
    def kind_of(cls, fields: Mapping[str, object]) -> object:
        path = fields.get("path")
        if "kind" in fields or not isinstance(path, str):
            return fields.get("kind", "hub")
        if path == INSTALLED_DOCS:
            return INSTALLED_DOCS
        name = path.lower()
        for suffix in UNPACK:
            name = name.removesuffix(suffix)
        if kind := _SUFFIXES.get(name[name.rfind(".") :]):
            return kind
        if Path(path).is_dir() or re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path):
            return "hub"
        kinds = itertools.chain.from_iterable(
            get_args(model.model_fields["kind"].annotation) for model in cls.alternatives()
        )
        raise ValueError(f"source {path}: its name does not say what it is; give a 'kind': one of {', '.join(kinds)}")

    @property
    def label(self) -> str:
        """What documents and reports call it."""
        return self.path

    @abstractmethod
    def describe(self) -> Input:
        """The source as an input of the stage.

        Local files count by their content, remote ones by what the storage says of them (ETag, size, time).

        Raises:
            UserError: If it names files that do not exist.
        """

    @abstractmethod
    def reader(self, max_document_bytes: int) -> PipelineStep:
        """The block that yields its documents, also those that cannot be read."""

    @property
    def extraction(self) -> Extraction | None:
        """From markup to text."""
        return None

    def step(
        self, removed_writer: Callable[[], DiskWriter], strict: bool = False, max_document_bytes: int = 50_000_000
    ) -> SourceStep:
        """The block that adds the source's documents to a pipeline; each has `source`, `license` and `url`.

        Args:
            removed_writer: Makes a writer of what is not a document.
            strict: Raise for what cannot be read.
            max_document_bytes: Larger documents are removed.

        Raises:
            UserError: If it names files that do not exist.
        """
        reader = self.reader(max_document_bytes)
        return SourceStep(reader, self.extraction, removed_writer, strict, max_document_bytes)


class InstalledDocs(Source):
    kind: Literal["installed-docs"] = "installed-docs"
    max_bytes_per_package: int = 1_000_000

    def describe(self) -> Input:
        return describe_installation()

    def reader(self, max_document_bytes: int) -> PipelineStep:
        return InstalledDocsReader(self.max_bytes_per_package)


class _WithProvenance(Source):
    """A source whose user says where it comes from."""

    license: str = "unknown"
    url: str = ""
    name: str | None = None

    @property
    def label(self) -> str:
        return self.name or self.path

    @property
    def provenance(self) -> dict[str, str]:
        return {"source": self.label, "license": self.license, "url": self.url}


class HubDataset(_WithProvenance):
    kind: Literal["hub"] = "hub"
    text_key: str = "text"
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    limit: int = -1
    streaming: bool = True

    def describe(self) -> Input:
        digest = f"{describe(self.path)['sha256']}@{self.revision or 'main'}"
        return {"path": self.path, "sha256": digest, "licenses": [self.license]}

    def reader(self, max_document_bytes: int) -> PipelineStep:
        return HubReader(
            self.path,
            dataset_options={"name": self.config, "split": self.split, "revision": self.revision},
            streaming=self.streaming,
            limit=self.limit,
            text_key=self.text_key,
            provenance=self.provenance,
        )


class _Files(_WithProvenance):
    """A source of files.

    Attributes:
        unpacked_by_parser: Endings of compressed files that `parser` unpacks itself.
    """

    storage_options: dict[str, object] = pydantic.Field(default_factory=dict)
    unpacked_by_parser: ClassVar[frozenset[str]] = frozenset()

    @property
    @abstractmethod
    def parser(self) -> Parser:
        """What takes a file apart."""

    def describe(self) -> Input:
        digest = digest_of_files(self.path, self.storage_options)
        return {"path": self.path, "sha256": digest, "licenses": [self.license]}

    def reader(self, max_document_bytes: int) -> PipelineStep:
        folder, files = find_files(self.path, self.storage_options)
        packed = UNPACK.keys() - self.unpacked_by_parser
        return FileReader(folder, files, self.parser, packed, self.provenance, max_document_bytes)


class TextFiles(_Files):
    kind: Literal["text", "gutenberg"] = "text"
    separator: str | None = None
    encoding: str | None = None

    @pydantic.field_validator("encoding")
    @classmethod
    def _check_encoding(cls, encoding: str | None) -> str | None:
        try:
            "\n".encode(encoding or "utf-8")
        except LookupError as error:
            raise ValueError(str(error)) from error
        return encoding

    @property
    def parser(self) -> Parser:
        parse = parse_book if self.kind == "gutenberg" else parse_text
        return partial(parse, separator=self.separator, encoding=self.encoding)


class JsonLines(_Files):
    kind: Literal["json-lines"] = "json-lines"
    text_key: str = "text"

    @property
    def parser(self) -> Parser:
        return partial(parse_json_lines, text_key=self.text_key)


class ParquetFiles(_Files):
    kind: Literal["parquet"] = "parquet"
    text_key: str = "text"
    unpacked_by_parser: ClassVar[frozenset[str]] = frozenset(UNPACK)

    @property
    def parser(self) -> Parser:
        return partial(parse_parquet, text_key=self.text_key)


class _Crawl(_Files):
    """Records of Common Crawl, of which a page may take so many seconds to become text."""

    timeout: float = 20.0
    # Each record of a .warc.gz is compressed by itself: its reader goes on at the next where gzip would stop.
    unpacked_by_parser: ClassVar[frozenset[str]] = frozenset({".gz"})

    @property
    def parser(self) -> Parser:
        return parse_warc

    @property
    def extraction(self) -> Extraction | None:
        return Extraction(html_to_text, self.timeout)


class Crawl(_Crawl):
    kind: Literal["warc"] = "warc"


class CrawlText(_Crawl):
    kind: Literal["wet"] = "wet"


class WikiDump(_Files):
    kind: Literal["mediawiki"] = "mediawiki"
    namespaces: list[int] = pydantic.Field(default_factory=lambda: [0])
    timeout: float = 20.0

    @property
    def parser(self) -> Parser:
        return partial(parse_dump, namespaces=self.namespaces)

    @property
    def extraction(self) -> Extraction | None:
        return Extraction(wikitext_to_text, self.timeout)
