"""From conversations to tokens and labels: which tokens are learned is decided, counted and shown here."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from hfchat.dataset import check_messages
from hfchat.errors import UserError
from hfchat.training.packing import IGNORE

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


@dataclass
class Supervision:
    """What of a dataset is learned.

    Attributes:
        conversations: Conversations kept.
        too_long: Conversations left out because they have more than `max_length` tokens; none is cut, as a cut one
            would teach the model not to stop.
        tokens: Tokens of the kept ones.
        supervised_tokens: Those that get loss: what the assistant says, its end-of-turn tokens included.
        longest: Tokens of the longest conversation, kept or not.
    """

    conversations: int
    too_long: int
    tokens: int
    supervised_tokens: int
    longest: int

    def __str__(self) -> str:
        text = (
            f"{self.conversations:,} conversations, {self.tokens:,} tokens, {self.supervised_tokens:,} of them "
            f"supervised ({self.supervised_tokens / max(self.tokens, 1):.0%}); the longest has {self.longest:,}"
        )
        return text + (f"; {self.too_long:,} longer than max_length were left out" if self.too_long else "")

    def as_metrics(self, prefix: str) -> dict[str, int]:
        return {f"{prefix}_{name}": value for name, value in asdict(self).items()}


def supervise(
    dataset: "Dataset", tokenizer: "PreTrainedTokenizerBase", max_length: int, dataset_name: str
) -> tuple["Dataset", Supervision]:
    """Tokenize conversations with the tokenizer's chat template; its generation marks say what is supervised.

    Args:
        dataset: Rows with `messages`, each a list of `{"role", "content"}`.
        tokenizer: With a chat template.
        max_length: Longer conversations are left out.
        dataset_name: For messages.

    Returns:
        A dataset of `input_ids` and `labels` (-100 where nothing is learned), and what is in it.

    Raises:
        UserError: If a row is not a conversation, if nothing or no end-of-turn token would be learned, or if the pad
            token is the end-of-turn token.
    """
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise UserError(
            f"{tokenizer.name_or_path}: the pad token is the end-of-turn token {tokenizer.eos_token}, so the model "
            "would never learn to stop; use hfchat.chat_template.set_chat_template, or set another pad_token"
        )

    def tokenize(row: dict[str, Any], index: int) -> dict[str, list[int]]:
        check_messages(row["messages"], f"dataset_name {dataset_name}: row {index}")
        encoded = tokenizer.apply_chat_template(row["messages"], return_dict=True, return_assistant_tokens_mask=True)
        pairs = zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
        return {
            "input_ids": encoded["input_ids"],
            "labels": [token if supervised else IGNORE for token, supervised in pairs],
        }

    everything = dataset.map(tokenize, with_indices=True, remove_columns=dataset.column_names, desc="tokenizing")
    kept = everything.filter(lambda row: len(row["input_ids"]) <= max_length, desc="checking lengths")
    if len(kept) == 0:
        raise UserError(f"max_length {max_length}: all {len(everything)} conversations of {dataset_name} are longer")
    labels = [[label for label in row if label != IGNORE] for row in kept["labels"]]
    supervision = Supervision(
        conversations=len(kept),
        too_long=len(everything) - len(kept),
        tokens=sum(map(len, kept["input_ids"])),
        supervised_tokens=sum(map(len, labels)),
        longest=max(map(len, everything["input_ids"])),
    )
    if supervision.supervised_tokens == 0:
        raise UserError(
            f"{tokenizer.name_or_path}: the chat template marks no supervised tokens, so nothing would be learned; "
            "put {% generation %} and {% endgeneration %} around the assistant's text, or use the project's template"
        )
    if not all(row and row[-1] == tokenizer.eos_token_id for row in labels):
        raise UserError(
            f"{tokenizer.name_or_path}: the end-of-turn token {tokenizer.eos_token} gets no loss, so the model would "
            "never learn to stop; put it inside the template's {% generation %} marks"
        )
    return kept, supervision


def show_supervised(row: dict[str, list[int]], tokenizer: "PreTrainedTokenizerBase") -> str:
    """The text of a tokenized conversation, with what is supervised between ⟦ and ⟧."""
    text, inside = "", False
    start = 0
    for end in range(len(row["labels"]) + 1):
        supervised = end < len(row["labels"]) and row["labels"][end] != IGNORE
        if supervised != inside or end == len(row["labels"]):
            text += tokenizer.decode(row["input_ids"][start:end]) + ("⟦" if supervised else "⟧" if inside else "")
            start, inside = end, supervised
    return text
