"""The rows of files at hand, in the splits and columns that lm-eval's tasks expect.

lm-eval calls these with a task's metadata; `data` comes from the task's entry in a suite, or from lm-eval's own
`--metadata data=FILE`.
"""

from typing import TYPE_CHECKING, Any

from hfchat.dataset import load_split
from hfchat.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

_EXAMPLES = 100  # rows that worked examples are drawn from


def gsm8k(data: str | None = None, **_: Any) -> "dict[str, Dataset]":
    """`question` and `answer`: `train` are the first 100 rows, `test` the others, without questions of the former."""
    rows = _read(data, "gsm8k_local", ("question", "answer"))
    examples = rows.select(range(min(_EXAMPLES, len(rows))))
    shown = {*examples["question"]}
    asked = [index for index, question in enumerate(rows["question"]) if question not in shown]
    if not asked:
        raise UserError(f"data {data}: needs more than the {_EXAMPLES} rows that worked examples are drawn from")
    return {"train": examples, "test": rows.select(asked)}


def crows_pairs(data: str | None = None, **_: Any) -> "dict[str, Dataset]":
    """`sent_more`, `sent_less` and `bias_type`: all rows are `test`."""
    return {"test": _read(data, "crows_pairs_local", ("sent_more", "sent_less", "bias_type"))}


def _read(data: str | None, task: str, columns: tuple[str, ...]) -> "Dataset":
    if data is None:
        raise UserError(f"data: {task} needs the file of its rows")
    rows = load_split(data, "train", *columns)
    for column in columns:
        for number, text in enumerate(rows[column], start=1):
            if not isinstance(text, str) or not text.strip():
                raise UserError(f"data {data}: row {number}: {column} must be a text, not {text!r}")
    return rows
