"""Messages as OpenAI's API has them, and how a turn of a conversation becomes one, in any of the formats."""

import ast
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import chain, takewhile
from typing import Any, NamedTuple, NotRequired, TypedDict, cast

from hfchat.messages import REASONING, trim

# Who speaks, in the formats of OpenAI, ShareGPT (FastChat's names), LLaMA-Factory and Gemini.
ROLES = {
    "system": "system", "developer": "system", "user": "user", "human": "user", "assistant": "assistant",
    "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "function_call": "assistant", "tool": "tool",
    "function": "tool", "observation": "tool",
}  # fmt: skip
# Fields of a message that are read, or say nothing that is not said elsewhere.
_FIELDS = {
    "role", "from", "content", "value", "tool_calls", "function_call", "tool_call_id", "name", "weight", "refusal",
    "audio", *REASONING,
}  # fmt: skip
# A call and a result in the text of a turn, as Hermes's and Qwen's conversations have them.
_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_RESULT = re.compile(r"\s*<tool_response>\n?(.*?)\n?</tool_response>\s*", re.DOTALL)


class Function(TypedDict):
    """What a tool is called with; its arguments are JSON in a text."""

    name: str
    arguments: str


class ToolCall(TypedDict):
    """A call of a tool, as in OpenAI's API."""

    id: NotRequired[str]
    type: str
    function: Function


class Message(TypedDict):
    """A turn of a conversation, as in OpenAI's API.

    The assistant's have in `reasoning_content` what was thought before the content, and `weight` 0 if they are not to
    be learned.
    """

    role: str
    content: str
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[ToolCall]]
    tool_call_id: NotRequired[str]
    name: NotRequired[str]
    weight: NotRequired[int]


class Example(TypedDict, total=False):
    """A row of a dataset: the columns of its kind in `KINDS`, and `tools` where it has them."""

    messages: list[Message]
    prompt: list[Message]
    completion: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    label: bool
    tools: list[dict[str, Any]]


def turns_of(example: Example, column: str) -> list[Message]:
    """The messages in a column; none if the example does not have it."""
    return cast(Mapping[str, list[Message]], example).get(column, [])


def all_messages(example: Example) -> Iterator[Message]:
    """The messages of an example, column by column."""
    columns = ("messages", "prompt", "completion", "chosen", "rejected")
    return chain.from_iterable(turns_of(example, column) for column in columns)


def order_results(messages: list[Message], notes: Counter[str]) -> None:
    """Put results that name their calls into the order of the calls: the chat template writes no ids."""
    for position, turn in enumerate(messages, start=1):
        ids = [call.get("id") for call in turn.get("tool_calls", ())]
        results = list(takewhile(lambda later: later["role"] == "tool", messages[position:])) if len(ids) > 1 else []
        answered = [result.get("tool_call_id") for result in results]
        if answered != ids and None not in ids and Counter(answered) == Counter(ids):
            messages[position : position + len(results)] = sorted(
                results, key=lambda result: ids.index(result.get("tool_call_id"))
            )
            notes["the results of several calls: put into the order of the calls"] += 1


class ConversationError(Exception):
    """A row or conversation that is not taken: `reason`, and `detail` for people."""

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def malformed(detail: str) -> ConversationError:
    return ConversationError("malformed", detail)


def message_of(role: str, content: str, notes: Counter[str]) -> Message:
    text = trim(content)
    if text != content:
        notes["white space around a text: not kept, but for the indentation of its first line"] += 1
    return {"role": role, "content": text}


def read_turn(fields: Mapping[str, object], position: int, notes: Counter[str]) -> Message:
    """One message, in any of the formats.

    Args:
        fields: What a row says of it.
        position: Its number in the conversation.
        notes: What of it is not used is counted here.

    Raises:
        ConversationError: If it is not a message, or holds more than text.
    """
    turn = _Turn(fields, position, notes)
    role = turn.role
    calls, text, thought = turn.said()
    refusal = turn.get("refusal")
    if refusal is not None and (text or not isinstance(refusal, str)):
        notes["`refusal` of a turn: not used, because the turn has content"] += 1
    elif isinstance(refusal, str):
        text = refusal
        notes["`refusal` of a turn: learned as its content"] += 1
    # The text first, then what of the turn belongs to it
    message = message_of(role, text, notes)
    if thought and role != "assistant":
        notes[f"`{thought.field}` of a turn: not used, because the turn is the {role}'s"] += 1
    elif thought and message["content"].lstrip().startswith("<think>"):
        notes[f"`{thought.field}` of a turn: not used, because its content begins with <think>"] += 1
    elif thought:
        if "</think>" in thought.text:
            raise malformed(f"{turn.place} has </think> in its {thought.field}, which would end the reasoning there")
        message["reasoning_content"] = thought.text
        notes[f"`{thought.field}` of a turn: learned before its content, between <think> and </think>"] += 1
    if calls:
        message["tool_calls"] = turn.tool_calls(calls)
    if turn.is_not_learned() and role == "assistant":
        message["weight"] = 0
        notes["`weight` 0 of a turn: the turn is kept, and not learned"] += 1
    elif turn.is_not_learned():
        notes[f"`weight` of a turn: not used, because the turn is the {role}'s"] += 1
    if isinstance(identifier := turn.get("tool_call_id"), str):
        message["tool_call_id"] = identifier
    if isinstance(name := turn.get("name"), str):
        if role == "tool":
            message["name"] = name
        else:
            notes[f"`name` of a turn of the {role}: not used, because the chat template does not write it"] += 1
    # Every other field that says something
    for field, value in turn.fields.items():
        if field not in _FIELDS and value is not None and value != []:
            notes[f"`{field:.60}` of a turn: not used"] += 1
    return message


class _Thought(NamedTuple):
    """What a turn thought before its answer, and the field that says so."""

    field: str
    text: str


class _Turn:
    """The fields of one message, in any of the formats."""

    def __init__(self, fields: Mapping[str, object], position: int, notes: Counter[str]):
        self.fields, self.get, self.notes = fields, fields.get, notes
        self.place = f"turn {position}"
        speaker = self.get("role") or self.get("from")
        role = ROLES.get(speaker) if isinstance(speaker, str) else None
        if role is None:
            raise ConversationError("bad_role", f"{self.place} has the role {speaker!r}; known are {', '.join(ROLES)}")
        self.role, self.speaker = role, speaker

    def said(self) -> tuple[object, str, _Thought | None]:
        """The calls of tools as they stand there, the text, and what was thought before it."""
        content = self.get("value") if self.get("content") is None else self.get("content")
        if self.get("audio") is not None:
            raise ConversationError("not_text", f"{self.place} has 'audio'")
        calls = self.get("tool_calls")
        if self.speaker == "function_call":
            calls, content = parse_json(content, self.place), ""
        elif not calls:
            calls = self.get("function_call")  # of OpenAI's older files
        text, thought = self._content(content)
        if self.role == "assistant" and not calls:
            calls, text = self._calls_in(text)
        elif self.role == "tool" and (result := _RESULT.fullmatch(text)):
            text = result[1]  # the chat template writes the marks around it
        return calls, text, thought or self._reasoning()

    def _calls_in(self, text: str) -> tuple[object, str]:
        """The calls that a text writes itself, and what it says before them."""
        found = list(_CALL.finditer(text))
        if not found:
            return None, text
        if _CALL.sub("", text[found[0].start() :]).strip():
            raise malformed(f"{self.place} has text after a call; the chat template writes calls last")
        self.notes["`<tool_call>` in the text of a turn: learned as a call of a tool"] += len(found)
        return [self._call_of(match[1].strip()) for match in found], text[: found[0].start()].rstrip()

    def _call_of(self, written: str) -> object:
        try:
            return ast.literal_eval(written) if written.startswith("{'") else parse_json(written, self.place)
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise malformed(f"{self.place}: a call in its text is not JSON: {error}") from error

    def _content(self, content: object) -> tuple[str, _Thought | None]:
        """The text, its parts joined as the server joins them, and what is thought in a part of its own.

        Without its images or sounds a conversation makes no sense, so it is refused.
        """
        if not isinstance(content, list):
            if content is not None and not isinstance(content, str):
                raise malformed(f"{self.place} must have a text for its content, not {content!r:.60}")
            return content or "", None
        texts: list[str] = []
        thoughts: list[str] = []
        for part in content:
            part = {"type": "text", "text": part} if isinstance(part, str) else part
            kind = str(part.get("type") if isinstance(part, dict) else part)
            # The names of the text in parts of OpenAI's two APIs and of Anthropic's
            key = {"input_text": "text", "output_text": "text", "reasoning": "text"}.get(kind, kind)
            if key not in ("text", "refusal", "thinking") or not isinstance(part.get(key), str):
                raise ConversationError("not_text", f"{self.place} has a part of type {kind!r:.60}")
            (thoughts if kind in REASONING else texts).append(part[key])
        thought = "\n\n".join(thoughts).strip()
        return "".join(texts), _Thought("thinking", thought) if thought else None

    def _reasoning(self) -> _Thought | None:
        for name in REASONING:
            thought = self.get(name)
            if thought is not None and not isinstance(thought, str):
                raise malformed(f"{self.place} must have a text in '{name}', not {thought!r:.60}")
            if thought and thought.strip():
                return _Thought(name, thought.strip())
        return None

    def is_not_learned(self) -> bool:
        weight = self.get("weight")
        if weight not in (None, 0, 1):
            raise malformed(f"{self.place} has the weight {weight!r}; it must be 0 or 1")
        return weight == 0

    def tool_calls(self, calls: object) -> list[ToolCall]:
        """Tool calls in OpenAI's form, their arguments as JSON in a text.

        In a mapping they would be changed on the way: Arrow gives each call the arguments of all others, and columns
        of `datasets.Json` (5.2) round 3.141592653589793 to ten digits, and cannot hold an integer of 65 bits.
        """
        read: list[ToolCall] = []
        for call in calls if isinstance(calls, list) else [calls]:
            call = call if isinstance(call, dict) else {}
            function = call.get("function", call)
            if not isinstance(function, dict) or not isinstance(function.get("name"), str):
                raise malformed(f"{self.place} has a tool call without a function's name")
            arguments = function.get("arguments")
            if isinstance(arguments, str) and arguments.strip():
                arguments = parse_json(arguments, f"{self.place}: the arguments of {function['name']}")
            if arguments is None or arguments == "":
                arguments = {}
            written = write_json(arguments, f"{self.place}: the arguments of {function['name']}")
            called: ToolCall = {"type": "function", "function": {"name": function["name"], "arguments": written}}
            if isinstance(identifier := call.get("id"), str):
                called["id"] = identifier
            read.append(called)
        return read


def parse_json(text: Any, what: str) -> object:
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise malformed(f"{what}: not JSON: {error}") from error


def write_json(value: object, what: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise malformed(f"{what}: cannot be written as JSON: {error}") from error
