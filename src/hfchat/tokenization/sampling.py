"""Read a corpus up to a number of bytes, say beforehand what that will cost, and refuse what trainers cannot count."""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from hfchat.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

# `BpeTrainer::count_pairs` of tokenizers 0.23 and rustbpe 0.1 count pairs in an i32, without a check for overflow;
# `UnigramTrainer` counts words and characters in a u32.
MAX_PAIR_COUNT = 2**31 - 1
MAX_CHARACTER_COUNT = 2**32 - 1

PILOT_BYTES = 2_000_000


class TextSample:
    """Texts of a dataset, `sample_bytes` of UTF-8 at most. Each iteration reads them anew, in the same order.

    Rows come from the memory-mapped dataset one batch at a time. Where all of it fits, they come in its own order,
    else in one that depends on `seed` alone; the text that crosses the limit is cut.

    Attributes:
        total_bytes: UTF-8 bytes that it yields.
    """

    def __init__(
        self, dataset: "Dataset", column: str, sample_bytes: int, seed: int, *, show_progress: bool = False
    ):
        rows = dataset.select_columns([column])
        # As Arrow stores strings: their bytes, and an offset of 4 (or 8) bytes each, which is only overestimated here.
        available = rows.data.nbytes
        self._rows = rows if available <= sample_bytes else rows.shuffle(seed=seed)
        self._column = column
        self._show_progress = show_progress
        self.total_bytes = min(available, sample_bytes)
        self._sample_bytes = sample_bytes

    def __iter__(self) -> Iterator[str]:
        remaining = self._sample_bytes
        with tqdm(
            total=self.total_bytes, desc="read", unit="B", unit_scale=True, disable=not self._show_progress
        ) as bar:
            for batch in self._rows.iter(batch_size=100):
                for text in batch[self._column]:
                    encoded = text.encode()
                    if len(encoded) > remaining:
                        text = encoded[:remaining].decode(errors="ignore")
                    bar.update(min(len(encoded), remaining))
                    if text:
                        yield text
                    remaining -= len(encoded)
                    if remaining <= 0:
                        return


def first_bytes(texts: Iterable[str], count: int) -> list[str]:
    """The first texts, until they have `count` bytes of UTF-8."""
    taken, remaining = [], count
    for text in texts:
        if remaining <= 0:
            break
        taken.append(text)
        remaining -= len(text.encode())
    return taken


@dataclass(frozen=True)
class Estimate:
    """What a training is expected to cost.

    Attributes:
        total_bytes: UTF-8 bytes that it reads.
        distinct_words: Different words (pieces that the split pattern leaves) in them.
        memory_bytes: Peak of what it holds.
        seconds: On this machine.
    """

    total_bytes: int
    distinct_words: int
    memory_bytes: int
    seconds: float

    def __str__(self) -> str:
        minutes = self.seconds / 60
        return (
            f"{self.total_bytes / 1e6:,.1f} MB to read; expected: {self.distinct_words / 1e6:,.2f} million different "
            f"words, {self.memory_bytes / 1e9:.1f} GB of memory, "
            + (f"{self.seconds:.0f} seconds" if minutes < 2 else f"{minutes:.0f} minutes")
        )


def estimate(
    sample: TextSample,
    count_words: Callable[[Iterable[str]], int],
    train: Callable[[Iterable[str], int], object],
    vocab_size: int,
    bytes_per_word: int,
) -> Estimate:
    """Extrapolate from a pilot: the first `PILOT_BYTES` of the sample, or a tenth of it.

    Distinct words grow as a power of the text (Heaps' law), whose exponent is that of the pilot's second half. Reading
    takes time in proportion to the bytes, learning in proportion to the distinct words.

    Args:
        sample: What will be read.
        count_words: Number of distinct words in texts.
        train: Trains on texts for a vocabulary size; called twice, with the smallest and with `vocab_size`.
        vocab_size: Of the training.
        bytes_per_word: Peak memory of the trainer per distinct word.
    """
    pilot = first_bytes(sample, min(PILOT_BYTES, max(sample.total_bytes // 10, 1)))
    sizes = [len(text.encode()) for text in pilot]
    half = first_bytes(pilot, sum(sizes) // 2)
    words, words_of_half = count_words(pilot), count_words(half)
    halves = sum(sizes) / max(sum(sizes[: len(half)]), 1)
    exponent = math.log(words / words_of_half) / math.log(halves) if words_of_half and halves > 1 else 1.0
    ratio = max(sample.total_bytes / max(sum(sizes), 1), 1.0)
    distinct = int(words * ratio ** min(exponent, 1.0))
    reading = _seconds(lambda: train(pilot, MIN_VOCAB_SIZE))
    learning = max(_seconds(lambda: train(pilot, vocab_size)) - reading, 0.0)
    return Estimate(
        sample.total_bytes,
        distinct,
        distinct * bytes_per_word,
        reading * ratio + learning * distinct / max(words, 1),
    )


def _seconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


class CountLimit:
    """Refuses texts in which a pair of bytes, or a byte, is more frequent than a trainer can count.

    Each occurrence of two tokens side by side is one of the last byte of the first and the first byte of the second,
    so no pair of tokens is more frequent than the most frequent pair of bytes.

    Args:
        maximum: The greatest number that the trainer counts to.
        adjacent: What it counts: pairs of neighbours, or single bytes.
    """

    def __init__(self, maximum: int, *, adjacent: bool):
        self.maximum = maximum
        self.adjacent = adjacent

    def check_pilot(self, sample: TextSample) -> None:
        """Refuse a sample that, going by its first `PILOT_BYTES`, will have too many.

        Raises:
            UserError: If so. The message names the `sample_bytes` that would do.
        """
        if sample.total_bytes <= self.maximum:
            return
        pilot = first_bytes(sample, PILOT_BYTES)
        share = int(self._count(pilot).max()) / sum(len(text.encode()) for text in pilot)
        if share * sample.total_bytes > self.maximum:
            # A tenth less, as a part of the text may have more of it than the pilot.
            raise UserError(
                f"sample_bytes {sample.total_bytes}: the most frequent {self._what} would occur about "
                f"{share * sample.total_bytes:,.0f} times, but the trainer counts only to {self.maximum:,}; use at most "
                f"--sample_bytes {int(0.9 * self.maximum / share)}"
            )

    def guard(self, texts: Iterable[str], total_bytes: int) -> Iterator[str]:
        """The texts, counted as they pass where `total_bytes` are enough for it to matter.

        Raises:
            UserError: As soon as a count is more than `maximum`.
        """
        if total_bytes <= self.maximum:
            yield from texts
            return
        counts = np.zeros(2**16, dtype=np.int64)
        read = 0
        for batch in itertools.batched(texts, 1000) if hasattr(itertools, "batched") else _batched(texts, 1000):
            counts += self._count(batch)
            read += sum(len(text.encode()) for text in batch)
            if counts.max() > self.maximum:
                raise UserError(
                    f"sample_bytes: after {read:,} bytes the most frequent {self._what} occurred more than "
                    f"{self.maximum:,} times, and the trainer counts no further; use at most "
                    f"--sample_bytes {int(0.9 * read)}"
                )
            yield from batch

    @property
    def _what(self) -> str:
        return "pair of bytes" if self.adjacent else "byte"

    def _count(self, texts: Iterable[str]) -> np.ndarray:
        values = np.frombuffer("\0".join(texts).encode(), dtype=np.uint8)
        if self.adjacent:
            values = values[:-1].astype(np.uint16) << 8 | values[1:]
        return np.bincount(values, minlength=2**16)
