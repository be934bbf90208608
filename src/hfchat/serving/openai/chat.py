"""`POST /v1/chat/completions` (https://platform.openai.com/docs/api-reference/chat)."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from typing import Self, cast

from hfchat.chat import CallPart, Chat, whole_calls
from hfchat.serving.engines.engine import Engine, FinishReason, Logprob, Prompt, TokenLogprobs
from hfchat.serving.openai.events import Events
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
from hfchat.serving.openai.strings import Strings, ignore, map_chat


@dataclass(frozen=True)
class Conversation:
    """A `Source` (see `hfchat.serving.openai.formats`) that the engine's chat template makes a prompt of."""

    chat: Chat

    @cached_property
    def _strings(self) -> Strings:
        return Strings(partial(map_chat, self.chat))

    @property
    def texts(self) -> list[str]:
        return self._strings.texts

    @property
    def names(self) -> list[str]:
        return self._strings.names

    def replaced(self, texts: Sequence[str]) -> Self:
        return type(self)(map_chat(self.chat, self._strings.change_to(texts), ignore))

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

    def events(self, identity: Identity, include_usage: bool) -> Events:
        return Events(self, identity, include_usage)

    def chunks(self, identity: Identity, part: Part, first: bool) -> list[ChatCompletionChunk]:
        deltas = []
        if first:
            only_calls = part.calls and not part.text
            deltas.append(Delta(role="assistant", content=None if only_calls else ""))
        if part.reasoning:
            deltas.append(Delta(reasoning_content=part.reasoning))
        choices = [ChunkChoice(index=part.index, delta=delta) for delta in deltas]
        if part.text or part.logprobs:
            logprobs = self._logprobs([part])
            choices.append(ChunkChoice(index=part.index, delta=Delta(content=part.text), logprobs=logprobs))
        if part.calls:
            calls = [_call_part(call) for call in part.calls]
            choices.append(ChunkChoice(index=part.index, delta=Delta(tool_calls=calls)))
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
    calls = [
        ToolCall(id=call.id or call_id(), function=CalledFunction(name=call.name, arguments=call.arguments))
        for call in whole_calls(chain.from_iterable(part.calls for part in parts))
    ]
    content = text if text or not calls else None
    return AnswerMessage(content=content, reasoning_content=reasoning or None, tool_calls=calls or None)


def _call_part(call: CallPart) -> ToolCallPart:
    function = CalledFunction(name=call.name, arguments=call.arguments)
    if call.name is None:
        return ToolCallPart(index=call.index, function=function)
    return ToolCallPart(index=call.index, id=call.id or call_id(), type="function", function=function)


def call_id() -> str:
    """A name for a tool call, by which its result will name it."""
    return f"call_{uuid.uuid4().hex}"


def _entry(token: TokenLogprobs) -> ContentLogprob:
    top = [_logprob(other) for other in token.top]
    return ContentLogprob(**_logprob(token.chosen).model_dump(), top_logprobs=top)


def _logprob(token: Logprob) -> TopLogprob:
    return TopLogprob(token=token.token, logprob=token.logprob, bytes=list(token.bytes))
