"""The formats that people have conversations in: from a row of a source to an example of a dataset.

An example has TRL's columns for its kind of dataset (`trl/data_utils.py`), and messages as OpenAI's API has them.
"""

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from hfchat.data.rows import Row
from hfchat.data.turns import (
    ConversationError,
    Example,
    Message,
    all_messages,
    malformed,
    message_of,
    order_results,
    parse_json,
    read_turn,
    turns_of,
    write_json,
)
from hfchat.messages import parse_tools, trim

# Kind of dataset to its columns; each but `label` holds a list of messages.
KINDS = {
    "messages": ("messages",),
    "preference": ("prompt", "chosen", "rejected"),
    "unpaired preference": ("prompt", "completion", "label"),
}
# Columns that say who speaks and what was said before, in every format.
_CONTEXT = ("system", "history", "tools", "functions")
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")
_SYSTEM_WITH_TOOLS = re.compile(r"<tools>(?!\s*</tools>)")  # and not where a prompt only names these marks
_SUMMARIZE = "Summarize the dialogue in one or two sentences."


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
        raise malformed(f"must be a mapping of columns, not {type(row.value).__name__}")
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
        write_json(cast(object, example), "the row").encode()
    except UnicodeEncodeError as error:  # JSON can write half a surrogate pair
        raise malformed(f"is not Unicode: {error.reason}") from error
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
            raise malformed(f"'answers' must be a list of texts, not {self.row['answers']!r:.60}")
        if not answers:
            raise ConversationError("no_assistant_turn", "'answers' is empty: the question has no answer")
        if len(set(answers)) > 1:
            self.notes["column 'answers': only the first of several is learned"] += 1
        return self._one_turn(question, answers[0])

    def function_calls(self) -> Example:
        # As xLAM and APIGen have it: a question, and the calls that answer it, `[{"name": ..., "arguments": {...}}]`
        turn = read_turn({"role": "assistant", "tool_calls": self._list("answers")}, 1, self.notes)
        return {"messages": [message_of("user", self._text("query"), self.notes), turn]}

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
            raise malformed(f"'label' must be true or false, not {self.row.get('label')!r}")
        if self._has("messages"):  # the thumb is for the last one
            messages = self._turns("messages")
            return {"prompt": messages[:-1], "completion": messages[-1:], "label": label}
        return {"prompt": self._prompt("prompt"), "completion": self._completion("completion"), "label": label}

    def add_context(self, kind: str, example: Example) -> None:
        """Put what the system says and what was said before into the example, where the row has columns for them."""
        history = []
        for position, turns in enumerate(self._list("history")):
            if not isinstance(turns, list) or len(turns) != 2 or not all(isinstance(text, str) for text in turns):
                raise malformed(
                    f"'history' must be pairs of a question and its answer, not {turns!r:.60} at {position}"
                )
            history += [message_of("user", turns[0], self.notes), message_of("assistant", turns[1], self.notes)]
        # After a turn of the system that the messages begin with
        messages = turns_of(example, KINDS[kind][0])
        start = int(bool(messages) and messages[0]["role"] == "system")
        messages[start:start] = history
        if self._has("system") and (system := self._text("system")).strip():
            messages.insert(0, message_of("system", system, self.notes))
        # Only in whole conversations is it chosen which turn is learned
        for column in KINDS[kind] if kind != "messages" else ():
            for turn in turns_of(example, column) if column != "label" else ():
                if turn.pop("weight", None) is not None:
                    self.notes[f"`weight` of a turn: not used in {kind} data"] += 1
        tools = self._tools()
        system = messages[0]["content"] if messages and messages[0]["role"] == "system" else ""
        if tools and _SYSTEM_WITH_TOOLS.search(system):
            self.notes["column 'tools': not used, because the system's turn has them after <tools>"] += 1
        elif tools:
            example["tools"] = tools
            self._note_unknown_calls(example, tools)

    def _note_unknown_calls(self, example: Example, tools: Sequence[Mapping[str, object]]) -> None:
        functions = [tool.get("function") for tool in tools]
        names = {function.get("name") for function in functions if isinstance(function, dict)}
        calls = itertools.chain.from_iterable(turn.get("tool_calls", ()) for turn in all_messages(example))
        if unknown := sum(call["function"]["name"] not in names for call in calls):
            self.notes["a call of a function that is not in 'tools': learned as it stands there"] += unknown

    # What a column holds

    def _has(self, column: str) -> bool:
        return self.row.get(column) is not None

    def _text(self, column: str) -> str:
        value = self.row.get(column)
        if not isinstance(value, str):
            raise malformed(f"'{column}' must be a text, not {value!r:.60}")
        return value

    def _list(self, column: str) -> list[object]:
        value = _from_cell(self.row.get(column), column)
        if value is None or value == "":
            return []
        if not isinstance(value, list):
            raise malformed(f"'{column}' must be a list, not {value!r:.60}")
        return value

    def _paragraphs(self, *columns: str, needed: str = "instruction") -> str:
        """The texts of the columns one below the other; all but one may be without a value."""
        texts = [self._text(column) for column in columns if column == needed or self._has(column)]
        return "\n\n".join(trim(text) for text in texts if text.strip())

    def _tools(self) -> list[dict[str, Any]]:
        """The tools, or the functions of OpenAI's older files, as OpenAI's API has them."""
        column = "tools" if self.row.get("tools") else "functions"
        try:
            return parse_tools(self.row.get(column))
        except ValueError as error:
            raise malformed(f"'{column}': {error}") from error

    def _turns(self, column: str) -> list[Message]:
        """A column of messages, also as JSON in a text."""
        value = _from_cell(self.row.get(column), column)
        if not isinstance(value, list):
            raise malformed(f"'{column}' must be a list of messages, not {value!r:.60}")
        messages = []
        for position, turn in enumerate(value):
            if not isinstance(turn, dict):
                raise malformed(f"turn {position} must be a mapping, not {turn!r:.60}")
            messages.append(read_turn(turn, position, self.notes))
        order_results(messages, self.notes)
        return messages

    def _prompt(self, column: str, text: str | None = None) -> list[Message]:
        """A prompt: messages, HH-RLHF's text, or a text, which may be given where it is not that of the column."""
        value = self.row.get(column) if text is None else text
        if not isinstance(value, str):
            return self._turns(column)
        messages = self._hh_turns(value) if _HH_TURN.match(value) else [message_of("user", value, self.notes)]
        # HH-RLHF's prompts end with the header of the answer.
        return messages[:-1] if messages[-1] == {"role": "assistant", "content": ""} else messages

    def _completion(self, column: str) -> list[Message]:
        value = self.row.get(column)
        return [message_of("assistant", value, self.notes)] if isinstance(value, str) else self._turns(column)

    def _side_of_pair(self, column: str) -> list[Message]:
        value = self.row.get(column)
        if isinstance(value, str) and _HH_TURN.match(value):
            return self._hh_turns(value)
        if isinstance(value, dict):  # LLaMA-Factory's pairs are one message each
            return [read_turn(value, 0, self.notes)]
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
        raise malformed("'chosen' and 'rejected' are answers, and there is no 'prompt'")

    def _hh_turns(self, text: str) -> list[Message]:
        parts = _HH_TURN.split(text)[1:]
        roles = ["user" if speaker == "Human" else "assistant" for speaker in parts[::2]]
        # The space after each header and the line break after each text are the format's.
        return [message_of(role, said.strip(), self.notes) for role, said in zip(roles, parts[1::2], strict=True)]

    def _one_turn(self, prompt: str, answer: str) -> Example:
        return {"messages": [message_of("user", prompt, self.notes), message_of("assistant", answer, self.notes)]}


def _from_cell(value: object, column: str) -> object:
    """A list that is JSON in a text, as a cell of a CSV must be."""
    is_json = isinstance(value, str) and value.lstrip().startswith(("[{", "[[", "[]"))
    return parse_json(value, f"'{column}'") if is_json else value


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
    "function-calls": Format(_RowReader.function_calls, ("query", "answers", "tools")),
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
