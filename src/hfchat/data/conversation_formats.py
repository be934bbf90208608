"""The formats that people have conversations in: from a row of a source to an example of a dataset.

An example has TRL's columns for its kind of dataset (`trl/data_utils.py`), and messages as OpenAI's API has them.
"""

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

# Kind of dataset to its columns; in all but the last, lists of messages.
KINDS = {
    "messages": ("messages",),
    "preference": ("prompt", "chosen", "rejected"),
    "unpaired preference": ("prompt", "completion", "label"),
}
# Who speaks, in the formats of OpenAI, ShareGPT (FastChat's names) and LLaMA-Factory.
ROLES = {
    "system": "system", "developer": "system", "user": "user", "human": "user", "assistant": "assistant",
    "gpt": "assistant", "chatgpt": "assistant", "function_call": "assistant", "tool": "tool", "observation": "tool",
}  # fmt: skip
# Formats whose prompt says what to do with the text of the row.
TAKES_INSTRUCTION = ("dialogsum", "parallel-text")
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")
_SUMMARIZE = "Summarize the dialogue in one or two sentences."

Message = dict[str, Any]


class ConversationError(Exception):
    """A row or conversation that is not taken: `reason`, and `detail` for people."""

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclass
class Row:
    """One row of a source.

    Attributes:
        value: The row, or the text of one that cannot be read.
        place: Where it stands: `"chats.jsonl (row 12)"`, counted from 1; lines in JSON lines.
        fault: Why it cannot be read.
    """

    value: Any
    place: str
    fault: str | None = None


def expand(format: str, row: Row) -> Iterator[Row]:
    """The conversations of a row, still in its format: one, but for Self-Instruct's `instances`."""
    instances = row.value.get("instances") if format == "alpaca" and isinstance(row.value, dict) else None
    if not isinstance(instances, list) or not instances:
        yield row
        return
    for number, instance in enumerate(instances, start=1):
        # An instance that is no mapping gives a row without an output, which is then malformed.
        texts = instance if isinstance(instance, dict) else {}
        place = row.place if len(instances) == 1 else f"{row.place[:-1]}, instance {number})"
        yield Row({"instruction": row.value.get("instruction"), **texts}, place)


def convert(format: str, row: Row, instruction: str | None = None) -> dict[str, Any]:
    """A row as an example of its kind: the columns of `KINDS`, and `tools` where it has them.

    Args:
        format: One of `FORMATS`.
        row: One of those that `expand` gives.
        instruction: What the prompt asks for, in formats of `TAKES_INSTRUCTION`.

    Raises:
        ConversationError: If it does not have the form of its format.
    """
    if row.fault is not None:
        raise ConversationError("malformed", row.fault)
    if not isinstance(row.value, dict):
        raise ConversationError("malformed", f"must be a mapping of columns, not {type(row.value).__name__}")
    example = FORMATS[format].convert(row.value, instruction)
    try:
        json.dumps(example, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:  # JSON can write half a surrogate pair
        raise ConversationError("malformed", f"is not Unicode: {error.reason}") from error
    return example


def _from_messages(row: Mapping[str, Any], instruction: str | None) -> dict[str, Any]:
    column = "messages" if row.get("messages") is not None else "conversations"
    messages = _messages(row.get(column), column)
    system = row.get("system")  # of LLaMA-Factory's ShareGPT
    if isinstance(system, str) and system.strip():
        messages.insert(0, _message("system", system))
    return {"messages": messages, **_tools(row)}


def _from_alpaca(row: Mapping[str, Any], instruction: str | None) -> dict[str, Any]:
    prompt = [_text(row, "instruction"), _text(row, "input") if row.get("input") else ""]
    return _one_turn("\n\n".join(part.strip() for part in prompt if part.strip()), _text(row, "output"))


def _from_prompt_completion(row: Mapping[str, Any], instruction: str | None) -> dict[str, Any]:
    messages = _prompt(row.get("prompt")) + _completion(row.get("completion"), "completion")
    return {"messages": messages, **_tools(row)}


def _from_question_answer(row: Mapping[str, Any], instruction: str | None) -> dict[str, Any]:
    return _one_turn(_text(row, "question"), _text(row, "answer"))


def _from_dialogsum(row: Mapping[str, Any], instruction: str | None) -> dict[str, Any]:
    dialogue, summary = _text(row, "dialogue").strip(), _text(row, "summary")
    if not dialogue:
        raise ConversationError("empty_turn", "the dialogue has no content")
    return _one_turn(f"{_SUMMARIZE if instruction is None else instruction}\n\n{dialogue}", summary)


def _from_parallel_text(row: Mapping[str, Any], instruction: str | None) -> dict[str, Any]:
    if not row["source"]:
        raise ConversationError("empty_turn", "the line to translate has no content")
    return _one_turn(f"{instruction}\n\n{row['source']}", row["target"])


def _from_preference(row: Mapping[str, Any], instruction: str | None) -> dict[str, Any]:
    pair = [_conversation_or_completion(row.get(column), column) for column in ("chosen", "rejected")]
    prompt = row.get("prompt")
    if all(messages and messages[0]["role"] in ("assistant", "tool") for messages in pair):
        return {"prompt": _prompt(prompt), "chosen": pair[0], "rejected": pair[1], **_tools(row)}
    shared = len(list(itertools.takewhile(lambda turns: turns[0] == turns[1], zip(*pair, strict=False))))
    if pair[0] == pair[1]:
        shared -= 1
    return {"prompt": pair[0][:shared], "chosen": pair[0][shared:], "rejected": pair[1][shared:], **_tools(row)}


def _from_thumbs(row: Mapping[str, Any], instruction: str | None) -> dict[str, Any]:
    label = row.get("label")
    label = {"true": True, "1": True, "false": False, "0": False}.get(str(label).lower())
    if label is None:
        raise ConversationError("malformed", f"'label' must be true or false, not {row.get('label')!r}")
    if row.get("messages") is not None:  # the last of which the thumb is for
        messages = _messages(row["messages"], "messages")
        prompt, completion = messages[:-1], messages[-1:]
    else:
        prompt, completion = _prompt(row.get("prompt")), _completion(row.get("completion"), "completion")
    return {"prompt": prompt, "completion": completion, "label": label, **_tools(row)}


class Format(NamedTuple):
    """One format: the `kind` of dataset that it makes, and what makes an example of a row and an instruction."""

    kind: str
    convert: Callable[[Mapping[str, Any], str | None], dict[str, Any]]


FORMATS = {
    "messages": Format("messages", _from_messages),
    "sharegpt": Format("messages", _from_messages),
    "alpaca": Format("messages", _from_alpaca),
    "prompt-completion": Format("messages", _from_prompt_completion),
    "question-answer": Format("messages", _from_question_answer),
    "dialogsum": Format("messages", _from_dialogsum),
    "parallel-text": Format("messages", _from_parallel_text),
    "preference": Format("preference", _from_preference),
    "thumbs": Format("unpaired preference", _from_thumbs),
}
# Columns by which a format is known, looked for in this order: a `prompt` stands in several.
_COLUMNS = {
    "preference": ("chosen", "rejected"),
    "thumbs": ("prompt|messages", "completion|messages", "label"),
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output|instances"),
    "prompt-completion": ("prompt", "completion"),
    "question-answer": ("question", "answer"),
    "dialogsum": ("dialogue", "summary"),
}


def find_format(columns: Mapping[str, Any]) -> str | None:
    """The format that has these columns, or None. A column without a value in this row does not count."""
    present = {name for name, value in columns.items() if value is not None}
    return next(
        (
            format
            for format, needed in _COLUMNS.items()
            if all(present & set(alternatives.split("|")) for alternatives in needed)
        ),
        None,
    )


def _text(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise ConversationError("malformed", f"'{column}' must be a text, not {value!r:.60}")
    return value


def _one_turn(prompt: str, answer: str) -> dict[str, Any]:
    return {"messages": [_message("user", prompt), _message("assistant", answer)]}


def _message(role: str, content: str) -> Message:
    # Templates strip, or write the text as it is, so white space around it would be learned by some models only.
    return {"role": role, "content": content.strip()}


def _prompt(value: Any) -> list[Message]:
    if isinstance(value, str):
        messages = _hh_messages(value) if _HH_TURN.match(value) else [_message("user", value)]
        # HH-RLHF's prompts end with the header of the answer.
        return messages[:-1] if messages[-1] == {"role": "assistant", "content": ""} else messages
    return _messages(value, "prompt")


def _completion(value: Any, column: str) -> list[Message]:
    return [_message("assistant", value)] if isinstance(value, str) else _messages(value, column)


def _conversation_or_completion(value: Any, column: str) -> list[Message]:
    if isinstance(value, str) and _HH_TURN.match(value):
        return _hh_messages(value)
    return _completion(value, column)


def _hh_messages(text: str) -> list[Message]:
    parts = _HH_TURN.split(text)[1:]
    roles = ["user" if speaker == "Human" else "assistant" for speaker in parts[::2]]
    return [_message(role, content) for role, content in zip(roles, parts[1::2], strict=True)]


def _tools(row: Mapping[str, Any]) -> dict[str, Any]:
    tools = row.get("tools")
    if isinstance(tools, str) and tools.strip():
        tools = _json(tools, "'tools'")
    return {"tools": tools} if tools else {}


def _messages(value: Any, column: str) -> list[Message]:
    if not isinstance(value, list):
        raise ConversationError("malformed", f"'{column}' must be a list of messages, not {value!r:.60}")
    messages = []
    for position, turn in enumerate(value):
        if not isinstance(turn, dict):
            raise ConversationError("malformed", f"turn {position} must be a mapping, not {turn!r:.60}")
        speaker, content = turn.get("role") or turn.get("from"), turn.get("content")
        content = turn.get("value") if content is None else content
        role = ROLES.get(speaker) if isinstance(speaker, str) else None
        if role is None:
            raise ConversationError(
                "bad_role", f"turn {position} has the role {speaker!r}; known are {', '.join(ROLES)}"
            )
        calls = turn.get("tool_calls")
        if speaker == "function_call":
            calls, content = _json(content, f"turn {position}"), ""
            calls = calls if isinstance(calls, list) else [calls]
        message = _message(role, _content(content, position))
        if calls:
            message["tool_calls"] = _tool_calls(calls, position)
        for key in ("tool_call_id", "name"):
            if isinstance(turn.get(key), str):
                message[key] = turn[key]
        messages.append(message)
    return messages


def _content(content: Any, position: int) -> str:
    """The text of a message. Without its images or sounds a conversation makes no sense, so it is refused."""
    if isinstance(content, list):
        for part in content:
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                kind = part.get("type") if isinstance(part, dict) else part
                raise ConversationError("not_text", f"turn {position} has a part of type {kind!r:.60}")
        return "\n".join(part["text"] for part in content)
    if content is not None and not isinstance(content, str):
        raise ConversationError("malformed", f"turn {position} must have a text for its content, not {content!r:.60}")
    return content or ""


def _tool_calls(calls: Any, position: int) -> list[dict[str, Any]]:
    """Tool calls in OpenAI's form; their arguments as a mapping, as the templates of transformers take them."""
    found = []
    for call in calls if isinstance(calls, list) else [calls]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise ConversationError("malformed", f"turn {position} has a tool call without a function's name")
        arguments = function.get("arguments") or {}
        if isinstance(arguments, str):
            arguments = _json(arguments, f"turn {position}: the arguments of {function['name']}")
        identifier = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
        called = {"name": function["name"], "arguments": arguments}
        found.append({**identifier, "type": "function", "function": called})
    return found


def _json(text: Any, what: str) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError) as error:
        raise ConversationError("malformed", f"{what}: not JSON: {error}") from error
