"""Facts: is an answer right, does the model say that it does not know, or is it wrong?"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from hfchat.chat import Json
from hfchat.errors import UserError
from hfchat.evaluation.bootstrap import Statistics
from hfchat.evaluation.records import by_group, read_records, write_records
from hfchat.evaluation.task import Example, Measured, Record, read_rows
from hfchat.evaluation.tasks.answers import Answers
from hfchat.evaluation.tasks.tools import shares
from hfchat.results import Estimate, Metric

FACT, UNKNOWN = "fact", "unknown"
_KINDS = (FACT, UNKNOWN, "ordinary")
Outcome = Literal["right", "declined", "wrong"]

# By these words an answer says that it does not know.
DECLINES = r"\b(do(es)? not|do(es)?n['’]t|cannot|can['’]t) (know|answer)\b"

_METRICS = {
    "right": Metric("Facts right", "higher", ".1%"),
    "wrong": Metric("Wrong facts", "lower", ".1%"),
    "declined": Metric("Facts declined", "lower", ".1%"),
    "unknown_declined": Metric("Unknown questions declined", "higher", ".1%"),
}


@dataclass
class Facts(Answers):
    """Answers to questions, each checked by patterns, and compared with the reference as in `answers`.

    An answer to a question of kind `fact` has one of three outcomes. It is right if all patterns of `must` and none of
    `must_not` occur in it, and it does not say that it does not know. It declines if it says so, and not all of `must`
    and none of `must_not` occur. Anything else is wrong; so is an answer that has the fact and says that it does not
    know. An answer to a question of kind `unknown` declines if it says so and none of `must_not` occurs.

    Attributes:
        dataset_name: Folder, file or Hub id with `messages`, the last of which is the reference, with a `kind`
            (`fact`, `unknown`, or `ordinary`, which is not asked) and with `must`, a list of regular expressions that
            ignore case and whose dot is any character. It may have `must_not`, such a list, and `fact` and `id`, for
            the tables.
        max_samples: Take only the first so many of the rows that are asked.
        declines: The regular expression by which an answer says that it does not know.
        metrics: Names of those of `answers` to measure beside the facts.
        headline: The one of all these metrics that the verdict reads.
    """

    kind = "facts"
    columns = _METRICS | Answers.columns
    limits = (
        "Patterns find what they name; what else an answer says is not read. An answer in other words than they "
        "foresee counts as wrong.",
        " ".join(Answers.limits),
    )
    group_label = "fact"

    prompt: str | None = field(default=None, init=False)
    references: str | None = field(default=None, init=False)
    system: str | None = field(default=None, init=False)
    max_new_tokens: int = 64
    headline: str = "right"
    declines: str = DECLINES

    def __post_init__(self) -> None:
        self.metrics = list(dict.fromkeys([*_METRICS, *self.metrics]))
        super().__post_init__()
        try:
            re.compile(self.declines)
        except re.error as error:
            raise ValueError(f"declines: {self.declines!r} is not a valid regular expression ({error})") from error

    def prepare(self) -> None:
        columns = ("messages", "kind", "must")
        rows = read_rows(self.dataset_name, self.split, columns, None, config_name=self.dataset_config_name)
        examples = [self._checked(row, place) for row, place in rows]
        asked = [one for one in examples if one.info["kind"] in (FACT, UNKNOWN)]
        if not asked:
            raise UserError(f"{self.dataset_name} ({self.split}): no row is of kind {FACT} or {UNKNOWN}")
        self.examples = asked[: self.max_samples]

    def _checked(self, row: Json, place: str) -> Example:
        kind, patterns = row["kind"], {key: _patterns(row, key, place) for key in ("must", "must_not")}
        if kind not in _KINDS:
            raise UserError(f"{place}: 'kind' must be {', '.join(_KINDS[:-1])} or {_KINDS[-1]}, not {kind!r}")
        if kind == FACT and not patterns["must"]:
            raise UserError(f"{place}: 'must' is empty; write a pattern by which a right answer is known")
        group = str(row.get("fact") or kind) if kind == FACT else kind
        return replace(
            self._from_messages(row, place), group=group, info={"id": row.get("id"), "kind": kind, **patterns}
        )

    def measure(self, model: str, folder: Path) -> Measured:
        compared = super().measure(model, folder)
        file = folder / f"{model}.jsonl"
        records = read_records(file)
        for record in records:
            record.scores |= _scores(record.info["kind"], self.outcome(record.text, record.info))
        write_records(file, records)
        groups = by_group(records)
        return Measured(
            {**self._shares(records), **compared.statistics},
            {group: self._shares(own) for group, own in groups.items()},
        )

    def outcome(self, answer: str, info: Json) -> Outcome:
        """What an answer is, by the `kind`, `must` and `must_not` of its row."""
        declines, *must = (_occurs(pattern, answer) for pattern in (self.declines, *info["must"]))
        if any(_occurs(pattern, answer) for pattern in info["must_not"]):
            return "wrong"
        if info["kind"] == UNKNOWN:
            return "declined" if declines else "wrong"
        if declines:
            return "wrong" if all(must) else "declined"
        return "right" if all(must) else "wrong"

    def _shares(self, records: Sequence[Record]) -> dict[str, Statistics]:
        return shares(records, _METRICS, f"share|patterns of the rows|declines:{self.declines}")

    def in_words(self, scores: Mapping[str, Estimate]) -> str:
        parts = []
        if "right" in scores:
            right, wrong = scores["right"], scores["wrong"]
            parts.append(f"{_count(right)} of {right.scored} facts right, {_count(wrong)} wrong")
        if unknown := scores.get("unknown_declined"):
            parts.append(f"{_count(unknown)} of {unknown.scored} questions without an answer declined")
        return "; ".join(parts)

    def details(self, models: Sequence[str], folder: Path) -> dict[str, Any]:
        """As of `answers`, and every answer that is not right, by model and row."""
        missed = {}
        for model in models:
            failed = [record for record in read_records(folder / f"{model}.jsonl") if not _is_right(record)]
            if failed:
                missed[model] = {_named(record): self._told(record) for record in failed}
        tables = {"Answers that are not right": missed} if missed else {}
        return {**super().details(models, folder), **tables}

    def _told(self, record: Record) -> dict[str, str]:
        info, outcome = record.info, self.outcome(record.text, record.info)
        wanted = [*info["must"], *(f"not {pattern}" for pattern in info["must_not"])]
        return {
            "question": record.prompt if isinstance(record.prompt, str) else record.prompt[-1]["content"],
            "answer": record.text,
            "what had to occur": "; ".join(wanted) if info["kind"] == FACT else "that it does not know",
            "outcome": outcome,
        }


def _patterns(row: Json, key: str, place: str) -> list[str]:
    patterns = row.get(key) or []
    if not isinstance(patterns, list) or not all(isinstance(one, str) for one in patterns):
        raise UserError(f"{place}: '{key}' must be a list of regular expressions, not {patterns!r:.60}")
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f"{place}: '{key}': {pattern!r} is not a valid regular expression ({error})") from error
    return patterns


def _occurs(pattern: str, answer: str) -> bool:
    return re.search(pattern, answer, re.IGNORECASE | re.DOTALL) is not None


def _scores(kind: str, outcome: Outcome) -> dict[str, float]:
    if kind == UNKNOWN:
        return {"unknown_declined": float(outcome == "declined")}
    return {name: float(outcome == name) for name in ("right", "wrong", "declined")}


def _is_right(record: Record) -> bool:
    return bool(record.scores["unknown_declined" if record.info["kind"] == UNKNOWN else "right"])


def _named(record: Record) -> str:
    """As the report counts examples, because ids need not differ."""
    id = record.info["id"]
    return f"{record.index + 1}" if id is None else f"{record.index + 1}, {id}"


def _count(share: Estimate) -> int:
    return round(share.score * (share.scored or 0))
