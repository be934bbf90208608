"""The tables of the feedback database. Every change here needs a migration (`migrations/versions`)."""

import functools
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar

from sqlalchemy import JSON, CheckConstraint, DateTime, ForeignKey, Index, MetaData, Text, UniqueConstraint, text
from sqlalchemy.orm import DeclarativeBase, Mapped, foreign, mapped_column, relationship
from sqlalchemy.types import TypeDecorator

from hfchat.chat import Json
from hfchat.feedback.exchange import Call, GuardFinding, Rating, Turn, functions_of
from hfchat.messages import digest_of


class Words(TypeDecorator):
    """Text. PostgreSQL's holds no NUL, so one becomes U+FFFD, which is for what cannot be shown."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:
        return None if value is None else value.replace("\0", "\ufffd")


class Moment(TypeDecorator):
    """A time in UTC. SQLite keeps no time zone, so the driver returns times without one."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        if value is None:
            return None
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)


class Base(DeclarativeBase):
    type_annotation_map: ClassVar = {
        str: Words,
        datetime: Moment,
        Rating: Words,
        list[Turn]: JSON,
        list[Call]: JSON,
        list[Json]: JSON,
        list[GuardFinding]: JSON,
        dict[str, object]: JSON,
        list[str]: JSON,
    }
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class ConversationRow(Base):
    """The messages and the tools of a request, once for all of its answers."""

    __tablename__ = "conversations"

    answer_id: Mapped[str] = mapped_column(primary_key=True)
    messages: Mapped[list[Turn]]
    tools: Mapped[list[Json]] = mapped_column(default=list)


class AnswerRow(Base):
    """An answer, with its conversation (`hfchat.feedback.exchange.Exchange`).

    `prompt_hash` is the SHA-256 of the messages and tools as they are here: answers to the same prompt have the same.
    """

    __tablename__ = "answers"
    __table_args__ = (UniqueConstraint("answer_id", "choice"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    answer_id: Mapped[str]
    choice: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(index=True)
    model: Mapped[str]
    model_version: Mapped[str | None]
    template_fingerprint: Mapped[str | None]
    prompt_hash: Mapped[str] = mapped_column(index=True)
    text: Mapped[str]
    tool_calls: Mapped[list[Call]] = mapped_column(default=list)
    reasoning: Mapped[str] = mapped_column(default="")
    finish_reason: Mapped[str | None]
    sampling: Mapped[dict[str, object]]
    findings: Mapped[list[GuardFinding]]
    user_id: Mapped[str] = mapped_column(index=True)  # `user` is a word of SQL
    api_key: Mapped[str]

    conversation: Mapped[ConversationRow] = relationship(
        primaryjoin=lambda: foreign(AnswerRow.answer_id) == ConversationRow.answer_id, viewonly=True
    )
    feedback: Mapped[list["OpinionRow"]] = relationship(
        foreign_keys="OpinionRow.answer_key", back_populates="answer", order_by="OpinionRow.created_at", viewonly=True
    )

    @property
    def full_model(self) -> str:
        """`model`, or `model@version`."""
        return full_model(self.model, self.model_version)

    @property
    def messages(self) -> list[Turn]:
        """The conversation before it."""
        return self.conversation.messages

    @property
    def tools(self) -> list[Json]:
        """Those that the model was offered."""
        return self.conversation.tools

    @functools.cached_property
    def key(self) -> tuple[str, bytes]:
        """Hashes of the prompt and of what is answered: a model that does not sample gives the same answer under many
        ids. What it thought before is no part of it."""
        return self.prompt_hash, digest_of_answer(self.text, self.tool_calls)


class OpinionRow(Base):
    """What somebody said about an answer (`hfchat.feedback.exchange.Opinion`).

    When they change their mind there is a new row, and the old one gets the time at which it was replaced.
    """

    __tablename__ = "feedback"
    __table_args__ = (
        CheckConstraint("rating IN ('up', 'down')", name="rating"),
        Index(
            "uq_feedback_current",
            "answer_key",
            "api_key",
            "user_id",
            unique=True,
            sqlite_where=text("replaced_at IS NULL"),
            postgresql_where=text("replaced_at IS NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    answer_key: Mapped[int] = mapped_column(ForeignKey("answers.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[datetime] = mapped_column(index=True)
    replaced_at: Mapped[datetime | None]
    rating: Mapped[Rating | None]
    correction: Mapped[str | None]
    corrected_calls: Mapped[list[Call]] = mapped_column(default=list)
    comment: Mapped[str | None]
    tags: Mapped[list[str]]
    preferred_over_key: Mapped[int | None] = mapped_column(ForeignKey("answers.id", ondelete="SET NULL"), index=True)
    user_id: Mapped[str] = mapped_column(index=True)
    api_key: Mapped[str]

    answer: Mapped[AnswerRow] = relationship(foreign_keys=[answer_key], back_populates="feedback", viewonly=True)
    preferred_over: Mapped[AnswerRow | None] = relationship(foreign_keys=[preferred_over_key], viewonly=True)

    @property
    def holds(self) -> bool:
        """Whether its author has neither replaced it nor taken it back."""
        said = (self.rating, self.correction, self.comment, self.preferred_over_key)
        return self.replaced_at is None and (bool(self.tags) or any(value is not None for value in said))


def digest_of_answer(text: str, calls: Sequence[Call]) -> bytes:
    """The hash of what an answer says (`hfchat.messages.digest_of`)."""
    return digest_of([text, *functions_of(calls)] if calls else text, typed=True)


def full_model(model: str, version: str | None) -> str:
    """`model`, or `model@version`."""
    return model if version is None else f"{model}@{version}"
