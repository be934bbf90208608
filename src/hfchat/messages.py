"""The law of conversations: what every stage that reads them asks of their messages, and how it tells them apart."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any

from hfchat.chat import Json
from hfchat.errors import UserError

ROLES = ("system", "user", "assistant")  # in a conversation that is text alone
ROLES_WITH_TOOLS = (*ROLES, "tool")
# The fields for what a turn thought before its answer: of DeepSeek and vLLM, of OpenRouter, of gpt-oss and Anthropic.
REASONING = ("reasoning_content", "reasoning", "thinking")
_WRITTEN_REASONING, *_OTHER_REASONING = REASONING  # the first is the one that chat templates write
_UNWRITTEN = (*_OTHER_REASONING, "function_call", "refusal", "audio")


def find_fault(messages: Any, roles: Collection[str] = ROLES) -> tuple[str, str] | None:
    """What keeps `messages` from being a conversation that the assistant ends.

    Args:
        messages: List of `{"role", "content"}`. The assistant's turns may have `reasoning_content`, a text. Where
            `roles` has `tool`, they may have `tool_calls`, a list of `{"name", "arguments"}` or
            `{"function": {"name", "arguments"}}`, and then need no content.
        roles: The roles that may speak.

    Returns:
        None if it is a conversation; otherwise a reason (`no_messages`, `bad_role`, `malformed`, `empty_turn`,
        `not_alternating` or `no_assistant_turn`) and what is wrong, in words.
    """
    if not isinstance(messages, list) or not messages:
        return "no_messages", "has no messages; 'messages' must be a list of turns"
    called = False  # whether a tool was called by the turn before, or before the results that precede this turn
    for position, turn in enumerate(messages):
        turn = turn if isinstance(turn, dict) else {}
        role, content, calls = turn.get("role"), turn.get("content"), turn.get("tool_calls")
        # Who speaks, and whether that role may call tools.
        if role not in roles:
            *others, last = roles
            return "bad_role", f"turn {position} has the role {role!r}; it must be {', '.join(others)} or {last}"
        if calls and "tool" not in roles:
            return "bad_role", f"turn {position} ({role}) calls tools; it must be text alone"
        if calls and role != "assistant":
            return "bad_role", f"turn {position} ({role}) calls tools; only the assistant may"
        if calls and (fault := _find_fault_of_calls(calls)):
            return "malformed", f"turn {position} ({role}) {fault}"
        # What is said: text, and not nothing.
        if not isinstance(content, str | None):
            return "malformed", (
                f"turn {position} ({role}) must have a text for its content, not {content!r:.40}; "
                "recipes/prepare_conversations.py joins the parts of messages"
            )
        reasoning = turn.get(_WRITTEN_REASONING)
        if not isinstance(reasoning, str | None):
            return "malformed", f"turn {position} ({role}) must have a text in '{_WRITTEN_REASONING}'"
        if not calls and not (content or "").strip():
            return "empty_turn", f"turn {position} ({role}) has no content{', only reasoning' if reasoning else ''}"
        # Whose turn it is: a tool answers a call.
        if role == "tool" and not called:
            return "not_alternating", f"turn {position} is a tool's result, but no tool was called before it"
        called = bool(calls) or role == "tool"
    if messages[-1]["role"] != "assistant":
        return "no_assistant_turn", f"the last turn must be the assistant's, not the {messages[-1]['role']}'s"
    return None


def _find_fault_of_calls(calls: Any) -> str | None:
    for call in calls if isinstance(calls, list) else [calls]:
        function = (call.get("function") or call) if isinstance(call, dict) else {}
        name, arguments = function.get("name"), function.get("arguments")
        if not isinstance(name, str) or not name:
            return "has a tool call without a name"
        if isinstance(arguments, str):
            with suppress(ValueError):
                arguments = json.loads(arguments)
        if not isinstance(arguments, dict | None):
            return f"calls {name} with arguments that are not a JSON object"
    return None


def check_messages(messages: Any, place: str, roles: Collection[str] = ROLES) -> None:
    """Raise a `UserError` that names `place` unless `messages` is a conversation that the assistant ends."""
    fault = find_fault(messages, roles)
    if fault is not None:
        raise UserError(f"{place}: {fault[1]}")


def check_learned(messages: Any, place: str, roles: Collection[str] = ROLES) -> None:
    """`check_messages`, and check that the chat template writes all that the turns say, or it would not be learned."""
    check_messages(messages, place, roles)
    for position, turn in enumerate(messages):
        unwritten = _UNWRITTEN if turn["role"] == "assistant" else (*_UNWRITTEN, _WRITTEN_REASONING)
        if field := next((field for field in unwritten if turn.get(field)), None):
            raise UserError(
                f"{place}: turn {position} ({turn['role']}) has '{field}', which the chat template does not write; "
                "recipes/prepare_conversations.py makes a conversation of it that is learned as it is meant"
            )
        if turn.get("weight") not in (None, 0, 1):
            raise UserError(f"{place}: turn {position} has the weight {turn['weight']!r}; it must be 0 or 1")
    if not any(turn["role"] == "assistant" and turn.get("weight") != 0 for turn in messages):
        raise UserError(f"{place}: every turn of the assistant has the weight 0, so there is nothing to learn")


def arguments_as_text(arguments: Any) -> str:
    """The arguments of a tool call as JSON in a text, as OpenAI's API has them; what is a text stays as it is."""
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def arguments_as_json(arguments: Any) -> Any:
    """The arguments of a tool call as the JSON that they are, as most chat templates take them.

    Raises:
        ValueError: If they are a text that is not JSON.
    """
    return json.loads(arguments) if isinstance(arguments, str) else arguments


def with_arguments(turn: Json, change: Callable[[Any], object]) -> Json:
    """A turn in which the arguments of each call are changed by one of the two above."""
    calls = [
        {**call, "function": {**call["function"], "arguments": change(call["function"]["arguments"])}}
        for call in turn.get("tool_calls") or ()
    ]
    return {**turn, "tool_calls": calls} if calls else turn


def trim(text: str) -> str:
    """The text without white space at its end, without empty lines before it, and without one space before a line.

    Some templates strip white space and others keep it, so that only some models would learn it. The indentation of
    the first line is content. Completions in OpenAI's older files begin with a single space.
    """
    text = re.sub(r"\A(?:[^\S\n]*\n)+", "", text.rstrip())
    return text[1:] if re.match(r" \S", text) and "\n " not in text else text


def digest_of(value: Any, *, typed: bool = False) -> bytes:
    """Hash of what messages say, 16 bytes, taken from their text in Unicode's composed form (NFC).

    White space is content, because code that is indented otherwise is another answer. What no reader sees does not
    count: how lines end, spaces at their ends, and what `trim` takes away.

    Args:
        value: Messages, or a text.
        typed: Treat several spaces within a line as one, because people type them by accident.
    """

    def normalize(item: Any) -> Any:
        if isinstance(item, str):
            lines = re.split(r"\r\n|\r|\n", unicodedata.normalize("NFC", item))
            if typed:
                lines = [re.sub(r"(?<=\S)\s+", " ", line) for line in lines]
            return trim("\n".join(line.rstrip() for line in lines))
        if isinstance(item, list):
            return [normalize(part) for part in item]
        return {key: normalize(part) for key, part in item.items()} if isinstance(item, dict) else item

    text = json.dumps(normalize(value), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]


def parse_tools(value: Any) -> list[dict[str, Any]]:
    """Tools in the form of OpenAI's API, from a column that holds that form, JSON text, or bare functions.

    Raises:
        ValueError: If the column holds anything else.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not JSON: {error}") from error
    tools = []
    for tool in [] if value is None else value if isinstance(value, list) else [value]:
        (tool,) = parse_tools(tool) if isinstance(tool, str) and tool.strip() else [tool]
        if not isinstance(tool, dict) or not tool:
            raise ValueError(f"each must be a mapping, not {tool!r:.60}")
        tools.append({"type": "function", "function": tool} if "name" in tool and "function" not in tool else tool)
    return tools
