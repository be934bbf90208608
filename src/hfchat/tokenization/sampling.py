"""Read a corpus up to a number of bytes, say what training on it will cost, and refuse what trainers cannot count."""

import math
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from tokenizers.pre_tokenizers import PreTokenizer

from hfchat.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

# `BpeTrainer::count_pairs` of tokenizers 0.23 and rustbpe 0.1 count pairs in an i32, without a check for overflow;
# `UnigramTrainer` counts words and characters in a u32.
MAX_PAIR_COUNT = 2**31 - 1
MAX_CHARACTER_COUNT = 2**32 - 1

PILOT_BYTES = 2_000_000
LONGEST_RUN = 1000
_LONG_RUN = re.compile(rf"(\s{{{LONGEST_RUN}}})\s+|(\S{{{LONGEST_RUN}}})(?=\S)")


class TextSample:
    """Texts of a dataset, `sample_bytes` of UTF-8 at most. Each iteration reads them anew, in the same order.

    Rows come from the memory-mapped dataset one batch at a time, in an order that depends on `seed` alone, so that the
    first ones are like the rest. The text that crosses the limit is cut.

    Attributes:
        total_bytes: UTF-8 bytes that it yields.
    """

    def __init__(self, dataset: "Dataset", column: str, sample_bytes: int, seed: int):
        rows = dataset.select_columns([column])
        # As Arrow stores strings: their bytes, and an offset of 4 (or 8) bytes each, which is only overestimated here.
        self.total_bytes = min(rows.data.nbytes, sample_bytes)
        self._rows = rows.shuffle(seed=seed)
        self._column = column
        self._sample_bytes = sample_bytes

    def __iter__(self) -> Iterator[str]:
        remaining = self._sample_bytes
        for batch in self._rows.iter(batch_size=100):
            for text in batch[self._column]:
                encoded = text.encode()
                if len(encoded) > remaining:
                    text = encoded[:remaining].decode(errors="ignore")
                if text:
                    yield text
                remaining -= len(encoded)
                if remaining <= 0:
                    return


def break_long_runs(text: str) -> str:
    """The text with runs of spaces cut to `LONGEST_RUN`, and a line break in others that are as long.

    The time that `tokenizers` takes for a word grows with the square of its length (100,000 spaces: 27 seconds), and
    the regex of rustbpe runs out of stack at a million spaces. Runs up to twice as long may stay.
    """
    for start in range(0, len(text), LONGEST_RUN):
        window = text[start : start + LONGEST_RUN]
        if len(window) == LONGEST_RUN and (window.isspace() or len(window.split(maxsplit=1)) == 1):
            return _LONG_RUN.sub(lambda match: match[1] or f"{match[2]}\n", text)
    return text


def first_bytes(texts: Iterable[str], count: int) -> list[str]:
    """The first texts, until they have `count` bytes of UTF-8; of an iterator, no more are taken."""
    taken, size = [], 0
    for text in texts:
        taken.append(text)
        size += len(text.encode())
        if size >= count:
            break
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
    splitter: PreTokenizer,
    read: Callable[[list[str]], object],
    train: Callable[[list[str]], object],
    bytes_per_word: int,
) -> Estimate:
    """Extrapolate from a pilot: the first `PILOT_BYTES` of the sample, or a tenth of it.

    Distinct words grow as a power of the text (Heaps' law), whose exponent is that of the pilot's second half. Reading
    takes time in proportion to the bytes, learning in proportion to the distinct words.

    Args:
        sample: What will be read.
        splitter: Splits a text into words.
        read: Does with texts what takes time in proportion to their bytes.
        train: Does that, and learns.
        bytes_per_word: Peak memory of the trainer per distinct word.

    Raises:
        UserError: If all texts are empty.
    """
    pilot = first_bytes(sample, min(PILOT_BYTES, max(sample.total_bytes // 10, 1)))
    if not pilot:
        raise UserError("dataset_name: all of its texts are empty; name a column of text with --text_column")
    size = _bytes_in(pilot)
    half = first_bytes(pilot, size // 2)
    words, words_of_half = (_distinct_words(texts, splitter) for texts in (pilot, half))
    # Very little text, or always the same, says nothing; then every word is taken for a new one.
    exponent = math.log(words / words_of_half) / math.log(size / _bytes_in(half)) if len(half) < len(pilot) else 1.0
    ratio = sample.total_bytes / size
    distinct = int(words * ratio**exponent)
    reading = _seconds(read, pilot)
    learning = max(_seconds(train, pilot) - reading, 0.0)
    return Estimate(
        total_bytes=sample.total_bytes,
        distinct_words=distinct,
        memory_bytes=distinct * bytes_per_word,
        seconds=reading * ratio + learning * distinct / words,
    )


def _distinct_words(texts: Iterable[str], splitter: PreTokenizer) -> int:
    words: set[str] = set()
    for text in texts:
        words.update(word for word, _ in splitter.pre_tokenize_str(text))
    return len(words)


def _bytes_in(texts: Iterable[str]) -> int:
    return sum(len(text.encode()) for text in texts)


def _seconds(function: Callable[[list[str]], object], texts: list[str]) -> float:
    started = time.perf_counter()
    function(texts)
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
        share = int(self._count(pilot).max()) / _bytes_in(pilot)
        if share * sample.total_bytes > self.maximum:
            # A tenth less, as a part of the text may have more of it than the pilot.
            raise UserError(
                f"sample_bytes {sample.total_bytes}: the most frequent {self._what} would occur about "
                f"{share * sample.total_bytes:,.0f} times, but the trainer counts only to {self.maximum:,}; "
                f"use at most --sample_bytes {int(0.9 * self.maximum / share)}"
            )

    def guard(self, texts: Iterable[str], total_bytes: int) -> Iterator[str]:
        """The texts, counted as they pass where `total_bytes` are enough for it to matter.

        Raises:
            UserError: As soon as a count is more than `maximum`.
        """
        if total_bytes <= self.maximum:
            yield from texts
            return
        counts, read, texts = np.zeros(2**16, dtype=np.int64), 0, iter(texts)
        while batch := first_bytes(texts, 1_000_000):
            counts += self._count(batch)
            if counts.max() > self.maximum:
                raise UserError(
                    f"sample_bytes: within {read + _bytes_in(batch):,} bytes the most frequent {self._what} occurs "
                    f"more than {self.maximum:,} times, and the trainer counts no further; "
                    f"use at most --sample_bytes {read}"
                )
            read += _bytes_in(batch)
            yield from batch

    @property
    def _what(self) -> str:
        return "pair of bytes" if self.adjacent else "byte"

    def _count(self, texts: Iterable[str]) -> np.ndarray:
        values = np.frombuffer("\0".join(texts).encode(), dtype=np.uint8).astype(np.uint16)
        return np.bincount(values[:-1] << 8 | values[1:] if self.adjacent else values, minlength=2**16)
