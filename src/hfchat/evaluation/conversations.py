"""Held-out conversations: of each row's `messages` the last is the reference answer, those before it the prompt."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hfchat.dataset import check_messages, load_split
from hfchat.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class Conversation:
    """One example.

    Attributes:
        prompt: Messages, `{"role", "content"}` each, up to the last answer.
        reference: The last answer.
        place: Where it stands, for messages: `"data.jsonl (validation) row 3"`, counted from 1.
    """

    prompt: list[dict[str, str]]
    reference: str
    place: str


@dataclass
class EncodedConversation:
    """A conversation under one model's chat template.

    Attributes:
        conversation: The texts.
        prompt_ids: The prompt and the header of the answer: what the model continues.
        answer_ids: The reference and its end-of-turn token: what it should have said.
    """

    conversation: Conversation
    prompt_ids: list[int]
    answer_ids: list[int]


def load_conversations(dataset_name: str, split: str, max_samples: int | None = None) -> list[Conversation]:
    """Read a split of conversations.

    Args:
        dataset_name: A folder, a file or a Hub id, see `load_split`.
        split: Name of the split.
        max_samples: Take only the first so many.

    Raises:
        UserError: If the dataset, the split or a field is missing. The message names the row.
    """
    rows = load_split(dataset_name, split, column="messages")["messages"][:max_samples]
    return [
        _conversation(messages, f"{dataset_name} ({split}) row {number}")
        for number, messages in enumerate(rows, start=1)
    ]


def encode(conversation: Conversation, tokenizer: "PreTrainedTokenizerBase") -> EncodedConversation:
    """Apply the model's own chat template.

    What the template writes after the end-of-turn token (ChatML's newline) is no part of the answer.

    Raises:
        UserError: If the template writes the prompt differently once it is answered, so that there are no tokens that
            are the answer's alone.
    """
    messages = [*conversation.prompt, {"role": "assistant", "content": conversation.reference}]
    prompt_ids = tokenizer.apply_chat_template(conversation.prompt, add_generation_prompt=True, return_dict=False)
    full_ids = tokenizer.apply_chat_template(messages, return_dict=False)
    if full_ids[: len(prompt_ids)] != prompt_ids:
        raise UserError(
            f"{conversation.place}: the chat template of {tokenizer.name_or_path} does not continue the prompt's "
            "tokens with the answer's; an answer must not start with white space"
        )
    answer_ids = full_ids[len(prompt_ids) :]
    if tokenizer.eos_token_id in answer_ids:
        last = len(answer_ids) - 1 - answer_ids[::-1].index(tokenizer.eos_token_id)
        answer_ids = answer_ids[: last + 1]
    return EncodedConversation(conversation, prompt_ids, answer_ids)


def _conversation(messages: Any, place: str) -> Conversation:
    check_messages(messages, place)
    *prompt, answer = ({"role": message["role"], "content": message["content"]} for message in messages)
    if not prompt:
        raise UserError(f"{place}: has no turn before the answer")
    return Conversation(prompt, answer["content"], place)
