"""From conversations to tokens and labels: which tokens are learned is decided, counted and shown here."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, groupby, product, zip_longest
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from hfchat.chat import Json
from hfchat.chat_template import check_end_of_turn, fingerprint, recorded_fingerprint, set_chat_template
from hfchat.dataset import as_before_arrow, learned_rows
from hfchat.errors import UserError
from hfchat.messages import ROLES_WITH_TOOLS, check_learned, parse_tools
from hfchat.models import load_tokenizer
from hfchat.token_ids import Messages, supervise_conversation
from hfchat.training.mixture import MixedDataset, Part, amounts, datasets_of, draw, load_rows, place_of
from hfchat.training.packing import IGNORE
from hfchat.training.run_arguments import steps_per_epoch

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from hfchat.training.finetuning import FinetuneArguments

_SHOWN = 3  # conversations
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


@dataclass(frozen=True)
class Conversations:
    """Attributes:
    train: Rows of `input_ids` and `labels` to learn from in one pass, from all datasets, some more than once.
    test: The same, to measure the loss on.
    supervision: What of `train` is learned.
    parts: Each dataset by itself.
    sequences: How many sequences `train` makes: packed ones, about; else its rows.
    passes: How often the run goes through `train`.
    held_out: The messages of the test splits, as they are, one of each dataset in turn.
    held_out_tools: The tools of each of these, as they are; None where no dataset has such a column.
    """

    train: "Dataset"
    test: "Dataset"
    supervision: Supervision
    parts: Sequence[Part]
    sequences: int
    passes: float
    held_out: Sequence[Messages]
    held_out_tools: Sequence[object] | None = None

    def describe(self, tokenizer: "PreTrainedTokenizerBase") -> str:
        """What is learned, in numbers and in some conversations, one with calls or reasoning among them."""
        lines = [f"to learn from: {self.supervision}"]
        lines += filter(None, (part.warning(self.passes) for part in self.parts))
        if len(self.parts) > 1:
            lines += [f"  {part}" for part in self.parts]
        lines.append("what is supervised is marked ⟦like this⟧:\n")
        shown = max(1, _SHOWN // len(self.parts))
        texts = (_some_texts(part, shown, tokenizer) for part in self.parts)
        return "\n".join(chain(lines, *texts))

    def metrics(self, passes: float) -> dict[str, object]:
        """The counts of one pass, and those of each dataset, of which so many passes were made."""
        datasets = {part.label: part.as_metrics(passes) for part in self.parts}
        return self.supervision.as_metrics("train") | {"train_datasets": datasets}


def _some_texts(part: Part, number: int, tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """Conversations from all over a dataset, with what is supervised marked."""
    rows = list(range(0, len(part.train), -(-len(part.train) // number)))
    telling = part.supervision.telling
    if telling is not None and telling not in rows:
        rows[0] = telling
    return [show_supervised(row, tokenizer, shorten=True) for row in part.train.select(rows)]


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


def load_conversations(args: "FinetuneArguments", tokenizer: "PreTrainedTokenizerBase") -> Conversations:
    """The conversations of a run as tokens and labels, mixed as `MixedDataset` says.

    Raises:
        UserError: If a split is missing or teaches nothing, see `supervise`, or if what is learned and what is
            measured on overlap, in one dataset or between two.
    """
    from datasets import concatenate_datasets

    entries = datasets_of(args)
    with args.main_process_first(local=False, desc="tokenizing the conversations"):
        parts = [_load_part(args, entry, tokenizer) for entry in entries]
    sizes = [len(part.train) for part in parts]
    taken = amounts(entries, sizes)
    parts = [replace(part, seen=amount) for part, amount in zip(parts, taken, strict=True)]
    if not args.allow_leakage:
        _check_apart(parts, args.dataset_test_split)

    # `dataset_name` alone stays in its order.
    train = concatenate_datasets([part.train for part in parts])
    if args.dataset_mixture:
        train = train.select(draw(sizes, taken, args.seed))
    supervision = replace(
        count(train),
        too_long=sum(part.supervision.too_long for part in parts),
        longest=max(part.supervision.longest for part in parts),
    )
    sequences = max(1, -(-supervision.tokens // args.max_length)) if args.packing else len(train)
    passes = args.max_steps / steps_per_epoch(args, sequences) if args.max_steps > 0 else args.num_train_epochs

    tests = [part.held_out for part in parts]
    tools = [test["tools"] if "tools" in test.column_names else [None] * len(test) for test in tests]
    return Conversations(
        train,
        concatenate_datasets([part.test for part in parts]),
        supervision,
        parts,
        sequences,
        passes,
        _in_turn([test["messages"] for test in tests]),
        _in_turn(tools) if any("tools" in test.column_names for test in tests) else None,
    )


def _load_part(args: "FinetuneArguments", entry: MixedDataset, tokenizer: "PreTrainedTokenizerBase") -> Part:
    """One dataset of a run, seen once."""
    place = place_of(args, entry)
    rows, held_out = load_rows(args, entry)
    train, supervision = supervise(rows, tokenizer, args.max_length, place)
    test, _ = supervise(held_out, tokenizer, args.max_length, place)
    return Part(entry.label, place, train, test, held_out, supervision, seen=len(train))


def _check_apart(parts: Sequence[Part], test_split: str) -> None:
    """Refuse conversations that are learned and measured on.

    Raises:
        UserError: If there are any; the message names the two datasets.
    """
    for learned, tested in product(parts, parts):
        if leaked := learned_rows(learned.train["input_ids"], tested.test["input_ids"]):
            of = "" if learned is tested else f" of {learned.label}"
            raise UserError(
                f"{tested.place}: split '{test_split}': {len(leaked):,} of its {len(tested.test):,} conversations are "
                f"in the train split{of} too, row {leaked[0]} among them; take them out of one, or pass "
                "--allow_leakage true"
            )


def _in_turn(columns: Sequence[Sequence[object]]) -> Sequence[Any]:
    """The items of several columns, one of each in turn; those of one column are read when asked for."""
    if len(columns) == 1:
        return columns[0]
    missing = object()
    return [item for item in chain.from_iterable(zip_longest(*columns, fillvalue=missing)) if item is not missing]


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
