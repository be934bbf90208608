"""GraphQL at `/graphql`: the models, chat as a mutation and as a stream, and feedback (https://spec.graphql.org).

Each field asks the server's own REST endpoint, inside the process and with the key of its client. So checks, limits,
guards, keys, logs and errors are those of the REST API, and there is one way to an answer.

Subscriptions come over WebSockets in the protocol `graphql-transport-ws`
(https://github.com/enisdenjo/graphql-ws/blob/master/PROTOCOL.md).
"""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import fields
from datetime import timedelta
from enum import Enum
from typing import Any, TypeVar

from fastapi import FastAPI
from graphql import GraphQLError
from pydantic import BaseModel
from starlette.requests import HTTPConnection
from starlette.types import Message, Scope

from hfchat.errors import UserError
from hfchat.serving.engines.sse import EventReader
from hfchat.serving.http.record import record_of
from hfchat.serving.openai import protocol
from hfchat.serving.openai.errors import ApiError, ErrorResponse
from hfchat.serving.openai.protocol import ChatCompletionChunk

try:
    import strawberry
    from strawberry.extensions import MaskErrors, MaxAliasesLimiter, MaxTokensLimiter, QueryDepthLimiter
    from strawberry.fastapi import BaseContext, GraphQLRouter
    from strawberry.subscriptions import GRAPHQL_TRANSPORT_WS_PROTOCOL
except ImportError as error:
    raise UserError(f"--graphql: {error.name} is not installed; run `pip install 'hfchat[graphql]'`") from error

_Answer = TypeVar("_Answer", bound=BaseModel)

_LOGGER = logging.getLogger("hfchat.serving")
_MAX_TOKENS = 1000  # of a document; texts are better sent as variables
_MAX_DEPTH = 5
_MAX_VALUES = 20_000  # of the JSON of a request: each variable becomes an object, and each error in one is looked for
_INIT_S = 10
_MAX_SUBSCRIPTIONS = 8  # of a connection at a time
_CHAT = "/v1/chat/completions"
_MAX_WAITING = 16  # messages of an answer that its client has not read yet


@strawberry.enum
class Role(Enum):
    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


@strawberry.enum
class Rating(Enum):
    UP = "up"
    DOWN = "down"


@strawberry.input
class MessageInput:
    role: Role
    content: str


@strawberry.input(
    description="As in a request of OpenAI's API; what is not set is the server's choice. There are no tools and no "
    "JSON schemas here: POST /v1/chat/completions and POST /v1/responses have them."
)
class ChatOptions:
    max_tokens: int | None = strawberry.UNSET
    temperature: float | None = strawberry.UNSET
    top_p: float | None = strawberry.UNSET
    stop: list[str] | None = strawberry.UNSET
    seed: int | None = strawberry.UNSET
    presence_penalty: float | None = strawberry.UNSET
    frequency_penalty: float | None = strawberry.UNSET
    user: str | None = strawberry.UNSET
    store: bool | None = strawberry.UNSET


@strawberry.input(
    description="What somebody says about an answer. It replaces all that they have said about it before."
)
class FeedbackInput:
    answer_id: str
    choice: int | None = strawberry.UNSET
    rating: Rating | None = strawberry.UNSET
    correction: str | None = strawberry.UNSET
    comment: str | None = strawberry.UNSET
    tags: list[str] | None = strawberry.UNSET
    preferred_over: str | None = strawberry.UNSET
    user: str | None = strawberry.UNSET


@strawberry.type
class Model:
    id: str
    created: int
    parent: str | None
    version: str | None


@strawberry.type(description="Counts of tokens.")
class Usage:
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


@strawberry.type
class ChatAnswer:
    id: str
    model: str
    version: str | None
    content: str
    reasoning: str | None
    finish_reason: str
    usage: Usage


@strawberry.type(description="A part of an answer; the last one has the finish reason and the usage.")
class ChatPiece:
    id: str
    text: str
    reasoning: str | None = None
    finish_reason: str | None = None
    usage: Usage | None = None


@strawberry.type
class Feedback:
    id: str
    answer_id: str
    rating: Rating | None


class Rest(BaseContext):
    """The server's REST endpoints, asked for one client.

    Args:
        app: The whole application.
        client: Its headers are sent along.
    """

    def __init__(self, app: FastAPI, client: HTTPConnection):
        super().__init__()
        self._app = app
        self._client = client

    async def ask(self, kind: type[_Answer], method: str, path: str, body: object = None) -> _Answer:
        """An answer of this kind.

        Raises:
            GraphQLError: If the answer is an error.
        """
        async with self._asked(method, path, body) as (status, packets):
            answer = b"".join([packet async for packet in packets])
        if status != 200:
            raise _error(json.loads(answer), status)
        return kind.model_validate_json(answer)

    async def chunks(self, body: object) -> AsyncGenerator[ChatCompletionChunk]:
        """The chunks of a streamed chat completion.

        Raises:
            GraphQLError: If the answer, or an event of it, is an error.
        """
        reader = EventReader()
        async with self._asked("POST", _CHAT, body) as (status, packets):
            if status != 200:
                raise _error(json.loads(b"".join([packet async for packet in packets])), status)
            async for packet in packets:
                for event in reader.push(packet):
                    if event == b"[DONE]":
                        return
                    chunk = json.loads(event)
                    if "error" in chunk:
                        raise _error(chunk)
                    yield ChatCompletionChunk.model_validate(chunk)
        raise GraphQLError("The answer broke off.")

    @asynccontextmanager
    async def _asked(self, method: str, path: str, body: object) -> AsyncIterator[tuple[int, AsyncIterator[bytes]]]:
        """Status and body of an answer; leaving the context is what a client does that goes away."""
        content = b"" if body is None else json.dumps(body).encode(errors="replace")
        messages: asyncio.Queue[Message | None] = asyncio.Queue(_MAX_WAITING)
        requests = [{"type": "http.request", "body": content, "more_body": False}]
        gone = asyncio.Event()

        async def receive() -> Message:
            if requests:
                return requests.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def run() -> None:
            with suppress(Exception):  # the outermost layer has logged it
                await self._app(self._scope(method, path, len(content)), receive, messages.put)
            await messages.put(None)

        async def packets() -> AsyncIterator[bytes]:
            while (message := await messages.get()) is not None and message["type"] == "http.response.body":
                yield message.get("body", b"")
                if not message.get("more_body", False):
                    return

        # The application runs beside its reader, as it does under a server.
        task = asyncio.create_task(run())
        try:
            start = await messages.get()
            if start is None:
                raise GraphQLError("The server did not answer.")
            yield start["status"], packets()
        finally:
            gone.set()
            task.cancel()
            await asyncio.wait({task})

    def _scope(self, method: str, path: str, length: int) -> Scope:
        outer = self._client.scope
        kept = (b"host", b"authorization", b"user-agent")
        headers = [(name, value) for name, value in outer["headers"] if name in kept]
        headers += [(b"content-type", b"application/json"), (b"content-length", str(length).encode())]
        headers += [(b"x-request-id", record_of(outer).request_id.encode())]
        return {
            "type": "http",
            "asgi": outer["asgi"],
            "http_version": "1.1",
            "method": method,
            "scheme": {"ws": "http", "wss": "https"}.get(outer["scheme"], outer["scheme"]),
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": headers,
            "server": outer.get("server"),
            "client": outer.get("client"),
        }


def _error(body: object, status: int | None = None) -> GraphQLError:
    """An error of the REST API: its code, or else its type, and the field to blame are in the extensions."""
    error = ErrorResponse.model_validate(body).error
    details = {"code": error.code or error.type, "status": status, "param": error.param}
    extensions = {name: value for name, value in details.items() if value is not None}
    return GraphQLError(error.message, extensions=extensions)


def _fields(given: object) -> dict[str, object]:
    """The fields of an input that were set, as JSON."""
    values = {name: value for name, value in vars(given).items() if value is not strawberry.UNSET}
    return {name: value.value if isinstance(value, Enum) else value for name, value in values.items()}


def _request(model: str, messages: list[MessageInput], options: ChatOptions | None) -> dict[str, object]:
    request = {"model": model, "messages": [_fields(message) for message in messages]}
    return request | (_fields(options) if options else {})


Info = strawberry.Info[Rest, None]


@strawberry.type
class Query:
    @strawberry.field
    async def models(self, info: Info) -> list[Model]:
        listed = await info.context.ask(protocol.ModelList, "GET", "/v1/models")
        names = {field.name for field in fields(Model)}
        return [Model(**model.model_dump(include=names)) for model in listed.data]


@strawberry.type
class Mutation:
    @strawberry.mutation(description="Answer a conversation, without tools.")
    async def chat(
        self, info: Info, model: str, messages: list[MessageInput], options: ChatOptions | None = None
    ) -> ChatAnswer:
        answer = await info.context.ask(protocol.ChatCompletion, "POST", _CHAT, _request(model, messages, options))
        choice = answer.choices[0]
        return ChatAnswer(
            id=answer.id,
            model=answer.model,
            version=answer.system_fingerprint,
            content=choice.message.content or "",
            reasoning=choice.message.reasoning_content,
            finish_reason=choice.finish_reason,
            usage=Usage(**answer.usage.model_dump()),
        )

    @strawberry.mutation(description="Say what an answer was like.")
    async def feedback(self, info: Info, feedback: FeedbackInput) -> Feedback:
        kept = await info.context.ask(protocol.Feedback, "POST", "/v1/feedback", _fields(feedback))
        return Feedback(id=kept.id, answer_id=kept.answer_id, rating=Rating(kept.rating) if kept.rating else None)


@strawberry.type
class Subscription:
    @strawberry.subscription(description="Answer a conversation piece by piece, without tools.")
    async def chat_stream(
        self, info: Info, model: str, messages: list[MessageInput], options: ChatOptions | None = None
    ) -> AsyncGenerator[ChatPiece]:
        streamed = {"stream": True, "stream_options": {"include_usage": True}}
        finish_reason = None
        async with aclosing(info.context.chunks(_request(model, messages, options) | streamed)) as chunks:
            async for chunk in chunks:
                for choice in chunk.choices:
                    finish_reason = choice.finish_reason or finish_reason
                    text, reasoning = choice.delta.content or "", choice.delta.reasoning_content
                    if text or reasoning:
                        yield ChatPiece(id=chunk.id, text=text, reasoning=reasoning)
                if chunk.usage:
                    usage = Usage(**chunk.usage.model_dump())
                    yield ChatPiece(id=chunk.id, text="", finish_reason=finish_reason, usage=usage)


class _Schema(strawberry.Schema):
    def process_errors(self, errors: list[GraphQLError], execution_context: Any = None) -> None:
        """Log faults of the server. The library would log all faults, with what the client has sent."""
        for error in filter(_is_unexpected, errors):
            _LOGGER.error("unexpected error in a GraphQL field", exc_info=error.original_error)


class _Router(GraphQLRouter):
    """Refuses what is not a request before the library looks at it, over HTTP and over WebSockets."""

    def parse_json(self, data: str | bytes) -> Any:
        try:
            return self.decode_json(data)
        except json.JSONDecodeError as error:
            raise ApiError(400, f"The body is not valid: {error.msg}.") from error

    def decode_json(self, data: str | bytes) -> object:
        """An object, or the list of a batch, which the library refuses.

        Raises:
            JSONDecodeError: If it is anything else, too deep, or too much. The library knows only this error.
        """
        try:
            request = json.loads(data)
        except json.JSONDecodeError:
            raise
        except RecursionError:
            raise json.JSONDecodeError("the JSON is nested too deeply", "", 0) from None
        except ValueError:  # characters that are not UTF-8, or a number of thousands of digits
            raise json.JSONDecodeError("a text or a number in the JSON cannot be read", "", 0) from None
        if not isinstance(request, (dict, list)):
            raise json.JSONDecodeError("it must be a JSON object", "", 0)
        if _has_more_values(request, _MAX_VALUES):
            raise json.JSONDecodeError(f"the JSON has more than {_MAX_VALUES} values", "", 0)
        return request


def _has_more_values(value: Any, most: int) -> bool:
    """Whether there are more than so many values in JSON, itself included."""
    waiting, count = [value], 0
    while waiting and count <= most:
        value = waiting.pop()
        count += 1
        if isinstance(value, (dict, list)):
            if len(value) > most:
                return True
            waiting += value.values() if isinstance(value, dict) else value
    return count > most


def _is_unexpected(error: GraphQLError) -> bool:
    return error.original_error is not None and not isinstance(error.original_error, GraphQLError)


def add_graphql(app: FastAPI) -> None:
    """Add the route. There is no page to try it in: those that exist load their scripts from a CDN."""
    schema = _Schema(
        Query,
        Mutation,
        Subscription,
        extensions=[
            lambda: MaxTokensLimiter(_MAX_TOKENS),
            lambda: QueryDepthLimiter(_MAX_DEPTH),
            lambda: MaxAliasesLimiter(0),  # one operation, one answer: an alias could ask for many
            lambda: MaskErrors(_is_unexpected, "Something in the server went wrong; its log says what."),
        ],
    )

    # One for each request or WebSocket, as its key must be.
    async def context(connection: HTTPConnection) -> Rest:
        return Rest(app, connection)

    router = _Router(
        schema,
        graphql_ide=None,
        allow_queries_via_get=False,
        context_getter=context,
        subscription_protocols=[GRAPHQL_TRANSPORT_WS_PROTOCOL],
        connection_init_wait_timeout=timedelta(seconds=_INIT_S),
        max_subscriptions_per_connection=_MAX_SUBSCRIPTIONS,
        include_in_schema=False,
    )
    app.include_router(router, prefix="/graphql")
