"""Guards that work one after the other, on prompts and on answers, even while an answer is still being written."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal, Protocol

from hfchat.errors import UserError
from hfchat.safety.streams import Stream

Place = Literal["prompt", "answer"]
Action = Literal["block", "redact", "flag"]


class Guard(Protocol):
    """One guard, as `hfchat.safety.guards_file` reads it from a file.

    Attributes:
        type: What kind it is.
        name: Its name in logs and metrics, by default its type.
        applies_to: Where it looks.
        action: What it does with what it finds.
        message: What is said in place of what it blocks.
    """

    type: str
    name: str | None
    applies_to: list[Place]
    action: Action
    message: str

    def stream(self) -> Stream:
        """A stream for one text. The first call reads what the guard needs: lists, models.

        Raises:
            ValueError: If what it needs cannot be read. Names the key.
        """

    async def close(self) -> None: ...


@dataclass(frozen=True)
class Finding:
    """What a guard found in a text. It holds nothing of the text.

    Attributes:
        guard: The guard's name.
        place: Whether in a prompt or an answer.
        action: What was done about it.
        categories: What it is, each once: `email`, `obscene`, `toxic`.
    """

    guard: str
    place: Place
    action: Action
    categories: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """What the guards decided about a prompt, or about tool calls.

    Attributes:
        texts: Its texts, without what was redacted.
        message: What to answer in its place; None if it is let through.
        findings: In the order of the guards.
    """

    texts: list[str]
    message: str | None
    findings: list[Finding]


class Guards:
    """Guards that work one after the other.

    Args:
        guards: Each looks at what the one before it let through.

    Raises:
        UserError: If what a guard needs is missing. Names the guard and the key.
    """

    def __init__(self, guards: Sequence[Guard]):
        self._guards = list(guards)
        for number, guard in enumerate(self._guards, start=1):
            try:
                guard.stream()
            except ValueError as error:
                raise UserError(f"guard {number} ({guard.type}): {error}") from error

    @property
    def check_prompts(self) -> bool:
        """Whether any guard is for prompts."""
        return bool(self._at("prompt"))

    @property
    def check_answers(self) -> bool:
        """Whether any guard is for answers."""
        return bool(self._at("answer"))

    @property
    def remove_from_answers(self) -> bool:
        """Whether an answer may come out different from the model's."""
        return any(guard.action != "flag" for guard in self._at("answer"))

    async def prompt(self, texts: Sequence[str], names: Sequence[str] = ()) -> Verdict:
        """The verdict on the texts of a prompt, each by itself.

        Args:
            texts: What may be redacted.
            names: What must stay as it is, such as names of functions. A guard that would redact one blocks it.

        Raises:
            GuardError: If a guard cannot decide.
        """
        return await self._verdict("prompt", texts, names)

    async def calls(self, texts: Sequence[str], names: Sequence[str]) -> Verdict:
        """As `prompt`, on the texts in the tool calls of an answer."""
        return await self._verdict("answer", texts, names)

    async def _verdict(self, place: Place, texts: Sequence[str], names: Sequence[str]) -> Verdict:
        findings: list[Finding] = []
        for guard in self._at(place):
            given = [*texts, *names]
            streams = [guard.stream() for _ in given]
            outcome = await asyncio.gather(*(one.whole(text) for one, text in zip(streams, given, strict=True)))
            found = list(chain.from_iterable(stream.found for stream in streams))
            is_blocked = any(stream.blocked for stream in streams) or outcome[len(texts) :] != list(names)
            findings += _finding(guard, place, found, "block" if is_blocked else guard.action)
            if is_blocked:
                return Verdict(list(texts), guard.message, findings)
            texts = outcome[: len(texts)]
        return Verdict(list(texts), None, findings)

    def answer(self) -> "AnswerStream":
        """A stream for one answer."""
        return AnswerStream(self._at("answer"))

    async def close(self) -> None:
        for guard in self._guards:
            await guard.close()

    def _at(self, place: Place) -> list[Guard]:
        return [guard for guard in self._guards if place in guard.applies_to]


class AnswerStream:
    """A text of an answer on its way through all guards. However it is cut into parts, the same text comes out.

    Attributes:
        message: What the guard says that has ended the text; None while none has.
    """

    def __init__(self, guards: Sequence[Guard]):
        self.message: str | None = None
        self._guards = [(guard, guard.stream()) for guard in guards]

    async def push(self, text: str) -> str:
        """What can be given out now.

        Raises:
            GuardError: If a guard cannot decide.
        """
        return await self._pass(text, is_last=False)

    async def finish(self) -> str:
        """The rest, when the text is whole. Nothing after a block."""
        return "" if self.message is not None else await self._pass("", is_last=True)

    @property
    def findings(self) -> list[Finding]:
        """So far, in the order of the guards."""
        found = [_finding(guard, "answer", stream.found, guard.action) for guard, stream in self._guards]
        return list(chain.from_iterable(found))

    async def _pass(self, text: str, is_last: bool) -> str:
        for guard, stream in self._guards:
            text = await stream.push(text)
            if is_last and not stream.blocked:
                text += await stream.finish()
            if stream.blocked:  # for the guards after it, the text ends here; their message would come before its own
                self.message, is_last = guard.message, True
        return text


def _finding(guard: Guard, place: Place, found: Sequence[str], action: Action) -> list[Finding]:
    if not found:
        return []
    return [Finding(guard.name or guard.type, place, action, tuple(dict.fromkeys(found)))]
