"""Near-duplicates by MinHash and locality-sensitive hashing (Broder 1997; Leskovec et al., Mining of Massive Datasets,
ch. 3): datatrove's signatures and search for pairs, with clusters of which the first document is kept."""

import json
import math
from collections import Counter
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from datatrove.data import Document, DocumentsPipeline
from datatrove.io import DataFolder, DataFolderLike, get_datafolder
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import MinhashConfig, MinhashDedupSignature
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.writers.disk_base import DiskWriter

from hfchat.data.removal import Removal
from hfchat.data.words import hashed_n_grams

# The share that is found of the pairs whose similarity is exactly the one asked for.
RECALL = 0.97
MAX_HASHES = 160
_SHINGLES_AT_A_TIME = 4096
_PLACE = (1 << 32) - 1
_NUMBERS = ("document", "cluster", "size", "first_file", "first")
_CLUSTERS = np.dtype([*((name, "<u4") for name in _NUMBERS), ("removed", "?")])


def detection_probability(similarity: float, bands: int, rows: int) -> float:
    """Probability that a pair with this Jaccard similarity is found: `1 - (1 - s^rows)^bands`, ibid. section 3.4.2."""
    return 1 - (1 - similarity**rows) ** bands


def minhash_config(
    similarity: float = 0.8, n_grams: int = 5, bands: int | None = None, rows: int | None = None
) -> MinhashConfig:
    """The number of bands and the rows of each for a similarity.

    The most rows, and so the fewest pairs below the similarity, with which `RECALL` of the pairs are found by no more
    than `MAX_HASHES` hashes. (datatrove's 14 x 8 find 92% at 0.8.)

    Args:
        similarity: Jaccard similarity of the sets of n-grams.
        n_grams: Words of an n-gram.
        bands: Given with `rows`, they are taken as they are.
        rows: Hashes of a band.

    Raises:
        ValueError: If a value makes no sense.
    """
    if not 0 < similarity < 1:
        raise ValueError(f"near_dedup: similarity must be between 0 and 1, not {similarity}")
    if n_grams < 1:
        raise ValueError(f"near_dedup: n_grams must be at least 1, not {n_grams}")
    if bands is None and rows is None:
        bands, rows = _bands_and_rows(similarity)
    if bands is None or rows is None or min(bands, rows) < 1:
        raise ValueError("near_dedup: give both bands and rows, at least 1 each, or neither")
    return MinhashConfig(n_grams=n_grams, num_buckets=bands, hashes_per_bucket=rows)


def _bands_and_rows(similarity: float) -> tuple[int, int]:
    for rows in range(MAX_HASHES, 0, -1):
        # `detection_probability`, solved for the bands; a probability of 1e-9 needs more hashes than anyone has.
        if similarity**rows > 1e-9:
            bands = math.ceil(math.log(1 - RECALL) / math.log1p(-(similarity**rows)))
            if bands * rows <= MAX_HASHES:
                return bands, rows
    raise ValueError(f"near_dedup: a similarity of {similarity} needs more than {MAX_HASHES} hashes: raise it")


class NearDuplicateSignatures(MinhashDedupSignature):
    """Writes signatures of documents, by n-grams of `hfchat.data.words`.

    datatrove's words come from spaCy: its signatures take nine times as long (`benchmarks/dedup.py`: 0.3 MB/s, and 2.6
    with ours, which has more hashes). It also holds all hashes of a document at once, 1,280 bytes for each word.
    """

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

    datatrove's (`MinhashDedupCluster`, read in 0.10.1) keeps any document of a cluster, and does not say which.

    Args:
        input_folder: The pairs, files `*.dups` of datatrove.
        output_folder: Gets a file per task, `NNNNN.clusters`. Memory grows with the number of near-duplicates.
        documents: The documents' shards. If it is given, `sizes.json` says how many documents there are, and how many
            clusters of each size.
    """

    type = "🫂 - DEDUP"
    name = "🎯 Clusters of near-duplicates"

    def __init__(
        self, input_folder: DataFolderLike, output_folder: DataFolderLike, documents: DataFolder | None = None
    ):
        super().__init__()
        self.input_folder, self.output_folder = get_datafolder(input_folder), get_datafolder(output_folder)
        self.documents = documents

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        # Each document is one number: its file, which is a task's, in the upper half, its place in the lower.
        files = sorted(self.input_folder.list_files(glob_pattern="*.dups"))
        contents = b"".join(map(self.input_folder.cat_file, files))
        numbers = np.frombuffer(contents, "<u4").astype(np.uint64).reshape(-1, 2)
        documents, places = np.unique(numbers[:, 0] << 32 | numbers[:, 1], return_inverse=True)
        ends = places.reshape(-1, 2).T
        graph = coo_array((np.ones(len(ends.T), bool), ends), shape=(len(documents), len(documents)))
        _, labels = connected_components(graph, directed=False)

        # Clusters are numbered in the order of their first documents, which are those that are kept.
        _, first, cluster, sizes = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
        kept = documents[first[cluster]]
        rows = np.empty(len(documents), _CLUSTERS)
        rows["document"], rows["removed"] = documents & _PLACE, documents != kept
        rows["cluster"], rows["size"] = first.argsort().argsort()[cluster], sizes[cluster]
        rows["first_file"], rows["first"] = kept >> 32, kept & _PLACE
        for file in np.unique(documents >> 32):
            with self.output_folder.open(f"{file:05d}.clusters", "wb") as stream:
                stream.write(rows[documents >> 32 == file].tobytes())
        self.stat_update("clusters", value=len(sizes))
        if self.documents is not None:
            self._write_sizes(self.documents, Counter(sizes.tolist()))

    def _write_sizes(self, shards: DataFolder, sizes: Counter[int]) -> None:
        documents = 0
        for file in shards.list_files(glob_pattern="*.parquet"):
            with shards.open(file, "rb") as stream:
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
            corpus = json.load(stream)
        self._largest = max(self.validation_fraction * corpus["documents"], 2)
        in_large_ones = sum(int(size) * count for size, count in corpus["sizes"].items() if int(size) > self._largest)
        self._large_ones_train = 2 * in_large_ones < corpus["documents"]
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
