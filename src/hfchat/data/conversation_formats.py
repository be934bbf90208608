"""The formats that people have conversations in: from a row of a source to an example of a dataset.

An example has TRL's columns for its kind of dataset (`trl/data_utils.py`), and messages as OpenAI's API has them.
"""

import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from hfchat.data.rows import Row
from hfchat.messages import REASONING, parse_tools, trim

# Kind of dataset to its columns; in all but the last, lists of messages.
KINDS = {
    "messages": ("messages",),
    "preference": ("prompt", "chosen", "rejected"),
    "unpaired preference": ("prompt", "completion", "label"),
}
# Who speaks, in the formats of OpenAI, ShareGPT (FastChat's names), LLaMA-Factory and Gemini.
ROLES = {
    "system": "system", "developer": "system", "user": "user", "human": "user", "assistant": "assistant",
    "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "function_call": "assistant", "tool": "tool",
    "function": "tool", "observation": "tool",
}  # fmt: skip
# Formats whose prompt says what to do with the text of the row.
TAKES_INSTRUCTION = ("dialogsum", "parallel-text")
# Columns that say who speaks and what was said before, in every format.
_CONTEXT = ("system", "history", "tools", "functions")
# Fields of a message that are read, or say nothing that is not said elsewhere.
_FIELDS = {
    "role", "from", "content", "value", "tool_calls", "function_call", "tool_call_id", "name", "weight", "refusal",
    "audio", *REASONING,
}  # fmt: skip
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")
_SUMMARIZE = "Summarize the dialogue in one or two sentences."

Message = dict[str, Any]


class ConversationError(Exception):
    """A row or conversation that is not taken: `reason`, and `detail` for people."""

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


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
        others = {column: value for column, value in row.value.items() if column != "instances"}
        yield Row(others | texts, place)


def convert(
    format: str, row: Row, instruction: str | None = None, notes: Counter[str] | None = None
) -> dict[str, Any]:
    """A row as an example of its kind: the columns of `KINDS`, and `tools` where it has them.

    A turn of the assistant that is not to be learned has `weight` 0, as in OpenAI's files.

    Args:
        format: One of `FORMATS`.
        row: One of those that `expand` gives.
        instruction: What the prompt asks for, in formats of `TAKES_INSTRUCTION`.
        notes: What is not used of the row, or not as it stands there, is counted here, in words.

    Raises:
        ConversationError: If it does not have the form of its format.
    """
    if row.fault is not None:
        raise ConversationError(row.reason, row.fault)
    if not isinstance(row.value, dict):
        raise ConversationError("malformed", f"must be a mapping of columns, not {type(row.value).__name__}")
    notes = Counter() if notes is None else notes
    found = FORMATS[format]
    example = found.convert(row.value, instruction, notes)
    if format != "parallel-text":
        example = _with_context(row.value, found.kind, example, notes)
    for column, value in row.value.items():
        if value is not None and column not in (*found.columns, *_CONTEXT):
            notes[f"column '{column:.60}': not used"] += 1
    try:
        json.dumps(example, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:  # JSON can write half a surrogate pair
        raise ConversationError("malformed", f"is not Unicode: {error.reason}") from error
    return example


def _from_messages(row: Mapping[str, Any], instruction: str | None, notes: Counter[str]) -> dict[str, Any]:
    column = "messages" if row.get("messages") is not None else "conversations"
    if column == "messages" and row.get("conversations") is not None:
        notes["column 'conversations': not used, because the row has 'messages'"] += 1
    return {"messages": _messages(row.get(column), column, notes)}


def _from_alpaca(row: Mapping[str, Any], instruction: str | None, notes: Counter[str]) -> dict[str, Any]:
    answer = "output" if row.get("output") is not None else "response"  # the latter is Dolly's
    answer = answer if row.get(answer) is not None else "output"
    return _one_turn(_paragraphs(row, "instruction", "input", "context"), _text(row, answer), notes)


def _from_prompt_completion(row: Mapping[str, Any], instruction: str | None, notes: Counter[str]) -> dict[str, Any]:
    prompt = row.get("prompt")
    if row.get("context") is not None:
        prompt = _paragraphs(row, "context", "prompt", needed="prompt")
    return {"messages": _prompt(prompt, notes) + _completion(row.get("completion"), "completion", notes)}


def _from_question_answer(row: Mapping[str, Any], instruction: str | None, notes: Counter[str]) -> dict[str, Any]:
    question = _paragraphs(row, "context", "question", needed="question")
    if row.get("answer") is not None or row.get("answers") is None:
        return _one_turn(question, _text(row, "answer"), notes)
    answers = row["answers"]
    answers = answers.get("text") if isinstance(answers, dict) else answers  # SQuAD's, with where they stand
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise ConversationError("malformed", f"'answers' must be a list of texts, not {row['answers']!r:.60}")
    if not answers:
        raise ConversationError("no_assistant_turn", "'answers' is empty: the question has no answer")
    if len(set(answers)) > 1:
        notes["column 'answers': only the first of several is learned"] += 1
    return _one_turn(question, answers[0], notes)


def _from_dialogsum(row: Mapping[str, Any], instruction: str | None, notes: Counter[str]) -> dict[str, Any]:
    dialogue, summary = _text(row, "dialogue").strip(), _text(row, "summary")
    if not dialogue:
        raise ConversationError("empty_turn", "the dialogue has no content")
    return _one_turn(f"{_SUMMARIZE if instruction is None else instruction}\n\n{dialogue}", summary, notes)


def _from_parallel_text(row: Mapping[str, Any], instruction: str | None, notes: Counter[str]) -> dict[str, Any]:
    if not row["source"]:
        raise ConversationError("empty_turn", "the line to translate has no content")
    return _one_turn(f"{instruction}\n\n{row['source']}", row["target"], notes)


def _from_preference(row: Mapping[str, Any], instruction: str | None, notes: Counter[str]) -> dict[str, Any]:
    pair = [_conversation_or_completion(row.get(column), column, notes) for column in ("chosen", "rejected")]
    if all(messages and messages[0]["role"] in ("assistant", "tool") for messages in pair):
        return {"prompt": _prompt_of_pair(row, notes), "chosen": pair[0], "rejected": pair[1]}
    for column in ("instruction", "input", "question", "conversations"):
        if row.get(column) is not None:
            notes[f"column '{column}': not used, because 'chosen' has the prompt"] += 1
    shared = len(list(itertools.takewhile(lambda turns: turns[0] == turns[1], zip(*pair, strict=False))))
    if pair[0] == pair[1]:
        shared -= 1
    return {"prompt": pair[0][:shared], "chosen": pair[0][shared:], "rejected": pair[1][shared:]}


def _prompt_of_pair(row: Mapping[str, Any], notes: Counter[str]) -> list[Message]:
    """The prompt by any of the names that it has beside a pair: TRL's, Orca's, LLaMA-Factory's two."""
    if row.get("prompt") is not None:
        return _prompt(row["prompt"], notes)
    if row.get("instruction") is not None:
        return _prompt(_paragraphs(row, "instruction", "input"), notes)
    if row.get("question") is not None:
        return _prompt(_text(row, "question"), notes)
    if row.get("conversations") is not None:
        return _messages(row["conversations"], "conversations", notes)
    raise ConversationError("malformed", "'chosen' and 'rejected' are answers, and there is no 'prompt'")


def _from_thumbs(row: Mapping[str, Any], instruction: str | None, notes: Counter[str]) -> dict[str, Any]:
    label = row.get("label")
    label = {"true": True, "1": True, "false": False, "0": False}.get(str(label).lower())
    if label is None:
        raise ConversationError("malformed", f"'label' must be true or false, not {row.get('label')!r}")
    if row.get("messages") is not None:  # the last of which the thumb is for
        messages = _messages(row["messages"], "messages", notes)
        prompt, completion = messages[:-1], messages[-1:]
    else:
        prompt = _prompt(row.get("prompt"), notes)
        completion = _completion(row.get("completion"), "completion", notes)
    return {"prompt": prompt, "completion": completion, "label": label}


def _with_context(row: Mapping[str, Any], kind: str, example: dict[str, Any], notes: Counter[str]) -> dict[str, Any]:
    """The example after what the system says and what was said before, where the row has columns for them."""
    messages = example[KINDS[kind][0]]
    history = []
    for position, turns in enumerate(_list(row, "history")):
        if not isinstance(turns, list) or len(turns) != 2 or not all(isinstance(text, str) for text in turns):
            raise ConversationError(
                "malformed", f"'history' must be pairs of a question and its answer, not {turns!r:.60} at {position}"
            )
        history += [_message("user", turns[0], notes), _message("assistant", turns[1], notes)]
    # After a turn of the system that the messages begin with
    start = int(bool(messages) and messages[0]["role"] == "system")
    messages[start:start] = history
    if row.get("system") is not None and _text(row, "system").strip():
        messages.insert(0, _message("system", row["system"], notes))
    for column in KINDS[kind]:  # only in whole conversations is it chosen which turn is learned
        for turn in example[column] if kind != "messages" and column != "label" else ():
            if turn.pop("weight", None) is not None:
                notes[f"`weight` of a turn: not used in {kind} data"] += 1
    return example | _tools(row, notes)


class Format(NamedTuple):
    """One format.

    Attributes:
        kind: What kind of dataset it makes.
        convert: Makes an example of a row and an instruction, and counts what it does not use.
        columns: Those that it reads; `_CONTEXT` is read in each.
    """

    kind: str
    convert: Callable[[Mapping[str, Any], str | None, Counter[str]], dict[str, Any]]
    columns: tuple[str, ...]


FORMATS = {
    "messages": Format("messages", _from_messages, ("messages", "conversations")),
    "sharegpt": Format("messages", _from_messages, ("messages", "conversations")),
    "alpaca": Format("messages", _from_alpaca, ("instruction", "input", "context", "output", "response")),
    "prompt-completion": Format("messages", _from_prompt_completion, ("prompt", "context", "completion")),
    "question-answer": Format("messages", _from_question_answer, ("context", "question", "answer", "answers")),
    "dialogsum": Format("messages", _from_dialogsum, ("dialogue", "summary")),
    "parallel-text": Format("messages", _from_parallel_text, ("source", "target")),
    "preference": Format(
        "preference",
        _from_preference,
        ("prompt", "chosen", "rejected", "instruction", "input", "question", "conversations"),
    ),
    "thumbs": Format("unpaired preference", _from_thumbs, ("prompt", "completion", "messages", "label")),
}
# Columns by which a format is known, looked for in this order: a `prompt` stands in several.
_COLUMNS = {
    "preference": ("chosen", "rejected"),
    "thumbs": ("prompt|messages", "completion|messages", "label"),
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output|response|instances"),
    "prompt-completion": ("prompt", "completion"),
    "question-answer": ("question", "answer|answers"),
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


def _list(row: Mapping[str, Any], column: str) -> list[Any]:
    value = _from_cell(row.get(column), column)
    if value is None or value == "":
        return []
    if not isinstance(value, list):
        raise ConversationError("malformed", f"'{column}' must be a list, not {value!r:.60}")
    return value


def _from_cell(value: Any, column: str) -> Any:
    """A list that is JSON in a text, as a cell of a CSV must be."""
    is_json = isinstance(value, str) and value.lstrip().startswith(("[{", "[[", "[]"))
    return _json(value, f"'{column}'") if is_json else value


def _paragraphs(row: Mapping[str, Any], *columns: str, needed: str = "instruction") -> str:
    """The texts of the columns one below the other; all but one may be without a value."""
    texts = [_text(row, column) for column in columns if column == needed or row.get(column) is not None]
    return "\n\n".join(trim(text) for text in texts if text.strip())


def _one_turn(prompt: str, answer: str, notes: Counter[str]) -> dict[str, Any]:
    return {"messages": [_message("user", prompt, notes), _message("assistant", answer, notes)]}


def _message(role: str, content: str, notes: Counter[str]) -> Message:
    text = trim(content)
    if text != content:
        notes["white space around a text: not kept, but for the indentation of its first line"] += 1
    return {"role": role, "content": text}


def _prompt(value: Any, notes: Counter[str]) -> list[Message]:
    if isinstance(value, str):
        is_hh = _HH_TURN.match(value)
        messages = _hh_messages(value, notes) if is_hh else [_message("user", value, notes)]
        # HH-RLHF's prompts end with the header of the answer.
        return messages[:-1] if messages[-1] == {"role": "assistant", "content": ""} else messages
    return _messages(value, "prompt", notes)


def _completion(value: Any, column: str, notes: Counter[str]) -> list[Message]:
    return [_message("assistant", value, notes)] if isinstance(value, str) else _messages(value, column, notes)


def _conversation_or_completion(value: Any, column: str, notes: Counter[str]) -> list[Message]:
    if isinstance(value, str) and _HH_TURN.match(value):
        return _hh_messages(value, notes)
    if isinstance(value, dict):  # LLaMA-Factory's pairs are one message each
        value = [value]
    return _completion(value, column, notes)


def _hh_messages(text: str, notes: Counter[str]) -> list[Message]:
    parts = _HH_TURN.split(text)[1:]
    roles = ["user" if speaker == "Human" else "assistant" for speaker in parts[::2]]
    # The space after each header and the line break after each text are the format's.
    return [_message(role, content.strip(), notes) for role, content in zip(roles, parts[1::2], strict=True)]


def _tools(row: Mapping[str, Any], notes: Counter[str]) -> dict[str, Any]:
    """The tools, or the functions of OpenAI's older files, as OpenAI's API has them."""
    column = "tools" if row.get("tools") else "functions"
    try:
        tools = parse_tools(row.get(column))
    except ValueError as error:
        raise ConversationError("malformed", f"'{column}': {error}") from error
    if _has_null(tools):
        notes["a null in 'tools': not written by the chat template"] += 1
    return {"tools": tools} if tools else {}


def _has_null(value: Any) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    return any(map(_has_null, value)) if isinstance(value, list) else value is None


def _messages(value: Any, column: str, notes: Counter[str]) -> list[Message]:
    value = _from_cell(value, column)
    if not isinstance(value, list):
        raise ConversationError("malformed", f"'{column}' must be a list of messages, not {value!r:.60}")
    messages = []
    for position, turn in enumerate(value):
        if not isinstance(turn, dict):
            raise ConversationError("malformed", f"turn {position} must be a mapping, not {turn!r:.60}")
        messages.append(_from_turn(turn, position, notes))
    return messages


def _from_turn(turn: Mapping[str, Any], position: int, notes: Counter[str]) -> Message:
    """One message; what of it is not used is counted."""
    speaker = turn.get("role") or turn.get("from")
    role = ROLES.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        raise ConversationError("bad_role", f"turn {position} has the role {speaker!r}; known are {', '.join(ROLES)}")
    content = turn.get("value") if turn.get("content") is None else turn["content"]
    if turn.get("audio") is not None:
        raise ConversationError("not_text", f"turn {position} has 'audio'")
    calls = turn.get("tool_calls")
    if speaker == "function_call":
        calls, content = _json(content, f"turn {position}"), ""
    elif not calls and turn.get("function_call") is not None:  # of OpenAI's older files
        calls = turn["function_call"]
    text, thought = _content(content, position)
    # The text first, then what of the turn belongs to it
    if turn.get("refusal") is not None:
        if text or not isinstance(turn["refusal"], str):
            notes["`refusal` of a turn: not used, because the turn has content"] += 1
        else:
            text = turn["refusal"]
            notes["`refusal` of a turn: learned as its content"] += 1
    message = _message(role, text, notes)
    if thought := thought or _reasoning(turn, position):
        name, thought = thought
        if role != "assistant":
            notes[f"`{name}` of a turn: not used, because the turn is the {role}'s"] += 1
        else:
            message["content"] = f"<think>\n{thought}\n</think>\n\n{message['content']}".rstrip()
            notes[f"`{name}` of a turn: learned before its content, between <think> and </think>"] += 1
    if calls:
        message["tool_calls"] = _tool_calls(calls, position)
    if (weight := _weight(turn, position)) is not None:
        if role == "assistant" and weight == 0:
            message["weight"] = 0
            notes["`weight` 0 of a turn: the turn is kept, and not learned"] += 1
        elif weight == 0:
            notes[f"`weight` of a turn: not used, because the turn is the {role}'s"] += 1
    if isinstance(turn.get("tool_call_id"), str):
        message["tool_call_id"] = turn["tool_call_id"]
    if isinstance(turn.get("name"), str):
        if role == "tool":
            message["name"] = turn["name"]
        else:
            notes[f"`name` of a turn of the {role}: not used, because the chat template does not write it"] += 1
    for field, value in turn.items():
        if field not in _FIELDS and value is not None and value != []:
            notes[f"`{field:.60}` of a turn: not used"] += 1
    return message


def _weight(turn: Mapping[str, Any], position: int) -> int | None:
    weight = turn.get("weight")
    if weight is None:
        return None
    if weight not in (0, 1):
        raise ConversationError("malformed", f"turn {position} has the weight {weight!r}; it must be 0 or 1")
    return int(weight)


def _reasoning(turn: Mapping[str, Any], position: int) -> tuple[str, str] | None:
    """What a turn says that it thought, with the name of the field."""
    for name in REASONING:
        thought = turn.get(name)
        if thought is not None and not isinstance(thought, str):
            raise ConversationError("malformed", f"turn {position} must have a text in '{name}', not {thought!r:.60}")
        if thought and thought.strip():
            return name, thought.strip()
    return None


def _content(content: Any, position: int) -> tuple[str, tuple[str, str] | None]:
    """The text of a message, its parts joined as the server joins them, and what is thought in a part of its own.

    Without its images or sounds a conversation makes no sense, so it is refused.
    """
    if isinstance(content, list):
        texts, thoughts = [], []
        for part in content:
            part = {"type": "text", "text": part} if isinstance(part, str) else part
            kind = str(part.get("type") if isinstance(part, dict) else part)
            # The names of the text in parts of OpenAI's two APIs and of Anthropic's
            key = {"input_text": "text", "output_text": "text", "reasoning": "text"}.get(kind, kind)
            if key not in ("text", "refusal", "thinking") or not isinstance(part.get(key), str):
                raise ConversationError("not_text", f"turn {position} has a part of type {kind!r:.60}")
            (thoughts if kind in REASONING else texts).append(part[key])
        thought = "\n\n".join(thoughts).strip()
        return "".join(texts), ("thinking", thought) if thought else None
    if content is not None and not isinstance(content, str):
        raise ConversationError("malformed", f"turn {position} must have a text for its content, not {content!r:.60}")
    return content or "", None


def _tool_calls(calls: Any, position: int) -> list[dict[str, Any]]:
    """Tool calls in OpenAI's form; their arguments as a mapping, as the templates of transformers take them.

    Arguments with a null in them stay JSON in a string, which the template writes as it is: of a mapping it leaves
    nulls out, because Arrow adds them to rows that lack a key.
    """
    found = []
    for call in calls if isinstance(calls, list) else [calls]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise ConversationError("malformed", f"turn {position} has a tool call without a function's name")
        arguments = function.get("arguments")
        if isinstance(arguments, str) and arguments.strip():
            arguments = _json(arguments, f"turn {position}: the arguments of {function['name']}")
        if arguments is None or arguments == "":
            arguments = {}
        if _has_null(arguments):
            arguments = json.dumps(arguments, ensure_ascii=False)
        identifier = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
        called = {"name": function["name"], "arguments": arguments}
        found.append({**identifier, "type": "function", "function": called})
    return found


def _json(text: Any, what: str) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConversationError("malformed", f"{what}: not JSON: {error}") from error
