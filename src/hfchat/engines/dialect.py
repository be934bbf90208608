"""What a child engine is asked, in words that all share, and how it answers."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from hfchat.engines.child import Program


@dataclass(frozen=True)
class TokenRequest:
    """A prompt and how to continue it. Everything is said, so an engine's own defaults never count.

    Attributes:
        prompt: Token ids.
        max_tokens: Length of the answer in tokens, the end-of-turn token included.
        ends: Tokens that end the answer.
        temperature: 0 always takes the likeliest token.
        top_p: Probability mass to sample from, in (0, 1].
        top_k: How many of the likeliest tokens may be drawn; 0 is all.
        min_p: Share of the likeliest token's probability that a token must have to be drawn.
        repetition_penalty: Counts all tokens of the prompt and the answer (https://arxiv.org/abs/1909.05858).
        presence_penalty: Taken off the logit of every token that the answer has already.
        frequency_penalty: Taken off it once for each time that the answer has it.
        logit_bias: Added to the logits of tokens, by their ids, which are in the vocabulary.
        grammar: What the answer may be, as llguidance's Lark grammars say it, beginning with `%llguidance`; None for
            any text. It has been found to be valid: an engine may say nothing of one that is not.
        kept: Special tokens whose text stays in the answer; the text of others does not.
        seed: Makes the draws repeatable.
        logprobs: How many of the likeliest tokens to name beside each chosen one; None: no log probabilities.
        adapter: Name of an adapter; None is the base.
    """

    prompt: Sequence[int]
    max_tokens: int
    ends: frozenset[int] = frozenset()
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    grammar: str | None = None
    kept: frozenset[int] = frozenset()
    seed: int | None = None
    logprobs: int | None = None
    adapter: str | None = None


@dataclass(frozen=True)
class ScoredText:
    """A token's text and its log probability, before temperature, penalties and top_p. `bytes` are the token's own."""

    text: str
    logprob: float
    bytes: bytes


@dataclass(frozen=True)
class Chunk:
    """A part of an answer.

    Attributes:
        text: Whole characters; may be empty.
        tokens: Number of tokens since the chunk before, the end-of-turn token included.
        finish_reason: Why the answer ends with this chunk.
        logprobs: For each token its own and those of the likeliest ones, if they were asked for.
        ids: The tokens; None where the engine does not tell all of them.
    """

    text: str
    tokens: int
    finish_reason: Literal["stop", "length"] | None = None
    logprobs: Sequence[tuple[ScoredText, Sequence[ScoredText]]] = ()
    ids: Sequence[int] | None = None


class EngineFailureError(Exception):
    """An engine says that it failed, or says something that is not an answer."""


class AnswerReader(Protocol):
    """Reads the events of one answer's stream."""

    def read(self, event: bytes) -> Chunk | None:
        """The chunk of an event (the data of a server-sent event), None where there is nothing in it.

        Raises:
            EngineFailureError: If the engine has failed, or the event is not part of an answer.
        """


class Dialect(Protocol):
    """How to ask one kind of engine."""

    @property
    def path(self) -> str:
        """Where answers are asked for."""

    @property
    def cannot(self) -> Mapping[str, str]:
        """What it cannot do as this project's own engine does it: the field of the API, and why."""

    @property
    def special_tokens(self) -> Mapping[int, str]:
        """Texts of the special tokens by their ids."""

    @property
    def masks_logprobs(self) -> bool:
        """Whether its log probabilities are those that a grammar has left, and not the model's own."""

    @property
    def unknown_formats(self) -> Collection[str]:
        """Values of `format` in JSON schemas that its grammars do not know, although our own engine does."""

    @property
    def reads_whole(self) -> bool:
        """Whether it reads prompts one after the other, and a long one keeps the others waiting."""

    @property
    def program(self) -> Program:
        """What is run."""

    def body(self, request: TokenRequest) -> Mapping[str, object]:
        """The JSON of a request for a stream."""

    def reader(self, request: TokenRequest) -> AnswerReader:
        """What reads the answer to a request."""
