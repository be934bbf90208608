"""Perplexity and bits per byte: of answers given their prompts, and of plain texts by a sliding window."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from hfchat.evaluation.bootstrap import Statistics
from hfchat.evaluation.encoding import encode_target
from hfchat.evaluation.task import Record

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WINDOW = 2048  # tokens: a longer one costs much more memory, and hardly lowers the loss
_POSITIONS = 4096  # in one forward pass: over a vocabulary of 50,000 their logits take 0.8 GB in float32


@torch.inference_mode()
def continuation_losses(model: "PreTrainedModel", pairs: Sequence[tuple[list[int], list[int]]]) -> list[float]:
    """Negative log-likelihood of texts that continue others.

    Padding stands on the right, where a causal model cannot see it, so neither it nor the batch changes the result.

    Args:
        model: A causal language model.
        pairs: Token ids of a context, at least one, and of its continuation.

    Returns:
        For each pair the sum over the tokens of its continuation, in nats.
    """
    rows = [context + continuation for context, continuation in pairs]
    longest = max(map(len, rows))
    # The logits at a position predict the next token. Those before the first continuation are not computed: over a
    # large vocabulary they would be most of the memory.
    first = min(len(context) for context, _ in pairs) - 1
    ids = [row + [0] * (longest - len(row)) for row in rows]
    mask = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
    logits = model(
        input_ids=torch.tensor(ids, device=model.device),
        attention_mask=torch.tensor(mask, device=model.device),
        logits_to_keep=torch.arange(first, longest - 1, device=model.device),
        use_cache=False,
    ).logits
    losses = []
    for row, (context, continuation) in zip(logits, pairs, strict=True):
        start = len(context) - 1 - first
        targets = torch.tensor(continuation, device=model.device)
        losses.append(cross_entropy(row[start : start + len(targets)].float(), targets, reduction="sum").item())
    return losses


def sliding_windows(ids: Sequence[int], window: int, stride: int) -> Iterator[tuple[list[int], list[int]]]:
    """Cut a text into pieces that a model can read: each token once as a target, with as much before it as fits.

    All but the first window overlap the one before by `window - stride` tokens, which are the context only
    (transformers' documentation, "Perplexity of fixed-length models").

    Args:
        ids: Ids of a text; the first is the token that begins a document, and is not a target.
        window: Tokens of context and targets together, at least 2.
        stride: Targets of each window but the first, less than `window`: a target needs something before it.

    Yields:
        Context and targets, as `continuation_losses` takes them.
    """
    start, end = 1, min(window, len(ids))
    while start < end:
        yield list(ids[max(0, end - window) : start]), list(ids[start:end])
        start, end = end, min(end + stride, len(ids))


def window_and_stride(context: int | None, window: int | None, stride: int | None) -> tuple[int, int]:
    """The window and stride of a model: by default its context, at most `WINDOW`, and half the window.

    Args:
        context: The most tokens that it reads; None if it knows no bound.
        window: Asked for.
        stride: Asked for.

    Raises:
        ValueError: If the window is more than the context, or the stride does not fit it.
    """
    window = window or min(context or WINDOW, WINDOW)
    stride = stride or window // 2
    if context is not None and window > context:
        raise ValueError(f"window: {window} tokens, but the model reads {context}")
    if not 1 <= stride < window:
        raise ValueError(f"stride: must be at least 1 and less than the window of {window} tokens, not {stride}")
    return window, stride


def text_setting(window: int, stride: int) -> str:
    """The part of a signature that says how texts were read."""
    return f"target:text|context:start-of-document|window:{window}|stride:{stride}"


def text_losses(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    texts: Sequence[str],
    batch_size: int,
    window: int,
    stride: int,
) -> tuple[list[float], list[int]]:
    """Negative log-likelihood of texts, each after the token that begins a document (BOS, or else EOS).

    Args:
        model: A causal language model.
        tokenizer: Its own.
        texts: Texts that are not empty.
        batch_size: Windows at a time, fewer if they are long. Does not change the result.
        window: See `sliding_windows`, as `stride`.
        stride: See there.

    Returns:
        For each text the loss in nats, and over how many tokens it is.

    Raises:
        UserError: If a text has no tokens.
    """
    windows = []  # with the index of their text
    tokens = []
    for index, text in enumerate(texts):
        beginning, rest = encode_target(tokenizer, "", text, f"text {index + 1}")
        windows += [(index, pair) for pair in sliding_windows([*beginning, *rest], window, stride)]
        tokens.append(len(beginning) + len(rest) - 1)
    # The longest first, so that texts of a length are together and little is padding.
    windows.sort(key=lambda one: -sum(map(len, one[1])))
    rows = max(1, min(batch_size, _POSITIONS // window))
    losses = [0.0] * len(texts)
    for start in range(0, len(windows), rows):
        batch = windows[start : start + rows]
        for (index, _), loss in zip(batch, continuation_losses(model, [pair for _, pair in batch]), strict=True):
            losses[index] += loss
    return losses, tokens


def left_out(records: Mapping[str, Sequence[Record]]) -> dict[str, dict[str, dict[str, str]]]:
    """The models that get no bits per byte, because their tokenizers lose a part of some text.

    Args:
        records: Each model's records.

    Returns:
        For `details` of a task: empty, or `{"no bits per byte": {model: {"why"}}}`.
    """
    why = {}
    for model, own in records.items():
        lost = [record for record in own if "lost" in record.info]
        if lost:
            first = f"example {lost[0].index + 1}: {lost[0].info['lost']}"
            why[model] = {"why": f"its tokenizer loses a part of {len(lost)} of {len(own)} texts; {first}"}
    return {"no bits per byte": why} if why else {}


def perplexity(losses: list[float], tokens: list[int], signature: str) -> Statistics:
    """`exp` of the mean loss per token (Jelinek et al. 1977, doi:10.1121/1.2016299), over all tokens of the corpus.

    Depends on the tokenizer; for models with different ones see `bits_per_byte`.

    Args:
        losses: For each text the sum of its losses, in nats.
        tokens: For each text the number of its tokens; of an answer, the end of turn included.
        signature: Target, context, template and precision.
    """
    return Statistics(
        np.stack([losses, tokens], axis=1).astype(float),
        lambda sums: math.exp(sums[0] / sums[1]),
        f"perplexity|per:token|tokens:{sum(tokens)}|{signature}",
        bounds=(1, math.inf),
    )


def bits_per_byte(losses: list[float], texts: list[str], signature: str) -> Statistics:
    """Loss in bits per byte of UTF-8 text (arXiv:2101.00027), which does not depend on the tokenizer.

    Unless it loses a part of a text: then there is no such score, see `left_out`. The end-of-turn token of an answer
    adds its loss but no bytes.
    """
    sizes = [len(text.encode()) for text in texts]
    return Statistics(
        np.stack([losses, sizes], axis=1).astype(float),
        lambda sums: sums[0] / sums[1] / math.log(2),
        f"bits_per_byte|bytes:{sum(sizes)}|{signature}",
        bounds=(0, math.inf),
    )
