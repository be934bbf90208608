"""OpenAI's shapes of requests (https://platform.openai.com/docs/api-reference/chat), and this server's own.

Fields that the server does not implement take only the value that changes nothing, because clients send it.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self, cast

from pydantic import Discriminator, Field, Tag, model_validator

from hfchat.chat import Chat, Json
from hfchat.serving.openai.fields import JsonObject, StrictRequest, Text, at_most
from hfchat.serving.openai.messages import (
    ChatMessage,
    Correction,
    ResponseFormat,
    Tool,
    ToolChoice,
    check_calls,
    check_tools,
)

MAX_MESSAGES = 10_000
_MAX_TOKEN_IDS = 2**18  # more than the longest contexts of today hold
_MAX_BIASES = 1_024  # OpenAI's own limit is 300
MAX_TOOLS = 128  # OpenAI's own limit


class StreamOptions(StrictRequest):
    include_usage: bool | None = False


_Stop = Annotated[Text, Field(min_length=1, max_length=512)]
Label = Annotated[Text, Field(max_length=512)]
_Penalty = Annotated[float, Field(ge=-2, le=2)]
_TokenKey = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
_Bias = Annotated[float, Field(ge=-100, le=100)]
Metadata = Annotated[dict[Annotated[Text, Field(max_length=64)], Label], Field(max_length=16)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]


class GenerationRequest(StrictRequest):
    """What chat completions and completions have in common."""

    model: Text
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    stop: _Stop | Annotated[list[_Stop], Field(max_length=4, fail_fast=True)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    # Labels for abuse reports and caches. By OpenAI's definition they do not change an answer. The server keeps only
    # `user`, with the answers that it stores (`hfchat serve --feedback`), so that they can be found by it.
    user: Label | None = None
    logit_bias: Annotated[dict[_TokenKey, _Bias], Field(max_length=_MAX_BIASES), at_most(_MAX_BIASES)] | None = None
    # As vLLM has them.
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: only allowed when stream is true")
        return self

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class ChatCompletionRequest(GenerationRequest):
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=8, fail_fast=True)] | None = None
    # Labels, like `user`.
    metadata: Annotated[Metadata, at_most(16)] | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    store: Literal[False] | None = None  # False: not to be kept, so there can be no feedback on the answer
    service_tier: Literal["auto", "default"] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(min_length=1, max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: Literal["auto", "none", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Effort | None = None
    chat_template_kwargs: JsonObject | None = None
    functions: None = None  # what `tools` was called before
    function_call: Literal["none"] | None = None

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise ValueError("max_tokens: must equal max_completion_tokens when both are given")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: only allowed when logprobs is true")
        choice = self.tool_choice
        chosen = choice.function.name if isinstance(choice, ToolChoice) else None
        check_tools([tool.function.name for tool in self.tools or ()], choice, chosen, "function.name")
        check_calls(self.messages)
        return self

    def chat(self) -> Chat:
        """The conversation, and what its answer may be."""
        choice, format = self.tool_choice or "auto", self.response_format
        return Chat(
            messages=[message.plain() for message in self.messages],
            tools=[tool.plain() for tool in self.tools or ()],
            tool_choice=choice if isinstance(choice, str) else choice.model_dump(),
            parallel_tool_calls=self.parallel_tool_calls is not False,
            response_format=format.plain() if format else None,
            template_options=self.chat_template_kwargs or {},
            reasoning_effort=self.reasoning_effort,
        )

    @property
    def top_tokens(self) -> int | None:
        """How many of the likeliest tokens to name at each place, if log probabilities are asked for."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def limit(self) -> tuple[str, int | None]:
        """The asked length of the answer in tokens, and the field that asked for it."""
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return "max_tokens", self.max_tokens


_TokenId = Annotated[int, Field(ge=0)]
_TokenIds = Annotated[list[_TokenId], Field(min_length=1, max_length=_MAX_TOKEN_IDS, fail_fast=True)]
_Texts = Annotated[list[Text], Field(min_length=1, max_length=128, fail_fast=True)]
_ListsOfTokenIds = Annotated[list[_TokenIds], Field(min_length=1, max_length=128, fail_fast=True)]


def _kind_of_prompt(prompt: Any) -> str:
    """What a prompt is meant to be, so that it is checked as that and as nothing else."""
    if not isinstance(prompt, list):
        return "a text"
    if any(isinstance(entry, str) for entry in prompt):
        return "texts"
    return "lists of token ids" if prompt and isinstance(prompt[0], list) else "token ids"


_SEVERAL_PROMPTS = ("texts", "lists of token ids")
_Prompt = Annotated[
    Annotated[Text, Tag("a text")]
    | Annotated[_TokenIds, Tag("token ids")]
    | Annotated[_Texts, Tag("texts")]
    | Annotated[_ListsOfTokenIds, Tag("lists of token ids")],
    Discriminator(_kind_of_prompt),
]


class CompletionRequest(GenerationRequest):
    prompt: _Prompt
    max_tokens: Annotated[int, Field(ge=1)] | None = 16
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: Literal[False] | None = None
    suffix: Literal[""] | None = None
    best_of: Literal[1] | None = None

    @property
    def top_tokens(self) -> int | None:
        return self.logprobs

    @property
    def limit(self) -> tuple[str, int | None]:
        return "max_tokens", self.max_tokens

    @property
    def prompts(self) -> Sequence[str | list[int]]:
        kind = _kind_of_prompt(self.prompt)
        return cast("list[str | list[int]]", self.prompt if kind in _SEVERAL_PROMPTS else [self.prompt])


AnswerableRequest = ChatCompletionRequest | CompletionRequest

_Identifier = Annotated[Text, Field(min_length=1, max_length=128)]
_Tag = Annotated[Text, Field(min_length=1, max_length=64)]


class FeedbackRequest(StrictRequest):
    """What somebody says about an answer. It replaces all that they have said about it before."""

    answer_id: _Identifier
    choice: Annotated[int, Field(ge=0, le=127)] = 0
    rating: Literal["up", "down"] | None = None
    correction: Annotated[Text, Field(min_length=1, max_length=50_000)] | Correction | None = None
    comment: Annotated[Text, Field(min_length=1, max_length=5_000)] | None = None
    tags: Annotated[list[_Tag], Field(max_length=16, fail_fast=True)] = Field(default_factory=list)
    preferred_over: _Identifier | None = None
    user: Label | None = None

    @property
    def corrected_text(self) -> str | None:
        """ "" if the answer should have been calls alone, None if nothing is corrected."""
        return self.correction.content or "" if isinstance(self.correction, Correction) else self.correction

    @property
    def corrected_calls(self) -> list[Json]:
        """As chat templates take them."""
        calls = self.correction.tool_calls if isinstance(self.correction, Correction) else None
        return [call.plain() for call in calls or ()]
