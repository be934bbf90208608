"""Several datasets of conversations in one run: which, how much of each, and in which order."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import pydantic

from hfchat.entries import Entry


class MixedDataset(Entry):
    """One dataset of `dataset_mixture`.

    `path` is a folder or file of conversations, or a Hub id; `name` its configuration, and `split` what to learn from
    (`train`, or a part such as `train[:20000]`), as TRL's `DatasetConfig` has them. `test_split` is what to measure
    on. A dataset without one, and each file, gives a twentieth of its conversations for that. Without these keys,
    `dataset_config_name`, `dataset_train_split` and `dataset_test_split` of the run hold. `where` takes only the rows
    that have one of some values in a column: `{kind: [fact, unknown]}`.

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
    where: dict[str, list[str | int | float | bool | None]] = pydantic.Field(default_factory=dict)
    epochs: float | None = pydantic.Field(default=None, gt=0, allow_inf_nan=False)
    weight: float | None = pydantic.Field(default=None, gt=0, allow_inf_nan=False)

    @classmethod
    def title(cls, fields: Mapping[str, object]) -> str:
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
        rows = (f"{column}={'|'.join(map(str, values))}" for column, values in self.where.items())
        return " ".join(filter(None, (self.path, self.name, self.split, *rows)))


def check_mixture(entries: Sequence[MixedDataset]) -> None:
    """Refuse a dataset that stands there twice.

    Raises:
        ValueError: If two entries name the same.
    """
    labels = [entry.label for entry in entries]
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(f"dataset_mixture {label}: stands there twice; give it once, with 'epochs'")


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
