"""What must not be published: secrets, and paths that tell of the machine and of who works on it.

A few rules of our own, as they are to be quick on whole files and to know the tokens of this field: `detect-secrets`
1.5 (2024) takes minutes for a `tokenizer.json`, and knows neither the Hub's tokens nor the present ones of OpenAI.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hfchat.templates import place

# The forms are those that the services document; each has a fixed beginning, so that a hash or a name is none.
_SECRETS = {
    "a token of the Hugging Face Hub": r"\b(?:hf_|api_org_)[A-Za-z0-9]{30,}",
    "an API key of hfchat": r"\bhfchat-[A-Za-z0-9_-]{43}(?![A-Za-z0-9_-])",
    "an API key of OpenAI, Anthropic or alike": r"\bsk-[A-Za-z0-9_-]{20,}",
    "an access key of AWS": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "a token of GitHub": r"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{40})",
    "a token of GitLab": r"\bglpat-[A-Za-z0-9_-]{20}",
    "a token of Slack": r"\bxox[abeprs]-[A-Za-z0-9-]{10,}",
    "an API key of Google": r"\bAIza[A-Za-z0-9_-]{35}",
    "a key of Stripe": r"\b[rs]k_live_[A-Za-z0-9]{16,}",
    "a token of PyPI or npm": r"\b(?:pypi-AgE[A-Za-z0-9_-]{50,}|npm_[A-Za-z0-9]{36})",
    "a JSON Web Token": r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}",
    "a private key": r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY",
    "a password in a URL": r"://[^\s/:@\"'<>{}$]+:[^\s/:@\"'<>{}$]+@[A-Za-z0-9\[]",
    # A value with letters and digits: prose has none after such a word, and a placeholder begins with `<`, `$` or `{`.
    "a password or key": (
        r"(?i)(?:password|passwd|secret|api[_-]?key|access[_-]?key|(?:auth|access|hub)[_-]?token)['\"]?\s*[:=]\s*['\"]?"
        r"(?=[^\s'\",;<>{}$]*\d)(?=[^\s'\",;<>{}$]*[A-Za-z])[^\s'\",;<>{}$]{8,}"
    ),
}
# Where people and clusters keep their files. A path of a URL, or one below the working directory, is none of these.
_ROOTS = (
    "home|Users|root|work|workspace|mnt|media|tmp|var|data|scratch|srv|opt|content|kaggle|Volumes|private|gpfs|lustre|nfs|"
    "fsx|net|export|projects?"
)
_LOCAL_PATH = (
    rf"(?<![\w:/.~…*)\]}}-])(?:file://)?/(?:{_ROOTS})(?:/[^\s'\"`,;<>|)\]}}]+|(?=['\"`]))"
    r"|(?<![A-Za-z0-9])[A-Za-z]:(?:\\{1,2}|/)(?:Users|Documents|home|work|data|Temp|Program)[^\s'\"`,;<>|]*"
)
_DRIVE = re.compile(r"^(?:file://)?(?:[A-Za-z]:[\\/]{1,2}|/)")
_OF_SECRETS = {what: re.compile(pattern) for what, pattern in _SECRETS.items()}


@dataclass(frozen=True)
class Leak:
    """One thing that must not be published.

    Attributes:
        line: Where, from 1.
        what: It is, in words; never the thing itself.
    """

    line: int
    what: str


def find_leaks(text: str, *, paths: bool = True) -> list[Leak]:
    """The secrets and local paths in a text, in their order.

    Args:
        text: Of a file.
        paths: Look for local paths too; the rows of a dataset speak of many that are nobody's.
    """
    rules = _OF_SECRETS | ({"a path of this machine": _local_paths()} if paths else {})
    found = {(match.start(), what) for what, rule in rules.items() for match in rule.finditer(text)}
    return [Leak(text.count("\n", 0, start) + 1, what) for start, what in sorted(found)]


def clean_paths(text: str) -> str:
    """The text with each local path as `hfchat.templates.place` shows it: its end, or relative to the working
    directory."""
    return _local_paths().sub(lambda match: place(_DRIVE.sub("/", match[0]).replace("\\", "/")), text)


def readable_text(name: str, content: bytes) -> str | None:
    """The text of a file that `find_leaks` may look at, None of one that is no text.

    Of a `tokenizer.json` it is all but the vocabulary: that has pieces of paths, and words like "password", with
    numbers beside them.
    """
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return None
    if name == "tokenizer.json":
        try:
            tokenizer = json.loads(text)
        except ValueError:
            return text
        tokenizer.get("model", {}).update(vocab=None, merges=None)
        return json.dumps(tokenizer, indent=2, ensure_ascii=False)
    return text


def _local_paths() -> re.Pattern:
    """Also the home and the working directory of now, wherever they are."""
    return re.compile("|".join([_LOCAL_PATH, *_own_folders()]))


def _own_folders() -> Iterator[str]:
    for folder in {Path.cwd(), Path.home()}:
        if len(folder.parts) > 2:  # `/app` and the like may be in any Dockerfile
            yield rf"(?<![\w:/.]){re.escape(str(folder))}(?:/[^\s'\"`,;<>|)\]}}]+)?"
