"""Perplexity and bits per byte of the reference answers, given their prompts."""

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from hfchat.evaluation.bootstrap import Statistics
from hfchat.evaluation.conversations import EncodedConversation

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.inference_mode()
def answer_losses(model: "PreTrainedModel", batch: list[EncodedConversation]) -> list[float]:
    """Negative log-likelihood of each answer given its prompt.

    Padding stands on the right, where a causal model cannot see it, so neither it nor the batch changes the result.

    Returns:
        For each conversation the sum over the tokens of its answer, in nats.
    """
    rows = [example.prompt_ids + example.answer_ids for example in batch]
    longest = max(map(len, rows))
    # The logits at a position predict the next token. Those before the first answer are not computed: over a large
    # vocabulary they would be most of the memory.
    first = min(len(example.prompt_ids) for example in batch) - 1
    ids = [row + [0] * (longest - len(row)) for row in rows]
    mask = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
    logits = model(
        input_ids=torch.tensor(ids, device=model.device),
        attention_mask=torch.tensor(mask, device=model.device),
        logits_to_keep=torch.arange(first, longest - 1, device=model.device),
        use_cache=False,
    ).logits
    losses = []
    for row, example in zip(logits, batch, strict=True):
        start = len(example.prompt_ids) - 1 - first
        answer = torch.tensor(example.answer_ids, device=model.device)
        losses.append(cross_entropy(row[start : start + len(answer)].float(), answer, reduction="sum").item())
    return losses


def perplexity(losses: list[float], tokens: list[int], signature: str) -> Statistics:
    """`exp` of the mean loss per token (Jelinek et al. 1977, doi:10.1121/1.2016299), over all tokens of the corpus.

    Depends on the tokenizer; for models with different ones see `bits_per_byte`.

    Args:
        losses: For each answer the sum of its losses, in nats.
        tokens: For each answer the number of its tokens, the end of turn included.
        signature: Target, context, template and precision.
    """
    return Statistics(
        np.stack([losses, tokens], axis=1).astype(float),
        lambda sums: math.exp(sums[0] / sums[1]),
        f"perplexity|tokens:{sum(tokens)}|{signature}",
    )


def bits_per_byte(losses: list[float], texts: list[str], signature: str) -> Statistics:
    """Loss in bits per byte of UTF-8 text (arXiv:2101.00027), which does not depend on the tokenizer.

    The end-of-turn token adds its loss but no bytes.
    """
    sizes = [len(text.encode()) for text in texts]
    return Statistics(
        np.stack([losses, sizes], axis=1).astype(float),
        lambda sums: sums[0] / sums[1] / math.log(2),
        f"bits_per_byte|bytes:{sum(sizes)}|{signature}",
    )
