"""A text that is guarded while it is written: what is sent is what would have been sent of the whole text.

A stream takes the text in parts and gives out those that are decided. Whatever the parts are, the outputs joined, the
findings and the end are the same: each stream cuts its text by itself, at places that depend on the text alone.
"""

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from hfchat.safety.finders import Finder

# After a sentence, with what follows it known to be the next one. The quantifiers are possessive: the next part of the
# text must not be able to move a cut.
_SENTENCE_END = re.compile(r"(?:[.!?…]++[\"')\]]*+\s++|[。！？]++\s*+|\n\s*+)(?=\S)")


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
        self._text = ""  # from where the finder has to read
        self._position = 0  # in it, of what has not been given out

    async def push(self, text: str) -> str:
        self._text += text
        return "" if self._whole else self._give_out(self._finder.settled(self._text))

    async def finish(self) -> str:
        return self._give_out(len(self._text))

    def _give_out(self, end: int) -> str:
        if end <= self._position:
            return ""
        parts, position = [], self._position
        for span in self._finder.find(self._text[:end]):
            if span.start < position:  # has been given out already, and is only context
                continue
            self.found.append(span.category)
            parts.append(self._text[position : span.start])
            position = span.end
            if self._replace is None:
                self.blocked, self._text = True, ""
                return "" if self._whole else "".join(parts)
            parts.append(self._replace(span.category))
        parts.append(self._text[position:end])
        start = self._finder.context(self._text, end)
        self._text, self._position = self._text[start:], end - start
        return "".join(parts)


class JudgedStream:
    """Gives out text that a judge let pass: all of it at its end, or sentence by sentence.

    By sentences, the judge sees at each the text so far, and the text ends before the first at which it is not
    harmless. What it would only say of the whole text comes too late for the sentences before, which is why this is
    not the default.
    """

    def __init__(self, judge: Judge, whole: bool):
        self.blocked = False
        self.found: list[str] = []
        self._judge = judge
        self._whole = whole
        self._text = ""
        self._judged = 0

    async def push(self, text: str) -> str:
        self._text += text
        if self._whole:
            return ""
        return await self._pass(self._sentence_ends())

    async def finish(self) -> str:
        return await self._pass([len(self._text)] if self._text else [])

    def _sentence_ends(self) -> list[int]:
        return [match.end() for match in _SENTENCE_END.finditer(self._text, self._judged)]

    async def _pass(self, ends: Sequence[int]) -> str:
        start = self._judged
        verdicts = await self._judge([self._text[:end] for end in ends]) if ends else []
        for end, categories in zip(ends, verdicts, strict=True):
            if categories:
                self.blocked, self.found = True, categories
                break
            self._judged = end
        return self._text[start : self._judged]


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
