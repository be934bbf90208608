"""Where documents come from: one entry of `sources` in the YAML is one source."""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from datatrove.io import DataFolder
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.writers.disk_base import DiskWriter

from hfchat.data.books import parse_book
from hfchat.data.extraction import Extraction
from hfchat.data.files import UNPACK, digest_of_files, find_files
from hfchat.data.installed_docs import InstalledDocsReader, describe_installation
from hfchat.data.mediawiki import parse_dump, wikitext_to_text
from hfchat.data.readers import FileReader, HubReader, SourceStep, parse_json_lines, parse_parquet, parse_text
from hfchat.data.web import html_to_text, parse_warc
from hfchat.lineage import describe

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
_FILE_KEYS = {"path", "kind", "license", "url", "name", "storage_options"}
_KEYS = {
    INSTALLED_DOCS: {"path", "kind", "max_bytes_per_package"},
    "text": _FILE_KEYS | {"separator", "encoding"},
    "gutenberg": _FILE_KEYS | {"separator", "encoding"},
    "json-lines": _FILE_KEYS | {"text_key"},
    "parquet": _FILE_KEYS | {"text_key"},
    "warc": _FILE_KEYS | {"timeout"},
    "wet": _FILE_KEYS | {"timeout"},
    "mediawiki": _FILE_KEYS | {"namespaces", "timeout"},
    "hub": {"path", "kind", "license", "url", "name"}
    | {"text_key", "config", "split", "revision", "limit", "streaming"},
}
_TYPES = {
    "storage_options": dict,
    "namespaces": list,
    "timeout": (int, float),
    "limit": int,
    "max_bytes_per_package": int,
    "streaming": bool,
}


class Source(dict):
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

    Raises:
        ValueError: For a kind that there is not, or a key that it does not take.
    """

    def __init__(self, value: dict[str, Any] | str):
        value = json.loads(value) if isinstance(value, str) else value
        if not isinstance(value, dict) or not isinstance(value.get("path"), str):
            raise ValueError("each of sources must be a mapping with a 'path'")
        super().__init__(value)
        if "kind" not in self and self.kind == "hub" and not _may_be_dataset(self["path"]):
            kinds = ", ".join(_KEYS)
            raise ValueError(f"source {self['path']}: its name does not say what it is; give a 'kind': one of {kinds}")
        if self.kind not in _KEYS:
            raise ValueError(f"source {self['path']}: kind must be one of {', '.join(_KEYS)}, not {self.kind!r}")
        unknown = self.keys() - _KEYS[self.kind]
        if unknown:
            known = ", ".join(sorted(_KEYS[self.kind]))
            raise ValueError(f"source {self['path']}: unknown key '{min(unknown)}'; {self.kind} takes {known}")
        for key, item in self.items():
            expected = _TYPES.get(key, str)
            if not isinstance(item, expected):
                name = "number" if isinstance(expected, tuple) else expected.__name__
                raise ValueError(f"source {self['path']}: '{key}' must be a {name}, not {item!r}")
        self._check_encoding()
        if not all(isinstance(namespace, int) for namespace in self.get("namespaces", [])):
            raise ValueError(f"source {self['path']}: 'namespaces' must be numbers, not {self['namespaces']!r}")

    def _check_encoding(self) -> None:
        try:
            "\n".encode(self.get("encoding", "utf-8"))
        except LookupError as error:
            raise ValueError(f"source {self['path']}: 'encoding': {error}") from error

    @property
    def kind(self) -> str:
        if "kind" in self:
            return self["kind"]
        name = self["path"]
        if name == INSTALLED_DOCS:
            return INSTALLED_DOCS
        name = name.lower()
        for suffix in UNPACK:
            name = name.removesuffix(suffix)
        return _SUFFIXES.get(name[name.rfind(".") :], "hub")

    @property
    def name(self) -> str:
        return self.get("name", self["path"])

    def describe(self) -> dict[str, Any]:
        """The source as an input of the stage: `{"path", "sha256", "licenses"}`.

        Local files count by their content, remote ones by what the storage says of them (ETag, size, time).

        Raises:
            UserError: If it names files and there are none.
        """
        if self.kind == INSTALLED_DOCS:
            return describe_installation()
        if self.kind == "hub":
            found = describe(self["path"])
            found["sha256"] += f"@{self.get('revision', 'main')}"
        else:
            found = {"path": self["path"], "sha256": digest_of_files(self["path"], self.get("storage_options", {}))}
        found["licenses"] = [self.get("license", "unknown")]
        return found

    def step(
        self, removed_writer: Callable[[], DiskWriter], strict: bool = False, max_document_bytes: int = 50_000_000
    ) -> SourceStep:
        """The block that adds the source's documents to a pipeline; each has `source`, `license` and `url`.

        Args:
            removed_writer: Makes a writer of what is no document.
            strict: Raise for what cannot be read.
            max_document_bytes: Larger documents are none.

        Raises:
            UserError: If it names files and there are none.
        """
        extraction = {"warc": html_to_text, "wet": html_to_text, "mediawiki": wikitext_to_text}.get(self.kind)
        return SourceStep(
            self._reader(max_document_bytes),
            extraction and Extraction(extraction, self.get("timeout", 20.0)),
            removed_writer,
            strict,
            max_document_bytes,
        )

    def _reader(self, max_document_bytes: int) -> PipelineStep:
        provenance = {
            "source": self.name,
            "license": self.get("license", "unknown"),
            "url": self.get("url", ""),
        }
        if self.kind == INSTALLED_DOCS:
            return InstalledDocsReader(max_bytes_per_package=self.get("max_bytes_per_package", 1_000_000))
        if self.kind == "hub":
            options = {"name": self.get("config"), "split": self.get("split", "train")}
            return HubReader(
                self["path"],
                dataset_options={**options, "revision": self.get("revision")},
                streaming=self.get("streaming", True),
                limit=self.get("limit", -1),
                text_key=self.get("text_key", "text"),
                provenance=provenance,
            )
        text_options = {"separator": self.get("separator"), "encoding": self.get("encoding")}
        row_options = {"text_key": self.get("text_key", "text")}
        parse = {
            "text": partial(parse_text, **text_options),
            "gutenberg": partial(parse_book, **text_options),
            "json-lines": partial(parse_json_lines, **row_options),
            "parquet": partial(parse_parquet, **row_options),
            "warc": parse_warc,
            "wet": parse_warc,
            "mediawiki": partial(parse_dump, namespaces=self.get("namespaces", [0])),
        }[self.kind]
        folder, files = self._files()
        # Each record of a .warc.gz is compressed by itself: its reader goes on at the next where gzip would stop.
        unpacked_by_parse = {"parquet": set(UNPACK), "warc": {".gz"}, "wet": {".gz"}}.get(self.kind, set())
        return FileReader(folder, files, parse, UNPACK.keys() - unpacked_by_parse, provenance, max_document_bytes)

    def _files(self) -> tuple[DataFolder, list[str]]:
        return find_files(self["path"], self.get("storage_options", {}))


def _may_be_dataset(path: str) -> bool:
    """Whether it is a folder, or can be the id of a Hub dataset."""
    return Path(path).is_dir() or bool(re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path))
