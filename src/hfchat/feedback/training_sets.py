"""The datasets that a model learns from: rows of what was curated, rows to replay beside them, and their files."""

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any

from hfchat.chat import Json
from hfchat.dataset import as_before_arrow, conversation_features, load_split
from hfchat.errors import UserError
from hfchat.feedback.curation_report import COLUMNS, DatasetSummary
from hfchat.messages import arguments_as_text, parse_tools
from hfchat.safety.guards import Guards
from hfchat.safety.guards_file import load_guards
from hfchat.safety.judges import GuardError
from hfchat.storage import remove_tree

_ABOUT = ("source", "answer_id", "feedback_id")  # columns that say where a row is from
_REPLAY_SEED = 0  # the same rows for the same feedback

TrainingRow = dict[str, object]  # the columns of its dataset, and `_ABOUT`


@contextmanager
def finder_of_unsafe(guards_file: str) -> Iterator[Callable[[str], list[str]]]:
    """What gives the categories of what guards find in a text, as if it were an answer of a model.

    Args:
        guards_file: See `hfchat.safety.guards_file.load_guards`.

    Raises:
        UserError: If the guards cannot be loaded, or one of them fails.
    """
    guards = load_guards(guards_file)
    with asyncio.Runner() as runner:
        yield lambda text: runner.run(_find_unsafe(guards, text))
        runner.run(guards.close())


async def _find_unsafe(guards: Guards, text: str) -> list[str]:
    stream = guards.answer()
    try:
        await stream.push(text)
        await stream.finish()
    except GuardError as error:
        raise UserError(f"guards: {error}") from error
    return list(chain.from_iterable(finding.categories for finding in stream.findings))


def replay(name: str, dataset: str, count: int, may_be_learned: Callable[[TrainingRow], bool]) -> list[TrainingRow]:
    """Rows of what is not to be forgotten.

    Args:
        name: The dataset that they come beside, one of `COLUMNS`.
        dataset: A folder, a file or a Hub id with the same columns.
        count: At most so many.
        may_be_learned: Whether a row's prompt is not one whose feedback is held out.
    """
    rows = load_split(dataset, "train", *COLUMNS[name]).shuffle(seed=_REPLAY_SEED)
    columns = [column for column in (*COLUMNS[name], "tools") if column in rows.column_names]
    schema = rows.features.arrow_schema
    about = {"source": "replay", "answer_id": "", "feedback_id": ""}
    whole = (as_before_arrow(row, schema) for row in rows)
    examples = ({column: row[column] for column in columns} for row in whole)
    return [row | about for row in islice(filter(may_be_learned, examples), count)]


def write_splits(name: str, kept: Mapping[str, Sequence[TrainingRow]], folder: Path) -> DatasetSummary:
    """Write the splits that are not empty, `data/<split>-00000.parquet`. Without any row there is no folder.

    Args:
        name: Which dataset, one of `COLUMNS`.
        kept: The rows of each split.
        folder: Where to write; what an interrupted run left there is removed.
    """
    from datasets import Dataset, Features, Value

    # What no row has is no column, and no field of a message.
    everything = list(chain.from_iterable(kept.values()))
    values = chain.from_iterable([row[column] for column in COLUMNS[name]] for row in everything)
    messages = chain.from_iterable(map(_messages, values))
    has_tools = any(row.get("tools") for row in everything)
    columns = conversation_features(COLUMNS[name], set().union(*messages), has_tools)
    features = Features(columns | dict.fromkeys(_ABOUT, Value("string")))
    summary = DatasetSummary({split: len(rows) for split, rows in kept.items()}, has_tools=has_tools)
    remove_tree(folder)
    for split, read in kept.items():
        if rows := [_written(row) for row in read]:
            summary.sources.update(str(row["source"]) for row in rows)
            file = folder / "data" / f"{split}-00000.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            data = {column: [row.get(column) for row in rows] for column in features}
            summary.sizes[split] = Dataset.from_dict(data, features=features).to_parquet(file)
            summary.download_size += file.stat().st_size
    return summary


def _messages(value: Any) -> list[Any]:
    """The messages of a column; none of one that holds something else."""
    return value if isinstance(value, list) else []


def _written(row: TrainingRow) -> TrainingRow:
    """The row as a file holds it: tools, and the arguments of calls that are not JSON yet, are JSON in a text."""
    columns = {
        column: [_written_turn(turn) for turn in value] for column, value in row.items() if isinstance(value, list)
    }
    tools = parse_tools(row.get("tools"))
    return row | columns | ({"tools": json.dumps(tools, ensure_ascii=False)} if tools else {})


def _written_turn(turn: Json) -> Json:
    calls = []
    for call in _messages(turn.get("tool_calls")):
        function = call.get("function") or call
        written = arguments_as_text(function["arguments"])
        calls.append({**call, "function": {"name": function["name"], "arguments": written}})
    return {**turn, "tool_calls": calls} if calls else turn
