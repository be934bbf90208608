"""OpenAI's shapes of answers (https://platform.openai.com/docs/api-reference/chat), and this server's own."""

from typing import Literal

from pydantic import BaseModel, SerializerFunctionWrapHandler, model_serializer

from hfchat.serving.engines.engine import FinishReason


class Usage(BaseModel):
    """Counts of tokens; the completion includes the end-of-turn token."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TopLogprob(BaseModel):
    """`logprob` is the natural logarithm, `bytes` the token's UTF-8 or a part of it."""

    token: str
    logprob: float
    bytes: list[int]


class ContentLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(BaseModel):
    content: list[ContentLogprob]
    refusal: None = None


class CalledFunction(BaseModel):
    """`arguments` is JSON, or in a chunk a part of it; `name` is only in the first chunk of a call."""

    name: str | None = None
    arguments: str

    @model_serializer
    def _set_fields(self) -> dict[str, str]:
        return {"arguments": self.arguments} if self.name is None else {"name": self.name, "arguments": self.arguments}


class ToolCall(BaseModel):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class AnswerMessage(BaseModel):
    """`content` is null where there are only calls. Fields without anything in them, but for these two, are left
    out."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None

    @model_serializer(mode="wrap")
    def _set_fields(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        optional = ("reasoning_content", "tool_calls")
        return {name: value for name, value in serialize(self).items() if name not in optional or value is not None}


class Choice(BaseModel):
    index: int
    message: AnswerMessage
    logprobs: ChoiceLogprobs | None = None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    system_fingerprint: str | None = None  # the version of the model
    usage: Usage


class ToolCallPart(BaseModel):
    """What a chunk adds to the call with this index. Its first chunk has the id, the type and the name."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: CalledFunction

    @model_serializer(mode="wrap")
    def _set_fields(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        return {name: value for name, value in serialize(self).items() if value is not None}


class Delta(BaseModel):
    """What a chunk adds; only the fields that are set are sent."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallPart] | None = None

    @model_serializer(mode="wrap")
    def _set_fields(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        return {name: value for name, value in serialize(self).items() if value is not None}


class ChunkChoice(BaseModel):
    index: int
    delta: Delta
    logprobs: ChoiceLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChatCompletionChunk(BaseModel):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    system_fingerprint: str | None = None  # the version of the model
    usage: Usage | None = None


class CompletionLogprobs(BaseModel):
    """One entry per token in each list; `text_offset` counts characters of the completion."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None = None


class Completion(BaseModel):
    """A completion, and each chunk of a streamed one."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    system_fingerprint: str | None = None  # the version of the model
    usage: Usage | None = None


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "hfchat"
    parent: str | None = None  # of an adapter its base, as vLLM says it
    version: str | None = None  # the version that answers, if the model is in a registry; not a candidate
    engine: str | None = None  # what generates the answers, and the type of its weights
    weights: str | None = None


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class CorrectedCall(BaseModel):
    type: Literal["function"] = "function"
    function: CalledFunction


class CorrectedAnswer(BaseModel):
    """What an answer with calls should have been."""

    content: str
    tool_calls: list[CorrectedCall]


class Feedback(BaseModel):
    """Feedback as it is kept, redacted. `replaces` is the id of what the same person said before, if they did."""

    id: str
    object: Literal["feedback"] = "feedback"
    created: int
    answer_id: str
    choice: int
    rating: Literal["up", "down"] | None
    correction: str | CorrectedAnswer | None
    comment: str | None
    tags: list[str]
    preferred_over: str | None
    user: str | None
    replaces: str | None


class FeedbackSettings(BaseModel):
    """What becomes of a conversation here.

    Attributes:
        enabled: Feedback is taken.
        keeps_conversations: Conversations about which nobody says anything are kept too.
        logs_content: What is asked and answered is in the server's log, whatever a request says.
    """

    enabled: bool
    keeps_conversations: bool
    logs_content: bool
