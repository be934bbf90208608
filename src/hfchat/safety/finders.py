"""Find spans in a text for guards, and tell which of them no continuation of the text can change any more.

A `Finder` can be asked about a text that is still being written. Its `settled` and `context` make a stream equal to
the whole text; each says why it is right, and the tests try it with random texts and splits.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Protocol

from hfchat.safety.folding import fold_invisible, fold_letters
from hfchat.safety.lexicon import Lexicon
from hfchat.safety.phones import LOOK_BACK
from hfchat.safety.pii import KINDS, PII


@dataclass(frozen=True)
class Span:
    """Something found in a text.

    Attributes:
        category: What it is: `obscene`, `email`.
        start: Position of its first character, and `end` the one after its last.
    """

    category: str
    start: int
    end: int


class Finder(Protocol):
    def find(self, text: str) -> list[Span]:
        """The spans of a whole text, in order, none of which overlap."""

    def settled(self, text: str) -> int:
        """A position that no span of `text`, or of any continuation, lies across, and before which none will change:
        with s = settled(text), those of `find(text + more)` before s are `find(text[:s])`.
        """

    def context(self, text: str, position: int) -> int:
        """Where to begin to read for the spans after a settled position: with c = context(text, position), those of
        `find(text[c:] + more)` after it are, moved by c, those of `find(text + more)`.
        """


# A word of the lexicon may be of these characters; one more of them may come next, or anything else ends it.
_LETTER = r"(?:[^\W_]|[@$!*])"
_GAP = r"(?:[^\w@$!*]|_)"
_MAX_GAP = 3
# A letter by itself; the signs after it may be punctuation.
_SINGLE = rf"(?<!{_LETTER}){_LETTER}[!*]*+"
# Single letters with one to three others between them: "s h i t", "s-h-i-t!", "s . h . i . t".
_SPELLED = re.compile(rf"{_SINGLE}(?:{_GAP}{{1,{_MAX_GAP}}}{_SINGLE}(?!{_LETTER}))+")
_FIRST_LETTER = re.compile(rf"(?<!{_LETTER}){_LETTER}")
# The last word, unless it is a single letter so far. The quantifiers here are possessive, so each letter is read once.
_OPEN_WORD = re.compile(rf"{_SINGLE}(?:[^\W_]|[@$]){_LETTER}*+\Z")
# Single letters, with what lies between and behind them: the next letter may be of the same word.
_SPELLING = re.compile(rf"{_SINGLE}(?:{_GAP}{{1,{_MAX_GAP}}}+{_SINGLE})*+{_GAP}{{0,{_MAX_GAP}}}+")
# Letters that are words themselves: "what a s h i t".
_ONE_LETTER_WORDS = "aiou"
# The lexicon itself wants most of a disguised word to be letters, because of numbers; these signs are not in numbers.
_SIGN = re.compile(r"[@$]|!(?=[^\W_])")
_SIGNS = {"@": "a", "$": "s", "!": "i"}
_STRETCHED = re.compile(r"([^\W\d_])\1{2,}")


class LexiconFinder:
    """The words of a lexicon, disguised ones too.

    Beside the disguises that `Lexicon` knows ("sh1t", "s**t"): letters that only look like Latin ones, accents and
    invisible characters (`hfchat.safety.folding`), letters apart ("s h i t"), and letters repeated ("shiiit").

    Args:
        path: A list of one's own, see `Lexicon`. It is folded too, so it may be in any script.
        categories: Only these of its sections.

    Raises:
        ValueError: If the list cannot be read, or has no such section.
    """

    def __init__(self, path: str | Path | None = None, categories: Sequence[str] | None = None):
        self._lexicon = Lexicon(path, fold=lambda text: fold_letters(text).text)
        self._categories = set(self._lexicon.categories if categories is None else categories)
        if unknown := self._categories - self._lexicon.categories:
            known = ", ".join(sorted(self._lexicon.categories))
            raise ValueError(f"categories: the lexicon has no section {min(unknown)!r}; it has {known}")

    def find(self, text: str) -> list[Span]:
        folded = fold_letters(text)
        found = [*self._words(folded.text), *self._stretched(folded.text), *self._spelled(folded.text)]
        return _joined(
            Span(category, folded.original(start), folded.original(end))
            for category, start, end in found
            if category in self._categories
        )

    def settled(self, text: str) -> int:
        """Before the last word, and before the single letters right in front of it.

        Only characters of words, and between single letters up to three others, can be in one span. So nothing that
        follows changes what is before a word that is not one letter, nor before four or more other characters.
        """
        folded = fold_letters(text)
        opened = _OPEN_WORD.search(folded.text)
        return folded.original(opened.start() if opened else _last_spelling(folded.text))

    def context(self, text: str, position: int) -> int:
        """The position itself: before it ends a word, and nothing of a span reads further back."""
        return position

    def _words(self, text: str) -> Iterator[tuple[str, int, int]]:
        written = _SIGN.sub(lambda sign: _SIGNS[sign[0]], text)
        for form in {text, written}:
            for hit in self._lexicon.find(form):
                yield hit.category, hit.start, hit.end

    def _stretched(self, text: str) -> Iterator[tuple[str, int, int]]:
        for length in (1, 2) if _STRETCHED.search(text) else ():  # "shiiit" is of one "i", "assss" of two "s"
            kept, position = [], 0
            for run in _STRETCHED.finditer(text):
                kept += [*range(position, run.start() + length)]
                position = run.end()
            kept += [*range(position, len(text)), len(text)]
            for category, start, end in self._words("".join(text[i] for i in kept[:-1])):
                yield category, kept[start], kept[end]

    def _spelled(self, text: str) -> Iterator[tuple[str, int, int]]:
        for run in _SPELLED.finditer(text):
            letters = [letter.start() for letter in _FIRST_LETTER.finditer(text, run.start(), run.end())]
            for word in [letters, *_words_apart(letters)]:
                yield from self._spelled_word(text, word)

    def _spelled_word(self, text: str, letters: Sequence[int]) -> Iterator[tuple[str, int, int]]:
        written = "".join(text[i] for i in letters)
        first = 1 if written[0] in _ONE_LETTER_WORDS else 0
        last = len(written) - (1 if written[-1] in _ONE_LETTER_WORDS else 0)
        for start, end in {(0, len(written)), (first, len(written)), (0, last), (first, last)}:
            for category, *found in self._words(written[start:end]):
                if found == [0, end - start]:
                    yield category, letters[start], letters[end - 1] + 1


def _last_spelling(text: str) -> int:
    """Where the single letters begin that the text ends with; its length if it ends with none."""
    starts = (run.start() for run in _SPELLING.finditer(text) if run.end() == len(text))
    return next(starts, len(text))


def _words_apart(letters: Sequence[int]) -> list[list[int]]:
    """Spelled words, where more than the least lies between them: "o h  s h i t"."""
    least = min(second - first for first, second in pairwise(letters))
    words = [[letters[0]]]
    for first, second in pairwise(letters):
        if second - first > least:
            words.append([])
        words[-1].append(second)
    return words if len(words) > 1 else []


def _joined(spans: Iterable[Span]) -> list[Span]:
    """In order, and those that overlap as one, of the category of the first."""
    joined: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.start, -span.end)):
        if joined and span.start < joined[-1].end:
            last = joined.pop()
            span = Span(last.category, last.start, max(last.end, span.end))
        joined.append(span)
    return joined


# Characters that no pattern of `PII` takes, whatever stands beside them: blanks, and all that is no digit, no dash and
# not of the script of mail addresses. Whether there is a match in front of one does not depend on what comes after it.
_NEVER_IN_PII = re.compile(r"\s|[^\x00-\u024f\u2010-\u2015\d]")
# What may lie between two digits of a phone or card number, or of its extension: more than the patterns allow.
_BETWEEN_DIGITS = r"[ ().,;:/\-\u2010-\u2015\xa0xtensioſ]{0,13}"
_DIGIT_BEFORE = re.compile(rf"\d({_BETWEEN_DIGITS})\Z", re.IGNORECASE)
_DIGIT_AFTER = re.compile(rf"{_BETWEEN_DIGITS}\d", re.IGNORECASE)
_REACH_BETWEEN_DIGITS = 14
_IN_EVERY_MATCH = re.compile(r"[\d@]")


class PIIFinder:
    """Personal data, also with invisible characters in it or in full-width ones. Its arguments are those of `PII`."""

    def __init__(self, kinds: Sequence[str] = KINDS, regions: Sequence[str] = ("US", "GB")):
        self._pii = PII(kinds, regions)

    def find(self, text: str) -> list[Span]:
        folded = fold_invisible(text)
        if not _IN_EVERY_MATCH.search(folded.text):
            return []
        return [
            Span(match.kind, folded.original(match.start), folded.original(match.end))
            for match in self._pii.find(folded.text)
        ]

    def settled(self, text: str) -> int:
        """After the last character that no match can contain, and that is not between two digits.

        A match cannot go over such a place, and the patterns look no further than one character past a match but for
        digits. Those beyond it can also not change what is found before it when the search runs again without them.
        """
        folded = fold_invisible(text)
        seen = folded.text
        number = _DIGIT_BEFORE.search(seen, max(0, len(seen) - _REACH_BETWEEN_DIGITS))
        end = number.start() if number else len(seen)  # a digit may come next, and belong to this one
        while (cut := _last_cut(seen, end)) and (before := _number_over(seen, cut)) is not None:
            end = before
        return folded.original(cut)

    def context(self, text: str, position: int) -> int:
        """`LOOK_BACK` characters before a place in front of which that many have no digit and no `@`.

        No match lies in these, because each has a digit or an `@`; and no pattern looks back over more of them.
        """
        folded = fold_invisible(text[:position])
        seen, end = folded.text, len(folded.text)
        while cut := _last_cut(seen, end):
            last = _last_index(_IN_EVERY_MATCH, seen, cut)
            if cut - LOOK_BACK > last:
                return folded.original(cut - LOOK_BACK)
            end = last
        return 0


def _last_cut(text: str, end: int) -> int:
    """The last place up to `end` that is behind a character of `_NEVER_IN_PII`; 0 without one."""
    return _last_index(_NEVER_IN_PII, text, end) + 1


def _last_index(characters: re.Pattern[str], text: str, end: int) -> int:
    """Position of the last of these characters before `end`; -1 without one."""
    return next((i for i in range(end - 1, -1, -1) if characters.match(text, i)), -1)


def _number_over(text: str, cut: int) -> int | None:
    """The digit before `cut`, if it may belong to one number with a digit after it."""
    before = _DIGIT_BEFORE.search(text, max(0, cut - _REACH_BETWEEN_DIGITS), cut)
    return before.start() if before and _DIGIT_AFTER.match(text, cut) else None
