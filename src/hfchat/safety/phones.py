"""Phone numbers in text: what `phonenumbers` takes for one, unless a veto says that it only looks like one.

The library's own search of a whole text is not enough. Measured with the labelled sentences of
`tests/safety/test_pii.py`: at `Leniency.VALID` it takes ISBNs, DOIs and timestamps for phone numbers (precision
0.71); at `STRICT_GROUPING` and `EXACT_GROUPING` (0.90) it misses `+43 1 4000 8400`; at none of them does it find the
number in `(650) 253-0000 24 hours`. So the vetoes come first, because they cost less, and the library then judges the
groups of digits that are left: precision and recall are 1.
"""

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

# What stands between two groups of one number.
_BETWEEN = (
    r"(?:[./ \xa0]|[ \xa0]?[-\u2010-\u2015][ \xa0]?|[ \xa0]?\(|\)(?:[ \xa0]?[-\u2010-\u2015]?|[./ ])|\)[ \xa0]\()"
)
_RUN = re.compile(rf"\d(?:{_BETWEEN}?\d){{6,}}")  # seven digits at least
_GROUP = re.compile(r"\d+")
_MAX_DIGITS, _MAX_GROUPS = 17, 7  # E.164 has 15 digits; `00` or `(0)` may come to them
_EXTENSION = re.compile(r"[ ,;]{0,2}(?:x|ext|extension)[ .:]{0,2}\d{1,6}(?!\w)", re.IGNORECASE)

# With a prefix for other towns, `020`, a number begins as others do not.
_TRUNK = re.compile(r"0[1-9]\d{1,3}(?!\d)")
_IPV4 = re.compile(r"\d{1,3}(?:\.\d{1,3}){3}")
_CONTINUES_BEFORE = re.compile(r"[\w$€£¥%=,/-]$|[\d/]\.$", re.ASCII)
_CONTINUES_AFTER = re.compile(r"[\w$€£¥%@=]|[.,:-]\d|/\d", re.ASCII)
# Words before a number that say that it is one to call, so that its digits need no grouping.
_CALL = re.compile(
    r"(?:(?<![\w:.=])(?:t[eé]l\w*|(?:tele)?phones?|call(?: \w+)?|mob(?:ile)?|cell|fax|whats ?app|sms|text(?: \w+)?"
    r"|dial|ring|hotline|contact(?: \w+)?|ph|p|t|m)\b|\N{BLACK TELEPHONE}|\N{TELEPHONE RECEIVER})[^\w\n]{0,4}"
    r"(?:(?:number|no|nr|is|at|on|us|me)\b[^\w\n]{0,3}){0,3}$",
    re.IGNORECASE,
)
LOOK_BACK = 32  # characters before a number in which such words are looked for


@dataclass(frozen=True)
class Candidate:
    """Groups of digits that may be a phone number.

    Attributes:
        text: The text that they are in; what has been found in it already is `\\0`.
        start: Position of the first character, and `end` the one after the last.
        groups: The digits.
        within: What stands between the groups.
        beside: What stands between these groups and the ones before and after them, where there are any.
    """

    text: str
    start: int
    end: int
    groups: Sequence[str]
    within: Sequence[str]
    beside: Sequence[str]

    @property
    def written(self) -> str:
        return self.text[self.start : self.end]

    @property
    def has_plus(self) -> bool:
        return self.written.startswith(("+", "(+"))


def find_phones(text: str, regions: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Start and end of each phone number, with its extension.

    Args:
        text: Where to look.
        regions: ISO 3166 codes of the countries whose national numbers are known.
    """
    position = 0
    for run in _RUN.finditer(text):
        for candidate in _candidates(text, run):
            if candidate.start >= position and _is_phone(candidate, regions):
                extension = _EXTENSION.match(text, candidate.end)
                position = extension.end() if extension else candidate.end
                yield candidate.start, position


def _candidates(text: str, run: re.Match[str]) -> Iterator[Candidate]:
    """The groups from each one on, the longest run of them first."""
    groups = list(_GROUP.finditer(text, run.start(), run.end()))
    gaps = [text[one.end() : other.start()] for one, other in pairwise(groups)]
    for first, group in enumerate(groups):
        # No phone number begins in the middle of a row of numbers, and rows can be long.
        if 0 < first < len(gaps) and gaps[first - 1] == gaps[first] and not _TRUNK.match(text, group.start()):
            continue
        before = text[max(0, group.start() - 3) : group.start()]
        begin = group.start() - len(before) + len(before.rstrip("(+"))
        for last in range(min(first + _MAX_GROUPS, len(groups)) - 1, first - 1, -1):
            digits = [one[0] for one in groups[first : last + 1]]
            if not 7 <= sum(map(len, digits)) <= _MAX_DIGITS:
                continue
            start, end = begin, groups[last].end()
            while text[start] == "(" and text.count("(", start, end) > text.count(")", start, end):
                start += 1  # the parenthesis is around more than the number
            beside = gaps[max(0, first - 1) : first] + gaps[last : last + 1]
            yield Candidate(text, start, end, digits, gaps[first:last], beside)


def _is_phone(candidate: Candidate, regions: Sequence[str]) -> bool:
    if in_a_longer_value(candidate) or is_an_address(candidate) or in_a_table(candidate):
        return False
    if candidate.has_plus:
        return _library_finds(candidate.written, None)
    return any(not has_no_form(candidate, region) and _library_finds(candidate.written, region) for region in regions)


@functools.lru_cache(maxsize=4096)
def _library_finds(written: str, region: str | None) -> bool:
    """Whether it is valid, has the prefix that its country wants, and is no date, timestamp or range of pages."""
    from phonenumbers import Leniency, PhoneNumberMatcher

    return any(match.raw_string == written for match in PhoneNumberMatcher(written, region, Leniency.VALID))


def in_a_longer_value(candidate: Candidate) -> bool:
    """Whether it is part of a price, a decimal number, a path or a name, or closes a parenthesis around more."""
    text, start, end = candidate.text, candidate.start, candidate.end
    if candidate.written.count(")") > candidate.written.count("("):
        return True
    if not candidate.has_plus and _CONTINUES_BEFORE.search(text, max(0, start - 2), start):
        return True
    return bool(_CONTINUES_AFTER.match(text, end)) and not _EXTENSION.match(text, end)


def is_an_address(candidate: Candidate) -> bool:
    """Whether it has the form of an IPv4 address."""
    return _IPV4.fullmatch(candidate.written) is not None


def in_a_table(candidate: Candidate) -> bool:
    """Whether other digits are beside it with the same in between as between its own: `1914 1918 1939 1945`."""
    may_be_in_row = candidate.has_plus or _TRUNK.match(candidate.written)
    return not may_be_in_row and any(gap in candidate.within for gap in candidate.beside)


def has_no_form(candidate: Candidate, region: str) -> bool:
    """Whether its digits are not grouped as in the phone numbers of a country, and nothing says that it is one."""
    import phonenumbers

    groups = candidate.groups
    if candidate.written.startswith(("(", "00")):
        return False
    before = candidate.text[max(0, candidate.start - LOOK_BACK) : candidate.start]
    if _CALL.search(before.rpartition("\0")[2]):
        return False
    if phonenumbers.country_code_for_region(region) == 1:
        return [len(group) for group in groups[groups[0] == "1" :]] != [3, 3, 4]
    if groups[0].startswith("0"):
        return len(groups) < 2 or len(groups[0]) < 2
    return len(groups) < 3
