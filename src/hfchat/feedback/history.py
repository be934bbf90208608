"""What is stored of a period and of the one before it: tables of figures, without the texts."""

import hashlib
import heapq
import json
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime

import pandas as pd
import sqlalchemy as sa

from hfchat.feedback.exchange import Turn, words_of
from hfchat.feedback.reading import Selection, read_answers
from hfchat.feedback.reviews import person_of
from hfchat.feedback.tables import AnswerRow, OpinionRow
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
        words: The words of the user's first message (`hfchat.words`).
        characters: Its length.
        language: The code of its language, or `UNCLEAR`.
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
        periods: The two periods.
        conversations: Also `characters` and `language` of their opening.
        answers: Also `model` (with its version), `characters`, `finish_reason`, `refused` (by the model, no guard).
        findings: What guards found: also `guard`, `place`, `action`, `category`.
        feedback: Opinions that say something and hold: also `model`, `rating`, `corrected`, `author` (a person, see
            `hfchat.feedback.reviews`, or, without keys, the user that the request names; None for nobody).
        tags: Also `tag`.
        comments: The newest first.
        openings: A random sample of the openings of the earlier period, and one of the later period.
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
        """The time of the first event; None without events."""
        tables = (self.conversations, self.answers, self.feedback)
        return min((table["time"].min() for table in tables if len(table)), default=None)


def read_history(engine: sa.Engine, periods: Periods, trusted_keys: Collection[str] = ()) -> History:
    """Read what is stored of two periods: answers by when they were asked for, opinions by when they were given.

    Args:
        engine: What `hfchat.feedback.database.open_database` returns.
        periods: The two periods.
        trusted_keys: API keys whose users are each a person, see `hfchat.feedback.reviews.person_of`.
    """
    reading = _Reading(periods, trusted_keys)
    for answer in read_answers(engine, Selection(since=periods.start)):
        reading.add(answer)
    return reading.history()


class _Reading:
    def __init__(self, periods: Periods, trusted_keys: Collection[str]):
        self._periods = periods
        self._trusted_keys = trusted_keys
        self._known: set[int] = set()
        self._samples: tuple[list[tuple[int, Opening]], ...] = ([], [])  # heaps, of either period
        self._tables: dict[str, list[tuple[object, ...]]] = {name: [] for name in _COLUMNS}
        self._comments: list[Comment] = []

    def add(self, answer: AnswerRow) -> None:
        """Count an answer, the conversation that led to it and the opinions on it."""
        for opinion in answer.feedback:
            self._add_opinion(opinion, answer)
        time = answer.created_at
        if time not in self._periods:
            return
        now = time >= self._periods.middle
        ended = answer.finish_reason or "not sent to its end"
        refused = ended != "content_filter" and is_refusal(answer.text)
        length = len(words_of(answer.text, answer.tool_calls))
        self._tables["answers"].append((time, now, answer.full_model, length, ended, refused))
        # What guards found in a request is with each of its answers; it counts once.
        if answer.choice == 0:
            for finding in answer.findings:
                where = (finding["guard"], finding["place"], finding["action"])
                self._tables["findings"] += [(time, now, *where, category) for category in finding["categories"]]
            self._add_conversation(answer, now)

    def history(self) -> History:
        tables = {name: pd.DataFrame(found, columns=_COLUMNS[name]) for name, found in self._tables.items()}
        for table in tables.values():
            table["time"] = pd.to_datetime(table["time"], utc=True)
            table["now"] = table["now"].astype(bool)
        before, now = ([opening for _, opening in sorted(sample, reverse=True)] for sample in self._samples)
        return History(self._periods, **tables, comments=self._comments, openings=(before, now))

    def _add_opinion(self, opinion: OpinionRow, answer: AnswerRow) -> None:
        time = opinion.created_at
        if time not in self._periods or not opinion.holds:
            return
        now = time >= self._periods.middle
        person = person_of(opinion, "api_key" if opinion.api_key else "user", self._trusted_keys)
        author = json.dumps(person) if any(person) else None
        corrected = opinion.correction is not None
        self._tables["feedback"].append((time, now, answer.full_model, opinion.rating, corrected, author))
        self._tables["tags"] += [(time, now, tag) for tag in opinion.tags]
        if opinion.comment and now:
            model = answer.full_model
            self._comments.append(
                Comment(time, opinion.comment, opinion.rating, opinion.tags, model, answer.answer_id)
            )
            self._comments.sort(key=lambda comment: comment.created_at, reverse=True)
            del self._comments[COMMENTS:]

    def _add_conversation(self, answer: AnswerRow, now: bool) -> None:
        """Count a conversation unless it is known: each of its turns is an answer that holds all turns before it."""
        turns = [*answer.messages, Turn(role="assistant", content=answer.text)]
        first = next((place for place, turn in enumerate(turns) if turn["role"] == "user"), None)
        if first is None:
            return
        # It is known by who asked, and by what was said up to the first reply.
        reply = next(place for place, turn in enumerate(turns) if place > first and turn["role"] == "assistant")
        said = ([turn["role"], turn["content"]] for turn in turns[: reply + 1])
        begin = [answer.api_key or None, answer.user_id or None, *said]
        number = int.from_bytes(hashlib.sha256(json.dumps(begin).encode()).digest()[:8], "big")
        if number in self._known:
            return
        self._known.add(number)
        text = turns[first]["content"]
        language, score = identify(text)
        opening = Opening(words(text), len(text), language if score >= _LEAST_LANGUAGE_SCORE else UNCLEAR)
        self._tables["conversations"].append((answer.created_at, now, opening.characters, opening.language))
        # The smallest hashes of all are a random sample of them.
        heapq.heappush(self._samples[now], (-number, opening))
        if len(self._samples[now]) > _OPENINGS:
            heapq.heappop(self._samples[now])


_COLUMNS = {
    "conversations": ["time", "now", "characters", "language"],
    "answers": ["time", "now", "model", "characters", "finish_reason", "refused"],
    "findings": ["time", "now", "guard", "place", "action", "category"],
    "feedback": ["time", "now", "model", "rating", "corrected", "author"],
    "tags": ["time", "now", "tag"],
}
