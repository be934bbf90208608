"""Train a byte-level BPE tokenizer with the project's special tokens and chat template."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from hfchat.chat_template import END_OF_TEXT, SPECIAL_TOKENS, record_fingerprint, set_chat_template

if TYPE_CHECKING:
    from datasets import Dataset


def sample_text(dataset: "Dataset", column: str, sample_bytes: int, seed: int) -> Iterator[str]:
    """Yields texts in an order that depends on `seed` alone, until `sample_bytes` of UTF-8 have been given."""
    remaining = sample_bytes
    for row in dataset.select_columns([column]).shuffle(seed=seed):
        if remaining <= 0:
            return
        yield row[column]
        remaining -= len(row[column].encode())


def train_bpe(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train byte-level BPE (GPT-2's byte alphabet and split pattern), so that any text has tokens.

    Args:
        texts: What to learn the merges from.
        vocab_size: Tokens, the special ones included. Fewer come out if the texts do not hold enough pairs.

    Returns:
        A tokenizer whose `bos_token` opens and separates documents, whose `eos_token` ends a turn, and whose
        `pad_token` is neither.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    # A base model has never seen a document that does not open with this token.
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, tokenizer.token_to_id(END_OF_TEXT))]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, clean_up_tokenization_spaces=False
    )
    set_chat_template(wrapped)
    record_fingerprint(wrapped)
    return wrapped
