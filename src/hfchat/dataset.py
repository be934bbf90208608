"""Load one split of a dataset: a corpus made by a recipe, any other local folder or file, or a Hub id.

And what every stage that reads conversations asks of their messages, and how it tells them apart.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfchat.dataset_files import BUILDERS, readable, suffix_of
from hfchat.errors import UserError
from hfchat.lineage import describe

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

HELD_OUT_SHARE = 0.05  # of one file of conversations
ROLES = ("system", "user", "assistant")  # of a conversation in text alone
ROLES_WITH_TOOLS = (*ROLES, "tool")
# What a turn thought before its answer, by DeepSeek's and vLLM's name, OpenRouter's, and gpt-oss' and Anthropic's.
REASONING = ("reasoning_content", "reasoning", "thinking")
_UNWRITTEN = (*REASONING, "function_call", "refusal", "audio")


def load_split(
    dataset_name: str, split: str, *columns: str, config_name: str | None = None, streaming: bool = False
) -> "Dataset | IterableDataset":
    """`datasets.load_dataset` for one split, its failures as one line.

    A local file has no splits of its own: it is loaded whole, whatever `split` is asked for.

    Args:
        dataset_name: Folder, file (`.jsonl`, `.json`, `.parquet`, `.csv`, `.tsv`, `.txt`, also compressed), or Hub id.
            Text may be in UTF-8, UTF-16 or UTF-32, and a CSV have semicolons, tabs or bars. In a `.txt` file, what
            stands between empty lines is a row's `text`, or each line if there is no empty one.
        split: Name of the split.
        columns: Those that must be there; one at least.
        config_name: Configuration of a dataset that has several.
        streaming: Rows are read when they are iterated over.

    Raises:
        UserError: If there is no such dataset, split or column, or no row.
    """
    from datasets import config, load_dataset

    path = Path(dataset_name)
    options: dict[str, Any] = {"streaming": streaming}
    if path.exists() and not streaming:
        # datasets keys the cache of a local folder with a card by its path: rows changed in place would go unseen.
        options["cache_dir"] = str(Path(config.HF_DATASETS_CACHE) / "hfchat" / describe(path)["sha256"][:16])
    try:
        if path.is_file():
            if suffix_of(path) not in BUILDERS:
                raise UserError(f"dataset_name {dataset_name}: must be one of {', '.join(BUILDERS)}, or a folder")
            if suffix_of(path) == ".tsv":
                options["sep"] = "\t"
            file = str(readable(path))
            dataset = load_dataset(BUILDERS[suffix_of(path)], data_files=file, split="train", **options)
        else:
            _check_exists(dataset_name, columns[0])
            name = str(readable(path)) if path.is_dir() else dataset_name
            dataset = load_dataset(name, config_name, split=split, **options)
        first = next(iter(dataset), None)
        found = dataset.column_names or list(first or {})
    except UserError:
        raise
    except Exception as error:  # the errors of the builders have no common base
        raise UserError(f"dataset_name {dataset_name}: cannot load split '{split}': {_reason(error)}") from error
    if first is None:
        raise UserError(f"dataset_name {dataset_name}: split '{split}' is empty")
    for column in columns:
        if column not in found:
            raise UserError(f"dataset_name {dataset_name}: has no column '{column}', only {found}")
    return dataset


def load_text_splits(dataset_name: str, column: str) -> tuple["Dataset", "Dataset"]:
    """The documents of a corpus to learn from and to measure on; those without a text are counted and left out.

    Without a validation split, the first tenth, at most 1,000, is held out. Fewer than 10 documents
    are both, and that is said.

    Raises:
        UserError: As of `load_split`, or if the column does not hold texts.
    """
    train = without_nulls(load_split(dataset_name, "train", column), column, dataset_name)
    if has_split(dataset_name, "validation"):
        return train, without_nulls(load_split(dataset_name, "validation", column), column, dataset_name)
    held_out = min(1000, len(train) // 10)
    if held_out == 0:
        print(f"dataset_name {dataset_name}: fewer than 10 documents, so it is measured on what is learned from")
        return train, train
    return train.select(range(held_out, len(train))), train.select(range(held_out))


def without_nulls(rows: "Dataset", column: str, dataset_name: str) -> "Dataset":
    """The rows that have a text; how many have none is printed.

    Raises:
        UserError: If the column holds something else, or no text at all.
    """
    kind = getattr(rows.features[column], "dtype", "lists")
    if kind not in ("string", "large_string", "null"):
        raise UserError(f"dataset_name {dataset_name}: the column '{column}' must hold texts, not {kind}")
    if not rows.data.column(column).null_count:  # known without reading them
        return rows
    texts = [number for number, text in enumerate(rows[column]) if text is not None]
    missing = len(rows) - len(texts)
    if not texts:
        raise UserError(f"dataset_name {dataset_name}: the column '{column}' has no text in any of {missing:,} rows")
    if missing:
        first = next(number for number, text in enumerate([*texts, None]) if number != text)
        print(
            f"dataset_name {dataset_name}: {missing:,} of {len(rows):,} rows have nothing in the column '{column}' "
            f"(the first is row {first}, counted from 0); they are left out",
            flush=True,
        )
        return rows.select(texts)
    return rows


def load_conversation_splits(
    dataset_name: str, train_split: str, test_split: str, *, config_name: str | None = None
) -> tuple["Dataset", "Dataset"]:
    """The splits of a dataset of `messages` to learn from and to measure on.

    A local file has none: a twentieth of its conversations, one at least, is held out, chosen by a hash of the first
    user turn. Those that begin alike, but for white space, are on one side.

    Raises:
        UserError: As of `load_split`, or if all conversations of a file begin alike.
    """
    if not Path(dataset_name).is_file():
        train, test = (
            load_split(dataset_name, split, "messages", config_name=config_name) for split in (train_split, test_split)
        )
        return train, test
    rows = load_split(dataset_name, train_split, "messages")
    keys = [digest_of(" ".join(_first_asked(messages).split())) for messages in rows["messages"]]
    beginnings = sorted(set(keys))
    if len(beginnings) < 2:
        raise UserError(
            f"dataset_name {dataset_name}: its conversations all begin alike, so none can be held out to measure on; "
            "add others, or give a folder with train.jsonl and validation.jsonl"
        )
    held_out = set(beginnings[: max(1, round(HELD_OUT_SHARE * len(beginnings)))])
    sides = [[row for row, key in enumerate(keys) if (key in held_out) is wanted] for wanted in (False, True)]
    return rows.select(sides[0]), rows.select(sides[1])


def _first_asked(messages: Any) -> str:
    """The first user turn, or the whole row where that is not a conversation, which is named when it is tokenized."""
    turns = messages if isinstance(messages, list) else []
    asked = (turn.get("content") for turn in turns if isinstance(turn, dict) and turn.get("role") == "user")
    return str(next(asked, messages))


def has_split(dataset_name: str, split: str, *, config_name: str | None = None) -> bool:
    """Whether a dataset has a split of this name. A local file has none.

    Raises:
        UserError: If there is no such dataset.
    """
    from datasets import get_dataset_split_names

    if Path(dataset_name).is_file():
        return False
    _check_exists(dataset_name, "text")
    try:
        return split in get_dataset_split_names(dataset_name, config_name)
    except Exception as error:  # the errors of the builders have no common base
        raise UserError(f"dataset_name {dataset_name}: cannot be loaded: {_reason(error)}") from error


def _check_exists(dataset_name: str, column: str) -> None:
    path = Path(dataset_name)
    looks_local = path.is_absolute() or dataset_name.startswith(".") or dataset_name.count("/") > 1
    if (looks_local or suffix_of(path) in BUILDERS) and not path.is_dir():
        raise UserError(f"dataset_name {dataset_name}: no such file or folder{_hint(column)}")


def _reason(error: Exception) -> str:
    cause = error.__cause__ or error
    if isinstance(cause, StopIteration):  # of the JSON builder
        return "its files have no rows"
    first, *more = str(cause).strip().splitlines() or [type(error).__name__]
    if first.startswith("Config name is missing") and more:
        return f"it has several configurations, and dataset_config_name is not set. {more[0]}"
    return first


def find_fault(messages: Any, roles: Collection[str] = ROLES) -> tuple[str, str] | None:
    """What keeps `messages` from being a conversation that the assistant ends.

    Args:
        messages: List of `{"role", "content"}`. Where `roles` has `tool`, the assistant's turns may have `tool_calls`,
            a list of `{"name", "arguments"}` or `{"function": {"name", "arguments"}}`, and then need no content.
        roles: Those that may speak.

    Returns:
        A reason (`no_messages`, `bad_role`, `malformed`, `empty_turn`, `not_alternating` or `no_assistant_turn`) and
        what is wrong, in words. None for a conversation.
    """
    if not isinstance(messages, list) or not messages:
        return "no_messages", "has no messages; 'messages' must be a list of turns"
    called = False  # by the turn before, or by those before it whose results are given
    for position, turn in enumerate(messages):
        turn = turn if isinstance(turn, dict) else {}
        role, content, calls = turn.get("role"), turn.get("content"), turn.get("tool_calls")
        if role not in roles:
            *others, last = roles
            return "bad_role", f"turn {position} has the role {role!r}; it must be {', '.join(others)} or {last}"
        if calls and "tool" not in roles:
            return "bad_role", f"turn {position} ({role}) calls tools; it must be text alone"
        if calls and role != "assistant":
            return "bad_role", f"turn {position} ({role}) calls tools; only the assistant may"
        if calls and (fault := _find_fault_of_calls(calls)):
            return "malformed", f"turn {position} ({role}) {fault}"
        if not isinstance(content, str | None):
            return "malformed", (
                f"turn {position} ({role}) must have a text for its content, not {content!r:.40}; "
                "recipes/prepare_conversations.py joins the parts of messages"
            )
        if not calls and not (content or "").strip():
            return "empty_turn", f"turn {position} ({role}) has no content"
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
    """`check_messages`, and that the chat template writes all that the turns say: what it drops is not learned."""
    check_messages(messages, place, roles)
    for position, turn in enumerate(messages):
        if field := next((field for field in _UNWRITTEN if turn.get(field)), None):
            raise UserError(
                f"{place}: turn {position} ({turn['role']}) has '{field}', which the chat template does not write; "
                "recipes/prepare_conversations.py makes a conversation of it that is learned as it is meant"
            )
        if turn.get("weight") not in (None, 0, 1):
            raise UserError(f"{place}: turn {position} has the weight {turn['weight']!r}; it must be 0 or 1")
    if not any(turn["role"] == "assistant" and turn.get("weight") != 0 for turn in messages):
        raise UserError(f"{place}: every turn of the assistant has the weight 0, so there is nothing to learn")


def trim(text: str) -> str:
    """The text without white space at its end, without empty lines before it, and without one space before a line.

    Templates strip, or write the text as it is, so such white space would be learned by some models only. The
    indentation of the first line is content. A single space is what completions of OpenAI's older files begin with.
    """
    text = re.sub(r"\A(?:[^\S\n]*\n)+", "", text.rstrip())
    return text[1:] if re.match(r" \S", text) and "\n " not in text else text


def digest_of(value: Any, *, typed: bool = False) -> bytes:
    """Hash of what messages say, 16 bytes: of their text in Unicode's composed form.

    White space is content: code that is indented otherwise is another answer. Only what no reader sees does not count:
    how lines end, spaces at their ends, and what `trim` takes away.

    Args:
        value: Messages, or a text.
        typed: Two spaces within a line are one, as people type them by accident.
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
    """Tools as OpenAI's API has them, of a column that has them so, as JSON in a text, or as functions alone.

    Raises:
        ValueError: If they are anything else.
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


def _hint(column: str) -> str:
    if column in ("messages", "chosen", "label"):  # of conversations and preferences
        return ""
    return "; a corpus is made by `python recipes/prepare_data.py --config recipes/configs/demo/prepare_data.yaml`"
