"""Personal data in text: email and IP addresses, phone and payment card numbers, found and replaced."""

import bisect
import functools
import ipaddress
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal, get_args

from hfchat.safety.folding import fold_invisible
from hfchat.safety.phones import find_phones

Kind = Literal["email", "ip", "phone", "card"]
KINDS: tuple[Kind, ...] = get_args(Kind)
# These are nobody's: RFC 2606, RFC 5737 and RFC 3849 reserve them; 555-0100 is for fiction, and no area code is 555.
# They are never found as personal data. IPv6 addresses, of the kind `ip` too, have a replacement of their own.
REPLACEMENTS = {
    "email": "email@example.com",
    "ip": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "phone": "(555) 555-0100",
    "card": "0000 0000 0000 0000",
}
# The search sees this character, which nothing matches, in place of replacements and of what has been found. So a
# replaced text looks to it as the original did at the end of its search, when nothing was left to find.
_MASK = "\0"
_LATIN = r"A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f"
_REPLACED = re.compile(
    rf"(?<![{_LATIN}0-9_])email@example\.com(?![{_LATIN}0-9_-]|\.[{_LATIN}0-9])"
    r"|\(555\) 555-0100(?!\d)|(?<!\w)(?:192\.0\.2\.1|0000 0000 0000 0000)(?!\w)|(?<![\w:])2001:db8::1(?!\w|:+\w)"
)

# RFC 5322's dot-atom in any Latin letters, without the characters that are seldom in addresses and often in code.
_LOCAL = re.compile(rf"[{_LATIN}0-9_.%+'-]")
_LOCAL_CHARACTERS = "".join(filter(_LOCAL.match, map(chr, range(0x250))))
# Not `user@host.net:~$` or `user@host.net:/path`: a shell's prompt, and scp.
_DOMAIN = re.compile(
    rf"(?:[{_LATIN}0-9](?:[{_LATIN}0-9-]{{0,61}}[{_LATIN}0-9])?\.){{1,8}}[A-Za-z]{{2,24}}"
    rf"(?![{_LATIN}0-9_-]|\.[{_LATIN}0-9]|@|:[~/])"
)
# Domains that nobody has, or of the local network: RFC 2606, 6761 and 6762, and ICANN's `internal`. The last ones are
# endings of files, `icon@2x.png`.
_NO_DOMAIN = re.compile(
    r"(?:.*\.)?(?:example(?:\.(?:com|net|org))?|test|invalid|localhost|localdomain|local|internal|lan"
    r"|png|jpe?g|gif|svg|webp|css|m?js|json|html?|pdf)",
    re.IGNORECASE,
)
# Here and below a pattern looks behind after its first character: one that begins with a character is found faster.
_IPV4 = re.compile(r"\d(?<![\w.]\d)(?<![^/]/\d)\d{0,2}(?:\.\d{1,3}){3}(?!\w|\.\d|-(?!(?:\d{1,3}\.){3}\d))")
# A dash before an address is of a range, or of a file's name.
_RANGE = re.compile(r"(?:(?:\d{1,3}\.){3}\d{1,3}|\0)-$")
# Global unicast addresses are those in 2000::/3 (RFC 4291); `ab::cd` is a path in C++ or Rust.
_IPV6 = re.compile(r"[23](?<![\w:.].)[0-9A-Fa-f]{3}:[0-9A-Fa-f:]{1,34}(?![\w:])")
# What stands before a version number, which looks like an address.
_VERSION = re.compile(
    r"(?:\bv\.?|\bver(?:sions?|\.)?|\breleases?|\bbuild|\bfirmware|\brev(?:ision)?|\bsections?|§)\s*$", re.IGNORECASE
)
_CARD = re.compile(
    # 16 or 19 digits by fours; American Express and Diners Club; or in one run.
    r"\d(?<![\w.,+/=-]\d)(?<!\d{4}[ \xa0]\d)"
    r"(?:\d{3}([ \xa0-])\d{4}\1\d{4}\1\d{4}(?:\1\d{3})?|\d{3}([ \xa0-])\d{6}\2\d{4,5}|\d{12,18})"
    r"(?!\w|-\d|[ \xa0]\d{4}|[.,]\d)"
)
# Issuers with the lengths of their numbers: Visa; Mastercard; American Express; Diners Club; JCB, Discover and
# UnionPay; Maestro.
_ISSUED = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}|3[47]\d{13}"
    r"|(?:30[0-5]\d|3095|36\d\d|3[89]\d\d)\d{10}|(?:352[89]|35[3-8]\d|6011|64[4-9]\d|65\d\d|62\d\d)\d{12,15}"
    r"|(?:5018|5020|5038|5893|6304|6759|676[1-3])\d{9,15}"
)


_JSON_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


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
        kinds: What to find: `email`, `ip` (public addresses only), `phone` and `card` (with a valid check digit).
        regions: ISO 3166 codes of the countries whose national phone numbers are found; international ones (`+49 ...`)
            are found in any case.

    Raises:
        ValueError: If a kind or a region is not known.
    """

    def __init__(self, kinds: Sequence[str] = KINDS, regions: Sequence[str] = ("US", "GB")):
        if unknown := set(kinds) - set(KINDS):
            raise ValueError(f"pii: there is no kind '{min(unknown)}'; there are {', '.join(KINDS)}")
        if "phone" in kinds:
            import phonenumbers

            if unknown := set(regions) - set(phonenumbers.SUPPORTED_REGIONS):
                raise ValueError(f"pii: '{min(unknown)}' is not a region with phone numbers, such as US, GB or DE")
        self.kinds, self.regions = tuple(kinds), tuple(regions)

    def find(self, text: str) -> list[Match]:
        """All personal data of the kinds, in order; of two that overlap, the one that starts first."""
        masked = text
        if any(value in text for value in REPLACEMENTS.values()):
            masked = _REPLACED.sub(lambda match: _MASK * len(match[0]), text)
        found: list[Match] = []
        while more := self._find_once(masked):
            found += more
            # What stood beside something found may be found without it.
            masked = _substitute(masked, more, lambda match: _MASK * len(match.text))
        return sorted(found, key=lambda match: match.start)

    def replace(self, text: str) -> tuple[str, Counter[str]]:
        """The text with `REPLACEMENTS` for what was found, and how often each kind was replaced.

        As the guards do, it sees through invisible characters and full-width ones. In a text that has been replaced,
        nothing is found.
        """
        return self._replaced(text, _replacement)

    def replace_in_json(self, text: str) -> tuple[str, Counter[str]]:
        """As `replace`, but a text that is JSON stays JSON: it is replaced in its keys and values.

        A number becomes another number: that of a phone 5555550100, that of a card 0.
        """
        value = _json(text) if text[:1] in ("{", "[") else None
        if value is None:
            return self.replace(text)
        # In each text of it first, where nothing is escaped, ...
        found: Counter[str] = Counter()
        value = self._replace_in(value, found)
        written = json.dumps(value, ensure_ascii=False) if found else text
        # ... then in the whole, where a key says that the number beside it is a phone's.
        replaced, more = self._replaced(written, _replacement_in(written))
        return (replaced, found + more) if _json(replaced) is not None else (written, found)

    def _replace_in(self, value: object, found: Counter[str]) -> object:
        if isinstance(value, str):
            value, more = self.replace_in_json(value)
            found.update(more)
        elif isinstance(value, list):
            return [self._replace_in(item, found) for item in value]
        elif isinstance(value, dict):
            return {self._replace_in(key, found): self._replace_in(item, found) for key, item in value.items()}
        return value

    def _replaced(self, text: str, by: Callable[[Match], str]) -> tuple[str, Counter[str]]:
        seen = fold_invisible(text)
        matches = [
            Match(one.kind, seen.original(one.start), seen.original(one.end), one.text) for one in self.find(seen.text)
        ]
        return _substitute(text, matches, by), Counter(match.kind for match in matches)

    def _find_once(self, text: str) -> list[Match]:
        found = list(chain.from_iterable(self._of_kind(kind, text) for kind in self.kinds))
        found.sort(key=lambda match: (match.start, -match.end))
        kept: list[Match] = []
        for match in found:
            if not kept or match.start >= kept[-1].end:
                kept.append(match)
        return kept

    def _of_kind(self, kind: str, text: str) -> Iterator[Match]:
        if kind == "phone":
            return _phones(text, self.regions)
        return {"email": _emails, "ip": _addresses, "card": _cards}[kind](text)


def luhn(digits: str) -> bool:
    """Whether the last digit checks the others (ISO/IEC 7812-1, annex B)."""
    doubled = (int(digit) * 2 if position % 2 else int(digit) for position, digit in enumerate(reversed(digits)))
    return sum(value - 9 if value > 9 else value for value in doubled) % 10 == 0


def _replacement_in(text: str) -> Callable[[Match], str]:
    """The replacements in a text that is JSON: of a number outside its strings, the digits alone."""
    strings = [found.span() for found in _JSON_STRING.finditer(text)]

    def replacement(match: Match) -> str:
        before = bisect.bisect(strings, (match.start, len(text))) - 1
        if before >= 0 and match.start < strings[before][1]:
            return _replacement(match)
        return str(int("".join(filter(str.isdecimal, _replacement(match)))))

    return replacement


def _json(text: str) -> object:
    """What a text is as JSON; None if it is not."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _replacement(match: Match) -> str:
    return REPLACEMENTS["ipv6" if match.kind == "ip" and ":" in match.text else match.kind]


def _substitute(text: str, matches: Iterable[Match], by: Callable[[Match], str]) -> str:
    parts, position = [], 0
    for match in matches:
        parts += [text[position : match.start], by(match)]
        position = match.end
    return "".join([*parts, text[position:]])


def _emails(text: str) -> Iterator[Match]:
    previous, sign = 0, text.find("@")
    while sign >= 0:  # outwards from each sign: a search from every letter is slow on long runs of them
        before = text[previous:sign]
        local = before[len(before.rstrip(_LOCAL_CHARACTERS)) :].lstrip(".%+'-")
        domain = _DOMAIN.match(text, sign + 1)
        # git@github.com is everybody's.
        if domain and local not in ("", "git") and local[-1] not in ".'" and not _NO_DOMAIN.fullmatch(domain[0]):
            yield Match("email", sign - len(local), domain.end(), f"{local}@{domain[0]}")
        previous, sign = sign + 1, text.find("@", sign + 1)


def _addresses(text: str) -> Iterator[Match]:
    if text.count(".") >= 3:
        for match in _IPV4.finditer(text):
            # Small numbers are versions and sections, `3.1.2.4`: of addresses, one in 30,000 has no others.
            if max(map(int, match[0].split("."))) < 20 or not _is_public(match[0]):
                continue
            before = text[max(0, match.start() - 16) : match.start()]
            if not _VERSION.search(before) and (not before.endswith("-") or _RANGE.search(before)):
                yield Match("ip", match.start(), match.end(), match[0])
    for match in _IPV6.finditer(text):
        address = match[0] if match[0].endswith("::") else match[0].rstrip(":")
        if _is_public(address):
            yield Match("ip", match.start(), match.start() + len(address), address)


@functools.lru_cache(maxsize=4096)
def _is_public(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


def _cards(text: str) -> Iterator[Match]:
    for match in _CARD.finditer(text):
        for number in (match[0], match[0][:19]):  # of four groups; what follows may be the security code
            digits = re.sub(r"\D", "", number)
            if _ISSUED.fullmatch(digits) and luhn(digits):
                yield Match("card", match.start(), match.start() + len(number), number)
                break


def _phones(text: str, regions: Sequence[str]) -> Iterator[Match]:
    for start, end in find_phones(text, regions):
        yield Match("phone", start, end, text[start:end])
