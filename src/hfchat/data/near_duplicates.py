"""Near-duplicates by MinHash and locality-sensitive hashing (Broder 1997; Leskovec et al., Mining of Massive Datasets,
ch. 3): datatrove's signatures and search for pairs, with clusters of which the first document is kept."""

import json
import math
from collections import Counter
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from datatrove.data import Document, DocumentsPipeline
from datatrove.io import DataFolderLike, get_datafolder
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import MinhashConfig, MinhashDedupSignature
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.writers.disk_base import DiskWriter
from datatrove.utils.binaryio import read_tuples_from_file

from hfchat.data.removal import Removal
from hfchat.data.words import hashed_n_grams

# Of the pairs whose similarity is just the one asked for, the share that is found.
RECALL = 0.97
MAX_HASHES = 160
_SHINGLES_AT_A_TIME = 4096
_NUMBERS = ("document", "cluster", "size", "first_file", "first")
_CLUSTERS = np.dtype([*((name, "<u4") for name in _NUMBERS), ("removed", "?")])


def detection_probability(similarity: float, bands: int, rows: int) -> float:
    """Of finding a pair of documents with this Jaccard similarity: `1 - (1 - s^rows)^bands`, ibid. section 3.4.2."""
    return 1 - (1 - similarity**rows) ** bands


def minhash_config(
    similarity: float = 0.8, n_grams: int = 5, bands: int | None = None, rows: int | None = None
) -> MinhashConfig:
    """The number of bands and the rows of each for a similarity: the most rows, and so the fewest pairs below it, with
    which `RECALL` of the pairs are found by no more than `MAX_HASHES` hashes. (datatrove's 14 x 8 find 92% at 0.8.)

    Args:
        similarity: Jaccard similarity of the sets of n-grams.
        n_grams: Words of an n-gram.
        bands: Given with `rows`, they are taken as they are.
        rows: Hashes of a band.

    Raises:
        ValueError: If a value makes no sense.
    """
    if not 0 < similarity < 1 or n_grams < 1:
        raise ValueError(
            f"near_dedup: similarity must be between 0 and 1, n_grams at least 1: {similarity}, {n_grams}"
        )
    if (bands is None) != (rows is None) or (bands is not None and min(bands, rows) < 1):
        raise ValueError("near_dedup: give both bands and rows, at least 1 each, or neither")
    if bands is None:
        choices = []
        for rows in range(1, MAX_HASHES + 1):
            needed = math.log(1 - RECALL) / math.log1p(-(similarity**rows)) if similarity**rows > 1e-9 else math.inf
            if math.ceil(min(needed, MAX_HASHES + 1)) * rows <= MAX_HASHES:
                choices.append((rows, math.ceil(needed)))
        if not choices:
            raise ValueError(f"near_dedup: a similarity of {similarity} needs more than {MAX_HASHES} hashes: raise it")
        rows, bands = max(choices)
    return MinhashConfig(n_grams=n_grams, num_buckets=bands, hashes_per_bucket=rows)


class NearDuplicateSignatures(MinhashDedupSignature):
    """Writes signatures of documents, by n-grams of `hfchat.data.words`; a book takes as little memory as a page."""

    def __init__(self, output_folder: DataFolderLike, config: MinhashConfig):
        # The base class makes a tokenizer for words, which is not used.
        super().__init__(output_folder, config)

    def get_shingles(self, text: str) -> np.ndarray:
        shingles = np.fromiter(hashed_n_grams(text, self.config.n_grams), dtype=np.uint64)
        return np.unique(shingles).reshape(-1, 1)

    def get_signature(self, shingles: np.ndarray) -> list[list[int]]:
        parts = range(0, len(shingles), _SHINGLES_AT_A_TIME)
        signature_of = super().get_signature
        signatures = [np.array(signature_of(shingles[i : i + _SHINGLES_AT_A_TIME]), np.uint64) for i in parts]
        return np.minimum.reduce(signatures).tolist()


class NearDuplicateClusters(PipelineStep):
    """Joins pairs of documents to clusters, and says of each document of one whether it is removed: all but the first.

    Args:
        input_folder: Of the pairs, files `*.dups` of datatrove.
        output_folder: Gets a file per task, `NNNNN.clusters`. Memory grows with the number of near-duplicates.
        documents: Folder of the documents' shards. If it is given, `sizes.json` says how many documents there are, and
            how many clusters of each size.
    """

    type = "🫂 - DEDUP"
    name = "🎯 Clusters of near-duplicates"

    def __init__(
        self, input_folder: DataFolderLike, output_folder: DataFolderLike, documents: DataFolderLike | None = None
    ):
        super().__init__()
        self.input_folder, self.output_folder = get_datafolder(input_folder), get_datafolder(output_folder)
        self.documents = None if documents is None else get_datafolder(documents)

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:
        first: dict[tuple[int, int], tuple[int, int]] = {}  # a document to an earlier one of its cluster, or itself

        def root(document: tuple[int, int]) -> tuple[int, int]:
            path = []
            while (parent := first.setdefault(document, document)) != document:
                path.append(document)
                document = parent
            for passed in path:
                first[passed] = document
            return document

        for file in self.input_folder.list_files(glob_pattern="*.dups"):
            with self.input_folder.open(file, "rb") as stream:
                for file1, document1, file2, document2 in read_tuples_from_file(stream, "4I", lines_to_buffer=1000):
                    a, b = root((file1, document1)), root((file2, document2))
                    first[max(a, b)] = min(a, b)
        members: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for document in sorted(first):
            members.setdefault(root(document), []).append(document)
        rows: dict[int, list[tuple[int, int, int, int, int, bool]]] = {}
        for cluster, (kept, documents) in enumerate(sorted(members.items())):
            for file, document in documents:
                rows.setdefault(file, []).append((document, cluster, len(documents), *kept, (file, document) != kept))
        self.stat_update("clusters", value=len(members))
        if self.documents:
            self._write_sizes(Counter(map(len, members.values())))
        for file, entries in rows.items():
            with self.output_folder.open(f"{file:05d}.clusters", "wb") as stream:
                stream.write(np.array(sorted(entries), dtype=_CLUSTERS).tobytes())

    def _write_sizes(self, sizes: Counter[int]) -> None:
        documents = 0
        for file in self.documents.list_files(glob_pattern="*.parquet"):
            with self.documents.open(file, "rb") as stream:
                documents += pq.read_metadata(stream).num_rows
        with self.output_folder.open("sizes.json", "w") as stream:
            json.dump({"documents": documents, "sizes": sizes}, stream)


class NearDuplicateFilter(BaseFilter):
    """Removes what `NearDuplicateClusters` says; documents kept of a cluster get `cluster` and `cluster_size`.

    Args:
        folder: What `NearDuplicateClusters` wrote.
        exclusion_writer: Gets the removed ones, with the number of their cluster as the detail.
    """

    name = "🎯 Near-duplicates"

    def __init__(self, folder: DataFolderLike, exclusion_writer: DiskWriter | None = None):
        super().__init__(exclusion_writer)
        self.folder = get_datafolder(folder)
        self._entries: dict[int, Any] = {}
        self._position = -1

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        file = f"{rank:05d}.clusters"
        content = self.folder.cat_file(file) if self.folder.isfile(file) else b""
        self._entries = {int(entry["document"]): entry for entry in np.frombuffer(content, dtype=_CLUSTERS)}
        self._position = -1
        yield from super().run(data, rank, world_size)

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        self._position += 1
        entry = self._entries.get(self._position)
        if entry is None:
            return True
        if entry["removed"]:
            return Removal("near_duplicate", detail=str(entry["cluster"])).note(doc)
        doc.metadata["cluster"], doc.metadata["cluster_size"] = int(entry["cluster"]), int(entry["size"])
        return True


class NearDuplicatesTogether(NearDuplicateFilter):
    """Removes nothing: has `SplitByHash` put documents that are near-duplicates of each other on one side.

    A cluster that is larger than the validation split is for training; but where such clusters are most of the corpus,
    their documents go by their own text, since nothing else would be left to validate on.

    Args:
        folder: What `NearDuplicateClusters` wrote, with `sizes.json`.
        validation_fraction: Share of documents in the validation split.
    """

    name = "👯 Near-duplicates, to be on one side"

    def __init__(self, folder: DataFolderLike, validation_fraction: float):
        super().__init__(folder)
        self.validation_fraction = validation_fraction
        self._largest, self._large_ones_train = 0.0, True

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        with self.folder.open("sizes.json", "r") as stream:
            found = json.load(stream)
        self._largest = max(self.validation_fraction * found["documents"], 2)
        in_large_ones = sum(int(size) * count for size, count in found["sizes"].items() if int(size) > self._largest)
        self._large_ones_train = 2 * in_large_ones < found["documents"]
        yield from super().run(data, rank, world_size)

    def filter(self, doc: Document) -> bool:
        self._position += 1
        entry = self._entries.get(self._position)
        if entry is None:
            return True
        if entry["size"] <= self._largest:
            doc.metadata["split_key"] = f"{entry['first_file']}/{entry['first']}"
        elif self._large_ones_train:
            doc.metadata["split"] = "train"
        return True
