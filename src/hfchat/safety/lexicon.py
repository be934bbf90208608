"""Find the obscene, sexual and abusive words of a list in a text."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from itertools import chain, combinations
from pathlib import Path

_TOKEN = re.compile(r"[@$]?[^\W_](?:[^\W_]|[@$!*])*")
_DISGUISED = re.compile(r"[@$!013457]")
_UNDISGUISE = str.maketrans("@$!013457", "asioieast")
_ENDINGS = ("", "s", "es", "ed", "er", "ers", "ing", "y")


@dataclass(frozen=True)
class Hit:
    """An entry of the lexicon in a text.

    Attributes:
        entry: The first word of its line in the list.
        category: Its section: `sexual`, `obscene`, `slur`.
        start: Position of its first character, and `end` the one after its last.
    """

    entry: str
    category: str
    start: int
    end: int


class Lexicon:
    """Finds the entries of a list, as whole words in any case, also with a letter starred out or written as a digit.

    A list has a word per line, and after it those that count as the same; `[name]` begins a section, `#` a comment.
    `word~` stands for its forms in -s, -es, -ed, -er, -ers, -ing and -y too. A list knows words and no context: a
    match is a hint, not a verdict.

    Args:
        path: Your own list; by default the English one that comes with hfchat.
        fold: Applied to the list, for texts that are searched in a folded form.

    Attributes:
        categories: The sections that have an entry.

    Raises:
        ValueError: If the list cannot be read, or has no entry.
    """

    def __init__(self, path: str | Path | None = None, fold: Callable[[str], str] = str):
        source = Path(path) if path else resources.files("hfchat.safety") / "lexicon_en.txt"
        try:
            text = source.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"lexicon {path}: {error}") from error
        self._forms: dict[str, tuple[str, str]] = {}
        for words, category in _entries(fold(text)):
            forms = chain.from_iterable(map(_inflect, words))
            self._forms |= dict.fromkeys(forms, (words[0].rstrip("~"), category))
        if not self._forms:
            raise ValueError(f"lexicon {path}: has no entry")
        self.categories = {category for _, category in self._forms.values()}
        self._starred: dict[str, tuple[str, str]] = {}
        for form, found in self._forms.items():
            if len(form) >= 4:
                self._starred |= dict.fromkeys(_starred(form), found)

    def find(self, text: str) -> list[Hit]:
        """All entries in a text, in order."""
        found = []
        for token in _TOKEN.finditer(text):
            word = token[0].rstrip("!*")
            start = token.start()
            if not (match := self._lookup(word.lower())) and word[0] in "@$":  # "@name", and not "@sshole"
                word, start = word[1:], start + 1
                match = self._lookup(word.lower())
            if match:
                found.append(Hit(*match, start, start + len(word)))
        return found

    def _lookup(self, word: str) -> tuple[str, str] | None:
        if match := self._forms.get(word):
            return match
        if "*" in word:
            return self._starred.get(word)
        # "5h1t", but not the road "A55": at least half of it are letters still.
        signs = len(_DISGUISED.findall(word))
        if 0 < signs <= len(word) / 2 and len(word) >= 4:
            return self._forms.get(word.translate(_UNDISGUISE))
        return None


def _entries(text: str) -> Iterator[tuple[list[str], str]]:
    category = "unsorted"
    for line in text.splitlines():
        line = line.split("#")[0].strip().lower()
        if section := re.fullmatch(r"\[(\w+)\]", line):
            category = section[1]
        elif line:
            yield line.split(), category


def _starred(form: str) -> Iterator[str]:
    """The word with some of its letters, but neither the first nor the last, as stars."""
    for start, end in combinations(range(1, len(form)), 2):
        yield form[:start] + "*" * (end - start) + form[end:]


def _inflect(word: str) -> Iterator[str]:
    if not word.endswith("~"):
        yield word
        return
    stem = word[:-1]
    for ending in _ENDINGS:
        yield stem + ending
        if ending in ("ed", "er", "ers", "ing", "y"):  # "slut", "slutty"
            yield stem + stem[-1] + ending
            if stem.endswith("e"):
                yield stem[:-1] + ending
