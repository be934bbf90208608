"""Texts as a reader sees them: what is invisible is gone, and what only looks like a letter is that letter.

Each function keeps the place of every character, so that what is found in the folded text can be marked in the
original. A character becomes characters of one class, all of words or none (see `_is_of_words`): so a boundary between
words of the folded text is always one between two characters of the original, whatever comes after it.
"""

import functools
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

# Letters that Unicode counts as such but draws as nothing (Default_Ignorable_Code_Point), and the empty Braille cell.
_BLANK_LETTERS = "\u115f\u1160\u3164\uffa0\u17b4\u17b5\u2800"
_LOOKS_LIKE = {"¡": "i", "€": "e", "¢": "c", "£": "l"}  # as they are used for letters; Unicode's data has none of them
# "LATIN SMALL LETTER O WITH STROKE", "NEGATIVE SQUARED LATIN CAPITAL LETTER S", "REGIONAL INDICATOR SYMBOL LETTER S"
_NAME_OF_LETTER = re.compile(r".*(?:LATIN|REGIONAL INDICATOR)\b.* LETTER (?:SMALL CAPITAL )?([A-Z])(?: WITH .*)?")
_OF_WORDS = re.compile(r"[^\W_]|[@$!*]")


@dataclass(frozen=True)
class Folded:
    """A folded text, and where each of its characters comes from.

    Attributes:
        text: The folded text.
        starts: Position in the original of each of its characters, and at the end the length of the original. None
            where both are the same, character by character.
    """

    text: str
    starts: list[int] | None

    def original(self, position: int) -> int:
        """The place in the original text; invisible characters belong to the visible one before them."""
        return position if self.starts is None else self.starts[position]


def fold_letters(text: str) -> Folded:
    """Lower-case letters without accents, in ASCII wherever they look like it: `Ѕһі\u200bţ` is `shit`.

    Decomposes (NFKD), drops marks and invisible characters, and takes for a letter what Unicode's `confusables.txt`
    (UTS 39, by the package `confusable-homoglyphs`) or its name says is drawn like one.
    """
    if text.isascii():
        return Folded(text.lower(), None)
    return _fold(text, _letters_of)


def fold_invisible(text: str) -> Folded:
    """The text without invisible characters, and with full-width and mathematical forms as the plain ones."""
    if text.isascii() or not _disguises().search(text):
        return Folded(text, None)
    return _fold(text, _visible)


def _fold(text: str, fold: Callable[[str], str]) -> Folded:
    parts, starts = [], []
    for position, character in enumerate(text):
        folded = fold(character)
        parts.append(folded)
        starts += [position] * len(folded)
    return Folded("".join(parts), [*starts, len(text)])


@functools.lru_cache(maxsize=65536)
def _letters_of(character: str) -> str:
    if _is_invisible(character):
        return ""
    decomposed = unicodedata.normalize("NFKD", character)
    base = [part for part in decomposed if not unicodedata.category(part).startswith("M") and not _is_invisible(part)]
    folded = "".join(map(_letter_of, base))
    if len({_is_of_words(part) for part in folded}) > 1:  # "½" is "1⁄2", and would end a word in its midst
        return character
    return folded


def _letter_of(character: str) -> str:
    lower = character.lower()
    if lower.isascii():
        return lower
    for form in (lower, character):  # the lower case first: of "І" it is "i", while "І" itself looks like "l"
        if form in _LOOKS_LIKE:
            return _LOOKS_LIKE[form]
        if found := _confusables().get(form):
            return found
    name = _NAME_OF_LETTER.fullmatch(unicodedata.name(character, ""))
    return name[1].lower() if name else lower


@functools.cache
def _confusables() -> dict[str, str]:
    """Characters that look like one ASCII letter, with that letter in lower case."""
    from confusable_homoglyphs.confusables import confusables_data

    found = {}
    for character, alike in confusables_data.items():
        letters = [entry["c"] for entry in alike if len(entry["c"]) == 1 and entry["c"].isascii()]
        if len(character) == 1 and not character.isascii() and letters and letters[0].isalnum():
            found[character] = letters[0].lower()
    return found


def _is_of_words(character: str) -> bool:
    return _OF_WORDS.match(character) is not None


@functools.lru_cache(maxsize=65536)
def _visible(character: str) -> str:
    if _is_invisible(character):
        return ""
    form, _, plain = unicodedata.decomposition(character).partition(" ")
    if form in ("<wide>", "<font>", "<small>") and " " not in plain:
        return chr(int(plain, 16))
    return character


@functools.cache
def _disguises() -> re.Pattern[str]:
    """What `_visible` changes: most texts have none of it, and need not be gone through letter by letter."""
    where = (*range(0x80, 0x20000), *range(0xE0000, 0xE0200))  # between these are ideographs, which are never changed
    changed = [code for code in where if _visible.__wrapped__(chr(code)) != chr(code)]
    return re.compile(f"[{''.join(map(re.escape, map(chr, changed)))}]")


def _is_invisible(character: str) -> bool:
    # Cf: zero-width spaces and joiners, marks of direction, soft hyphen, tags. The variation selectors are marks (Mn).
    return (
        unicodedata.category(character) == "Cf"
        or character in _BLANK_LETTERS
        or "\ufe00" <= character <= "\ufe0f"
        or "\U000e0100" <= character <= "\U000e01ef"
        or character == "\u034f"
    )
