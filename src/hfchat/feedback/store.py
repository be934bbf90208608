"""Write what people say of answers, with the answers, and take it out again."""

import hashlib
import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session, object_session

from hfchat.feedback.database import forget_deleted, reason
from hfchat.feedback.exchange import Exchange, Opinion
from hfchat.feedback.redaction import pseudonym
from hfchat.feedback.tables import Answer, Conversation, Feedback

_BATCH = 20  # rows


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
    """An opinion says nothing, and there is none that it could take back."""


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


def prompt_hash(messages: Sequence[Mapping[str, str]]) -> str:
    """The SHA-256 of a conversation's roles and texts."""
    turns = [[message["role"], message["content"]] for message in messages]
    return hashlib.sha256(json.dumps(turns, ensure_ascii=False).encode()).hexdigest()


class Store:
    """The feedback in a database. Its methods wait for the disk, and may be called from any thread.

    Args:
        engine: Of `hfchat.feedback.database.open_database`.
        redact: Takes personal data out of every text on its way in.
    """

    def __init__(self, engine: sa.Engine, redact: Callable[[str], str] = str):
        self.engine = engine
        self._redact = redact
        self._insert = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}[engine.dialect.name]

    def keep(self, *exchanges: Exchange) -> None:
        """Write answers that are not there yet, all or none of them.

        Raises:
            StoreError: If they could not be.
        """
        rows = self._rows(exchanges)
        with self._writing() as session:
            self._add(session, *rows)

    def say(self, opinion: Opinion, exchanges: Sequence[Exchange] = (), one_of_key: bool = False) -> Stored:
        """Write an opinion in the place of what the same person (`api_key` and `user`) said of the same answer.

        The same once more changes nothing, so who got no reply may send it again.

        Args:
            opinion: What is said.
            exchanges: The answers that it is about, as far as they may not be in the database yet.
            one_of_key: The person is the `api_key`, whichever `user` it names, because it may name anybody.

        Raises:
            UnknownAnswerError: If it is about an answer that is not there, or that another API key got.
            OtherPromptError: If the answer it prefers and the one it discards have not the same prompt.
            NothingSaidError: If it says nothing, and there is nothing to take back.
            StoreError: If it could not be written.
        """
        opinion = self._redacted_opinion(opinion)  # it takes time in which nobody should wait for a lock
        rows = self._rows(exchanges)
        with self._writing() as session:
            self._add(session, *rows)
            answer = self._find(session, opinion.answer_id, opinion.choice, opinion.api_key, "answer_id")
            discarded = None
            if opinion.preferred_over is not None:
                discarded = self._find(session, opinion.preferred_over, 0, opinion.api_key, "preferred_over")
                if discarded.prompt_hash != answer.prompt_hash or discarded is answer:
                    raise OtherPromptError
            return self._replace(session, opinion, answer, discarded, one_of_key)

    def delete_user(self, user: str, api_key: str | None = None) -> Counts:
        """Delete what a user asked and was answered, and what they said of any answer.

        An answer whose request named nobody is theirs if they gave feedback on it, as it is there because of that.

        Args:
            user: As requests and feedback name them.
            api_key: Only what came with this API key: another one's user of the same name may be somebody else.
        """

        def of_user(table: type[Answer] | type[Feedback]) -> sa.ColumnElement[bool]:
            same_key = sa.true() if api_key is None else table.api_key == api_key
            return sa.and_(table.user_id.in_([user, pseudonym(user)]), same_key)

        said = sa.select(Feedback.answer_key).where(of_user(Feedback))
        discarded = sa.select(Feedback.preferred_over_key).where(of_user(Feedback))
        nobodys = sa.and_(Answer.user_id == "", sa.or_(Answer.id.in_(said), Answer.id.in_(discarded)))
        return self._delete(sa.or_(of_user(Answer), nobodys), of_user(Feedback))

    def delete_answer(self, answer_id: str) -> Counts:
        """Delete the answers of a response, with the feedback on them."""
        return self._delete(Answer.answer_id == answer_id, sa.false())

    def delete_before(self, moment: datetime) -> Counts:
        """Delete the answers that were asked for before a moment, with the feedback on them."""
        return self._delete(Answer.created_at < moment, sa.false())

    def last_moment(self, longest_gap: timedelta) -> datetime | None:
        """When the last answer was asked for, of those before the first gap that is longer; None without answers.

        Raises:
            StoreError: If it cannot be read.
        """
        last = None
        moments = sa.select(Answer.created_at).order_by(Answer.created_at).execution_options(yield_per=1000)
        with _as_store_error(), Session(self.engine.execution_options(reads=True)) as session:
            for moment in session.scalars(moments):
                if last is not None and moment - last > longest_gap:
                    break
                last = moment
        return last

    def redact(self) -> Counts:
        """Redact all that is stored once more, as after a change of the rules.

        Returns:
            How many rows were changed.

        Raises:
            StoreError: If it could not be done; what was done by then stays.
        """

        def answer(row: Answer) -> dict[str, Any]:
            messages = self._redacted_value(row.conversation.messages)
            return {
                "prompt_hash": prompt_hash(messages),
                "text": self._redact(row.text),
                "sampling": self._redacted_value(row.sampling),
                "user_id": self._pseudonym(row.user_id),
            }

        def conversation(row: Conversation) -> dict[str, Any]:
            return {"messages": self._redacted_value(row.messages)}

        def feedback(row: Feedback) -> dict[str, Any]:
            user = self._pseudonym(row.user_id)
            # Who gave an opinion before names were redacted, and another one since, has two that hold.
            is_replaced = row.replaced_at is None and user != row.user_id and _has_opinion(row, user)
            return {
                "replaced_at": datetime.now(UTC) if is_replaced else row.replaced_at,
                "correction": self._redacted(row.correction),
                "comment": self._redacted(row.comment),
                "tags": [self._redact(tag) for tag in row.tags],
                "user_id": user,
            }

        counts = Counts(self._change(Answer, answer), self._change(Feedback, feedback))
        self._change(Conversation, conversation)  # last, as the answers are made with it
        return counts

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

    def _rows(self, exchanges: Sequence[Exchange]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Rows of conversations and of answers. The answers of one request have the same conversation."""
        messages: dict[str, list[dict[str, str]]] = {}
        for exchange in exchanges:
            if exchange.answer_id not in messages:
                messages[exchange.answer_id] = self._redacted_value(list(exchange.messages))
        conversations = [{"answer_id": answer_id, "messages": said} for answer_id, said in messages.items()]
        hashes = {answer_id: prompt_hash(said) for answer_id, said in messages.items()}
        return conversations, [self._row(exchange, hashes[exchange.answer_id]) for exchange in exchanges]

    def _row(self, exchange: Exchange, prompt_hash: str) -> dict[str, Any]:
        return {
            "answer_id": exchange.answer_id,
            "choice": exchange.choice,
            "created_at": exchange.created_at,
            "model": exchange.model,
            "model_version": exchange.model_version,
            "template_fingerprint": exchange.template_fingerprint,
            "prompt_hash": prompt_hash,
            "text": self._redact(exchange.text),
            "finish_reason": exchange.finish_reason,
            "sampling": self._redacted_value(dict(exchange.sampling)),
            "findings": [dict(finding) for finding in exchange.findings],
            "user_id": self._pseudonym(exchange.user),
            "api_key": exchange.api_key,
        }

    def _add(
        self, session: Session, conversations: Sequence[dict[str, Any]], answers: Sequence[dict[str, Any]]
    ) -> None:
        if answers:
            session.execute(self._insert(Conversation).on_conflict_do_nothing(), conversations)
            session.execute(self._insert(Answer).on_conflict_do_nothing(), answers)

    def _find(self, session: Session, answer_id: str, choice: int, api_key: str, field: str) -> Answer:
        """An answer, locked (by PostgreSQL; SQLite has one writer): of two opinions at once, the second replaces the
        first."""
        found = sa.select(Answer).where(Answer.answer_id == answer_id, Answer.choice == choice)
        answer = session.scalars(found.with_for_update()).one_or_none()
        if answer is None or answer.api_key != api_key:
            raise UnknownAnswerError(field)
        return answer

    def _replace(
        self, session: Session, opinion: Opinion, answer: Answer, discarded: Answer | None, one_of_key: bool
    ) -> Stored:
        """Write an opinion, if it is another than the one that its author has so far."""
        of_key = {"answer_key": answer.id, "api_key": opinion.api_key}
        mine = of_key | {"user_id": opinion.user}
        holding = sa.select(Feedback).filter_by(**(of_key if one_of_key else mine), replaced_at=None)
        # There may be several of one key: of before its users were taken for one person.
        held = session.scalars(holding.order_by(Feedback.created_at, Feedback.id)).all()
        before = held[-1] if held else None
        if before is None and not opinion.says_something:
            raise NothingSaidError
        said = {
            "rating": opinion.rating,
            "correction": opinion.correction,
            "comment": opinion.comment,
            "tags": list(opinion.tags),
            "preferred_over_key": discarded.id if discarded else None,
        }
        is_known = before is not None and all(getattr(before, name) == value for name, value in said.items())
        if is_known and len(held) == 1:
            return Stored(before.id, before.created_at, opinion, is_new=False, model_version=answer.model_version)
        now = datetime.now(UTC)
        for one in held:
            one.replaced_at = now
        session.flush()  # before the new one is there, as only one may hold
        row = Feedback(id=f"feedback-{uuid.uuid4().hex}", created_at=now, **mine, **said)
        session.add(row)
        return Stored(row.id, now, opinion, before.id if before else None, model_version=answer.model_version)

    def _redacted(self, text: str | None) -> str | None:
        return None if text is None else self._redact(text)

    def _redacted_value(self, value: Any) -> Any:
        """JSON with all texts in it redacted, such as stop strings."""
        if isinstance(value, Mapping):
            return {key: self._redacted_value(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._redacted_value(item) for item in value]
        return self._redact(value) if isinstance(value, str) else value

    def _pseudonym(self, user: str) -> str:
        return pseudonym(user, self._redact)

    def _redacted_opinion(self, opinion: Opinion) -> Opinion:
        return replace(
            opinion,
            correction=self._redacted(opinion.correction),
            comment=self._redacted(opinion.comment),
            tags=tuple(self._redact(tag) for tag in opinion.tags),
            user=self._pseudonym(opinion.user),
        )

    def _delete(self, answers: sa.ColumnElement[bool], feedback: sa.ColumnElement[bool]) -> Counts:
        gone = sa.or_(feedback, Feedback.answer_key.in_(sa.select(Answer.id).where(answers)))
        with self._writing() as session:
            said = session.scalar(sa.select(sa.func.count()).select_from(Feedback).where(gone))
            answered = session.execute(sa.delete(Answer).where(answers)).rowcount  # and the feedback on them
            session.execute(sa.delete(Feedback).where(feedback))
            has_answers = sa.exists().where(Answer.answer_id == Conversation.answer_id)
            session.execute(sa.delete(Conversation).where(~has_answers))
        return Counts(answered, said)

    def _change(self, table: type[Answer | Conversation | Feedback], changed: Callable[[Any], dict[str, Any]]) -> int:
        """Give all rows their changed values, a few at a time, so that nobody waits long; how many had others."""
        count, after = 0, sa.true()
        key = Conversation.answer_id if table is Conversation else table.id
        while True:
            with self._writing() as session:
                rows = session.scalars(sa.select(table).where(after).order_by(key).limit(_BATCH)).all()
                for row in rows:
                    other = {name: value for name, value in changed(row).items() if getattr(row, name) != value}
                    for name, value in other.items():
                        setattr(row, name, value)
                    count += bool(other)
            if not rows:
                return count
            after = key > getattr(rows[-1], key.key)


def _has_opinion(other: Feedback, user: str) -> bool:
    """Whether an opinion of a user holds on the answer that another one is about, with the same API key."""
    session = object_session(other)
    assert session  # the row was just read
    same = sa.select(Feedback.id).filter_by(answer_key=other.answer_key, api_key=other.api_key, user_id=user)
    return session.scalars(same.where(Feedback.replaced_at.is_(None))).first() is not None


@contextmanager
def _as_store_error() -> Iterator[None]:
    try:
        yield
    except (sa.exc.DBAPIError, sa.exc.TimeoutError) as error:
        raise StoreError(reason(error)) from error
