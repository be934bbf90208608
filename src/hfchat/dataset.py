"""Load one split of a dataset: a corpus made by a recipe, any other local folder or file, or a Hub id."""

import json
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfchat.dataset_files import BUILDERS, readable, suffix_of
from hfchat.errors import UserError
from hfchat.lineage import describe
from hfchat.messages import digest_of

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, IterableDataset

HELD_OUT_SHARE = 0.05  # of one file of conversations


def load_split(
    dataset_name: str, split: str, *columns: str, config_name: str | None = None, streaming: bool = False
) -> "Dataset | IterableDataset":
    """Call `datasets.load_dataset` for one split, and turn its failures into one line.

    A local file has no splits of its own: it is loaded whole, whatever `split` is asked for.

    Args:
        dataset_name: Folder, file (`.jsonl`, `.json`, `.parquet`, `.csv`, `.tsv`, `.txt`, also compressed), or Hub id.
            Text may be in UTF-8, UTF-16 or UTF-32, and a CSV have semicolons, tabs or bars. In a `.txt` file, what
            stands between empty lines is a row's `text`, or each line if there is no empty one.
        split: Name of the split.
        columns: Columns that must be there, at least one.
        config_name: Configuration of a dataset that has several.
        streaming: Read rows only when they are iterated over.

    Raises:
        UserError: If the dataset, the split or a column is missing, or there are no rows.
    """
    from datasets import config, load_dataset

    path = Path(dataset_name)
    options: dict[str, Any] = {"streaming": streaming}
    if path.exists() and not streaming:
        # datasets keys the cache of a local folder with a card by its path: rows changed in place would go unseen.
        options["cache_dir"] = str(Path(config.HF_DATASETS_CACHE) / "hfchat" / describe(path)["sha256"][:16])
    # A file needs the builder for its suffix; folders and Hub ids find theirs. A builder fails at the first row only.
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
    # An empty split or a missing column would fail much later, and less clearly.
    if first is None:
        raise UserError(f"dataset_name {dataset_name}: split '{split}' is empty")
    for column in columns:
        if column not in found:
            raise UserError(f"dataset_name {dataset_name}: has no column '{column}', only {found}")
    return dataset


def load_text_splits(dataset_name: str, column: str) -> tuple["Dataset", "Dataset"]:
    """The documents of a corpus to learn from and to measure on. Those without a text are counted and left out.

    Without a validation split, the first tenth of the documents, at most 1,000, is held out. If there are fewer than
    10 documents, a message says that they serve for both.

    Raises:
        UserError: For the reasons of `load_split`, or if the column does not hold texts.
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
    """The rows that have a text; the number of the others is printed.

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
    dataset_name: str, train_split: str, test_split: str | None, *, config_name: str | None = None
) -> tuple["Dataset", "Dataset"]:
    """The splits of a dataset of `messages` to learn from and to measure on.

    A local file has no splits, so a twentieth of its conversations, at least one, is held out, chosen by a hash of the
    first user turn; also where `test_split` is None. Conversations that begin alike, except for white space, are on
    the same side.

    Raises:
        UserError: For the reasons of `load_split`, or if all conversations of a file begin alike.
    """
    if test_split is not None and not Path(dataset_name).is_file():
        train, test = (
            load_split(dataset_name, split, "messages", config_name=config_name) for split in (train_split, test_split)
        )
        return train, test
    rows = load_split(dataset_name, train_split, "messages", config_name=config_name)
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
    """The first user turn, or the whole row if it is not a conversation; tokenizing will name it."""
    turns = messages if isinstance(messages, list) else []
    asked = (turn.get("content") for turn in turns if isinstance(turn, dict) and turn.get("role") == "user")
    return str(next(asked, messages))


def as_before_arrow(value: Any, kind: "pa.DataType | pa.Schema") -> Any:
    """A value of a row as it was before Arrow had it.

    A struct of Arrow has the keys of all rows, with a null where a row lacks one: the arguments of every function, the
    fields of every turn. Such nulls are taken away. JSON in a column of `datasets.Json` is read, and its nulls stay.

    Args:
        value: A row, or what is in it.
        kind: Its type; for a row the schema.
    """
    import pyarrow as pa

    if value is None:
        return None
    if isinstance(kind, pa.Schema):
        return {column: as_before_arrow(item, kind.field(column).type) for column, item in value.items()}
    if isinstance(kind, pa.StructType):
        return {key: as_before_arrow(item, kind.field(key).type) for key, item in value.items() if item is not None}
    if isinstance(kind, pa.ListType | pa.LargeListType | pa.FixedSizeListType):
        return [as_before_arrow(item, kind.value_type) for item in value]
    if isinstance(kind, pa.JsonType) and isinstance(value, str):
        with suppress(ValueError):
            return json.loads(value)
    return value


def conversation_features(columns: Iterable[str], fields: Collection[str], has_tools: bool) -> dict[str, Any]:
    """The features of datasets of conversations, as their columns are written: those that hold messages, and `tools`.

    What differs in shape from row to row is JSON in a text, as TRL takes it: a column of their own would give each
    tool the parameters of all.

    Args:
        columns: Names; `label` holds a bool, and each other one messages.
        fields: Those that the messages have.
        has_tools: Whether there is a column `tools`.
    """
    from datasets import List, Value

    text = Value("string")
    call = {"id": text, "type": text, "function": {"name": text, "arguments": text}}
    types = {"role": text, "content": text, "reasoning_content": text, "tool_calls": List(call)}
    types |= {"tool_call_id": text, "name": text, "weight": Value("int64")}
    message = {field: type for field, type in types.items() if field in fields}
    features = {name: Value("bool") if name == "label" else List(dict(message)) for name in columns}
    return features | ({"tools": text} if has_tools else {})


def learned_rows(learned: Iterable[Sequence[int]], held_out: Iterable[Sequence[int]]) -> list[int]:
    """The rows of what is held out that are learned too; measuring on them would measure memory.

    Args:
        learned: Tokens of the rows to learn from.
        held_out: Tokens of the rows to measure on.
    """
    known = {tuple(ids) for ids in learned}
    return [row for row, ids in enumerate(held_out) if tuple(ids) in known]


def has_split(dataset_name: str, split: str, *, config_name: str | None = None) -> bool:
    """Whether a dataset has a split of this name. A local file has no splits.

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


def _hint(column: str) -> str:
    if column in ("messages", "chosen", "label"):  # of conversations and preferences
        return ""
    return "; a corpus is made by `python recipes/prepare_data.py --config recipes/configs/demo/prepare_data.yaml`"
