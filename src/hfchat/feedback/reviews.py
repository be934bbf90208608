"""What people said of answers and still hold, for those who learn from it."""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa

from hfchat.feedback.exchange import Rating
from hfchat.feedback.reading import Selection, rows
from hfchat.messages import digest_of

Who = Literal["user", "api_key"]
# The API key, and for a trusted key the user that it names. Without keys all are one person: nobody can tell names.
Person = tuple[str | None, ...]


@dataclass(frozen=True)
class ReviewedAnswer:
    """An answer that somebody said something of.

    Attributes:
        answer_id: OpenAI's, and `choice` which of the response's answers.
        model: Its name in the API, `@` and its version where it has one.
        template_fingerprint: Of the model's chat template, where it is known.
        messages: The conversation before it.
        text: What it says.
        finish_reason: OpenAI's.
        findings: Of the guards, see `hfchat.feedback.exchange.Exchange`.
        prompt: A hash of the conversation before it.
        key: Hashes of the prompt and of the text: a model that does not sample gives the same answer under many ids.
    """

    answer_id: str
    choice: int
    model: str
    template_fingerprint: str | None
    messages: Sequence[Mapping[str, str]]
    text: str
    finish_reason: str | None
    findings: Sequence[Mapping[str, Any]]
    prompt: str
    key: tuple[str, bytes]

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "ReviewedAnswer":
        model, version, prompt = row["model"], row["model_version"], row["prompt_hash"]
        as_they_are = ("answer_id", "choice", "template_fingerprint", "messages", "finish_reason", "findings")
        return cls(
            **{name: row[name] for name in as_they_are},
            model=model if version is None else f"{model}@{version}",
            text=row["answer"],
            prompt=prompt,
            key=(prompt, digest_of(row["answer"], typed=True)),
        )


@dataclass(frozen=True)
class Review:
    """An opinion (`hfchat.feedback.exchange.Opinion`) with what it is about.

    Attributes:
        id: `feedback-...`.
        person: Who said it (`person_of`), as far as it is known: nobody in particular is one person. The API key is
            first.
        said_at: When.
        answer: Of what.
        rating: Whether it is good.
        correction: What it should have been.
        comment: In the person's own words.
        over: Another answer to the same prompt that was discarded for this one.
    """

    id: str
    person: Person
    said_at: datetime
    answer: ReviewedAnswer
    rating: Rating | None
    correction: str | None
    comment: str | None
    over: ReviewedAnswer | None

    @property
    def statements(self) -> list[str]:
        """What can be learned from: of `rating`, `correction` and `preference`."""
        said = {"rating": self.rating, "correction": self.correction, "preference": self.over}
        return [name for name, value in said.items() if value is not None]


def read_rows(engine: sa.Engine, since: datetime | None = None) -> list[dict[str, Any]]:
    """The answers with feedback, oldest first, and those that they were preferred over.

    Args:
        engine: Of `hfchat.feedback.database.open_database`.
        since: Only answers that were asked for, or that something was said of, then or later.

    Returns:
        Rows of `hfchat.feedback.reading.rows`. They are all in memory.
    """
    reviewed = list(rows(engine, Selection(since=since, rated=True)))
    discarded = {said["preferred_over"] for row in reviewed for said in row["feedback"]} - {None}
    discarded -= {row["answer_id"] for row in reviewed if row["choice"] == 0}
    if discarded:
        others = (row for row in rows(engine) if row["answer_id"] in discarded and row["choice"] == 0)
        reviewed += [row | {"feedback": []} for row in others]
    return reviewed


def digest_of_rows(found: Iterable[Mapping[str, Any]]) -> str:
    """The SHA-256 of what was read, by which it is told whether a database says something else by now."""
    digest = hashlib.sha256()
    for row in found:
        digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def person_of(said: Mapping[str, Any], who: Who = "api_key", trusted_keys: Collection[str] = ()) -> Person:
    """Who counts as the one person who said something.

    Args:
        said: An opinion as `hfchat.feedback.reading.rows` has it, with `api_key` and `user`.
        who: All that comes with an API key, and all that comes without one; or each `user` of each. A `user` is what a
            request says it is, so whoever may choose it is as many people as they like.
        trusted_keys: Keys that each user counts of all the same: those of a front end that knows its users.
    """
    key, user = said["api_key"], said["user"]
    return (key, user) if who == "user" or key in trusted_keys else (key,)


def reviews_of(
    found: Sequence[Mapping[str, Any]], who: Who = "api_key", trusted_keys: Collection[str] = ()
) -> tuple[list[Review], list[str]]:
    """The reviews that hold, oldest first, and the ids of those that their authors replaced.

    Args:
        found: What `read_rows` returned.
        who: Who counts as one person, see `person_of`.
        trusted_keys: Likewise.
    """
    answers = {(row["answer_id"], row["choice"]): ReviewedAnswer.from_row(row) for row in found}
    reviews, replaced = [], []
    for row in found:
        for said in row["feedback"]:
            if said["replaced_at"] is not None:
                replaced.append(said["id"])
                continue
            reviews.append(
                Review(
                    id=said["id"],
                    person=person_of(said, who, trusted_keys),
                    said_at=datetime.fromisoformat(said["created_at"]),
                    answer=answers[row["answer_id"], row["choice"]],
                    rating=said["rating"],
                    correction=said["correction"],
                    comment=said["comment"],
                    over=answers.get((said["preferred_over"], 0)),
                )
            )
    return sorted(reviews, key=lambda review: (review.said_at, review.id)), replaced
