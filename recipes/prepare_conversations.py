"""Conversations in the formats people have -> a clean dataset for fine-tuning or preference tuning, with a report.

    python recipes/prepare_conversations.py --config recipes/configs/conversations/dialogsum.yaml

Your own conversations (OpenAI's `messages`, ShareGPT, Alpaca, questions and answers, preference pairs, ...):

    python recipes/prepare_conversations.py --output_dir outputs/mine/conversations \
        --sources '{"path": "chats/*.jsonl", "license": "CC-BY-4.0"}'

`hfchat.data.conversation_sources.ConversationSource` says what a source can be. The output opens with
`datasets.load_dataset("outputs/mine/conversations")`, and `recipes/finetune.py --dataset_name` takes it; `report.md`
in it says what was dropped and why.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from hfchat.config import StageArguments, parse
from hfchat.data.conversation_sources import ConversationSource
from hfchat.data.conversations import prepare
from hfchat.data.decontamination import EvaluationSet, check_evaluation_sets
from hfchat.errors import run
from hfchat.lineage import describe
from hfchat.safety.pii import KINDS, PII
from hfchat.stage import Stage


@dataclass
class PrepareConversationsArguments(StageArguments):
    """What to read, and what to keep of it."""

    sources: list[ConversationSource] = field(
        default_factory=list,
        metadata={"help": "Mappings with a 'path' and a 'license' each (see hfchat.data.conversation_sources)."},
    )
    pii: list[str] = field(
        default_factory=lambda: list(KINDS),
        metadata={"help": "Personal data to replace: email, ip, phone, card. In YAML, [] for none."},
    )
    pii_regions: list[str] = field(
        default_factory=lambda: ["US", "GB"],
        metadata={"help": "Countries whose national phone numbers are replaced, as US; +49 ... is found always."},
    )
    evaluation_sets: list[EvaluationSet] = field(
        default_factory=list,
        metadata={"help": "Mappings with 'name' and 'path': conversations that overlap with one are removed."},
    )
    n_grams: int = field(default=13, metadata={"help": "Words in a row that make an overlap."})
    validation_fraction: float = field(
        default=0.05, metadata={"help": "Share of the validation split, chosen by a hash of the first user turn."}
    )
    strict: bool = field(default=False, metadata={"help": "Make a malformed row an error.", "identity": False})

    def __post_init__(self):
        self.evaluation_sets = check_evaluation_sets(self.evaluation_sets)
        PII(self.pii, self.pii_regions)
        if not self.sources:
            raise ValueError('sources: name at least one, e.g. --sources \'{"path": "chats/*.jsonl"}\'')
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must be at least 0 and below 1, not {self.validation_fraction}")
        if self.n_grams < 1:
            raise ValueError(f"n_grams must be at least 1, not {self.n_grams}")


ARGUMENTS = (PrepareConversationsArguments,)  # `hfchat doctor` reads them, too


def main(argv: Sequence[str] | None = None) -> None:
    (args,) = parse(*ARGUMENTS, argv=argv)
    inputs = {f"source {i}": source.describe() for i, source in enumerate(args.sources)}
    # What is kept out gives the output no licence.
    inputs |= {f"evaluation set {e.name}": describe(e.path) | {"licenses": []} for e in args.evaluation_sets}
    stage = Stage.begin(
        "prepare_conversations", args.output_dir, config=[args], inputs=inputs, overwrite=args.overwrite_output_dir
    )
    if stage.complete:
        return stage.report_complete()

    summary = prepare(
        args.sources,
        stage.work_dir,
        pii=args.pii,
        pii_regions=args.pii_regions,
        evaluation_sets=args.evaluation_sets,
        n_grams=args.n_grams,
        validation_fraction=args.validation_fraction,
        strict=args.strict,
    )
    stage.finish(metrics=summary.counts(), licenses=summary.licenses)

    print(f"read {summary.conversations:,} conversations, removed {dict(summary.removed.most_common()) or 'none'}")
    print(f"{summary.kind}: {', '.join(f'{count:,} for {split}' for split, count in summary.kept.items())}")
    for note, count in summary.notes.most_common():
        print(f"{note} ({count:,} times)")
    print(f"replaced {dict(summary.personal_data.most_common()) or 'no'} personal data")
    print(f"dataset: {args.output_dir}, what was dropped and why: {args.output_dir}/report.md")


if __name__ == "__main__":
    run(main)
