"""OpenAI's shapes of requests, answers and errors (https://platform.openai.com/docs/api-reference/chat).

A field that is not in these models is refused by name: nothing that a client asks for is ignored in silence.
Fields that the server does not implement take only the value that changes nothing, because clients send it.

pydantic notes every error of every element, field and branch of a union: 300,000 errors in two gigabytes, for a
body of a mebibyte. One error is enough to refuse a request, so lists are bounded and fail at their first error.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_serializer,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError, PydanticKnownError
from starlette.responses import JSONResponse

from hfchat.serving.engines.engine import FinishReason

_MAX_MESSAGES = 10_000
_MAX_PARTS = 1_000  # of a message
_MAX_TOKEN_IDS = 2**18  # more than the longest contexts of today hold


_FIELDS: set[str] = set()  # of all requests and their parts, to be told from the names of types in pydantic's errors


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        _FIELDS.update(cls.model_fields)

    @model_validator(mode="before")
    @classmethod
    def _keep_one_unknown_field(cls, given: Any) -> Any:
        """Each unknown field would be an error of its own."""
        if not isinstance(given, dict):
            return given
        unknown = next((name for name in given if name not in cls.model_fields), None)
        return {name: value for name, value in given.items() if name in cls.model_fields or name == unknown}


def _check_unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
        raise PydanticCustomError("unicode", "Input should be valid Unicode") from error
    return text


def _at_most(entries: int) -> BeforeValidator:
    """Count the entries of an object before they are validated; `Field(max_length=...)` does so afterwards."""

    def check(given: Any) -> Any:
        if isinstance(given, dict) and len(given) > entries:
            counts = {"field_type": "Dictionary", "max_length": entries, "actual_length": len(given)}
            raise PydanticKnownError("too_long", counts)
        return given

    return BeforeValidator(check)


_Text = Annotated[str, AfterValidator(_check_unicode)]


class TextPart(_Request):
    type: Literal["text"]
    text: _Text


class ChatMessage(_Request):
    role: Literal["system", "developer", "user", "assistant"]
    content: _Text | Annotated[list[TextPart], Field(max_length=_MAX_PARTS, fail_fast=True)]
    # Part of every answer, so they come back with the history.
    refusal: None = None
    annotations: Annotated[list, Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None
    tool_calls: None = None

    def plain(self) -> dict[str, str]:
        """The message as chat templates take it; `developer` is OpenAI's newer name for `system`."""
        parts = [self.content] if isinstance(self.content, str) else [part.text for part in self.content]
        return {"role": "system" if self.role == "developer" else self.role, "content": "".join(parts)}


class StreamOptions(_Request):
    include_usage: bool | None = False


class ResponseFormat(_Request):
    type: Literal["text"]


_Stop = Annotated[_Text, Field(min_length=1, max_length=512)]
_Label = Annotated[_Text, Field(max_length=512)]
_Penalty = Annotated[float, Field(ge=-2, le=2)]
_MetadataKey = Annotated[_Text, Field(max_length=64)]


class GenerationRequest(_Request):
    """What chat completions and completions have in common."""

    model: _Text
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
    user: _Label | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0), _at_most(0)] | None = None

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
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=_MAX_MESSAGES, fail_fast=True)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=8, fail_fast=True)] | None = None
    # Labels, like `user`.
    metadata: Annotated[dict[_MetadataKey, _Label], Field(max_length=16), _at_most(16)] | None = None
    safety_identifier: _Label | None = None
    prompt_cache_key: _Label | None = None
    store: Literal[False] | None = None  # False: not to be kept, so there can be no feedback on the answer
    service_tier: Literal["auto", "default"] | None = None
    tools: None = None
    tool_choice: Literal["none"] | None = None
    functions: None = None
    function_call: Literal["none"] | None = None

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise ValueError("max_tokens: must equal max_completion_tokens when both are given")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: only allowed when logprobs is true")
        return self

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
_Texts = Annotated[list[_Text], Field(min_length=1, max_length=128, fail_fast=True)]
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
    Annotated[_Text, Tag("a text")]
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

_Identifier = Annotated[_Text, Field(min_length=1, max_length=128)]
_Tag = Annotated[_Text, Field(min_length=1, max_length=64)]


class FeedbackRequest(_Request):
    """What somebody says about an answer. It replaces all that they have said about it before."""

    answer_id: _Identifier
    choice: Annotated[int, Field(ge=0, le=127)] = 0
    rating: Literal["up", "down"] | None = None
    correction: Annotated[_Text, Field(min_length=1, max_length=50_000)] | None = None
    comment: Annotated[_Text, Field(min_length=1, max_length=5_000)] | None = None
    tags: Annotated[list[_Tag], Field(max_length=16, fail_fast=True)] = []
    preferred_over: _Identifier | None = None
    user: _Label | None = None


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


class AnswerMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


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


class Delta(BaseModel):
    """What a chunk adds; only the fields that are set are sent."""

    role: Literal["assistant"] | None = None
    content: str | None = None

    @model_serializer
    def _set_fields(self) -> dict[str, str]:
        return {name: value for name, value in (("role", self.role), ("content", self.content)) if value is not None}


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


class Feedback(BaseModel):
    """Feedback as it is kept, redacted. `replaces` is the id of what the same person said before, if they did."""

    id: str
    object: Literal["feedback"] = "feedback"
    created: int
    answer_id: str
    choice: int
    rating: Literal["up", "down"] | None
    correction: str | None
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


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(BaseModel):
    error: ErrorDetail


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors of a route, for the API's description. Every route may answer 401, 403 and 429."""
    return {status: {"model": ErrorResponse} for status in sorted({401, 403, 429, *statuses})}


class ApiError(Exception):
    """An answer in OpenAI's error shape. `param` is the field to blame, `code` is for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str | None = None,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers
        type = type or ("server_error" if status >= 500 else "invalid_request_error")
        self.body = ErrorResponse(error=ErrorDetail(message=message, type=type, param=param, code=code))

    def response(self) -> JSONResponse:
        return JSONResponse(self.body.model_dump(), self.status, headers=self.headers)


def invalid_request(errors: Sequence[ErrorDetails]) -> ApiError:
    """The 400 for pydantic's list of errors: it names one field, the one that lies deepest."""
    error = max(errors, key=lambda error: len(error["loc"]))
    if error["type"] == "json_invalid":
        return ApiError(400, f"The body is not valid JSON: {error['ctx']['error']}.")
    param = _path(error["loc"][1:], unknown_field=error["type"] == "extra_forbidden")
    if error["type"] in ("extra_forbidden", "none_required"):
        return ApiError(400, f"{param}: this field is not supported.", param=param, code="unsupported_field")
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":  # of a validator over several fields, which names one itself
        return ApiError(400, message, param=message.split(":")[0])
    if not param:
        return ApiError(400, "The body must be a JSON object, sent as application/json.")
    missing = error["type"] == "missing"
    return ApiError(400, f"{param}: {message}.", param=param, code="missing_field" if missing else None)


def _path(location: Sequence[str | int], unknown_field: bool) -> str:
    """`("messages", 0, "content", "list[TextPart]", 1)` as `messages[0].content[1]`: names of types are left out."""
    path = ""
    for index, part in enumerate(location):
        if isinstance(part, int):
            path += f"[{part}]"
        elif part in _FIELDS or (unknown_field and index == len(location) - 1):
            path += f".{part}" if path else part
    return path
