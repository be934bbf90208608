"""Several datasets of conversations in one run: which, how much of each, and in which order."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import pydantic

from hfchat.dataset import has_split, load_conversation_splits
from hfchat.entries import Entry
from hfchat.errors import UserError
from hfchat.lineage import Input, describe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datasets import Dataset

    from hfchat.training.finetuning import FinetuneArguments
    from hfchat.training.supervision import Supervision

# Up to four passes over the same text, repeating it is nearly as good as new text; then its worth falls fast.
_WORTHWHILE_PASSES = 4  # arXiv:2305.16264, section 5


class MixedDataset(Entry):
    """One dataset of `dataset_mixture`.

    `path` is a folder or file of conversations, or a Hub id; `name` its configuration, and `split` what to learn from
    (`train`, or a part such as `train[:20000]`), as TRL's `DatasetConfig` has them. `test_split` is what to measure
    on. A dataset without one, and each file, gives a twentieth of its conversations for that. Without these keys,
    `dataset_config_name`, `dataset_train_split` and `dataset_test_split` of the run hold.

    How much of it the run takes is one of these, and `epochs: 1` without either:

    - `epochs`: how often each conversation is seen in one pass of the training. Of a fraction, the seed draws a part.
    - `weight`: how many conversations a pass takes of it for each one that all entries with `epochs` give together. If
      every entry has a `weight`, they are shares, and the pass is as long as it can be while nothing is repeated.

    All passes (`num_train_epochs`) take the same conversations, in an order of their own.
    """

    path: str
    name: str | None = None
    split: str | None = None
    test_split: str | None = None
    epochs: float | None = pydantic.Field(default=None, gt=0, allow_inf_nan=False)
    weight: float | None = pydantic.Field(default=None, gt=0, allow_inf_nan=False)

    @classmethod
    def title(cls, fields: "Mapping[str, object]") -> str:
        return f"dataset_mixture {fields['path']}" if "path" in fields else "each of dataset_mixture"

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if self.epochs is not None and self.weight is not None:
            raise ValueError("it has both 'epochs' and 'weight'; give one of them")
        for key in ("name", "split", "test_split"):
            if getattr(self, key) is not None and Path(self.path).is_file():
                raise ValueError(f"'{key}' is a key of folders and Hub ids, and this is a file")
        return self

    @property
    def label(self) -> str:
        """What reports call it: two entries may have one path."""
        return " ".join(filter(None, (self.path, self.name, self.split)))


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
    supervision: "Supervision"
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


def datasets_of(args: "FinetuneArguments") -> list[MixedDataset]:
    """The datasets of a run; `dataset_name` alone is a mixture of one."""
    return list(args.dataset_mixture) or [MixedDataset(path=args.dataset_name)]


def place_of(args: "FinetuneArguments", entry: MixedDataset) -> str:
    """What begins a message about a dataset: the key that names it, and what the key says."""
    return f"{'dataset_mixture' if args.dataset_mixture else 'dataset_name'} {entry.label}"


def check_mixture(entries: Sequence[MixedDataset]) -> None:
    """Refuse a dataset that stands there twice.

    Raises:
        ValueError: If two entries name the same.
    """
    labels = [entry.label for entry in entries]
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(f"dataset_mixture {label}: stands there twice; give it once, with 'epochs'")


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
        return load_conversation_splits(
            entry.path, entry.split or args.dataset_train_split, test_split, config_name=config_name
        )
    except UserError as error:
        if not args.dataset_mixture:
            raise
        raise UserError(str(error).replace("dataset_name", "dataset_mixture", 1)) from error


def amounts(entries: Sequence[MixedDataset], sizes: Sequence[int]) -> list[int]:
    """How many conversations one pass takes of each dataset, at least one, see `MixedDataset`.

    Args:
        entries: The mixture.
        sizes: How many conversations each has.
    """
    pairs = list(zip(entries, sizes, strict=True))
    by_epochs = [(entry.epochs or 1) * size for entry, size in pairs if entry.weight is None]
    # What a weight of 1 is.
    unit = sum(by_epochs) or min(size / entry.weight for entry, size in pairs if entry.weight)
    wanted = (entry.weight * unit if entry.weight else (entry.epochs or 1) * size for entry, size in pairs)
    return [max(1, round(amount)) for amount in wanted]


def draw(sizes: Sequence[int], taken: Sequence[int], seed: int) -> np.ndarray:
    """Which rows a pass takes of datasets that stand one after the other, in a random order.

    Args:
        sizes: How many rows each has.
        taken: How many are taken of each: all, as often as that goes, and a random part for the rest.
        seed: What the part and the order follow from.

    Returns:
        Rows, of shape `(sum(taken),)`, int64.
    """
    generator = np.random.default_rng(seed)
    starts = np.cumsum([0, *sizes[:-1]])
    rows = []
    for start, size, amount in zip(starts, sizes, taken, strict=True):
        times, rest = divmod(amount, size)
        rows += [start + np.tile(np.arange(size), times), start + generator.permutation(size)[:rest]]
    return generator.permutation(np.concatenate(rows))
