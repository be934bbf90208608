"""Logits where they are needed only: a small model's time and memory go into its output layer."""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import nn


@contextlib.contextmanager
def scoring_only(head: nn.Module, positions: torch.Tensor) -> Iterator[None]:
    """Within, an output layer gets some positions of the flattened batch alone, as one row.

    Args:
        head: The output layer of the model.
        positions: Numbers of positions in the flattened batch; shape `(scored,)`.
    """
    hook = head.register_forward_pre_hook(lambda _, hidden: hidden[0].flatten(0, 1)[positions][None])
    try:
        yield
    finally:
        hook.remove()


def completion_log_probs(model: nn.Module, head: nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Log-probability of each token of the completions, in nats.

    Args:
        model: A causal language model.
        head: Its output layer.
        batch: `input_ids`, `attention_mask` and `completion_mask` as TRL's collators make them, each of shape
            `(rows, width)` and padded on the right.

    Returns:
        Shape `(rows, width - 1)`, float32: the log-probability of the next token of each position where that is a
        completion's, and 0 elsewhere.
    """
    ids = batch["input_ids"]
    scored = torch.nn.functional.pad(batch["completion_mask"][:, 1:], (0, 1)).bool()
    with scoring_only(head, scored.flatten().nonzero().squeeze(-1)):
        logits = model(input_ids=ids, attention_mask=batch["attention_mask"], use_cache=False).logits[0].float()
    targets = ids.roll(-1, 1)[scored]
    values = logits.gather(-1, targets[:, None]).squeeze(-1) - logits.logsumexp(-1)
    return torch.zeros(ids.shape, device=ids.device).masked_scatter(scored, values)[:, :-1]
