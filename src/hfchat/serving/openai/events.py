"""The server-sent events of an answer's parts."""

import uuid
from collections.abc import Sequence

from fastapi.sse import format_sse_event
from pydantic import BaseModel
from pydantic_core import to_json

from hfchat.serving.openai.errors import ApiError
from hfchat.serving.openai.formats import ChunkFormat, Identity, Part
from hfchat.serving.openai.protocol import Usage

_DONE = format_sse_event(data_str="[DONE]")
_ANY_TEXT = uuid.uuid4().hex  # in the place of a chunk's text; nobody can know it


class Events:
    """An `EventStream` (see `hfchat.serving.openai.formats`) whose events are all of one shape, before a `[DONE]`.

    Nearly all parts are text and nothing else, and their events differ in nothing else, so what stands around the text
    is written once for each answer.

    Args:
        format: How the endpoint writes its answers.
        identity: What all events have in common.
        with_usage: Whether there will be an event for the usage; then all others have the field too, with null.
    """

    def __init__(self, format: ChunkFormat, identity: Identity, with_usage: bool):
        self._format = format
        self._identity = identity
        self._exclude = None if with_usage else {"usage"}
        self._begun: set[int] = set()
        self._around_text: dict[int, tuple[bytes, bytes]] = {}

    def of(self, part: Part) -> Sequence[bytes]:
        """The events for the next part; none for one with nothing in it."""
        if part.is_empty:
            return []
        first = part.index not in self._begun
        if first or not part.is_only_text:
            self._begun.add(part.index)
            return [self._written(chunk) for chunk in self._format.chunks(self._identity, part, first)]
        if part.index not in self._around_text:
            (chunk,) = self._format.chunks(self._identity, Part(part.index, _ANY_TEXT), first=False)
            before, _, after = self._written(chunk).partition(to_json(_ANY_TEXT))
            self._around_text[part.index] = before, after
        before, after = self._around_text[part.index]
        return [before + to_json(part.text) + after]

    def end(self, usage: Usage) -> Sequence[bytes]:
        if self._exclude is not None:
            return [_DONE]
        return [self._written(self._format.usage(self._identity, usage)), _DONE]

    def failure(self, error: ApiError) -> Sequence[bytes]:
        return [format_sse_event(data_str=error.body.model_dump_json()), _DONE]

    def _written(self, chunk: BaseModel) -> bytes:
        return format_sse_event(data_str=chunk.model_dump_json(exclude=self._exclude))
