"""What every generating endpoint does: check the request, wait for a place, generate, and send it as it comes.

An endpoint gives its request and a `Format` of its answers. Each of a request's answers takes a place of its own.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from pydantic import BaseModel
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from hfchat.serving.engines.engine import (
    Engine,
    EngineError,
    FinishReason,
    Piece,
    Prompt,
    PromptError,
    PromptTooLongError,
    Sampling,
    TokenLogprobs,
)
from hfchat.serving.engines.text import StopStrings
from hfchat.serving.http.auth import RateLimit
from hfchat.serving.http.limits import Reservation, Slots
from hfchat.serving.http.record import AnswerRecord, current_record
from hfchat.serving.openai.guarding import Guarding
from hfchat.serving.openai.protocol import ApiError, GenerationRequest, Usage
from hfchat.serving.versions.models import ServedModels, Version

_LOGGER = logging.getLogger("hfchat.serving")
_MAX_TOKENS = 2**31 - 1  # of an answer, where only an upstream knows its context
# A smaller one is taken for this, as in vLLM (`vllm/sampling_params.py`, "may cause numerical errors nan or inf").
_LEAST_TEMPERATURE = 1e-2
_KEEP_ALIVE_S = 15.0  # proxies and clients close a connection on which nothing has come for a minute or so


@dataclass(frozen=True)
class Part:
    """A part of the answer with this index, ready to be sent.

    `logprobs` has its tokens, each with the characters of the answer that come before it.
    """

    index: int
    text: str
    logprobs: Sequence[tuple[int, TokenLogprobs]] = ()
    finish_reason: FinishReason | None = None


@dataclass(frozen=True)
class Answered:
    """A request and its answers, as they were sent.

    Attributes:
        request: As it came.
        identity: `id`, `created`, `model` and `system_fingerprint` of the response.
        messages: The conversation, as the guards have let it through; empty for a prompt without a template.
        answers: In the order of their indices, each with how its tokens were chosen. One without a finish reason is a
            part, after which its client went away or something failed.
        template_fingerprint: Of the engine's chat template.
    """

    request: GenerationRequest
    identity: Mapping[str, str | int | None]
    messages: Sequence[dict[str, str]]
    answers: Sequence[tuple[AnswerRecord, Sampling]]
    template_fingerprint: str | None


OnAnswered = Callable[[Answered], None]


class Format(Protocol):
    """How an endpoint writes its answers."""

    id_prefix: str

    def whole(self, identity: dict, answers: Sequence[Sequence[Part]], usage: Usage) -> BaseModel:
        """The body for all parts of each answer."""

    def chunks(self, identity: dict, part: Part, first: bool) -> Sequence[BaseModel]:
        """The events for one part; `first` if it is the first one of its answer."""

    def usage(self, identity: dict, usage: Usage) -> BaseModel:
        """The event that carries only the usage."""


class Generation:
    """Turns requests into responses, or raises the `ApiError` that says why not."""

    def __init__(
        self,
        models: ServedModels,
        slots: Slots,
        guarding: Guarding,
        on_answered: OnAnswered | None = None,
        rate_limit: RateLimit | None = None,
        token_limit: RateLimit | None = None,
    ):
        self.guarding = guarding
        self._models = models
        self._slots = slots
        self._on_answered = on_answered
        self._rate_limit = rate_limit
        self._token_limit = token_limit

    def admit(self, request: GenerationRequest, answers: int) -> tuple[Version, Reservation]:
        """What answers it, and its places, which it has until it is over.

        Refuses what has no place, or a model that is not there, before any work for it.
        """
        version = self._models.choose(request)
        record = current_record()
        limited = self._rate_limit is not None and record.key_name is not None
        most = min(self._slots.capacity, self._rate_limit.per_minute) if limited else self._slots.capacity
        if answers > most:
            field = "n" if (request.n or 1) > 1 else "prompt"
            message = f"{field}: at most {most} answers at a time, not {answers}."
            raise ApiError(400, message, param=field)
        reservation = self._slots.reserve(answers, record.key_name)
        record.at_end.callback(reservation.close)
        if limited:  # the request has been counted as one answer when it came
            self._rate_limit.check(record.key_name, answers - 1)
        if self._token_limit is not None and record.key_name is not None:
            self._token_limit.check(record.key_name, 0)
            reservation.on_charge = partial(self._token_limit.charge, record.key_name)
        return version, reservation

    async def encode(self, prompt_field: str, encoding: Awaitable[Prompt]) -> Prompt:
        """The prompt that an engine makes, in no more time than a request may wait.

        Args:
            prompt_field: The request's field that it is made of.
            encoding: What the engine's `encode` returns.
        """
        try:
            async with asyncio.timeout(self._slots.max_wait_s):
                return await encoding
        except PromptError as error:
            code = "context_length_exceeded" if isinstance(error, PromptTooLongError) else None
            raise ApiError(400, f"{prompt_field}: {error}", param=prompt_field, code=code) from error
        except EngineError as error:
            raise _as_api_error(error) from error
        except TimeoutError:
            message = f"The server is busy: the prompt was not read in {self._slots.max_wait_s:g} s."
            raise ApiError(503, message, code="queue_timeout", headers={"Retry-After": "10"}) from None

    def max_tokens(
        self, engine: Engine, prompt: Prompt, prompt_field: str, limit: tuple[str, int | None], default: int
    ) -> int | None:
        """The length of an answer, checked against the context before anything is computed."""
        field, asked = limit
        context = engine.context_length
        if prompt.tokens is None or context is None:
            if asked is not None and asked > _MAX_TOKENS:
                message = f"{field}: at most {_MAX_TOKENS}, not {asked}."
                raise ApiError(400, message, param=field, code="context_length_exceeded")
            return asked  # the upstream checks
        room = context - prompt.tokens
        if room < 1:
            raise ApiError(
                400,
                f"{prompt_field}: {prompt.tokens} tokens, but the context holds {context}, the answer included.",
                param=prompt_field,
                code="context_length_exceeded",
            )
        if asked is None:
            return min(room, default)
        if asked > room:
            raise ApiError(
                400,
                f"{field}: {prompt.tokens} tokens of {prompt_field} and {asked} of the answer exceed the context of "
                f"{context}; at most {room} are left for the answer.",
                param=field,
                code="context_length_exceeded",
            )
        return asked

    def sampling(
        self, engine: Engine, request: GenerationRequest, max_tokens: int | None, logprobs: int | None
    ) -> Sampling:
        temperature = engine.temperature if request.temperature is None else request.temperature
        if temperature is not None and temperature > 0:
            temperature = max(temperature, _LEAST_TEMPERATURE)
        return Sampling(
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=engine.top_p if request.top_p is None else request.top_p,
            seed=request.seed,
            presence_penalty=request.presence_penalty or 0.0,
            frequency_penalty=request.frequency_penalty or 0.0,
            logprobs=logprobs,
            stop=tuple(request.stops),
        )

    def answer(
        self,
        version: Version,
        reservation: Reservation,
        request: GenerationRequest,
        prompts: Sequence[tuple[Prompt, Sampling, str | None]],
        format: Format,
        messages: Sequence[dict[str, str]] = (),
    ) -> "Answer":
        """Answer each prompt `request.n` times. The i-th of them has the request's seed + i, so it can be repeated.

        Args:
            version: Answers.
            reservation: Has a place for each answer.
            request: As it came.
            prompts: For each, how to sample, and if a guard has blocked it, the message that is its answer.
            format: How to write the answers.
            messages: The conversation, as the guards have let it through.
        """
        jobs = []
        for prompt, sampling, message in prompts:
            for i in range(request.n or 1):
                seed = None if sampling.seed is None else _wrapped(sampling.seed + i)
                jobs.append((prompt, replace(sampling, seed=seed), message))
        return Answer(request, jobs, format, messages, version, reservation, self.guarding, self._on_answered)


class Answer(Response):
    """Generates while it is sent: as server-sent events or as one JSON body. Ends when the client goes away."""

    def __init__(
        self,
        request: GenerationRequest,
        jobs: Sequence[tuple[Prompt, Sampling, str | None]],
        format: Format,
        messages: Sequence[dict[str, str]],
        version: Version,
        reservation: Reservation,
        guarding: Guarding,
        on_answered: OnAnswered | None,
    ):
        super().__init__()
        self._request = request
        self._jobs = jobs
        self._format = format
        self._messages = messages
        self._on_answered = on_answered
        self._engine = version.engine
        self._reservation = reservation
        self._guarding = guarding
        self._prompt_tokens = {id(prompt): prompt.tokens or 0 for prompt, _, _ in jobs}
        self._completion_tokens = 0
        self._record = current_record()
        self._records = self._record.begin_answers(len(jobs))
        if self._record.with_content:
            self._record.prompts = request.model_dump(include={"messages", "prompt"}, exclude_unset=True)
        self._identity = {
            "id": f"{format.id_prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": request.model,
            "system_fingerprint": version.name,
        }

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
        events = _EventStream(send)
        try:
            async with aclosing(_merged([self._guarded_parts(index) for index in range(len(self._jobs))])) as parts:
                if not self._request.stream:
                    return await (await self._whole(parts))(scope, receive, send)
                async with events.kept_alive():
                    async for event in self._events(parts):
                        await events.send(event)
        except Exception as error:
            error = _as_api_error(error)
            self._record.blame(error)
            if not events.started:  # so what fails before the first token still gets its own status
                return await error.response()(scope, receive, send)
            await events.send(error.body.model_dump_json())
        finally:
            self._record.prompt_tokens = sum(self._prompt_tokens.values())
            if events.started and any(record.text for record in self._records):
                self._hand_on()  # what was read of an answer that was stopped can get feedback too
        await events.end()

    async def _guarded_parts(self, index: int) -> AsyncGenerator[Part]:
        """The parts of one answer that may be sent."""
        _, _, message = self._jobs[index]
        if message is not None:
            yield self._noted(Part(index, message, finish_reason="content_filter"))
            return
        async with aclosing(self._guarding.answer(self._parts(index))) as parts:
            async for part in parts:
                yield self._noted(part)

    def _noted(self, part: Part) -> Part:
        """Note a part that is about to be sent. The whole answers are handed on before their client has all of them,
        as it may come back with feedback at once."""
        record = self._records[part.index]
        record.finish_reason = part.finish_reason
        record.text += part.text
        if all(record.finish_reason for record in self._records):
            self._hand_on()
        return part

    def _hand_on(self) -> None:
        if self._on_answered is not None:
            answers = list(zip(self._records, (sampling for _, sampling, _ in self._jobs), strict=True))
            template = self._engine.template_fingerprint
            self._on_answered(Answered(self._request, self._identity, self._messages, answers, template))
            self._on_answered = None

    async def _parts(self, index: int) -> AsyncGenerator[Part]:
        """The parts of one answer, cut at a stop string, in a place of its own.

        An answer whose time is over ends as if it had got too long: what there is of it is of use, and an error would
        make clients ask for all of it again.
        """
        prompt, sampling, _ = self._jobs[index]
        stops = StopStrings(self._request.stops)
        held: list[tuple[int, int, TokenLogprobs]] = []  # with the start and the end of their text
        pushed = sent = 0

        def part(text: str, finish_reason: FinishReason | None = None) -> Part:
            nonlocal held, sent
            sent += len(text)
            # Of a token that a stop string cuts, the beginning has been sent.
            ready = [(start, token) for start, end, token in held if end <= sent or (finish_reason and start < sent)]
            held = [(start, end, token) for start, end, token in held if end > sent]
            return Part(index, text, ready, finish_reason)

        async with self._reservation.take() as deadline, aclosing(self._engine.stream(prompt, sampling)) as pieces:
            self._reservation.charge(prompt.tokens or 0)
            while True:
                try:
                    piece = await _next(pieces, deadline)
                except _TimeIsOverError:
                    if not self._records[index].tokens:
                        message = "The answer was not begun in the time that this server has for one."
                        raise ApiError(504, message, code="generation_timeout") from None
                    yield part(stops.flush(), "length")
                    return
                if piece is None:
                    break
                self._completion_tokens += piece.tokens
                self._reservation.charge(piece.tokens)
                self._records[index].add_tokens(piece.tokens)
                if piece.prompt_tokens is not None:
                    self._prompt_tokens[id(prompt)] = piece.prompt_tokens
                held += [(pushed, pushed + len(piece.text), token) for token in piece.logprobs]
                pushed += len(piece.text)
                text = stops.push(piece.text)
                if stops.matched:
                    yield part(text, "stop")
                    return
                if piece.finish_reason is not None:
                    yield part(text + stops.flush(), piece.finish_reason)
                    return
                yield part(text)
        raise EngineError("it ended without a reason")

    async def _whole(self, parts: AsyncGenerator[Part]) -> Response:
        answers: list[list[Part]] = [[] for _ in self._jobs]
        async for part in parts:
            answers[part.index].append(part)
        body = self._format.whole(self._identity, answers, self._usage())
        return JSONResponse(body.model_dump())

    async def _events(self, parts: AsyncGenerator[Part]) -> AsyncGenerator[str]:
        include_usage = self._request.include_usage
        begun: set[int] = set()
        async for part in parts:
            for chunk in self._format.chunks(self._identity, part, first=part.index not in begun):
                yield chunk.model_dump_json(exclude=None if include_usage else {"usage"})
            begun.add(part.index)
        if include_usage:
            yield self._format.usage(self._identity, self._usage()).model_dump_json()

    def _usage(self) -> Usage:
        prompt, completion = sum(self._prompt_tokens.values()), self._completion_tokens
        return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


def _wrapped(seed: int) -> int:
    """The seed as a signed number of 64 bits, which is what a seed is everywhere; after the largest is the least."""
    return (seed + 2**63) % 2**64 - 2**63


async def _merged(streams: Sequence[AsyncGenerator[Part]]) -> AsyncGenerator[Part]:
    """The parts of the answers as they come. The first failure ends all.

    They are made whether they are read or not, so an answer keeps its place no longer than it takes to make it,
    however slowly its client reads.
    """
    parts: asyncio.Queue[Part | Exception] = asyncio.Queue()

    async def forward(stream: AsyncGenerator[Part]) -> None:
        try:
            async with aclosing(stream):
                async for part in stream:
                    parts.put_nowait(part)
        except Exception as error:
            parts.put_nowait(error)

    tasks = {asyncio.create_task(forward(stream)) for stream in streams}
    running = len(streams)
    try:
        while running:
            part = await parts.get()
            if isinstance(part, Exception):
                raise part
            running -= part.finish_reason is not None
            yield part
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _disconnected(receive: Receive) -> None:
    """Return when the client has gone; its body has been read by now."""
    while (await receive())["type"] != "http.disconnect":
        pass


class _TimeIsOverError(Exception):
    pass


async def _next(pieces: AsyncGenerator[Piece], deadline: float | None) -> Piece | None:
    """The next piece, None after the last one."""
    timeout = asyncio.timeout_at(deadline)
    try:
        async with timeout:
            return await anext(pieces, None)
    except TimeoutError:
        if not timeout.expired():  # it is the engine's own
            raise
        raise _TimeIsOverError from None


def _as_api_error(error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, EngineError):
        return ApiError(500, f"The answer could not be generated: {error}", code="engine_error")
    _LOGGER.error("unexpected error in an answer", exc_info=error)
    return ApiError(500, "Something in the server went wrong; its log says what.")


class _EventStream:
    """A response of server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

    def __init__(self, send: Send):
        self.started = False
        self._send = send
        self._sent = 0
        self._one_at_a_time = asyncio.Lock()

    async def send(self, data: str) -> None:
        await self._write(f"data: {data}\n\n")

    async def end(self) -> None:
        await self.send("[DONE]")
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    @asynccontextmanager
    async def kept_alive(self) -> AsyncIterator[None]:
        """Send a comment, which clients skip, whenever there was nothing else to send for a while."""
        task = asyncio.create_task(self._keep_alive())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def _keep_alive(self) -> None:
        while True:
            sent = self._sent
            await asyncio.sleep(_KEEP_ALIVE_S)
            if self._sent == sent:
                await self._write(": keep-alive\n\n")

    async def _write(self, text: str) -> None:
        async with self._one_at_a_time:
            if not self.started:
                self.started = True
                headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
                await self._send({"type": "http.response.start", "status": 200, "headers": headers})
            self._sent += 1
            await self._send({"type": "http.response.body", "body": text.encode(), "more_body": True})
