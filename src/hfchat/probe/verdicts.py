"""What a check may say of a server, other than that it did what it must."""

from typing import Literal

Verdict = Literal["pass", "FAIL", "skip"]


class FailedError(Exception):
    """The server did what it must not; the message says what was seen."""


class SkippedError(Exception):
    """The check does not apply to this server; the message says why."""
