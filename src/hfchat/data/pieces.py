"""What a step adds to the plan of a corpus: blocks, and where it needs them, phases before or between."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from datatrove.io import DataFolder
from datatrove.pipeline.base import PipelineStep

from hfchat.data.execution import Phase, below
from hfchat.data.shards import DocumentWriter, OwnShardReader, RemovedWriter


@dataclass(frozen=True)
class Place:
    """Where a step writes.

    Attributes:
        folder: The corpus.
        position: Number of the step in the chain, with two digits.
        step: Its name.
    """

    folder: DataFolder
    position: str
    step: str

    @property
    def _scratch(self) -> str:
        return f"scratch/{self.position}-{self.step}"

    def scratch(self, name: str) -> DataFolder:
        """A folder of the step's own, which is deleted when the corpus is complete."""
        return below(self.folder, f"{self._scratch}/{name}")

    def pattern(self, files: str) -> str:
        """A glob pattern below the step's own folders, as that of a phase's `outputs`."""
        return f"{self._scratch}/{files}"

    def removed(self, reason: str = "removed") -> RemovedWriter:
        """A writer of the documents that the step removes; the reason is for blocks of datatrove that give none."""
        return RemovedWriter(self.folder, self.position, self.step, reason)

    @property
    def removed_files(self) -> str:
        return RemovedWriter.pattern(self.position, self.step)


@dataclass(frozen=True)
class Blocks:
    """A stretch of a pipeline.

    Attributes:
        pipeline: Blocks of datatrove.
        outputs: Glob patterns of what one task of them writes, as those of a `Phase`.
    """

    pipeline: Sequence[PipelineStep] = ()
    outputs: Sequence[str] = ()

    def __add__(self, other: "Blocks") -> "Blocks":
        return Blocks([*self.pipeline, *other.pipeline], [*self.outputs, *other.outputs])


@dataclass(frozen=True)
class Barrier:
    """Where all documents must have been seen before the first goes on: they wait in shards.

    Attributes:
        place: Where the shards lie: that of the step whose barrier it is.
        name: What the pipeline that reads the shards again is called.
        signatures: What the documents go through once they are written.
        phases: What runs before they are read again.
    """

    place: Place
    name: str
    signatures: Blocks
    phases: Sequence[Phase]

    @property
    def documents(self) -> DataFolder:
        return self.place.scratch("documents")

    @property
    def end(self) -> Blocks:
        """The end of the pipeline before it."""
        written = Blocks([DocumentWriter(self.documents)], [self.place.pattern("documents/{rank:05d}.parquet")])
        return written + self.signatures

    @property
    def begin(self) -> Blocks:
        """The beginning of the pipeline after it."""
        return Blocks([OwnShardReader(self.documents)])


@dataclass(frozen=True)
class Piece:
    """What a step adds to the plan.

    Attributes:
        inline: Its blocks in the pipeline of the documents, after the barrier if there is one.
        barrier: What it needs of all documents.
        before: Phases that need no documents.
    """

    inline: Blocks
    barrier: Barrier | None = None
    before: Sequence[Phase] = field(default=())


def concatenated(pieces: Sequence[Piece], first: str, last: str, tasks: int) -> list[Phase]:
    """The phases of pieces, one after the other.

    Args:
        pieces: In the order of the chain.
        first: Name of the pipeline that reads the sources.
        last: What is appended to the name of the pipeline that ends with the last piece.
        tasks: Pieces of the work on documents.
    """
    before: list[Phase] = []
    phases: list[Phase] = []
    name, blocks = first, Blocks()
    for piece in pieces:
        before += piece.before
        if barrier := piece.barrier:
            blocks += barrier.end
            phases += [Phase(name, list(blocks.pipeline), tasks, tuple(blocks.outputs)), *barrier.phases]
            name, blocks = barrier.name, barrier.begin
        blocks += piece.inline
    return [*before, *phases, Phase(f"{name}{last}", list(blocks.pipeline), tasks, tuple(blocks.outputs))]
