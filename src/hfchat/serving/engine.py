"""What the server asks of an engine. Text goes in and comes out as text; tokens are only counted here."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

FinishReason = Literal["stop", "length"]


class EngineError(Exception):
    """The engine could not go on; the request is not to blame."""


class PromptError(ValueError):
    """The chat template refuses this conversation. The message says why."""


@dataclass(frozen=True)
class Sampling:
    """How to choose the tokens of one answer.

    Attributes:
        max_tokens: Length of the answer in tokens, the end-of-turn token included.
        temperature: 0 always takes the likeliest token.
        top_p: Probability mass to sample from, in [0, 1].
        seed: Makes the draws of this answer repeatable, whatever runs beside it.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None


@dataclass(frozen=True)
class Piece:
    """A part of an answer: whole characters, the tokens since the part before, and on the last one why it ends."""

    text: str
    tokens: int
    finish_reason: FinishReason | None = None


class Engine(Protocol):
    """Generates answers, many at a time, for one event loop.

    Attributes:
        context_length: Tokens that a prompt and its answer may take together.
        temperature: What an answer is sampled with when its request does not say.
        top_p: Likewise.
        error: Why the engine can answer no longer, None while it can.
    """

    context_length: int
    temperature: float
    top_p: float

    @property
    def error(self) -> str | None: ...

    async def start(self) -> None:
        """Get ready to answer. Returns when a first token has really been generated."""

    async def stop(self) -> None:
        """Free what `start` took. Answers that are still running end with an `EngineError`."""

    def abort(self, reason: str) -> None:
        """End all running answers, and any that starts later, with an `EngineError`."""

    async def encode(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """The prompt of a conversation, `[{"role", "content"}]`, as token ids.

        Raises:
            PromptError: If the chat template refuses the conversation.
        """

    def stream(self, prompt: list[int], sampling: Sampling) -> AsyncGenerator[Piece]:
        """The answer to a prompt, piece by piece; closing the generator frees its place in the batch at once.

        Raises:
            EngineError: If the engine fails.
        """
