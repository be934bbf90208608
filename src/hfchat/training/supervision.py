"""From conversations to tokens and labels: which tokens are learned is decided, counted and shown here."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING

from hfchat.chat import Json
from hfchat.chat_template import check_end_of_turn, fingerprint, recorded_fingerprint, set_chat_template
from hfchat.dataset import as_before_arrow
from hfchat.errors import UserError
from hfchat.messages import ROLES_WITH_TOOLS, check_learned, parse_tools
from hfchat.models import load_tokenizer
from hfchat.token_ids import Messages, supervise_conversation
from hfchat.training.packing import IGNORE

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

_SHOWN_CHARACTERS = 1200  # of each, and of each stretch of what is supervised
_SHOWN_BETWEEN = 400  # of a stretch of what is not, such as a list of tools


@dataclass
class Supervision:
    """What of a dataset is learned.

    Attributes:
        conversations: Conversations kept.
        too_long: Conversations left out because they have more than `max_length` tokens. None is cut, because a cut
            one would teach the model not to stop.
        tokens: Tokens of the kept ones.
        supervised_tokens: Those that get loss: what the assistant says, its end-of-turn tokens included.
        longest: Tokens of the longest conversation, kept or not.
        calls: Calls of tools among what is supervised.
        thoughts: Turns among it that have reasoning.
        telling: Row of the first kept conversation with both of these or, if none has both, with one; else None.
    """

    conversations: int
    too_long: int
    tokens: int
    supervised_tokens: int
    longest: int
    calls: int = 0
    thoughts: int = 0
    telling: int | None = None

    def __str__(self) -> str:
        each = self.supervised_tokens / max(self.conversations, 1)
        text = (
            f"{self.conversations:,} conversations, {self.tokens:,} tokens, {self.supervised_tokens:,} of them "
            f"supervised ({self.supervised_tokens / max(self.tokens, 1):.0%}, {each:.0f} a conversation); the longest "
            f"has {self.longest:,}; 0 were cut, {self.too_long:,} longer than max_length were left out"
        )
        if self.calls or self.thoughts:
            text += f"; {self.calls:,} calls of tools and {self.thoughts:,} turns with reasoning are learned"
        return text

    def as_metrics(self, prefix: str) -> dict[str, int]:
        return {f"{prefix}_{name}": value for name, value in asdict(self).items() if name != "telling"}


def load_chat_tokenizer(
    base: str, revision: str, *, allow_mismatch: bool, system_message: str | None = None
) -> tuple["PreTrainedTokenizerBase", list[int]]:
    """The tokenizer of a base with the project's chat template.

    Args:
        base: Folder or Hub id of the base.
        revision: Revision of the Hub id.
        allow_mismatch: Take also a base that was trained with another version of the template.
        system_message: What the system says where a conversation says nothing, see `set_chat_template`.

    Returns:
        The tokenizer, and the ids of the turn tokens that it lacked: the model needs embeddings for them.

    Raises:
        UserError: If the base was trained with another version of the template.
    """
    tokenizer = load_tokenizer(base, revision=revision)
    # What the base was trained with counts, not what is about to be set.
    recorded = recorded_fingerprint(tokenizer)
    new_tokens = set_chat_template(tokenizer, add_tokens=True)
    if recorded not in (None, fingerprint(tokenizer)) and not allow_mismatch:
        raise UserError(
            f"{base}: was trained with another chat template ({recorded}) than this version of hfchat has "
            f"({fingerprint(tokenizer)}); pass --allow_template_mismatch true to have it learn the new one"
        )
    if system_message is not None:  # after the check: another message is wanted, and no mismatch
        set_chat_template(tokenizer, system_message=system_message)
    return tokenizer, new_tokens


def supervise(
    dataset: "Dataset", tokenizer: "PreTrainedTokenizerBase", max_length: int, place: str
) -> tuple["Dataset", Supervision]:
    """Tokenize conversations with the tokenizer's chat template; its generation marks say what is supervised.

    Text that spells a special token stays text, see `hfchat.token_ids`.

    Args:
        dataset: Rows with `messages`, each a list of `{"role", "content"}` and `tool_calls`, and maybe with `tools`,
            a list or JSON in a text. An assistant's turn whose `weight` is 0 is not learned.
        tokenizer: With a chat template.
        max_length: Longer conversations are left out.
        place: What begins a message about the dataset.

    Returns:
        A dataset of `input_ids` and `labels` (-100 where nothing is learned), with the numbers of `calls` and
        `thoughts` in each row, and what is in it.

    Raises:
        UserError: If a row is not a conversation, if nothing or no end-of-turn token would be learned, or if the pad
            token is the end-of-turn token.
    """
    check_end_of_turn(tokenizer)
    schema = dataset.features.arrow_schema

    def tokenize(row: Json, index: int) -> dict[str, list[int] | int]:
        return _tokenize(as_before_arrow(row, schema), tokenizer, f"{place}: row {index}")

    # Whole conversations only.
    everything = dataset.map(tokenize, with_indices=True, remove_columns=dataset.column_names, desc="tokenizing")
    kept = everything.filter(lambda row: len(row["input_ids"]) <= max_length, desc="checking lengths")
    if len(kept) == 0:
        raise UserError(f"max_length {max_length}: all {len(everything)} conversations of {place} are longer")
    _check_teaches([[label for label in row if label != IGNORE] for row in kept["labels"]], tokenizer)
    kinds = [bool(called) + bool(thought) for called, thought in zip(kept["calls"], kept["thoughts"], strict=True)]
    supervision = replace(
        count(kept),
        too_long=len(everything) - len(kept),
        longest=max(map(len, everything["input_ids"])),
        telling=kinds.index(max(kinds)) if any(kinds) else None,
    )
    return kept, supervision


def count(rows: "Dataset") -> Supervision:
    """What of rows that `supervise` returned is learned, as often as each is there."""
    import pyarrow.compute as pc

    table = rows.with_format("arrow")[:]
    lengths = pc.list_value_length(table["input_ids"])
    return Supervision(
        conversations=len(rows),
        too_long=0,
        tokens=pc.sum(lengths).as_py(),
        supervised_tokens=pc.sum(pc.not_equal(pc.list_flatten(table["labels"]), IGNORE)).as_py(),
        longest=pc.max(lengths).as_py(),
        calls=pc.sum(table["calls"]).as_py(),
        thoughts=pc.sum(table["thoughts"]).as_py(),
    )


def _tokenize(row: Json, tokenizer: "PreTrainedTokenizerBase", place: str) -> dict[str, list[int] | int]:
    """The tokens and labels of a conversation; how many calls and how many turns with reasoning are learned of it."""
    check_learned(row["messages"], place, ROLES_WITH_TOOLS)
    ids, supervised = supervise_conversation(tokenizer, row["messages"], tools_of(row, place) or None)
    learned = _without_weight_0(supervised, row["messages"], place)
    pairs = zip(ids, learned, strict=True)
    turns = [turn for turn in row["messages"] if turn["role"] == "assistant" and turn.get("weight") != 0]
    return {
        "input_ids": ids,
        "labels": [id if is_learned else IGNORE for id, is_learned in pairs],
        "calls": sum(len(turn.get("tool_calls") or ()) for turn in turns),
        "thoughts": sum(bool((turn.get("reasoning_content") or "").strip()) for turn in turns),
    }


def _check_teaches(labels: list[list[int]], tokenizer: "PreTrainedTokenizerBase") -> None:
    """Refuse a template that teaches nothing, or never to stop.

    Args:
        labels: What is supervised of each conversation.
        tokenizer: With the template.
    """
    if not any(labels):
        raise UserError(
            f"{tokenizer.name_or_path}: the chat template marks no supervised tokens, so nothing would be learned; "
            "put {% generation %} and {% endgeneration %} around the assistant's text, or use the project's template"
        )
    if not all(row and row[-1] == tokenizer.eos_token_id for row in labels):
        raise UserError(
            f"{tokenizer.name_or_path}: the end-of-turn token {tokenizer.eos_token} gets no loss, so the model would "
            "never learn to stop; put it inside the template's {% generation %} marks"
        )


def tools_of(row: Mapping[str, object], place: str) -> Sequence[Mapping[str, object]]:
    """The tools of a row; none if it has no such column.

    Raises:
        UserError: If the column holds something else; the message begins with `place`.
    """
    try:
        return parse_tools(row.get("tools"))
    except ValueError as error:
        raise UserError(f"{place}: 'tools': {error}") from error


def _without_weight_0(masks: list[bool], messages: Messages, place: str) -> list[bool]:
    """The marks of supervised tokens without those of the turns whose `weight` is 0."""
    weights = [turn.get("weight") for turn in messages if turn["role"] == "assistant"]
    if 0 not in weights:
        return masks
    # Between two answers stands what the template writes before the second one, so each is a run of its own.
    numbers, number = [], 0
    for before, mask in zip([False, *masks], masks, strict=False):
        number += mask and not before
        numbers.append(number)
    if number != len(weights):
        raise UserError(
            f"{place}: a turn has the weight 0, but the chat template marks {number} answers of {len(weights)}; use "
            "the project's template (hfchat.chat_template.set_chat_template)"
        )
    return [mask and weights[number - 1] != 0 for mask, number in zip(masks, numbers, strict=True)]


def show_supervised(row: dict[str, list[int]], tokenizer: "PreTrainedTokenizerBase", *, shorten: bool = False) -> str:
    """The text of a tokenized conversation, with what is supervised between ⟦ and ⟧.

    Args:
        row: `input_ids` and `labels`.
        tokenizer: What made them.
        shorten: Leave out the middle of what is long, of what is not supervised first.
    """
    texts = []
    marked = zip(row["input_ids"], [label != IGNORE for label in row["labels"]], strict=True)
    for is_supervised, tokens in groupby(marked, key=itemgetter(1)):
        text = tokenizer.decode([id for id, _ in tokens])
        text = shortened(text, _SHOWN_CHARACTERS if is_supervised else _SHOWN_BETWEEN) if shorten else text
        texts.append(f"⟦{text}⟧" if is_supervised else text)
    whole = "".join(texts)
    return shortened(whole, 4 * _SHOWN_CHARACTERS) if shorten else whole


def shortened(text: str, characters: int) -> str:
    """The text or, if it has more characters, its beginning and its end."""
    if len(text) <= characters:
        return text
    half = characters // 2
    return f"{text[:half]} … ({len(text):,} characters) … {text[-half:]}"
