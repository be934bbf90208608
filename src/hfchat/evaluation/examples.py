"""The examples that a report shows: where a model gained and lost most, and where all did worst."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hfchat.evaluation.records import read_records
from hfchat.evaluation.task import Record
from hfchat.results import TaskResult

_OF_EACH_KIND = 2


@dataclass(frozen=True)
class Shown:
    """An example with what every model said to it.

    Attributes:
        why: Why it is shown: `"Largest gain of tuned over base"`.
        records: Model to its record.
        metric: Whose score it was chosen by; None if its records have no scores.
    """

    why: str
    records: dict[str, Record]
    metric: str | None

    @property
    def example(self) -> Record:
        """The record of any of the models, for what they share."""
        return next(iter(self.records.values()))

    @property
    def turns(self) -> list[tuple[str, str]]:
        """The prompt as pairs of role and text."""
        if isinstance(self.example.prompt, str):
            return [("text", self.example.prompt)] if self.example.prompt else []
        return [(turn["role"], turn["content"]) for turn in self.example.prompt]

    def score(self, model: str) -> float | None:
        return self.records[model].scores.get(self.metric or "")

    def likelihoods(self, model: str) -> str | None:
        """A line for each target and its loss, where nothing was generated."""
        record = self.records[model]
        lines = [f"{loss:.2f} nats: {text}" for loss, text in zip(record.losses, record.targets, strict=False)]
        return "\n".join(lines) or None


def choose_examples(task: TaskResult, folder: Path) -> list[Shown]:
    """Choose from the records of a task, the same ones whenever they are the same.

    Args:
        task: What it measured.
        folder: With the files that its `records` name. What is not there is not shown.
    """
    files = {model: folder / file for model, file in task.records.items()}
    records = {model: {one.index: one for one in read_records(file)} for model, file in files.items()}
    records = {model: own for model, own in records.items() if own}
    if not records:
        return []
    shared = sorted(set.intersection(*(set(own) for own in records.values())))
    metric = _metric(task, records)
    rows = {index: {model: own[index] for model, own in records.items()} for index in shared}
    chosen: dict[int, str] = {}
    if metric is None:
        chosen = dict.fromkeys(shared[:_OF_EACH_KIND], "Example")
    else:
        better = task.metrics[metric].better
        rows = {index: row for index, row in rows.items() if all(metric in one.scores for one in row.values())}
        sign = -1 if better == "lower" else 1
        scores = {
            index: {model: sign * one.scores[metric] for model, one in row.items()} for index, row in rows.items()
        }
        for why, index in [*_extremes_of_pairs(task, scores, better), *_extremes(scores, better)]:
            chosen.setdefault(index, why)
    return [Shown(why, rows[index], metric) for index, why in chosen.items()]


def _metric(task: TaskResult, records: Mapping[str, Mapping[int, Record]]) -> str | None:
    """Find the metric to choose by: the decisive one, or the first with scores of every model's single examples."""
    candidates = dict.fromkeys([task.decisive, *task.metrics])
    for metric in candidates:
        if all(any(metric in one.scores for one in own.values()) for own in records.values()):
            return metric
    return None


def _extremes_of_pairs(
    task: TaskResult, scores: Mapping[int, Mapping[str, float]], better: str | None
) -> Iterator[tuple[str, int]]:
    """Find where each model that was compared is furthest above the baseline, and furthest below."""
    over, under = ("gain", "loss") if better else ("rise", "fall")
    for comparison in task.comparisons:
        model, baseline = comparison.model, comparison.baseline
        gains = {
            index: row[model] - row[baseline] for index, row in scores.items() if model in row and baseline in row
        }
        for word, sign in ((over, -1), (under, 1)):
            furthest = sorted(gains, key=lambda index: (sign * gains[index], index))[:_OF_EACH_KIND]
            yield from (
                (f"Largest {word} of {model} against {baseline}", index)
                for index in furthest
                if sign * gains[index] < 0
            )


def _extremes(scores: Mapping[int, Mapping[str, float]], better: str | None) -> Iterator[tuple[str, int]]:
    """Find where all models together did worst; where there is one model, also where it did best."""
    if not better or not scores:
        return
    means = {index: sum(row.values()) / len(row) for index, row in scores.items()}
    ordered = sorted(means, key=lambda index: (means[index], index))
    if len(next(iter(scores.values()))) == 1:
        yield from (("Best", index) for index in ordered[::-1][:_OF_EACH_KIND])
        yield from (("Worst", index) for index in ordered[:_OF_EACH_KIND])
    else:
        yield from (("Worst of all models together", index) for index in ordered[:_OF_EACH_KIND])
