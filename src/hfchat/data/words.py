"""Runs of words of a text, for comparing it with others."""

from collections.abc import Iterator, Sequence

import xxhash

from hfchat.words import words


def hashed_n_grams(text: str, n: int) -> Iterator[int]:
    """A 64-bit hash for each run of `n` words of a text."""
    text_words = words(text)
    for start in range(len(text_words) - n + 1):
        yield hashed(text_words[start : start + n])


def hashed(run: Sequence[str]) -> int:
    """A 64-bit hash of a run of words."""
    return xxhash.xxh64_intdigest(" ".join(run).encode())
