"""How an endpoint applies guards (`hfchat.safety.guards`): to its prompts, and to its answers as they are sent."""

import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from itertools import chain

from pydantic_core import from_json

from hfchat.chat import CallPart, whole_calls
from hfchat.safety.guards import Action, AnswerStream, Finding, Guards, Place, Verdict
from hfchat.safety.judges import GuardError
from hfchat.serving.http.limits import Slots
from hfchat.serving.http.record import RequestRecord
from hfchat.serving.openai.errors import ApiError
from hfchat.serving.openai.formats import Part, Source
from hfchat.serving.openai.strings import Change, See, Strings, ignore, map_written

_LOGGER = logging.getLogger("hfchat.serving")
_MAX_STRINGS = 20_000  # of a prompt: each is looked at by itself


def log_finding(finding: Finding) -> None:
    """A line of the log; what was found is not in it."""
    categories = ", ".join(finding.categories)
    _LOGGER.info("guard %s: %s in the %s: %s", finding.guard, finding.action, finding.place, categories)


class Guarding:
    """Guards between the clients and the engine.

    Args:
        guards: Look at prompts and answers; with None, nothing does.
        places: Places for prompts that are being checked, apart from those for answers: the queue of a slow guard is
            bounded too.
        on_finding: Called once for each guard that found something in a prompt or an answer, for logs and metrics.
    """

    def __init__(self, guards: Guards | None, places: Slots, on_finding: Callable[[Finding], None] = log_finding):
        self._guards = guards or Guards([])
        self._places = places
        self._on_finding = on_finding

    def check_logprobs(self, asked: bool) -> None:
        """Refuse to give log probabilities of tokens that a guard may take out of the text."""
        if asked and self._guards.remove_from_answers:
            message = "logprobs: not with the guards of this server, which may take text out of an answer."
            raise ApiError(400, message, param="logprobs", code="unsupported_field")

    async def check_prompt(self, source: Source, record: RequestRecord) -> Verdict:
        """What the guards make of the texts of a prompt. What they found is noted in the request's record.

        The texts of earlier turns and of the assistant are looked at too: the client wrote them all.
        """
        texts, names = source.texts or (), source.names
        if self._guards.check_prompts and len(texts) + len(names) > _MAX_STRINGS:
            message = f"messages: the guards of this server read at most {_MAX_STRINGS} strings, those in JSON too."
            raise ApiError(400, message, param="messages")
        try:
            async with self._places.take(record.key_name):
                verdict = await self._guards.prompt(texts, names)
        except GuardError as error:
            raise _unavailable(error) from error
        self._report(verdict.findings, record)
        return verdict

    def check_token_prompt(self) -> None:
        """Refuse a prompt of token ids, which the guards of prompts cannot read."""
        if self._guards.check_prompts:
            message = "prompt: the guards of this server read text only; send the prompt as text."
            raise ApiError(400, message, param="prompt")

    def answer(self, parts: AsyncGenerator[Part], record: RequestRecord, is_json: bool) -> AsyncGenerator[Part]:
        """The parts of one answer with what may be sent of it; `is_json` if its text was asked for as JSON.

        They come after the stop strings, so that an answer ends where it would have without guards. Where a guard
        blocks, the generation ends with it.
        """
        return self._guarded(parts, record, is_json) if self._guards.check_answers else parts

    async def _guarded(
        self, parts: AsyncGenerator[Part], record: RequestRecord, is_json: bool
    ) -> AsyncGenerator[Part]:
        # What guards found is reported once, also where a client goes away in mid-answer.
        answer = _GuardedAnswer(self._guards, is_json)
        reported = False
        try:
            async with aclosing(parts):
                async for part in parts:
                    guarded = await answer.push(part)
                    if guarded.finish_reason is not None:
                        reported = True
                        self._report(answer.findings, record)  # before the answer is over for those who keep it
                        yield guarded
                        return
                    yield guarded
        except GuardError as error:
            raise _unavailable(error) from error
        finally:
            if not reported:
                self._report(answer.findings, record)

    async def close(self) -> None:
        await self._guards.close()

    def _report(self, findings: Sequence[Finding], record: RequestRecord) -> None:
        for finding in findings:
            record.findings.append(finding)
            self._on_finding(finding)


class _GuardedAnswer:
    """One answer on its way through all guards: its reasoning, then its text, and at the end its calls.

    What a guard lets through later than it might have must not change what else is sent, so nothing of the text is
    given out before the reasoning is decided, and no call before all else is. So the answer is the same however it is
    cut into parts.

    Args:
        guards: Look at each of the three.
        is_json: Whether the text is JSON, which a guard must leave valid: then it is held back until it is whole.
    """

    def __init__(self, guards: Guards, is_json: bool):
        self._guards = guards
        self._is_json = is_json and guards.remove_from_answers
        self._reasoning, self._text, self._afterthought = guards.answer(), guards.answer(), guards.answer()
        self._is_thinking = True  # no text and no call has come yet
        self._afterthoughts: list[str] = []  # reasoning that came later than that
        self._json: list[str] = []
        self._calls: list[CallPart] = []
        self._verdicts: list[Verdict] = []
        self._has_text = False  # of which something was given out

    @property
    def findings(self) -> list[Finding]:
        """One for each guard that has found something, with all that it has found."""
        places: list[AnswerStream | Verdict] = [self._reasoning, self._text, self._afterthought, *self._verdicts]
        found: dict[tuple[str, Place, Action], dict[str, None]] = {}
        for finding in chain.from_iterable(one.findings for one in places):
            categories = found.setdefault((finding.guard, finding.place, finding.action), {})
            categories |= dict.fromkeys(finding.categories)
        return [Finding(*key, tuple(categories)) for key, categories in found.items()]

    async def push(self, part: Part) -> Part:
        """The part with what can be given out now; the last one if a guard blocks.

        Raises:
            GuardError: If a guard cannot decide.
        """
        # First what comes first in the answer; each is decided before what follows it is given out.
        is_last = part.finish_reason is not None
        self._calls += part.calls
        reasoning, message = await self._push_reasoning(part, is_last)
        text = ""
        if message is None:
            text, message = await self._push_text(part.text, is_last)
        calls: Sequence[CallPart] = ()
        if message is None and is_last:
            # Reasoning after the text cannot be sent in its place any more, so it comes at the end.
            afterthoughts = "".join(self._afterthoughts)
            if afterthoughts:
                stream = self._afterthought
                reasoning += "\n\n" + await stream.push(afterthoughts) + await stream.finish()
                message = stream.message
        if message is None and is_last:
            calls, message = await self._guarded_calls()
        # Nothing was found, or the guard's message ends the answer.
        self._has_text = self._has_text or bool(text)
        if message is None:
            return replace(part, reasoning=reasoning, text=text, calls=calls)
        text += f"\n\n{message}" if self._has_text else message
        return replace(part, reasoning=reasoning, text=text, calls=(), finish_reason="content_filter")

    async def _push_reasoning(self, part: Part, is_last: bool) -> tuple[str, str | None]:
        if not self._is_thinking:
            self._afterthoughts.append(part.reasoning)
            return "", None
        reasoning = await self._reasoning.push(part.reasoning)
        if part.text or part.calls or is_last:
            self._is_thinking = False
            reasoning += await self._reasoning.finish()
        return reasoning, self._reasoning.message

    async def _push_text(self, text: str, is_last: bool) -> tuple[str, str | None]:
        if self._is_json:
            self._json.append(text)
            if not is_last:
                return "", None
            text = "".join(self._json)
            if _is_json(text):
                verdict, (text,) = await self._written_verdict([text], [])
                return "" if verdict.message is not None else text, verdict.message
        text = await self._text.push(text)
        if is_last:
            text += await self._text.finish()
        return text, self._text.message

    async def _guarded_calls(self) -> tuple[list[CallPart], str | None]:
        calls = whole_calls(self._calls)
        if not calls:
            return [], None
        names = [call.name or "" for call in calls]
        verdict, arguments = await self._written_verdict([call.arguments for call in calls], names)
        pairs = zip(calls, arguments, strict=True)
        return [replace(call, arguments=guarded) for call, guarded in pairs], verdict.message

    async def _written_verdict(self, written: Sequence[str], names: Sequence[str]) -> tuple[Verdict, list[str]]:
        """The verdict on the strings in texts that are JSON, and these texts with what it has changed."""

        def walk(text: Change, name: See) -> list[str]:
            for each in names:
                name(each)
            return [map_written(each, text, name) for each in written]

        strings = Strings(walk)
        verdict = await self._guards.calls(strings.texts, strings.names)
        self._verdicts.append(verdict)
        return verdict, walk(strings.change_to(verdict.texts), ignore)


def _is_json(text: str) -> bool:
    try:
        from_json(text)
    except ValueError:
        return False
    return True


def _unavailable(error: GuardError) -> ApiError:
    return ApiError(503, f"The answer could not be checked: {error}", code="guard_unavailable")
