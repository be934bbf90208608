"""What the server asks of an engine: a prompt that the engine made itself goes in, and text comes out in pieces."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from hfchat.chat import CallPart, Chat

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]  # the last one: a guard cut the answer


class EngineError(Exception):
    """The engine could not go on; the request is not to blame."""


class PromptError(ValueError):
    """The chat template, or the tokenizer, refuses this prompt, or the answer that it asks for. The message says why.

    Attributes:
        field: The field of the request that is to blame; None for the prompt itself.
    """

    def __init__(self, message: str, field: str | None = None):
        super().__init__(message)
        self.field = field


class PromptTooLongError(PromptError):
    """The context cannot hold this prompt, however it is encoded."""


@dataclass(frozen=True)
class Sampling:
    """How to choose the tokens of one answer. What is None is the engine's own choice.

    Attributes:
        max_tokens: Length of the answer in tokens, the end-of-turn token included; None: all that the context holds.
        temperature: 0 always takes the likeliest token.
        top_p: Probability mass to sample from, in [0, 1].
        top_k: How many of the likeliest tokens may be drawn; 0 is all.
        min_p: Share of the likeliest token's probability that a token must have to be drawn, in [0, 1].
        repetition_penalty: Divides the positive logits of the tokens that the prompt and the answer have, and
            multiplies their negative ones (https://arxiv.org/abs/1909.05858).
        logit_bias: Added to the logits of tokens, by their ids.
        seed: Makes the draws of this answer repeatable, whatever runs beside it.
        presence_penalty: Taken off the logit of every token that the answer has already, in [-2, 2].
        frequency_penalty: Taken off it once for each time that the answer has it, in [-2, 2].
        logprobs: How many of the likeliest tokens to name beside each chosen one; None: no log probabilities at all.
        stop: Strings before which the answer is cut anyway. An engine may use them to end it itself.
    """

    max_tokens: int | None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logprobs: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class CompleteSampling(Sampling):
    """A sampling that leaves nothing to the engine."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float


@dataclass(frozen=True)
class Logprob:
    """A token and its log probability by the model's own distribution, before temperature, penalties and top_p.

    `token` is the text of its bytes by themselves, with U+FFFD where they are not a whole character.
    """

    token: str
    logprob: float
    bytes: bytes


@dataclass(frozen=True)
class TokenLogprobs:
    """A token of an answer, and the likeliest ones at its place, likeliest first."""

    chosen: Logprob
    top: tuple[Logprob, ...] = ()


@dataclass(frozen=True)
class Piece:
    """A part of an answer.

    Attributes:
        text: Whole characters; may be empty.
        tokens: Number of tokens since the part before.
        finish_reason: Why the answer ends here; only the last part has one.
        logprobs: Those of the tokens that became `text`, if they were asked for. The end-of-turn token has none.
        prompt_tokens: Length of a prompt that was not counted here (`Prompt.tokens` is None); on the last part.
        reasoning: What the model thought before its answer; whole characters, which are not in `text`.
        calls: Parts of tool calls, which are not in `text` either.
    """

    text: str
    tokens: int
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_tokens: int | None = None
    reasoning: str = ""
    calls: tuple[CallPart, ...] = ()


@dataclass(frozen=True)
class EngineInfo:
    """What an engine is, for `/v1/models` and `/metrics`.

    Attributes:
        engine: Its name, as for `--engine`; "upstream" where other servers answer.
        weights: The type of the weights; None if only an upstream knows.
        file: The file that was made of the model, with its certificate beside it; None where the model is as it was.
    """

    engine: str
    weights: str | None = None
    file: Path | None = None


class Prompt(Protocol):
    """A prompt as its engine wants it; others read only `tokens`: its length, None where an upstream counts."""

    @property
    def tokens(self) -> int | None: ...


P = TypeVar("P", bound=Prompt)


class Engine(Protocol[P]):
    """Generates answers, many at a time, for one event loop."""

    @property
    def info(self) -> EngineInfo:
        """What it is."""

    @property
    def cannot(self) -> Mapping[str, str]:
        """Fields of the API that it cannot honour, and why."""

    @property
    def context_length(self) -> int | None:
        """Tokens that a prompt and its answer may take together; None if only an upstream knows."""

    @property
    def temperature(self) -> float | None:
        """What an answer is sampled with when its request does not say; None leaves it to an upstream."""

    @property
    def top_p(self) -> float | None:
        """As `temperature`."""

    @property
    def template_fingerprint(self) -> str | None:
        """The fingerprint of its chat template (`hfchat.chat_template`); None where an upstream applies one."""

    @property
    def restarts(self) -> int:
        """How often it was started again after a crash."""

    @property
    def error(self) -> str | None:
        """Why the engine cannot answer now, None while it can. It may recover."""

    async def start(self) -> None:
        """Get ready to answer. Returns when a first token has really been generated."""

    async def stop(self) -> None:
        """Free what `start` took. Answers that are still running end with an `EngineError`."""

    def abort(self, reason: str) -> None:
        """End all running answers, and any that starts later, with an `EngineError`."""

    async def ready(self) -> None:
        """Generate one token, really; the caller sets the time limit.

        Raises:
            EngineError: If that is not possible now.
        """

    async def encode(self, chat: Chat) -> P:
        """The prompt of a conversation, with all that its answer must be.

        Raises:
            PromptError: If the chat template refuses the conversation, or the answer cannot be what is asked for.
        """

    async def encode_text(self, text: str | Sequence[int]) -> P:
        """A prompt without a template: a text, or the ids of its tokens.

        Raises:
            PromptError: If an id is not in the vocabulary.
        """

    def stream(self, prompt: P, sampling: Sampling) -> AsyncGenerator[Piece]:
        """The answer to a prompt, piece by piece; closing the generator frees its place in the batch at once.

        Raises:
            EngineError: If the engine fails.
            PromptError: If the answer to this prompt cannot be chosen as the sampling says.
            ApiError: If an upstream refuses the request; the client gets the error as it is.
        """
