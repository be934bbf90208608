"""From preferences to tokens: what is scored of pairs and of thumbs is decided, counted and shown here."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from hfchat.chat_template import check_end_of_turn
from hfchat.dataset import check_apart, has_split, load_split
from hfchat.errors import UserError
from hfchat.messages import check_learned
from hfchat.token_ids import encode_conversation

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from hfchat.training.align_arguments import AlignArguments

_SHOWN = 2  # pairs
_COMPARED = 8  # conversations
_SHOWN_CHARACTERS = 1200  # of each prompt and completion
_THUMBS = ("prompt_ids", "completion_ids", "label")

Messages = Sequence[Mapping[str, Any]]


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

    def as_metrics(self, prefix: str) -> dict[str, Any]:
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
            f"held out: {len(self.held_out) // 2:,} pairs; what is scored is marked ⟦so⟧:",
        ]
        for prompt, completions in _first(self.train):
            lines += ["", _shorten(tokenizer.decode(prompt))]
            lines += [f"{name}: ⟦{_shorten(tokenizer.decode(ids))}⟧" for name, ids in completions]
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
            f"dataset_name {name}: has no split '{args.dataset_test_split}' to measure on, and what is learned from "
            "cannot be it; recipes/prepare_conversations.py makes one (validation_fraction)"
        )
    check_end_of_turn(tokenizer)
    rows, held_out_rows = (_load(args, split) for split in (args.dataset_train_split, args.dataset_test_split))
    conversations = [
        _conversation(row, name) for row in held_out_rows.select(range(min(_COMPARED, len(held_out_rows))))
    ]
    with args.main_process_first(local=False, desc="tokenizing the preferences"):
        train, counts = _tokenize(
            rows, tokenizer, args.max_length, f"dataset_name {name}: split '{args.dataset_train_split}'"
        )
        place = f"dataset_name {name}: split '{args.dataset_test_split}'"
        held_out, _ = _tokenize(held_out_rows, tokenizer, args.max_length, place)
        check_apart(_answers(train), _answers(held_out), place, "answers")
        held_out = (
            split_pairs(held_out) if "chosen_ids" in held_out.column_names else couple_thumbs(held_out, args.seed)
        )
        if not len(held_out):
            raise UserError(f"{place}: needs a thumb up and a thumb down")
        if args.method == "dpo":
            return Preferences(train, held_out, counts, (len(train), len(train)), conversations)
        thumbs = split_pairs(train) if counts.kind == "pairs" else train
        up = sum(thumbs["label"])
        check_thumbs(up, len(thumbs) - up, args.min_thumbs, name)
        thumbs = add_other_completions(thumbs.shuffle(seed=args.seed), args.max_length)
    return Preferences(thumbs, held_out, counts, (up, len(thumbs) - up), conversations)


def tokenize_pairs(
    rows: "Dataset", tokenizer: "PreTrainedTokenizerBase", max_length: int, place: str
) -> tuple["Dataset", PreferenceCounts]:
    """Tokenize pairs with the tokenizer's chat template.

    Args:
        rows: `prompt`, `chosen` and `rejected` as messages; or without a prompt, or with whole conversations as
            `chosen` and `rejected`: then what these have in common at their beginning is the prompt.
        tokenizer: With a chat template.
        max_length: Pairs with more tokens in the prompt and one of its completions are left out.
        place: The dataset, for messages.

    Returns:
        A dataset of `prompt_ids`, `chosen_ids` and `rejected_ids`, and what is in it.

    Raises:
        UserError: If a row is no pair, or if none is left.
    """

    def tokenize(row: dict[str, Any], index: int) -> dict[str, list[int]]:
        here = f"{place}: row {index}"
        prompt, chosen, rejected = _parts_of_pair(row, here)
        prompt_ids, chosen_ids = encode(prompt, chosen, tokenizer, here)
        return {
            "prompt_ids": prompt_ids,
            "chosen_ids": chosen_ids,
            "rejected_ids": encode(prompt, rejected, tokenizer, here)[1],
        }

    return _keep(rows.map(tokenize, with_indices=True, remove_columns=rows.column_names, desc="tokenizing"),
                 "pairs", max_length, place)  # fmt: skip


def tokenize_thumbs(
    rows: "Dataset", tokenizer: "PreTrainedTokenizerBase", max_length: int, place: str
) -> tuple["Dataset", PreferenceCounts]:
    """As `tokenize_pairs`, for rows of `label` (true for a thumb up) with `prompt` and `completion`, or `messages`.

    Returns:
        A dataset of `prompt_ids`, `completion_ids` and `label`, and what is in it.
    """

    def tokenize(row: dict[str, Any], index: int) -> dict[str, Any]:
        here = f"{place}: row {index}"
        if not isinstance(row["label"], bool):
            raise UserError(f"{here}: label must be true (a thumb up) or false, not {row['label']!r}")
        prompt, completion = _parts_of_thumb(row, here)
        prompt_ids, completion_ids = encode(prompt, completion, tokenizer, here)
        return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "label": row["label"]}

    return _keep(rows.map(tokenize, with_indices=True, remove_columns=rows.column_names, desc="tokenizing"),
                 "thumbs", max_length, place)  # fmt: skip


def encode(
    prompt: Messages, completion: Messages, tokenizer: "PreTrainedTokenizerBase", place: str
) -> tuple[list[int], list[int]]:
    """The tokens of a prompt, up to where the assistant begins, and those of its answer.

    The completion is the assistant's text and one end-of-turn token: what the template puts after that, the newline
    of ChatML, is never the model's to write.

    Raises:
        UserError: If the two are not a prompt that ends with the user's turn and one answer of the assistant, or if
            the template does not render them as one.
    """
    check_learned([*prompt, *completion], place)
    if len(completion) != 1 or not prompt or prompt[-1]["role"] != "user":
        raise UserError(f"{place}: must be a prompt whose last turn is the user's, and one answer of the assistant")
    prompt_ids = encode_conversation(tokenizer, prompt, add_generation_prompt=True)
    ids = encode_conversation(tokenizer, [*prompt, *completion])
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

    prompts = [ids for ids in pairs["prompt_ids"] for _ in range(2)]
    completions = [ids for row in zip(pairs["chosen_ids"], pairs["rejected_ids"], strict=True) for ids in row]
    columns = (prompts, completions, [True, False] * len(pairs))
    return Dataset.from_dict(dict(zip(_THUMBS, columns, strict=True)))


def couple_thumbs(thumbs: "Dataset", seed: int) -> "Dataset":
    """Thumbs up and thumbs down by turns, in a random order; what is left of the more frequent ones is left out."""
    shuffled = thumbs.shuffle(seed=seed)
    rows = {sign: [row for row, label in enumerate(shuffled["label"]) if label is sign] for sign in (True, False)}
    couples = zip(rows[True], rows[False], strict=False)
    return shuffled.select([row for couple in couples for row in couple])


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
            f"dataset_name {place}: only {fewer} of {up + down:,}; the weights that balance them would have the few "
            f"speak for all. Collect at least {minimum:,} of each, or lower min_thumbs"
        )


def _load(args: "AlignArguments", split: str) -> "Dataset":
    """Rows of pairs or, where the method takes them, of thumbs."""
    name, config_name = args.dataset_name, args.dataset_config_name
    try:
        rows = load_split(name, split, "chosen", config_name=config_name)
    except UserError:
        try:
            rows = load_split(name, split, "label", config_name=config_name)
        except UserError:
            rows = None
        if rows is None:
            raise
        if args.method == "dpo":
            raise UserError(
                f"dataset_name {name}: split '{split}' has thumbs, and DPO learns from pairs (chosen, rejected); "
                "pass --method kto"
            ) from None
    if "chosen" in rows.column_names and "rejected" not in rows.column_names:
        raise UserError(f"dataset_name {name}: split '{split}' has a column 'chosen', but none 'rejected'")
    return rows


def _tokenize(
    rows: "Dataset", tokenizer: "PreTrainedTokenizerBase", max_length: int, place: str
) -> tuple["Dataset", PreferenceCounts]:
    tokenize = tokenize_pairs if "chosen" in rows.column_names else tokenize_thumbs
    return tokenize(rows, tokenizer, max_length, place)


def _conversation(row: Mapping[str, Any], place: str) -> list[Mapping[str, Any]]:
    parts = _parts_of_pair(row, place) if "chosen" in row else _parts_of_thumb(row, place)
    return [*parts[0], *parts[1]]


def _parts_of_pair(row: Mapping[str, Any], place: str) -> tuple[Messages, Messages, Messages]:
    from trl import extract_prompt

    for column in ("chosen", "rejected"):
        if not isinstance(row[column], list) or not row[column]:
            raise UserError(f"{place}: '{column}' must be a list of messages; {_PREPARE}")
    if row.get("prompt") is None or row["chosen"][0]["role"] != "assistant":
        row = extract_prompt({column: row[column] for column in ("chosen", "rejected")})
    if not isinstance(row["prompt"], list):
        raise UserError(f"{place}: 'prompt' must be a list of messages; {_PREPARE}")
    if not row["prompt"]:
        raise UserError(f"{place}: 'chosen' and 'rejected' must be two answers to one prompt; {_PREPARE}")
    return row["prompt"], row["chosen"], row["rejected"]


def _parts_of_thumb(row: Mapping[str, Any], place: str) -> tuple[Messages, Messages]:
    if isinstance(row.get("messages"), list):
        return row["messages"][:-1], row["messages"][-1:]
    if not isinstance(row.get("prompt"), list) or not isinstance(row.get("completion"), list):
        raise UserError(f"{place}: must have 'messages', or 'prompt' and 'completion', as messages; {_PREPARE}")
    return row["prompt"], row["completion"]


_PREPARE = "recipes/prepare_conversations.py makes such rows of other formats"


def _keep(everything: "Dataset", kind: str, max_length: int, place: str) -> tuple["Dataset", PreferenceCounts]:
    lengths, different = [], []
    for row in everything:
        prompt, *completions = [value for name, value in row.items() if name != "label"]
        lengths.append(len(prompt) + max(map(len, completions)))
        different.append(len(completions) == 1 or completions[0] != completions[1])
    fits = [length <= max_length for length in lengths]
    kept = everything.select([row for row, both in enumerate(zip(fits, different, strict=True)) if all(both)])
    if not len(kept):
        raise UserError(
            f"{place}: none of {len(everything):,} {kind} is left; {fits.count(False):,} are longer than max_length "
            f"{max_length}, {different.count(False):,} have two answers that are the same"
        )
    columns = [name for name in kept.column_names if name not in ("prompt_ids", "label")]
    counts = PreferenceCounts(
        kind=kind,
        kept=len(kept),
        too_long=fits.count(False),
        same=sum(fit and not differs for fit, differs in zip(fits, different, strict=True)),
        scored_tokens=sum(len(ids) for name in columns for ids in kept[name]),
        longest=max(lengths),
    )
    return kept, counts


def _answers(dataset: "Dataset") -> Iterator[tuple[int, ...]]:
    """The tokens of each row: the prompt and its answer, of a pair the chosen one."""
    answers = "chosen_ids" if "chosen_ids" in dataset.column_names else "completion_ids"
    for prompt, ids in zip(dataset["prompt_ids"], dataset[answers], strict=True):
        yield (*prompt, *ids)


def _first(dataset: "Dataset") -> Iterator[tuple[list[int], list[tuple[str, list[int]]]]]:
    """Of some rows, the prompt and what is scored."""
    if "chosen_ids" in dataset.column_names:
        for row in dataset.select(range(min(_SHOWN, len(dataset)))):
            yield row["prompt_ids"], [("chosen", row["chosen_ids"]), ("rejected", row["rejected_ids"])]
        return
    labels = dataset["label"][:]
    for name, label in (("thumb up", True), ("thumb down", False)):
        row = dataset[labels.index(label)]
        yield row["prompt_ids"], [(name, row["completion_ids"])]


def _shorten(text: str) -> str:
    if len(text) <= _SHOWN_CHARACTERS:
        return text
    half = _SHOWN_CHARACTERS // 2
    return f"{text[:half]} … ({len(text):,} characters) … {text[-half:]}"
