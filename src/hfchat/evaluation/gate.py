"""The gate before a promotion: thresholds on what an evaluation measured of a candidate and of the current model.

Each gate is a mapping with `task`, `metric` (or `speed: true` in place of both) and one condition:

    above: 0.5       the score's 95% interval lies above it
    below: 0.1       the score's 95% interval lies below it
    may_lose: 0.02   the 95% interval of the paired difference leaves out a loss that is greater, in the direction that
                     is better for the metric: a test of non-inferiority (CONSORT, doi:10.1001/jama.2012.87802)
    must_gain: true  the 95% interval of the paired difference leaves out that there is no gain
    may_change: 0.1  the 95% interval of the paired difference lies within it on both sides: for metrics without a
                     better direction
    keeps: 0.8       of `speed`: at least this share of the current model's answers per second, to the same prompts

A gate of fewer than `MIN_N` examples fails, whatever they say; `min_n: 50` in a gate asks for more, or fewer.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pydantic

from hfchat.entries import Entry
from hfchat.errors import UserError
from hfchat.evaluation.verdict import unlike
from hfchat.results import Difference, Estimate, Results
from hfchat.templates import markdown_environment

# Of fewer than 6 pairs no exact test shows anything, and of fewer than 10 one outlier decides.
MIN_N = 10
_CONDITIONS = ("above", "below", "may_lose", "must_gain", "may_change", "keeps")

AtLeastZero = Annotated[float, pydantic.Field(ge=0)]


class PromotionGate(Entry):
    """An entry of `gates`: what is measured, and one condition; `why` stands beside the outcome."""

    task: str | None = None
    metric: str | None = None
    speed: bool = False
    above: float | None = None
    below: float | None = None
    may_lose: AtLeastZero | None = None
    must_gain: Literal[True] | None = None
    may_change: AtLeastZero | None = None
    keeps: AtLeastZero | None = None
    min_n: Annotated[int, pydantic.Field(ge=1)] | None = None
    why: str = ""

    @classmethod
    def title(cls, fields: Mapping[str, Any]) -> str:
        return f"gate {dict(fields)}"  # it has no name

    @property
    def conditions(self) -> list[str]:
        return [name for name in _CONDITIONS if getattr(self, name) is not None]

    @property
    def condition(self) -> str:
        return self.conditions[0]

    @property
    def limit(self) -> float:
        return float(getattr(self, self.condition))

    @property
    def compares(self) -> bool:
        """Whether it asks for a difference from the current model."""
        return self.condition in ("may_lose", "must_gain", "may_change")

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.conditions) != 1:
            raise ValueError(f"needs one condition of {', '.join(_CONDITIONS)}")
        if self.speed != (self.condition == "keeps"):
            raise ValueError("`keeps` is the condition of `speed: true`, and of nothing else")
        if not self.speed and (self.task is None or self.metric is None):
            raise ValueError("needs a task and a metric")
        if self.speed and self.min_n is not None:
            raise ValueError("min_n is for a task and a metric")
        return self

    def in_words(self, form: str) -> str:
        """Say the condition, with limits in the form of the metric."""
        return {
            "above": f"above {self.limit:{form}}",
            "below": f"below {self.limit:{form}}",
            "may_lose": f"no loss of more than {self.limit:{form}}",
            "must_gain": "a gain",
            "may_change": f"no change of more than {self.limit:{form}}",
            "keeps": f"at least {self.limit:.0%} of the current speed",
        }[self.condition]


@dataclass(frozen=True)
class GateOutcome:
    """What one gate says.

    Attributes:
        gate: What was asked.
        passed: Whether the candidate may pass.
        asked: The condition in words: `"no loss of more than 0.020"`.
        found: What was measured, in words, or why nothing was.
    """

    gate: PromotionGate
    passed: bool
    asked: str
    found: str

    @property
    def subject(self) -> str:
        return "speed" if self.gate.speed else f"{self.gate.task}: {self.gate.metric}"


@dataclass(frozen=True)
class Verdict:
    """What all gates say of a candidate.

    Attributes:
        candidate: Its name in the results.
        current: The name of the model that it would replace.
        outcomes: One per gate, in their order.
    """

    candidate: str
    current: str
    outcomes: Sequence[GateOutcome]

    @property
    def failed(self) -> list[GateOutcome]:
        return [outcome for outcome in self.outcomes if not outcome.passed]

    @property
    def passed(self) -> bool:
        return not self.failed

    @property
    def sentence(self) -> str:
        if self.passed:
            return f"{self.candidate} passed all {len(self.outcomes)} gates."
        return f"{self.candidate} failed {len(self.failed)} of {len(self.outcomes)} gates; {self.current} stays."

    def __str__(self) -> str:
        """A line per gate, and the verdict."""
        width = max(len(outcome.subject) for outcome in self.outcomes)
        lines = [
            f"{'passed' if one.passed else 'FAILED'}  {one.subject:<{width}}  {one.asked}: {one.found}"
            for one in self.outcomes
        ]
        return "\n".join([*lines, self.sentence])


def judge(results: Results, gates: Sequence[PromotionGate], min_n: int = MIN_N) -> Verdict:
    """Put the second model of an evaluation through the gates, against the first. A gate that was not measured fails.

    Args:
        results: Results of two models: the current one and the candidate.
        gates: At least one.
        min_n: Examples without which a gate fails that has no `min_n` of its own.

    Raises:
        UserError: If the results are not of two models, or a gate names what no task of theirs measures.
    """
    models = list(results.models)
    if len(models) != 2:
        raise UserError(f"the gate compares two models, and the results are of {len(models)}: {', '.join(models)}")
    current, candidate = models
    return Verdict(candidate, current, [_judge(results, gate, current, candidate, min_n) for gate in gates])


def write_verdict(verdict: Verdict, folder: Path) -> None:
    """Write `verdict.md`, for people, and `verdict.json`, for programs."""
    page = markdown_environment("hfchat.evaluation").get_template("verdict.md.jinja").render(verdict=verdict)
    (folder / "verdict.md").write_text(page, encoding="utf-8")
    outcomes = [{**vars(one), "gate": one.gate.given()} for one in verdict.outcomes]
    record = {"passed": verdict.passed, "candidate": verdict.candidate, "current": verdict.current}
    text = json.dumps(record | {"outcomes": outcomes}, indent=2, ensure_ascii=False)
    (folder / "verdict.json").write_text(text + "\n", encoding="utf-8")


def _judge(results: Results, gate: PromotionGate, current: str, candidate: str, min_n: int) -> GateOutcome:
    if gate.speed:
        return _judge_speed(results, gate, current, candidate)
    # The names must fit the evaluation: a gate that nothing measures would stop every candidate.
    task = results.tasks.get(gate.task or "")
    if task is None:
        known = ", ".join(results.tasks)
        raise UserError(f"gates: task: the evaluation has no task {gate.task!r}; it has {known}")
    metric = task.metrics.get(gate.metric or "")
    if metric is None:
        known = ", ".join(task.metrics)
        raise UserError(f"gates: metric: {gate.task} has no metric {gate.metric!r}; it has {known}")
    if gate.compares and metric.better is None and gate.condition != "may_change":
        raise UserError(f"gates: {gate.task}: {gate.metric} has no better direction; ask for `may_change`")

    # What was not measured, or of too few examples, is not shown, so it fails.
    comparison = task.comparison(candidate)
    measured: Estimate | Difference | None = task.score(candidate, gate.metric)
    if gate.compares:
        measured = comparison.metrics.get(gate.metric or "") if comparison else None
    asked = gate.in_words(metric.form)
    if measured is None:
        return GateOutcome(gate, False, asked, "it was not measured of the candidate")
    # Another engine, or other weights, may be all that a difference shows.
    now, before = (task.score(model, gate.metric) for model in (candidate, current))
    if gate.compares and now and before and (differently := unlike(now, before)):
        return GateOutcome(gate, False, asked, f"{differently}; evaluate both with one engine and the same weights")
    n, least = measured.n if measured.scored is None else measured.scored, gate.min_n or min_n
    if n < least:
        return GateOutcome(gate, False, asked, f"too few examples: n = {n}, and the gate needs {least} (min_n)")

    # The end of the interval that speaks most against the candidate decides.
    low, high = measured.interval
    sign = -1 if metric.better == "lower" else 1
    worst, best = sorted((sign * low, sign * high))
    passed = {
        "above": low > gate.limit,
        "below": high < gate.limit,
        "may_lose": worst >= -gate.limit,
        "must_gain": worst > 0,
        "may_change": max(abs(worst), abs(best)) <= gate.limit,
    }[gate.condition]
    value = measured.score if isinstance(measured, Estimate) else measured.difference
    form = f"+{metric.form}" if gate.compares else metric.form
    return GateOutcome(gate, passed, asked, f"{value:{form}} [{low:{form}}, {high:{form}}], n = {n}")


def _judge_speed(results: Results, gate: PromotionGate, current: str, candidate: str) -> GateOutcome:
    before, now = (results.models[name].speed for name in (current, candidate))
    asked = gate.in_words("")
    if before is None or now is None:
        return GateOutcome(gate, False, asked, "one of the two generated nothing")
    now_by, before_by = (results.models[name].generated_by for name in (candidate, current))
    if now_by != before_by:
        return GateOutcome(gate, False, asked, f"generated by {now_by} against {before_by}; evaluate both with one")
    # Not tokens per second: in a batch, short answers have fewer of them for the same steps.
    share = before.seconds / now.seconds
    found = f"{share:.0%}, {now.seconds:.1f} s against {before.seconds:.1f} s for the same prompts"
    return GateOutcome(gate, before.seconds >= gate.limit * now.seconds, asked, found)
