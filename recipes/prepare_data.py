"""Sources -> a corpus of clean, deduplicated documents with provenance, split into train and validation.

    python recipes/prepare_data.py --config recipes/configs/data/wikipedia-dump.yaml

Your own text files, each file a document:

    python recipes/prepare_data.py --output_dir outputs/mine/corpus \
        --sources '{"path": "texts/*.txt", "license": "CC-BY-4.0"}'

The output opens with `datasets.load_dataset("outputs/mine/corpus")`; its `report.html` shows what was kept, what was
removed, and why. Started again after it was stopped, the same command goes on where it was. `hfchat.data.sources` says
what a source can be, `hfchat.data.chain` which steps there are, `hfchat.data.execution` how many machines share it.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from hfchat.config import StageArguments, parse, setting, settings_of
from hfchat.data.chain import Step
from hfchat.data.corpus import build_corpus
from hfchat.data.execution import Executor
from hfchat.data.sources import Source
from hfchat.errors import run
from hfchat.stage import Stage

DEFAULT_STEPS = ("fix_text", "clean_text", "quality", "pii", "exact_dedup", "near_dedup")


@dataclass
class PrepareDataArguments(StageArguments):
    """What to read, what to keep of it, and where the work runs."""

    sources: list[Source] = setting([], "Mappings with a 'path' and a 'license' each (see hfchat.data.sources).")
    steps: list[Step] = setting(
        list(DEFAULT_STEPS), "The chain, in its order: names, or names with parameters (see hfchat.data.chain)."
    )
    validation_fraction: float = setting(
        0.01, "Share of documents in the validation split, chosen by a hash; near-duplicates stay together."
    )
    max_document_bytes: int = setting(50_000_000, "Larger documents are removed, which bounds the memory of a worker.")
    strict: bool = setting(False, "Make input that cannot be read an error.", identity=False)
    tasks: int = setting(16, "Pieces of the work, and files per split.")
    workers: int = setting(os.cpu_count() or 1, "Tasks that run at a time.", identity=False)
    executor: Executor = setting(
        "local", "local, ray or slurm, or a mapping with its options (see hfchat.data.execution).", identity=False
    )

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError('sources: name at least one, e.g. --sources \'{"path": "texts/*.txt"}\'')
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must be between 0 and 1, not {self.validation_fraction}")
        for name in ("tasks", "workers", "max_document_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")


ARGUMENTS = (PrepareDataArguments,)  # `hfchat doctor` reads them, too


def main(argv: Sequence[str] | None = None) -> None:
    (args,) = parse(*ARGUMENTS, argv=argv)
    inputs = {f"source {i}": source.describe() for i, source in enumerate(args.sources)}
    stage = Stage.begin(
        "prepare_data", args.output_dir, config=[args], inputs=inputs, overwrite=args.overwrite_output_dir
    )
    if stage.complete:
        return stage.report_complete()

    counts = build_corpus(
        args.sources,
        args.steps,
        stage.work_dir,
        validation_fraction=args.validation_fraction,
        tasks=args.tasks,
        workers=args.workers,
        executor=args.executor,
        strict=args.strict,
        max_document_bytes=args.max_document_bytes,
        config=settings_of(args),
    )
    if counts is None:  # submitted to a cluster, whose last job runs this again
        return None
    stage.finish(metrics=counts, licenses=counts["licenses"])

    print(f"read {counts['read']:,} documents, removed {counts['removed'] or 'none'}")
    if counts["skipped"]:
        print(f"passed over {counts['skipped']:,} records that are not documents: {counts['skipped_for']}")
    for source, separator in counts["undivided"].items():
        print(f"the separator of {source}, {separator!r}, is in none of its files: each of them is one document")
    for split, documents in counts["documents"].items():
        print(f"{split:>10}: {documents:,} documents, {counts['bytes'][split] / 1e6:.1f} MB")
    if not counts["documents"]["validation"]:
        print(
            "no document fell to validation, which the next stages read: raise validation_fraction, add sources, "
            "or name the separator of files with many documents"
        )
    print(f"corpus: {args.output_dir}, what was removed and why: {args.output_dir}/report.html")


if __name__ == "__main__":
    run(main)
