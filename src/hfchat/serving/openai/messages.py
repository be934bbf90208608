"""The messages of a chat, the tools that it may call, and what its answer must be, as OpenAI's API has them."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError, from_json, to_json

from hfchat.chat import Json
from hfchat.serving.openai.fields import StrictRequest, Text

_MAX_PARTS = 1_000  # of a message
_MAX_CALLS = 128  # of a message
_NAME = r"^[a-zA-Z0-9_-]{1,64}$"  # OpenAI's rule for functions and schemas


def _check_arguments(arguments: str) -> str:
    try:
        is_object = isinstance(from_json(arguments, allow_inf_nan=False), dict)
    except ValueError:
        is_object = False
    if not is_object:
        raise PydanticCustomError("arguments", "Input should be a JSON object in a string")
    return arguments


def _check_json(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """The strings in JSON can be half a surrogate pair, which no text can hold."""
    try:
        to_json(value)
    except ValueError as error:
        raise PydanticCustomError("unicode", "Input should be valid Unicode") from error
    return value


JsonObject = Annotated[Mapping[str, Any], AfterValidator(_check_json)]
Name = Annotated[Text, Field(pattern=_NAME)]


class TextPart(StrictRequest):
    type: Literal["text"]
    text: Text


class CalledFunction(StrictRequest):
    name: Name
    arguments: Annotated[Text, AfterValidator(_check_arguments)]


class ToolCall(StrictRequest):
    """A call of an earlier turn."""

    id: Annotated[Text, Field(min_length=1, max_length=256)]
    type: Literal["function"] = "function"
    function: CalledFunction

    def plain(self) -> Json:
        arguments = from_json(self.function.arguments)
        return {"id": self.id, "type": "function", "function": {"name": self.function.name, "arguments": arguments}}


class ChatMessage(StrictRequest):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Annotated[list[TextPart], Field(max_length=_MAX_PARTS, fail_fast=True)] | None = None
    reasoning_content: Text | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=_MAX_CALLS, fail_fast=True)] | None = None
    tool_call_id: Annotated[Text, Field(min_length=1, max_length=256)] | None = None
    # Part of every answer, so they come back with the history.
    refusal: None = None
    annotations: Annotated[list, Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        for field in ("reasoning_content", "tool_calls"):
            if getattr(self, field) is not None and self.role != "assistant":
                raise ValueError(f"messages: only the assistant has {field}, and not the {self.role}")
        if self.content is None and not self.tool_calls:
            raise ValueError("messages: a message needs content, unless it is the assistant's and has tool_calls")
        if (self.tool_call_id is None) == (self.role == "tool"):
            raise ValueError("messages: a message has a tool_call_id if it is a tool's, and only then")
        return self

    def plain(self) -> Json:
        """The message as chat templates take it; `developer` is OpenAI's newer name for `system`."""
        content = self.content or ""
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        message: dict = {"role": "system" if self.role == "developer" else self.role, "content": text}
        if self.reasoning_content:
            message["reasoning_content"] = self.reasoning_content
        if self.tool_calls:
            message["tool_calls"] = [call.plain() for call in self.tool_calls]
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        return message


class DeclaredFunction(StrictRequest):
    name: Name
    description: Text | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class Tool(StrictRequest):
    type: Literal["function"]
    function: DeclaredFunction


class ChosenFunction(StrictRequest):
    name: Name


class ToolChoice(StrictRequest):
    type: Literal["function"]
    function: ChosenFunction


class JsonSchema(StrictRequest):
    name: Name
    description: Text | None = None
    schema_: Annotated[JsonObject | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseFormat(StrictRequest):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _schema_needs_its_type(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("response_format: json_schema must be there if the type is json_schema, and only then")
        return self
