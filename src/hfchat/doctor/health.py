"""What is wrong with the texts of a dataset that a training would not notice."""

import hashlib
import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

_LANGUAGE_SAMPLE = 300
_BAR = 30  # characters
CONVERSATION_COLUMNS = ("prompt", "messages", "completion", "chosen", "rejected")

Row = Mapping[str, object]  # a document in one of its columns, or conversations in some


class Turn(TypedDict, total=False):
    """One message of a conversation."""

    role: str
    content: str | None
    tool_calls: list[object]


@dataclass(frozen=True)
class Duplicates:
    """Rows that are there more than once.

    Attributes:
        within: Rows of a split that an earlier row of it equals.
        shared: Rows of the evaluation split that are in the train split too.
        same_prompt: All other rows of the evaluation split whose first user turn is in the train split; None for
            documents.
    """

    within: int
    shared: int
    same_prompt: int | None = None


@dataclass(frozen=True)
class Lengths:
    """How long rows are, in tokens.

    Attributes:
        quantiles: By share: the least number of tokens that so many rows do not exceed.
        over_limit: Share of the rows that have more than the limit.
        histogram: By powers of two: `(from, rows)`.
        rows: How many were counted.
    """

    quantiles: dict[float, int]
    over_limit: float
    histogram: list[tuple[int, int]]
    rows: int

    def bars(self) -> list[str]:
        most = max((rows for _, rows in self.histogram), default=1)
        return [f"{start:>7,}+ {'█' * math.ceil(_BAR * rows / most)} {rows:,}" for start, rows in self.histogram]


def digest(text: str) -> bytes:
    """The hash of a text in Unicode's composed form, with single spaces, without case; 16 bytes."""
    normalized = " ".join(unicodedata.normalize("NFC", text).casefold().split())
    return hashlib.sha256(normalized.encode("utf-8", "surrogatepass")).digest()[:16]


def text_of(row: Row, text_column: str | None) -> str:
    """What a row says: its document, or its turns with their roles."""
    if text_column is not None:
        return str(row[text_column] or "")
    return "\n".join(f"{turn.get('role')}: {turn.get('content') or ''}" for turn in turns_of(row))


def turns_of(row: Row, columns: Sequence[str] = CONVERSATION_COLUMNS) -> list[Turn]:
    """The messages of a conversation, a pair or a thumb, column by column."""
    turns: list[Turn] = []
    for column in columns:
        messages = row.get(column)
        turns += messages if isinstance(messages, list) else []
    return turns


def first_user_turn(row: Row) -> str:
    return next((turn.get("content") or "" for turn in turns_of(row) if turn.get("role") == "user"), "")


def find_duplicates(train: Iterable[Row], evaluation: Iterable[Row], text_column: str | None) -> Duplicates:
    """Exact duplicates after normalization, see `digest`.

    Args:
        train: Rows to learn from.
        evaluation: Rows to measure on.
        text_column: Column of the documents; None for conversations.
    """
    seen: set[bytes] = set()
    prompts: set[bytes] = set()
    within = shared = same_prompt = 0
    for row in train:
        key = digest(text_of(row, text_column))
        within += key in seen
        seen.add(key)
        if text_column is None:
            prompts.add(digest(first_user_turn(row)))
    for row in evaluation:
        if digest(text_of(row, text_column)) in seen:
            shared += 1
        elif text_column is None and digest(first_user_turn(row)) in prompts:
            same_prompt += 1
    return Duplicates(within, shared, same_prompt if text_column is None else None)


def empty_rows(rows: Iterable[Row], text_column: str | None) -> list[int]:
    """Numbers of the rows with an empty document, or with a turn that neither says anything nor calls a tool."""
    return [number for number, row in enumerate(rows) if _is_empty(row, text_column)]


def _is_empty(row: Row, text_column: str | None) -> bool:
    if text_column is not None:
        return not text_of(row, text_column).strip()
    turns = turns_of(row)
    return not turns or any(not (turn.get("content") or "").strip() and not turn.get("tool_calls") for turn in turns)


def lengths(tokens: Sequence[int], limit: int | None) -> Lengths:
    """How long rows are.

    Args:
        tokens: Tokens of each row.
        limit: Tokens that a row may have; None where longer ones are cut into blocks.
    """
    ordered = sorted(tokens)
    quantiles = {share: ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.05, 0.5, 0.95, 1.0)}
    bins = Counter(2 ** int(math.log2(max(count, 1))) for count in ordered)
    over = sum(count > limit for count in ordered) / len(ordered) if limit is not None else 0.0
    return Lengths(quantiles, over, sorted(bins.items()), len(ordered))


def languages(texts: Sequence[str]) -> list[tuple[str, float]] | None:
    """Shares of the languages of texts, the most frequent first; None where no identification is installed.

    At most some hundred of them are read, evenly from all.
    """
    try:
        from hfchat.language import identify

        step = max(1, len(texts) // _LANGUAGE_SAMPLE)
        found = Counter(identify(text)[0] for text in texts[::step])
    except ImportError:  # the extra `data`
        return None
    return [(language, count / found.total()) for language, count in found.most_common()]
