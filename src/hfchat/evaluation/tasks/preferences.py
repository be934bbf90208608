"""Pairs of answers of which people preferred one: does a model, and does it more than the baseline?"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from hfchat.chat import Chat, Json
from hfchat.errors import UserError
from hfchat.evaluation.asking import Asked, AskingTask, with_calls
from hfchat.evaluation.bootstrap import mean
from hfchat.evaluation.model import EvaluatedModel
from hfchat.evaluation.records import read_records, write_records
from hfchat.evaluation.task import Example, Measured, Record, read_rows
from hfchat.messages import arguments_as_json, parse_tools, with_arguments
from hfchat.results import Metric

_COLUMNS = ("prompt", "chosen", "rejected")


_METRICS = {
    "win_rate": Metric("Pairs won against the baseline", "higher", ".1%"),
    "accuracy": Metric("Chosen answer likelier", "higher", ".1%"),
    "margin": Metric("Log-likelihood of the chosen less that of the rejected answer, nats", "higher", ".2f"),
}


@dataclass
class Preferences(AskingTask):
    """Pairs that no model has learned from.

    A model's margin of a pair is the log-likelihood of the chosen answer less that of the rejected one. It wins a pair
    if its margin is greater than the baseline's: the accuracy of DPO's implicit reward, with the baseline as the
    reference (arXiv:2305.18290, equation 5), so that an answer that is short, or likely anyway, decides nothing.

    Attributes:
        dataset_name: Folder, file or Hub id with `prompt`, `chosen` and `rejected`, all `[{"role", "content"}]`, as
            `recipes/align.py` takes them; and `tools`, if there are any.
        split: Name of its split.
        max_samples: Take only the first so many pairs.
    """

    kind = "preferences"
    columns = needs_weights = _METRICS
    limits = (
        "It is told by likelihoods of answers that were written by somebody else, not by what the model itself says.",
        "Those who gave feedback are not all who use the model, and pairs of one conversation depend on each other.",
        "Of two answers the shorter one is likelier to any model: compare models by the pairs won, not by accuracies.",
    )
    headline = "win_rate"

    name: str
    dataset_name: str
    split: str = "validation"
    max_samples: int | None = None

    def __post_init__(self) -> None:
        self.require_at_least(1, "max_samples")

    @property
    def title(self) -> str:
        return f"Preferences: {self.name}"

    def prepare(self) -> None:
        rows = read_rows(self.dataset_name, self.split, _COLUMNS, self.max_samples)
        read = [(_without_nulls(row), place) for row, place in rows]
        # The examples of a task are all chats, or none is.
        has_tools = any(map(_has_tools, (row for row, _ in read)))
        self.examples = [_chat_example(row, place) if has_tools else _example(row, place) for row, place in read]

    @property
    def source(self) -> str:
        return self.dataset_name

    def refusal(self, model: EvaluatedModel) -> str | None:
        return None if model.gives_losses else "a server gives no likelihoods of given answers"

    def asked(self, model: EvaluatedModel) -> Asked:
        return Asked(losses=True)

    def collect_jointly(self, models: Sequence[str], folder: Path) -> None:
        """Which pairs each model wins against the first one; by itself that is even with itself."""
        baseline = [_margin(record) for record in read_records(folder / f"{models[0]}.jsonl")]
        for model in models:
            records = read_records(folder / f"{model}.jsonl")
            for record, before in zip(records, baseline, strict=True):
                margin = _margin(record)
                won = 0.5 if margin == before else float(margin > before)
                record.scores = {"win_rate": won, "accuracy": float(margin > 0), "margin": margin}
            write_records(folder / f"{model}.jsonl", records)

    def measure(self, model: str, folder: Path) -> Measured:
        records = read_records(folder / f"{model}.jsonl")
        setting = "loglikelihood:answer with its end of turn|context:prompt under the model's template"
        return Measured(
            {name: mean([record.scores[name] for record in records], f"{name}|{setting}") for name in self.columns}
        )


def _margin(record: Record) -> float:
    chosen, rejected = record.losses
    return rejected - chosen


def _without_nulls(value: Any) -> Any:
    """A row without the fields that Arrow gives all turns because some have them."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return list(map(_without_nulls, value)) if isinstance(value, list) else value


def _has_tools(row: Json) -> bool:
    turns = chain.from_iterable(row[name] for name in _COLUMNS if isinstance(row.get(name), list))
    return bool(row.get("tools")) or any(isinstance(turn, dict) and turn.get("tool_calls") for turn in turns)


def _chat_example(row: Json, place: str) -> Example:
    """A pair whose turns may call functions."""
    columns = [name for name in _COLUMNS if isinstance(row[name], list)]  # `_example` refuses the others
    shown = {name: [_shown(turn) for turn in row[name]] for name in columns}
    example = _example({**row, **shown}, place)
    try:
        tools = parse_tools(row.get("tools"))
    except ValueError as error:
        raise UserError(f"{place}: 'tools': {error}") from error
    chat = Chat([_read(turn) for turn in row["prompt"]], tools)
    return replace(example, chat=chat, answers=[_read(row[name][0]) for name in ("chosen", "rejected")])


def _shown(turn: Any) -> Any:
    """A turn as text, its calls a line each."""
    if not isinstance(turn, dict) or not turn.get("tool_calls"):
        return turn
    functions = [call["function"] for call in turn["tool_calls"]]
    return {"role": turn["role"], "content": with_calls(turn.get("content") or "", functions)}


def _read(turn: Json) -> Json:
    """A turn as chat templates take it: its arguments as mappings."""
    if not turn.get("tool_calls"):
        return turn
    return {"content": "", **with_arguments(turn, arguments_as_json)}


def _example(row: Json, place: str) -> Example:
    for name in _COLUMNS:
        messages = row[name]
        if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
            raise UserError(f"{place}: {name} must be messages, [{{'role', 'content'}}], not {messages!r}")
        for number, one in enumerate(messages):
            if not isinstance(one.get("content"), str) or not one["content"].strip():
                raise UserError(f"{place}: {name}: message {number} has no content")
    answers = [row[name] for name in ("chosen", "rejected")]
    if any(len(answer) != 1 or answer[0].get("role") != "assistant" for answer in answers):
        raise UserError(f"{place}: chosen and rejected must be one message of the assistant each")
    targets = [answer[0]["content"] for answer in answers]
    info = {"source": row["source"]} if row.get("source") else {}
    return Example(prompt=row["prompt"], targets=targets, info=info, place=place)
