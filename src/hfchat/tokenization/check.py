"""Check that a saved tokenizer is the one that was trained, and loses no text."""

import unicodedata
from collections.abc import Mapping
from pathlib import Path

from fontTools.unicodedata import Blocks
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hfchat.chat_template import check_chat_template
from hfchat.token_ids import encode_texts

# Each has broken a tokenizer of some project: normalisation, byte fallback, whitespace clean-up, surrogates.
SAMPLES = {
    "code": "def f(x):\n\treturn {'a': x ** 2}  # ok\r\n\n\n    if x != None : pass\n",
    "emoji": "Thumbs 👍🏽, a family 👩‍👩‍👧‍👦, a flag 🇩🇪 and 🤗.",
    "Arabic": "السَّلامُ عليكم، كيف حالك؟ ١٢٣",
    "Chinese, Japanese, Korean": "你好，世界。こんにちは 안녕하세요",
    "combining marks": "e\u0301 ≠ é, Zürich, नमस्ते, ไทย, a\u0323\u0307",
    "spaces": "  two before , one after \u00a0no-break\u2009thin   ",
    "control": "bell \x07 and nul \x00 and \ufeff and \U0010ffff",
    "special tokens": "<|im_start|>user: what do <|im_end|> and <|endoftext|> mean?",
    "what SentencePiece writes": "▁one ▁▁ <0x41><unk> \ufdd0s\ufdd0",
}


def check_saved_tokenizer(
    folder: str | Path, trained: PreTrainedTokenizerBase, *, lossless: bool = True
) -> PreTrainedTokenizerBase:
    """Reload `folder` with `AutoTokenizer` and compare, on `SAMPLES` and all of Unicode.

    Args:
        folder: Where it was saved.
        trained: What was saved.
        lossless: Whether each of `SAMPLES` must come back as it was.

    Returns:
        The reloaded tokenizer.

    Raises:
        ValueError: If ids differ, if a text does not come back exactly, or if the chat template was lost.
    """
    reloaded = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    for name, text in (SAMPLES | unicode_blocks()).items():
        if reloaded(text)["input_ids"] != trained(text)["input_ids"]:
            raise ValueError(f"{folder}: the reloaded tokenizer gives other ids for {name}")
    for name, decoded in lost_texts(reloaded, SAMPLES).items() if lossless else ():
        raise ValueError(f"{folder}: {name} does not survive a round trip: {SAMPLES[name]!r} became {decoded!r}")
    if reloaded.chat_template != trained.chat_template:
        raise ValueError(f"{folder}: the chat template was not saved")
    check_chat_template(reloaded)
    return reloaded


def lost_texts(tokenizer: PreTrainedTokenizerBase, texts: Mapping[str, str]) -> dict[str, str]:
    """What became of those that do not come back exactly when their ids are decoded, by their names."""
    ids = encode_texts(tokenizer, list(texts.values()))
    decoded = (tokenizer.decode(row, skip_special_tokens=True) for row in ids)
    return {name: after for (name, before), after in zip(texts.items(), decoded, strict=True) if after != before}


def unicode_blocks() -> dict[str, str]:
    """The assigned characters of each block of Unicode in one text, without surrogates."""
    starts = [*Blocks.RANGES, 0x110000]
    blocks = {
        name: "".join(
            character
            for character in map(chr, range(start, end))
            if unicodedata.category(character) not in ("Cn", "Cs")
        )
        for name, start, end in zip(Blocks.VALUES, starts, starts[1:], strict=False)
    }
    return {name: text for name, text in blocks.items() if text and name != "No_Block"}


def bytes_per_token(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> float:
    """UTF-8 bytes of `texts` per token: how strongly the tokenizer compresses them."""
    tokens = sum(map(len, encode_texts(tokenizer, texts)))
    return sum(len(text.encode()) for text in texts) / tokens
