"""Train byte-level BPE with `tokenizers` or, three times as fast and with the same result, with rustbpe."""

import importlib.util
import json
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Literal

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from hfchat.chat_template import SPECIAL_TOKENS
from hfchat.errors import UserError
from hfchat.models import VOCABULARY_MULTIPLE
from hfchat.tokenization.chat_tokenizer import as_chat_tokenizer
from hfchat.tokenization.sampling import break_long_runs

SplitPattern = Literal["gpt2", "gpt4"]
Trainer = Literal["auto", "tokenizers", "rustbpe"]

# Merges never cross what these split. gpt2: openai/gpt-2, src/encoder.py. gpt4: that of cl100k_base in
# openai/tiktoken, tiktoken_ext/openai_public.py, in the form that Llama 3 and Qwen ship for `tokenizers`.
SPLIT_PATTERNS: dict[str, str] = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "gpt4": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}

_BYTE_TO_CHARACTER: dict[int, str] = bytes_to_unicode()

Merge = tuple[str, str]


def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    *,
    split_pattern: SplitPattern = "gpt2",
    trainer: Trainer = "auto",
    vocab_multiple: int = VOCABULARY_MULTIPLE,
    show_progress: bool = False,
) -> PreTrainedTokenizerFast:
    """Train byte-level BPE (GPT-2's byte alphabet), so that any text has tokens.

    Args:
        texts: What to learn the merges from. They are read once, and only their distinct words are kept in memory.
        vocab_size: Tokens, the special ones included. Fewer are learned if the texts do not hold enough pairs.
        split_pattern: What merges never cross, of `SPLIT_PATTERNS`.
        trainer: What learns the merges: `"tokenizers"`, `"rustbpe"`, or `"auto"`, the second where it is installed.
            The result is the same.
        vocab_multiple: What is missing to a multiple of it is filled up with reserved tokens.
        show_progress: Show the progress bars of `tokenizers`.

    Returns:
        A tokenizer whose `bos_token` opens and separates documents, whose `eos_token` ends a turn, and whose
        `pad_token` is neither.

    Raises:
        UserError: If `trainer` is not installed.
    """
    count = vocab_size - len(SPECIAL_TOKENS) - len(_BYTE_TO_CHARACTER)
    texts = map(break_long_runs, texts)
    if resolve_trainer(trainer) == "rustbpe":
        merges = _merges_by_rustbpe(texts, split_pattern, count)
    else:
        merges = _merges_by_tokenizers(texts, split_pattern, count, show_progress)
    # The ids of GPT-2's vocabulary: the byte alphabet in the order of its characters, then the merges.
    tokens = [*SPECIAL_TOKENS, *sorted(_BYTE_TO_CHARACTER.values()), *(left + right for left, right in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = byte_level_splitter(split_pattern)
    tokenizer.decoder = decoders.ByteLevel()
    return as_chat_tokenizer(tokenizer, vocab_multiple)


def resolve_trainer(trainer: Trainer) -> Literal["tokenizers", "rustbpe"]:
    """The trainer of byte-level BPE that will be used.

    Raises:
        UserError: If it is not installed.
    """
    installed = importlib.util.find_spec("rustbpe") is not None
    if trainer == "rustbpe" and not installed:
        raise UserError("trainer rustbpe: not installed; run `pip install rustbpe`, or leave trainer at auto")
    return "rustbpe" if trainer != "tokenizers" and installed else "tokenizers"


def byte_level_splitter(split_pattern: SplitPattern) -> pre_tokenizers.PreTokenizer:
    """Splits by the pattern and spells the bytes of each piece in GPT-2's alphabet."""
    if split_pattern == "gpt2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERNS[split_pattern]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _merges_by_tokenizers(
    texts: Iterable[str], split_pattern: SplitPattern, count: int, show_progress: bool
) -> list[Merge]:
    scratch = Tokenizer(models.BPE())
    scratch.pre_tokenizer = byte_level_splitter(split_pattern)
    scratch.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=count + len(_BYTE_TO_CHARACTER),
            # Of equally frequent pairs the one with the lower ids is merged first. Special tokens keep the order in
            # which they are given, so the ids are the values of the bytes, as in rustbpe.
            special_tokens=[_BYTE_TO_CHARACTER[byte] for byte in range(256)],
            show_progress=show_progress,
        ),
    )
    return [(left, right) for left, right in json.loads(scratch.to_str())["model"]["merges"]]


def _merges_by_rustbpe(texts: Iterable[str], split_pattern: SplitPattern, count: int) -> list[Merge]:
    import rustbpe

    trainer = rustbpe.Tokenizer()
    # It holds as many texts as the buffer, and they may be books; `tokenizers` holds as many.
    trainer.train_from_iterator(texts, count + 256, buffer_size=256, pattern=SPLIT_PATTERNS[split_pattern])
    ranks = {bytes(token): rank for token, rank in trainer.get_mergeable_ranks()}
    learned = sorted(ranks, key=ranks.__getitem__)[256:]
    return [(_spell(left), _spell(right)) for left, right in (_last_merge(token, ranks) for token in learned)]


def _spell(token: bytes) -> str:
    return "".join(_BYTE_TO_CHARACTER[byte] for byte in token)


def _last_merge(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens that `token` was merged of: what the earlier merges make of its bytes.

    In a text, no earlier merge crossed the ends of what became `token`, so its inside went the same way there.
    """
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = [ranks.get(left + right, len(ranks)) for left, right in pairwise(parts)]
        parts = list(_merge_pair(parts, pairs, min(pairs)))
    left, right = parts
    return left, right


def _merge_pair(parts: list[bytes], pairs: list[int], rank: int) -> Iterator[bytes]:
    position = 0
    while position < len(parts):
        merged = position < len(pairs) and pairs[position] == rank
        yield parts[position] + parts[position + 1] if merged else parts[position]
        position += 1 + merged
