import math

import numpy as np
import pytest
import torch
from transformers import EvalPrediction

from hfchat.training.bits_per_byte import bits_per_byte, negative_log_likelihood
from hfchat.training.packing import IGNORE
from tests.conftest import needs_chunked_loss, tiny_model
from tests.training.operations import Operations
from tests.training.trainers import trainer_for


def test_nats_are_those_of_the_predicted_tokens():
    logits = torch.log(torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]], [[0.2, 0.2, 0.6], [0.3, 0.3, 0.4]]]))
    labels = torch.tensor([[0, 1], [IGNORE, 2]])
    found = negative_log_likelihood(logits, labels)
    expected = [[-math.log(0.5) - math.log(0.8), 2], [-math.log(0.4), 1]]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_metrics_weigh_tokens_and_sum_in_float64():
    """In float32, 2^24 and one more are 2^24."""
    sums = np.array([[2.0**24, 2.0**24], *[[1.0, 3.0]] * 4], dtype=np.float32)
    metrics = bits_per_byte(1000)(EvalPrediction(predictions=sums, label_ids=sums[:, 1:]))
    nats, tokens = 2**24 + 4, 2**24 + 12
    assert metrics["predicted_tokens"] == tokens
    assert metrics["loss"] == nats / tokens
    assert metrics["bits_per_byte"] == nats / math.log(2) / 1000
    assert metrics["perplexity"] == math.exp(nats / tokens)


def test_an_evaluation_asks_no_device_for_float64(packed, tokenizer, tmp_path):
    """Apple's GPUs have none (pytorch/pytorch#122602)."""
    trainer = trainer_for(packed, tokenizer, tmp_path)
    with Operations() as operations:
        trainer.evaluate()
    assert torch.float32 in operations.dtypes
    assert torch.float64 not in operations.dtypes


@pytest.mark.parametrize("chunked", [False, pytest.param(True, marks=needs_chunked_loss)])
def test_metrics_do_not_depend_on_the_batch(packed, tokenizer, tmp_path, chunked):
    from hfchat.training.chunked_loss import use_chunked_loss

    found = []
    for size in (1, 3, 7, 64):  # blocks differ in how many tokens they predict, and the last batch in its blocks
        trainer = trainer_for(packed, tokenizer, tmp_path, per_device_eval_batch_size=size, chunked_loss=chunked)
        if chunked:
            use_chunked_loss(trainer.model)
        metrics = trainer.evaluate()
        found.append([metrics[f"eval_{name}"] for name in ("loss", "bits_per_byte", "perplexity", "predicted_tokens")])
    assert all(metrics == pytest.approx(found[0], rel=1e-6) for metrics in found)
    assert found[0][2] == pytest.approx(math.exp(found[0][0]))


@needs_chunked_loss
@pytest.mark.parametrize("bf16", [False, True])
def test_in_chunks_the_metrics_are_the_same(packed, tokenizer, tmp_path, bf16):
    from hfchat.training.chunked_loss import use_chunked_loss

    whole = trainer_for(packed, tokenizer, tmp_path, bf16=bf16).evaluate()
    trainer = trainer_for(packed, tokenizer, tmp_path, bf16=bf16, chunked_loss=True)
    use_chunked_loss(trainer.model)
    chunked = trainer.evaluate()
    assert chunked["eval_predicted_tokens"] == whole["eval_predicted_tokens"]
    assert chunked["eval_loss"] == pytest.approx(whole["eval_loss"], rel=2e-3 if bf16 else 1e-6)


@needs_chunked_loss
def test_in_chunks_no_batch_has_all_its_logits_at_once(tokenizer):
    from hfchat.training.chunked_loss import use_chunked_loss

    model = tiny_model(tokenizer).eval()
    model.resize_token_embeddings(20_000)
    ids = torch.zeros(16, 128, dtype=torch.long)
    use_chunked_loss(model)
    with torch.no_grad(), Operations() as operations:
        losses = model(input_ids=ids, shift_labels=ids, token_losses=True).token_losses
    assert losses.shape == ids.shape
    assert operations.largest < ids.numel() * 20_000
