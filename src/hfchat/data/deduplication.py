"""Steps that must have seen all documents, or an index, before they can remove one.

`piece` of each says what it adds to the plan of the corpus.
"""

import dataclasses
import itertools
import json
from collections.abc import Sequence

from datatrove.data import Document, DocumentsPipeline
from datatrove.io import DataFolder
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import (
    ExactDedupConfig,
    ExactDedupFilter,
    ExactDedupSignature,
    ExactFindDedups,
    MinhashConfig,
    MinhashDedupBuckets,
)

from hfchat.data.decontamination import ContaminationFilter, EvaluationSet, build_index, check_evaluation_sets
from hfchat.data.execution import Phase
from hfchat.data.near_duplicates import (
    NearDuplicateClusters,
    NearDuplicateFilter,
    NearDuplicateSignatures,
    NearDuplicatesTogether,
    minhash_config,
)
from hfchat.data.pieces import Barrier, Blocks, Piece, Place
from hfchat.data.shards import ClusterWriter


class ExactDedup:
    """Removes documents whose text has occurred before, byte by byte (compared by 64-bit hashes)."""

    def piece(self, place: Place) -> Piece:
        config = ExactDedupConfig(content_getter=_text)
        signatures, duplicates = place.scratch("signatures"), place.scratch("duplicates")
        remove = ExactDedupFilter(duplicates, config, place.removed("exact_duplicate"))
        find = ExactFindDedups(signatures, duplicates, config)
        barrier = Barrier(
            place,
            "deduplicate",
            Blocks([ExactDedupSignature(signatures, config)], [place.pattern("signatures/*/{rank:05d}.*")]),
            [Phase("find exact duplicates", [find], 1, (place.pattern("duplicates/**/*.*"),))],
        )
        return Piece(Blocks([remove], [place.removed_files]), barrier)


class NearDedup:
    """Removes all but the first of documents that share most of their n-grams of words (MinHash, arXiv:2107.06499).

    Args:
        similarity: Jaccard similarity of the sets of n-grams from which two documents count as the same.
        n_grams: Words of an n-gram.
        bands: Bands of the locality-sensitive hash, and `rows` of each; by default derived from `similarity`.
    """

    def __init__(
        self,
        similarity: float = 0.8,
        n_grams: int = 5,
        bands: int | None = None,
        rows: int | None = None,
    ):
        self._config = minhash_config(similarity, n_grams, bands, rows)

    def piece(self, place: Place) -> Piece:
        remove = NearDuplicateFilter(place.scratch("clusters"), exclusion_writer=place.removed())
        kept = ClusterWriter(place.folder)
        inline = Blocks([remove, kept], [place.removed_files, "clusters/{rank:05d}.parquet"])
        return Piece(inline, _near_duplicates("deduplicate", place, self._config))


class Together:
    """Removes no near-duplicates, but has the split put those of each other on one side.

    Args:
        folder: The corpus.
        validation_fraction: Share of documents in the validation split.
    """

    SIMILARITY = 0.8  # from which on they are, as for `NearDedup`

    def __init__(self, folder: DataFolder, validation_fraction: float):
        self._folder, self._validation_fraction = folder, validation_fraction

    def add_to(self, pieces: Sequence[Piece]) -> list[Piece]:
        """Look for near-duplicates where documents wait for all others anyway, or else at the end of the pieces."""
        place = Place(self._folder, "99", "together")
        inline = Blocks([NearDuplicatesTogether(place.scratch("clusters"), self._validation_fraction)])
        for number, piece in reversed(list(enumerate(pieces))):
            if theirs := piece.barrier:
                barrier = _joined(theirs, self._barrier(place, theirs.documents))
                return [*pieces[:number], Piece(inline + piece.inline, barrier, piece.before), *pieces[number + 1 :]]
        return [*pieces, Piece(inline, self._barrier(place, place.scratch("documents")))]

    def _barrier(self, place: Place, documents: DataFolder) -> Barrier:
        return _near_duplicates("keep together", place, minhash_config(self.SIMILARITY), documents)


def _joined(barrier: Barrier, other: Barrier) -> Barrier:
    """A barrier at which the phases of another are run, too, on the same shards.

    They become one block of the last phase, which has a single task: the search is quick, and phases start slowly.
    """
    *phases, last = barrier.phases
    patterns = itertools.chain.from_iterable(phase.outputs for phase in other.phases)
    last = dataclasses.replace(
        last,
        pipeline=[*last.pipeline, _InTurn(other.phases)],
        outputs=(*last.outputs, *(pattern.replace("{rank:05d}", "*") for pattern in patterns)),
    )
    signatures = barrier.signatures + barrier.begin + other.signatures
    return dataclasses.replace(barrier, signatures=signatures, phases=[*phases, last])


def _near_duplicates(name: str, place: Place, config: MinhashConfig, documents: DataFolder | None = None) -> Barrier:
    """The barrier at which near-duplicates are looked for. With `documents`, clusters and documents are counted."""
    signatures, pairs, clusters = (place.scratch(part) for part in ("signatures", "pairs", "clusters"))
    return Barrier(
        place,
        name,
        Blocks([NearDuplicateSignatures(signatures, config)], [place.pattern("signatures/*/{rank:05d}.minhash.sig")]),
        [
            Phase(
                "find near duplicates",
                [MinhashDedupBuckets(signatures, pairs, config=config)],
                config.num_buckets,
                (place.pattern("pairs/{rank:05d}_*.dups"),),
            ),
            Phase(
                "cluster near duplicates",
                [NearDuplicateClusters(pairs, clusters, documents)],
                1,
                (place.pattern("clusters/*"),),
            ),
        ],
    )


class _InTurn(PipelineStep):
    """Runs all tasks of phases, one after the other."""

    type = "🫂 - DEDUP"
    name = "👯 Near-duplicates"

    def __init__(self, phases: Sequence[Phase]):
        super().__init__()
        self.phases = phases

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:
        for phase in self.phases:
            for task in range(phase.tasks):
                for block in phase.pipeline:
                    block.run(None, task, phase.tasks)


class Decontamination:
    """Removes documents that share an n-gram of words with an evaluation set (arXiv:2005.14165, appendix C).

    Args:
        evaluation_sets: Mappings with `name`, `path` and optionally `split`, `config`, `revision` and `columns`.
        n_grams: Words that must agree in a row.
    """

    def __init__(self, evaluation_sets: list[dict[str, object]], n_grams: int = 13):
        self._evaluation_sets, self._n_grams = check_evaluation_sets(evaluation_sets), n_grams

    def piece(self, place: Place) -> Piece:
        index = place.scratch("index")
        build = _BuildIndex(self._evaluation_sets, index, self._n_grams)
        remove = ContaminationFilter(index, self._n_grams, place.removed())
        before = Phase("index evaluation sets", [build], 1, (place.pattern("index/*"),))
        return Piece(Blocks([remove], [place.removed_files]), before=[before])


class _BuildIndex(PipelineStep):
    type = "🦠 - DECONT"
    name = "📇 Index evaluation sets"

    def __init__(self, evaluation_sets: list[EvaluationSet], folder: DataFolder, n_grams: int):
        super().__init__()
        self.evaluation_sets, self.folder, self.n_grams = evaluation_sets, folder, n_grams

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:
        counts = build_index(self.evaluation_sets, self.folder, self.n_grams)
        with self.folder.open("evaluation_sets.json", "w") as file:
            json.dump(counts, file)


def _text(document: Document) -> bytes:
    return document.text.encode()
