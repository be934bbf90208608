"""The words of a text, and its runs of words, for comparing texts."""

import unicodedata
from collections.abc import Iterator, Sequence

import regex

# Scripts that put no spaces between words; each of their letters counts as a word.
_SYLLABLES = r"\p{Han}\p{Hiragana}\p{Katakana}ー\p{Bopomofo}\p{Yi}"
_SOUNDS = (
    r"\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}\p{Javanese}\p{Balinese}\p{Tai_Le}\p{New_Tai_Lue}\p{Tai_Tham}"
    r"\p{Tai_Viet}"
)
UNSPACED = _SYLLABLES + _SOUNDS  # for a class of characters of the library `regex`
_WORD = regex.compile(rf"[{UNSPACED}]|(?:(?![{UNSPACED}])[\p{{L}}\p{{N}}\p{{Mc}}])+")
_SPACED_WORD = regex.compile(r"[\p{L}\p{N}\p{Mc}]+")  # the same but quicker, for text without such scripts
_ANY_UNSPACED = regex.compile(rf"[{UNSPACED}]")
_ASCII_WORD = regex.compile(r"[a-z0-9]+")
_NUMBER = regex.compile(r"\p{Nd}+(?:[.,٫]\p{Nd}+)*")
_MARKS = regex.compile(r"\p{Mn}+")

# What share of a word a letter is, in sixths: a Chinese or Japanese word has about two letters, a Thai one three.
_WHOLE, _OF_SYLLABLES, _OF_SOUNDS = 6, 3, 2
_SYLLABLE = regex.compile(f"[{_SYLLABLES}]")


def words(text: str, keep_numbers: bool = False) -> list[str]:
    """The words in lower case, without punctuation and diacritics, with every number as `0` unless numbers are kept.

    The result is that of datatrove's `simplify_text` with its word tokenizers (spaCy), which take ten times as long.
    In languages without spaces between words, each letter is a word.
    """
    text = text.lower()
    if text.isascii():
        return _ASCII_WORD.findall(text if keep_numbers else _NUMBER.sub("0", text))
    text = _MARKS.sub("", unicodedata.normalize("NFD", text))
    text = text if keep_numbers else _NUMBER.sub("0", text)
    return (_WORD if _ANY_UNSPACED.search(text) else _SPACED_WORD).findall(text)


def word_sixths(found: Sequence[str]) -> list[int]:
    """What share of a word each entry is, in sixths: a letter of a script without spaces is a half or a third."""
    if all(map(str.isascii, found)):  # the usual case, and a quick check
        return [_WHOLE] * len(found)
    return [_sixths(word) for word in found]


def runs(found: Sequence[str], n: int) -> Iterator[tuple[int, int]]:
    """Start and end of each of the shortest runs that hold as much text as `n` words.

    In Chinese and Japanese these are 2 `n` letters, in other scripts without spaces 3 `n`, because `n` letters would
    be a name rather than a quotation.

    Args:
        found: What `words` returned.
        n: At least one.
    """
    sizes = word_sixths(found)
    end, held = 0, 0
    for start, size in enumerate(sizes):
        while held < n * _WHOLE and end < len(sizes):
            held += sizes[end]
            end += 1
        if held < n * _WHOLE:
            return
        yield start, end
        held -= size


def _sixths(word: str) -> int:
    if len(word) > 1 or word.isascii() or not _ANY_UNSPACED.match(word):
        return _WHOLE
    return _OF_SYLLABLES if _SYLLABLE.match(word) else _OF_SOUNDS
