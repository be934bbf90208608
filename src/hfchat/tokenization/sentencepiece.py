"""SentencePiece-style tokenizers: Unigram and BPE over characters, with the rare ones spelled in bytes."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hfchat.chat_template import SPECIAL_TOKENS
from hfchat.models import VOCABULARY_MULTIPLE
from hfchat.tokenization.bpe import SPLIT_PATTERNS, SplitPattern
from hfchat.tokenization.chat_tokenizer import as_chat_tokenizer
from hfchat.tokenization.sampling import break_long_runs, first_bytes

# The share of characters that get a token of their own; the rest is spelled in bytes. The default of SentencePiece.
CHARACTER_COVERAGE = 0.9995
_ALPHABET_BYTES = 20_000_000

SPACE = "▁"  # what SentencePiece writes for a space
# A literal "▁" would come back as a space, so it is written in two characters that begin with one that Unicode keeps
# out of texts (the noncharacter U+FDD0), and so is that one.
_ESCAPE = "\ufdd0"
_ESCAPED_SPACE, _ESCAPED_ESCAPE = _ESCAPE + "s", _ESCAPE + "e"

_UNKNOWN = "<unk>"
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_ASCII = [chr(code) for code in range(0x21, 0x7F)]


def train_sentencepiece_bpe(
    texts: Iterable[str],
    vocab_size: int,
    *,
    split_pattern: SplitPattern = "gpt2",
    vocab_multiple: int = VOCABULARY_MULTIPLE,
    show_progress: bool = False,
) -> PreTrainedTokenizerFast:
    """Train BPE over characters; the rare ones are spelled in bytes.

    The arguments are those of `train_bpe`. Unlike SentencePiece's own defaults, nothing is normalised and no space is
    put before a text, so that any text comes back exactly.
    """
    trainer = trainers.BpeTrainer(
        vocab_size=_learnable(vocab_size), initial_alphabet=_ASCII, show_progress=show_progress
    )
    trained, _ = _learn(texts, models.BPE(), trainer, split_pattern)
    learned = sorted(trained["vocab"], key=trained["vocab"].__getitem__)
    tokens = [*SPECIAL_TOKENS, _UNKNOWN, *_BYTES, *learned]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=[tuple(merge) for merge in trained["merges"]],
            unk_token=_UNKNOWN,
            byte_fallback=True,
        )
    )
    _set_pipeline(tokenizer, split_pattern)
    return as_chat_tokenizer(tokenizer, vocab_multiple)


def train_unigram(
    texts: Iterable[str],
    vocab_size: int,
    *,
    split_pattern: SplitPattern = "gpt2",
    vocab_multiple: int = VOCABULARY_MULTIPLE,
    show_progress: bool = False,
) -> PreTrainedTokenizerFast:
    """Train a Unigram language model (arXiv:1804.10959) over characters; the rare ones are spelled in bytes.

    The arguments, and what comes back exactly, are those of `train_sentencepiece_bpe`.
    """
    trainer = trainers.UnigramTrainer(
        vocab_size=_learnable(vocab_size), initial_alphabet=_ASCII, show_progress=show_progress
    )
    trained, characters = _learn(texts, models.Unigram(), trainer, split_pattern)
    pieces = _in_one_order(trained["vocab"], characters)
    # Unigram finds any piece of its vocabulary in a text, but none of the first ones, as the patterns split them.
    fixed = [*SPECIAL_TOKENS, _UNKNOWN, *_BYTES]
    tokenizer = Tokenizer(
        models.Unigram([*((token, 0.0) for token in fixed), *pieces], unk_id=fixed.index(_UNKNOWN), byte_fallback=True)
    )
    _set_pipeline(tokenizer, split_pattern)
    return as_chat_tokenizer(tokenizer, vocab_multiple)


def common_characters(texts: Iterable[str], learnable: int) -> set[str]:
    """The most frequent characters that make up `CHARACTER_COVERAGE` of the texts, at most half of `learnable`."""
    counts = Counter[str]()
    for text in texts:
        counts.update(text)
    uncovered = (1 - CHARACTER_COVERAGE) * counts.total()
    kept = [character for character, _ in counts.most_common()]
    while kept and counts[kept[-1]] <= uncovered:
        uncovered -= counts[kept.pop()]
    return {*kept[: learnable // 2], *_ASCII, " ", "\n"}


def keep_characters(texts: Iterable[str], alphabet: set[str]) -> Iterator[str]:
    """The texts without the other characters, which would each need a token; a line break stands for a run of them."""
    others = re.compile(f"[^{re.escape(''.join(sorted(alphabet)))}]+")
    return (break_long_runs(others.sub("\n", text)) for text in texts)


def _learn(
    texts: Iterable[str],
    model: models.Model,
    trainer: trainers.BpeTrainer | trainers.UnigramTrainer,
    split_pattern: SplitPattern,
) -> tuple[Any, int]:
    """The trained model as `tokenizers` writes it, and how many characters it was to keep."""
    alphabet = common_characters(first_bytes(texts, _ALPHABET_BYTES), trainer.vocab_size)
    scratch = Tokenizer(model)
    _set_pipeline(scratch, split_pattern)
    scratch.train_from_iterator(keep_characters(texts, alphabet), trainer)
    return json.loads(scratch.to_str())["model"], len(alphabet)


def _learnable(vocab_size: int) -> int:
    return vocab_size - len(SPECIAL_TOKENS) - len(_BYTES) - 1


def _in_one_order(pieces: list[tuple[str, float]], characters: int) -> list[tuple[str, float]]:
    """Pieces and scores that are the same in each run on the same text.

    `UnigramTrainer::finalize` gives each character that it must keep and did not learn 0.0001 more than the one
    before, in the random order of a hash set; here they share the lowest score. Sums of floats differ in their last
    digits.
    """
    lowest = min(score for _, score in pieces)
    given = lowest + 0.0001 * characters
    scores = {piece: round(lowest if len(piece) == 1 and score <= given else score, 6) for piece, score in pieces}
    return sorted(scores.items(), key=lambda entry: (-entry[1], entry[0]))


def _set_pipeline(tokenizer: Tokenizer, split_pattern: SplitPattern) -> None:
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(_ESCAPE, _ESCAPED_ESCAPE), normalizers.Replace(SPACE, _ESCAPED_SPACE)]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERNS[split_pattern]), behavior="isolated"),
            pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="never", split=False),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Replace(_ESCAPED_SPACE, SPACE),
            decoders.Replace(_ESCAPED_ESCAPE, _ESCAPE),
        ]
    )
