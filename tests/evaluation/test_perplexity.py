import math

import pytest
import torch

from hfchat.evaluation.bootstrap import estimate
from hfchat.evaluation.conversations import Conversation, encode
from hfchat.evaluation.perplexity import answer_losses, bits_per_byte, perplexity

TEXTS = [
    ("Hi", "Hello."),
    ("How do I train a tokenizer?", "Run it on a corpus, then reload it."),
    ("Why?" * 9, "So é."),
]


@pytest.fixture
def examples(tokenizer):
    return [encode(Conversation([{"role": "user", "content": q}], a, "row"), tokenizer) for q, a in TEXTS]


@torch.inference_mode()
def _reference_loss(model, example):
    """One text by itself, from `labels`, with the mean turned back into the sum."""
    ids = example.prompt_ids + example.answer_ids
    labels = [-100] * len(example.prompt_ids) + example.answer_ids
    loss = model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss
    return loss.item() * len(example.answer_ids)


def test_losses_are_those_of_the_models_own_labels(model, examples):
    expected = [_reference_loss(model, example) for example in examples]
    assert answer_losses(model, examples) == pytest.approx(expected, rel=1e-5)


def test_losses_depend_neither_on_the_batch_nor_on_padding(model, examples):
    together = answer_losses(model, examples)
    alone = [answer_losses(model, [example])[0] for example in examples]
    reordered = answer_losses(model, examples[::-1])[::-1]
    assert together == pytest.approx(alone, abs=1e-4)
    assert together == pytest.approx(reordered, abs=1e-4)


def test_perplexity_weighs_tokens_not_answers():
    result = estimate(perplexity([2.0, 10.0], [1, 9], "context:prompt"), 100, seed=0)
    assert result["score"] == pytest.approx(math.exp(12 / 10))
    assert result["signature"] == "perplexity|tokens:10|context:prompt"


def test_bits_per_byte_counts_utf8():
    result = estimate(bits_per_byte([math.log(2) * 8], ["é日"], "x"), 10, seed=0)  # 8 bits over 2 + 3 bytes
    assert result["score"] == pytest.approx(8 / 5)
    assert result["signature"].startswith("bits_per_byte|bytes:5|")
