"""Steps that must have seen all documents, or an index, before they can remove one: phases of their own, and a filter.

Each has the same three parts: `signatures` end the pipeline that writes the documents' shards, `phases` run after it,
and `filters` begin the pipeline that reads the shards again.
"""

import json
from typing import Any

from datatrove.data import Document, DocumentsPipeline
from datatrove.io import DataFolder
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import (
    ExactDedupConfig,
    ExactDedupFilter,
    ExactDedupSignature,
    ExactFindDedups,
    MinhashDedupBuckets,
)

from hfchat.data.decontamination import ContaminationFilter, build_index, check_evaluation_sets
from hfchat.data.execution import Phase, below
from hfchat.data.near_duplicates import (
    NearDuplicateClusters,
    NearDuplicateFilter,
    NearDuplicateSignatures,
    NearDuplicatesTogether,
    minhash_config,
)
from hfchat.data.shards import ClusterWriter, RemovedWriter


class ExactDedup:
    """Removes documents whose text has occurred before, byte by byte (compared by 64-bit hashes)."""

    reads_shards = True
    reason = "exact_duplicate"

    def __init__(self) -> None:
        self._config = ExactDedupConfig(content_getter=_text)

    def signatures(self, folder: DataFolder, scratch: str) -> tuple[PipelineStep, list[str]]:
        """The block that ends the pipeline of the documents, and patterns of what each task of it writes."""
        step = ExactDedupSignature(below(folder, f"{scratch}/signatures"), self._config)
        return step, [f"{scratch}/signatures/*/{{rank:05d}}.*"]

    def phases(self, folder: DataFolder, scratch: str) -> list[Phase]:
        find = ExactFindDedups(
            below(folder, f"{scratch}/signatures"), below(folder, f"{scratch}/duplicates"), self._config
        )
        return [Phase("find exact duplicates", [find], 1, (f"{scratch}/duplicates/**/*.*",))]

    def filters(
        self, folder: DataFolder, scratch: str, removed: RemovedWriter
    ) -> tuple[list[PipelineStep], list[str]]:
        """The blocks that remove documents, and patterns of what each task of them writes beside `removed`."""
        return [ExactDedupFilter(below(folder, f"{scratch}/duplicates"), self._config, removed)], []


class NearDedup:
    """Removes all but the first of documents that share most of their n-grams of words (MinHash, arXiv:2107.06499).

    Args:
        similarity: Jaccard similarity of the sets of n-grams from which two documents count as the same.
        n_grams: Words of an n-gram.
        bands: Bands of the locality-sensitive hash, and `rows` of each; by default derived from `similarity`.
    """

    reads_shards = True
    reason = "near_duplicate"

    def __init__(
        self,
        similarity: float = 0.8,
        n_grams: int = 5,
        bands: int | None = None,
        rows: int | None = None,
    ):
        self._config = minhash_config(similarity, n_grams, bands, rows)

    def signatures(self, folder: DataFolder, scratch: str) -> tuple[PipelineStep, list[str]]:
        """The block that ends the pipeline of the documents, and patterns of what each task of it writes."""
        step = NearDuplicateSignatures(below(folder, f"{scratch}/signatures"), self._config)
        return step, [f"{scratch}/signatures/*/{{rank:05d}}.minhash.sig"]

    def phases(self, folder: DataFolder, scratch: str) -> list[Phase]:
        pairs = MinhashDedupBuckets(
            below(folder, f"{scratch}/signatures"), below(folder, f"{scratch}/pairs"), config=self._config
        )
        clusters = NearDuplicateClusters(below(folder, f"{scratch}/pairs"), below(folder, f"{scratch}/clusters"))
        return [
            Phase(
                "find near duplicates", [pairs], self._config.num_buckets, (f"{scratch}/pairs/{{rank:05d}}_*.dups",)
            ),
            Phase("cluster near duplicates", [clusters], 1, (f"{scratch}/clusters/*",)),
        ]

    def filters(
        self, folder: DataFolder, scratch: str, removed: RemovedWriter
    ) -> tuple[list[PipelineStep], list[str]]:
        """The blocks that remove documents, and patterns of what each task of them writes beside `removed`."""
        remove = NearDuplicateFilter(below(folder, f"{scratch}/clusters"), exclusion_writer=removed)
        return [remove, ClusterWriter(folder)], ["clusters/{rank:05d}.parquet"]


class Together(NearDedup):
    """Removes no near-duplicates, but has the split put those of each other on one side."""

    SIMILARITY = 0.8  # from which on they are, as for `NearDedup`

    def filters(
        self, folder: DataFolder, scratch: str, removed: RemovedWriter
    ) -> tuple[list[PipelineStep], list[str]]:
        return [NearDuplicatesTogether(below(folder, f"{scratch}/clusters"))], []


class Decontamination:
    """Removes documents that share an n-gram of words with an evaluation set (arXiv:2005.14165, appendix C).

    Args:
        evaluation_sets: Mappings with `name`, `path` and optionally `split`, `config`, `revision` and `columns`.
        n_grams: Words that must agree in a row.
    """

    reads_shards = False
    reason = "contaminated"

    def __init__(self, evaluation_sets: list[dict], n_grams: int = 13):
        self._evaluation_sets, self._n_grams = check_evaluation_sets(evaluation_sets), n_grams

    def phases(self, folder: DataFolder, scratch: str) -> list[Phase]:
        index = _BuildIndex(self._evaluation_sets, below(folder, f"{scratch}/index"), self._n_grams)
        return [Phase("index evaluation sets", [index], 1, (f"{scratch}/index/*",))]

    def filters(
        self, folder: DataFolder, scratch: str, removed: RemovedWriter
    ) -> tuple[list[PipelineStep], list[str]]:
        """The blocks that remove documents, and patterns of what each task of them writes beside `removed`."""
        index = below(folder, f"{scratch}/index")
        return [ContaminationFilter(index, self._n_grams, removed)], []


class _BuildIndex(PipelineStep):
    type = "🦠 - DECONT"
    name = "📇 Index evaluation sets"

    def __init__(self, evaluation_sets: list[dict], folder: DataFolder, n_grams: int):
        super().__init__()
        self.evaluation_sets, self.folder, self.n_grams = evaluation_sets, folder, n_grams

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:
        found: dict[str, Any] = build_index(self.evaluation_sets, self.folder, self.n_grams)
        with self.folder.open("evaluation_sets.json", "w") as file:
            json.dump(found, file)


def _text(document: Document) -> bytes:
    return document.text.encode()
