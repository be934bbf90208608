"""Validation loss in bits per byte: comparable between tokenizers, as perplexity per token is not."""

import math
from collections.abc import Callable

import torch
from transformers import EvalPrediction

from hfchat.training.packing import IGNORE


def negative_log_likelihood(logits: torch.Tensor | tuple, labels: torch.Tensor) -> torch.Tensor:
    """Nats and number of the predicted tokens of each sequence; for `Trainer(preprocess_logits_for_metrics=...)`.

    Args:
        logits: Shape `(batch, sequence, vocabulary)`.
        labels: Shape `(batch, sequence)`, the token that each position is to predict (shifted already), or -100.

    Returns:
        Shape `(batch, 2)`, float64.
    """
    logits = logits[0] if isinstance(logits, tuple) else logits
    nats = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="none"
    )
    counts = labels.ne(IGNORE).sum(-1)
    return torch.stack([nats.view(labels.shape).sum(-1, dtype=torch.float64), counts.double()], dim=-1)


def bits_per_byte(num_bytes: int) -> Callable[[EvalPrediction], dict[str, float]]:
    """Make `Trainer(compute_metrics=...)` for a validation set of `num_bytes` bytes of UTF-8.

    The metrics: `bits_per_byte`, the sum of all tokens' negative log2-likelihood, ends of documents included, over
    the bytes of the text; `perplexity` per predicted token; `predicted_tokens`.
    """

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        nats, count = prediction.predictions.sum(axis=0)
        return {
            "bits_per_byte": nats / math.log(2) / num_bytes,
            "perplexity": math.exp(min(nats / count, 700.0)),
            "predicted_tokens": int(count),
        }

    return compute_metrics
