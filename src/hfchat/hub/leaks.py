"""What must not be published: secrets, and paths that tell of the machine and of who works on it.

The rules are our own, because they have to be quick on whole files and to know the tokens of this field:
`detect-secrets` 1.5 (2024) takes minutes for a `tokenizer.json`, and knows neither the Hub's tokens nor the present
ones of OpenAI.
"""

import base64
import binascii
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from hfchat.templates import place


@dataclass(frozen=True)
class _Rule:
    """One kind of secret.

    Attributes:
        what: What it is, in words.
        begins: Each match begins with one of these: they are looked for first, because a pattern that is tried at
            every letter takes a hundred times as long.
        pattern: The whole of it. Every repetition in front of something else is bounded, so that no text takes long.
        ignores_case: Whether `begins` is in lower case, for letters in any.
        is_word: Whether neither a letter nor a digit may stand before it.
        check: Whether a match is one, where the pattern alone cannot say.
    """

    what: str
    begins: tuple[str, ...]
    pattern: re.Pattern[str]
    ignores_case: bool = False
    is_word: bool = True
    check: Callable[[re.Match[str]], bool] = bool

    def starts(self, text: str, lower: str) -> Iterator[int]:
        """Where it is found in a text, of which the lower case is given too."""
        searched = lower if self.ignores_case else text
        for begin in self.begins:
            start = searched.find(begin)
            while start >= 0:
                is_inside = self.is_word and start and text[start - 1].isalnum() and text[start - 1].isascii()
                match = None if is_inside else self.pattern.match(text, start)
                if match and self.check(match):
                    yield start
                start = searched.find(begin, start + 1)


def _rule(what: str, begins: str, rest: str) -> _Rule:
    """A rule by the beginnings, with blanks between them, and the pattern of what comes after any of these."""
    return _Rule(what, tuple(begins.split()), re.compile(f"(?:{'|'.join(map(re.escape, begins.split()))})(?:{rest})"))


def _named(what: str, names: str, rest: str) -> _Rule:
    """The same of names in any case, which may be the end of longer ones: `WANDB_API_KEY`."""
    rule = _rule(what, names, rest)
    return replace(rule, pattern=re.compile(rule.pattern.pattern, re.IGNORECASE), ignores_case=True, is_word=False)


def _is_login(match: re.Match[str]) -> bool:
    """Whether something in Base64 is `user:password`."""
    login = _decoded(match[1])
    return login.isascii() and login.isprintable() and 0 < login.find(":") < len(login) - 1


def _is_private_key(match: re.Match[str]) -> bool:
    return "PRIVATE KEY" in _decoded(match[0][:60])


def _is_signature(match: re.Match[str]) -> bool:
    """Whether it is that of a SAS: with the end of Base64, or other fields beside it. Ids of books have neither."""
    around = match.string[max(0, match.start() - 500) : match.end() + 500]
    return match[0].lower().endswith(("=", "%3d")) or _FIELD_OF_SAS.search(around) is not None


def _decoded(text: str) -> str:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4)).decode("latin-1")
    except (binascii.Error, ValueError):
        return ""


_FIELD_OF_SAS = re.compile(r"[?&;](?:sv|se|sp|sr|skn)=[A-Za-z0-9]")
# Prose has no digits in the word after "password:", and a placeholder begins with `<`, `$`, `{` or `*`. How far a
# digit is looked for is bounded, or `password:password:...` would be read to its end at every `password`.
_VALUE = r"[^\s'\",;<>{}$()\[\]\\`*]"
_SOME_VALUE = rf"(?!/)(?={_VALUE}{{0,200}}\d)(?={_VALUE}{{0,200}}[A-Za-z]){_VALUE}{{8,}}"
# Between a name and its value. In a CSV file quotes are doubled, in JSON within JSON they have backslashes.
_QUOTES = r"['\"\\]{0,4}"
_ASSIGNED = rf"{_QUOTES}\s{{0,20}}[:=]\s{{0,20}}{_QUOTES}"
_CODE = r"[A-Za-z0-9_.~+/=-]"
_TWO_DIGITS = r"(?=(?:[A-Za-z_.~+/=-]{0,100}\d){2})(?=[0-9_.~+/=-]{0,100}[A-Za-z])"
_SCHEME = r"(?:bearer|basic|token)\s{1,9}"
_WORD = "[A-Za-z0-9_-]"
# The forms are those that the services document. Each has a fixed beginning, so that no hash or name looks like one.
_SECRETS = (
    _rule("a token of the Hugging Face Hub", "hf_ api_org_", "[A-Za-z0-9]{30,}"),
    _rule("an API key of hfchat", "hfchat-", f"{_WORD}{{43}}(?!{_WORD})"),
    _rule("an API key of OpenAI, Anthropic or alike", "sk-", rf"(?=[A-Za-z_-]{{0,100}}\d){_WORD}{{20,}}"),
    _rule("an API key of Groq, Replicate, xAI or Perplexity", "gsk_ r8_ xai- pplx-", "[A-Za-z0-9]{20,}"),
    _rule("an API key of NVIDIA, Together or LangSmith", "nvapi- tgp_v1_ lsv2_pt_ lsv2_sk_", f"{_WORD}{{20,}}"),
    _rule("an access key of AWS", "AKIA ASIA", "[A-Z0-9]{16}(?![A-Za-z0-9])"),
    _rule("a token of GitHub", "ghp_ gho_ ghu_ ghs_ ghr_", "[A-Za-z0-9]{36}"),
    _rule("a token of GitHub", "github_pat_", "[A-Za-z0-9_]{40}"),
    _rule("a token of GitLab", "glpat- gldt- glrt- glcbt- glptt- glft- glsoat-", f"{_WORD}{{20}}"),
    _rule("a token of Slack", "xox", "[a-z]-[A-Za-z0-9-]{10,}"),
    _rule("a token of Slack", "xapp-", r"\d-[A-Za-z0-9-]{10,}"),
    _rule(
        "a webhook of Slack", "hooks.slack.com/", "(?:services|workflows|triggers)/[A-Za-z0-9/_-]{20,}"
    ),
    _rule(
        "a webhook of Discord", "discord.com/api/ discordapp.com/api/", rf"(?:v\d+/)?webhooks/\d{{5,}}/{_WORD}{{20,}}"
    ),
    _Rule(
        "a token of a Telegram bot",
        (":",),
        re.compile(
            rf":(?<=\d{{8}}:)(?={_WORD}{{0,34}}[a-z])(?={_WORD}{{0,34}}[A-Z]){_WORD}{{35}}(?!{_WORD})"
        ),
        is_word=False,
    ),
    _Rule(
        "a token of a Discord bot",
        (".",),
        re.compile(rf"\.(?<={_WORD}{{23}}\.){_WORD}{{6}}\.(?={_WORD}{{0,26}}\d){_WORD}{{27}}"),
        is_word=False,
    ),
    _rule("a key of Google", "AIza", f"{_WORD}{{35}}"),
    _rule("a token of Google", "ya29. GOCSPX-", f"{_WORD}{{20,}}"),
    _rule("a key of Stripe", "sk_live_ rk_live_ sk_test_ rk_test_ whsec_", "[A-Za-z0-9+/]{16,}"),
    _rule("a key of SendGrid", "SG.", rf"{_WORD}{{16,32}}\.{_WORD}{{16,}}"),
    _rule("a key of Twilio", "SK", "[0-9a-f]{32}(?![A-Za-z0-9])"),
    _rule("a token of DigitalOcean", "dop_v1_ doo_v1_ dor_v1_", "[a-f0-9]{32,}"),
    _rule("a token of Databricks", "dapi", "[a-f0-9]{32}(?![a-z0-9])"),
    _rule("a token of Vault", "hvs. hvb. hvr.", f"{_WORD}{{20,}}"),
    _rule("a key of Azure", "AccountKey= SharedAccessKey=", "[A-Za-z0-9+/]{30,}"),
    replace(_rule("a signed URL", "sig=", "[A-Za-z0-9%+/_-]{30,120}={0,2}"), check=_is_signature),
    _rule("a signed URL", "X-Amz-Signature= X-Goog-Signature=", "[0-9A-Fa-f]{40,}"),
    _rule("a token of PyPI", "pypi-AgE", f"{_WORD}{{50,}}"),
    _rule("a token of npm", "npm_", "[A-Za-z0-9]{36}"),
    _rule("a token of Docker Hub", "dckr_pat_", f"{_WORD}{{20,}}"),
    # It begins where its alphabet does: from every `eyJ` in `eyJ-eyJ-...` it would be read to the end.
    _rule("a JSON Web Token", "eyJ", rf"(?<!{_WORD}eyJ){_WORD}{{10,}}\.eyJ{_WORD}{{10,}}\.{_WORD}{{10,}}"),
    _rule("a private key", "-----BEGIN", " (?:[A-Z0-9]{1,20} ){0,4}PRIVATE KEY"),
    _rule("a private key", "AGE-SECRET-KEY-1", "[A-Za-z0-9]{40,}"),
    _rule("a private key", "PuTTY-User-Key-File-", r"\d"),
    replace(_rule("a private key", "LS0tLS1CRUdJTi", "[A-Za-z0-9+/]{46,}"), check=_is_private_key),  # in Base64
    replace(
        _rule(
            "a password in a URL",
            "://",
            r"[^\s/:@\"'<>{}$`\\]{0,200}:(?![*.%$]{2}|\$[A-Z{(])[^\s/@\"'<>{}`()\\]{1,200}@[A-Za-z0-9\[]",
        ),
        is_word=False,
    ),
    _named("an Authorization header", "bearer basic", rf"\s{{1,9}}{_TWO_DIGITS}{_CODE}{{20,}}"),
    _named(
        "an Authorization header",
        "authorization",
        rf"{_ASSIGNED}(?:{_SCHEME})?{_QUOTES}{_TWO_DIGITS}{_CODE}{{16,}}",
    ),
    replace(
        _named("a login of Docker or npm", "auth", rf"{_ASSIGNED}([A-Za-z0-9+/]{{8,}}={{0,2}})"), check=_is_login
    ),
    _named(
        "a login of a .netrc file",
        "machine default",
        r"(?:(?<=machine)\s{1,20}\S{1,255})?\s{1,20}login\s{1,20}\S{1,255}\s{1,20}"
        r"(?:account\s{1,20}\S{1,255}\s{1,20})?password\s{1,20}[^\s<${*]{4}",
    ),
    _named(
        "a password or key",
        "password passwd passphrase secret credential pwd",
        rf"s?(?:[_-]?(?:key|value))?{_ASSIGNED}{_SOME_VALUE}",
    ),
    _named("a password or key", "api access account private", rf"[_-]?key{_ASSIGNED}{_SOME_VALUE}"),
    _named(
        "a password or key", "api auth access bearer bot hub refresh session", rf"[_-]?token{_ASSIGNED}{_SOME_VALUE}"
    ),
    _named("a token", "token", rf"['\"\\]{{1,4}}\s{{0,20}}[:=]\s{{0,20}}['\"\\]{{1,4}}{_TWO_DIGITS}{_CODE}{{12,}}"),
    _named("a token", "token", rf"(?<![a-z?&;]token)(?:=|:\s{{1,20}}){_QUOTES}{_TWO_DIGITS}{_CODE}{{20,}}(?![\w(\[])"),
)  # fmt: skip
# Where people and clusters keep their files. A path in a URL, or one below the working directory, does not count.
_ROOTS = (
    "home|Users|root|work|workspace|mnt|media|tmp|var|data|scratch|srv|opt|content|kaggle|Volumes|private|gpfs|lustre|nfs|"
    "fsx|net|export|projects?"
)
_LOCAL_PATH = (
    rf"(?<![\w:/.~…*)\]}}-])(?:file://)?/(?:{_ROOTS})(?:/[^\s'\"`,;<>|)\]}}]+|(?=['\"`]))"
    r"|(?<![A-Za-z0-9])[A-Za-z]:(?:\\{1,2}|/)(?:Users|Documents|home|work|data|Temp|Program)[^\s'\"`,;<>|]*"
)
_DRIVE = re.compile(r"^(?:file://)?(?:[A-Za-z]:[\\/]{1,2}|/)")
# As JSON, YAML, Python and Markdown write what cannot stand for itself.
_ESCAPE = re.compile(
    r"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|U000([0-9a-fA-F]{5})|([^\w\s]|_)|[abefnrtv]|0[0-7]{0,2})"
)
_MAX_ESCAPES = 4  # JSON within JSON within JSON
_LETTERS = re.compile("[A-Z]+")
_COLOUR = re.compile(r"\x1b\[[0-9;]{0,20}[A-Za-z]")  # as terminals write it, and notebooks keep it


@dataclass(frozen=True)
class Leak:
    """One thing that must not be published.

    Attributes:
        line: Its line, from 1.
        what: What it is, in words; never the thing itself.
    """

    line: int
    what: str


def find_leaks(text: str, *, paths: bool = True) -> list[Leak]:
    """The secrets and local paths in a text, in the order of their lines, each kind once a line.

    They are looked for in the text and in what its escapes stand for: in `"a\\nhf_..."`, where JSON writes a line
    break as `\\n`, the token is not part of a word that begins with `n`.

    Args:
        text: Text of a file.
        paths: Whether to look for local paths too.
    """
    found: set[tuple[int, str]] = set()
    for form in _forms(text):
        # Names are compared in lower case, which must have its letters where the text has them.
        lower = form.lower()
        if len(lower) != len(form):  # of a letter such as "İ", which becomes two
            lower = _LETTERS.sub(lambda letters: letters[0].lower(), form)
        starts: list[tuple[int, str]] = []
        for rule in _SECRETS:
            starts += [(start, rule.what) for start in rule.starts(form, lower)]
        if paths:
            starts += [(match.start(), "a path of this machine") for match in _local_paths().finditer(form)]
        if starts:
            ends = [match.start() for match in re.finditer("\n", form)]
            found |= {(bisect_right(ends, start) + 1, what) for start, what in starts}
    return [Leak(line, what) for line, what in sorted(found)]


def clean_paths(text: str) -> str:
    """The text with each local path as `hfchat.templates.place` shows it: its end, or relative to the working
    directory."""
    return _local_paths().sub(lambda match: place(_DRIVE.sub("/", match[0]).replace("\\", "/")), text)


def _forms(text: str) -> Iterator[str]:
    """The text, and what it stands for, once and again; the lines stay the same."""
    yield text
    for _ in range(_MAX_ESCAPES):
        before = text
        if "\\" in text:
            text = _ESCAPE.sub(_unescaped, text)
        if text != before:
            yield text
        if "\x1b" in text:  # a colour may begin before a secret, or be that of a part of it
            yield _COLOUR.sub("\v", text)
            yield _COLOUR.sub("", text)
        if text == before:
            return


def _unescaped(escape: re.Match[str]) -> str:
    if code := escape[1] or escape[2] or escape[3]:
        character = chr(int(code, 16))
    else:
        character = "\x1b" if escape[0] in (r"\e", r"\033") else escape[4] or "\v"
    return "\v" if character == "\n" else character  # blank as well, and no line


def _local_paths() -> re.Pattern:
    """Also the home and the working directory of now, wherever they are."""
    return re.compile("|".join([_LOCAL_PATH, *_own_folders()]))


def _own_folders() -> Iterator[str]:
    for folder in {Path.cwd(), Path.home()}:
        if len(folder.parts) > 2:  # `/app` and the like may be in any Dockerfile
            yield rf"(?<![\w:/.]){re.escape(str(folder))}(?:/[^\s'\"`,;<>|)\]}}]+)?"
