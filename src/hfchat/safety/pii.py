"""Personal data in text: email and IP addresses, phone and payment card numbers, found and replaced."""

import functools
import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from hfchat.safety.folding import fold_invisible

KINDS = ("email", "ip", "phone", "card")
# Nobody's: reserved by RFC 2606, RFC 5737 and RFC 3849; 555-0100 is for fiction, and no area code is 555. They are
# never found as personal data. IPv6 addresses, of the kind `ip` too, have a replacement of their own.
REPLACEMENTS = {
    "email": "email@example.com",
    "ip": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "phone": "(555) 555-0100",
    "card": "0000 0000 0000 0000",
}
# In the place of a replacement, and of what has been found, the search sees a character that nothing matches. So a
# replaced text is to it what the original was at the end of its search, where nothing was left to find.
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
# Domains that nobody has, or that are of the local network: RFC 2606, 6761 and 6762, and ICANN's `internal`. What ends
# as the last ones do is a file, `icon@2x.png`.
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

# Seven digits or more with nothing between them but what stands in phone numbers.
_DIGITS = re.compile(r"\d(?:[ ().\-/\u2010-\u2015\xa0]{0,3}\d){6,}")
_GROUP = re.compile(r"\d+")
_MAX_DIGITS, _MAX_GROUPS = 17, 7  # E.164 has 15 digits; `00` or `(0)` may come to them
# What stands between two groups of one number.
_BETWEEN = re.compile(
    r"[./ \xa0]|[ \xa0]?[-\u2010-\u2015][ \xa0]?|[ \xa0]?\(|\)(?:[ \xa0]?[-\u2010-\u2015]?|[./ ])|\)[ \xa0]\("
)
# With a prefix for other towns, `020`, a number begins as others do not.
_TRUNK = re.compile(r"0[1-9]\d{1,3}(?!\d)")
_EXTENSION = re.compile(r"[ ,;]{0,2}(?:x|ext|extension)[ .:]{0,2}\d{1,6}(?!\w)", re.IGNORECASE)
# Words before a number that say that it is one to call, so that its digits need no grouping.
_CALL = re.compile(
    r"(?:(?<![\w:.=])(?:t[eé]l\w*|(?:tele)?phones?|call(?: \w+)?|mob(?:ile)?|cell|fax|whats ?app|sms|text(?: \w+)?"
    r"|dial|ring|hotline|contact(?: \w+)?|ph|p|t|m)\b|\N{BLACK TELEPHONE}|\N{TELEPHONE RECEIVER})[^\w\n]{0,4}"
    r"(?:(?:number|no|nr|is|at|on|us|me)\b[^\w\n]{0,3}){0,3}$",
    re.IGNORECASE,
)
_BEFORE_PHONE = re.compile(r"[\w$€£¥%=,/-]$|[\d/]\.$", re.ASCII)
_AFTER_PHONE = re.compile(r"[\w$€£¥%@=]|[.,:-]\d|/\d", re.ASCII)


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
        seen = fold_invisible(text)
        matches = [
            Match(one.kind, seen.original(one.start), seen.original(one.end), one.text) for one in self.find(seen.text)
        ]
        return _substitute(text, matches, _replacement), Counter(match.kind for match in matches)

    def _find_once(self, text: str) -> list[Match]:
        found = [match for kind in self.kinds for match in self._of_kind(kind, text)]
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
    # Numbers of Canada are valid to the library where those of the US are, and Jersey's with Britain's.
    alike = [other for region in regions for other in _sharing_country_code(region)]
    for run in _DIGITS.finditer(text):
        groups = list(_GROUP.finditer(text, run.start(), run.end()))
        gaps = [text[one.end() : other.start()] for one, other in pairwise(groups)]
        first = 0
        while first < len(groups):
            if (
                0 < first < len(gaps)
                and gaps[first - 1] == gaps[first]
                and not _TRUNK.match(text, groups[first].start())
            ):
                first += 1  # in the midst of a row
                continue
            start, after = _phone_at(text, groups, gaps, first, regions, tuple(alike))
            if after:
                end = groups[after - 1].end()
                if extension := _EXTENSION.match(text, end):
                    end = extension.end()
                yield Match("phone", start, end, text[start:end])
            first = after or first + 1


def _phone_at(
    text: str,
    groups: list[re.Match[str]],
    gaps: list[str],
    first: int,
    regions: Sequence[str],
    alike: tuple[str, ...],
) -> tuple[int, int]:
    """Where a phone number whose digits begin with group `first` starts, and the group after it; or 0."""
    start = groups[first].start()
    for sign in "(+(":  # as in `(+44`
        start -= bool(start) and text[start - 1] == sign
    plus = "+" in text[start : groups[first].start()]
    # A row of numbers with the same between them all is a table, and no part of it a phone number.
    may_be_in_row = plus or _TRUNK.match(text, groups[first].start())
    before = gaps[first - 1] if first and not may_be_in_row else None
    if not plus and _BEFORE_PHONE.search(text[max(0, start - 2) : start]):
        return 0, 0
    candidates, digits, between = [], "", set()
    for end, group in enumerate(groups[first : first + _MAX_GROUPS], first + 1):
        digits += group[0] if len(group[0]) <= _MAX_DIGITS else "0" * _MAX_DIGITS
        after = gaps[end - 1] if end < len(groups) else ""
        if not (after in between and not may_be_in_row):
            candidates.append((end, digits))
        between.add(after)
        if before in between or len(digits) >= _MAX_DIGITS or not _BETWEEN.fullmatch(after):
            break
    for end, digits in reversed(candidates):
        international = plus or digits.startswith("00")
        if not (_may_be_international(digits.removeprefix("00")) if international else _may_be(digits, alike)):
            continue
        stop = groups[end - 1].end()
        opened = start
        while text[opened] == "(" and text.count("(", opened, stop) > text.count(")", opened, stop):
            opened += 1  # the parenthesis is around more than the number
        if text.count("(", opened, stop) != text.count(")", opened, stop):
            continue
        if _AFTER_PHONE.match(text, stop) and not _EXTENSION.match(text, stop):
            continue
        written = [group[0] for group in groups[first:end]]
        if international:
            if _is_valid("+" + digits.removeprefix("00")):
                return opened, end
        elif not _IPV4.fullmatch(text, opened, stop) and any(
            _is_written_as_phone(text, opened, written, region) and _is_national(text[opened:stop], region)
            for region in regions
        ):
            return opened, end
    return 0, 0


def _is_written_as_phone(text: str, start: int, groups: list[str], region: str) -> bool:
    """Whether a number of a region has the form of a phone number, or is called one; others have the same digits."""
    import phonenumbers

    if text[start] == "(" or _CALL.search(text[max(0, start - 32) : start].rpartition(_MASK)[2]):
        return True
    if phonenumbers.country_code_for_region(region) == 1:
        return [len(group) for group in groups[groups[0] == "1" :]] == [3, 3, 4]
    if groups[0].startswith("0"):
        return len(groups) > 1 and len(groups[0]) > 1
    return len(groups) > 2


@functools.cache
def _sharing_country_code(region: str) -> tuple[str, ...]:
    import phonenumbers

    return phonenumbers.COUNTRY_CODE_TO_REGION_CODE[phonenumbers.country_code_for_region(region)]


def _may_be(digits: str, regions: tuple[str, ...]) -> bool:
    """Whether a number might be valid in a region: the library's own patterns, without the cost of its parser."""
    return _national_pattern(regions).fullmatch(digits) is not None


@functools.cache
def _national_pattern(regions: tuple[str, ...]) -> re.Pattern[str]:
    from phonenumbers import PhoneMetadata

    kinds = ("fixed_line", "mobile", "toll_free", "premium_rate", "shared_cost", "personal_number", "voip", "pager")
    kinds += ("uan", "voicemail")
    patterns = []
    for region in regions:
        metadata = PhoneMetadata.metadata_for_region(region)
        assert metadata
        if metadata.national_prefix_transform_rule and metadata.country_code != 1:
            patterns.append(r"\d{7,15}")  # digits are moved before the patterns hold
            continue
        found = [getattr(metadata, kind) for kind in kinds]
        valid = "|".join(kind.national_number_pattern for kind in found if kind and kind.national_number_pattern)
        prefix = metadata.national_prefix_for_parsing or metadata.national_prefix or ""
        patterns.append(f"(?:{prefix})?(?:{valid})")
    return re.compile("|".join(patterns) or "(?!)")


def _may_be_international(digits: str) -> bool:
    import phonenumbers

    for length in (1, 2, 3):
        if regions := phonenumbers.COUNTRY_CODE_TO_REGION_CODE.get(int(digits[:length] or 0)):
            return len(digits) > 6 and (regions[0] == "001" or _may_be(digits[length:], regions))
    return False


@functools.lru_cache(maxsize=4096)
def _is_valid(number: str) -> bool:
    import phonenumbers

    try:
        return phonenumbers.is_valid_number(phonenumbers.parse(number))
    except phonenumbers.NumberParseException:
        return False


@functools.lru_cache(maxsize=4096)
def _is_national(number: str, region: str) -> bool:
    """Whether the library finds it too, with the prefix that its country wants, and takes it for no date or page."""
    import phonenumbers

    matcher = phonenumbers.PhoneNumberMatcher(number, region, leniency=phonenumbers.Leniency.VALID, max_tries=4)
    return any(match.raw_string == number for match in matcher)
