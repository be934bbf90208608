"""Build a corpus: read the sources, run the chain, split. datatrove runs it, in tasks that can be resumed."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from datatrove.data import DocumentsPipeline
from datatrove.io import DataFolder
from datatrove.pipeline.base import PipelineStep
from upath import UPath

from hfchat.data.card import write_card
from hfchat.data.chain import Step
from hfchat.data.deduplication import Together
from hfchat.data.execution import Executor, Phase, below, execute
from hfchat.data.pieces import Blocks, Piece, Place, concatenated
from hfchat.data.readers import DIVIDED, SKIPPED
from hfchat.data.report import Counts, ranked, summarize, write_report
from hfchat.data.shards import DocumentWriter
from hfchat.data.sources import Source, TextFiles
from hfchat.errors import UserError
from hfchat.storage import remove_tree


def build_corpus(
    sources: Sequence[Source],
    steps: Sequence[Step],
    folder: Path,
    *,
    validation_fraction: float,
    tasks: int,
    workers: int,
    executor: Executor,
    strict: bool,
    max_document_bytes: int,
    config: Mapping[str, object],
) -> Counts | None:
    """Write `data/{train,validation}-*.parquet`, `removed/<reason>/`, the data report and the dataset card.

    Args:
        sources: What to read.
        steps: The chain, in its order.
        folder: Where to write. Tasks that an interrupted call finished there are not done again.
        validation_fraction: Share of documents that become the validation split, chosen by a hash of the text, or of
            near-duplicates that stay in the corpus by one of the first.
        tasks: Pieces of the work, and files per split. The output depends on it, but not on `workers`.
        workers: Tasks run at a time.
        executor: Where they run.
        strict: Make input that cannot be read an error.
        max_document_bytes: Larger documents (in UTF-8) are removed unread; bounds the memory of a worker.
        config: The settings for card and report, as `hfchat.config.settings_of` gives them.

    Returns:
        None if jobs have been submitted that are still to run.

    Raises:
        UserError: If a split comes out empty, or for unreadable input when `strict`.
    """
    corpus = DataFolder(folder.path, fs=folder.fs) if isinstance(folder, UPath) else DataFolder(str(folder.absolute()))
    phases = plan(sources, steps, corpus, validation_fraction, tasks, strict, max_document_bytes)
    if not execute(phases, corpus, executor, workers):
        return None
    corpus.invalidate_cache()
    statistics = _statistics(corpus)
    summary = summarize(corpus, ["read", "extract", *(step.name for step in steps)], statistics["read"])
    summary.pii = _with_prefix(statistics, "pii_")
    summary.skipped = _with_prefix(statistics, SKIPPED)
    summary.undivided = {
        source.label: source.separator
        for source in sources
        if isinstance(source, TextFiles) and source.separator and not statistics[DIVIDED + source.label]
    }
    summary.evaluation_sets = _evaluation_sets(corpus)
    # A corpus without a document is of no use to anyone; what was removed stays for the user to look at.
    if not summary.documents["train"]:
        passed_over = f", passed over because they are not documents: {summary.skipped}" if summary.skipped else ""
        first = f", of which the first is {': '.join(summary.unreadable[0])}" if summary.unreadable else ""
        raise UserError(
            f"no document is left of {summary.read:,} (removed: {dict(ranked(summary.reasons))}{first}{passed_over}); "
            f"look at {folder}/removed, then change steps or add sources"
        )
    write_report(corpus, summary, config)
    write_card(corpus, summary, config)
    remove_tree(folder / "scratch")
    return summary.counts()


def plan(
    sources: Sequence[Source],
    steps: Sequence[Step],
    folder: DataFolder,
    validation_fraction: float,
    tasks: int,
    strict: bool,
    max_document_bytes: int,
) -> list[Phase]:
    """The chain as phases: a step that must have seen all documents ends one pipeline and begins the next."""
    pieces = []
    for number, source in enumerate(sources):
        place = Place(folder, "00", f"source{number}")
        pieces.append(Piece(Blocks([source.step(place.removed, strict, max_document_bytes)], [place.removed_files])))
    for number, step in enumerate(steps, start=1):
        pieces.append(step.piece(Place(folder, f"{number:02d}", step.name)))
    # Where near-duplicates stay, those of each other must be in one split.
    if not any(map(_removes_near_duplicates, steps)):
        pieces = Together(folder, validation_fraction).add_to(pieces)
    split = [SplitByHash(validation_fraction), DocumentWriter(below(folder, "data"), "${split}-${rank}.parquet")]
    pieces.append(Piece(Blocks(split, ["data/*-{rank:05d}.parquet"])))
    return concatenated(pieces, "read, clean, filter", ", split", tasks)


def _removes_near_duplicates(step: Step) -> bool:
    similarity = step.parameters.get("similarity", Together.SIMILARITY)
    return step.name == "near_dedup" and similarity <= Together.SIMILARITY


class SplitByHash(PipelineStep):
    """Sends each document to `train` or `validation` by a hash of its text: the same one whatever else is added.

    Documents with a `split_key` go by that: they are near-duplicates of each other. Those with a `split` are there.

    Args:
        validation_fraction: Share of documents in the validation split.
    """

    type = "✂️ - SPLIT"
    name = "🎲 By hash"

    def __init__(self, validation_fraction: float):
        super().__init__()
        self.threshold = int(validation_fraction * 2**64)

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        for document in data:
            key = document.metadata.get("split_key", document.text)
            value = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
            document.metadata.setdefault("split", "validation" if value < self.threshold else "train")
            yield document


def _statistics(folder: DataFolder) -> Counter[str]:
    """Sums, over all tasks, of what the blocks counted: documents `read`, records skipped, `pii_*` replaced."""
    totals: Counter[str] = Counter()
    for file in folder.glob("scratch/logs/*/stats/*.json"):
        for block in json.loads(folder.cat_file(file)):
            for name, value in block["stats"].items():
                if name == "read" or name.startswith(("pii_", SKIPPED, DIVIDED)):
                    totals[name] += value["total"] if isinstance(value, dict) else value
    return totals


def _with_prefix(statistics: Counter[str], prefix: str) -> dict[str, int]:
    return {name.removeprefix(prefix): count for name, count in statistics.items() if name.startswith(prefix)}


def _evaluation_sets(folder: DataFolder) -> dict[str, dict[str, int]]:
    for file in folder.glob("scratch/*/index/evaluation_sets.json"):
        return json.loads(folder.cat_file(file))
    return {}
