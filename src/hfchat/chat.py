"""What is asked of a chat model: a conversation, and what its answer may be, in the words of OpenAI's API."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

Json = Mapping[str, Any]  # a JSON object of OpenAI's API, checked where it came in


@dataclass(frozen=True)
class Function:
    """A function that a model may call.

    Attributes:
        name: Its name.
        parameters: JSON schema of its arguments; None for any JSON object.
        strict: Whether no other arguments than those of the schema may be written.
    """

    name: str
    parameters: Json | None = None
    strict: bool = False


@dataclass(frozen=True)
class CallPart:
    """A part of a tool call. The parts of a call follow one another.

    Attributes:
        index: Which of the answer's calls, from 0.
        name: The function's, on the first part of a call; None on the others.
        arguments: A part of the JSON of its arguments.
        id: How the one who has called it names the call, on its first part; None leaves it to the server.
    """

    index: int
    name: str | None
    arguments: str = ""
    id: str | None = None


def whole_calls(parts: Iterable[CallPart]) -> list[CallPart]:
    """The calls that were handed out in these parts, each in one."""
    calls: list[tuple[CallPart, list[str]]] = []
    for part in parts:
        if part.name is not None:
            calls.append((part, []))
        _, arguments = calls[-1]
        arguments.append(part.arguments)
    return [replace(first, arguments="".join(arguments)) for first, arguments in calls]


@dataclass(frozen=True)
class Chat:
    """A conversation and what its answer may be.

    Attributes:
        messages: As chat templates take them; the arguments of tool calls are mappings.
        tools: `{"type": "function", "function": {"name", "description", "parameters", "strict"}}` each.
        tool_choice: "auto", "none", "required", or `{"type": "function", "function": {"name"}}`.
        parallel_tool_calls: Whether an answer may call several functions.
        response_format: `{"type": "json_object"}` or `{"type": "json_schema", "json_schema": {"name", "schema"}}`;
            None for any text.
        template_options: Further variables of the chat template (`chat_template_kwargs`).
        reasoning_effort: As OpenAI has it; "none" is for no reasoning at all. None leaves it to the template.
    """

    messages: Sequence[Json]
    tools: Sequence[Json] = ()
    tool_choice: str | Json = "auto"
    parallel_tool_calls: bool = True
    response_format: Json | None = None
    template_options: Json = field(default_factory=dict)
    reasoning_effort: str | None = None

    @property
    def functions(self) -> list[Function]:
        """Those that the answer may call: none, all, or the one that was chosen by its name."""
        if self.tool_choice == "none":
            return []
        chosen = None if isinstance(self.tool_choice, str) else self.tool_choice["function"]["name"]
        declared = [tool["function"] for tool in self.tools]
        return [
            Function(function["name"], function.get("parameters"), bool(function.get("strict")))
            for function in declared
            if chosen in (None, function["name"])
        ]

    @property
    def shown_tools(self) -> list[Json]:
        """The tools as a template writes them: `strict` is for who binds the answer, and not for the model."""
        return [
            {**tool, "function": {key: value for key, value in tool["function"].items() if key != "strict"}}
            for tool in self.tools
        ]

    @property
    def must_call(self) -> bool:
        """Whether the answer must call a function."""
        return self.tool_choice == "required" or not isinstance(self.tool_choice, str)

    @property
    def answer_schema(self) -> Json | None:
        """The JSON schema of the answer; None for any text."""
        if self.response_format is None or self.response_format["type"] == "text":
            return None
        if self.response_format["type"] == "json_object":
            return {"type": "object"}
        return self.response_format["json_schema"].get("schema") or {}


GREETING = Chat([{"role": "user", "content": "Hi"}])  # for a try of a model or a server
