"""The server's log: one JSON object a line on stderr, for its own words and for uvicorn's.

What was asked and answered is in it with `--log-content` only. The message of an exception may quote it, so without
that a traceback of a request has where each exception was raised and its type.
"""

import logging
import sys
import traceback
from dataclasses import asdict

from pythonjsonlogger.json import JsonFormatter

from hfchat.serving.http.record import RequestRecord, current_record

_LOGGER = logging.getLogger("hfchat.serving.requests")
_PROBES = frozenset({"/health", "/ready", "/metrics"})  # asked every few seconds

_LEVELS = {"hfchat": logging.INFO, "uvicorn": logging.WARNING}


class RequestFilter(logging.Filter):
    """Adds the id of the request that a line belongs to, and takes out what exceptions say in one.

    Args:
        with_content: Whether the log may have what was asked and answered.
    """

    def __init__(self, with_content: bool = False):
        super().__init__()
        self._with_content = with_content

    def filter(self, record: logging.LogRecord) -> bool:
        request_id = current_record().request_id
        if request_id:
            record.request_id = request_id
        # uvicorn logs what a request raised when that is over already.
        of_a_request = bool(request_id) or record.name.startswith("uvicorn")
        if of_a_request and record.exc_info and not self._with_content:
            record.exc_text = _without_messages(record.exc_info[1])
            record.exc_info = None
        return True


def _without_messages(error: BaseException | None) -> str:
    """A traceback that has the exceptions' types in the place of their messages."""
    parts: list[str] = []
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        name = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
        frames = "".join(traceback.format_tb(error.__traceback__))
        parts.append(f"Traceback (most recent call last):\n{frames}{name}")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n\nbecause of:\n\n".join(parts)


def configure_logs(with_content: bool = False) -> None:
    """Have all loggers of the server write JSON to stderr.

    Not by `logging.config`, which closes the handlers of every other library, some of them with their stream.

    Args:
        with_content: Whether it may have what was asked and answered.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonFormatter(
            ["levelname", "name", "message"],
            rename_fields={"levelname": "level", "name": "logger"},
            timestamp="time",
        )
    )
    handler.addFilter(RequestFilter(with_content))
    for name, level in _LEVELS.items():
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


def log_request(record: RequestRecord) -> None:
    """A line for a request that is over; probes only show at level DEBUG."""
    fields: dict[str, object] = {
        "method": record.method,
        "path": record.path,
        "route": record.route,
        "status": record.status,
        "key": record.key_name,
        "version": record.version,
        "seconds": round(record.seconds, 4),
        "error": record.error,
    }
    if record.answers:
        first_tokens = [answer.first_token for answer in record.answers if answer.first_token is not None]
        fields |= {
            "prompt_tokens": record.prompt_tokens,
            "completion_tokens": sum(answer.tokens for answer in record.answers),
            "seconds_to_first_token": round(min(first_tokens) - record.started, 4) if first_tokens else None,
            "finish_reasons": [answer.finish_reason for answer in record.answers],
        }
    if record.with_content and record.answers:
        fields |= {"prompts": record.prompts, "answers": [answer.text for answer in record.answers]}
        if any(answer.reasoning for answer in record.answers):
            fields["reasoning"] = [answer.reasoning for answer in record.answers]
        if any(answer.call_parts for answer in record.answers):
            fields["calls"] = [[asdict(call) for call in answer.calls] for answer in record.answers]
    level = logging.DEBUG if record.path in _PROBES and record.status < 500 else logging.INFO
    _LOGGER.log(level, "request", extra={name: value for name, value in fields.items() if value is not None})
