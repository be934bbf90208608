"""Where documents come from: one entry of `sources` in the YAML is one datatrove reader."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.readers import HuggingFaceDatasetReader, JsonlReader, ParquetReader
from datatrove.pipeline.readers.base import BaseDiskReader, BaseReader

from hfchat.data.installed_docs import InstalledDocsReader, describe_installation
from hfchat.errors import UserError
from hfchat.lineage import describe

INSTALLED_DOCS = "installed-docs"
_FILE_KEYS = {"path", "license", "url", "name"}
_KEYS = {
    INSTALLED_DOCS: {"path", "max_bytes_per_package"},
    ".txt": _FILE_KEYS | {"separator"},
    ".md": _FILE_KEYS | {"separator"},
    ".jsonl": _FILE_KEYS | {"text_key"},
    ".jsonl.gz": _FILE_KEYS | {"text_key"},
    ".parquet": _FILE_KEYS | {"text_key"},
    "hub": _FILE_KEYS | {"text_key", "config", "split", "revision", "limit"},
}


class Source(dict):
    """One source of documents.

    Keys: `path` is `installed-docs`, a local file or glob (`.txt`, `.md`, `.jsonl`, `.jsonl.gz`, `.parquet`), or
    the id of a Hub dataset. `license`, `url` and `name` become each document's provenance. Text files take
    `separator` (each file is one document without it), the others `text_key`, Hub datasets also `config`, `split`,
    `revision` and `limit` (documents), `installed-docs` takes `max_bytes_per_package` (bytes).

    Raises:
        ValueError: For a key that the kind of source does not take.
    """

    def __init__(self, value: dict[str, Any] | str):
        value = json.loads(value) if isinstance(value, str) else value
        if not isinstance(value, dict) or not isinstance(value.get("path"), str):
            raise ValueError("each of sources must be a mapping with a 'path'")
        super().__init__(value)
        unknown = self.keys() - _KEYS[self.kind]
        if unknown:
            known = ", ".join(sorted(_KEYS[self.kind]))
            raise ValueError(f"source {self['path']}: unknown key '{min(unknown)}'; it takes {known}")

    @property
    def kind(self) -> str:
        if self["path"] == INSTALLED_DOCS:
            return INSTALLED_DOCS
        suffix = next((suffix for suffix in _KEYS if suffix.startswith(".") and self["path"].endswith(suffix)), None)
        return suffix or "hub"

    def describe(self) -> dict[str, Any]:
        """The source as an input of the stage: `{"path", "sha256", "licenses"}`.

        Raises:
            UserError: If it names local files and there are none.
        """
        if self.kind == INSTALLED_DOCS:
            return describe_installation()
        if self.kind == "hub":
            found = describe(self["path"])
            found["sha256"] += f"@{self.get('revision', 'main')}"
        else:
            files = self._files()
            digests = {str(file): describe(file)["sha256"] for file in files}
            found = {"path": self["path"], "sha256": json.dumps(sorted(digests.values()))}
        found["licenses"] = [self.get("license", "unknown")]
        return found

    def reader(self) -> BaseReader:
        """The datatrove reader of the source; every document has `source`, `license` and `url` in its metadata."""
        if self.kind == INSTALLED_DOCS:
            return InstalledDocsReader(max_bytes_per_package=self.get("max_bytes_per_package", 1_000_000))
        provenance = {
            "source": self.get("name", self["path"]),
            "license": self.get("license", "unknown"),
            "url": self.get("url", ""),
        }
        if self.kind == "hub":
            options = {"name": self.get("config"), "split": self.get("split", "train")}
            return HuggingFaceDatasetReader(
                self["path"],
                dataset_options={**options, "revision": self.get("revision")},
                streaming=True,
                limit=self.get("limit", -1),
                text_key=self.get("text_key", "text"),
                default_metadata=provenance,
            )
        folder, pattern = self._folder_and_pattern()
        common = {"glob_pattern": pattern, "default_metadata": provenance, "add_file_path": False}
        if self.kind in (".txt", ".md"):
            return TextReader(folder, separator=self.get("separator"), **common)
        if self.kind == ".parquet":
            del common["add_file_path"]
            return ParquetReader(folder, text_key=self.get("text_key", "text"), **common)
        return JsonlReader(folder, text_key=self.get("text_key", "text"), **common)

    def _folder_and_pattern(self) -> tuple[str, str]:
        """Split the path into a folder and a glob below it."""
        parts = Path(self["path"]).parts
        fixed = next((i for i, part in enumerate(parts) if any(c in part for c in "*?[")), len(parts) - 1)
        return str(Path(*parts[:fixed])), str(Path(*parts[fixed:]))

    def _files(self) -> list[Path]:
        folder, pattern = self._folder_and_pattern()
        files = sorted(path for path in Path(folder).glob(pattern) if path.is_file())
        if not files:
            raise UserError(f"sources: {self['path']}: no such file")
        return files


class TextReader(BaseDiskReader):
    """Reads plain text files.

    Args:
        separator: The text between two documents of a file; without it each file is one document.
    """

    name = "📝 Text"

    def __init__(self, data_folder: str, separator: str | None = None, **kwargs: Any):
        super().__init__(data_folder, **kwargs)
        self.separator = separator

    def read_file(self, filepath: str) -> Iterator[Document]:
        with self.data_folder.open(filepath, "rt", encoding="utf-8") as file:
            text = file.read()
        for index, part in enumerate(text.split(self.separator) if self.separator else [text]):
            document = self.get_document_from_dict({"text": part}, filepath, index)
            if document:
                yield document
