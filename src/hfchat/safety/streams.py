"""A text that is guarded while it is written: what is sent is what would have been sent of the whole text.

A stream takes the text in parts and gives out those that are decided. Whatever the parts are, the outputs joined, the
findings and the end are the same: each stream cuts its text by itself, at places that depend on the text alone.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from itertools import takewhile
from typing import Protocol, TypeVar

from hfchat.safety.finders import Finder

# After a sentence, with what follows it known to be the next one. The quantifiers are possessive: the next part of the
# text must not be able to move a cut. A run of blanks or full stops is read from its beginning only, so once.
_SENTENCE_END = re.compile(r"(?:[.!?…][\"')\]]*+\s++|(?<![。！？])[。！？]++\s*+|(?<!\s)[^\S\n]*+\n\s*+)(?=\S)")
_AT_ONCE = 16  # sentences that are judged together
_LONG = 2_000  # characters, from which on a search is made in a thread, and others are served meanwhile
# Characters that are read anew with each part of a text, however many there are; and how much longer a text must have
# become, by its length, before more of it are. So all in all, no more is read than a multiple of the text.
_ALWAYS_READ, _GROWTH = 256, 1 / 8

_T = TypeVar("_T")


async def _without_waiting(find: Callable[[str], _T], text: str) -> _T:
    """What is found in a text; the event loop does not wait for a long one."""
    return await asyncio.to_thread(find, text) if len(text) > _LONG else find(text)


class Judge(Protocol):
    def __call__(self, texts: Sequence[str]) -> Awaitable[list[list[str]]]:
        """The categories that each text is in, none if it is harmless."""


class Stream(Protocol):
    """One guard over one text.

    Attributes:
        blocked: Whether the text has ended, before what was found. Nothing must be pushed then.
        found: The categories found so far, in order.
    """

    blocked: bool
    found: list[str]

    async def push(self, text: str) -> str:
        """What can be given out now."""

    async def finish(self) -> str:
        """The rest, when the text is whole."""

    async def whole(self, text: str) -> str:
        """All that can be given out of a text that is whole already, in place of `push` and `finish`."""


class _Unread:
    """A text to which parts are added, and when to read it again: what nothing can be given out of grows, and reading
    all of it with each part would take the square of its length."""

    def __init__(self) -> None:
        self.text = ""
        self._parts: list[str] = []
        self._added = 0
        self._wanted = 0.0

    def add(self, part: str) -> bool:
        """Whether it is time to read `text`, which has all parts then."""
        self._parts.append(part)
        self._added += len(part)
        if self._added < max(1, self._wanted):
            return False
        self.read_all()
        self._wanted = (len(self.text) - _ALWAYS_READ) * _GROWTH
        return True

    def read_all(self) -> str:
        self.text += "".join(self._parts)
        self._parts, self._added = [], 0
        return self.text

    def drop(self, end: int) -> None:
        """Forget what is before `end`."""
        self.text = self.text[end:]
        self._wanted = (len(self.text) - _ALWAYS_READ) * _GROWTH


class SpanStream:
    """Gives out what a finder is settled about, with each span replaced; or, when it blocks, what is before the first.

    Args:
        finder: What to look for.
        replace: The text for a span of a category; None to block.
        whole: Give out nothing before the text is whole, so that nothing comes out of a text that is blocked.
    """

    def __init__(self, finder: Finder, replace: Callable[[str], str] | None, whole: bool):
        self.blocked = False
        self.found: list[str] = []
        self._finder = finder
        self._replace = replace
        self._whole = whole
        self._unread = _Unread()  # from where the finder has to read
        self._position = 0  # in it, of what has not been given out

    async def push(self, text: str) -> str:
        if not self._unread.add(text) or self._whole:
            return ""
        return await _without_waiting(lambda seen: self._give_out(self._finder.settled(seen)), self._unread.text)

    async def finish(self) -> str:
        return await _without_waiting(lambda seen: self._give_out(len(seen)), self._unread.read_all())

    async def whole(self, text: str) -> str:
        self._unread.add(text)
        # Always in a thread: a prompt may be of thousands of short texts.
        return await asyncio.to_thread(self._give_out, len(self._unread.read_all()))

    def _give_out(self, end: int) -> str:
        if end <= self._position:
            return ""
        text = self._unread.text
        parts, position = [], self._position
        for span in self._finder.find(text[:end]):
            if span.start < position:  # has been given out already, and is only context
                continue
            self.found.append(span.category)
            parts.append(text[position : span.start])
            position = span.end
            if self._replace is None:
                self.blocked, self._unread = True, _Unread()
                return "" if self._whole else "".join(parts)
            parts.append(self._replace(span.category))
        parts.append(text[position:end])
        start = self._finder.context(text, end)
        self._unread.drop(start)
        self._position = end - start
        return "".join(parts)


class JudgedStream:
    """Gives out text that a judge let pass: all of it at its end, or sentence by sentence.

    By sentences, the judge sees at each the text so far, and the text ends before the first at which it is not
    harmless. What it would only say of the whole text comes too late for the sentences before, which is why this is
    not the default. A text that is whole already, as a prompt is, is judged once.
    """

    def __init__(self, judge: Judge, whole: bool):
        self.blocked = False
        self.found: list[str] = []
        self._judge = judge
        self._whole = whole
        self._unread = _Unread()
        self._judged = ""  # and given out

    async def push(self, text: str) -> str:
        if not self._unread.add(text) or self._whole:
            return ""
        return await self._pass([match.end() for match in _SENTENCE_END.finditer(self._unread.text)])

    async def finish(self) -> str:
        rest = self._unread.read_all()
        return await self._pass([len(rest)] if rest else [])

    async def whole(self, text: str) -> str:
        self._unread.add(text)
        return await self.finish()

    async def _pass(self, ends: Sequence[int]) -> str:
        text, position = self._unread.text, 0
        for first in range(0, len(ends), _AT_ONCE):  # each is a copy of the text so far
            at_once = ends[first : first + _AT_ONCE]
            verdicts = await self._judge([self._judged + text[:end] for end in at_once])
            harmless = list(takewhile(lambda one: not one[1], zip(at_once, verdicts, strict=True)))
            position = harmless[-1][0] if harmless else position
            if len(harmless) < len(at_once):
                self.blocked, self.found = True, verdicts[len(harmless)]
                break
        self._judged += text[:position]
        self._unread.drop(position)
        return text[:position]


class Watch:
    """Lets everything pass, and says at the end what was found in the whole text."""

    def __init__(self, judge: Judge):
        self.blocked = False
        self.found: list[str] = []
        self._judge = judge
        self._parts: list[str] = []

    async def push(self, text: str) -> str:
        self._parts.append(text)
        return text

    async def finish(self) -> str:
        if text := "".join(self._parts):
            [self.found] = await self._judge([text])
        return ""

    async def whole(self, text: str) -> str:
        return await self.push(text) + await self.finish()
