"""The verdict of an evaluation: which model is better at what, and where that is not shown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hfchat.intervals import CONFIDENCE
from hfchat.templates import change, figure

Outcome = Literal["better", "worse", "higher", "lower", "not shown to differ"]
ARROWS = {"higher": "↑", "lower": "↓", None: ""}


@dataclass(frozen=True)
class Finding:
    """What one task says of a model and the baseline.

    Attributes:
        task: Its name.
        title: How the report calls it.
        metric: Label of the metric that decides, the task's headline.
        form: Format specification of its scores.
        model: And `baseline`: names.
        outcome: Of the model, as against the baseline.
        score: Of the model; `baseline_score` of the baseline. Entries of `scores` in `results.json`.
        difference: Entry of `comparisons`.
        p_value: Corrected for the number of comparisons, see `holm`; None where there is none.
        worse_by: Labels of the task's other metrics in which the model is worse.
    """

    task: str
    title: str
    metric: str
    form: str
    model: str
    baseline: str
    outcome: Outcome
    score: Mapping[str, Any]
    baseline_score: Mapping[str, Any]
    difference: Mapping[str, Any]
    p_value: float | None
    worse_by: Sequence[str]

    @property
    def figures(self) -> str:
        """`"ROUGE-L 0.41 against 0.22, difference +0.19 [+0.12, +0.26], p = 0.004"`."""
        score, before = (figure(one["score"], self.form) for one in (self.score, self.baseline_score))
        text = f"{self.metric} {score} against {before}, difference {change(self.difference, self.form)}"
        text += "" if self.p_value is None else f", p = {self.p_value:.2g}"
        return text if not self.worse_by else f"{text}; but worse by {', '.join(self.worse_by)}"


def headline(task: Mapping[str, Any]) -> str | None:
    """The metric that a task is judged by: its headline, or its first one with a better direction."""
    metrics = task["metrics"]
    if task["headline"] in metrics:
        return task["headline"]
    return next((name for name, metric in metrics.items() if metric["better"]), next(iter(metrics), None))


def outcome(better: str | None, difference: Mapping[str, Any], p_value: float | None = None) -> Outcome:
    """What a difference shows: something where its interval leaves out 0 and its p-value, if any, is small."""
    low, high = difference["interval"]
    is_clear = low > 0 or high < 0
    if not is_clear or difference["n"] < 2 or (p_value is not None and p_value >= 1 - CONFIDENCE):
        return "not shown to differ"
    if better is None:
        return "higher" if low > 0 else "lower"
    return "better" if (low > 0) == (better == "higher") else "worse"


def findings(results: Mapping[str, Any]) -> list[Finding]:
    """One per task and comparison, for the task's headline, in the order of the suite."""
    pairs = [
        (name, task, comparison, comparison["metrics"][headline(task)])
        for name, task in results["tasks"].items()
        for comparison in task["comparisons"]
        if headline(task) in comparison["metrics"]
    ]
    corrected = _corrected([difference.get("p_value") for *_, difference in pairs])
    found = []
    for (name, task, comparison, difference), p_value in zip(pairs, corrected, strict=True):
        metric = task["metrics"][headline(task)]
        model, baseline = comparison["model"], comparison["baseline"]
        shows = outcome(metric["better"], difference, p_value)
        found.append(
            Finding(
                task=name,
                title=task["title"],
                metric=metric["label"],
                form=metric["form"],
                model=model,
                baseline=baseline,
                outcome=shows,
                score=task["scores"][model][headline(task)],
                baseline_score=task["scores"][baseline][headline(task)],
                difference=difference,
                p_value=p_value,
                worse_by=_worse_by(task, comparison) if shows != "worse" else [],
            )
        )
    return found


def _worse_by(task: Mapping[str, Any], comparison: Mapping[str, Any]) -> list[str]:
    return [
        task["metrics"][name]["label"]
        for name, difference in comparison["metrics"].items()
        if name != headline(task)
        and outcome(task["metrics"][name]["better"], difference, difference.get("p_value")) == "worse"
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for how many there are, in the same order.

    Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6 (1979).
    """
    corrected, greatest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        greatest = max(greatest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = greatest
    return corrected


def _corrected(p_values: Sequence[float | None]) -> list[float | None]:
    known = iter(holm([value for value in p_values if value is not None]))
    return [None if value is None else next(known) for value in p_values]


def summary(found: Sequence[Finding]) -> list[str]:
    """A line for each model that was compared: `"tuned against base, 5 tasks: better in 3, worse in 2"`."""
    lines = []
    for model in dict.fromkeys(one.model for one in found):
        own = [one for one in found if one.model == model]
        counts = [(name, sum(one.outcome == name for one in own)) for name in Outcome.__args__]
        said = ", ".join(f"{name} in {count}" for name, count in counts if count)
        lines.append(f"{model} against {own[0].baseline}, {len(own)} task{'s' * (len(own) > 1)}: {said}")
    return lines


def verdict(results: Mapping[str, Any]) -> str:
    """Which model is better at what, in lines for a terminal."""
    found = findings(results)
    if not found:
        return "Nothing was compared: it takes two models that both took part in a task."
    names = max(len(one.task) for one in found)
    outcomes = max(len(one.outcome) for one in found)
    lines = []
    for line, model in zip(summary(found), dict.fromkeys(one.model for one in found), strict=True):
        lines.append(line)
        lines += [
            f"  {one.task:{names}}  {one.outcome:{outcomes}}  {one.figures}" for one in found if one.model == model
        ]
    return "\n".join(lines)
