"""Sampling per request in one continuous batch: greedy, sampled and seeded answers side by side.

transformers' manager has one `do_sample` for all requests. Here it always takes the likeliest token, and for the
requests that sample, this processor draws the token itself and leaves no other choice. So greedy rows reach the
argmax untouched, exactly as in `generate(do_sample=False)`.
"""

from dataclasses import dataclass, field
from random import Random

import torch
from transformers import LogitsProcessorList
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessorList

from hfchat.serving.engine import Sampling


@dataclass
class Draws:
    """The sampling of one request: its settings and its own source of random numbers, one per token."""

    sampling: Sampling
    top_k: int
    random: Random = field(init=False)

    def __post_init__(self):
        self.random = Random(self.sampling.seed)

    def row(self) -> tuple[float, float, float, float]:
        uniform = self.random.random() if self.sampling.temperature else 0.0
        return self.sampling.temperature, self.sampling.top_p, float(self.top_k), uniform


class PerRequestSampler(ContinuousBatchingLogitsProcessorList):
    """A processor list whose only member samples; its arguments travel as one float per request and setting."""

    def __init__(self):
        super().__init__(LogitsProcessorList())
        self.do_processing = True
        self.tensors_required = 4  # temperature, top_p, top_k, uniform
        self.supported_keys = {"draws": Draws}

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        int32_tensor.zero_()  # temperature 0: a row without a request is greedy

    def prepare_tensor_args(self, requests_in_batch, arg_storage: torch.Tensor) -> torch.Tensor:
        rows = [future.state.logit_processor_kwargs["draws"].row()
                for future in requests_in_batch if future.has_new_token]  # fmt: skip
        if rows:
            columns = torch.tensor(rows, dtype=torch.float32).T.contiguous()
            arg_storage[:, : len(rows)] = columns.view(torch.int32).to(arg_storage.device)
        return arg_storage

    def __call__(self, input_ids, scores: torch.Tensor, logits_processor_args: torch.Tensor) -> torch.Tensor:
        """Args: scores `[requests, vocabulary]`, arguments `[4, requests]` as the bits of float32. Returns scores."""
        settings = logits_processor_args[:, : scores.size(0)].contiguous().view(torch.float32)
        if scores.device.type != "cpu":  # no branch on data: a CUDA graph must be able to capture this
            drawn = draw(scores, *settings)
            return torch.where(settings[0].unsqueeze(-1) > 0, _only(drawn, scores), scores)
        sampled = settings[0].nonzero().squeeze(-1)
        if sampled.numel():  # sorting the vocabulary costs milliseconds a row, so greedy rows skip it
            rows = scores[sampled]
            scores[sampled] = _only(draw(rows, *settings[:, sampled]), rows)
        return scores


def draw(scores, temperature, top_p, top_k, uniform) -> torch.Tensor:
    """Draw one token per row by inverting the distribution function at a number in [0, 1).

    Args:
        scores: Logits, `[rows, vocabulary]`.
        temperature, top_p, top_k, uniform: `[rows]` each; top_k 0 means all.

    Returns:
        Token ids, `[rows]`.
    """
    temperature, top_p, top_k, uniform = (row.unsqueeze(-1) for row in (temperature, top_p, top_k, uniform))
    scores, order = scores.sort(dim=-1, descending=True, stable=True)
    probabilities = (scores / torch.where(temperature > 0, temperature, 1.0)).softmax(dim=-1)
    rank = torch.arange(scores.size(-1), device=scores.device)
    probabilities = torch.where((top_k > 0) & (rank >= top_k), 0.0, probabilities)
    probabilities = probabilities / probabilities.sum(dim=-1, keepdim=True)
    # The nucleus: the fewest tokens that reach top_p, and always one (https://arxiv.org/abs/1904.09751).
    before = probabilities.cumsum(dim=-1) - probabilities
    probabilities = torch.where((before < top_p) | (rank == 0), probabilities, 0.0)
    cumulative = probabilities.cumsum(dim=-1)
    position = (cumulative <= uniform * cumulative[:, -1:]).sum(dim=-1, keepdim=True)
    # Rounding may leave the position behind the last token with any probability.
    position = torch.minimum(position, (probabilities > 0).sum(dim=-1, keepdim=True) - 1)
    return order.gather(-1, position).squeeze(-1)


def _only(tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    return torch.full_like(scores, float("-inf")).scatter(-1, tokens.unsqueeze(-1), 0.0)
