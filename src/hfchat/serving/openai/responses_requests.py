"""Requests of `POST /v1/responses` (https://platform.openai.com/docs/api-reference/responses/create).

A response is made as a chat completion is, so a request of this endpoint becomes one of that. No conversation is kept
here for a later request to go on with, so a client sends the whole of it, and what would need one is refused.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from hfchat.chat import Json
from hfchat.serving.openai.fields import JsonObject, StrictRequest, Text, at_most
from hfchat.serving.openai.messages import (
    CalledFunction,
    CallId,
    ChatMessage,
    ChosenFunction,
    DeclaredFunction,
    JsonSchema,
    Name,
    ResponseFormat,
    Tool,
    ToolCall,
    ToolChoice,
    check_arguments,
    check_tools,
)
from hfchat.serving.openai.requests import MAX_MESSAGES, MAX_TOOLS, ChatCompletionRequest, Effort, Label, Metadata

_MAX_PARTS = 1_000  # of an item
_Id = Annotated[Text, Field(max_length=256)]
_Status = Literal["in_progress", "completed", "incomplete"]
_Nothing = Annotated[list, Field(max_length=0)]


class TextPart(StrictRequest):
    type: Literal["input_text", "output_text"]
    text: Text
    # Parts of every answer, so they come back with the history.
    annotations: _Nothing | None = None
    logprobs: _Nothing | None = None
    parsed: Any = None  # what OpenAI's client has read in the text


_Content = Text | Annotated[list[TextPart], Field(max_length=_MAX_PARTS, fail_fast=True)]


class Message(StrictRequest):
    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: _Content
    id: _Id | None = None
    status: _Status | None = None


class FunctionCall(StrictRequest):
    type: Literal["function_call"]
    call_id: CallId
    name: Name
    arguments: Annotated[Text, AfterValidator(check_arguments)]
    parsed_arguments: Any = None  # what OpenAI's client has read in `arguments`
    id: _Id | None = None
    status: _Status | None = None


class FunctionCallOutput(StrictRequest):
    type: Literal["function_call_output"]
    call_id: CallId
    output: _Content
    id: _Id | None = None
    status: _Status | None = None


class ReasoningPart(StrictRequest):
    type: Literal["reasoning_text"]
    text: Text


class Reasoning(StrictRequest):
    type: Literal["reasoning"]
    content: Annotated[list[ReasoningPart], Field(max_length=_MAX_PARTS, fail_fast=True)] | None = None
    summary: _Nothing = Field(default_factory=list)
    encrypted_content: None = None
    id: _Id | None = None
    status: _Status | None = None


# No tag is called like a field, or it would be taken for one where a field is named.
_KINDS = {"function_call": "a call", "function_call_output": "a result", "reasoning": "thoughts"}


def _kind_of_item(item: Any) -> str:
    kind = item.get("type") if isinstance(item, dict) else None
    return _KINDS.get(kind, "a message") if isinstance(kind, str) else "a message"


Item = Annotated[
    Annotated[Message, Tag("a message")]
    | Annotated[FunctionCall, Tag("a call")]
    | Annotated[FunctionCallOutput, Tag("a result")]
    | Annotated[Reasoning, Tag("thoughts")],
    Discriminator(_kind_of_item),
]


class FunctionTool(StrictRequest):
    type: Literal["function"]
    name: Name
    description: Text | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class FunctionChoice(StrictRequest):
    type: Literal["function"]
    name: Name


class TextFormat(StrictRequest):
    type: Literal["text", "json_object", "json_schema"]
    name: Name | None = None
    description: Text | None = None
    schema_: Annotated[JsonObject | None, Field(alias="schema")] = None
    strict: bool | None = None

    @model_validator(mode="after")
    def _schema_needs_its_type(self) -> Self:
        is_schema = self.type == "json_schema"
        for field in ("name", "schema_"):
            if (getattr(self, field) is not None) != is_schema:
                raise ValueError(f"{field.strip('_')}: must be there if the type is json_schema, and only then")
        return self


class TextOptions(StrictRequest):
    format: TextFormat | None = None
    verbosity: None = None


class ReasoningOptions(StrictRequest):
    effort: Effort | None = None
    summary: None = None
    generate_summary: None = None


class StreamOptions(StrictRequest):
    include_obfuscation: Literal[False] | None = None


class ResponsesRequest(StrictRequest):
    """`store` is true by default at OpenAI. Here nothing is kept, so it may be false or left out."""

    model: Text
    input: Text | Annotated[list[Item], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    instructions: Text | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: Literal["auto", "none", "required"] | FunctionChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    metadata: Annotated[Metadata, at_most(16)] | None = None
    user: Label | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    truncation: Literal["disabled"] | None = None
    background: Literal[False] | None = None
    include: _Nothing | None = None
    top_logprobs: Literal[0] | None = None
    previous_response_id: None = None
    conversation: None = None
    prompt: None = None
    max_tool_calls: None = None

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: only allowed when stream is true")
        choice = self.tool_choice
        chosen = choice.name if isinstance(choice, FunctionChoice) else None
        check_tools([tool.name for tool in self.tools or ()], choice, chosen, "name")
        # A tool answers a call that was made before.
        called: set[str] = set()
        for place, item in enumerate(self.items):
            if isinstance(item, FunctionCall):
                called.add(item.call_id)
            elif isinstance(item, FunctionCallOutput) and item.call_id not in called:
                raise ValueError(f"input[{place}].call_id: no function call before it has this id")
        return self

    @property
    def items(self) -> Sequence[Item]:
        if isinstance(self.input, str):
            return [Message(role="user", content=self.input)]
        return self.input

    def chat_request(self) -> ChatCompletionRequest:
        """The chat completion that is asked for. It is not validated: all of it was already."""
        messages = _messages(self.items)
        if self.instructions is not None:
            messages.insert(0, ChatMessage(role="system", content=self.instructions))
        given = {name: value for name, value in self._fields_of_chat().items() if value is not None}
        return ChatCompletionRequest.model_construct(None, model=self.model, messages=messages, **given)

    def _fields_of_chat(self) -> Json:
        choice = self.tool_choice
        return {
            "tools": [_tool(tool) for tool in self.tools or ()] or None,
            "tool_choice": _choice(choice) if isinstance(choice, FunctionChoice) else choice,
            "parallel_tool_calls": self.parallel_tool_calls,
            "response_format": _response_format(self.text.format) if self.text and self.text.format else None,
            "reasoning_effort": self.reasoning.effort if self.reasoning else None,
            "max_completion_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "stream": self.stream,
            "user": self.user,
            "store": self.store,
        }


def _text(content: str | Sequence[TextPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _messages(items: Sequence[Item]) -> list[ChatMessage]:
    """The messages of a chat. What the assistant thought, said and called one after the other is one message there."""
    messages: list[ChatMessage] = []
    turn: ChatMessage | None = None  # of the assistant, and still open

    def assistant(is_new: bool) -> ChatMessage:
        nonlocal turn
        if turn is None or is_new:
            turn = ChatMessage(role="assistant", content="")
            messages.append(turn)
        return turn

    for item in items:
        # Reasoning begins a turn of the assistant, and calls belong to the one before them. A text does, too, unless
        # that one has a text or calls already. Whatever others say ends it.
        if isinstance(item, Reasoning):
            thoughts = "".join(part.text for part in item.content or ())
            assistant(is_new=True).reasoning_content = thoughts
        elif isinstance(item, FunctionCall):
            function = CalledFunction(name=item.name, arguments=item.arguments)
            message = assistant(is_new=False)
            message.tool_calls = message.tool_calls or []
            message.tool_calls.append(ToolCall(id=item.call_id, function=function))
        elif isinstance(item, FunctionCallOutput):
            turn = None
            content = _text(item.output)
            messages.append(ChatMessage(role="tool", content=content, tool_call_id=item.call_id))
        elif item.role == "assistant":
            is_new = turn is not None and bool(turn.content or turn.tool_calls)
            assistant(is_new).content = _text(item.content)
        else:
            turn = None
            messages.append(ChatMessage(role=item.role, content=_text(item.content)))
    return messages


def _tool(tool: FunctionTool) -> Tool:
    function = DeclaredFunction(
        name=tool.name, description=tool.description, parameters=tool.parameters, strict=tool.strict
    )
    return Tool(type="function", function=function)


def _choice(choice: FunctionChoice) -> ToolChoice:
    return ToolChoice(type="function", function=ChosenFunction(name=choice.name))


def _response_format(format: TextFormat) -> ResponseFormat:
    if format.type != "json_schema" or format.name is None:
        return ResponseFormat(type=format.type)
    fields = {"name": format.name, "description": format.description, "strict": format.strict}
    schema = JsonSchema.model_validate(fields | {"schema": format.schema_})
    return ResponseFormat(type=format.type, json_schema=schema)
