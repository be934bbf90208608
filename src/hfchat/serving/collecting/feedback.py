"""`POST /v1/feedback`: what people say about answers. Nothing is stored without `hfchat serve --feedback`."""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from fastapi import FastAPI

from hfchat.feedback.exchange import Call, CalledFunction, Exchange, GuardFinding, Opinion, Turn
from hfchat.feedback.store import NothingSaidError, OtherPromptError, Store, Stored, StoreError, UnknownAnswerError
from hfchat.serving.collecting.corrections import check_corrected_calls, written_correction
from hfchat.serving.collecting.recent import RecentAnswers
from hfchat.serving.engines.engine import Sampling
from hfchat.serving.http.record import AnswerRecord, RecordOfRequest
from hfchat.serving.openai.errors import ApiError, error_responses
from hfchat.serving.openai.generation import Answers
from hfchat.serving.openai.protocol import Feedback, FeedbackSettings
from hfchat.serving.openai.requests import ChatCompletionRequest, FeedbackRequest

_LOGGER = logging.getLogger("hfchat.serving")
_MAX_WAITING = 100  # writes; more would only wait longer for the same disk
_MAX_CLOSING_S = 10.0  # for the writes that wait when the server stops
_BETWEEN_LOOKS_S = 60.0  # for held answers whose time is over
_BETWEEN_DELETIONS_S = 3600.0
_A_DAY = timedelta(days=1)
_LONG_S = 1.0  # for a write that fails: it has waited for the database


class Collector:
    """Holds answers for a while, and stores those that somebody gives feedback on, with their conversations.

    Writes wait for the disk in a thread, one after the other; the event loop never waits.

    Attributes:
        keeps_conversations: Whether it also stores answers about which nobody says anything.

    Args:
        store: Is closed with the collector.
        keep_conversations: Also store each chat answer as soon as it is whole, but for those with `store: false`.
        retention_days: Days after which an answer and what was said about it are deleted; never if None.
        recent: Holds the answers.
        trusted_keys: API keys under which each `user` is a person with an opinion of their own. For all other keys,
            and where there are no keys, one opinion about an answer holds, whichever user it names.
    """

    def __init__(
        self,
        store: Store,
        keep_conversations: bool = False,
        retention_days: float | None = None,
        recent: RecentAnswers | None = None,
        trusted_keys: Collection[str] = (),
    ):
        self.keeps_conversations = keep_conversations
        self._store = store
        self._retention_days = retention_days
        self._recent = recent or RecentAnswers()
        self._trusted_keys = frozenset(trusted_keys)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="feedback")
        self._waiting: set[asyncio.Future] = set()
        self._now: datetime | None = None  # for deletions: the clock's, as far as it can be believed
        self._locked_out: tuple[float, StoreError] | None = None  # when a write had waited in vain, and why

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Forgets what is too old, now and from time to time. At the end, writes that wait get some time."""
        forgetting = asyncio.create_task(self._forget_old())
        try:
            yield
        finally:
            forgetting.cancel()
            await asyncio.wait({forgetting, *self._waiting}, timeout=_MAX_CLOSING_S)
            self._thread.shutdown(wait=False, cancel_futures=True)
            self._store.close()

    def answered(self, answers: Answers) -> None:
        """Hold the answers of a chat, unless its request says `store: false`."""
        if not isinstance(answers.request, ChatCompletionRequest) or answers.request.store is False:
            return
        exchanges = _exchanges(answers)
        for exchange in exchanges:
            self._recent.add(exchange)
        whole = [exchange for exchange in exchanges if exchange.finish_reason is not None]
        if self.keeps_conversations and whole:
            self._keep(whole)

    async def say(self, opinion: Opinion) -> Stored:
        """Store what somebody says about an answer; it returns when that is on the disk.

        Raises:
            ApiError: 404 for an answer that is not known, or not any more; 400 if the feedback makes no sense; 503 if
                it cannot be stored now.
        """
        named = [(opinion.answer_id, opinion.choice)]
        if opinion.preferred_over is not None:
            named.append((opinion.preferred_over, 0))
        # What is still in memory is stored with the opinion; the store has the rest, if anything.
        held = [exchange for key in named if (exchange := self._recent.find(*key)) is not None]
        try:
            if opinion.corrected_calls:
                await self._check_calls(opinion, self._recent.find(*named[0]))
            one_of_key = opinion.api_key not in self._trusted_keys
            return await self._in_thread(self._store.say, opinion, held, one_of_key)
        except UnknownAnswerError as error:
            message = f"{error.field}: this server does not know the answer, or not any more."
            raise ApiError(404, message, param=error.field, code="answer_not_found") from error
        except OtherPromptError as error:
            message = "preferred_over: must be another answer to the same prompt."
            raise ApiError(400, message, param="preferred_over") from error
        except NothingSaidError as error:
            message = (
                "rating: the feedback says nothing; it needs a rating, correction, comment, tags or preferred_over."
            )
            raise ApiError(400, message, param="rating") from error
        except StoreError as error:
            _LOGGER.error("feedback could not be stored: %s", error)
            message = "The feedback could not be stored now. Please send it again later."
            raise ApiError(503, message, code="feedback_unavailable", headers={"Retry-After": "30"}) from error

    async def _check_calls(self, opinion: Opinion, held: Exchange | None) -> None:
        """Hold corrected calls against the tools of the conversation. An answer that is not known is refused later."""
        if held is not None:
            tools = held.tools if held.api_key == opinion.api_key else None
        else:
            named = (opinion.answer_id, opinion.choice, opinion.api_key)
            tools = await self._in_thread(self._store.tools_of, *named)
        if tools is not None:
            await asyncio.to_thread(check_corrected_calls, opinion.corrected_calls, tools)

    def _keep(self, exchanges: list[Exchange]) -> None:
        try:
            writing = self._in_thread(self._store.keep, *exchanges)
        except StoreError as error:
            return _LOGGER.error("a conversation could not be kept: %s", error)
        writing.add_done_callback(_log_failure)

    def _in_thread(self, write: Callable[..., Any], *args: Any) -> asyncio.Future:
        if len(self._waiting) >= _MAX_WAITING:
            raise StoreError(f"{_MAX_WAITING} others wait for the database")
        writing = asyncio.get_running_loop().run_in_executor(self._thread, self._write, time.monotonic(), write, *args)
        self._waiting.add(writing)
        writing.add_done_callback(self._waiting.discard)
        return writing

    def _write(self, queued: float, write: Callable[..., Any], *args: Any) -> Any:
        """Write, in the thread. What was queued while another write waited in vain fails with that one, because it
        would wait as long for the same lock."""
        if self._locked_out is not None and queued < self._locked_out[0]:
            raise StoreError(str(self._locked_out[1]))
        began = time.monotonic()
        try:
            return write(*args)
        except StoreError as error:
            if time.monotonic() - began > _LONG_S:
                self._locked_out = time.monotonic(), error
            raise

    async def _forget_old(self) -> None:
        clock = asyncio.get_running_loop().time
        next_deletion = clock()
        while True:
            self._recent.drop_old()
            if self._retention_days is not None and clock() >= next_deletion:
                await self._delete_older_than(timedelta(days=self._retention_days))
                next_deletion = clock() + _BETWEEN_DELETIONS_S
            await asyncio.sleep(_BETWEEN_LOOKS_S)

    async def _delete_older_than(self, age: timedelta) -> None:
        try:
            now = await self._believable_now(age)
            if (await self._in_thread(self._store.delete_before, now - age)).answers:
                await self._in_thread(self._store.forget_deleted)
        except StoreError as error:
            _LOGGER.error("old feedback could not be deleted: %s", error)

    async def _believable_now(self, age: timedelta) -> datetime:
        """The time by which to delete: the clock's, if it is near to the last answer or to the last time.

        If the clock were years ahead, everything would be deleted at once, and for good. So the time that counts
        advances by at most a day each time, and the log says so meanwhile, so that somebody can set the clock. A
        server that was off for long deletes old feedback in the same steps.
        """
        clock = datetime.now(UTC)
        before = self._now or await self._in_thread(self._store.last_moment, max(age, _A_DAY)) or clock
        self._now = min(clock, before + _A_DAY)
        if self._now < clock:
            message = "the clock is %d days after the last known time; old feedback is deleted a day at a time"
            _LOGGER.warning(message, (clock - before).days)
        return self._now


class FeedbackHandler:
    """Turns feedback into what is kept of it, or raises the `ApiError` that says why not.

    Args:
        collector: None takes no feedback.
        logs_content: Whether the server's log has what is asked and answered.
        on_rating: Called for each rating that is stored, with the version of the model: for metrics.
    """

    def __init__(
        self, collector: Collector | None, on_rating: Callable[[str, str | None], None], logs_content: bool = False
    ):
        self._collector = collector
        self._logs_content = logs_content
        self._on_rating = on_rating

    @property
    def settings(self) -> FeedbackSettings:
        return FeedbackSettings(
            enabled=self._collector is not None,
            keeps_conversations=self._collector is not None and self._collector.keeps_conversations,
            logs_content=self._logs_content,
        )

    async def __call__(self, request: FeedbackRequest, api_key: str | None = None) -> Feedback:
        """
        Args:
            request: What somebody says.
            api_key: The name of the key with which it came.
        """
        if self._collector is None:
            message = "This server takes no feedback: it was started without --feedback."
            raise ApiError(404, message, code="feedback_disabled")
        said = request.model_dump() | {"tags": tuple(request.tags), "user": request.user or ""}
        said |= {"correction": request.corrected_text, "corrected_calls": tuple(request.corrected_calls)}
        stored = await self._collector.say(Opinion(**said, api_key=api_key or ""))
        if stored.is_new and request.rating is not None:
            self._on_rating(request.rating, stored.model_version)
        # As it was stored, redacted.
        kept = asdict(stored.opinion) | {"tags": list(stored.opinion.tags), "user": request.user}
        kept["correction"] = written_correction(stored.opinion)
        created = int(stored.created_at.timestamp())
        return Feedback(id=stored.id, created=created, replaces=stored.replaces, **kept)


def add_feedback(app: FastAPI, handler: FeedbackHandler) -> None:
    """Add the routes."""

    @app.post("/v1/feedback", responses=error_responses(400, 404, 408, 413, 415, 503))
    async def feedback(request: FeedbackRequest, record: RecordOfRequest) -> Feedback:
        return await handler(request, record.key_name)

    @app.get("/v1/feedback/settings", responses=error_responses())
    async def feedback_settings() -> FeedbackSettings:
        return handler.settings


def _exchanges(answers: Answers) -> list[Exchange]:
    request, record, identity = answers.request, answers.record, answers.identity
    findings = [
        GuardFinding(guard=seen.guard, place=seen.place, action=seen.action, categories=seen.categories)
        for seen in record.findings
    ]
    # The exchanges share one list of messages: it may be long, and a request may have many answers.
    chat = answers.questions[0].source.chat  # a chat has one prompt
    assert chat is not None
    messages = [cast("Turn", dict(message)) for message in chat.messages]
    # How the answer was asked for is kept with how it was sampled: both decide what could be answered.
    format = {"tool_choice": chat.tool_choice if chat.tools else None, "response_format": chat.response_format}
    asked = format | {"reasoning_effort": chat.reasoning_effort}
    exchanges = []
    for job in answers.jobs:
        calls, cut = _calls(job.record)
        exchange = Exchange(
            answer_id=identity["id"],
            choice=job.index,
            created_at=datetime.fromtimestamp(identity["created"], UTC),
            model=identity["model"],
            messages=messages,
            text=job.record.text + cut,
            finish_reason=job.record.finish_reason,
            sampling={
                "max_tokens": job.sampling.max_tokens,
                "temperature": job.sampling.temperature,
                "top_p": job.sampling.top_p,
                "seed": job.sampling.seed,
                "presence_penalty": job.sampling.presence_penalty,
                "frequency_penalty": job.sampling.frequency_penalty,
                "stop": request.stops,
                **_given(asked | _rarely_given(job.sampling)),
            },
            findings=findings,
            user=request.user or "",
            api_key=record.key_name or "",
            model_version=identity["system_fingerprint"],
            template_fingerprint=answers.version.engine.template_fingerprint,
            tools=chat.tools,
            tool_calls=calls,
            reasoning=job.record.reasoning,
        )
        exchanges.append(exchange)
    return exchanges


def _rarely_given(sampling: Sampling) -> dict[str, object]:
    biases = {str(token): bias for token, bias in sampling.logit_bias.items()}
    return {
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "logit_bias": biases or None,
    }


def _given(fields: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in fields.items() if value is not None}


def _calls(record: AnswerRecord) -> tuple[list[Call], str]:
    """The calls of an answer, and what there is of one that was cut: its arguments are no JSON yet."""
    calls: list[Call] = []
    for call in record.calls:
        try:
            arguments = json.loads(call.arguments)
        except ValueError:
            return calls, f"{call.name}({call.arguments}"
        calls.append(Call(type="function", function=CalledFunction(name=call.name or "", arguments=arguments)))
    return calls, ""


def _log_failure(writing: asyncio.Future) -> None:
    if not writing.cancelled() and (error := writing.exception()) is not None:
        _LOGGER.error("a conversation could not be kept: %s", error)
