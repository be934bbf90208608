"""Prompts and the texts after them as token ids, under one model's tokenizer and chat template."""

import unicodedata
from itertools import takewhile
from typing import TYPE_CHECKING

from hfchat.errors import UserError
from hfchat.evaluation.model import Prompt
from hfchat.token_ids import encode_conversation, encode_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_prompt(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt) -> list[int]:
    """Encode what the model continues: messages up to the header of the answer, or a text as it is.

    An empty text is the token that begins a document, as in lm-eval (`HFLM.prefix_token_id`).
    """
    if isinstance(prompt, str):
        return _encode_text(tokenizer, prompt) or _beginning(tokenizer)
    return encode_conversation(tokenizer, prompt, add_generation_prompt=True)


def encode_target(
    tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, target: str, place: str
) -> tuple[list[int], list[int]]:
    """Encode the prompt, and what should follow it.

    After messages that is the assistant's turn up to its end-of-turn token: what the template writes behind it
    (ChatML's newline) is no part of the answer. After a text it is what the target adds to the tokens of the whole.

    Args:
        tokenizer: The model's.
        prompt: Messages or text.
        target: The answer, or the text after the prompt.
        place: Where the example stands, for messages.

    Raises:
        UserError: If prompt and target share a token, so that no token is the target's alone.
    """
    context = encode_prompt(tokenizer, prompt)
    if isinstance(prompt, str):
        if not prompt:
            whole = _encode_text(tokenizer, target)
            whole = whole if whole[: len(context)] == context else context + whole
        else:
            # White space at the end of a context belongs to the first token after it, as in lm-eval
            # (`TemplateLM._encode_pair`).
            stripped = prompt.rstrip()
            context, whole = encode_prompt(tokenizer, stripped), _encode_text(tokenizer, prompt + target)
        if len(whole) <= len(context):
            raise UserError(f"{place}: its target adds no token to the prompt")
        return whole[: len(context)], whole[len(context) :]
    whole = encode_conversation(tokenizer, [*prompt, {"role": "assistant", "content": target}])
    return context, answer_of(tokenizer, whole, context, place)


def answer_of(tokenizer: "PreTrainedTokenizerBase", whole: list[int], context: list[int], place: str) -> list[int]:
    """What a whole conversation adds to the ids of its prompt, up to the end-of-turn token.

    Raises:
        UserError: As `encode_target`.
    """
    if whole[: len(context)] != context:
        raise UserError(
            f"{place}: the chat template of {tokenizer.name_or_path} does not continue the prompt's "
            "tokens with the answer's; an answer must not start with white space"
        )
    answer = whole[len(context) :]
    if tokenizer.eos_token_id in answer:
        answer = answer[: len(answer) - answer[::-1].index(tokenizer.eos_token_id)]
    return answer


def what_is_lost(tokenizer: "PreTrainedTokenizerBase", text: str) -> str | None:
    """What of a text its tokens do not say, in words; None where they say all of it.

    A tokenizer without bytes to fall back on reads letters that it does not know as one `<unk>`, which costs a model
    next to nothing, and some normalize: lower case, no accents. Then the loss is that of less than the text. White
    space at the ends, and other ways to write the same letters (Unicode's NFC and NFD), count for nothing.
    """
    ids = tokenizer(text, add_special_tokens=False).input_ids
    unknown = tokenizer.unk_token_id
    # GPT-2's is its end of a text, which stands for nothing unknown.
    if unknown is not None and unknown in ids and tokenizer.unk_token not in text:
        return f"{ids.count(unknown)} tokens of {len(ids)} are {tokenizer.unk_token}"
    read = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    wanted, read = (unicodedata.normalize("NFC", one).strip() for one in (text, read))
    if read == wanted:
        return None
    at = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(wanted, read, strict=False)))
    return f"it is read as {read[max(0, at - 10) : at + 20]!r} where it says {wanted[max(0, at - 10) : at + 20]!r}"


def _encode_text(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """The ids of a text, in which a special token that is quoted stays text."""
    return encode_texts(tokenizer, [text], add_special_tokens=True)[0]


def _beginning(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return [token]
    raise UserError(f"{tokenizer.name_or_path}: has neither a BOS nor an EOS token to begin a document with")
