"""From preferences to tokens: what is scored of pairs and of thumbs is decided, counted and shown here."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from hfchat.chat_template import check_end_of_turn
from hfchat.dataset import as_before_arrow, has_split, learned_rows, load_split
from hfchat.errors import UserError
from hfchat.messages import ROLES_WITH_TOOLS, check_learned
from hfchat.token_ids import Messages, encode_conversation
from hfchat.training.supervision import shortened, tools_of

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from hfchat.training.align_arguments import AlignArguments

_SHOWN = 2  # pairs
_COMPARED = 8  # conversations
_SHOWN_CHARACTERS = 1200  # of each prompt and completion
_PREPARE = "recipes/prepare_conversations.py makes such rows of other formats"


@dataclass
class PreferenceCounts:
    """What of a dataset is learned from.

    Attributes:
        kind: `"pairs"` or `"thumbs"`.
        kept: Rows kept.
        too_long: Rows left out because prompt and completion have more than `max_length` tokens; none is cut.
        same: Pairs left out because chosen and rejected are the same tokens, so that there is nothing to prefer.
        scored_tokens: Tokens of the kept completions, each with its end-of-turn token.
        longest: Tokens of the longest prompt with a completion, kept or not.
    """

    kind: str
    kept: int
    too_long: int
    same: int
    scored_tokens: int
    longest: int

    def __str__(self) -> str:
        text = (
            f"{self.kept:,} {self.kind}, {self.scored_tokens:,} tokens scored; the longest has {self.longest:,}; "
            f"0 were cut, {self.too_long:,} longer than max_length were left out"
        )
        return text + (f", and {self.same:,} whose answers are the same" if self.kind == "pairs" else "")

    def as_metrics(self, prefix: str) -> dict[str, int | str]:
        return {f"{prefix}_{name}": value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Preferences:
    """Tokenized preferences, in the columns that TRL's collators take.

    Attributes:
        train: `prompt_ids`, `chosen_ids` and `rejected_ids` for DPO; `prompt_ids`, `completion_ids`, `label` and
            `KL_completion_ids` for KTO.
        held_out: `prompt_ids`, `completion_ids` and `label`; a thumb up and a thumb down by turns, each two of which
            are a pair.
        counts: What `train` was made of.
        thumbs: How many completions of `train` are desirable and how many are not.
        conversations: Some of what is held out as messages, to compare models on.
    """

    train: "Dataset"
    held_out: "Dataset"
    counts: PreferenceCounts
    thumbs: tuple[int, int]
    conversations: list[list[Mapping[str, Any]]]

    def describe(self, tokenizer: "PreTrainedTokenizerBase") -> str:
        """What is learned from, in numbers and in the text of some pairs."""
        lines = [
            f"to learn from: {self.counts}",
            f"held out: {len(self.held_out) // 2:,} pairs; what is scored is marked ⟦like this⟧:",
        ]
        for prompt, completions in _first(self.train):
            lines += ["", shortened(tokenizer.decode(prompt), _SHOWN_CHARACTERS)]
            lines += [f"{name}: ⟦{shortened(tokenizer.decode(ids), _SHOWN_CHARACTERS)}⟧" for name, ids in completions]
        return "\n".join(lines)


def load_preferences(args: "AlignArguments", tokenizer: "PreTrainedTokenizerBase") -> Preferences:
    """Both splits as tokens, in the form that `args.method` wants.

    Pairs become a thumb up and a thumb down for KTO. Thumbs are held out in pairs, too: a thumb up of one prompt
    with a thumb down of another.

    Raises:
        UserError: If there is no held-out split, if rows are not preferences, if they are thumbs and the method is
            DPO, or if there are too few.
    """
    name = args.dataset_name
    if not has_split(name, args.dataset_test_split, config_name=args.dataset_config_name):
        raise UserError(
            f"dataset_name {name}: has no split '{args.dataset_test_split}' to measure on, and the train split cannot "
            "serve for that; recipes/prepare_conversations.py makes one (validation_fraction)"
        )
    check_end_of_turn(tokenizer)
    rows, held_out_rows = (_load(args, split) for split in (args.dataset_train_split, args.dataset_test_split))
    parts = _parts_of_pair if "chosen" in held_out_rows.column_names else _parts_of_thumb
    compared = held_out_rows.select(range(min(_COMPARED, len(held_out_rows))))
    conversations = [list(chain.from_iterable(parts(row, name)[:2])) for row in compared]
    with args.main_process_first(local=False, desc="tokenizing the preferences"):
        # Both splits as they are: pairs, or thumbs.
        place = f"dataset_name {name}: split '{args.dataset_train_split}'"
        train, counts = tokenize_preferences(rows, tokenizer, args.max_length, place)
        place = f"dataset_name {name}: split '{args.dataset_test_split}'"
        held_out, held_out_counts = tokenize_preferences(held_out_rows, tokenizer, args.max_length, place)
        if leaked := learned_rows(_answers(train), _answers(held_out)):
            raise UserError(
                f"{place}: {len(leaked):,} of its {len(held_out):,} answers are in the train split too, row "
                f"{leaked[0]} among them; take them out of one"
            )
        # What is measured on is pairs whatever the method, ...
        held_out = split_pairs(held_out) if held_out_counts.kind == "pairs" else couple_thumbs(held_out, args.seed)
        if not len(held_out):
            raise UserError(f"{place}: needs a thumb up and a thumb down")
        # ... and what is learned from is what the method takes.
        if args.method == "dpo":
            return Preferences(train, held_out, counts, (len(train), len(train)), conversations)
        thumbs = split_pairs(train) if counts.kind == "pairs" else train
        up = sum(thumbs["label"])
        check_thumbs(up, len(thumbs) - up, args.min_thumbs, name)
        thumbs = add_other_completions(thumbs.shuffle(seed=args.seed), args.max_length)
    return Preferences(thumbs, held_out, counts, (up, len(thumbs) - up), conversations)


def tokenize_preferences(
    rows: "Dataset", tokenizer: "PreTrainedTokenizerBase", max_length: int, place: str
) -> tuple["Dataset", PreferenceCounts]:
    """Tokenize pairs, or single answers with a thumb, with the tokenizer's chat template.

    Args:
        rows: Pairs have `prompt`, `chosen` and `rejected` as messages. Without a prompt, or where `chosen` and
            `rejected` are whole conversations, the prompt is what these have in common at their beginning. Thumbs
            have `label` (true for a thumb up), and `prompt` and `completion`, or `messages`.
        tokenizer: It has a chat template.
        max_length: Rows with more tokens in the prompt and one of its completions are left out.
        place: The dataset, for messages.

    Returns:
        A dataset of `prompt_ids`, and of `chosen_ids` and `rejected_ids`, or `completion_ids` and `label`; and what is
        in it.

    Raises:
        UserError: If a row is neither, or if no row is left.
    """
    is_pairs = "chosen" in rows.column_names
    names = ("chosen_ids", "rejected_ids") if is_pairs else ("completion_ids",)
    schema = rows.features.arrow_schema

    def tokenize(row: dict[str, object], index: int) -> dict[str, object]:
        here = f"{place}: row {index}"
        row = as_before_arrow(row, schema)
        tools = tools_of(row, here)
        prompt, *answers = _parts_of_pair(row, here) if is_pairs else _parts_of_thumb(row, here)
        encoded = [encode(prompt, answer, tokenizer, here, tools) for answer in answers]
        columns = dict(zip(names, (ids for _, ids in encoded), strict=True))
        return {"prompt_ids": encoded[0][0], **columns} | ({} if is_pairs else {"label": row["label"]})

    everything = rows.map(tokenize, with_indices=True, remove_columns=rows.column_names, desc="tokenizing")
    # What of it can be learned from.
    lengths, different = [], []
    for row in everything:
        completions = [row[name] for name in names]
        lengths.append(len(row["prompt_ids"]) + max(map(len, completions)))
        different.append(not is_pairs or completions[0] != completions[1])
    fits = [length <= max_length for length in lengths]
    kept = everything.select([row for row, both in enumerate(zip(fits, different, strict=True)) if all(both)])
    kind = "pairs" if is_pairs else "thumbs"
    if not len(kept):
        raise UserError(
            f"{place}: none of {len(everything):,} {kind} is left; {fits.count(False):,} are longer than max_length "
            f"{max_length}, {different.count(False):,} have two answers that are the same"
        )
    return kept, PreferenceCounts(
        kind=kind,
        kept=len(kept),
        too_long=fits.count(False),
        same=sum(fit and not differs for fit, differs in zip(fits, different, strict=True)),
        scored_tokens=sum(sum(map(len, kept[name])) for name in names),
        longest=max(lengths),
    )


def encode(
    prompt: Messages,
    completion: Messages,
    tokenizer: "PreTrainedTokenizerBase",
    place: str,
    tools: Sequence[object] = (),
) -> tuple[list[int], list[int]]:
    """The tokens of a prompt, up to where the assistant begins, and those of its answer.

    The completion is the assistant's reasoning, text and calls, and one end-of-turn token: what the template puts
    after that, the newline of ChatML, is never the model's to write.

    Raises:
        UserError: If the two are not a prompt that ends with the user's turn or a tool's result, and one answer of
            the assistant, or if the template does not render them as one.
    """
    check_learned([*prompt, *completion], place, ROLES_WITH_TOOLS)
    if len(completion) != 1 or not prompt or prompt[-1]["role"] not in ("user", "tool"):
        raise UserError(
            f"{place}: must be a prompt whose last turn is the user's or a tool's, and one answer of the assistant"
        )
    # The completion is what the whole conversation has after the prompt.
    prompt_ids = encode_conversation(tokenizer, prompt, tools or None, add_generation_prompt=True)
    ids = encode_conversation(tokenizer, [*prompt, *completion], tools or None)
    completion_ids = ids[len(prompt_ids) :]
    if ids[: len(prompt_ids)] != prompt_ids:
        raise UserError(
            f"{place}: the chat template of {tokenizer.name_or_path} renders the prompt another way when it is "
            "answered; use the project's template (hfchat.chat_template.set_chat_template)"
        )
    ends = completion_ids.count(tokenizer.eos_token_id)
    if ends != 1:
        raise UserError(
            f"{place}: the answer has {ends} end-of-turn tokens {tokenizer.eos_token}, and needs exactly one; use the "
            "project's template (hfchat.chat_template.set_chat_template)"
        )
    return prompt_ids, completion_ids[: completion_ids.index(tokenizer.eos_token_id) + 1]


def split_pairs(pairs: "Dataset") -> "Dataset":
    """Each pair as a thumb up and a thumb down, one after the other."""
    from datasets import Dataset

    thumbs = []
    for pair in pairs:
        for column, label in (("chosen_ids", True), ("rejected_ids", False)):
            thumbs.append({"prompt_ids": pair["prompt_ids"], "completion_ids": pair[column], "label": label})
    return Dataset.from_list(thumbs)


def couple_thumbs(thumbs: "Dataset", seed: int) -> "Dataset":
    """Thumbs up and thumbs down by turns, in a random order; what is left of the more frequent ones is left out."""
    shuffled = thumbs.shuffle(seed=seed)
    rows = {sign: [row for row, label in enumerate(shuffled["label"]) if label is sign] for sign in (True, False)}
    return shuffled.select(list(chain.from_iterable(zip(rows[True], rows[False], strict=False))))


def add_other_completions(thumbs: "Dataset", max_length: int) -> "Dataset":
    """Give each prompt the completion of the row before it as `KL_completion_ids`.

    From such mismatched ones KTO estimates its reference point, the divergence of the policy from the reference
    (arXiv:2402.01306, section 4.1). Nothing is learned from them, so they are shortened to fit into `max_length`.
    """
    completions = thumbs["completion_ids"][:]
    others = [
        ids[: max_length - len(prompt)]
        for prompt, ids in zip(thumbs["prompt_ids"], [completions[-1], *completions[:-1]], strict=True)
    ]
    return thumbs.add_column("KL_completion_ids", others)


def check_thumbs(up: int, down: int, minimum: int, place: str) -> None:
    """Raise a `UserError` if there are fewer than `minimum` of one sign."""
    if min(up, down) < minimum:
        fewer = f"{up:,} thumbs up" if up < down else f"{down:,} thumbs down"
        raise UserError(
            f"dataset_name {place}: only {fewer} of {up + down:,}; the weights that balance them would let the few "
            f"speak for all. Collect at least {minimum:,} of each, or lower min_thumbs"
        )


def _load(args: "AlignArguments", split: str) -> "Dataset":
    """Rows of pairs or, where the method takes them, of thumbs."""
    name, config_name = args.dataset_name, args.dataset_config_name
    try:
        rows = load_split(name, split, "chosen", config_name=config_name)
    except UserError as error:
        try:
            rows = load_split(name, split, "label", config_name=config_name)
        except UserError:
            raise error from None  # most likely pairs were meant
        if args.method == "dpo":
            raise UserError(
                f"dataset_name {name}: split '{split}' has thumbs, and DPO learns from pairs (chosen, rejected); "
                "pass --method kto"
            ) from None
    if "chosen" in rows.column_names and "rejected" not in rows.column_names:
        raise UserError(f"dataset_name {name}: split '{split}' has a column 'chosen', but none 'rejected'")
    return rows


def _parts_of_pair(row: Mapping[str, object], place: str) -> tuple[Messages, Messages, Messages]:
    from trl import extract_prompt

    parts = {column: _messages(row, column, place) for column in ("chosen", "rejected")}
    if row.get("prompt") is None or parts["chosen"][0]["role"] != "assistant":
        parts = extract_prompt(parts)
    else:
        parts["prompt"] = _messages(row, "prompt", place)
    if not parts["prompt"]:
        raise UserError(f"{place}: 'chosen' and 'rejected' must be two answers to one prompt; {_PREPARE}")
    return parts["prompt"], parts["chosen"], parts["rejected"]


def _parts_of_thumb(row: Mapping[str, object], place: str) -> tuple[Messages, Messages]:
    if not isinstance(row["label"], bool):
        raise UserError(f"{place}: label must be true (a thumb up) or false, not {row['label']!r}")
    messages, prompt, completion = (row.get(column) for column in ("messages", "prompt", "completion"))
    if isinstance(messages, list):
        return messages[:-1], messages[-1:]
    if not isinstance(prompt, list) or not isinstance(completion, list):
        raise UserError(f"{place}: must have 'messages', or 'prompt' and 'completion', as messages; {_PREPARE}")
    return prompt, completion


def _messages(row: Mapping[str, object], column: str, place: str) -> list[Mapping[str, Any]]:
    value = row[column]
    if not isinstance(value, list) or not value:
        raise UserError(f"{place}: '{column}' must be a list of messages; {_PREPARE}")
    return value


def _answers(dataset: "Dataset") -> Iterator[tuple[int, ...]]:
    """The tokens of each row: the prompt and its answer, of a pair the chosen one."""
    answers = "chosen_ids" if "chosen_ids" in dataset.column_names else "completion_ids"
    for prompt, ids in zip(dataset["prompt_ids"], dataset[answers], strict=True):
        yield (*prompt, *ids)


def _first(dataset: "Dataset") -> Iterator[tuple[list[int], list[tuple[str, list[int]]]]]:
    """The prompts of some rows, and what is scored of each."""
    if "chosen_ids" in dataset.column_names:
        for row in dataset.select(range(min(_SHOWN, len(dataset)))):
            yield row["prompt_ids"], [("chosen", row["chosen_ids"]), ("rejected", row["rejected_ids"])]
        return
    labels = dataset["label"][:]
    for name, label in (("thumb up", True), ("thumb down", False)):
        row = dataset[labels.index(label)]
        yield row["prompt_ids"], [(name, row["completion_ids"])]
