"""Keep evaluation sets out of a corpus: documents that share a run of words with one are removed.

The rule is that of GPT-3 (arXiv:2005.14165, appendix C). datatrove's `NGramsDecontFilter` (read in 0.10.1) needs an
index of the tasks of lighteval, and no other set can be kept out; its words come from spaCy, which takes ten times as
long; and it does not say which set a document was removed for.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import pydantic
from datatrove.data import Document
from datatrove.io import DataFolderLike, get_datafolder
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.writers.disk_base import DiskWriter

from hfchat.data.removal import Removal
from hfchat.data.words import hashed
from hfchat.dataset_files import readable, suffix_of
from hfchat.entries import Entry
from hfchat.errors import UserError
from hfchat.storage import as_path, is_remote
from hfchat.words import runs, words

_BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}


class EvaluationSet(Entry):
    """An evaluation set to keep out of a corpus.

    `path` is a local or remote `.jsonl`, `.json`, `.csv`, `.parquet` or `.txt`, also compressed, or a dataset's folder
    or Hub id. Every text in a row counts, in lists and mappings too, unless `columns` are given.
    """

    name: str
    path: str
    split: str = "test"
    config: str | None = None
    revision: str | None = None
    columns: list[str] | None = None

    @classmethod
    def title(cls, fields: Mapping[str, object]) -> str:
        return f"evaluation_sets: {fields['name']}" if "name" in fields else "each of evaluation_sets"

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if "/" in self.name:
            raise ValueError(f"'{self.name}' must be a name of its own, without '/'")
        path = as_path(self.path)
        if _builder(self.path) and not is_remote(path) and not path.exists():
            raise ValueError(f"{path}: no such file")
        return self


def check_evaluation_sets(entries: Sequence[object]) -> list[EvaluationSet]:
    """The sets of entries.

    Raises:
        ValueError: For an entry that is not valid, or whose name another has.
    """
    evaluation_sets = [EvaluationSet.parse(entry) for entry in entries]
    for name, count in Counter(entry.name for entry in evaluation_sets).items():
        if count > 1:
            raise ValueError(f"evaluation_sets: '{name}' must be a name of its own, without '/'")
    return evaluation_sets


def build_index(
    evaluation_sets: Sequence[EvaluationSet], folder: DataFolderLike, n_grams: int = 13
) -> dict[str, dict[str, int]]:
    """Write the n-grams of evaluation sets, `<name>.npy` each: sorted 64-bit hashes.

    Args:
        evaluation_sets: What to look for.
        folder: Where to write.
        n_grams: Words of an n-gram, or two or three times as many letters of a script without spaces, see
            `hfchat.words.runs`.

    Returns:
        For each set: `rows`, `n_grams` (distinct), and `too_short`, the rows that have no n-gram and cannot be found.

    Raises:
        UserError: If a set cannot be loaded, lacks a column, or has no n-gram at all.
    """
    folder = get_datafolder(folder)
    counts = {}
    for entry in evaluation_sets:
        hashes: set[int] = set()
        rows = too_short = 0
        for row in _rows(entry):
            row_hashes: set[int] = set()
            for row_words in map(words, _texts(row)):
                row_hashes |= {hashed(row_words[start:end]) for start, end in runs(row_words, n_grams)}
            hashes |= row_hashes
            rows += 1
            too_short += not row_hashes
        # A set of which nothing can be found would be "kept out" of every corpus.
        if not hashes:
            raise UserError(f"evaluation_sets: {entry.name}: none of its {rows} rows has {n_grams} words in a row")
        with folder.open(f"{entry.name}.npy", "wb") as file:
            np.save(file, np.array(sorted(hashes), dtype=np.uint64))
        counts[entry.name] = {"rows": rows, "n_grams": len(hashes), "too_short": too_short}
    return counts


class ContaminationFilter(BaseFilter):
    """Removes a document that shares an n-gram of words with an evaluation set.

    Args:
        folder: What `build_index` wrote.
        n_grams: Words of an n-gram of the index.
        exclusion_writer: Gets the removed documents. The detail is the set and the first n-gram that the document
            shares with it, the score the share of the document's n-grams that are in any set.
    """

    name = "🦠 Contamination"

    def __init__(self, folder: DataFolderLike, n_grams: int = 13, exclusion_writer: DiskWriter | None = None):
        super().__init__(exclusion_writer)
        self.folder, self.n_grams = get_datafolder(folder), n_grams
        self._index: dict[str, np.ndarray] | None = None

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        if self._index is None:
            self._index = {file.removesuffix(".npy"): self._load(file) for file in self.folder.glob("*.npy")}
        text_words = words(doc.text)
        spans = list(runs(text_words, self.n_grams))
        hashes = np.fromiter((hashed(text_words[start:end]) for start, end in spans), dtype=np.uint64)
        hits = {name: _among(hashes, index) for name, index in self._index.items() if len(hashes)}
        name = max(hits, key=lambda name: hits[name].sum(), default=None)
        if name is None or not hits[name].any():
            return True
        start, end = spans[int(hits[name].argmax())]
        score = float(np.logical_or.reduce(list(hits.values())).mean())
        return Removal("contaminated", score, f"{name}: {' '.join(text_words[start:end])}").note(doc)

    def _load(self, file: str) -> np.ndarray:
        with self.folder.open(file, "rb") as stream:
            return np.load(stream)


def _among(hashes: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Which of the hashes are in a sorted index. numpy's `isin` would sort the index anew for every document."""
    places = np.minimum(np.searchsorted(index, hashes), len(index) - 1)
    return index[places] == hashes


def _builder(path: str) -> str | None:
    return _BUILDERS.get(suffix_of(Path(path)))


def _rows(entry: EvaluationSet) -> Iterator[dict[str, object]]:
    from datasets import load_dataset

    columns, local = entry.columns, Path(entry.path)
    try:
        path = str(readable(local)) if local.exists() else entry.path
        if builder := _builder(path):
            dataset = load_dataset(builder, data_files=path, split="train", streaming=True)
        else:
            dataset = load_dataset(path, entry.config, split=entry.split, revision=entry.revision, streaming=True)
        for row in dataset:
            if missing := set(columns or ()) - row.keys():
                have = ", ".join(row)
                raise UserError(f"evaluation_sets: {entry.name}: no column '{min(missing)}', only {have}")
            yield {name: row[name] for name in columns or row}
    except UserError:
        raise
    except Exception as error:  # the errors of the builders have no common base
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"evaluation_sets: {entry.name}: cannot load {entry.path}: {reason}") from error


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
