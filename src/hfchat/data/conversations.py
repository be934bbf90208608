"""Conversation data in the formats that people have -> clean datasets that TRL trains on, with every removal told.

`ConversationSource` reads one source, `FORMATS` turns a row of it into an example, and `prepare` checks, cleans,
deduplicates and splits the examples. TRL's names of the columns: `trl/data_utils.py`.
"""

import csv
import functools
import gzip
import hashlib
import heapq
import io
import itertools
import json
import lzma
import re
import tempfile
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import yaml
from fsspec.core import has_magic
from tqdm import tqdm

from hfchat.chat_template import SPECIAL_TOKENS
from hfchat.dataset import find_fault
from hfchat.errors import UserError
from hfchat.storage import is_remote, remove_tree

SPLITS = ("train", "validation")
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
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")
_SUMMARIZE = "Summarize the dialogue in one or two sentences."
_SPECIAL_TOKEN = re.compile("|".join(map(re.escape, SPECIAL_TOKENS)))
# Characters of a line that is no row, kept among the removed ones.
_EXCERPT = 100_000
_DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError)

_READERS = {".jsonl": "json", ".ndjson": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
_COMPRESSED = (".gz", ".bz2", ".xz")
_HUB_KEYS = {"config", "split", "revision"}
_KEYS = {"path", "format", "name", "license", "url", "limit", "storage_options", "target_path", "instruction"}
_TYPES = {"limit": int, "storage_options": dict}
_TAKES_INSTRUCTION = ("dialogsum", "parallel-text")

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


class ConversationSource(dict):
    """One source of conversations.

    `path` is a file or glob (`.jsonl`, `.ndjson`, `.json`, `.parquet`, `.csv`), on this machine or as an fsspec URL,
    or a dataset's folder or Hub id, with `config`, `split` (train) and `revision` (pin it). Files but Parquet may be
    compressed (`.gz`, `.bz2`, `.xz`). `format` is seen from the columns, or given:

    - `messages`: `messages` with `role` and `content` as in OpenAI's API, also `tool_calls`, and `tools` beside them.
    - `sharegpt`: `conversations` with `from` and `value`.
    - `alpaca`: `instruction`, `input` and `output`, or Self-Instruct's `instances` of the last two.
    - `prompt-completion`, `question-answer`: the columns of these names, as texts; the first also as messages.
    - `dialogsum`: `dialogue` and `summary`; `instruction` is what the prompt asks for.
    - `parallel-text`: line by line, `path` is translated in `target_path`; `instruction` must say what to do.
    - `preference`: `chosen` and `rejected`, as messages, as HH-RLHF's texts, or as answers to a `prompt`.
    - `thumbs`: `prompt`, `completion` and `label` (true or false).

    `limit` takes the first so many rows. `license`, `url` and `name` go into the dataset card, `name` into each row;
    `storage_options` go to fsspec.

    Raises:
        ValueError: For a format that there is not, or a key that it does not take.
    """

    def __init__(self, value: dict[str, Any] | str):
        value = json.loads(value) if isinstance(value, str) else value
        if not isinstance(value, dict) or not isinstance(value.get("path"), str):
            raise ValueError("each of sources must be a mapping with a 'path'")
        super().__init__(value)
        place = f"source {self['path']}"
        known = _KEYS | (_HUB_KEYS if self.is_hub else set())
        if unknown := self.keys() - known:
            raise ValueError(f"{place}: unknown key '{min(unknown)}'; it takes {', '.join(sorted(known))}")
        for key, item in self.items():
            expected = _TYPES.get(key, str)
            if not isinstance(item, expected) or isinstance(item, bool):
                raise ValueError(f"{place}: '{key}' must be a {expected.__name__}, not {item!r}")
        if self.get("limit", 1) < 1:
            raise ValueError(f"{place}: 'limit' must be at least 1, not {self['limit']}")
        format = self.get("format", "parallel-text" if "target_path" in self else None)
        if format not in (None, *FORMATS):
            raise ValueError(f"{place}: format must be one of {', '.join(FORMATS)}, not {format!r}")
        if format == "parallel-text" and not {"target_path", "instruction"} <= self.keys():
            raise ValueError(f"{place}: parallel-text needs 'target_path' and 'instruction'")
        if "target_path" in self and format != "parallel-text":
            raise ValueError(f"{place}: 'target_path' is a key of parallel-text, not of {format}")
        if "instruction" in self and format not in (None, *_TAKES_INSTRUCTION):
            raise ValueError(f"{place}: 'instruction' is a key of {' and '.join(_TAKES_INSTRUCTION)}, not of {format}")

    @property
    def name(self) -> str:
        return self.get("name", self["path"])

    @property
    def license(self) -> str:
        return self.get("license", "unknown")

    @property
    def is_hub(self) -> bool:
        return "target_path" not in self and self._reader is None

    @property
    def _reader(self) -> str | None:
        name = self["path"]
        for suffix in _COMPRESSED:
            name = name.removesuffix(suffix)
        return _READERS.get(name[name.rfind(".") :])

    def describe(self) -> dict[str, Any]:
        """The source as an input of the stage: `{"path", "sha256", "licenses"}`.

        Raises:
            UserError: If it names files and there are none.
        """
        from hfchat.data.sources import Source

        common = {key: self[key] for key in ("license", "revision", "storage_options") if key in self}
        kind = "hub" if self.is_hub else "text"  # for files, all that counts of the kind is that they are files
        paths = [self[key] for key in ("path", "target_path") if key in self]
        found = [Source({"path": path, "kind": kind, **common}).describe() for path in paths]
        return found[0] | {"sha256": json.dumps([one["sha256"] for one in found])}

    def find_format(self) -> str:
        """The format, seen from the first row's columns where it is not given.

        Raises:
            UserError: If there is no row, no format has these columns, or it takes no `instruction`.
        """
        if "target_path" in self:
            return "parallel-text"
        if "format" in self:
            return self["format"]
        first = next((row.value for row in self.rows() if isinstance(row.value, dict)), None)
        if first is None:
            raise UserError(f"sources: {self['path']}: has no rows")
        for format, columns in _COLUMNS.items():
            if all(any(first.get(name) is not None for name in column.split("|")) for column in columns):
                if "instruction" in self and format not in _TAKES_INSTRUCTION:
                    raise UserError(f"sources: {self['path']}: 'instruction' is no key of the format {format}")
                return format
        raise UserError(
            f"sources: {self['path']}: no format has the columns {', '.join(first)}; rename them, or give 'format'"
        )

    def rows(self) -> Iterator[Row]:
        """All rows, in order.

        Raises:
            UserError: If the source cannot be opened, or if parallel texts have different numbers of lines.
        """
        if "target_path" in self:
            rows = self._parallel_rows()
        elif self.is_hub:
            rows = self._hub_rows()
        else:
            rows = self._file_rows()
        return itertools.islice(rows, self.get("limit"))

    def _file_rows(self) -> Iterator[Row]:
        read = {"json": _read_json, "csv": _read_csv, "parquet": _read_parquet}[self._reader]
        for name, open_file in self._files(self["path"]):
            number = 0
            try:
                with open_file() as stream:
                    for number, value, fault in read(stream, name):
                        yield Row(value, f"{name} (row {number})", fault)
            except (*_DAMAGED, OSError) as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise UserError(f"sources: {name}: {error}") from error
                yield Row("", f"{name} (row {number + 1})", f"the rest of the file cannot be read: {error}")

    def _parallel_rows(self) -> Iterator[Row]:
        (name, open_source), *more = self._files(self["path"])
        (target_name, open_target), *more_targets = self._files(self["target_path"])
        if more or more_targets:
            raise UserError(f"sources: {self['path']}: parallel-text takes one file and its translation, not several")
        counts = Counter()
        try:
            with open_source() as source, open_target() as target:
                for number, lines in enumerate(itertools.zip_longest(source, target), start=1):
                    counts.update(position for position, line in enumerate(lines) if line is not None)
                    if None not in lines:
                        texts = [line.decode("utf-8", "surrogateescape").strip() for line in lines]
                        yield Row(dict(zip(("source", "target"), texts, strict=True)), f"{name} (row {number})")
        except (*_DAMAGED, OSError) as error:
            raise UserError(f"sources: {name}, {target_name}: {error}") from error
        if counts[0] != counts[1]:
            raise UserError(
                f"sources: {name} has {counts[0]:,} lines and {target_name} has {counts[1]:,}; "
                "each line must have its translation in the other file"
            )

    def _hub_rows(self) -> Iterator[Row]:
        from datasets import load_dataset

        split = self.get("split", "train")
        try:
            dataset = load_dataset(
                self["path"], self.get("config"), split=split, revision=self.get("revision"), streaming=True
            )
            for number, value in enumerate(dataset, start=1):
                yield Row(value, f"{self['path']} (row {number})")
        except Exception as error:  # the errors of the builders have no common base
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"sources: {self['path']}: cannot load split '{split}' of a dataset: {reason} "
                f"(a file must end in {', '.join(_READERS)})"
            ) from error

    def _files(self, path: str) -> list[tuple[str, Callable[[], IO[bytes]]]]:
        """Name and opener of each file that the path names."""
        from datatrove.io import DataFolder

        parts = path.split("/")
        fixed = next((i for i, part in enumerate(parts) if has_magic(part)), len(parts) - 1)
        above, pattern = "/".join(parts[:fixed]), "/".join(parts[fixed:])
        root = above if is_remote(path) else str(Path(above or ("/" if path.startswith("/") else ".")).absolute())
        try:
            folder = DataFolder(root, **self.get("storage_options", {}))
            files = folder.list_files(glob_pattern=pattern) if has_magic(pattern) else [pattern]
            files = [file for file in files if folder.isfile(file)]
        except OSError as error:
            raise UserError(f"sources: {path}: {error}") from error
        if not files:
            raise UserError(f"sources: {path}: no such file")
        prefix = above and f"{above}/"
        return [(f"{prefix}{file}", functools.partial(folder.open, file, "rb", compression="infer")) for file in files]


class EvaluationSet(dict):
    """An evaluation set to keep out: a mapping, on the command line JSON; see `hfchat.data.decontamination`."""

    def __init__(self, value: dict[str, Any] | str):
        super().__init__(json.loads(value) if isinstance(value, str) else value)


def _read_json(stream: IO[bytes], name: str) -> Iterator[tuple[int, Any, str | None]]:
    """Rows of JSON lines, or of a file that is one list."""
    first = next((line for line in stream if line.strip()), b"")
    if first.lstrip(b"\xef\xbb\xbf \t").startswith(b"["):
        try:
            rows = json.loads(first + stream.read())
        except ValueError as error:
            raise UserError(f"sources: {name}: not JSON: {error}") from error
        yield from ((number, row, None) for number, row in enumerate(rows, start=1))
        return
    stream.seek(0)
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line), None
        except (ValueError, RecursionError) as error:
            yield number, line.decode("utf-8", "backslashreplace")[:_EXCERPT].rstrip("\n"), f"not JSON: {error}"


def _read_csv(stream: IO[bytes], name: str) -> Iterator[tuple[int, Any, str | None]]:
    csv.field_size_limit(2**31 - 1)
    text = io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline="")
    reader = csv.DictReader(text)
    for number in itertools.count(1):
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield number, "", f"not CSV: {error}"
            continue
        if None in row or None in row.values():
            cells = [cell for key, cell in row.items() if key is not None and cell is not None] + row.get(None, [])
            fault = f"has {len(cells)} fields, the header has {len(reader.fieldnames)}"
            yield number, json.dumps(cells, ensure_ascii=False)[:_EXCERPT], fault
        else:
            yield number, row, None


def _read_parquet(stream: IO[bytes], name: str) -> Iterator[tuple[int, Any, str | None]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        for batch in pq.ParquetFile(stream).iter_batches(batch_size=256):
            for row in batch.to_pylist():
                number += 1
                yield number, row, None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"sources: {name}: cannot read row {number + 1}: {str(error).splitlines()[0]}") from error


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


def convert(format: str, row: Row, source: ConversationSource) -> dict[str, Any]:
    """A row as an example of its kind: the columns of `KINDS`, and `tools` where it has them.

    Raises:
        ConversationError: If it does not have the form of its format.
    """
    if row.fault is not None:
        raise ConversationError("malformed", row.fault)
    if not isinstance(row.value, dict):
        raise ConversationError("malformed", f"must be a mapping of columns, not {type(row.value).__name__}")
    return FORMATS[format][1](row.value, source)


def _from_messages(row: Mapping[str, Any], source: ConversationSource) -> dict[str, Any]:
    column = "messages" if row.get("messages") is not None else "conversations"
    messages = _messages(row.get(column), column)
    system = row.get("system")  # of LLaMA-Factory's ShareGPT
    if isinstance(system, str) and system.strip():
        messages.insert(0, _message("system", system))
    return {"messages": messages, **_tools(row)}


def _from_alpaca(row: Mapping[str, Any], source: ConversationSource) -> dict[str, Any]:
    prompt = [_text(row, "instruction"), _text(row, "input") if row.get("input") else ""]
    return _one_turn("\n\n".join(part.strip() for part in prompt if part.strip()), _text(row, "output"))


def _from_prompt_completion(row: Mapping[str, Any], source: ConversationSource) -> dict[str, Any]:
    messages = _prompt(row.get("prompt")) + _completion(row.get("completion"), "completion")
    return {"messages": messages, **_tools(row)}


def _from_question_answer(row: Mapping[str, Any], source: ConversationSource) -> dict[str, Any]:
    return _one_turn(_text(row, "question"), _text(row, "answer"))


def _from_dialogsum(row: Mapping[str, Any], source: ConversationSource) -> dict[str, Any]:
    dialogue, summary = _text(row, "dialogue").strip(), _text(row, "summary")
    if not dialogue:
        raise ConversationError("empty_turn", "the dialogue has no content")
    return _one_turn(f"{source.get('instruction', _SUMMARIZE)}\n\n{dialogue}", summary)


def _from_parallel_text(row: Mapping[str, Any], source: ConversationSource) -> dict[str, Any]:
    if not row["source"]:
        raise ConversationError("empty_turn", "the line to translate has no content")
    return _one_turn(f"{source['instruction']}\n\n{row['source']}", row["target"])


def _from_preference(row: Mapping[str, Any], source: ConversationSource) -> dict[str, Any]:
    pair = [_conversation_or_completion(row.get(column), column) for column in ("chosen", "rejected")]
    prompt = row.get("prompt")
    if all(messages and messages[0]["role"] in ("assistant", "tool") for messages in pair):
        return {"prompt": _prompt(prompt), "chosen": pair[0], "rejected": pair[1], **_tools(row)}
    shared = len(list(itertools.takewhile(lambda turns: turns[0] == turns[1], zip(*pair, strict=False))))
    if pair[0] == pair[1]:
        shared -= 1
    return {"prompt": pair[0][:shared], "chosen": pair[0][shared:], "rejected": pair[1][shared:], **_tools(row)}


def _from_thumbs(row: Mapping[str, Any], source: ConversationSource) -> dict[str, Any]:
    label = row.get("label")
    label = {"true": True, "1": True, "false": False, "0": False}.get(str(label).lower())
    if label is None:
        raise ConversationError("malformed", f"'label' must be true or false, not {row.get('label')!r}")
    completion = _completion(row.get("completion"), "completion")
    return {"prompt": _prompt(row.get("prompt")), "completion": completion, "label": label, **_tools(row)}


# Name of a format to the kind of dataset that it makes, and what makes an example of a row.
FORMATS: dict[str, tuple[str, Callable[[Mapping[str, Any], ConversationSource], dict[str, Any]]]] = {
    "messages": ("messages", _from_messages),
    "sharegpt": ("messages", _from_messages),
    "alpaca": ("messages", _from_alpaca),
    "prompt-completion": ("messages", _from_prompt_completion),
    "question-answer": ("messages", _from_question_answer),
    "dialogsum": ("messages", _from_dialogsum),
    "parallel-text": ("messages", _from_parallel_text),
    "preference": ("preference", _from_preference),
    "thumbs": ("unpaired preference", _from_thumbs),
}
# Columns by which a format is known, looked for in this order: a `prompt` stands in several.
_COLUMNS = {
    "preference": ("chosen", "rejected"),
    "thumbs": ("prompt", "completion", "label"),
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output|instances"),
    "prompt-completion": ("prompt", "completion"),
    "question-answer": ("question", "answer"),
    "dialogsum": ("dialogue", "summary"),
}


def _text(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise ConversationError("malformed", f"'{column}' must be a text, not {value!r:.60}")
    return value


def _one_turn(prompt: str, answer: str) -> dict[str, Any]:
    return {"messages": [_message("user", prompt), _message("assistant", answer)]}


def _message(role: str, content: str) -> Message:
    try:
        content.encode()
    except UnicodeEncodeError as error:
        raise ConversationError("malformed", f"a turn of the {role} is not Unicode: {error.reason}") from error
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


def check(kind: str, example: Mapping[str, Any]) -> None:
    """Hold an example against what training needs of it.

    Consecutive messages of one role are refused rather than merged: who joins them writes a turn that nobody wrote.

    Raises:
        ConversationError: With the reason.
    """
    prompt = example.get("prompt", [])
    for column in KINDS[kind]:
        if column in ("prompt", "label"):
            continue
        answer = example[column]
        asks = column != "messages" and any(turn["role"] in ("system", "user") for turn in answer)
        if kind == "preference" and (asks or not prompt or not answer):
            raise ConversationError(
                "different_prompts", f"'{column}' is no answer to a prompt that both answers share"
            )
        _check_conversation(prompt + answer)
        if asks:
            raise ConversationError("not_alternating", f"'{column}' has a turn that is not the assistant's")


def _check_conversation(messages: Sequence[Message]) -> None:
    fault = find_fault(messages, ("system", "user", "assistant", "tool"))
    if fault is not None:
        raise ConversationError(*fault)
    before = None
    for position, turn in enumerate(messages):
        role = turn["role"]
        if role == "system" and position:
            raise ConversationError("system_not_first", f"turn {position} is the system's; only the first may be")
        after = None if before is None or before["role"] == "system" else before["role"]
        calls = before is not None and bool(before.get("tool_calls"))
        follows = {
            "system": True,
            "user": after is None or (after == "assistant" and not calls),
            "assistant": after in ("user", "tool"),
            "tool": calls or after == "tool",
        }[role]
        if not follows:
            previous = "nothing" if after is None else f"the {after}'s" + (" call of a tool" if calls else "")
            raise ConversationError("not_alternating", f"turn {position} is the {role}'s, after {previous}")
        if match := _SPECIAL_TOKEN.search(turn["content"]):
            raise ConversationError(
                "special_token", f"turn {position} ({role}) has the special token {match[0]} in its text"
            )
        before = turn


def _all_messages(example: Mapping[str, Any]) -> Iterator[Message]:
    for column in ("messages", "prompt", "completion", "chosen", "rejected"):
        yield from example.get(column, [])


class Cleaner:
    """Checks examples of one kind, and replaces personal data in them; knows those that it has seen.

    Args:
        kind: One of `KINDS`.
        pii: Kinds of personal data to replace (`hfchat.safety.pii`).
        regions: Whose national phone numbers are replaced.
        index_folder: Evaluation sets to keep out, by `hfchat.data.decontamination.build_index`; None for none.
        n_grams: Words of the index's n-grams.
    """

    def __init__(self, kind: str, pii: Sequence[str], regions: Sequence[str], index_folder: str | None, n_grams: int):
        from hfchat.data.decontamination import ContaminationFilter
        from hfchat.safety.pii import PII

        self.kind = kind
        self.pii = PII(kinds=pii, regions=regions)
        self.contamination = ContaminationFilter(index_folder, n_grams) if index_folder else None
        self.replaced: Counter[str] = Counter()
        self._seen: set[bytes] = set()

    def clean(self, example: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """The example, and the hash of its normalized messages.

        Raises:
            ConversationError: With the reason.
        """
        check(self.kind, example)
        self._check_contamination(example)
        example, replaced = self._replace_pii(example)
        if "chosen" in example and _digest(example["chosen"]) == _digest(example["rejected"]):
            raise ConversationError("chosen_is_rejected", "the two answers are the same")
        digest = _digest(example)
        if digest in self._seen:
            raise ConversationError("duplicate", "an earlier conversation has the same messages")
        self._seen.add(digest)
        self.replaced += replaced
        return example, digest

    def _check_contamination(self, example: Mapping[str, Any]) -> None:
        if self.contamination is None:
            return
        from datatrove.data import Document

        for message in _all_messages(example):
            document = Document(message["content"], "")
            if self.contamination.filter(document) is not True:
                raise ConversationError("contaminated", document.metadata.get("filter_detail", ""))

    def _replace_pii(self, example: dict[str, Any]) -> tuple[dict[str, Any], Counter[str]]:
        replaced: Counter[str] = Counter()

        def replace(value: Any) -> Any:
            if isinstance(value, str):
                value, found = self.pii.replace(value)
                replaced.update(found)
                return value
            if isinstance(value, list):
                return [replace(item) for item in value]
            return {key: replace(item) for key, item in value.items()} if isinstance(value, dict) else value

        def replace_in(turn: Message) -> Message:
            return {key: replace(item) if key in ("content", "tool_calls") else item for key, item in turn.items()}

        columns = (column for column in KINDS[self.kind] if column != "label")
        return example | {column: list(map(replace_in, example[column])) for column in columns}, replaced


def _digest(value: Any) -> bytes:
    """Hash of what messages say: of their text in Unicode's composed form, with single spaces."""

    def normalize(item: Any) -> Any:
        if isinstance(item, str):
            return " ".join(unicodedata.normalize("NFC", item).split())
        if isinstance(item, list):
            return [normalize(part) for part in item]
        return {key: normalize(part) for key, part in item.items()} if isinstance(item, dict) else item

    text = json.dumps(normalize(value), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]


def split_of(example: Mapping[str, Any], validation_fraction: float) -> str:
    """`train` or `validation`, by a hash of the first user turn: the same one whatever else is added.

    Conversations that begin alike are thus in one split, and an answer of validation is not seen in training.
    """
    first = next(turn["content"] for turn in _all_messages(example) if turn["role"] == "user")
    value = int.from_bytes(_digest(first)[:8], "big")
    return "validation" if value < int(validation_fraction * 2**64) else "train"


@dataclass
class Summary:
    """What was read, kept and dropped.

    Attributes:
        kind: One of `KINDS`.
        sources: Of each: `name`, `license`, `url`, `format`, `rows` read, `conversations` in them, and those `kept`.
        kept: Conversations per split.
        removed: Conversations per reason.
        examples: Of each reason, the first removed ones, as they are written.
        personal_data: Replacements per kind, in the kept conversations.
        evaluation_sets: What `build_index` said of them.
        turns: Number of turns, without the system's, to conversations. A pair counts by its chosen answer.
        characters: Of each kept conversation.
        samples: Kept conversations drawn by their hash: `(hash, example)`.
    """

    kind: str
    sources: list[dict[str, Any]]
    kept: Counter[str] = field(default_factory=Counter)
    removed: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    personal_data: Counter[str] = field(default_factory=Counter)
    evaluation_sets: dict[str, Any] = field(default_factory=dict)
    turns: Counter[int] = field(default_factory=Counter)
    characters: list[int] = field(default_factory=list)
    samples: list[tuple[bytes, dict[str, Any]]] = field(default_factory=list)

    @property
    def conversations(self) -> int:
        return sum(source["conversations"] for source in self.sources)

    @property
    def licenses(self) -> list[str]:
        return sorted({source["license"] for source in self.sources if source["kept"]})

    def counts(self) -> dict[str, Any]:
        """For the lineage."""
        return {
            "kind": self.kind,
            "rows": sum(source["rows"] for source in self.sources),
            "conversations": self.conversations,
            "kept": {split: self.kept[split] for split in SPLITS},
            "removed": dict(self.removed.most_common()),
            "sources": self.sources,
            "personal_data": dict(self.personal_data.most_common()),
            "evaluation_sets": self.evaluation_sets,
        }

    def add_kept(self, example: dict[str, Any], digest: bytes, split: str) -> None:
        answer = "messages" if self.kind == "messages" else "chosen" if self.kind == "preference" else "completion"
        messages = [*example.get("prompt", []), *example[answer]]
        self.kept[split] += 1
        self.turns[sum(turn["role"] != "system" for turn in messages)] += 1
        self.characters.append(sum(len(turn["content"]) for turn in messages))
        self.samples = heapq.nsmallest(5, [*self.samples, (digest, example)], key=lambda sample: sample[0])

    def add_removed(self, row: dict[str, str]) -> None:
        self.removed[row["reason"]] += 1
        examples = self.examples.setdefault(row["reason"], [])
        if len(examples) < 3:
            examples.append(row)


def prepare(
    sources: Sequence[ConversationSource],
    folder: Path,
    *,
    pii: Sequence[str],
    pii_regions: Sequence[str],
    evaluation_sets: Sequence[Mapping[str, Any]],
    n_grams: int,
    validation_fraction: float,
    strict: bool,
) -> Summary:
    """Write `data/{train,validation}-00000.parquet`, `removed/<reason>/`, `report.md` and the dataset card.

    A removed row is there as JSON, its personal data replaced as in the others. The hashes of all conversations are
    held in memory, about 100 bytes each.

    Args:
        sources: What to read; all must make one kind of dataset.
        folder: Where to write.
        pii: Kinds of personal data to replace.
        pii_regions: Whose national phone numbers are replaced.
        evaluation_sets: Conversations that share an n-gram with one are removed (`hfchat.data.decontamination`).
        n_grams: Words of an n-gram.
        validation_fraction: Share of the validation split.
        strict: Make a row that is malformed an error.

    Raises:
        UserError: If the sources make different kinds of dataset, a split comes out empty, or for what cannot be read.
        RuntimeError: If the numbers of conversations read, kept and removed do not agree.
    """
    formats = [source.find_format() for source in sources]
    kinds = {FORMATS[format][0]: source["path"] for format, source in zip(formats, sources, strict=True)}
    if len(kinds) > 1:
        each = ", ".join(f"{path} makes {kind}" for kind, path in kinds.items())
        raise UserError(f"sources: one run makes one kind of dataset, but {each}; give each kind a run of its own")
    (kind,) = kinds
    for leftover in ("data", "removed"):  # of an interrupted run
        remove_tree(folder / leftover)
    with tempfile.TemporaryDirectory() as scratch:
        index_folder = None
        evaluation = {}
        if evaluation_sets:
            from hfchat.data.decontamination import build_index

            index_folder = f"{scratch}/index"
            evaluation = build_index(evaluation_sets, index_folder, n_grams)
        cleaner = Cleaner(kind, pii, pii_regions, index_folder, n_grams)
        about = [
            {"name": source.name, "license": source.license, "url": source.get("url", ""), "format": format}
            | {"rows": 0, "conversations": 0, "kept": 0}
            for format, source in zip(formats, sources, strict=True)
        ]
        summary = Summary(kind, about, evaluation_sets=evaluation)
        with _Outputs(folder, Path(scratch), kind) as outputs:
            for source, of_source in zip(sources, summary.sources, strict=True):
                rows = tqdm(source.rows(), desc=source.name, unit=" rows", disable=None)
                _clean_source(source, of_source, rows, cleaner, summary, outputs, validation_fraction, strict)
        summary.personal_data = cleaner.replaced
        for split in SPLITS:
            if not summary.kept[split] and (split == "train" or validation_fraction):
                raise UserError(
                    f"the {split} split came out empty ({summary.conversations} conversations read, removed: "
                    f"{dict(summary.removed)}); add sources, or change validation_fraction"
                )
        outputs.write_splits(summary.kept)
    _check_counts(folder, summary)
    (folder / "report.md").write_text(report(summary), encoding="utf-8")
    (folder / "README.md").write_text(card(summary), encoding="utf-8")
    return summary


def _clean_source(
    source: ConversationSource,
    of_source: dict[str, Any],
    rows: Iterator[Row],
    cleaner: Cleaner,
    summary: Summary,
    outputs: "_Outputs",
    validation_fraction: float,
    strict: bool,
) -> None:
    format = of_source["format"]
    for row in rows:
        of_source["rows"] += 1
        for conversation in expand(format, row):
            of_source["conversations"] += 1
            try:
                example, digest = cleaner.clean(convert(format, conversation, source))
            except ConversationError as rejected:
                if strict and rejected.reason == "malformed":
                    raise UserError(f"sources: {conversation.place}: {rejected.detail}") from rejected
                text, _ = cleaner.pii.replace(_row_text(conversation.value))
                detail, _ = cleaner.pii.replace(_encodable(rejected.detail))
                removed = {"row": text, "reason": rejected.reason, "detail": detail, "place": conversation.place}
                summary.add_removed(removed)
                outputs.write_removed({**removed, "source": source.name})
            else:
                split = split_of(example, validation_fraction)
                of_source["kept"] += 1
                summary.add_kept(example, digest, split)
                outputs.write_kept(example | {"source": source.name}, split)


def _row_text(value: Any) -> str:
    return _encodable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


class _Outputs:
    """The Parquet files.

    Kept conversations wait in a scratch file until all are known: only then it is clear whether any has tool calls,
    and the columns that these need are left out of datasets without.
    """

    def __init__(self, folder: Path, scratch: Path, kind: str):
        self.folder, self.scratch, self.kind = folder, scratch, kind
        self.has_tools = False
        self._kept = {split: (scratch / f"{split}.jsonl").open("w", encoding="utf-8") for split in SPLITS}
        self._removed: dict[str, Any] = {}

    def __enter__(self) -> "_Outputs":
        return self

    def __exit__(self, *exception: object) -> None:
        for file in self._kept.values():
            file.close()
        for writer, stream in self._removed.values():
            writer.finalize(close_stream=False)
            stream.close()

    def write_kept(self, example: dict[str, Any], split: str) -> None:
        self.has_tools |= bool(example.get("tools")) or any(len(turn) > 2 for turn in _all_messages(example))
        self._kept[split].write(json.dumps(example, ensure_ascii=False) + "\n")

    def write_removed(self, row: dict[str, str]) -> None:
        from datasets import Features, Value

        if row["reason"] not in self._removed:
            features = Features(dict.fromkeys(("row", "reason", "detail", "place", "source"), Value("string")))
            path = self.folder / "removed" / row["reason"] / "00000.parquet"
            self._removed[row["reason"]] = _parquet_writer(path, features)
        self._removed[row["reason"]][0].write(row)

    def write_splits(self, kept: Mapping[str, int]) -> None:
        from datasets import Features, Json, List, Value

        text = Value("string")
        message = {"role": text, "content": text}
        if self.has_tools:
            message |= {"tool_calls": Json(), "tool_call_id": text, "name": text}
        columns = {name: Value("bool") if name == "label" else List(dict(message)) for name in KINDS[self.kind]}
        features = Features(columns | {"source": text} | ({"tools": Json()} if self.has_tools else {}))
        for split in SPLITS:
            if not kept[split]:
                continue
            writer, stream = _parquet_writer(self.folder / "data" / f"{split}-00000.parquet", features)
            with stream, (self.scratch / f"{split}.jsonl").open(encoding="utf-8") as lines:
                for line in lines:
                    row = dict.fromkeys(features) | json.loads(line)
                    for name in KINDS[self.kind]:
                        if name != "label":
                            row[name] = [dict.fromkeys(message) | turn for turn in row[name]]
                    writer.write(row)
                writer.finalize(close_stream=False)


def _parquet_writer(path: Path, features: Any) -> tuple[Any, IO[bytes]]:
    from datasets.arrow_writer import ParquetWriter

    path.parent.mkdir(parents=True, exist_ok=True)
    stream = path.open("wb")
    return ParquetWriter(features=features, stream=stream, writer_batch_size=1000), stream


def _check_counts(folder: Path, summary: Summary) -> None:
    """Hold the files against what was read; each conversation must be in one of them."""
    import pyarrow.parquet as pq

    written = 0
    for file in (*(folder / "data").glob("*.parquet"), *(folder / "removed").glob("*/*.parquet")):
        with file.open("rb") as stream:
            written += pq.ParquetFile(stream).metadata.num_rows
    if written != summary.conversations:
        raise RuntimeError(f"{summary.conversations} conversations were read, but {written} are in the files")


def report(summary: Summary) -> str:
    """What was kept and dropped, in Markdown."""
    kept, conversations = sum(summary.kept.values()), summary.conversations
    lines = [
        "# Conversations\n",
        f"{conversations:,} conversations were read, {kept:,} kept ({kept / max(conversations, 1):.1%}): "
        f"{', '.join(f'{summary.kept[split]:,} for {split}' for split in SPLITS)}. Kind: {summary.kind}.\n",
        "## Sources\n",
        *_source_table(summary),
        "\n## Removed\n",
        *_table(
            ["reason", "conversations", "share"],
            [(name, f"{n:,}", f"{n / conversations:.2%}") for name, n in summary.removed.most_common()],
        ),
        "\nEach removed one is in `removed/<reason>/`.",
    ]
    for reason, _ in summary.removed.most_common():
        lines.append(f"\n### {reason}\n")
        for row in summary.examples[reason]:
            detail = f": {_cell(row['detail'], 300)}" if row["detail"] else ""
            lines.append(f"{_cell(row['place'])}{detail}\n\n{_fenced(row['row'])}\n")
    replaced = [(name, f"{n:,}") for name, n in summary.personal_data.most_common()]
    lines += ["\n## Personal data replaced\n", *_table(["kind", "times"], replaced)]
    sets = [
        (name, f"{found['rows']:,}", f"{found['n_grams']:,}", f"{found['too_short']:,}")
        for name, found in summary.evaluation_sets.items()
    ]
    lines += ["\n## Evaluation sets kept out\n", *_table(["set", "rows", "n-grams", "rows too short to find"], sets)]
    turns = [(f"{turns}", f"{n:,}", f"{n / kept:.1%}") for turns, n in sorted(summary.turns.items())]
    lines += ["\n## Turns of a conversation\n", *_table(["turns", "conversations", "share"], turns)]
    ordered = sorted(summary.characters)
    lengths = [
        (name, f"{ordered[min(int(share * len(ordered)), len(ordered) - 1)]:,}")
        for name, share in (
            ("shortest", 0),
            ("10%", 0.1),
            ("50%", 0.5),
            ("90%", 0.9),
            ("99%", 0.99),
            ("longest", 1),
        )
    ]
    lines += ["\n## Characters of a conversation\n", *_table(["share that is shorter", "characters"], lengths)]
    lines.append("\n## Kept conversations, drawn at random\n")
    for _, example in summary.samples:
        lines.append(f"{_fenced(_plain(example))}\n")
    return "\n".join(lines)


def card(summary: Summary) -> str:
    """The dataset card; its header tells `datasets.load_dataset` where the splits are."""
    header = {
        "license": [license.lower() for license in summary.licenses],
        "task_categories": ["text-generation"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [
                    {"split": split, "path": f"data/{split}-*.parquet"} for split in SPLITS if summary.kept[split]
                ],
            }
        ],
    }
    lines = [
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n\n# Conversations\n",
        "Made by `recipes/prepare_conversations.py` of hfchat; `lineage.json` holds the settings and versions, "
        "`report.md` what was kept and what was dropped.\n",
        '```python\nfrom datasets import load_dataset\n\nconversations = load_dataset("path/of/this/folder")\n```\n',
        f"Columns: {', '.join(f'`{column}`' for column in (*KINDS[summary.kind], 'source'))}, in TRL's conversational "
        f"format for {summary.kind} data.\n",
        *_table(["split", "conversations"], [(split, f"{summary.kept[split]:,}") for split in SPLITS]),
        "\n## Sources\n",
        *_source_table(summary),
        "\nEach conversation keeps the licence of its source; the collection as a whole has no other.\n",
        f"{summary.conversations:,} conversations were read. Removed, each kept with its reason in `removed/`:\n",
        *_table(["reason", "conversations"], [(name, f"{n:,}") for name, n in summary.removed.most_common()]),
    ]
    return "\n".join(lines) + "\n"


def _source_table(summary: Summary) -> list[str]:
    rows = [
        (f"[{_cell(s['name'])}]({s['url']})" if s["url"] else _cell(s["name"]), _cell(s["license"]), s["format"],
         f"{s['rows']:,}", f"{s['conversations']:,}", f"{s['kept']:,}")
        for s in summary.sources
    ]  # fmt: skip
    return _table(["source", "licence, as it states it", "format", "rows", "conversations", "kept"], rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return ["None."]
    rules = ["---:" if re.fullmatch(r"[\d,.]+%?", cell) else "---" for cell in rows[0]]
    lines = (" | ".join(cells) for cells in (header, rules, *rows))
    return [f"| {line} |" for line in lines]


def _cell(text: str, limit: int = 200) -> str:
    return " ".join(text.split())[:limit].replace("|", "\\|")


def _fenced(text: str, limit: int = 1500) -> str:
    text = text if len(text) <= limit else f"{text[:limit]}…"
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"


def _plain(example: Mapping[str, Any]) -> str:
    parts = []
    for column in ("messages", "prompt", "completion", "chosen", "rejected"):
        for turn in example.get(column, []):
            who = turn["role"] if column in ("messages", "prompt") else f"{turn['role']}, {column}"
            calls = json.dumps(turn["tool_calls"], ensure_ascii=False) if turn.get("tool_calls") else ""
            parts.append(f"[{who}]\n{turn['content']}{calls}")
    return "\n\n".join(parts + ([f"[label] {example['label']}"] if "label" in example else []))
