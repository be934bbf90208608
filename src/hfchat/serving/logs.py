"""The server's log: one JSON object a line on stderr, for its own words and for uvicorn's."""

import logging
import sys

from pythonjsonlogger.json import JsonFormatter

from hfchat.serving.record import RequestRecord, current_record

_LOGGER = logging.getLogger("hfchat.serving.requests")
_PROBES = frozenset({"/health", "/ready", "/metrics"})  # asked every few seconds

_LEVELS = {"hfchat": logging.INFO, "uvicorn": logging.WARNING}


class RequestFilter(logging.Filter):
    """Adds the id of the request that a line belongs to."""

    def filter(self, record: logging.LogRecord) -> bool:
        if request_id := current_record().request_id:
            record.request_id = request_id
        return True


def configure_logs() -> None:
    """Have all loggers of the server write JSON to stderr.

    Not by `logging.config`, which closes the handlers of every other library, some of them with their stream.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonFormatter(
            ["levelname", "name", "message"],
            rename_fields={"levelname": "level", "name": "logger"},
            timestamp="time",
        )
    )
    handler.addFilter(RequestFilter())
    for name, level in _LEVELS.items():
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


def log_request(record: RequestRecord) -> None:
    """A line for a request that is over; probes only show at level DEBUG."""
    fields = {
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
    level = logging.DEBUG if record.path in _PROBES and record.status < 500 else logging.INFO
    _LOGGER.log(level, "request", extra={name: value for name, value in fields.items() if value is not None})
