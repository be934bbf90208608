"""Answers of `POST /v1/responses` (https://platform.openai.com/docs/api-reference/responses/object)."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, Field, SerializerFunctionWrapHandler, model_serializer

from hfchat.serving.openai.protocol import Usage
from hfchat.serving.openai.responses_requests import FunctionChoice, FunctionTool, ReasoningOptions, TextOptions

Status = Literal["in_progress", "completed", "incomplete", "failed"]


class OutputText(BaseModel):
    type: Literal["output_text"] = "output_text"
    text: str = ""
    annotations: list[None] = Field(default_factory=list)
    logprobs: list[None] = Field(default_factory=list)


class ReasoningText(BaseModel):
    type: Literal["reasoning_text"] = "reasoning_text"
    text: str = ""


class OutputMessage(BaseModel):
    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    status: Status = "in_progress"
    content: list[OutputText] = Field(default_factory=list)


class OutputReasoning(BaseModel):
    id: str
    type: Literal["reasoning"] = "reasoning"
    status: Status = "in_progress"
    summary: list[None] = Field(default_factory=list)
    content: list[ReasoningText] = Field(default_factory=list)


class OutputCall(BaseModel):
    id: str
    type: Literal["function_call"] = "function_call"
    status: Status = "in_progress"
    call_id: str
    name: str
    arguments: str = ""


OutputItem = Annotated[OutputMessage | OutputReasoning | OutputCall, Field(discriminator="type")]


class CachedTokens(BaseModel):
    """What is not counted apart here."""

    cached_tokens: int = 0
    cache_write_tokens: int = 0


class ReasoningTokens(BaseModel):
    """What is not counted apart here."""

    reasoning_tokens: int = 0


class ResponseUsage(BaseModel):
    """Counts of tokens; the output includes the end-of-turn token, reasoning and calls."""

    input_tokens: int
    input_tokens_details: CachedTokens = Field(default_factory=CachedTokens)
    output_tokens: int
    output_tokens_details: ReasoningTokens = Field(default_factory=ReasoningTokens)
    total_tokens: int

    @classmethod
    def of(cls, usage: Usage) -> "ResponseUsage":
        return cls(
            input_tokens=usage.prompt_tokens,
            output_tokens=usage.completion_tokens,
            total_tokens=usage.total_tokens,
        )


class ResponseError(BaseModel):
    code: str
    message: str


class IncompleteDetails(BaseModel):
    reason: Literal["max_output_tokens", "content_filter"]


class Response(BaseModel):
    """A response. What its request has said about it is repeated in it."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    model: str
    status: Status
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    output: list[OutputItem]
    usage: ResponseUsage | None = None
    instructions: str | None
    max_output_tokens: int | None
    metadata: Mapping[str, str]
    parallel_tool_calls: bool
    temperature: float | None
    top_p: float | None
    text: TextOptions
    reasoning: ReasoningOptions
    tool_choice: Literal["auto", "none", "required"] | FunctionChoice
    tools: Sequence[FunctionTool]
    user: str | None
    store: Literal[False] = False
    background: Literal[False] = False
    previous_response_id: None = None
    truncation: Literal["disabled"] = "disabled"
    system_fingerprint: str | None = None  # the version of the model


class ResponseEvent(BaseModel):
    """An event of a streamed response. Each type has some of these fields."""

    type: str
    sequence_number: int
    response: Response | None = None
    output_index: int | None = None
    item: OutputItem | None = None
    item_id: str | None = None
    content_index: int | None = None
    part: OutputText | ReasoningText | None = None
    delta: str | None = None
    text: str | None = None
    name: str | None = None
    arguments: str | None = None
    logprobs: list[None] | None = None

    @model_serializer(mode="wrap")
    def _set_fields(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        return {name: value for name, value in serialize(self).items() if value is not None}
