"""The conversations that a run learns from and is measured on, from one dataset or several."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, product, zip_longest
from typing import TYPE_CHECKING, Any

from hfchat.dataset import has_split, learned_rows, load_conversation_splits
from hfchat.errors import UserError
from hfchat.lineage import Input, describe
from hfchat.token_ids import Messages
from hfchat.training.mixture import MixedDataset, amounts, draw
from hfchat.training.run_arguments import steps_per_epoch
from hfchat.training.supervision import Supervision, count, show_supervised, supervise

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from hfchat.training.finetuning import FinetuneArguments

# Up to four passes over the same text, repeating it is nearly as good as new text; then its worth falls fast.
_WORTHWHILE_PASSES = 4  # arXiv:2305.16264, section 5
_SHOWN = 3  # conversations


@dataclass(frozen=True)
class Part:
    """What a run has of one dataset.

    Attributes:
        label: What reports call it.
        place: What begins a message about it: the key, and what the key says.
        train: Rows of `input_ids` and `labels`, each once.
        test: The same, to measure the loss on.
        held_out: The rows of the test split, as they are.
        supervision: What of `train` is learned when each row is seen once.
        seen: How many conversations one pass takes; more than there are where some are repeated.
    """

    label: str
    place: str
    train: "Dataset"
    test: "Dataset"
    held_out: "Dataset"
    supervision: Supervision
    seen: int

    def __str__(self) -> str:
        times = self.seen / len(self.train)
        amount = f"each {times:.4g} times" if times > 1 else f"{self.seen:,} of them, once"
        return f"{self.label}: {self.supervision}; a pass takes {amount}"

    def repetitions(self, passes: float) -> float:
        """How often a run of so many passes sees each of the conversations that it takes."""
        return max(1.0, self.seen / len(self.train)) * passes

    def warning(self, passes: float) -> str | None:
        """What to say before a run that repeats it too often."""
        times = self.repetitions(passes)
        if times <= _WORTHWHILE_PASSES:
            return None
        return (
            f"warning: {self.label}: each conversation is seen {times:.3g} times; beyond {_WORTHWHILE_PASSES}, "
            "repeating teaches less and less (arXiv:2305.16264), and the held-out loss may rise; add conversations, "
            "or lower num_train_epochs, or its epochs or weight"
        )

    def as_metrics(self, passes: float) -> dict[str, float]:
        """Its counts, the conversations that a run of so many passes saw, and how often it saw each on average."""
        counts = {key: value for key, value in asdict(self.supervision).items() if key != "telling"}
        return counts | {
            "seen": round(self.seen * passes),
            "times_seen": round(self.seen * passes / len(self.train), 3),
        }


@dataclass(frozen=True)
class Conversations:
    """Attributes:
    train: Rows of `input_ids` and `labels` to learn from in one pass, from all datasets, some more than once.
    test: The same, to measure the loss on.
    supervision: What of `train` is learned.
    parts: Each dataset by itself.
    sequences: How many sequences `train` makes: packed ones, about; else its rows.
    passes: How often the run goes through `train`.
    held_out: The messages of the test splits, as they are, one of each dataset in turn.
    held_out_tools: The tools of each of these, as they are; None where no dataset has such a column.
    """

    train: "Dataset"
    test: "Dataset"
    supervision: Supervision
    parts: Sequence[Part]
    sequences: int
    passes: float
    held_out: Sequence[Messages]
    held_out_tools: Sequence[object] | None = None

    def describe(self, tokenizer: "PreTrainedTokenizerBase") -> str:
        """What is learned, in numbers and in some conversations, one with calls or reasoning among them."""
        lines = [f"to learn from: {self.supervision}"]
        lines += filter(None, (part.warning(self.passes) for part in self.parts))
        if len(self.parts) > 1:
            lines += [f"  {part}" for part in self.parts]
        lines.append("what is supervised is marked ⟦like this⟧:\n")
        shown = max(1, _SHOWN // len(self.parts))
        texts = (_some_texts(part, shown, tokenizer) for part in self.parts)
        return "\n".join(chain(lines, *texts))

    def metrics(self, passes: float) -> dict[str, object]:
        """The counts of one pass, and those of each dataset, of which so many passes were made."""
        datasets = {part.label: part.as_metrics(passes) for part in self.parts}
        return self.supervision.as_metrics("train") | {"train_datasets": datasets}


def _some_texts(part: Part, number: int, tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """Conversations from all over a dataset, with what is supervised marked."""
    rows = list(range(0, len(part.train), -(-len(part.train) // number)))
    telling = part.supervision.telling
    if telling is not None and telling not in rows:
        rows[0] = telling
    return [show_supervised(row, tokenizer, shorten=True) for row in part.train.select(rows)]


def datasets_of(args: "FinetuneArguments") -> list[MixedDataset]:
    """The datasets of a run; `dataset_name` alone is a mixture of one."""
    return list(args.dataset_mixture) or [MixedDataset(path=args.dataset_name)]


def place_of(args: "FinetuneArguments", entry: MixedDataset) -> str:
    """What begins a message about a dataset: the key that names it, and what the key says."""
    return f"{'dataset_mixture' if args.dataset_mixture else 'dataset_name'} {entry.label}"


def inputs_of(args: "FinetuneArguments") -> dict[str, str | Input]:
    """The datasets of a run as inputs of its stage: role to path, or what `describe` says.

    Raises:
        UserError: If one does not exist.
    """
    if not args.dataset_mixture:
        return {"conversations": args.dataset_name}
    try:
        return {f"conversations {i}": describe(entry.path) for i, entry in enumerate(args.dataset_mixture)}
    except UserError as error:
        raise UserError(f"dataset_mixture {error}") from error


def load_rows(args: "FinetuneArguments", entry: MixedDataset) -> tuple["Dataset", "Dataset"]:
    """The conversations of a dataset, as they are: those to learn from, and those to measure on.

    Raises:
        UserError: For the reasons of `load_conversation_splits`.
    """
    config_name = entry.name or args.dataset_config_name
    test_split: str | None = entry.test_split or args.dataset_test_split
    try:
        if args.dataset_mixture and entry.test_split is None:
            whole = args.dataset_test_split.partition("[")[0]
            test_split = test_split if has_split(entry.path, whole, config_name=config_name) else None
        splits = load_conversation_splits(
            entry.path, entry.split or args.dataset_train_split, test_split, config_name=config_name
        )
    except UserError as error:
        if not args.dataset_mixture:
            raise
        raise UserError(str(error).replace("dataset_name", "dataset_mixture", 1)) from error
    train, test = (_only(rows, entry) for rows in splits)
    return train, test


def _only(rows: "Dataset", entry: MixedDataset) -> "Dataset":
    """The rows that `where` takes."""
    for column, values in entry.where.items():
        if column not in rows.column_names:
            raise UserError(f"dataset_mixture {entry.label}: 'where': no column '{column}', only {rows.column_names}")
        rows = rows.select([row for row, value in enumerate(rows[column]) if value in values])
        if not len(rows):
            raise UserError(f"dataset_mixture {entry.label}: 'where': no row has one of {values} in '{column}'")
    return rows


def load_conversations(args: "FinetuneArguments", tokenizer: "PreTrainedTokenizerBase") -> Conversations:
    """The conversations of a run as tokens and labels, mixed as `MixedDataset` says.

    Raises:
        UserError: If a split is missing or teaches nothing, see `supervise`, or if what is learned and what is
            measured on overlap, in one dataset or between two.
    """
    from datasets import concatenate_datasets

    entries = datasets_of(args)
    with args.main_process_first(local=False, desc="tokenizing the conversations"):
        parts = [_load_part(args, entry, tokenizer) for entry in entries]
    sizes = [len(part.train) for part in parts]
    taken = amounts(entries, sizes)
    parts = [replace(part, seen=amount) for part, amount in zip(parts, taken, strict=True)]
    if not args.allow_leakage:
        _check_apart(parts, args.dataset_test_split)

    # `dataset_name` alone stays in its order.
    train = concatenate_datasets([part.train for part in parts])
    if args.dataset_mixture:
        train = train.select(draw(sizes, taken, args.seed))
    supervision = replace(
        count(train),
        too_long=sum(part.supervision.too_long for part in parts),
        longest=max(part.supervision.longest for part in parts),
    )
    sequences = max(1, -(-supervision.tokens // args.max_length)) if args.packing else len(train)
    passes = args.max_steps / steps_per_epoch(args, sequences) if args.max_steps > 0 else args.num_train_epochs

    tests = [part.held_out for part in parts]
    tools = [test["tools"] if "tools" in test.column_names else [None] * len(test) for test in tests]
    return Conversations(
        train,
        concatenate_datasets([part.test for part in parts]),
        supervision,
        parts,
        sequences,
        passes,
        _in_turn([test["messages"] for test in tests]),
        _in_turn(tools) if any("tools" in test.column_names for test in tests) else None,
    )


def _load_part(args: "FinetuneArguments", entry: MixedDataset, tokenizer: "PreTrainedTokenizerBase") -> Part:
    """One dataset of a run, seen once."""
    place = place_of(args, entry)
    rows, held_out = load_rows(args, entry)
    train, supervision = supervise(rows, tokenizer, args.max_length, place)
    test, _ = supervise(held_out, tokenizer, args.max_length, place)
    return Part(entry.label, place, train, test, held_out, supervision, seen=len(train))


def _check_apart(parts: Sequence[Part], test_split: str) -> None:
    """Refuse conversations that are learned and measured on.

    Raises:
        UserError: If there are any; the message names the two datasets.
    """
    for learned, tested in product(parts, parts):
        if leaked := learned_rows(learned.train["input_ids"], tested.test["input_ids"]):
            of = "" if learned is tested else f" of {learned.label}"
            raise UserError(
                f"{tested.place}: split '{test_split}': {len(leaked):,} of its {len(tested.test):,} conversations are "
                f"in the train split{of} too, row {leaked[0]} among them; take them out of one, or pass "
                "--allow_leakage true"
            )


def _in_turn(columns: Sequence[Sequence[object]]) -> Sequence[Any]:
    """The items of several columns, one of each in turn; those of one column are read when asked for."""
    if len(columns) == 1:
        return columns[0]
    missing = object()
    return [item for item in chain.from_iterable(zip_longest(*columns, fillvalue=missing)) if item is not missing]
