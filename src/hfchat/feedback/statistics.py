"""How much was said, and how well the answers did: in all, for each model and for each day."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import sqlalchemy as sa
from sqlalchemy.orm import Session

from hfchat.feedback.tables import Answer, Feedback
from hfchat.intervals import wilson_interval


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
