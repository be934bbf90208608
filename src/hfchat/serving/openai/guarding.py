"""How an endpoint applies guards (`hfchat.safety.guards`): to its prompts, and to its answers as they are sent."""

import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace

from hfchat.safety.guards import Finding, Guards, PromptVerdict
from hfchat.safety.judges import GuardError
from hfchat.serving.http.limits import Slots
from hfchat.serving.http.record import RequestRecord
from hfchat.serving.openai.errors import ApiError
from hfchat.serving.openai.formats import Part

_LOGGER = logging.getLogger("hfchat.serving")


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

    async def check_prompt(self, texts: Sequence[str], record: RequestRecord) -> PromptVerdict:
        """What the guards make of the texts of a prompt. What they found is noted in the request's record.

        The texts of earlier turns and of the assistant are looked at too: the client wrote them all.
        """
        try:
            async with self._places.take(record.key_name):
                verdict = await self._guards.prompt(texts)
        except GuardError as error:
            raise _unavailable(error) from error
        self._report(verdict.findings, record)
        return verdict

    def check_token_prompt(self) -> None:
        """Refuse a prompt of token ids, which the guards of prompts cannot read."""
        if self._guards.check_prompts:
            message = "prompt: the guards of this server read text only; send the prompt as text."
            raise ApiError(400, message, param="prompt")

    def answer(self, parts: AsyncGenerator[Part], record: RequestRecord) -> AsyncGenerator[Part]:
        """The parts of one answer with the text that may be sent.

        They come after the stop strings, so that an answer ends where it would have without guards. Where a guard
        blocks, the generation ends with it.
        """
        return self._guarded(parts, record) if self._guards.check_answers else parts

    async def _guarded(self, parts: AsyncGenerator[Part], record: RequestRecord) -> AsyncGenerator[Part]:
        # What guards found is reported once, also where a client goes away in mid-answer.
        stream = self._guards.answer()
        reported = False
        try:
            async with aclosing(parts):
                async for part in parts:
                    text = await stream.push(part.text)
                    if part.finish_reason is not None:
                        text += await stream.finish()
                    if stream.blocked or part.finish_reason is not None:
                        reported = True
                        self._report(stream.findings, record)  # before the answer is over for those who keep it
                    if stream.blocked:
                        yield replace(part, text=text, finish_reason="content_filter")
                        return
                    yield replace(part, text=text)
        except GuardError as error:
            raise _unavailable(error) from error
        finally:
            if not reported:
                self._report(stream.findings, record)

    async def close(self) -> None:
        await self._guards.close()

    def _report(self, findings: Sequence[Finding], record: RequestRecord) -> None:
        for finding in findings:
            record.findings.append(finding)
            self._on_finding(finding)


def _unavailable(error: GuardError) -> ApiError:
    return ApiError(503, f"The answer could not be checked: {error}", code="guard_unavailable")
