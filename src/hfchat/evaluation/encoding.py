"""Prompts and the texts after them as token ids, under one model's tokenizer and chat template."""

from typing import TYPE_CHECKING

from hfchat.encoding import encode_conversation, encode_texts
from hfchat.errors import UserError
from hfchat.evaluation.task import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_prompt(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt) -> list[int]:
    """What the model continues: messages up to the header of the answer, or a text as it is.

    An empty text is the token that begins a document, as in lm-eval (`HFLM.prefix_token_id`).
    """
    if isinstance(prompt, str):
        return tokenizer(prompt).input_ids or _beginning(tokenizer)
    return encode_conversation(tokenizer, prompt, add_generation_prompt=True)


def encode_target(
    tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, target: str, place: str
) -> tuple[list[int], list[int]]:
    """The prompt, and what should follow it.

    After messages that is the assistant's turn up to its end-of-turn token: what the template writes behind it
    (ChatML's newline) is no part of the answer. After a text it is what the target adds to the tokens of the whole.

    Args:
        tokenizer: Of the model.
        prompt: Messages or text.
        target: The answer, or the text after the prompt.
        place: Of the example, for messages.

    Raises:
        UserError: If prompt and target share a token, so that there are none that are the target's alone.
    """
    context = encode_prompt(tokenizer, prompt)
    if isinstance(prompt, str):
        if not prompt:
            (whole,) = encode_texts(tokenizer, [target], add_special_tokens=True)
            whole = whole if whole[: len(context)] == context else context + whole
        else:
            # White space at the end of a context belongs to the first token after it, as in lm-eval
            # (`TemplateLM._encode_pair`).
            stripped = prompt.rstrip()
            context, whole = encode_prompt(tokenizer, stripped), tokenizer(prompt + target).input_ids
        if len(whole) <= len(context):
            raise UserError(f"{place}: its target adds no token to the prompt")
        return whole[: len(context)], whole[len(context) :]
    whole = encode_conversation(tokenizer, [*prompt, {"role": "assistant", "content": target}])
    if whole[: len(context)] != context:
        raise UserError(
            f"{place}: the chat template of {tokenizer.name_or_path} does not continue the prompt's "
            "tokens with the answer's; an answer must not start with white space"
        )
    answer = whole[len(context) :]
    if tokenizer.eos_token_id in answer:
        answer = answer[: len(answer) - answer[::-1].index(tokenizer.eos_token_id)]
    return context, answer


def _beginning(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return [token]
    raise UserError(f"{tokenizer.name_or_path}: has neither a BOS nor an EOS token to begin a document with")
