"""`POST /v1/chat/completions` (https://platform.openai.com/docs/api-reference/chat)."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Self, cast

from hfchat.chat import Chat
from hfchat.serving.engines.engine import CallPart, Engine, FinishReason, Logprob, Prompt, TokenLogprobs
from hfchat.serving.openai.formats import Identity, Part, tokens_of
from hfchat.serving.openai.protocol import (
    AnswerMessage,
    CalledFunction,
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChoiceLogprobs,
    ChunkChoice,
    ContentLogprob,
    Delta,
    ToolCall,
    ToolCallPart,
    TopLogprob,
    Usage,
)


@dataclass(frozen=True)
class Conversation:
    """A `Source` (see `hfchat.serving.openai.formats`) that the engine's chat template makes a prompt of."""

    chat: Chat

    @property
    def texts(self) -> list[str]:
        return [message["content"] for message in self.chat.messages]

    def replaced(self, texts: Sequence[str]) -> Self:
        messages = [{**message, "content": text} for message, text in zip(self.chat.messages, texts, strict=True)]
        return type(self)(replace(self.chat, messages=messages))

    async def encode(self, engine: Engine) -> Prompt:
        return await engine.encode(self.chat)


class ChatFormat:
    """A `Format` (see `hfchat.serving.openai.formats`)."""

    id_prefix = "chatcmpl"
    prompt_field = "messages"

    def __init__(self, wants_logprobs: bool):
        self._wants_logprobs = wants_logprobs

    def whole(self, identity: Identity, answers: Sequence[Sequence[Part]], usage: Usage) -> ChatCompletion:
        choices = []
        for index, parts in enumerate(answers):
            choice = Choice(
                index=index,
                message=_message(parts),
                logprobs=self._logprobs(parts),
                finish_reason=cast("FinishReason", parts[-1].finish_reason),  # an answer that is whole has one
            )
            choices.append(choice)
        return ChatCompletion(**identity, choices=choices, usage=usage)

    def chunks(self, identity: Identity, part: Part, first: bool) -> list[ChatCompletionChunk]:
        choices = []
        if first:
            choices.append(ChunkChoice(index=part.index, delta=Delta(role="assistant", content="")))
        if part.reasoning:
            choices.append(ChunkChoice(index=part.index, delta=Delta(reasoning_content=part.reasoning)))
        if part.calls:
            calls = [_call_part(call) for call in part.calls]
            choices.append(ChunkChoice(index=part.index, delta=Delta(tool_calls=calls)))
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


def _message(parts: Sequence[Part]) -> AnswerMessage:
    text = "".join(part.text for part in parts)
    reasoning = "".join(part.reasoning for part in parts)
    calls: list[ToolCall] = []
    for call in chain.from_iterable(part.calls for part in parts):
        if call.name is not None:
            calls.append(ToolCall(id=call.id or _call_id(), function=CalledFunction(name=call.name, arguments="")))
        calls[-1].function.arguments += call.arguments
    content = text if text or not calls else None
    return AnswerMessage(content=content, reasoning_content=reasoning or None, tool_calls=calls or None)


def _call_part(call: CallPart) -> ToolCallPart:
    function = CalledFunction(name=call.name, arguments=call.arguments)
    if call.name is None:
        return ToolCallPart(index=call.index, function=function)
    return ToolCallPart(index=call.index, id=call.id or _call_id(), type="function", function=function)


def _call_id() -> str:
    return f"call_{uuid.uuid4().hex}"


def _entry(token: TokenLogprobs) -> ContentLogprob:
    top = [_logprob(other) for other in token.top]
    return ContentLogprob(**_logprob(token.chosen).model_dump(), top_logprobs=top)


def _logprob(token: Logprob) -> TopLogprob:
    return TopLogprob(token=token.token, logprob=token.logprob, bytes=list(token.bytes))
