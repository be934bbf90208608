"""Check that a saved tokenizer is the one that was trained, and loses no text."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hfchat.chat_template import check_chat_template

# Each has broken a tokenizer of some project: normalisation, byte fallback, whitespace clean-up, surrogates.
SAMPLES = {
    "code": "def f(x):\n\treturn {'a': x ** 2}  # ok\r\n\n\n    if x != None : pass\n",
    "emoji": "Thumbs 👍🏽, a family 👩‍👩‍👧‍👦, a flag 🇩🇪 and 🤗.",
    "Arabic": "السَّلامُ عليكم، كيف حالك؟ ١٢٣",
    "Chinese, Japanese, Korean": "你好，世界。こんにちは 안녕하세요",
    "combining marks": "e\u0301 ≠ é, Zürich, नमस्ते, ไทย, a\u0323\u0307",
    "spaces": "  two before , one after \u00a0no-break\u2009thin   ",
    "control": "bell \x07 and nul \x00 and \ufeff and \U0010ffff",
}


def check_saved_tokenizer(folder: str | Path, trained: PreTrainedTokenizerBase) -> None:
    """Reload `folder` with `AutoTokenizer` and compare.

    Raises:
        ValueError: If ids differ, if a text does not come back exactly, or if the chat template was lost.
    """
    reloaded = AutoTokenizer.from_pretrained(folder)
    for name, text in SAMPLES.items():
        ids = reloaded(text)["input_ids"]
        if ids != trained(text)["input_ids"]:
            raise ValueError(f"{folder}: the reloaded tokenizer gives other ids for {name}")
        decoded = reloaded.decode(ids, skip_special_tokens=True)
        if decoded != text:
            raise ValueError(f"{folder}: {name} does not survive a round trip: {text!r} became {decoded!r}")
    if reloaded.chat_template != trained.chat_template:
        raise ValueError(f"{folder}: the chat template was not saved")
    check_chat_template(reloaded)


def bytes_per_token(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> float:
    """UTF-8 bytes of `texts` per token: how strongly the tokenizer compresses them."""
    tokens = sum(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"]))
    return sum(len(text.encode()) for text in texts) / tokens
