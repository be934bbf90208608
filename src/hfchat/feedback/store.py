"""Write what people say about answers, with the answers, and delete it again."""

import hashlib
import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session, object_session

from hfchat.chat import Json
from hfchat.feedback.database import forget_deleted, reason
from hfchat.feedback.exchange import Exchange, Opinion, Turn, functions_of
from hfchat.feedback.redaction import pseudonym, redacted
from hfchat.feedback.tables import AnswerRow, Base, ConversationRow, OpinionRow

_BATCH = 20  # rows

Values = dict[str, object]  # of the columns of a row
_Row = TypeVar("_Row", bound=Base)


class StoreError(Exception):
    """The database cannot be used now: locked, full, or gone. Nothing of what was to be written is in it."""


class UnknownAnswerError(Exception):
    """There is no such answer. `field` is where it is named."""

    def __init__(self, field: str):
        super().__init__(field)
        self.field = field


class OtherPromptError(Exception):
    """An answer is preferred over one to another prompt."""


class NothingSaidError(Exception):
    """An opinion is empty, and there is no earlier one that it could take back."""


@dataclass(frozen=True)
class Stored:
    """An opinion as it is in the database, its personal data redacted.

    Attributes:
        id: `feedback-...`.
        created_at: When it was stored first.
        opinion: What was said.
        replaces: The id of what the same person had said before; None if that is nothing.
        is_new: Whether it was not there yet.
        model_version: Which version of the model gave the answer; None if it has none.
    """

    id: str
    created_at: datetime
    opinion: Opinion
    replaces: str | None = None
    is_new: bool = True
    model_version: str | None = None


@dataclass(frozen=True)
class Counts:
    """How many rows of each table."""

    answers: int
    feedback: int


def prompt_hash(messages: Sequence[Turn], tools: Sequence[Json] = ()) -> str:
    """The SHA-256 of a conversation: its roles, texts, calls and reasoning, and the tools that were offered."""
    turns: list[object] = []
    for message in messages:
        turn: list[object] = [message["role"], message["content"]]
        # Nothing more where there is no more: the hashes of conversations without tools stay what they were.
        if calls := message.get("tool_calls"):
            turn.append(functions_of(calls))
        if reasoning := message.get("reasoning_content"):
            turn.append(reasoning)
        turns.append(turn)
    if tools:
        turns.append(list(tools))
    return hashlib.sha256(json.dumps(turns, ensure_ascii=False).encode()).hexdigest()


class Store:
    """The feedback in a database. Its methods wait for the disk, and may be called from any thread.

    Args:
        engine: What `hfchat.feedback.database.open_database` returns.
        redact: Takes personal data out of every text on its way in.
    """

    def __init__(self, engine: sa.Engine, redact: Callable[[str], str] = str):
        self.engine = engine
        self._redact = redact
        inserts: dict[str, Callable[[type[Base]], sqlite.Insert | postgresql.Insert]] = {
            "sqlite": sqlite.insert,
            "postgresql": postgresql.insert,
        }
        self._insert = inserts[engine.dialect.name]

    def keep(self, *exchanges: Exchange) -> None:
        """Write answers that are not there yet, all or none of them.

        Raises:
            StoreError: If they could not be.
        """
        rows = self._rows(exchanges)
        with self._writing() as session:
            self._add(session, *rows)

    def say(self, opinion: Opinion, exchanges: Sequence[Exchange] = (), one_of_key: bool = False) -> Stored:
        """Write an opinion in place of what the same person (`api_key` and `user`) said about the same answer.

        The same opinion once more changes nothing, so a client that got no reply may send it again.

        Args:
            opinion: What is said.
            exchanges: The answers that it is about, if they may not be in the database yet.
            one_of_key: Whether the person is the `api_key`, whichever `user` it names, because it may name anybody.

        Raises:
            UnknownAnswerError: If it is about an answer that is not there, or that another API key got.
            OtherPromptError: If the answer it prefers and the one it discards have different prompts.
            NothingSaidError: If it says nothing, and there is nothing to take back.
            StoreError: If it could not be written.
        """
        opinion = self._redacted_opinion(opinion)  # it takes time in which nobody should wait for a lock
        rows = self._rows(exchanges)
        with self._writing() as session:
            self._add(session, *rows)
            # The answer is locked from here on, so that of two opinions at once the second replaces the first.
            answer = self._find(session, opinion.answer_id, opinion.choice, opinion.api_key, "answer_id")
            discarded = None
            if opinion.preferred_over is not None:
                discarded = self._find(session, opinion.preferred_over, 0, opinion.api_key, "preferred_over")
                if discarded.prompt_hash != answer.prompt_hash or discarded is answer:
                    raise OtherPromptError
            return self._replace(session, opinion, answer, discarded, one_of_key)

    def tools_of(self, answer_id: str, choice: int, api_key: str) -> list[Json] | None:
        """The tools that a model was offered for an answer; None for one that is not there, or another API key's.

        Raises:
            StoreError: If it cannot be read.
        """
        answer = sa.and_(AnswerRow.answer_id == answer_id, AnswerRow.choice == choice, AnswerRow.api_key == api_key)
        found = sa.select(ConversationRow.tools).join(AnswerRow, AnswerRow.answer_id == ConversationRow.answer_id)
        with _as_store_error(), Session(self.engine.execution_options(reads=True)) as session:
            return session.scalars(found.where(answer)).one_or_none()

    def delete_user(self, user: str, api_key: str | None = None) -> Counts:
        """Delete what a user asked and was answered, and what they said about any answer.

        An answer whose request named nobody is theirs if they gave feedback on it: it is stored because of that.

        Args:
            user: The user's name in requests and feedback.
            api_key: Only what came with this API key: another key's user of the same name may be somebody else.
        """

        def of_user(table: type[AnswerRow] | type[OpinionRow]) -> sa.ColumnElement[bool]:
            same_key = sa.true() if api_key is None else table.api_key == api_key
            return sa.and_(table.user_id.in_([user, pseudonym(user)]), same_key)

        said = sa.select(OpinionRow.answer_key).where(of_user(OpinionRow))
        discarded = sa.select(OpinionRow.preferred_over_key).where(of_user(OpinionRow))
        nobodys = sa.and_(AnswerRow.user_id == "", sa.or_(AnswerRow.id.in_(said), AnswerRow.id.in_(discarded)))
        return self._delete(sa.or_(of_user(AnswerRow), nobodys), of_user(OpinionRow))

    def delete_answer(self, answer_id: str) -> Counts:
        """Delete the answers of a response, with the feedback on them."""
        return self._delete(AnswerRow.answer_id == answer_id, sa.false())

    def delete_before(self, moment: datetime) -> Counts:
        """Delete the answers that were asked for before a moment, with the feedback on them."""
        return self._delete(AnswerRow.created_at < moment, sa.false())

    def last_moment(self, longest_gap: timedelta) -> datetime | None:
        """When the last answer before the first longer gap was asked for; None without answers.

        Raises:
            StoreError: If it cannot be read.
        """
        last = None
        moments = sa.select(AnswerRow.created_at).order_by(AnswerRow.created_at).execution_options(yield_per=1000)
        with _as_store_error(), Session(self.engine.execution_options(reads=True)) as session:
            for moment in session.scalars(moments):
                if last is not None and moment - last > longest_gap:
                    break
                last = moment
        return last

    def redact(self) -> Counts:
        """Redact everything that is stored once more, for example after a change of the rules.

        Returns:
            How many rows were changed.

        Raises:
            StoreError: If it could not be done; what was done by then stays.
        """
        # Conversations last, because the hashes in the answers are made from them.
        counts = Counts(self._change(AnswerRow, self._redact_answer), self._change(OpinionRow, self._redact_opinion))
        self._change(ConversationRow, self._redact_conversation)
        return counts

    def _redact_answer(self, row: AnswerRow) -> None:
        row.prompt_hash = prompt_hash(self._redacted_value(row.messages), self._redacted_value(row.tools))
        row.text = self._redact(row.text)
        row.tool_calls = self._redacted_value(row.tool_calls)
        row.reasoning = self._redact(row.reasoning)
        row.sampling = self._redacted_value(row.sampling)
        row.user_id = self._pseudonym(row.user_id)

    def _redact_conversation(self, row: ConversationRow) -> None:
        row.messages = self._redacted_value(row.messages)
        row.tools = self._redacted_value(row.tools)

    def _redact_opinion(self, row: OpinionRow) -> None:
        user = self._pseudonym(row.user_id)
        # A person who gave one opinion before names were redacted, and another since, has two that hold.
        if row.replaced_at is None and user != row.user_id and _has_opinion(row, user):
            row.replaced_at = datetime.now(UTC)
        row.correction = self._redacted_value(row.correction)
        row.corrected_calls = self._redacted_value(row.corrected_calls)
        row.comment = self._redacted_value(row.comment)
        row.tags = self._redacted_value(row.tags)
        row.user_id = user

    def forget_deleted(self) -> bool:
        """Make sure that what was deleted or redacted is in no file (`hfchat.feedback.database.forget_deleted`)."""
        with _as_store_error():
            return forget_deleted(self.engine)

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def _writing(self) -> Iterator[Session]:
        """A transaction that is committed at the end; an error undoes it."""
        with _as_store_error(), Session(self.engine, expire_on_commit=False) as session, session.begin():
            yield session

    def _rows(self, exchanges: Sequence[Exchange]) -> tuple[list[Values], list[Values]]:
        """Rows of conversations and of answers. The answers of one request have the same conversation."""
        conversations: dict[str, Values] = {}
        hashes: dict[str, str] = {}
        for exchange in exchanges:
            id = exchange.answer_id
            if id not in conversations:
                messages, tools = (self._redacted_value(list(said)) for said in (exchange.messages, exchange.tools))
                conversations[id] = {"answer_id": id, "messages": messages, "tools": tools}
                hashes[id] = prompt_hash(messages, tools)
        return list(conversations.values()), [
            self._row(exchange, hashes[exchange.answer_id]) for exchange in exchanges
        ]

    def _row(self, exchange: Exchange, prompt_hash: str) -> Values:
        as_they_are = ("answer_id", "choice", "created_at", "model", "model_version", "template_fingerprint")
        return {name: getattr(exchange, name) for name in (*as_they_are, "finish_reason", "api_key")} | {
            "prompt_hash": prompt_hash,
            "text": self._redact(exchange.text),
            "tool_calls": self._redacted_value(exchange.tool_calls),
            "reasoning": self._redact(exchange.reasoning),
            "sampling": self._redacted_value(exchange.sampling),
            "findings": list(exchange.findings),
            "user_id": self._pseudonym(exchange.user),
        }

    def _add(self, session: Session, conversations: Sequence[Values], answers: Sequence[Values]) -> None:
        if answers:
            session.execute(self._insert(ConversationRow).on_conflict_do_nothing(), conversations)
            session.execute(self._insert(AnswerRow).on_conflict_do_nothing(), answers)

    def _find(self, session: Session, answer_id: str, choice: int, api_key: str, field: str) -> AnswerRow:
        """An answer, locked (by PostgreSQL; SQLite has one writer)."""
        found = sa.select(AnswerRow).where(AnswerRow.answer_id == answer_id, AnswerRow.choice == choice)
        answer = session.scalars(found.with_for_update()).one_or_none()
        if answer is None or answer.api_key != api_key:
            raise UnknownAnswerError(field)
        return answer

    def _replace(
        self, session: Session, opinion: Opinion, answer: AnswerRow, discarded: AnswerRow | None, one_of_key: bool
    ) -> Stored:
        """Write an opinion, if it is another than the one that its author has so far."""
        held = sa.select(OpinionRow).filter_by(answer_key=answer.id, api_key=opinion.api_key, replaced_at=None)
        if not one_of_key:
            held = held.filter_by(user_id=opinion.user)
        # There may be several of one key, from before its users were taken for one person.
        mine = session.scalars(held.order_by(OpinionRow.created_at, OpinionRow.id)).all()
        before = mine[-1] if mine else None
        if before is None and not opinion.says_something:
            raise NothingSaidError
        values: Values = {
            "rating": opinion.rating,
            "correction": opinion.correction,
            "corrected_calls": list(opinion.corrected_calls),
            "comment": opinion.comment,
            "tags": list(opinion.tags),
            "preferred_over_key": discarded.id if discarded else None,
        }
        # The same once more changes nothing.
        if before is not None and len(mine) == 1 and values == {name: getattr(before, name) for name in values}:
            return Stored(before.id, before.created_at, opinion, is_new=False, model_version=answer.model_version)
        now = datetime.now(UTC)
        for row in mine:
            row.replaced_at = now
        session.flush()  # before the new one is there, because only one may hold
        new = OpinionRow(
            id=f"feedback-{uuid.uuid4().hex}",
            answer_key=answer.id,
            created_at=now,
            user_id=opinion.user,
            api_key=opinion.api_key,
            **values,
        )
        session.add(new)
        return Stored(new.id, now, opinion, before.id if before else None, model_version=answer.model_version)

    def _redacted_value(self, value: Any) -> Any:
        return redacted(value, self._redact)

    def _pseudonym(self, user: str) -> str:
        return pseudonym(user, self._redact)

    def _redacted_opinion(self, opinion: Opinion) -> Opinion:
        return replace(
            opinion,
            correction=self._redacted_value(opinion.correction),
            corrected_calls=tuple(self._redacted_value(opinion.corrected_calls)),
            comment=self._redacted_value(opinion.comment),
            tags=tuple(self._redacted_value(opinion.tags)),
            user=self._pseudonym(opinion.user),
        )

    def _delete(self, answers: sa.ColumnElement[bool], feedback: sa.ColumnElement[bool]) -> Counts:
        said = sa.or_(feedback, OpinionRow.answer_key.in_(sa.select(AnswerRow.id).where(answers)))
        with self._writing() as session:
            counts = Counts(_count(session, AnswerRow, answers), _count(session, OpinionRow, said))
            session.execute(sa.delete(AnswerRow).where(answers))  # and, by its foreign key, the feedback on them
            session.execute(sa.delete(OpinionRow).where(feedback))
            has_answers = sa.exists().where(AnswerRow.answer_id == ConversationRow.answer_id)
            session.execute(sa.delete(ConversationRow).where(~has_answers))
        return counts

    def _change(self, table: type[_Row], change: Callable[[_Row], None]) -> int:
        """Change all rows, a few at a time, so that nobody waits long. Returns how many are different now."""
        count = 0
        after: sa.ColumnElement[bool] = sa.true()
        (key,) = sa.inspect(table).primary_key
        while True:
            with self._writing() as session:
                rows = session.scalars(sa.select(table).where(after).order_by(key).limit(_BATCH)).all()
                for row in rows:
                    change(row)
                    count += session.is_modified(row)
            if not rows:
                return count
            after = key > getattr(rows[-1], key.name)


def _count(session: Session, table: type[Base], condition: sa.ColumnElement[bool]) -> int:
    return session.scalars(sa.select(sa.func.count()).select_from(table).where(condition)).one()


def _has_opinion(other: OpinionRow, user: str) -> bool:
    """Whether an opinion of a user holds on the answer that another one is about, with the same API key."""
    session = object_session(other)
    assert session  # the row was just read
    same = sa.select(OpinionRow.id).filter_by(answer_key=other.answer_key, api_key=other.api_key, user_id=user)
    return session.scalars(same.where(OpinionRow.replaced_at.is_(None))).first() is not None


@contextmanager
def _as_store_error() -> Iterator[None]:
    try:
        yield
    except (sa.exc.DBAPIError, sa.exc.TimeoutError) as error:
        raise StoreError(reason(error)) from error
