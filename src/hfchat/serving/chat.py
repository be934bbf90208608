"""`POST /v1/chat/completions`: a request is checked against the engine, waits for a place, and is answered."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from hfchat.serving.engine import Engine, EngineError, FinishReason, PromptError, Sampling
from hfchat.serving.limits import Slots
from hfchat.serving.protocol import (
    AnswerMessage,
    ApiError,
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    Choice,
    ChunkChoice,
    Delta,
    Usage,
)
from hfchat.serving.text import StopStrings


class ChatHandler:
    """Turns a request into its answer, or raises the `ApiError` that says why not."""

    def __init__(self, model_id: str, engine: Engine, slots: Slots, default_max_tokens: int):
        self._model_id = model_id
        self._engine = engine
        self._slots = slots
        self._default_max_tokens = default_max_tokens

    async def __call__(self, request: ChatCompletionRequest) -> Response:
        if request.model != self._model_id:
            raise ApiError(
                404,
                f"The model '{request.model}' does not exist; this server has '{self._model_id}'.",
                param="model",
                code="model_not_found",
            )
        self._slots.check()  # before any work for a request that has no place
        try:
            prompt = await self._engine.encode([message.plain() for message in request.messages])
        except PromptError as error:
            raise ApiError(400, f"messages: {error}", param="messages") from error
        engine = self._engine
        sampling = Sampling(
            max_tokens=self._max_tokens(request, len(prompt)),
            temperature=engine.temperature if request.temperature is None else request.temperature,
            top_p=engine.top_p if request.top_p is None else request.top_p,
            seed=request.seed,
        )
        return Answer(request, prompt, sampling, engine, self._slots)

    def _max_tokens(self, request: ChatCompletionRequest, prompt_tokens: int) -> int:
        field, asked = request.limit
        context = self._engine.context_length
        room = context - prompt_tokens
        if room < 1:
            raise ApiError(
                400,
                f"messages: they take {prompt_tokens} tokens, but the context holds {context}, the answer included.",
                param="messages",
                code="context_length_exceeded",
            )
        if asked is None:
            return min(room, self._default_max_tokens)
        if asked > room:
            raise ApiError(
                400,
                f"{field}: {prompt_tokens} tokens of messages and {asked} of the answer exceed the context of "
                f"{context}; at most {room} are left for the answer.",
                param=field,
                code="context_length_exceeded",
            )
        return asked


class Answer(Response):
    """Generates while it is sent: as server-sent events or as one JSON body. Ends when the client goes away."""

    def __init__(
        self, request: ChatCompletionRequest, prompt: list[int], sampling: Sampling, engine: Engine, slots: Slots
    ):
        super().__init__()
        self._request = request
        self._prompt = prompt
        self._sampling = sampling
        self._engine = engine
        self._slots = slots
        self._completion_tokens = 0
        self._identity = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": request.model}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = asyncio.create_task(self._answer(scope, receive, send))
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                answer.result()
        finally:
            answer.cancel()
            gone.cancel()
            await asyncio.wait({answer, gone})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False
        try:
            async with self._slots.take(), aclosing(self._texts()) as texts:
                if not self._request.stream:
                    return await (await self._whole(texts))(scope, receive, send)
                async for event in self._events(texts):
                    if not started:  # only now, so that what fails before the first token still gets its own status
                        started = True
                        await send(_stream_start())
                    await send(_event(event))
        except (ApiError, EngineError) as error:
            if isinstance(error, EngineError):
                error = ApiError(500, f"The answer could not be generated: {error}", code="engine_error")
            if not started:
                return await error.response()(scope, receive, send)
            await send(_event(error.body.model_dump_json()))
        await send(_event("[DONE]"))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _texts(self) -> AsyncGenerator[tuple[str, FinishReason | None]]:
        """The answer's text, cut at a stop string, with the reason to finish beside the last part."""
        stops = StopStrings(self._request.stops)
        async with aclosing(self._engine.stream(self._prompt, self._sampling)) as pieces:
            async for piece in pieces:
                self._completion_tokens += piece.tokens
                text = stops.push(piece.text)
                if stops.matched:
                    yield text, "stop"
                    return
                if piece.finish_reason is not None:
                    yield text + stops.flush(), piece.finish_reason
                    return
                yield text, None
        raise EngineError("it ended without a reason")

    async def _whole(self, texts: AsyncGenerator[tuple[str, FinishReason | None]]) -> Response:
        parts = [part async for part in texts]
        message = AnswerMessage(content="".join(text for text, _ in parts))
        completion = ChatCompletion(
            **self._identity, choices=[Choice(message=message, finish_reason=parts[-1][1])], usage=self._usage()
        )
        return JSONResponse(completion.model_dump())

    async def _events(self, texts: AsyncGenerator[tuple[str, FinishReason | None]]) -> AsyncGenerator[str]:
        first = True
        async for text, finish_reason in texts:
            if first:
                yield self._chunk(Delta(role="assistant", content=""))
                first = False
            if text:
                yield self._chunk(Delta(content=text))
            if finish_reason is not None:
                yield self._chunk(Delta(), finish_reason)
        if self._include_usage:
            yield ChatCompletionChunk(**self._identity, choices=[], usage=self._usage()).model_dump_json()

    def _chunk(self, delta: Delta, finish_reason: FinishReason | None = None) -> str:
        chunk = ChatCompletionChunk(**self._identity, choices=[ChunkChoice(delta=delta, finish_reason=finish_reason)])
        return chunk.model_dump_json(exclude=None if self._include_usage else {"usage"})

    @property
    def _include_usage(self) -> bool:
        options = self._request.stream_options
        return options is not None and options.include_usage

    def _usage(self) -> Usage:
        prompt, completion = len(self._prompt), self._completion_tokens
        return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


async def _disconnected(receive: Receive) -> None:
    """Return when the client has gone; its body has been read by now."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _stream_start() -> Message:
    headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
    return {"type": "http.response.start", "status": 200, "headers": headers}


def _event(data: str) -> Message:
    return {"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": True}
