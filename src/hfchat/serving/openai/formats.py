"""What an endpoint brings to the generation of answers: the prompts of its requests, and how it writes answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol, Self, TypedDict

from pydantic import BaseModel

from hfchat.chat import Chat
from hfchat.serving.engines.engine import CallPart, Engine, FinishReason, Prompt, TokenLogprobs
from hfchat.serving.openai.errors import ApiError
from hfchat.serving.openai.protocol import Usage


@dataclass(slots=True)
class Part:
    """A part of the answer with this index, ready to be sent.

    `logprobs` has its tokens, each with the characters of the answer that come before it. `reasoning` and `calls` are
    those of `hfchat.serving.engines.engine.Piece`.
    """

    index: int
    text: str
    logprobs: Sequence[tuple[int, TokenLogprobs]] = ()
    finish_reason: FinishReason | None = None
    reasoning: str = ""
    calls: Sequence[CallPart] = ()

    @property
    def is_empty(self) -> bool:
        return not (self.text or self.logprobs or self.finish_reason or self.reasoning or self.calls)

    @property
    def is_only_text(self) -> bool:
        return bool(self.text) and not (self.logprobs or self.finish_reason or self.reasoning or self.calls)


def tokens_of(parts: Sequence[Part]) -> list[tuple[int, TokenLogprobs]]:
    """The tokens of successive parts, as `Part.logprobs` has them."""
    return list(chain.from_iterable(part.logprobs for part in parts))


class Identity(TypedDict):
    """What all events of a response have in common; `system_fingerprint` is the version of the model."""

    id: str
    created: int
    model: str
    system_fingerprint: str | None


class Source(Protocol):
    """What a prompt is made of."""

    @property
    def texts(self) -> Sequence[str] | None:
        """What guards read; None if there are only token ids."""

    @property
    def names(self) -> Sequence[str]:
        """What guards read and cannot redact, such as the names of functions."""

    @property
    def chat(self) -> Chat | None:
        """The conversation; None for a prompt without a template."""

    def replaced(self, texts: Sequence[str]) -> Self:
        """The same with other texts."""

    async def encode(self, engine: Engine) -> Prompt:
        """The prompt as the engine wants it; raises what the engine raises."""


class EventStream(Protocol):
    """Writes the answers to one request as server-sent events."""

    def of(self, part: Part) -> Sequence[bytes]:
        """The events for the next part."""

    def end(self, usage: Usage) -> Sequence[bytes]:
        """The events after the last part."""

    def failure(self, error: ApiError) -> Sequence[bytes]:
        """The events after which nothing comes, because something failed."""


class Format(Protocol):
    """How an endpoint writes its answers.

    Attributes:
        id_prefix: How the ids of its answers begin.
        prompt_field: The field of its requests that holds the prompt.
    """

    id_prefix: str
    prompt_field: str

    def whole(self, identity: Identity, answers: Sequence[Sequence[Part]], usage: Usage) -> BaseModel:
        """The body for all parts of each answer."""

    def events(self, identity: Identity, include_usage: bool) -> EventStream:
        """The events of a stream."""


class ChunkFormat(Protocol):
    """How the events of a `Format` are written that are all of one shape."""

    def chunks(self, identity: Identity, part: Part, first: bool) -> Sequence[BaseModel]:
        """The events for one part; `first` if it is the first one of its answer."""

    def usage(self, identity: Identity, usage: Usage) -> BaseModel:
        """The event that carries only the usage."""
