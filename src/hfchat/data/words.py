"""The words of a text, for comparing it with others."""

import unicodedata
from collections.abc import Iterator

import regex
import xxhash

# Scripts that put no spaces between words: there, each letter counts as one.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
_WORD = regex.compile(rf"[{_UNSPACED}]|(?:(?![{_UNSPACED}])[\p{{L}}\p{{N}}\p{{Mc}}])+")
_ASCII_WORD = regex.compile(r"[a-z0-9]+")
_NUMBER = regex.compile(r"\p{Nd}+(?:[.,٫]\p{Nd}+)*")
_MARKS = regex.compile(r"\p{Mn}+")


def words(text: str) -> list[str]:
    """The words in lower case without punctuation and diacritics, every number as `0`.

    The same as datatrove's `simplify_text` and its word tokenizers (spaCy), which take ten times as long; of languages
    without spaces between words, single letters.
    """
    text = text.lower()
    if text.isascii():
        return _ASCII_WORD.findall(_NUMBER.sub("0", text))
    text = _MARKS.sub("", unicodedata.normalize("NFD", text))
    return _WORD.findall(_NUMBER.sub("0", text))


def hashed_n_grams(text: str, n: int) -> Iterator[int]:
    """A 64-bit hash for each run of `n` words of a text; none where it has fewer."""
    found = words(text)
    for start in range(len(found) - n + 1):
        yield xxhash.xxh64_intdigest(" ".join(found[start : start + n]).encode())
