"""The verdict of an evaluation: which model is better at what, and where that is not shown."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from hfchat.intervals import CONFIDENCE
from hfchat.results import Comparison, Difference, Estimate, Metric, Results, TaskResult
from hfchat.templates import change, figure

Outcome = Literal["better", "worse", "higher", "lower", "not shown to differ"]
ARROWS = {"higher": "↑", "lower": "↓", None: ""}


@dataclass(frozen=True)
class Finding:
    """What one task says of a model and the baseline, by the metric that decides.

    Attributes:
        task: Its name.
        title: How the report calls it.
        metric: The one that decides.
        model: Name of the model.
        baseline: Name of the baseline.
        outcome: What the difference shows of the model.
        score: The model's.
        baseline_score: The baseline's.
        difference: The model's score minus the baseline's.
        p_value: Corrected for the number of comparisons, see `holm`. It is None where the comparison has no p-value.
        worse_by: Labels of the task's other metrics in which the model is worse.
    """

    task: str
    title: str
    metric: Metric
    model: str
    baseline: str
    outcome: Outcome
    score: Estimate
    baseline_score: Estimate
    difference: Difference
    p_value: float | None
    worse_by: Sequence[str]

    @property
    def unlike(self) -> str | None:
        """Whether another engine, or another type of weights, may be what makes the difference, see `unlike`."""
        return unlike(self.score, self.baseline_score)

    @property
    def figures(self) -> str:
        """`"ROUGE-L 0.41 against 0.22, difference +0.19 [+0.12, +0.26], p = 0.004"`."""
        form = self.metric.form
        score, before = figure(self.score.score, form), figure(self.baseline_score.score, form)
        text = f"{self.metric.label} {score} against {before}, difference {change(self.difference, form)}"
        text += "" if self.p_value is None else f", p = {self.p_value:.2g}"
        text += f"; {self.unlike}" if self.unlike else ""
        return text if not self.worse_by else f"{text}; but worse by {', '.join(self.worse_by)}"


def unlike(first: Estimate, second: Estimate) -> str | None:
    """Say that two scores were not computed by the same engine in the same type of weights; None where they were."""
    if first.computed_by == second.computed_by:
        return None
    names = (one.computed_by.replace("|", ", ") or "an unknown engine" for one in (first, second))
    return "computed by {} against {}".format(*names)


def outcome(better: str | None, difference: Difference, p_value: float | None = None) -> Outcome:
    """Say what a difference shows: nothing, unless its interval leaves out 0 and its p-value, if any, is small."""
    low, high = difference.interval
    is_clear = low > 0 or high < 0
    if not is_clear or difference.n < 2 or (p_value is not None and p_value >= 1 - CONFIDENCE):
        return "not shown to differ"
    if better is None:
        return "higher" if low > 0 else "lower"
    return "better" if (low > 0) == (better == "higher") else "worse"


def findings(results: Results) -> list[Finding]:
    """Compare by the metric that each task is judged by: a finding per task and comparison, in the suite's order."""
    compared = []
    for name, task in results.tasks.items():
        metric = task.decisive
        for comparison in task.comparisons:
            if metric is not None and metric in comparison.metrics:
                compared.append((name, task, metric, comparison))
    p_values = holm([comparison.metrics[metric].p_value for _, _, metric, comparison in compared])
    return [_finding(*one, p_value) for one, p_value in zip(compared, p_values, strict=True)]


def _finding(name: str, task: TaskResult, metric: str, comparison: Comparison, p_value: float | None) -> Finding:
    better, difference = task.metrics[metric].better, comparison.metrics[metric]
    shows = outcome(better, difference, p_value)
    worse_by = [
        task.metrics[other].label
        for other, change in comparison.metrics.items()
        if other != metric and outcome(task.metrics[other].better, change, change.p_value) == "worse"
    ]
    return Finding(
        task=name,
        title=task.title,
        metric=task.metrics[metric],
        model=comparison.model,
        baseline=comparison.baseline,
        outcome=shows,
        score=task.scores[comparison.model][metric],
        baseline_score=task.scores[comparison.baseline][metric],
        difference=difference,
        p_value=p_value,
        worse_by=[] if shows == "worse" else worse_by,
    )


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Correct p-values for how many there are. They stay in their order, and what has none stays without.

    Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6 (1979).
    """
    corrected: list[float | None] = [None] * len(p_values)
    known = sorted((value, index) for index, value in enumerate(p_values) if value is not None)
    greatest = 0.0
    for rank, (value, index) in enumerate(known):
        greatest = max(greatest, min(1.0, (len(known) - rank) * value))
        corrected[index] = greatest
    return corrected


def summary(found: Sequence[Finding]) -> list[str]:
    """Give a line for each model that was compared: `"tuned against base, 5 tasks: better in 3, worse in 2"`."""
    lines = []
    for model in dict.fromkeys(one.model for one in found):
        own = [one for one in found if one.model == model]
        counts = [(name, sum(one.outcome == name for one in own)) for name in get_args(Outcome)]
        shown = ", ".join(f"{name} in {count}" for name, count in counts if count)
        lines.append(f"{model} against {own[0].baseline}, {len(own)} task{'s' * (len(own) > 1)}: {shown}")
    return lines


def verdict(results: Results) -> str:
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
