"""Feedback on the answers of a served model -> datasets to learn from, with a report of what was not believed.

The server stores it (`hfchat serve MODEL --feedback feedback.db`); `recipes/finetune.py` learns from the corrections
and `recipes/align.py` from the preferences and the thumbs:

    python recipes/prepare_feedback.py --feedback feedback.db --output_dir outputs/mine/feedback
    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/align.py --method dpo \
        --dataset_name outputs/mine/feedback/preferences --output_dir outputs/mine/aligned

The output has a dataset for each kind of which there is any: `conversations/` (corrections), `preferences/` (a
correction over the answer, a retry that was kept over the discarded one, a thumb up over a thumb down) and `thumbs/`.
A prompt is in the same split of all three, chosen by its hash, so `validation` is never learned from.

Anybody can give feedback, so it is not simply believed: `hfchat.feedback.curation` says what is removed and why, and
has the thresholds. `report.md` counts what was removed, and `removed.jsonl` has the ids. If too little is left to
learn from, the recipe says so, and `enough` in the metrics of `lineage.json` does not name the dataset.

`--replay` adds conversations that the model has learned from, or must not unlearn, to the corrections, and
`--replay_preferences` adds pairs to the preferences.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

from hfchat.config import StageArguments, parse
from hfchat.data.conversation_checks import Cleaner
from hfchat.data.conversation_formats import FORMATS, convert
from hfchat.data.conversation_report import as_text, card_header
from hfchat.data.conversations import SPLITS, split_of
from hfchat.data.decontamination import EvaluationSet, build_index, check_evaluation_sets
from hfchat.data.rows import Row
from hfchat.data.turns import ConversationError
from hfchat.errors import UserError, run
from hfchat.feedback.curation import CurationArguments, Example, Removed, curate
from hfchat.feedback.curation_report import CurationCounts, card, counts, report, summary_lines
from hfchat.feedback.database import open_database
from hfchat.feedback.reading import parse_moment
from hfchat.feedback.reviews import digest_of_answers, read_reviewed
from hfchat.feedback.tables import AnswerRow
from hfchat.feedback.training_sets import TrainingRow, finder_of_unsafe, replay, write_splits
from hfchat.lineage import describe, make_private, metrics_of
from hfchat.safety.pii import KINDS as PII_KINDS
from hfchat.stage import Stage

FORMAT_OF = {"conversations": "messages", "preferences": "preference", "thumbs": "thumbs"}
KIND_OF = {name: FORMATS[format].kind for name, format in FORMAT_OF.items()}
_SAMPLES = 3  # of each dataset, in the report


@dataclass
class PrepareFeedbackArguments(StageArguments):
    """Which feedback, and what is enough of it."""

    feedback: str = field(
        kw_only=True, metadata={"help": "The database of `hfchat serve --feedback`: a file or URL.", "identity": False}
    )
    since: str | None = field(
        default=None,
        metadata={"help": "Only answers given or reviewed since then, e.g. 2025-01-31 or 2025-01-31T12:00Z."},
    )
    guards: str = field(
        default="default",
        metadata={
            "help": "A YAML of guards, as for `hfchat serve`: answers in which they find something are not learned."
        },
    )
    evaluation_sets: list[EvaluationSet] = field(
        default_factory=list,
        metadata={"help": "Mappings with 'name' and 'path': examples that overlap with one are removed."},
    )
    n_grams: int = field(default=13, metadata={"help": "Number of words in a row that make an overlap."})
    validation_fraction: float = field(
        default=0.2,
        metadata={"help": "Share of the prompts that are held out, chosen by a hash of the first user turn."},
    )
    min_train: int = field(default=20, metadata={"help": "Training rows that a dataset needs at least."})
    min_validation: int = field(
        default=10,
        metadata={
            "help": "Held-out rows that it needs at least. The gate needs 10; with fewer than 6, not even a win in "
            "all of them is significant (an exact sign test)."
        },
    )
    replay: list[str] = field(
        default_factory=list,
        metadata={"help": "Datasets of `messages` that must not be forgotten: folders or Hub ids."},
    )
    replay_preferences: list[str] = field(
        default_factory=list, metadata={"help": "Likewise, datasets of `prompt`, `chosen` and `rejected`."}
    )
    replay_share: float = field(
        default=0.5,
        metadata={"help": "Rows to replay from each dataset, for each new row to learn from; fewer if it has fewer."},
    )
    license: str = field(
        default="unknown",
        metadata={"help": "Licence of what people write, by your terms of use; it goes into the cards."},
    )

    def __post_init__(self):
        self.evaluation_sets = check_evaluation_sets(self.evaluation_sets)
        if "://" in self.feedback and urlsplit(self.feedback).password:
            raise ValueError("feedback: the lineage keeps it, so it must hold no password; set PGPASSWORD instead")
        if self.since is not None:
            parse_moment(self.since, "since")
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must be above 0 and below 1, not {self.validation_fraction}")
        if self.n_grams < 1 or self.min_train < 1 or self.min_validation < 1:
            raise ValueError("n_grams, min_train and min_validation must be at least 1")
        if self.replay_share <= 0:
            raise ValueError(f"replay_share must be above 0, not {self.replay_share}")

    @property
    def minimum(self) -> dict[str, int]:
        """How many rows of each split are enough."""
        return {"train": self.min_train, "validation": self.min_validation}


ARGUMENTS = (PrepareFeedbackArguments, CurationArguments)  # `hfchat doctor` reads them, too


def main(argv: Sequence[str] | None = None) -> None:
    args, curation_args = parse(*ARGUMENTS, argv=argv)
    engine = open_database(args.feedback)
    answers = read_reviewed(engine, None if args.since is None else parse_moment(args.since, "since"))
    engine.dispose()
    if not answers:
        since = f" since {args.since}" if args.since else ""
        raise UserError(f"feedback {args.feedback}: there is no feedback{since}")
    source = {"path": args.feedback, "sha256": digest_of_answers(answers), "licenses": [args.license]}
    # What is kept out gives the output no licence.
    kept_out = {f"evaluation set {e.name}": describe(e.path) | {"licenses": []} for e in args.evaluation_sets}
    replayed = {f"replay {dataset}": describe(dataset) for dataset in [*args.replay, *args.replay_preferences]}
    stage = Stage.begin(
        "prepare_feedback",
        args.output_dir,
        config=[args, curation_args],
        inputs={"feedback": source} | replayed | kept_out,
        overwrite=args.overwrite_output_dir,
    )
    make_private(args.output_dir if stage.complete else stage.work_dir)  # it has what people wrote
    if stage.complete:
        stage.report_complete()
    else:
        stage.finish(metrics=dict(prepare(answers, args, curation_args, stage.work_dir)), private=True)
    print(*summary_lines(metrics_of(args.output_dir), args.minimum), sep="\n")
    print(f"datasets: {args.output_dir}, what was removed and why: {args.output_dir}/report.md")


def prepare(
    answers: Sequence[AnswerRow], args: PrepareFeedbackArguments, curation_args: CurationArguments, folder: Path
) -> CurationCounts:
    """Write the datasets, `removed.jsonl` and `report.md`. Returns the counts."""
    with finder_of_unsafe(args.guards) as find_unsafe:
        curation = curate(answers, curation_args, find_unsafe)

    def is_train(row: TrainingRow) -> bool:
        return split_of(row, args.validation_fraction) == "train"

    replayed = {"conversations": args.replay, "preferences": args.replay_preferences}
    # Training checks the examples once more, and replayed rows come beside those that are left.
    datasets, personal_data = {}, Counter[str]()
    with TemporaryDirectory() as index:
        kept_out = build_index(args.evaluation_sets, index, args.n_grams) if args.evaluation_sets else {}
        for name, examples in curation.examples.items():
            cleaner = Cleaner(KIND_OF[name], PII_KINDS, ("US", "GB"), index if kept_out else None, args.n_grams)
            kept, removed = clean(name, examples, cleaner, args.validation_fraction)
            is_enough = all(len(kept[split]) >= least for split, least in args.minimum.items())
            count = round(args.replay_share * len(kept["train"]))
            for dataset in replayed.get(name, []):
                kept["train"] += replay(name, dataset, count, is_train)
            summary = datasets[name] = write_splits(name, kept, folder / name)
            summary.is_enough, summary.samples = is_enough, [as_text(row) for row in kept["train"][:_SAMPLES]]
            if summary.sizes:
                header = card_header([args.license], summary.rows, summary.sizes, summary.download_size)
                (folder / name / "README.md").write_text(header + card(name, summary), encoding="utf-8")
            curation.removed += removed
            personal_data += cleaner.replaced
    lines = "".join(json.dumps(asdict(removed)) + "\n" for removed in curation.removed)
    (folder / "removed.jsonl").write_text(lines, encoding="utf-8")
    page = report(curation, datasets, curation_args, args.minimum, personal_data, kept_out)
    (folder / "report.md").write_text(page, encoding="utf-8")
    return counts(curation, datasets)


def clean(
    name: str, examples: Sequence[Example], cleaner: Cleaner, validation_fraction: float
) -> tuple[dict[str, list[TrainingRow]], list[Removed]]:
    """The rows of each split, and the examples that training would not take or that are in an evaluation set."""
    kept: dict[str, list[TrainingRow]] = {split: [] for split in SPLITS}
    removed = []
    for example in examples:
        try:
            row, _ = cleaner.clean(convert(FORMAT_OF[name], Row(example.row, example.answer_id)))
        except ConversationError as error:
            removed.append(Removed(example.feedback_id, name, error.reason))
        else:
            about = {"source": example.source, "answer_id": example.answer_id, "feedback_id": example.feedback_id}
            kept[split_of(row, validation_fraction)].append(row | about)
    return kept, removed


if __name__ == "__main__":
    run(main)
