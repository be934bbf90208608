"""Train a tokenizer by the name of its algorithm: the estimate first, then what the trainer can count."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

from tokenizers.pre_tokenizers import PreTokenizer
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from hfchat.tokenization.bpe import SplitPattern, Trainer, byte_level_splitter, resolve_trainer, train_bpe
from hfchat.tokenization.sampling import MAX_CHARACTER_COUNT, MAX_PAIR_COUNT, CountLimit, TextSample, estimate
from hfchat.tokenization.sentencepiece import train_sentencepiece_bpe, train_unigram

Algorithm = Literal["byte_level_bpe", "sentencepiece_bpe", "sentencepiece_unigram"]

# Peak memory per distinct word, measured with 0.2 and 1.0 million of 7 letters on average: 505 to 634 for rustbpe,
# 1,082 to 1,117 for BPE of `tokenizers`, 1,183 for its Unigram.
_RUSTBPE_BYTES_PER_WORD = 650
_TOKENIZERS_BYTES_PER_WORD = 1200
_SMALLEST_VOCABULARY = 512


@dataclass(frozen=True)
class _Training:
    train: Callable[..., PreTrainedTokenizerFast]
    read: Callable[[list[str]], object]
    bytes_per_word: int
    limit: CountLimit


def train_tokenizer(
    sample: TextSample,
    vocab_size: int,
    *,
    algorithm: Algorithm = "byte_level_bpe",
    split_pattern: SplitPattern = "gpt2",
    trainer: Trainer = "auto",
) -> PreTrainedTokenizerFast:
    """Say what it will cost, then train.

    Args:
        sample: What to train on.
        vocab_size: Tokens, the special ones included.
        algorithm: BPE over bytes, or what SentencePiece does, over characters with byte fallback.
        split_pattern: See `train_bpe`; so is `trainer`, which is only for `byte_level_bpe`.

    Raises:
        UserError: If a count of the trainer would overflow.
    """
    training = _training(algorithm, split_pattern, trainer)
    training.limit.check_pilot(sample)
    train = partial(training.train, vocab_size=vocab_size, split_pattern=split_pattern)
    splitter: PreTokenizer = byte_level_splitter(split_pattern)
    print(estimate(sample, splitter, training.read, train, training.bytes_per_word), flush=True)
    return train(_Watched(sample, training.limit), show_progress=True)


class _Watched:
    """A sample that can be read again, each time counted anew and with a progress bar."""

    def __init__(self, sample: TextSample, limit: CountLimit):
        self._sample = sample
        self._limit = limit

    def __iter__(self) -> Iterator[str]:
        total = self._sample.total_bytes
        with tqdm(total=total, desc="read", unit="B", unit_scale=True) as bar:
            for text in self._limit.guard(self._sample, total):
                yield text
                bar.update(len(text.encode()))


def _training(algorithm: Algorithm, split_pattern: SplitPattern, trainer: Trainer) -> _Training:
    train: Callable[..., PreTrainedTokenizerFast] = train_sentencepiece_bpe
    memory, limit = _TOKENIZERS_BYTES_PER_WORD, CountLimit(MAX_PAIR_COUNT, adjacent=True)
    if algorithm == "byte_level_bpe":
        train = partial(train_bpe, trainer=trainer)
        if resolve_trainer(trainer) == "rustbpe":
            memory = _RUSTBPE_BYTES_PER_WORD
    # BPE reads as Unigram does, and learns a small vocabulary in no time.
    read = partial(train, vocab_size=_SMALLEST_VOCABULARY, split_pattern=split_pattern)
    if algorithm == "sentencepiece_unigram":
        train, limit = train_unigram, CountLimit(MAX_CHARACTER_COUNT, adjacent=False)
    return _Training(train, read, memory, limit)
