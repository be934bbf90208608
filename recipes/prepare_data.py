"""Sources -> a corpus of clean, deduplicated documents with provenance, split into train and validation.

    python recipes/prepare_data.py --config recipes/configs/demo/prepare_data.yaml

Your own text files, each file a document:

    python recipes/prepare_data.py --output_dir outputs/mine/corpus \
        --sources '{"path": "texts/*.txt", "license": "CC-BY-4.0"}'

The output opens with `datasets.load_dataset("outputs/demo/corpus")`.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from hfchat.config import StageArguments, parse
from hfchat.data.corpus import build_corpus
from hfchat.data.sources import Source
from hfchat.errors import run
from hfchat.lineage import Stage


@dataclass
class PrepareDataArguments(StageArguments):
    """What to read and what to keep of it."""

    sources: list[Source] = field(
        default_factory=list,
        metadata={"help": "Mappings with a 'path' and a 'license' each (see hfchat.data.sources)."},
    )
    min_characters: int = field(default=200, metadata={"help": "Shorter documents are removed."})
    validation_fraction: float = field(
        default=0.01, metadata={"help": "Share of documents in the validation split, chosen by a hash of the text."}
    )
    tasks: int = field(default=16, metadata={"help": "Pieces of the work, and files per split."})
    workers: int = field(default=os.cpu_count() or 1, metadata={"help": "Tasks run at a time."})

    def __post_init__(self):
        self.sources = [Source(source) for source in self.sources]
        if not self.sources:
            raise ValueError('sources: name at least one, e.g. --sources \'{"path": "texts/*.txt"}\'')
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must be between 0 and 1, not {self.validation_fraction}")
        if self.tasks < 1 or self.workers < 1:
            raise ValueError("tasks and workers must be at least 1")


def main(argv: Sequence[str] | None = None) -> None:
    (args,) = parse(PrepareDataArguments, argv=argv)
    inputs = {f"source {i}": source.describe() for i, source in enumerate(args.sources)}
    stage = Stage("prepare_data", args.output_dir, config=[args], inputs=inputs, overwrite=args.overwrite_output_dir)
    if stage.complete:
        return stage.report_complete()

    counts = build_corpus(
        args.sources,
        stage.work_dir,
        min_characters=args.min_characters,
        validation_fraction=args.validation_fraction,
        tasks=args.tasks,
        workers=args.workers,
    )
    stage.finish(metrics=counts, licenses=counts["licenses"])

    print(f"read {counts['read']:,} documents, removed {counts['removed'] or 'none'}")
    for split, documents in counts["documents"].items():
        print(f"{split:>10}: {documents:,} documents, {counts['bytes'][split] / 1e6:.1f} MB")
    print(f"corpus: {args.output_dir}")


if __name__ == "__main__":
    run(main)
