"""What people said about answers and still hold, to learn from."""

import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from typing import Literal

import sqlalchemy as sa

from hfchat.feedback.exchange import Call, Rating, words_of
from hfchat.feedback.reading import Selection, as_row, read_answers
from hfchat.feedback.tables import AnswerRow, OpinionRow

Who = Literal["user", "api_key"]
# The API key, and for a trusted key the user that it names. Without keys all are one person: names prove nothing.
Person = tuple[str | None, ...]


@dataclass(frozen=True)
class Review:
    """An opinion (`hfchat.feedback.exchange.Opinion`) with what it is about.

    Attributes:
        id: `feedback-...`.
        person: Who said it (`person_of`), as far as it is known: nobody in particular is one person. The API key is
            first.
        said_at: When it was said.
        answer: What it is about.
        rating: Whether the answer is good.
        correction: What it should have been; and `corrected_calls`, the calls that belong to it.
        comment: In the person's own words.
        over: Another answer to the same prompt that was discarded for this one.
    """

    id: str
    person: Person
    said_at: datetime
    answer: AnswerRow
    rating: Rating | None
    correction: str | None
    comment: str | None
    over: AnswerRow | None
    corrected_calls: Sequence[Call] = ()

    @property
    def statements(self) -> list[str]:
        """What can be learned from: of `rating`, `correction` and `preference`."""
        values = {"rating": self.rating, "correction": self.correction, "preference": self.over}
        return [name for name, value in values.items() if value is not None]

    @property
    def corrected_words(self) -> str:
        """All that the correction says, "" without one."""
        return "" if self.correction is None else words_of(self.correction, self.corrected_calls)


def read_reviewed(engine: sa.Engine, since: datetime | None = None) -> list[AnswerRow]:
    """The answers with feedback, oldest first. They are all in memory, with those that they were preferred over.

    Args:
        engine: What `hfchat.feedback.database.open_database` returns.
        since: Only answers that were asked for, or got feedback, then or later.
    """
    return list(read_answers(engine, Selection(since=since, rated=True)))


def digest_of_answers(answers: Sequence[AnswerRow]) -> str:
    """The SHA-256 of answers and the feedback on them, which differs as soon as any of it does."""
    opinions = chain.from_iterable(answer.feedback for answer in answers)
    discarded = {opinion.preferred_over for opinion in opinions if opinion.preferred_over is not None}
    rows = [as_row(answer, answer.feedback) for answer in answers]
    rows += [as_row(answer, []) for answer in sorted(discarded.difference(answers), key=lambda answer: answer.id)]
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def person_of(opinion: OpinionRow, who: Who = "api_key", trusted_keys: Collection[str] = ()) -> Person:
    """Who counts as the one person who said something.

    Args:
        opinion: What was said.
        who: Everything that comes with one API key, and everything without a key; or each `user` of each key. A `user`
            is what a request says it is, so a sender can be as many people as they like.
        trusted_keys: Keys whose users count each in any case: those of a front end that knows its users.
    """
    key, user = opinion.api_key or None, opinion.user_id or None
    return (key, user) if who == "user" or key in trusted_keys else (key,)


def reviews_of(
    answers: Iterable[AnswerRow], who: Who = "api_key", trusted_keys: Collection[str] = ()
) -> tuple[list[Review], list[str]]:
    """The reviews that hold, oldest first, and the ids of those that their authors replaced.

    Args:
        answers: What `read_reviewed` returned.
        who: Who counts as one person, see `person_of`.
        trusted_keys: Likewise.
    """
    reviews, replaced = [], []
    for answer in answers:
        for opinion in answer.feedback:
            # What its author replaced is only counted.
            if opinion.replaced_at is not None:
                replaced.append(opinion.id)
                continue
            reviews.append(
                Review(
                    id=opinion.id,
                    person=person_of(opinion, who, trusted_keys),
                    said_at=opinion.created_at,
                    answer=answer,
                    rating=opinion.rating,
                    correction=opinion.correction,
                    comment=opinion.comment,
                    over=opinion.preferred_over,
                    corrected_calls=opinion.corrected_calls,
                )
            )
    return sorted(reviews, key=lambda review: (review.said_at, review.id)), replaced
