"""The formats that people have conversations in: from a row of a source to an example of a dataset.

An example has TRL's columns for its kind of dataset (`trl/data_utils.py`), and messages as OpenAI's API has them.
"""

import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, NotRequired, TypedDict, cast

from hfchat.data.rows import Row
from hfchat.messages import REASONING, parse_tools, trim

# Kind of dataset to its columns; each but `label` holds a list of messages.
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
# Columns that say who speaks and what was said before, in every format.
_CONTEXT = ("system", "history", "tools", "functions")
# Fields of a message that are read, or say nothing that is not said elsewhere.
_FIELDS = {
    "role", "from", "content", "value", "tool_calls", "function_call", "tool_call_id", "name", "weight", "refusal",
    "audio", *REASONING,
}  # fmt: skip
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")
_SUMMARIZE = "Summarize the dialogue in one or two sentences."


class Function(TypedDict):
    """What a tool is called with; its arguments are a mapping, or JSON in a text."""

    name: str
    arguments: object


class ToolCall(TypedDict):
    """A call of a tool, as in OpenAI's API."""

    id: NotRequired[str]
    type: str
    function: Function


class Message(TypedDict):
    """A turn of a conversation, as in OpenAI's API. The assistant's have `weight` 0 if they are not to be learned."""

    role: str
    content: str
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


class ConversationError(Exception):
    """A row or conversation that is not taken: `reason`, and `detail` for people."""

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def _malformed(detail: str) -> ConversationError:
    return ConversationError("malformed", detail)


def expand(format: str, row: Row) -> Iterator[Row]:
    """The conversations of a row, still in its format: one, but for Self-Instruct's `instances`."""
    columns = row.value if format == "alpaca" and isinstance(row.value, dict) else {}
    instances = columns.get("instances")
    if not isinstance(instances, list) or not instances:
        yield row
        return
    for number, instance in enumerate(instances, start=1):
        # An instance that is not a mapping gives a row without an output, which is then malformed.
        texts = instance if isinstance(instance, dict) else {}
        place = row.place if len(instances) == 1 else f"{row.place[:-1]}, instance {number})"
        others = {column: value for column, value in columns.items() if column != "instances"}
        yield Row(others | texts, place)


def convert(format: str, row: Row, instruction: str | None = None, notes: Counter[str] | None = None) -> Example:
    """A row as an example of its kind.

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
        raise _malformed(f"must be a mapping of columns, not {type(row.value).__name__}")
    notes = Counter() if notes is None else notes
    rules = FORMATS[format]
    reader = _RowReader(row.value, instruction, notes)
    example = rules.convert(reader)
    if format != "parallel-text":
        reader.add_context(rules.kind, example)
    for column, value in row.value.items():
        if value is not None and column not in (*rules.columns, *_CONTEXT):
            notes[f"column '{column:.60}': not used"] += 1
    try:
        json.dumps(example, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:  # JSON can write half a surrogate pair
        raise _malformed(f"is not Unicode: {error.reason}") from error
    return example


class _RowReader:
    """Reads what a row says in the columns of its format, and counts in `notes` what it does not use."""

    def __init__(self, row: Mapping[str, object], instruction: str | None, notes: Counter[str]):
        self.row, self.instruction, self.notes = row, instruction, notes

    # One method for each format

    def messages(self) -> Example:
        column = "messages" if self._has("messages") else "conversations"
        if column == "messages" and self._has("conversations"):
            self.notes["column 'conversations': not used, because the row has 'messages'"] += 1
        return {"messages": self._turns(column)}

    def alpaca(self) -> Example:
        # Dolly calls the answer `response`
        answer = "response" if self._has("response") and not self._has("output") else "output"
        return self._one_turn(self._paragraphs("instruction", "input", "context"), self._text(answer))

    def prompt_completion(self) -> Example:
        prompt = self._paragraphs("context", "prompt", needed="prompt") if self._has("context") else None
        return {"messages": self._prompt("prompt", prompt) + self._completion("completion")}

    def question_answer(self) -> Example:
        question = self._paragraphs("context", "question", needed="question")
        if self._has("answer") or not self._has("answers"):
            return self._one_turn(question, self._text("answer"))
        answers = self.row["answers"]
        answers = answers.get("text") if isinstance(answers, dict) else answers  # SQuAD's, with where they stand
        if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
            raise _malformed(f"'answers' must be a list of texts, not {self.row['answers']!r:.60}")
        if not answers:
            raise ConversationError("no_assistant_turn", "'answers' is empty: the question has no answer")
        if len(set(answers)) > 1:
            self.notes["column 'answers': only the first of several is learned"] += 1
        return self._one_turn(question, answers[0])

    def dialogsum(self) -> Example:
        dialogue = self._text("dialogue").strip()
        if not dialogue:
            raise ConversationError("empty_turn", "the dialogue has no content")
        instruction = _SUMMARIZE if self.instruction is None else self.instruction
        return self._one_turn(f"{instruction}\n\n{dialogue}", self._text("summary"))

    def parallel_text(self) -> Example:
        source = self._text("source")
        if not source:
            raise ConversationError("empty_turn", "the line to translate has no content")
        return self._one_turn(f"{self.instruction}\n\n{source}", self._text("target"))

    def preference(self) -> Example:
        chosen, rejected = self._side_of_pair("chosen"), self._side_of_pair("rejected")
        if all(turns and turns[0]["role"] in ("assistant", "tool") for turns in (chosen, rejected)):
            return {"prompt": self._prompt_of_pair(), "chosen": chosen, "rejected": rejected}
        # Both sides begin with the prompt: what they share, but for a last answer
        for column in ("instruction", "input", "question", "conversations"):
            if self._has(column):
                self.notes[f"column '{column}': not used, because 'chosen' has the prompt"] += 1
        both = zip(chosen, rejected, strict=False)
        shared = len(list(itertools.takewhile(lambda turns: turns[0] == turns[1], both))) - (chosen == rejected)
        return {"prompt": chosen[:shared], "chosen": chosen[shared:], "rejected": rejected[shared:]}

    def thumbs(self) -> Example:
        label = {"true": True, "1": True, "false": False, "0": False}.get(str(self.row.get("label")).lower())
        if label is None:
            raise _malformed(f"'label' must be true or false, not {self.row.get('label')!r}")
        if self._has("messages"):  # the thumb is for the last one
            messages = self._turns("messages")
            return {"prompt": messages[:-1], "completion": messages[-1:], "label": label}
        return {"prompt": self._prompt("prompt"), "completion": self._completion("completion"), "label": label}

    def add_context(self, kind: str, example: Example) -> None:
        """Put what the system says and what was said before into the example, where the row has columns for them."""
        history = []
        for position, turns in enumerate(self._list("history")):
            if not isinstance(turns, list) or len(turns) != 2 or not all(isinstance(text, str) for text in turns):
                raise _malformed(
                    f"'history' must be pairs of a question and its answer, not {turns!r:.60} at {position}"
                )
            history += [self._message("user", turns[0]), self._message("assistant", turns[1])]
        # After a turn of the system that the messages begin with
        messages = turns_of(example, KINDS[kind][0])
        start = int(bool(messages) and messages[0]["role"] == "system")
        messages[start:start] = history
        if self._has("system") and (system := self._text("system")).strip():
            messages.insert(0, self._message("system", system))
        # Only in whole conversations is it chosen which turn is learned
        for column in KINDS[kind] if kind != "messages" else ():
            for turn in turns_of(example, column) if column != "label" else ():
                if turn.pop("weight", None) is not None:
                    self.notes[f"`weight` of a turn: not used in {kind} data"] += 1
        if tools := self._tools():
            example["tools"] = tools

    # What a column holds

    def _has(self, column: str) -> bool:
        return self.row.get(column) is not None

    def _text(self, column: str) -> str:
        value = self.row.get(column)
        if not isinstance(value, str):
            raise _malformed(f"'{column}' must be a text, not {value!r:.60}")
        return value

    def _list(self, column: str) -> list[object]:
        value = _from_cell(self.row.get(column), column)
        if value is None or value == "":
            return []
        if not isinstance(value, list):
            raise _malformed(f"'{column}' must be a list, not {value!r:.60}")
        return value

    def _paragraphs(self, *columns: str, needed: str = "instruction") -> str:
        """The texts of the columns one below the other; all but one may be without a value."""
        texts = [self._text(column) for column in columns if column == needed or self._has(column)]
        return "\n\n".join(trim(text) for text in texts if text.strip())

    def _tools(self) -> list[dict[str, Any]]:
        """The tools, or the functions of OpenAI's older files, as OpenAI's API has them."""
        column = "tools" if self.row.get("tools") else "functions"
        try:
            tools = parse_tools(self.row.get(column))
        except ValueError as error:
            raise _malformed(f"'{column}': {error}") from error
        if _has_null(tools):
            self.notes["a null in 'tools': not written by the chat template"] += 1
        return tools

    def _turns(self, column: str) -> list[Message]:
        """A column of messages, also as JSON in a text."""
        value = _from_cell(self.row.get(column), column)
        if not isinstance(value, list):
            raise _malformed(f"'{column}' must be a list of messages, not {value!r:.60}")
        messages = []
        for position, turn in enumerate(value):
            if not isinstance(turn, dict):
                raise _malformed(f"turn {position} must be a mapping, not {turn!r:.60}")
            messages.append(self._from_turn(_Turn(turn, position)))
        return messages

    def _prompt(self, column: str, text: str | None = None) -> list[Message]:
        """A prompt: messages, HH-RLHF's text, or a text, which may be given where it is not that of the column."""
        value = self.row.get(column) if text is None else text
        if not isinstance(value, str):
            return self._turns(column)
        messages = self._hh_turns(value) if _HH_TURN.match(value) else [self._message("user", value)]
        # HH-RLHF's prompts end with the header of the answer.
        return messages[:-1] if messages[-1] == {"role": "assistant", "content": ""} else messages

    def _completion(self, column: str) -> list[Message]:
        value = self.row.get(column)
        return [self._message("assistant", value)] if isinstance(value, str) else self._turns(column)

    def _side_of_pair(self, column: str) -> list[Message]:
        value = self.row.get(column)
        if isinstance(value, str) and _HH_TURN.match(value):
            return self._hh_turns(value)
        if isinstance(value, dict):  # LLaMA-Factory's pairs are one message each
            return [self._from_turn(_Turn(value, 0))]
        return self._completion(column)

    def _prompt_of_pair(self) -> list[Message]:
        """The prompt by any of the names that it has beside a pair: TRL's, Orca's, LLaMA-Factory's two."""
        if self._has("prompt"):
            return self._prompt("prompt")
        if self._has("instruction"):
            return self._prompt("instruction", self._paragraphs("instruction", "input"))
        if self._has("question"):
            return self._prompt("question", self._text("question"))
        if self._has("conversations"):
            return self._turns("conversations")
        raise _malformed("'chosen' and 'rejected' are answers, and there is no 'prompt'")

    def _hh_turns(self, text: str) -> list[Message]:
        parts = _HH_TURN.split(text)[1:]
        roles = ["user" if speaker == "Human" else "assistant" for speaker in parts[::2]]
        # The space after each header and the line break after each text are the format's.
        return [self._message(role, said.strip()) for role, said in zip(roles, parts[1::2], strict=True)]

    def _one_turn(self, prompt: str, answer: str) -> Example:
        return {"messages": [self._message("user", prompt), self._message("assistant", answer)]}

    def _message(self, role: str, content: str) -> Message:
        text = trim(content)
        if text != content:
            self.notes["white space around a text: not kept, but for the indentation of its first line"] += 1
        return {"role": role, "content": text}

    def _from_turn(self, turn: "_Turn") -> Message:
        """One message; what of it is not used is counted."""
        role, notes = turn.role, self.notes
        calls, text, thought = turn.said()
        refusal = turn.get("refusal")
        if refusal is not None and (text or not isinstance(refusal, str)):
            notes["`refusal` of a turn: not used, because the turn has content"] += 1
        elif isinstance(refusal, str):
            text = refusal
            notes["`refusal` of a turn: learned as its content"] += 1
        # The text first, then what of the turn belongs to it
        message = self._message(role, text)
        if thought and role != "assistant":
            notes[f"`{thought.field}` of a turn: not used, because the turn is the {role}'s"] += 1
        elif thought:
            message["content"] = f"<think>\n{thought.text}\n</think>\n\n{message['content']}".rstrip()
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

    def __init__(self, fields: Mapping[str, object], position: int):
        self.fields, self.get = fields, fields.get
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
            calls, content = _json(content, self.place), ""
        elif not calls:
            calls = self.get("function_call")  # of OpenAI's older files
        text, thought = self._content(content)
        return calls, text, thought or self._reasoning()

    def _content(self, content: object) -> tuple[str, _Thought | None]:
        """The text, its parts joined as the server joins them, and what is thought in a part of its own.

        Without its images or sounds a conversation makes no sense, so it is refused.
        """
        if not isinstance(content, list):
            if content is not None and not isinstance(content, str):
                raise _malformed(f"{self.place} must have a text for its content, not {content!r:.60}")
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
                raise _malformed(f"{self.place} must have a text in '{name}', not {thought!r:.60}")
            if thought and thought.strip():
                return _Thought(name, thought.strip())
        return None

    def is_not_learned(self) -> bool:
        weight = self.get("weight")
        if weight not in (None, 0, 1):
            raise _malformed(f"{self.place} has the weight {weight!r}; it must be 0 or 1")
        return weight == 0

    def tool_calls(self, calls: object) -> list[ToolCall]:
        """Tool calls in OpenAI's form; their arguments as a mapping, as the templates of transformers take them.

        Arguments with a null in them stay JSON in a string, which the template writes as it is: of a mapping it leaves
        nulls out, because Arrow adds them to rows that lack a key.
        """
        read: list[ToolCall] = []
        for call in calls if isinstance(calls, list) else [calls]:
            call = call if isinstance(call, dict) else {}
            function = call.get("function", call)
            if not isinstance(function, dict) or not isinstance(function.get("name"), str):
                raise _malformed(f"{self.place} has a tool call without a function's name")
            arguments = function.get("arguments")
            if isinstance(arguments, str) and arguments.strip():
                arguments = _json(arguments, f"{self.place}: the arguments of {function['name']}")
            if arguments is None or arguments == "":
                arguments = {}
            if _has_null(arguments):
                arguments = json.dumps(arguments, ensure_ascii=False)
            called: ToolCall = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
            if isinstance(identifier := call.get("id"), str):
                called["id"] = identifier
            read.append(called)
        return read


def _from_cell(value: object, column: str) -> object:
    """A list that is JSON in a text, as a cell of a CSV must be."""
    is_json = isinstance(value, str) and value.lstrip().startswith(("[{", "[[", "[]"))
    return _json(value, f"'{column}'") if is_json else value


def _has_null(value: object) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    return any(map(_has_null, value)) if isinstance(value, list) else value is None


def _json(text: Any, what: str) -> object:
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise _malformed(f"{what}: not JSON: {error}") from error


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        convert: Makes an example of a row.
        known_by: Columns by which it is known, `a|b` for either; none for a format that has to be named.
        columns: The columns that it reads beside these; `_CONTEXT` is read in each.
        kind: The kind of dataset that it makes.
        takes_instruction: Whether its prompt says what to do with the text of the row.
    """

    convert: Callable[[_RowReader], Example]
    known_by: tuple[str, ...]
    others: tuple[str, ...] = ()
    kind: str = "messages"
    takes_instruction: bool = False

    @property
    def columns(self) -> set[str]:
        return {*itertools.chain.from_iterable(column.split("|") for column in self.known_by), *self.others}


FORMATS = {
    "messages": Format(_RowReader.messages, ("messages",), ("conversations",)),
    "sharegpt": Format(_RowReader.messages, ("conversations",), ("messages",)),
    "alpaca": Format(_RowReader.alpaca, ("instruction", "output|response|instances"), ("input", "context")),
    "prompt-completion": Format(_RowReader.prompt_completion, ("prompt", "completion"), ("context",)),
    "question-answer": Format(_RowReader.question_answer, ("question", "answer|answers"), ("context",)),
    "dialogsum": Format(_RowReader.dialogsum, ("dialogue", "summary"), takes_instruction=True),
    "parallel-text": Format(_RowReader.parallel_text, (), ("source", "target"), takes_instruction=True),
    "preference": Format(
        _RowReader.preference,
        ("chosen", "rejected"),
        ("prompt", "instruction", "input", "question", "conversations"),
        kind="preference",
    ),
    "thumbs": Format(
        _RowReader.thumbs, ("prompt|messages", "completion|messages", "label"), kind="unpaired preference"
    ),
}
TAKES_INSTRUCTION = tuple(name for name, format in FORMATS.items() if format.takes_instruction)


def find_format(columns: Mapping[str, object]) -> str | None:
    """The format that has these columns, or None. A column without a value in this row does not count."""
    present = {name for name, value in columns.items() if value is not None}
    # Pairs and thumbs come first, because their columns are also those of other formats, and some more.
    for name, format in sorted(FORMATS.items(), key=lambda entry: entry[1].kind == "messages"):
        if format.known_by and all(present & set(either.split("|")) for either in format.known_by):
            return name
    return None
