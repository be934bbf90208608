"""What every generating endpoint does: check the request, wait for a place, generate, and send it as it comes.

An endpoint gives `respond` its request, the prompts in it and a `Format` of its answers. Each of a request's answers
takes a place of its own.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

from fastapi.sse import format_sse_event
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from hfchat.serving.engines.engine import (
    EngineError,
    FinishReason,
    Piece,
    Sampling,
    TokenLogprobs,
)
from hfchat.serving.engines.text import StopStrings
from hfchat.serving.http.limits import Reservation, Slots
from hfchat.serving.http.rates import RateLimit
from hfchat.serving.http.record import AnswerRecord, RequestRecord
from hfchat.serving.openai.errors import ApiError
from hfchat.serving.openai.formats import Format, Identity, Part, Source
from hfchat.serving.openai.guarding import Guarding
from hfchat.serving.openai.protocol import Usage
from hfchat.serving.openai.questions import Question, QuestionReader, as_api_error, check_honoured
from hfchat.serving.openai.requests import AnswerableRequest
from hfchat.serving.patience import Patience
from hfchat.serving.versions.models import ServedModels, Version

_LOGGER = logging.getLogger("hfchat.serving")
_ASKED = {"messages", "tools", "response_format", "prompt"}  # what the log has of a request, with --log-content
_KEEP_ALIVE = format_sse_event(comment="keep-alive")
_KEEP_ALIVE_S = 15.0  # proxies and clients close a connection on which nothing has come for a minute or so


@dataclass(frozen=True)
class Service:
    """What all generating endpoints of a server share.

    Attributes:
        models: Generate the answers.
        slots: Places for answers.
        guarding: Looks at prompts and answers.
        default_max_tokens: Length of an answer whose request does not say.
        on_answered: Called once with the answers of a request, before its client has all of them and may come back
            with feedback.
        rate_limit: For answers of each API key.
        token_limit: For tokens of each API key.
    """

    models: ServedModels
    slots: Slots
    guarding: Guarding
    default_max_tokens: int
    on_answered: Callable[["Answers"], None] | None = None
    rate_limit: RateLimit | None = None
    token_limit: RateLimit | None = None


@dataclass(frozen=True)
class Job:
    """One answer that is to be generated, and what is noted about it meanwhile."""

    index: int
    question: Question
    sampling: Sampling
    record: AnswerRecord


@dataclass
class Answers:
    """A request that was let in, and the answers to it. One without a finish reason is a part, after which its client
    went away or something failed.

    Attributes:
        handed_on: Whether `Service.on_answered` has had them.
    """

    service: Service
    request: AnswerableRequest
    record: RequestRecord
    format: Format
    identity: Identity
    version: Version
    reservation: Reservation
    questions: Sequence[Question]
    jobs: Sequence[Job]
    handed_on: bool = False

    def usage(self) -> Usage:
        prompt = sum(question.tokens for question in self.questions)
        completion = sum(job.record.tokens for job in self.jobs)
        return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)

    def hand_on(self) -> None:
        if self.service.on_answered is not None and not self.handed_on:
            self.handed_on = True
            self.service.on_answered(self)


async def respond(
    service: Service, request: AnswerableRequest, sources: Sequence[Source], format: Format, record: RequestRecord
) -> Response:
    """Answer each prompt of a request `request.n` times. The i-th answer has the request's seed + i, so that it can be
    repeated.

    Args:
        service: Answers.
        request: As it came.
        sources: What its prompts are made of.
        format: How to write the answers.
        record: The request's record.

    Returns:
        The response, which generates the answers while it is sent.

    Raises:
        ApiError: If the request cannot be answered. Says why not.
    """
    count = request.n or 1
    # What has no place is refused before any work for it, and what no engine can answer before any is generated.
    version, reservation = _admit(service, request, len(sources) * count, record)
    service.guarding.check_logprobs(request.top_tokens is not None)
    check_honoured(version.engine, request)
    reader = QuestionReader(service.guarding, service.slots.max_wait_s, service.default_max_tokens)
    questions = [await reader.read(version.engine, request, source, format, record) for source in sources]
    if record.with_content:
        record.prompts = request.model_dump(include=_ASKED, by_alias=True, exclude_unset=True)
    # Each answer has a seed of its own, or the answers to one prompt would be the same.
    jobs = []
    for index, (question, i) in enumerate(product(questions, range(count))):
        seed = question.sampling.seed
        sampling = replace(question.sampling, seed=None if seed is None else _wrapped(seed + i))
        jobs.append(Job(index, question, sampling, record.begin_answer()))
    identity = Identity(
        id=f"{format.id_prefix}-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=request.model,
        system_fingerprint=version.name,
    )
    answers = Answers(service, request, record, format, identity, version, reservation, questions, jobs)
    return AnswerResponse(partial(_send_answers, answers))


def _admit(
    service: Service, request: AnswerableRequest, answers: int, record: RequestRecord
) -> tuple[Version, Reservation]:
    """What answers a request, and its places, which it has until it is over.

    Refuses what has no place, or a model that is not there, before any work for it.
    """
    slots, key = service.slots, record.key_name
    version = service.models.choose(request, record)
    rate_limit = service.rate_limit if key is not None else None
    most = slots.capacity if rate_limit is None else min(slots.capacity, rate_limit.per_minute)
    if answers > most:
        field = "n" if (request.n or 1) > 1 else "prompt"
        message = f"{field}: at most {most} answers at a time, not {answers}."
        raise ApiError(400, message, param=field)
    reservation = slots.reserve(answers, key)
    record.at_end.callback(reservation.close)
    if key is not None and rate_limit is not None:
        rate_limit.check(key, answers - 1)  # the request has been counted as one answer when it came
    if key is not None and service.token_limit is not None:
        service.token_limit.check(key, 0)
        reservation.on_charge = partial(service.token_limit.charge, key)
    return version, reservation


def _wrapped(seed: int) -> int:
    """The seed as a signed number of 64 bits, which is what a seed is everywhere; after the largest is the least."""
    return (seed + 2**63) % 2**64 - 2**63


class AnswerResponse(Response):
    """A response that is made while it is sent, and that is given up when its client goes away.

    Starlette's, FastAPI's and sse-starlette's streams send their status before anything is generated; here what fails
    before the first token has its own.
    """

    def __init__(self, make: ASGIApp):
        super().__init__()
        self._make = make

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        making = asyncio.ensure_future(self._make(scope, receive, send))
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait({making, gone}, return_when=asyncio.FIRST_COMPLETED)
            if making.done():
                making.result()
        finally:
            making.cancel()
            gone.cancel()
            await asyncio.wait({making, gone})


async def _disconnected(receive: Receive) -> None:
    """Return when the client has gone; its body has been read by now."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_answers(answers: Answers, scope: Scope, receive: Receive, send: Send) -> None:
    """Generate the answers and send them: as server-sent events (https://html.spec.whatwg.org/multipage/
    server-sent-events.html) or as one JSON body."""
    events = answers.format.events(answers.identity, answers.request.include_usage)
    started = False

    async def send_events(written: Sequence[bytes]) -> None:
        nonlocal started
        if not started and written:
            started = True
            headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
        for event in written:
            await send({"type": "http.response.body", "body": event, "more_body": True})

    # Leaving this block, for whatever reason, ends what is still generated.
    try:
        async with aclosing(_merged([_sendable(answers, job) for job in answers.jobs])) as parts:
            if not answers.request.stream:
                return await (await _whole(answers, parts))(scope, receive, send)
            async for part in parts:
                # A comment, which clients skip, where nothing else has come for a while.
                await send_events([_KEEP_ALIVE] if part is None else events.of(part))
        await send_events(events.end(answers.usage()))
    except Exception as error:
        refusal = as_api_error(error)
        answers.record.blame(refusal)
        if not started:  # so what fails before the first token still gets its own status
            return await refusal.response()(scope, receive, send)
        await send_events(events.failure(refusal))
    finally:
        answers.record.prompt_tokens = answers.usage().prompt_tokens
        if started and any(job.record.has_content for job in answers.jobs):
            answers.hand_on()  # what was read of an answer that was stopped can get feedback too
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _whole(answers: Answers, parts: AsyncIterator[Part | None]) -> Response:
    parts_of: list[list[Part]] = [[] for _ in answers.jobs]
    async for part in parts:
        if part is not None:
            parts_of[part.index].append(part)
    return JSONResponse(answers.format.whole(answers.identity, parts_of, answers.usage()).model_dump(by_alias=True))


async def _merged(streams: Sequence[AsyncGenerator[Part]]) -> AsyncGenerator[Part | None]:
    """The parts of the answers as they come, and None whenever there was nothing to send for a while. The first
    failure ends all.

    Parts are generated whether they are read or not, so an answer keeps its place no longer than its generation takes,
    however slowly its client reads.
    """
    queue: asyncio.Queue[Part | Exception | None] = asyncio.Queue()

    async def forward(stream: AsyncGenerator[Part]) -> None:
        try:
            async with aclosing(stream):
                async for part in stream:
                    queue.put_nowait(part)
        except Exception as error:
            queue.put_nowait(error)

    # Whether something was sent lately is looked at now and then: a time limit for each part would be dear.
    loop = asyncio.get_running_loop()
    last = loop.time()
    looking: asyncio.TimerHandle

    def look() -> None:
        nonlocal last, looking
        if last + _KEEP_ALIVE_S <= loop.time():
            if queue.empty():  # else it is the client who does not read
                queue.put_nowait(None)
            last = loop.time()
        looking = loop.call_at(last + _KEEP_ALIVE_S, look)

    # All answers are generated side by side, and their parts are read in the order in which they come.
    tasks = {asyncio.create_task(forward(stream)) for stream in streams}
    looking = loop.call_at(last + _KEEP_ALIVE_S, look)
    running = len(streams)
    try:
        while running:
            part = await queue.get()
            if isinstance(part, Exception):
                raise part
            yield part
            if part is not None:
                running -= part.finish_reason is not None
                # What a guard holds back is a part too, of which nothing is sent.
                if not part.is_empty:
                    last = loop.time()
    finally:
        looking.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _sendable(answers: Answers, job: Job) -> AsyncGenerator[Part]:
    """The parts of one answer that may be sent, each noted in its record."""
    refusal = job.question.refusal
    generated = _generated(answers, job) if refusal is None else _refused(job.index, refusal)
    if refusal is None:
        chat = job.question.source.chat
        is_json = chat is not None and chat.answer_schema is not None
        generated = answers.service.guarding.answer(generated, answers.record, is_json)
    async with aclosing(generated) as parts:
        async for part in parts:
            job.record.texts.append(part.text)
            job.record.thoughts.append(part.reasoning)
            job.record.call_parts += part.calls
            if part.finish_reason is not None:
                job.record.finish_reason = part.finish_reason
                # The whole answers are handed on before their client has all of them.
                if all(other.record.finish_reason for other in answers.jobs):
                    answers.hand_on()
            yield part


async def _refused(index: int, refusal: str) -> AsyncGenerator[Part]:
    """The answer to a prompt that a guard has blocked."""
    yield Part(index, refusal, finish_reason="content_filter")


async def _generated(answers: Answers, job: Job) -> AsyncGenerator[Part]:
    """The parts of one answer, cut at a stop string, in a place of its own.

    An answer whose time is over ends as if it had become too long. What has been generated is useful, and after an
    error clients would ask for all of it again.
    """
    question, reservation = job.question, answers.reservation
    stops = StopStrings(answers.request.stops)
    held: list[tuple[int, int, TokenLogprobs]] = []  # with the start and the end of their text
    pushed = sent = 0

    def part(text: str, finish_reason: FinishReason | None = None, piece: Piece | None = None) -> Part:
        nonlocal held, sent
        sent += len(text)
        reasoning = piece.reasoning if piece is not None else ""
        calls = piece.calls if piece is not None and not stops.matched else ()  # they come after the text
        if not held:
            return Part(job.index, text, (), finish_reason, reasoning, calls)
        # Where a stop string cuts a token, the beginning of the token has been sent.
        ready = [(start, token) for start, end, token in held if end <= sent or (finish_reason and start < sent)]
        held = [(start, end, token) for start, end, token in held if end > sent]
        return Part(job.index, text, ready, finish_reason, reasoning, calls)

    engine = answers.version.engine
    async with (
        reservation.take() as deadline,
        aclosing(engine.stream(question.prompt, job.sampling)) as pieces,
        Patience(deadline) as patience,
    ):
        reservation.charge(question.prompt.tokens or 0)
        while True:
            try:
                piece = await patience.wait(anext(pieces, None))
            except TimeoutError:
                if not patience.is_over:  # it is the engine's own
                    raise
                if not job.record.tokens:
                    message = "The answer was not begun in the time that this server has for one."
                    raise ApiError(504, message, code="generation_timeout") from None
                yield part(stops.flush(), "length")
                return
            if piece is None:
                raise EngineError("it ended without a reason")
            # Count the piece, whatever of it may be sent.
            reservation.charge(piece.tokens)
            job.record.add_tokens(piece.tokens)
            if piece.prompt_tokens is not None:
                question.tokens = piece.prompt_tokens
            if piece.logprobs:
                held += [(pushed, pushed + len(piece.text), token) for token in piece.logprobs]
            pushed += len(piece.text)
            text = stops.push(piece.text)
            if stops.matched:
                yield part(text, "stop", piece)
                return
            if piece.finish_reason is not None:
                yield part(text + stops.flush(), piece.finish_reason, piece)
                return
            yield part(text, None, piece)
