"""How well a period or a model did, in figures, and whether it did better than another one."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from hfchat.feedback.history import History
from hfchat.intervals import share_difference, wilson_interval
from hfchat.templates import figure

Outcome = Literal["better", "worse", "changed", "not shown to differ", "too few to tell"]
# With fewer, one person's mood or one long conversation decides.
LEAST_THUMBS = 20
LEAST_ANSWERS = 50


@dataclass(frozen=True)
class Share:
    """`hits` of `trials`."""

    hits: int
    trials: int

    @property
    def value(self) -> float:
        """Not a number where there are no trials."""
        return self.hits / self.trials if self.trials else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """At 95% (`wilson_interval`); all that is possible where there are no trials."""
        return wilson_interval(self.hits, self.trials) if self.trials else (0.0, 1.0)


@dataclass(frozen=True)
class Lengths:
    """Lengths of texts, in characters. Without texts, all but the count are not a number.

    Attributes:
        count: How many texts.
        low: The lower quartile.
        median: The median.
        high: The upper quartile.
        interval: The 95% interval of the median, from one order statistic to another, by the normal approximation of
            the binomial (W. J. Conover, "Practical Nonparametric Statistics", 3rd ed., 1999, section 3.2).
    """

    count: int
    low: float
    median: float
    high: float
    interval: tuple[float, float]

    @classmethod
    def of(cls, characters: pd.Series) -> "Lengths":
        ordered = np.sort(characters.to_numpy(float))
        count = len(ordered)
        if not count:
            return cls(0, math.nan, math.nan, math.nan, (math.nan, math.nan))
        half = 1.96 * math.sqrt(count) / 2
        first, last = max(0, math.floor(count / 2 - half)), min(count - 1, math.ceil(count / 2 + half))
        low, median, high = np.quantile(ordered, [0.25, 0.5, 0.75]).tolist()
        return cls(count, low, median, high, (float(ordered[first]), float(ordered[last])))


@dataclass(frozen=True)
class Figures:
    """The figures of a period, or of a model in both periods.

    Attributes:
        conversations: How many began; 0 for a model, because a conversation may have had several.
        answers: How many were given.
        feedback: How many opinions.
        corrected: How many opinions have a correction.
        up: The share of thumbs that are up.
        refused: The share of answers that are refusals.
        cut: The share of answers that ended at their greatest length.
        prompts: Lengths of what conversations began with.
        lengths: Lengths of answers.
    """

    conversations: int
    answers: int
    feedback: int
    corrected: int
    up: Share
    refused: Share
    cut: Share
    prompts: Lengths
    lengths: Lengths


@dataclass(frozen=True)
class Change:
    """How a property changed, in words."""

    name: str
    outcome: Outcome
    words: str


def of_period(history: History, now: bool) -> Figures:
    """The figures of the later period, or of the earlier one."""
    tables = (history.conversations, history.answers, history.feedback)
    return _figures(*(table[table["now"] == now] for table in tables))


def of_model(history: History, model: str) -> Figures:
    """The figures of a model with its version, in both periods."""
    answers, feedback = (table[table["model"] == model] for table in (history.answers, history.feedback))
    return _figures(history.conversations.head(0), answers, feedback)


def changes(before: Figures, now: Figures) -> Iterator[Change]:
    """The changes from an earlier period, or from another model."""
    yield share_change("thumbs up", before.up, now.up, LEAST_THUMBS, ("better", "worse"))
    yield share_change("refusals", before.refused, now.refused, LEAST_ANSWERS, ("changed", "changed"))
    yield share_change("answers cut at their greatest length", before.cut, now.cut, LEAST_ANSWERS, ("worse", "better"))
    yield _length_change("length of answers", before.lengths, now.lengths)


def share_change(name: str, before: Share, now: Share, least: int, outcomes: tuple[Outcome, Outcome]) -> Change:
    """Whether a share changed, if its 95% interval leaves out that it did not.

    Args:
        name: What has the share.
        before: The earlier share.
        now: The later one.
        least: Trials that each needs before anything is said.
        outcomes: The outcome if it rose, and if it fell.
    """
    if min(before.trials, now.trials) < least:
        found = f"{now.hits} of {now.trials}, before {before.hits} of {before.trials}; it takes {least} each"
        return Change(name, "too few to tell", found)
    rise, low, high = share_difference((before.hits, before.trials), (now.hits, now.trials))
    outcome = outcomes[0] if low > 0 else outcomes[1] if high < 0 else "not shown to differ"
    points, *ends = (figure(100 * value, "+.1f") for value in (rise, low, high))
    words = f"{now.value:.1%}, before {before.value:.1%} ({points} pp, {' to '.join(ends)})"
    return Change(name, outcome, words)


def _length_change(name: str, before: Lengths, now: Lengths) -> Change:
    """Whether a median changed: if the intervals of both lie apart, which is stricter than 95%."""
    if min(before.count, now.count) < LEAST_ANSWERS:
        return Change(name, "too few to tell", f"{now.count}, before {before.count}; it takes {LEAST_ANSWERS} each")
    apart = now.interval[0] > before.interval[1] or now.interval[1] < before.interval[0]
    words = f"median {now.median:,.0f} characters, before {before.median:,.0f}"
    return Change(name, "changed" if apart else "not shown to differ", words)


def _figures(conversations: pd.DataFrame, answers: pd.DataFrame, feedback: pd.DataFrame) -> Figures:
    ratings, total = feedback["rating"], len(answers)
    return Figures(
        conversations=len(conversations),
        answers=total,
        feedback=len(feedback),
        corrected=int(feedback["corrected"].sum()),
        up=Share(int((ratings == "up").sum()), int(ratings.notna().sum())),
        refused=Share(int(answers["refused"].sum()), total),
        cut=Share(int((answers["finish_reason"] == "length").sum()), total),
        prompts=Lengths.of(conversations["characters"]),
        lengths=Lengths.of(answers["characters"]),
    )
