"""What is known of a request while it is served: the one source of its log line and of its metrics."""

import logging
import re
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hfchat.chat import CallPart, whole_calls
from hfchat.safety.guards import Finding
from hfchat.serving.openai.errors import ApiError

_LOGGER = logging.getLogger("hfchat.serving")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_CLIENT_GONE = 499  # nginx's status for a client that did not wait for the whole answer


@dataclass
class AnswerRecord:
    """One answer. Times are seconds of `time.monotonic`; `texts`, `thoughts` (its reasoning) and `call_parts` are what
    was sent of it, in parts."""

    tokens: int = 0
    first_token: float | None = None
    last_token: float | None = None
    finish_reason: str | None = None
    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    call_parts: list[CallPart] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def reasoning(self) -> str:
        return "".join(self.thoughts)

    @property
    def calls(self) -> list[CallPart]:
        """Each with all of its arguments."""
        return whole_calls(self.call_parts)

    @property
    def has_content(self) -> bool:
        return any(self.texts) or any(self.thoughts) or bool(self.call_parts)

    def add_tokens(self, count: int) -> None:
        self.tokens += count
        self.last_token = time.monotonic()
        if self.first_token is None:
            self.first_token = self.last_token

    @property
    def seconds_per_token(self) -> float | None:
        """Mean time from a token to the next; None for fewer than two."""
        if self.tokens < 2 or self.last_token is None or self.first_token is None:
            return None
        return (self.last_token - self.first_token) / (self.tokens - 1)


@dataclass
class RequestRecord:
    """One request.

    Attributes:
        request_id: The client's `X-Request-ID` if it is a sane one, otherwise made here.
        method: As sent.
        path: As sent, without the query.
        with_content: Whether what was asked and answered is to be logged.
        route: The pattern of the route that answered, or where the application that did is mounted; None if none did.
        key_name: Whose API key was shown.
        version: The version of the model that answered, if the model has versions.
        status: The status of the answer; 499 if the client went away before its end.
        error: The code of the error that was sent, or else its type.
        prompt_tokens: Tokens of all its prompts, as counted in `usage`.
        prompts: What was asked, if `with_content`.
        answers: One for each answer that was begun.
        findings: What guards found in its prompts and answers.
        started: When it came, in seconds of `time.monotonic`.
        seconds: How long it took, once it is over.
        at_end: Gives back what the request holds, when it is over.
    """

    request_id: str = ""
    method: str = ""
    path: str = ""
    with_content: bool = False
    route: str | None = None
    key_name: str | None = None
    version: str | None = None
    status: int = _CLIENT_GONE
    error: str | None = None
    prompt_tokens: int = 0
    prompts: object = None
    answers: list[AnswerRecord] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    seconds: float = 0.0
    at_end: ExitStack = field(default_factory=ExitStack)

    def begin_answer(self) -> AnswerRecord:
        self.answers.append(AnswerRecord())
        return self.answers[-1]

    def blame(self, error: ApiError) -> None:
        self.error = error.body.error.code or error.body.error.type


def record_of(scope: Scope) -> RequestRecord:
    """The record of a request or a WebSocket, from the scope of any layer inside of `Recording`."""
    return scope["state"]["record"]


async def _record_of(connection: HTTPConnection) -> RequestRecord:
    return record_of(connection.scope)


RecordOfRequest = Annotated[RequestRecord, Depends(_record_of)]  # for the routes

_current: ContextVar[RequestRecord | None] = ContextVar("hfchat_request", default=None)


def current_record() -> RequestRecord:
    """The record of the request that this task serves; outside of one, a new one that nobody reads.

    Only for what is called without any word of its request: the log, and the engines.
    """
    return _current.get() or RequestRecord()


class Recording:
    """Keeps a record of every request, hands it to all of `sinks` at its end, and answers with its `X-Request-ID`.

    It is the outermost layer, so an exception that nobody caught becomes an answer here.
    """

    def __init__(self, app: ASGIApp, sinks: Sequence[Callable[[RequestRecord], None]], with_content: bool = False):
        self._app = app
        self._sinks = sinks
        self._with_content = with_content

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        given = Headers(scope=scope).get("x-request-id", "")
        record = RequestRecord(
            request_id=given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex,
            method=scope.get("method", "WEBSOCKET"),
            path=scope["path"],
            with_content=self._with_content,
        )
        scope.setdefault("state", {})["record"] = record
        # The status of a request is that of its answer, once the answer is whole.
        root_path = scope.get("root_path", "")
        started = 0  # the status that has been sent

        async def recorded_send(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = record.request_id
            await send(message)
            if message["type"] == "websocket.accept":
                record.status = 101
            elif message["type"] == "websocket.close" and record.status == _CLIENT_GONE:
                record.status = 403  # what a handshake that is not accepted is answered with
            elif message["type"] == "http.response.body" and not message.get("more_body", False):
                record.status = started

        token = _current.set(record)
        try:
            await self._app(scope, receive, recorded_send)
        except Exception:
            record.status, record.error = 500, "server_error"
            _LOGGER.exception("unexpected error at %s", record.path)
            if started or scope["type"] == "websocket":
                raise  # the connection must not look as if its answer were whole
            error = ApiError(500, "Something in the server went wrong; its log says what.")
            await error.response()(scope, receive, recorded_send)
        finally:
            # Routers note in the scope where they have found the route.
            mounted_at = scope.get("root_path", "").removeprefix(root_path)
            record.route = getattr(scope.get("route"), "path", None) or mounted_at or None
            record.seconds = time.monotonic() - record.started
            record.at_end.close()
            for sink in self._sinks:
                sink(record)
            _current.reset(token)
