"""The messages of a chat, the tools that it may call, and what its answer must be, as OpenAI's API has them."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError, from_json

from hfchat.chat import Json
from hfchat.serving.openai.fields import JsonObject, StrictRequest, Text

_MAX_PARTS = 1_000  # of a message
_MAX_CALLS = 128  # of a message
_NAME = r"^[a-zA-Z0-9_-]{1,64}$"  # OpenAI's rule for functions and schemas


def check_arguments(arguments: str) -> str:
    try:
        is_object = isinstance(from_json(arguments, allow_inf_nan=False), dict)
    except ValueError:
        is_object = False
    if not is_object:
        raise PydanticCustomError("arguments", "Input should be a JSON object in a string")
    return arguments


Name = Annotated[Text, Field(pattern=_NAME)]


class TextPart(StrictRequest):
    type: Literal["text"]
    text: Text


class CalledFunction(StrictRequest):
    name: Name
    arguments: Annotated[Text, AfterValidator(check_arguments)]
    parsed_arguments: Any = None  # what OpenAI's client has read in `arguments`, which stand beside it


CallId = Annotated[Text, Field(min_length=1, max_length=256)]


class ToolCall(StrictRequest):
    """A call of an earlier turn."""

    id: CallId
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None  # from a stream: its place among the calls

    def plain(self) -> Json:
        arguments = from_json(self.function.arguments)
        return {"id": self.id, "type": "function", "function": {"name": self.function.name, "arguments": arguments}}


class CorrectedFunction(StrictRequest):
    name: Name
    arguments: Annotated[Text, Field(max_length=50_000), AfterValidator(check_arguments)] | JsonObject


class CorrectedCall(StrictRequest):
    """A call as it should have been. The id and the index that the answer's call had may stay; they say nothing."""

    id: CallId | None = None
    type: Literal["function"] = "function"
    function: CorrectedFunction
    index: int | None = None

    def plain(self) -> Json:
        arguments = self.function.arguments
        read = from_json(arguments) if isinstance(arguments, str) else arguments
        return {"type": "function", "function": {"name": self.function.name, "arguments": read}}


class Correction(StrictRequest):
    """An answer with calls as it should have been."""

    content: Annotated[Text, Field(max_length=50_000)] | None = None
    tool_calls: Annotated[list[CorrectedCall], Field(max_length=_MAX_CALLS, fail_fast=True)] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.content and not self.tool_calls:
            raise ValueError("correction: an answer needs content, tool_calls or both")
        return self


class ChatMessage(StrictRequest):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Annotated[list[TextPart], Field(max_length=_MAX_PARTS, fail_fast=True)] | None = None
    reasoning_content: Text | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=_MAX_CALLS, fail_fast=True)] | None = None
    tool_call_id: CallId | None = None
    name: Name | None = None  # of the function that a tool answers for
    # Parts of an answer that come back with the history, and say nothing there.
    refusal: None = None
    annotations: Annotated[list, Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None
    parsed: Any = None  # what OpenAI's client has read in the content

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        owners = {"reasoning_content": "assistant", "tool_calls": "assistant", "parsed": "assistant"}
        owners |= {"tool_call_id": "tool", "name": "tool"}
        for field, owner in owners.items():
            if getattr(self, field) is not None and self.role != owner:
                raise ValueError(f"{field}: only a message of the role {owner} can have it")
        if self.role == "tool" and self.tool_call_id is None:
            raise ValueError("tool_call_id: a message of the role tool needs it")
        if self.content is None and not self.tool_calls:
            raise ValueError("content: a message needs it, unless it is the assistant's and has tool_calls")
        if self.parsed is not None and not self.content:
            raise ValueError("parsed: only allowed beside the content that it was read in")
        for place, call in enumerate(self.tool_calls or ()):
            if call.index not in (None, place):
                raise ValueError(f"tool_calls[{place}].index: must be the place of the call, {place}")
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
        if self.role == "tool":
            named = {"tool_call_id": self.tool_call_id, "name": self.name}
            message |= {field: value for field, value in named.items() if value is not None}
        return message


def check_calls(messages: Sequence[ChatMessage]) -> None:
    """A tool answers a call that was made before.

    Raises:
        ValueError: If it does not, or names another function. Names the field.
    """
    called: dict[str, str] = {}  # ids of calls and the names of their functions
    for place, message in enumerate(messages):
        called |= {call.id: call.function.name for call in message.tool_calls or ()}
        if message.tool_call_id is not None and message.tool_call_id not in called:
            raise ValueError(f"messages[{place}].tool_call_id: no tool call before it has this id")
        if message.name is not None and called[message.tool_call_id or ""] != message.name:
            raise ValueError(f"messages[{place}].name: must be the name of the function that was called")


def check_tools(names: Sequence[str], choice: object, chosen: str | None, name_field: str) -> None:
    """The functions have names of their own, and what was chosen is among them.

    Args:
        names: The functions' names.
        choice: The request's `tool_choice`.
        chosen: The name of the function that it names, if it names one.
        name_field: Where the name stands in a tool and in a choice.

    Raises:
        ValueError: If not. Names the field.
    """
    seen: set[str] = set()
    for place, name in enumerate(names):
        if name in seen:
            raise ValueError(f"tools[{place}].{name_field}: another function is called {name} too")
        seen.add(name)
    if not names and choice not in (None, "none"):
        raise ValueError("tool_choice: only allowed when there are tools")
    if chosen is not None and chosen not in seen:
        raise ValueError(f"tool_choice.{name_field}: no function of tools is called {chosen}")


class DeclaredFunction(StrictRequest):
    name: Name
    description: Text | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class Tool(StrictRequest):
    type: Literal["function"]
    function: DeclaredFunction

    def plain(self) -> Json:
        return {"type": "function", "function": _given(self.function)}


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
            raise ValueError("json_schema: must be there if the type is json_schema, and only then")
        return self

    def plain(self) -> Json:
        return {"type": self.type} | ({"json_schema": _given(self.json_schema)} if self.json_schema else {})


def _given(model: StrictRequest) -> Json:
    """The fields that are not null, as their bodies have them. Nulls within JSON stay."""
    return {name: value for name, value in model.model_dump(by_alias=True).items() if value is not None}
