"""The words of a text, for comparing it with others."""

import unicodedata

import regex

# Scripts that put no spaces between words: there, each letter counts as one.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
_WORD = regex.compile(rf"[{_UNSPACED}]|(?:(?![{_UNSPACED}])[\p{{L}}\p{{N}}\p{{Mc}}])+")
_SPACED_WORD = regex.compile(r"[\p{L}\p{N}\p{Mc}]+")  # the same, and quicker, where none of them is there
_ANY_UNSPACED = regex.compile(rf"[{_UNSPACED}]")
_ASCII_WORD = regex.compile(r"[a-z0-9]+")
_NUMBER = regex.compile(r"\p{Nd}+(?:[.,٫]\p{Nd}+)*")
_MARKS = regex.compile(r"\p{Mn}+")


def words(text: str, keep_numbers: bool = False) -> list[str]:
    """The words in lower case without punctuation and diacritics, every number as `0` unless they are kept.

    The same as datatrove's `simplify_text` and its word tokenizers (spaCy), which take ten times as long; of languages
    without spaces between words, single letters.
    """
    text = text.lower()
    if text.isascii():
        return _ASCII_WORD.findall(text if keep_numbers else _NUMBER.sub("0", text))
    text = _MARKS.sub("", unicodedata.normalize("NFD", text))
    text = text if keep_numbers else _NUMBER.sub("0", text)
    return (_WORD if _ANY_UNSPACED.search(text) else _SPACED_WORD).findall(text)
