"""What is taken out of all that is stored: personal data, by the rules of the guards."""

import functools
import hashlib
from collections.abc import Callable

from hfchat.safety.pii import PII


@functools.cache
def _pii() -> PII:
    return PII()


def redact(text: str) -> str:
    """The text with replacements for email and IP addresses, phone and card numbers (`hfchat.safety.pii`)."""
    replaced, _ = _pii().replace(text)
    return replaced


def pseudonym(user: str, redact: Callable[[str], str] = redact) -> str:
    """What a user is called in the database: as requests name them, unless that is personal data.

    Then it is a hash, so that they are still told apart, and found by those who know the name. It hides a name from
    who reads the database, not from who guesses it.
    """
    if redact(user) == user:
        return user
    return f"user-{hashlib.sha256(user.encode()).hexdigest()[:32]}"
