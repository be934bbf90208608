"""What is stored of a period and of the one before it: tables of figures, without the texts."""

import hashlib
import heapq
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pandas as pd
import sqlalchemy as sa

from hfchat.feedback.reading import Selection, rows
from hfchat.feedback.reviews import person_of
from hfchat.feedback.statistics import model_name
from hfchat.language import identify
from hfchat.safety.refusals import is_refusal
from hfchat.words import words

COMMENTS = 20  # the newest
_OPENINGS = 2000  # of each period, to compare their words
_LEAST_LANGUAGE_SCORE = 0.5  # below it, as of "hi" or "ok", the language is a guess
UNCLEAR = "unclear"


@dataclass(frozen=True)
class Periods:
    """Two spans of time, equally long, in UTC: `start <= before < middle <= now < end`."""

    start: datetime
    middle: datetime
    end: datetime

    @classmethod
    def since(cls, moment: datetime, end: datetime) -> "Periods":
        moment, end = moment.astimezone(UTC), end.astimezone(UTC)
        return cls(moment - (end - moment), moment, end)

    def __contains__(self, moment: datetime) -> bool:
        return self.start <= moment < self.end


@dataclass(frozen=True)
class Opening:
    """What a conversation began with.

    Attributes:
        words: Of the user's first message (`hfchat.words`).
        characters: How long it is.
        language: Its code, or `UNCLEAR`.
    """

    words: list[str]
    characters: int
    language: str


@dataclass(frozen=True)
class Comment:
    """A comment that holds, with what came with it."""

    created_at: datetime
    text: str
    rating: str | None
    tags: list[str]
    model: str
    answer_id: str


@dataclass
class History:
    """Each table has a row per event, with `time` (UTC) and `now`, whether it is in the later period.

    Attributes:
        periods: Which ones.
        conversations: Also `characters` and `language` of their opening.
        answers: Also `model` (with its version), `characters`, `finish_reason`, `refused` (by the model, no guard).
        findings: Of guards: also `guard`, `place`, `action`, `category`.
        feedback: Opinions that say something and hold: also `model`, `rating`, `corrected`, `author` (a person, see
            `hfchat.feedback.reviews`, or, without keys, the user that the request names; None for nobody).
        tags: Also `tag`.
        comments: The newest first.
        openings: A random sample of those of the earlier period, and of the later one.
    """

    periods: Periods
    conversations: pd.DataFrame
    answers: pd.DataFrame
    findings: pd.DataFrame
    feedback: pd.DataFrame
    tags: pd.DataFrame
    comments: list[Comment]
    openings: tuple[list[Opening], list[Opening]]

    @property
    def begin(self) -> datetime | None:
        """When the first of all events was; None if there are none."""
        tables = (self.conversations, self.answers, self.feedback)
        return min((table["time"].min() for table in tables if len(table)), default=None)


def read_history(engine: sa.Engine, periods: Periods, trusted_keys: Collection[str] = ()) -> History:
    """Read what is stored of two periods: answers by when they were asked for, opinions by when they were given.

    Args:
        engine: Of `hfchat.feedback.database.open_database`.
        periods: Which ones.
        trusted_keys: API keys of which each user is a person, see `hfchat.feedback.reviews.person_of`.
    """
    reading = _Reading(periods, trusted_keys)
    for row in rows(engine, Selection(since=periods.start)):
        reading.add(row)
    return reading.history()


@dataclass
class _Sample:
    """A random sample of bounded size: of all that is offered, what has the smallest hashes."""

    heap: list[tuple[int, Opening]] = field(default_factory=list)

    def offer(self, number: int, opening: Opening) -> None:
        if len(self.heap) < _OPENINGS:
            heapq.heappush(self.heap, (-number, opening))
        elif -number > self.heap[0][0]:
            heapq.heapreplace(self.heap, (-number, opening))

    def openings(self) -> list[Opening]:
        return [opening for _, opening in sorted(self.heap, key=lambda entry: -entry[0])]


class _Reading:
    def __init__(self, periods: Periods, trusted_keys: Collection[str]):
        self._periods = periods
        self._trusted_keys = trusted_keys
        self._known: set[int] = set()
        self._samples = (_Sample(), _Sample())
        self._tables: dict[str, list[tuple]] = {name: [] for name in _COLUMNS}
        self._comments: list[Comment] = []

    def add(self, row: Mapping[str, Any]) -> None:
        """An answer, with the conversation that led to it and what was said of it."""
        model = model_name(row["model"], row["model_version"])
        for said in row["feedback"]:
            self._add_opinion(said, model, row["answer_id"])
        time = datetime.fromisoformat(row["created_at"])
        if time not in self._periods:
            return
        now = time >= self._periods.middle
        text, ended = row["answer"], row["finish_reason"] or "not sent to its end"
        refused = ended != "content_filter" and is_refusal(text)
        self._tables["answers"].append((time, now, model, len(text), ended, refused))
        if row["choice"] == 0:  # those of a request are with each of its answers
            self._tables["findings"] += [
                (time, now, one["guard"], one["place"], one["action"], category)
                for one in row["findings"]
                for category in one["categories"]
            ]
            self._add_conversation(row, time, now)

    def history(self) -> History:
        tables = {name: pd.DataFrame(found, columns=_COLUMNS[name]) for name, found in self._tables.items()}
        for table in tables.values():
            table["time"] = pd.to_datetime(table["time"], utc=True)
            table["now"] = table["now"].astype(bool)
        before, now = (sample.openings() for sample in self._samples)
        return History(self._periods, **tables, comments=self._comments, openings=(before, now))

    def _add_opinion(self, said: Mapping[str, Any], model: str, answer_id: str) -> None:
        time = datetime.fromisoformat(said["created_at"])
        spoken = (said["rating"], said["correction"], said["comment"], said["preferred_over"], *said["tags"])
        if said["replaced_at"] is not None or time not in self._periods or not any(one is not None for one in spoken):
            return
        now = time >= self._periods.middle
        person = person_of(said, "user" if said["api_key"] is None else "api_key", self._trusted_keys)
        author = json.dumps(person) if any(person) else None
        self._tables["feedback"].append((time, now, model, said["rating"], said["correction"] is not None, author))
        self._tables["tags"] += [(time, now, tag) for tag in said["tags"]]
        if said["comment"] and now:
            self._comments.append(Comment(time, said["comment"], said["rating"], said["tags"], model, answer_id))
            self._comments = sorted(self._comments, key=lambda one: one.created_at, reverse=True)[:COMMENTS]

    def _add_conversation(self, row: Mapping[str, Any], time: datetime, now: bool) -> None:
        """Unless it is known: each of its turns is an answer that holds all the turns before it."""
        turns = [*row["messages"], {"role": "assistant", "content": row["answer"]}]
        first = next((place for place, turn in enumerate(turns) if turn["role"] == "user"), None)
        if first is None:
            return
        reply = next(place for place, turn in enumerate(turns) if place > first and turn["role"] == "assistant")
        begin = [row["api_key"], row["user"], *([turn["role"], turn["content"]] for turn in turns[: reply + 1])]
        number = int.from_bytes(hashlib.sha256(json.dumps(begin).encode()).digest()[:8], "big")
        if number in self._known:
            return
        self._known.add(number)
        text = turns[first]["content"]
        language, score = identify(text)
        opening = Opening(words(text), len(text), language if score >= _LEAST_LANGUAGE_SCORE else UNCLEAR)
        self._tables["conversations"].append((time, now, opening.characters, opening.language))
        self._samples[now].offer(number, opening)


_COLUMNS = {
    "conversations": ["time", "now", "characters", "language"],
    "answers": ["time", "now", "model", "characters", "finish_reason", "refused"],
    "findings": ["time", "now", "guard", "place", "action", "category"],
    "feedback": ["time", "now", "model", "rating", "corrected", "author"],
    "tags": ["time", "now", "tag"],
}
