"""`POST /v1/chat/completions` (https://platform.openai.com/docs/api-reference/chat)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, cast

from hfchat.serving.engines.engine import Engine, FinishReason, Logprob, Prompt, TokenLogprobs
from hfchat.serving.openai.formats import Identity, Part, tokens_of
from hfchat.serving.openai.protocol import (
    AnswerMessage,
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChoiceLogprobs,
    ChunkChoice,
    ContentLogprob,
    Delta,
    TopLogprob,
    Usage,
)


@dataclass(frozen=True)
class Conversation:
    """A `Source` (see `hfchat.serving.openai.formats`) that the engine's chat template makes a prompt of."""

    messages: Sequence[dict[str, str]]

    @property
    def texts(self) -> list[str]:
        return [message["content"] for message in self.messages]

    def replaced(self, texts: Sequence[str]) -> Self:
        return type(self)([{**message, "content": text} for message, text in zip(self.messages, texts, strict=True)])

    async def encode(self, engine: Engine) -> Prompt:
        return await engine.encode(self.messages)


class ChatFormat:
    """A `Format` (see `hfchat.serving.openai.formats`)."""

    id_prefix = "chatcmpl"
    prompt_field = "messages"

    def __init__(self, wants_logprobs: bool):
        self._wants_logprobs = wants_logprobs

    def whole(self, identity: Identity, answers: Sequence[Sequence[Part]], usage: Usage) -> ChatCompletion:
        choices = []
        for index, parts in enumerate(answers):
            text = "".join(part.text for part in parts)
            choice = Choice(
                index=index,
                message=AnswerMessage(content=text),
                logprobs=self._logprobs(parts),
                finish_reason=cast("FinishReason", parts[-1].finish_reason),  # an answer that is whole has one
            )
            choices.append(choice)
        return ChatCompletion(**identity, choices=choices, usage=usage)

    def chunks(self, identity: Identity, part: Part, first: bool) -> list[ChatCompletionChunk]:
        choices = []
        if first:
            choices.append(ChunkChoice(index=part.index, delta=Delta(role="assistant", content="")))
        if part.text or part.logprobs:
            logprobs = self._logprobs([part])
            choices.append(ChunkChoice(index=part.index, delta=Delta(content=part.text), logprobs=logprobs))
        if part.finish_reason is not None:
            choices.append(ChunkChoice(index=part.index, delta=Delta(), finish_reason=part.finish_reason))
        return [ChatCompletionChunk(**identity, choices=[choice]) for choice in choices]

    def usage(self, identity: Identity, usage: Usage) -> ChatCompletionChunk:
        return ChatCompletionChunk(**identity, choices=[], usage=usage)

    def _logprobs(self, parts: Sequence[Part]) -> ChoiceLogprobs | None:
        if not self._wants_logprobs:
            return None
        return ChoiceLogprobs(content=[_entry(token) for _, token in tokens_of(parts)])


def _entry(token: TokenLogprobs) -> ContentLogprob:
    top = [_logprob(other) for other in token.top]
    return ContentLogprob(**_logprob(token.chosen).model_dump(), top_logprobs=top)


def _logprob(token: Logprob) -> TopLogprob:
    return TopLogprob(token=token.token, logprob=token.logprob, bytes=list(token.bytes))
