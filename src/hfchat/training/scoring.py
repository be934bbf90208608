"""Logits where they are needed only: a small model's time and memory go into its output layer."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers.modeling_outputs import ModelOutput

from hfchat.training.packing import IGNORE

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


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


@dataclass
class CompletionScores(ModelOutput):
    """What TRL's trainers read of a model with its fused head: each of shape `(rows, width - 1)`, and 0 elsewhere.

    Attributes:
        log_probs: Log-probability of each token, in nats. Only this has a gradient.
        entropy: Entropy of the distribution that the token was drawn from.
        mean_logits: Mean of its logits.
        is_top1: Whether the token is the most probable one.
        label_mask: Whether the token is scored.
    """

    log_probs: torch.Tensor | None = None
    entropy: torch.Tensor | None = None
    mean_logits: torch.Tensor | None = None
    is_top1: torch.Tensor | None = None
    label_mask: torch.Tensor | None = None


def score_completions_only(model: nn.Module, head: nn.Module, config: "PreTrainedConfig") -> None:
    """Compute the scores that TRL asks `model` for at the completions only, and each prompt once.

    Without Triton, TRL's fused head scores every position of every padded row, and computes a prompt anew for each of
    its completions. Here, PyTorch's hooks give the model one row for each prompt, followed by its completions, which
    do not see each other, and take its logits where a token is scored. The scores are the same. Measured on one CPU
    core, a step of 4 pairs with SmolLM2-135M took 23 s of processor time and 6.1 GiB with TRL's head, and 10 s and
    2.8 GiB with logits at the completions only.

    Args:
        model: What the trainer calls with `fused_lm_head=True` (`trl.trainer.utils.add_fused_lm_head`), so the adapter
            if there is one. What it is asked for otherwise does not change.
        head: Its output layer.
        config: Its config. Prompts are shared if positions and attention can be given as tensors: by models with
            rotary embeddings and full attention by SDPA.
    """
    hooks = _ScoringHooks(head, shares_prompts=_shares_prompts(model, config))
    model.register_forward_pre_hook(hooks.before_model, with_kwargs=True)
    model.register_forward_hook(hooks.after_model)


class _ScoringHooks:
    """Change what goes into the model and into its head, and make scores of the logits that come out."""

    def __init__(self, head: nn.Module, shares_prompts: bool):
        self._head = head
        self._shares_prompts = shares_prompts
        self._exit = contextlib.ExitStack()  # ends what was begun for the head
        self._labels: torch.Tensor | None = None  # while scores are asked for

    def before_model(self, model: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        self._exit.close()  # of a call that failed
        self._labels = None
        inputs = {name: value for name, value in kwargs.items() if value is not None}
        asked = {"fused_lm_head", "input_ids", "attention_mask", "labels"}
        if args or not inputs.get("fused_lm_head") or inputs.keys() - {"use_cache"} != asked:  # a router's logits, say
            return None
        ids, labels = inputs["input_ids"], inputs["labels"]
        scored = labels[:, 1:] != IGNORE
        # A token is predicted at the position before it.
        positions = torch.nn.functional.pad(scored, (0, 1)).flatten().nonzero().squeeze(-1)
        rows = {"input_ids": ids, "attention_mask": inputs["attention_mask"]}
        starts = (labels != IGNORE).int().argmax(1).tolist()
        if self._shares_prompts and all(starts):
            rows, positions = _one_row_for_each_prompt(ids, inputs["attention_mask"].sum(1).tolist(), starts)
        self._labels = labels
        self._exit.enter_context(scoring_only(self._head, positions))
        return args, rows | {"use_cache": False}

    def after_model(self, model: nn.Module, args: Any, output: Any) -> Any:
        labels, self._labels = self._labels, None
        self._exit.close()
        if labels is None:
            return output
        logits = output.logits[0].float()
        scored = labels[:, 1:] != IGNORE
        targets = labels[:, 1:][scored]
        normalizer = logits.logsumexp(-1)
        chosen = logits.gather(-1, targets[:, None]).squeeze(-1)

        def spread(values: torch.Tensor) -> torch.Tensor:
            return torch.zeros(scored.shape, device=values.device).masked_scatter(scored, values)

        with torch.no_grad():
            entropy = normalizer - ((logits - normalizer[:, None]).exp() * logits).sum(-1)
            rest = {
                "entropy": spread(entropy),
                "mean_logits": spread(logits.mean(-1)),
                "is_top1": spread((chosen >= logits.amax(-1)).float()).bool(),
                "label_mask": scored,
            }
        return CompletionScores(log_probs=spread(chosen - normalizer), **rest)


def _one_row_for_each_prompt(
    ids: torch.Tensor, lengths: Sequence[int], starts: Sequence[int]
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Put completions of the same prompt behind one copy of it.

    Args:
        ids: Tokens, shape `(rows, width)`, padded on the right.
        lengths: Tokens of each row.
        starts: Where its completion begins.

    Returns:
        The model's inputs, and the numbers of the positions in the flattened batch that predict the completions, in
        the order of the rows.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, start in enumerate(starts):
        groups.setdefault(tuple(ids[row, :start].tolist()), []).append(row)
    sequences, parts, places = [], [], []
    predicted_at: list[tuple[int, torch.Tensor]] = []  # with the row
    for number, (prompt, rows) in enumerate(groups.items()):
        start = end = len(prompt)
        completions = [ids[row, start : lengths[row]] for row in rows]
        sequences.append(torch.cat([ids[rows[0], :start], *completions]))
        # Part 0 is the prompt; each completion goes on from its end.
        sizes = torch.tensor([start, *map(len, completions)])
        parts.append(torch.repeat_interleave(torch.arange(len(sizes)), sizes))
        places.append(torch.cat([torch.arange(start), *(start + torch.arange(len(part)) for part in completions)]))
        for row, completion in zip(rows, completions, strict=True):
            within = torch.tensor([start - 1, *range(end, end + len(completion) - 1)])
            predicted_at.append((row, torch.stack([torch.full_like(within, number), within])))
            end += len(completion)
    part = pad_sequence(parts, batch_first=True, padding_value=-1).to(ids.device)
    seen = ((part[:, None] == 0) | (part[:, None] == part[:, :, None])).tril()
    inputs = {
        "input_ids": pad_sequence(sequences, batch_first=True),
        "attention_mask": seen[:, None],
        "position_ids": pad_sequence(places, batch_first=True).to(ids.device),
    }
    group, within = torch.cat([place for _, place in sorted(predicted_at, key=lambda entry: entry[0])], dim=1)
    return inputs, (group * part.shape[1] + within).to(ids.device)


def _shares_prompts(model: nn.Module, config: "PreTrainedConfig") -> bool:
    text = config.get_text_config()
    full = set(getattr(text, "layer_types", None) or ["full_attention"]) == {"full_attention"}
    rotary = any(name.endswith("rotary_emb") for name, _ in model.named_modules())
    windows = getattr(text, "sliding_window", None) is not None
    return full and rotary and not windows and getattr(text, "_attn_implementation", None) == "sdpa"
