"""How much was said, and how well the answers did: in all, for each model and for each day."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import NormalDist

import sqlalchemy as sa
from sqlalchemy.orm import Session

from hfchat.feedback.tables import Answer, Feedback

CONFIDENCE = 0.95


@dataclass
class Tally:
    """Of what was said and still holds.

    Attributes:
        answers: Stored, with feedback or without.
        feedback: Opinions that say something.
        up: Of these, how many have the thumb up, and `down` down.
        corrections: How many have a correction; so with `comments` and `preferences`, which are over another answer.
    """

    answers: int = 0
    feedback: int = 0
    up: int = 0
    down: int = 0
    corrections: int = 0
    comments: int = 0
    preferences: int = 0

    @property
    def share_up(self) -> tuple[float, float, float] | None:
        """Of the thumbs, how many are up, with the limits of its interval (`wilson_interval`); None without thumbs."""
        thumbs = self.up + self.down
        return (self.up / thumbs, *wilson_interval(self.up, thumbs)) if thumbs else None


@dataclass
class Statistics:
    """What `statistics` counts. Days are in UTC: the answer's for `answers`, and the feedback's for all else.

    Attributes:
        total: Of everything.
        models: For each model, or `model@version`.
        days: For each day, `2025-01-31`.
        tags: How often each was given.
        replaced: Opinions in whose place their author put another.
    """

    total: Tally = field(default_factory=Tally)
    models: dict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))
    days: dict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))
    tags: Counter[str] = field(default_factory=Counter)
    replaced: int = 0


def statistics(engine: sa.Engine) -> Statistics:
    """Count what is in a database (`hfchat.feedback.database.open_database`)."""
    found = Statistics()
    with Session(engine.execution_options(reads=True)) as session:
        asked = sa.select(Answer.created_at, Answer.model, Answer.model_version)
        for created_at, *model in session.execute(asked.execution_options(yield_per=1000)):
            for tally in (found.total, found.models[model_name(*model)], found.days[created_at.date().isoformat()]):
                tally.answers += 1
        said = sa.select(Feedback, Answer.model, Answer.model_version).join(Answer, Feedback.answer_key == Answer.id)
        for feedback, *model in session.execute(said.execution_options(yield_per=1000)):
            if feedback.replaced_at is not None:
                found.replaced += 1
                continue
            figures = _figures(feedback)
            if not any(figures.values()) and not feedback.tags:
                continue  # taken back
            found.tags.update(feedback.tags)
            day = feedback.created_at.date().isoformat()
            for tally in (found.total, found.models[model_name(*model)], found.days[day]):
                tally.feedback += 1
                for name, value in figures.items():
                    setattr(tally, name, getattr(tally, name) + value)
    found.days = dict(sorted(found.days.items()))
    return found


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Limits of the 95% interval of a share.

    By E. B. Wilson's score (https://doi.org/10.1080/01621459.1927.10502953), which holds for few trials and for shares
    near 0 and 1 too.
    """
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    share, weight = successes / trials, z * z / trials
    middle = (share + weight / 2) / (1 + weight)
    half = z * math.sqrt(share * (1 - share) / trials + weight / (4 * trials)) / (1 + weight)
    return max(0.0, middle - half), min(1.0, middle + half)


def share_difference(before: tuple[int, int], now: tuple[int, int]) -> tuple[float, float, float]:
    """How much a share rose, and the limits of the 95% interval of that, from the intervals of both.

    R. G. Newcombe, "Interval estimation for the difference between independent proportions" (1998), method 10
    (https://pubmed.ncbi.nlm.nih.gov/9595617/).

    Args:
        before: Successes and trials, at least one.
        now: The same, later.
    """
    old, new = (successes / trials for successes, trials in (before, now))
    (old_low, old_high), (low, high) = wilson_interval(*before), wilson_interval(*now)
    rise = new - old
    return rise, rise - math.hypot(new - low, old_high - old), rise + math.hypot(high - new, old - old_low)


def model_name(model: str, version: str | None) -> str:
    """`model`, or `model@version`."""
    return model if version is None else f"{model}@{version}"


def _figures(feedback: Feedback) -> Mapping[str, bool]:
    return {
        "up": feedback.rating == "up",
        "down": feedback.rating == "down",
        "corrections": feedback.correction is not None,
        "comments": feedback.comment is not None,
        "preferences": feedback.preferred_over_key is not None,
    }
