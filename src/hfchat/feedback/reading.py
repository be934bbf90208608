"""Read what is stored, answers with the feedback on them, and write it to files that `datasets` opens."""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.orm import Session, joinedload, selectinload

from hfchat.errors import UserError
from hfchat.feedback.exchange import Call, Rating, Turn
from hfchat.feedback.private_file import private_file
from hfchat.feedback.redaction import pseudonym
from hfchat.feedback.tables import AnswerRow, OpinionRow
from hfchat.messages import arguments_as_text, with_arguments

if TYPE_CHECKING:
    import pyarrow

_BEYOND_INT64 = 2**63
_BATCH = 200  # answers in memory, and in a group of rows of the Parquet file


@dataclass(frozen=True)
class Selection:
    """Which answers to read. What is None leaves no answer out.

    Attributes:
        user: Those that this user asked for or gave feedback on.
        api_key: Those that were asked for with this API key.
        since: Those that were asked for, or got feedback, then or later.
        rating: Those with this rating, if it was not replaced.
        rated: Only those with feedback.
    """

    user: str | None = None
    api_key: str | None = None
    since: datetime | None = None
    rating: Rating | None = None
    rated: bool = False

    def condition(self) -> sa.ColumnElement[bool]:
        """The condition on `AnswerRow`, for SQL."""
        conditions: list[sa.ColumnElement[bool]] = [sa.true()]
        if self.user is not None:
            names = [self.user, pseudonym(self.user)]
            conditions.append(sa.or_(AnswerRow.user_id.in_(names), _has(OpinionRow.user_id.in_(names))))
        if self.api_key is not None:
            conditions.append(AnswerRow.api_key == self.api_key)
        if self.since is not None:
            conditions.append(sa.or_(AnswerRow.created_at >= self.since, _has(OpinionRow.created_at >= self.since)))
        if self.rating is not None:
            conditions.append(_has(sa.and_(OpinionRow.rating == self.rating, OpinionRow.replaced_at.is_(None))))
        if self.rated:
            conditions.append(_has(sa.true()))
        return sa.and_(*conditions)


def parse_moment(text: str, name: str) -> datetime:
    """A date or a time as ISO 8601 writes it; without a time zone it is in UTC.

    Raises:
        ValueError: If the text is not a date or a time; the message calls it `name`.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"{name} must be a date or a time, such as 2025-01-31, not {text!r}") from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def read_answers(engine: sa.Engine, selection: Selection = Selection()) -> Iterator[AnswerRow]:
    """Each selected answer with its conversation and all feedback on it, oldest first.

    What they hold is loaded, so they can be used after the iteration too.

    Args:
        engine: What `hfchat.feedback.database.open_database` returns. Nobody who writes has to wait.
        selection: Which answers.
    """
    answers = (
        sa.select(AnswerRow)
        .where(selection.condition())
        .order_by(AnswerRow.id)
        .options(
            joinedload(AnswerRow.conversation),
            selectinload(AnswerRow.feedback).joinedload(OpinionRow.preferred_over).joinedload(AnswerRow.conversation),
        )
        .execution_options(yield_per=_BATCH)
    )
    with Session(engine.execution_options(reads=True)) as session:
        yield from session.scalars(answers)


def rows(engine: sa.Engine, selection: Selection = Selection()) -> Iterator[dict[str, object]]:
    """The selected answers as exports have them (`as_row`), oldest first."""
    return (as_row(answer, answer.feedback) for answer in read_answers(engine, selection))


def as_row(answer: AnswerRow, feedback: Sequence[OpinionRow]) -> dict[str, object]:
    """An answer and the feedback on it as plain values.

    Returns:
        The fields of `hfchat.feedback.exchange.Exchange`, with `answer` for its text, and `prompt_hash` and
        `feedback`: a list of `Opinion`, oldest first, each with `id`, `created_at` and `replaced_at` (None for what
        holds). Times are ISO 8601 in UTC; nobody in particular is None. What differs in shape from row to row is JSON
        in a text, so that a file has one type for each column: the arguments of calls, as OpenAI's API has them, and
        `tools`. `recipes/prepare_conversations.py` reads both.
    """
    return {
        "answer_id": answer.answer_id,
        "choice": answer.choice,
        "created_at": answer.created_at.isoformat(),
        "model": answer.model,
        "model_version": answer.model_version,
        "template_fingerprint": answer.template_fingerprint,
        "prompt_hash": answer.prompt_hash,
        "messages": [_message(turn) for turn in answer.messages],
        "tools": json.dumps(answer.tools, ensure_ascii=False) if answer.tools else None,
        "answer": answer.text,
        "tool_calls": _calls(answer.tool_calls),
        "reasoning": answer.reasoning or None,
        "finish_reason": answer.finish_reason,
        "sampling": answer.sampling,
        "findings": answer.findings,
        "user": answer.user_id or None,
        "api_key": answer.api_key or None,
        # Replaced opinions too: whoever learns from an export decides what counts.
        "feedback": [
            {
                "id": opinion.id,
                "created_at": opinion.created_at.isoformat(),
                "replaced_at": opinion.replaced_at.isoformat() if opinion.replaced_at else None,
                "rating": opinion.rating,
                "correction": opinion.correction,
                "corrected_calls": _calls(opinion.corrected_calls),
                "comment": opinion.comment,
                "tags": opinion.tags,
                "preferred_over": opinion.preferred_over.answer_id if opinion.preferred_over else None,
                "user": opinion.user_id or None,
                "api_key": opinion.api_key or None,
            }
            for opinion in feedback
        ],
    }


def _message(turn: Turn) -> dict[str, object]:
    return dict(with_arguments(turn, arguments_as_text))


def _calls(calls: Sequence[Call]) -> list[dict[str, object]] | None:
    """Calls as OpenAI's API has them; None for none."""
    return with_arguments({"tool_calls": calls}, arguments_as_text)["tool_calls"] or None


def export(engine: sa.Engine, target: str, selection: Selection) -> int:
    """Write the selected answers (`rows`) to a file that appears whole or not at all.

    Args:
        engine: What `hfchat.feedback.database.open_database` returns.
        target: `NAME.jsonl`, `NAME.parquet`, or `-` for JSON lines on standard output. Parquet has no whole numbers
            beyond 64 bits: where a request had one, such as a seed, it is null there.
        selection: Which answers.

    Returns:
        How many answers were written.

    Raises:
        UserError: If the file is of neither kind, or cannot be written.
    """
    answers = read_answers(engine, selection)
    if target == "-":
        return _write_json(answers, sys.stdout)
    # A wrong name is refused before anything is read or written.
    path = Path(target)
    if path.suffix not in (".jsonl", ".parquet"):
        raise UserError(f"{target}: write to a file named *.jsonl or *.parquet, or to - (standard output)")
    with private_file(path) as file:
        if path.suffix == ".parquet":
            return _write_parquet(answers, file)
        with open(os.dup(file.fileno()), "w", encoding="utf-8") as lines:
            return _write_json(answers, lines)


def _has(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[bool]:
    return sa.exists().where(OpinionRow.answer_key == AnswerRow.id, condition)


def _write_json(answers: Iterable[AnswerRow], file: IO[str]) -> int:
    count = 0
    for answer in answers:
        file.write(json.dumps(as_row(answer, answer.feedback), ensure_ascii=False) + "\n")
        count += 1
    return count


def _write_parquet(answers: Iterator[AnswerRow], file: IO[bytes]) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    count, schema = 0, _schema()
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        while batch := list(islice(answers, _BATCH)):
            fitting = [as_row(answer, answer.feedback) | {"sampling": _fitting(answer.sampling)} for answer in batch]
            writer.write_table(pa.Table.from_pylist(fitting, schema))
            count += len(batch)
    return count


def _fitting(sampling: Mapping[str, object]) -> dict[str, object]:
    """As the columns hold it: an object is JSON in a text, and a whole number that 64 bits cannot hold is no number;
    the `max_tokens` of an upstream has no maximum."""
    fitting: dict[str, object] = {}
    for name, value in sampling.items():
        is_beyond = isinstance(value, int) and not -_BEYOND_INT64 <= value < _BEYOND_INT64
        value = json.dumps(value, ensure_ascii=False) if isinstance(value, Mapping) else value
        fitting[name] = None if is_beyond else value
    return fitting


def _schema() -> "pyarrow.Schema":
    import pyarrow as pa

    # Spelled out, because a column in which nobody said anything has no type to be inferred.
    text, texts = pa.string(), pa.list_(pa.string())
    number, share = pa.int64(), pa.float64()
    function = pa.struct({"name": text, "arguments": text})
    calls = pa.list_(pa.struct({"id": text, "type": text, "function": function}))
    message = dict.fromkeys(("role", "content", "reasoning_content", "tool_call_id", "name"), text) | {
        "tool_calls": calls
    }
    finding = {"guard": text, "place": text, "action": text, "categories": texts}
    sampling = {
        "max_tokens": number,
        "temperature": share,
        "top_p": share,
        "seed": number,
        "presence_penalty": share,
        "frequency_penalty": share,
        "stop": texts,
        "top_k": number,
        "min_p": share,
        "repetition_penalty": share,
        **dict.fromkeys(("logit_bias", "tool_choice", "response_format", "reasoning_effort"), text),
    }
    said = ("id", "created_at", "replaced_at", "rating", "correction", "comment")
    feedback = dict.fromkeys(said, text) | {"corrected_calls": calls, "tags": texts}
    feedback |= dict.fromkeys(("preferred_over", "user", "api_key"), text)
    return pa.schema(
        {
            "answer_id": text,
            "choice": number,
            **dict.fromkeys(("created_at", "model", "model_version", "template_fingerprint", "prompt_hash"), text),
            "messages": pa.list_(pa.struct(message)),
            "tools": text,
            "answer": text,
            "tool_calls": calls,
            **dict.fromkeys(("reasoning", "finish_reason"), text),
            "sampling": pa.struct(sampling),
            "findings": pa.list_(pa.struct(finding)),
            **dict.fromkeys(("user", "api_key"), text),
            "feedback": pa.list_(pa.struct(feedback)),
        }
    )
