"""How much was said, and how well the answers did: in all, for each model and for each day."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session, joinedload

from hfchat.feedback.tables import AnswerRow, OpinionRow, full_model
from hfchat.intervals import wilson_interval


@dataclass
class Tally:
    """How much was said and still holds.

    Attributes:
        answers: Answers that are stored, with feedback or without.
        feedback: Opinions that say something.
        up: Opinions with the thumb up, and `down` those with the thumb down.
        corrections: Opinions with a correction; so with `comments` and `preferences`, which are over another answer.
    """

    answers: int = 0
    feedback: int = 0
    up: int = 0
    down: int = 0
    corrections: int = 0
    comments: int = 0
    preferences: int = 0

    def add(self, opinion: OpinionRow) -> None:
        """Count an opinion that holds."""
        self.feedback += 1
        self.up += opinion.rating == "up"
        self.down += opinion.rating == "down"
        self.corrections += opinion.correction is not None
        self.comments += opinion.comment is not None
        self.preferences += opinion.preferred_over_key is not None

    @property
    def share_up(self) -> tuple[float, float, float] | None:
        """The share of thumbs that are up, and the limits of its interval (`wilson_interval`); None without thumbs."""
        thumbs = self.up + self.down
        return (self.up / thumbs, *wilson_interval(self.up, thumbs)) if thumbs else None


@dataclass
class Statistics:
    """What `statistics` counts. Days are in UTC: the answer's for `answers`, and the feedback's for all else.

    Attributes:
        total: Everything.
        models: The tally of each model, or `model@version`.
        days: The tally of each day, `2025-01-31`.
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

    def tallies(model: str, moment: datetime) -> Iterable[Tally]:
        return found.total, found.models[model], found.days[moment.date().isoformat()]

    with Session(engine.execution_options(reads=True)) as session:
        asked = sa.select(AnswerRow.created_at, AnswerRow.model, AnswerRow.model_version)
        for created_at, model, version in session.execute(asked.execution_options(yield_per=1000)):
            for tally in tallies(full_model(model, version), created_at):
                tally.answers += 1
        opinions = sa.select(OpinionRow).options(joinedload(OpinionRow.answer))
        for opinion in session.scalars(opinions.execution_options(yield_per=1000)):
            if opinion.replaced_at is not None:
                found.replaced += 1
            elif opinion.holds:
                found.tags.update(opinion.tags)
                for tally in tallies(opinion.answer.full_model, opinion.created_at):
                    tally.add(opinion)
    found.days = dict(sorted(found.days.items()))
    return found
