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
from typing import Any

from hfchat.errors import UserError
from hfchat.results import Difference, Estimate, Results
from hfchat.templates import markdown_environment

# Of fewer than 6 pairs no exact test shows anything, and of fewer than 10 one outlier decides.
MIN_N = 10
_CONDITIONS = ("above", "below", "may_lose", "must_gain", "may_change", "keeps")


class Gate(dict):
    """An entry of `gates`.

    Raises:
        ValueError: If a key is unknown, there is not exactly one condition, or its value is not as it should be.
    """

    def __init__(self, entry: Mapping[str, Any] | str):
        super().__init__(json.loads(entry) if isinstance(entry, str) else entry)
        name = f"gates: {dict(self)}"
        conditions = [key for key in self if key in _CONDITIONS]
        if unknown := set(self) - {*_CONDITIONS, "task", "metric", "speed", "why", "min_n"}:
            raise ValueError(f"{name}: unknown key '{min(unknown)}'; a gate has task, metric and a condition")
        if len(conditions) != 1:
            raise ValueError(f"{name}: needs one condition of {', '.join(_CONDITIONS)}")
        self.condition = conditions[0]
        if self.is_speed != (self.condition == "keeps"):
            raise ValueError(f"{name}: `keeps` is the condition of `speed: true`, and of nothing else")
        if not self.is_speed and not ("task" in self and "metric" in self):
            raise ValueError(f"{name}: needs a task and a metric")
        if self.condition == "must_gain" and self["must_gain"] is not True:
            raise ValueError(f"{name}: must_gain is true or left out")
        least = self.get("min_n", 1)
        if self.is_speed and "min_n" in self:
            raise ValueError(f"{name}: min_n is for a task and a metric")
        if not isinstance(least, int) or isinstance(least, bool) or least < 1:
            raise ValueError(f"{name}: min_n must be a whole number, at least 1, not {least!r}")
        limit = self[self.condition]
        if not isinstance(limit, int | float) or (limit < 0 and self.condition not in ("above", "below")):
            raise ValueError(f"{name}: {self.condition} must be a number, and no negative one for a difference")

    @property
    def is_speed(self) -> bool:
        return bool(self.get("speed"))


@dataclass(frozen=True)
class Outcome:
    """What one gate says.

    Attributes:
        gate: What was asked.
        passed: Whether the candidate may pass.
        asked: The condition in words: `"no loss of more than 0.020"`.
        found: What was measured, in words; also why nothing was.
    """

    gate: Mapping[str, Any]
    passed: bool
    asked: str
    found: str

    @property
    def subject(self) -> str:
        return "speed" if self.gate.get("speed") else f"{self.gate['task']}: {self.gate['metric']}"


@dataclass(frozen=True)
class Verdict:
    """What all gates say of a candidate.

    Attributes:
        candidate: And `current`: names in the results.
        outcomes: One per gate, in their order.
    """

    candidate: str
    current: str
    outcomes: Sequence[Outcome]

    @property
    def failed(self) -> list[Outcome]:
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


def judge(results: Results, gates: Sequence[Gate], min_n: int = MIN_N) -> Verdict:
    """Put the second model of an evaluation through the gates, against the first. What was not measured fails.

    Args:
        results: Of two models: the current one and the candidate.
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
    outcomes = [{**vars(one), "gate": dict(one.gate)} for one in verdict.outcomes]
    record = {"passed": verdict.passed, "candidate": verdict.candidate, "current": verdict.current}
    text = json.dumps(record | {"outcomes": outcomes}, indent=2, ensure_ascii=False)
    (folder / "verdict.json").write_text(text + "\n", encoding="utf-8")


def _judge(results: Results, gate: Gate, current: str, candidate: str, min_n: int) -> Outcome:
    if gate.is_speed:
        return _judge_speed(results, gate, current, candidate)
    task = results.tasks.get(gate["task"])
    if task is None:
        known = ", ".join(results.tasks)
        raise UserError(f"gates: task: the evaluation has no task {gate['task']!r}; it has {known}")
    metric = task.metrics.get(gate["metric"])
    if metric is None:
        known = ", ".join(task.metrics)
        raise UserError(f"gates: metric: {gate['task']} has no metric {gate['metric']!r}; it has {known}")
    compares = gate.condition in ("may_lose", "must_gain", "may_change")
    if compares and metric.better is None and gate.condition != "may_change":
        raise UserError(f"gates: {gate['task']}: {gate['metric']} has no better direction; ask for `may_change`")
    compared = task.comparison(candidate)
    measured: Estimate | Difference | None = task.score(candidate, gate["metric"])
    if compares:
        measured = compared.metrics.get(gate["metric"]) if compared else None
    form = metric.form
    asked = _in_words(gate, form)
    if measured is None:
        return Outcome(gate, False, asked, "it was not measured of the candidate")
    n, least = measured.n if measured.scored is None else measured.scored, gate.get("min_n", min_n)
    if n < least:
        return Outcome(gate, False, asked, f"too few examples: n = {n}, and the gate needs {least} (min_n)")
    low, high = measured.interval
    sign = -1 if metric.better == "lower" else 1
    worst, best = sorted((sign * low, sign * high))
    limit = gate[gate.condition]
    passed = {
        "above": low > limit,
        "below": high < limit,
        "may_lose": worst >= -limit,
        "must_gain": worst > 0,
        "may_change": max(abs(worst), abs(best)) <= limit,
    }[gate.condition]
    value = measured.score if isinstance(measured, Estimate) else measured.difference
    plus = "+" if compares else ""
    found = f"{value:{plus}{form}} [{low:{plus}{form}}, {high:{plus}{form}}], n = {n}"
    return Outcome(gate, passed, asked, found)


def _judge_speed(results: Results, gate: Gate, current: str, candidate: str) -> Outcome:
    before, now = (results.models[name].speed for name in (current, candidate))
    asked = f"at least {gate['keeps']:.0%} of the current speed"
    if before is None or now is None:
        return Outcome(gate, False, asked, "one of both generated nothing")
    # Not tokens per second: in a batch, short answers have fewer of them for the same steps.
    share = before.seconds / now.seconds
    found = f"{share:.0%}, {now.seconds:.1f} s against {before.seconds:.1f} s for the same prompts"
    return Outcome(gate, before.seconds >= gate["keeps"] * now.seconds, asked, found)


def _in_words(gate: Gate, form: str) -> str:
    limit = gate[gate.condition]
    return {
        "above": f"above {limit:{form}}",
        "below": f"below {limit:{form}}",
        "may_lose": f"no loss of more than {limit:{form}}",
        "must_gain": "a gain",
        "may_change": f"no change of more than {limit:{form}}",
    }[gate.condition]
