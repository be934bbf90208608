"""Server-sent events, read strictly (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

import re

from hfchat.probe.verdicts import FailedError

_FIELDS = {"data", "event", "id", "retry"}


def parse_events(received: bytes) -> list[str]:
    """The data of each event.

    Raises:
        FailedError: If a client that follows the standard would not get all of it.
    """
    try:
        text = received.decode()
    except UnicodeDecodeError as error:
        raise FailedError(f"the stream is not UTF-8: {error}") from None
    if not re.search(r"(\r\n|\n|\r)\1$", text):
        raise FailedError(f"the last event is not ended by an empty line, so that it is lost: {text[-80:]!r}")
    events: list[str] = []
    data: list[str] = []
    for line in re.split(r"\r\n|\n|\r", text):
        name, _, value = line.partition(":")
        if not line:
            events += ["\n".join(data)] if data else []
            data = []
        elif name == "data":
            data.append(value.removeprefix(" "))
        elif name and name not in _FIELDS:  # without a name it is a comment
            raise FailedError(f"a line that does not belong to an event, so that it is lost: {line[:80]!r}")
    return events
