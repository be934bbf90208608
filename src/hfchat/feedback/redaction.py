"""What is taken out of all that is stored: personal data, by the rules of the guards."""

import functools
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from hfchat.safety.pii import PII


@functools.cache
def _pii() -> PII:
    return PII()


def redact(text: str) -> str:
    """The text with replacements for email and IP addresses, phone and card numbers (`hfchat.safety.pii`)."""
    replaced, _ = _pii().replace(text)
    return replaced


def redacted(value: Any, redact: Callable[[str], str]) -> Any:
    """JSON with all texts in it redacted, such as stop strings or the results of tools.

    A model chose the names in the arguments of a call too, and may have written a number without quotes.
    """
    if isinstance(value, Mapping):
        return {
            key: _redacted_arguments(item, redact) if key == "arguments" else redacted(item, redact)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [redacted(item, redact) for item in value]
    return redact(value) if isinstance(value, str) else value


def _redacted_arguments(value: Any, redact: Callable[[str], str]) -> Any:
    if isinstance(value, Mapping):
        # Two names that are redacted alike would be one: the later one gets a number.
        result: dict[str, Any] = {}
        for key, item in value.items():
            name = redact(key)
            result[name if name not in result else f"{name} {len(result)}"] = _redacted_arguments(item, redact)
        return result
    if isinstance(value, list):
        return [_redacted_arguments(item, redact) for item in value]
    if isinstance(value, bool | None):
        return value
    written = redact(str(value))
    return value if written == str(value) else written


def pseudonym(user: str, redact: Callable[[str], str] = redact) -> str:
    """What a user is called in the database: as requests name them, unless that is personal data.

    Then it is a hash, so that they are still told apart, and found by those who know the name. It hides a name from
    who reads the database, not from who guesses it.
    """
    if redact(user) == user:
        return user
    return f"user-{hashlib.sha256(user.encode()).hexdigest()[:32]}"
