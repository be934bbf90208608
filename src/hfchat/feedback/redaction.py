"""What is taken out of all that is stored: personal data, by the rules of the guards."""

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from hfchat.safety.pii import PII


@functools.cache
def _pii() -> PII:
    return PII()


def redact(text: str) -> str:
    """The text with replacements for email and IP addresses, phone and card numbers (`hfchat.safety.pii`).

    A text that is JSON stays JSON.
    """
    replaced, _ = _pii().replace_in_json(text)
    return replaced


def redacted(value: Any, redact: Callable[[str], str]) -> Any:
    """JSON with all texts in it redacted, such as stop strings or the results of tools.

    A model chose the names in the arguments of a call, too, and may have written a number without quotes: these are
    redacted as a whole.
    """
    if isinstance(value, Mapping):
        return {
            key: json.loads(redact(json.dumps(item, ensure_ascii=False)))
            if key == "arguments" and isinstance(item, Mapping)
            else redacted(item, redact)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [redacted(item, redact) for item in value]
    return redact(value) if isinstance(value, str) else value


def pseudonym(user: str, redact: Callable[[str], str] = redact) -> str:
    """What a user is called in the database: as requests name them, unless that is personal data.

    Then it is a hash, so that they are still told apart, and found by those who know the name. It hides a name from
    who reads the database, not from who guesses it.
    """
    if redact(user) == user:
        return user
    return f"user-{hashlib.sha256(user.encode()).hexdigest()[:32]}"
