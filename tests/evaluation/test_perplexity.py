import math

import pytest
import torch
from tokenizers import normalizers

from hfchat.evaluation.bootstrap import estimate
from hfchat.evaluation.encoding import encode_target
from hfchat.evaluation.metrics import Perplexity
from hfchat.evaluation.perplexity import (
    bits_per_byte,
    continuation_losses,
    perplexity,
    sliding_windows,
    text_losses,
    window_and_stride,
)
from tests.conftest import TEXTS

PAIRS = [
    ("Hi", "Hello."),
    ("How do I train a tokenizer?", "Run it on a corpus, then reload it."),
    ("Why?" * 9, "So é."),
]


@pytest.fixture
def pairs(tokenizer):
    return [encode_target(tokenizer, [{"role": "user", "content": q}], a, "row") for q, a in PAIRS]


@torch.inference_mode()
def _own_loss(model, context, targets):
    """One text by itself, from `labels`, with the mean turned back into the sum."""
    labels = [-100] * len(context) + targets
    loss = model(input_ids=torch.tensor([context + targets]), labels=torch.tensor([labels])).loss
    return loss.item() * len(targets)


def test_losses_are_those_of_the_models_own_labels(model, pairs):
    expected = [_own_loss(model, *pair) for pair in pairs]
    assert continuation_losses(model, pairs) == pytest.approx(expected, rel=1e-5)


def test_losses_depend_neither_on_the_batch_nor_on_padding(model, pairs):
    together = continuation_losses(model, pairs)
    alone = [continuation_losses(model, [pair])[0] for pair in pairs]
    reordered = continuation_losses(model, pairs[::-1])[::-1]
    assert together == pytest.approx(alone, rel=1e-6)
    assert together == pytest.approx(reordered, rel=1e-6)


def test_every_token_but_the_first_is_a_target_once():
    ids = list(range(23))
    windows = list(sliding_windows(ids, window=8, stride=3))
    assert [token for _, targets in windows for token in targets] == ids[1:]
    assert windows[0] == ([0], [1, 2, 3, 4, 5, 6, 7])
    for context, targets in windows[1:-1]:
        assert len(targets) == 3
        assert context + targets == ids[targets[-1] - 7 : targets[-1] + 1]
    context, targets = windows[-1]  # the rest of the text, after as much as fits
    assert context + targets == ids[-8:]


def test_a_text_that_fits_is_one_window():
    assert list(sliding_windows([7, 8, 9], window=8, stride=4)) == [([7], [8, 9])]


@pytest.mark.parametrize(
    ("context", "asked", "expected"),
    [
        (1024, (None, None), (1024, 512)),
        (131072, (None, None), (2048, 1024)),
        (None, (None, None), (2048, 1024)),
        (1024, (100, None), (100, 50)),
        (131072, (4096, 1), (4096, 1)),
    ],
)
def test_window_and_stride_by_default(context, asked, expected):
    assert window_and_stride(context, *asked) == expected


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ((2000, None), "window: 2000 tokens, but the model reads 1024"),
        ((100, 100), "stride: must be at least 1 and less than the window of 100 tokens, not 100"),
    ],
)
def test_impossible_windows_are_refused(asked, message):
    with pytest.raises(ValueError, match=message):
        window_and_stride(1024, *asked)


def _losses(model, tokenizer, texts, batch_size=16, window=64, stride=20):
    return text_losses(model, tokenizer, texts, batch_size, window, stride)


def test_texts_have_the_loss_of_a_plain_loop_over_windows(model, tokenizer):
    # transformers' documentation, "Perplexity of fixed-length models", with the token that begins a document.
    text, window, stride = TEXTS[0] + TEXTS[1], 64, 20
    ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False).input_ids]
    assert len(ids) > 2 * window
    expected, end = 0.0, 1
    while end < len(ids):
        start, end = end, min(end + stride if end > 1 else window, len(ids))
        expected += _own_loss(model, ids[max(0, end - window) : start], ids[start:end])
    losses, tokens = _losses(model, tokenizer, [text])
    assert losses == pytest.approx([expected], rel=1e-5)
    assert tokens == [len(ids) - 1]


def test_texts_depend_neither_on_the_batch_nor_on_what_is_in_it(model, tokenizer):
    texts = [TEXTS[0], "Hi", TEXTS[1] + TEXTS[2], "A tokenizer."]
    by_one, tokens = _losses(model, tokenizer, texts, batch_size=1)
    assert _losses(model, tokenizer, texts, batch_size=7) == (pytest.approx(by_one, rel=1e-6), tokens)
    alone = [_losses(model, tokenizer, [text], batch_size=7)[0][0] for text in texts]
    assert alone == pytest.approx(by_one, rel=1e-6)


def test_more_context_than_the_window_is_not_seen(model, tokenizer):
    losses = {stride: _losses(model, tokenizer, [TEXTS[0]], window=16, stride=stride)[0][0] for stride in (1, 15)}
    whole = _losses(model, tokenizer, [TEXTS[0]], window=256, stride=1)[0][0]
    assert len({*losses.values(), whole}) == 3


def test_perplexity_weighs_tokens_not_answers():
    result = estimate(perplexity([2.0, 10.0], [1, 9], "context:prompt"), 100, seed=0)
    assert result.score == pytest.approx(math.exp(12 / 10))
    assert result.signature == "perplexity|per:token|tokens:10|context:prompt"


def test_bits_per_byte_counts_utf8():
    result = estimate(bits_per_byte([math.log(2) * 8], ["é日"], "x"), 10, seed=0)  # 8 bits over 2 + 3 bytes
    assert result.score == pytest.approx(8 / 5)
    assert result.signature.startswith("bits_per_byte|bytes:5|")


@torch.inference_mode()
def _published(model, tokenizer, texts):
    """What `evaluate`'s own perplexity module (metrics/perplexity/perplexity.py) gives with `add_start_token`."""
    encoded = tokenizer(texts, add_special_tokens=False, padding=True, padding_side="right", return_tensors="pt")
    start = torch.full((len(texts), 1), tokenizer.bos_token_id)
    ids = torch.cat([start, encoded.input_ids], dim=1)
    mask = torch.cat([torch.ones_like(start), encoded.attention_mask], dim=1)
    logits = model(ids, attention_mask=mask).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none") * mask[:, 1:]
    return torch.exp(losses.sum(1) / mask[:, 1:].sum(1)).tolist()


def test_the_metric_agrees_with_the_published_one(model, tokenizer):
    texts = ["How do I train a tokenizer?", TEXTS[0], "Hi"]
    result = Perplexity().compute(predictions=texts, model=model, tokenizer=tokenizer, batch_size=2)
    expected = _published(model, tokenizer, texts)
    assert result["perplexities"] == pytest.approx(expected, rel=1e-5)
    assert result["mean_perplexity"] == pytest.approx(sum(expected) / 3, rel=1e-5)
    assert result["score"] != pytest.approx(result["mean_perplexity"], rel=0.01)
    tokens = sum(len(tokenizer(text, add_special_tokens=False).input_ids) for text in texts)
    assert f"per:token|tokens:{tokens}|" in result["signature"]
    assert "window:256|stride:128" in result["signature"]
    assert f"bytes:{sum(len(text.encode()) for text in texts)}" in result["bits_per_byte"]["signature"]


def test_the_metric_has_no_bits_per_byte_of_what_was_not_read(model, tokenizer, monkeypatch):
    whole = Perplexity().compute(predictions=["How?", "Hi"], model=model, tokenizer=tokenizer)
    assert whole["bits_per_byte"]["score"] > 0
    assert whole["lost"] == {}
    monkeypatch.setattr(tokenizer.backend_tokenizer, "normalizer", normalizers.Lowercase())
    result = Perplexity().compute(predictions=["how?", "Hi"], model=model, tokenizer=tokenizer)
    assert result["bits_per_byte"] is None
    assert result["lost"] == {1: "it is read as 'hi' where it says 'Hi'"}
    assert result["score"] > 0


def test_the_metric_loads_a_model_by_its_folder(chat_model):
    result = Perplexity().compute(predictions=TEXTS[:3], model_id=str(chat_model), window=32, stride=8)
    assert result["n"] == 3
    assert "window:32|stride:8" in result["signature"]


def test_the_metric_wants_one_model():
    with pytest.raises(ValueError, match="give model_id, or model and tokenizer"):
        Perplexity().compute(predictions=["a"])
