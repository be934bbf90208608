"""Validation loss in bits per byte: comparable between tokenizers, as perplexity per token is not."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import EvalPrediction

from hfchat.training.packing import IGNORE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def negative_log_likelihood(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Nats and number of the predicted tokens of each sequence.

    Args:
        logits: Shape `(batch, sequence, vocabulary)`.
        labels: Shape `(batch, sequence)`, the token that each position is to predict (shifted already), or -100.

    Returns:
        Shape `(batch, 2)`, float32, which every device has.
    """
    nats = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="none"
    )
    return sums_of_sequences(nats.view(labels.shape), labels)


def sums_of_sequences(nats: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """As `negative_log_likelihood`, from the nats of each token, of shape `(batch, sequence)`."""
    return torch.stack([nats.float().sum(-1), labels.ne(IGNORE).sum(-1).float()], dim=-1)


def unknown_tokens(tokens: np.ndarray, tokenizer: "PreTrainedTokenizerBase") -> int:
    """How many tokens of a corpus stand for letters that a tokenizer does not know.

    One `<unk>` for many bytes costs a model next to nothing, so that bits per byte do not compare with those of
    another tokenizer. Where the token is an end of a text too, as GPT-2's, the tokenizer knows every byte.
    """
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
        return 0
    return int(np.count_nonzero(tokens == unknown))


def bits_per_byte(num_bytes: int) -> Callable[[EvalPrediction], dict[str, float]]:
    """Make `Trainer(compute_metrics=...)` for a validation set of `num_bytes` bytes of UTF-8.

    Its predictions are those of `negative_log_likelihood`; the sums over all sequences are in float64.

    The metrics: `bits_per_byte`, the sum of all tokens' negative log2-likelihood, ends of documents included, over
    the bytes of the text; `loss`, in nats, and `perplexity`, both per predicted token, whatever batch it was in;
    `predicted_tokens`.
    """

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        nats, count = np.asarray(prediction.predictions, dtype=np.float64).sum(axis=0)
        return {
            "loss": nats / count,
            "bits_per_byte": nats / math.log(2) / num_bytes,
            "perplexity": math.exp(min(nats / count, 700.0)),
            "predicted_tokens": int(count),
        }

    return compute_metrics
