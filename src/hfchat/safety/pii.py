"""Personal data in text: email and IP addresses, phone and payment card numbers, found and replaced."""

import functools
import ipaddress
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

KINDS = ("email", "ip", "phone", "card")
# Values that are nobody's: reserved by RFC 2606, RFC 5737 and RFC 3849, and by the North American Numbering Plan for
# fiction. None of them is found as personal data, or is replaced by itself, so replacing twice changes nothing.
REPLACEMENTS = {
    "email": "email@example.com",
    "ip": "192.0.2.1",
    "phone": "555-0100",
    "card": "0000 0000 0000 0000",
}

# The local part as in RFC 5322's dot-atom, without the characters that are seldom in addresses and often in code.
_EMAIL = re.compile(
    r"(?<![\w.%+'-])[A-Za-z0-9_](?:[A-Za-z0-9_.%+'-]{0,62}[A-Za-z0-9_%+-])?@"
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}(?![\w-]|\.\w|@)"
)
_IPV4 = re.compile(r"(?<![\w.:/-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)")
_IPV6 = re.compile(r"(?<![\w:.])(?=[0-9A-Fa-f]{0,4}:)[0-9A-Fa-f:]{4,39}(?![\w:])")
# What stands before a version number, which looks like an address.
_VERSION = re.compile(r"(?:\bv|\bver(?:sion|\.)?|\brelease|\bbuild|\bfirmware|\bsection|§)\s*$", re.IGNORECASE)
# 13 to 19 digits (ISO/IEC 7812), grouped by single spaces or dashes, and no part of something longer.
_CARD = re.compile(r"(?<![\w.,+/=-])(?:\d[ -]?){12,18}\d(?![\w]|[ -]\d|[.,]\d)")
_ISSUERS = re.compile(
    r"4|5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720|3[47]|30[0-5]|3095|3[689]|35(?:2[89]|[3-8])|6011|64[4-9]|65|62|5018|5020"
    r"|5038|6304|67"
)
_CARD_GROUPS = {(4, 4, 4, 4), (4, 6, 5), (4, 6, 4), (4, 4, 4, 4, 3), (4, 4, 4, 1), (4, 4, 5)}
# Text without seven digits close together has no phone number, and is spared the search for one.
_MAYBE_PHONE = re.compile(r"[+(]?\d(?:[ ().\-/\u2010-\u2015\xa0]{0,3}\d){6,14}")


@dataclass(frozen=True)
class Match:
    """Personal data in a text.

    Attributes:
        kind: One of `KINDS`.
        start: Position of its first character, and `end` the one after its last.
        text: What it is.
    """

    kind: str
    start: int
    end: int
    text: str


class PII:
    """Finds and replaces personal data.

    Args:
        kinds: Which: of `email`, `ip` (public addresses only), `phone` and `card` (with a valid check digit).
        regions: ISO 3166 codes of the countries whose national phone numbers are known by their form; international
            ones (`+49 ...`) are found always.

    Raises:
        ValueError: For a kind or a region that is not known.
    """

    def __init__(self, kinds: Sequence[str] = KINDS, regions: Sequence[str] = ("US", "GB")):
        if unknown := set(kinds) - set(KINDS):
            raise ValueError(f"pii: there is no kind '{min(unknown)}'; there are {', '.join(KINDS)}")
        if "phone" in kinds:
            import phonenumbers

            if unknown := set(regions) - set(phonenumbers.SUPPORTED_REGIONS):
                raise ValueError(f"pii: '{min(unknown)}' is no region with phone numbers, as US, GB or DE are")
        self.kinds, self.regions = tuple(kinds), tuple(regions)

    def find(self, text: str) -> list[Match]:
        """All personal data of the kinds, in order; of two that overlap, the one that starts first."""
        found = [match for kind in self.kinds for match in self._of_kind(kind, text)]
        found.sort(key=lambda match: (match.start, -match.end))
        kept: list[Match] = []
        for match in found:
            if not kept or match.start >= kept[-1].end:
                kept.append(match)
        return kept

    def replace(self, text: str) -> tuple[str, Counter[str]]:
        """The text with `REPLACEMENTS` for what was found, and how often each kind was replaced."""
        matches = [match for match in self.find(text) if match.text != REPLACEMENTS[match.kind]]
        if not matches:
            return text, Counter()
        parts, position = [], 0
        for match in matches:
            parts += [text[position : match.start], REPLACEMENTS[match.kind]]
            position = match.end
        return "".join([*parts, text[position:]]), Counter(match.kind for match in matches)

    def _of_kind(self, kind: str, text: str) -> Iterator[Match]:
        if kind == "phone":
            return _phones(text, self.regions)
        return {"email": _emails, "ip": _addresses, "card": _cards}[kind](text)


def luhn(digits: str) -> bool:
    """Whether the last digit checks the others (ISO/IEC 7812-1, annex B)."""
    doubled = (int(digit) * 2 if position % 2 else int(digit) for position, digit in enumerate(reversed(digits)))
    return sum(value - 9 if value > 9 else value for value in doubled) % 10 == 0


def _emails(text: str) -> Iterator[Match]:
    position = text.find("@")
    while position >= 0:  # around each sign only: a search from every letter is slow on long runs of them
        if position and (text[position - 1].isalnum() or text[position - 1] in "_%+-"):
            start = max(0, position - 65)
            for match in _EMAIL.finditer(text, start, min(len(text), position + 260)):
                if match.start() <= position < match.end():
                    yield Match("email", match.start(), match.end(), match[0])
        position = text.find("@", position + 1)


def _addresses(text: str) -> Iterator[Match]:
    for pattern in (_IPV4, _IPV6):
        for match in pattern.finditer(text):
            candidate = match[0].rstrip(":") if not match[0].endswith("::") else match[0]
            if _is_public(candidate) and not _VERSION.search(text, max(0, match.start() - 12), match.start()):
                yield Match("ip", match.start(), match.start() + len(candidate), candidate)


@functools.lru_cache(maxsize=4096)
def _is_public(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


def _cards(text: str) -> Iterator[Match]:
    for match in _CARD.finditer(text):
        groups = re.split("[ -]", match[0])
        digits = "".join(groups)
        if len(groups) > 1 and tuple(map(len, groups)) not in _CARD_GROUPS:
            continue
        if _ISSUERS.match(digits) and luhn(digits):
            yield Match("card", match.start(), match.end(), match[0])


def _phones(text: str, regions: Sequence[str]) -> Iterator[Match]:
    import phonenumbers

    end = 0
    for candidate in _MAYBE_PHONE.finditer(text):
        if candidate.start() < end:
            continue
        # The library decides with what stands around the number, which is why it gets more than the candidate.
        start = max(0, candidate.start() - 8)
        around = text[start : candidate.end() + 24].split("\n\n")[0]
        for region in (*regions, None):
            for match in phonenumbers.PhoneNumberMatcher(
                around, region, leniency=phonenumbers.Leniency.VALID, max_tries=4
            ):
                if start + match.start >= end and _looks_like_phone(match.raw_string):
                    end = start + match.end
                    yield Match("phone", start + match.start, end, match.raw_string)
            if end > candidate.start():
                break


def _looks_like_phone(number: str) -> bool:
    """Digits in one run are as often an identifier; a phone number is written in groups, or with a plus."""
    return number.startswith(("+", "(")) or len(re.split(r"[\s().\-/\u2010-\u2015]+", number.strip("()"))) >= 3
