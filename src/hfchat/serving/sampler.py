"""Sampling per request in one continuous batch: greedy, sampled, penalised and seeded answers side by side.

transformers' manager has one `do_sample` for all requests. Here it always takes the likeliest token, and for the
requests that sample, this processor draws the token itself and leaves no other choice. So greedy rows reach the
argmax untouched, exactly as in `generate(do_sample=False)`.
"""

from collections import Counter
from dataclasses import dataclass, field
from random import Random

import torch
from transformers import LogitsProcessorList
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessorList
from transformers.generation.continuous_batching.requests import FutureRequestState, RequestState

from hfchat.serving.engine import Sampling

MAX_TOP_LOGPROBS = 20  # what OpenAI's API lets a client ask for


@dataclass
class ScoredToken:
    """Ids and log probabilities at one place of an answer: of the chosen token, and of the likeliest ones."""

    chosen: tuple[int, float]
    top: list[tuple[int, float]]


@dataclass
class Draws:
    """The sampling of one request: its settings and its own source of random numbers, one per token.

    Attributes:
        scored: The tokens so far, if log probabilities were asked for. Written by the generation's thread.
    """

    sampling: Sampling
    top_k: int
    random: Random = field(init=False)
    scored: list[ScoredToken] = field(default_factory=list)

    def __post_init__(self):
        self.random = Random(self.sampling.seed)

    def __deepcopy__(self, memo) -> "Draws":
        """The manager copies a request that it sets back when the cache is full; it stays the same request."""
        return self

    def row(self) -> tuple[float, float, float, float]:
        uniform = self.random.random() if self.sampling.temperature else 0.0
        return self.sampling.temperature, self.sampling.top_p, float(self.top_k), uniform

    def penalties(self, tokens: list[int]) -> dict[int, float]:
        """What to take off the logit of each token that the answer has, by the formula of OpenAI's API reference."""
        presence, frequency = self.sampling.presence_penalty, self.sampling.frequency_penalty
        if not presence and not frequency:
            return {}
        return {token: presence + count * frequency for token, count in Counter(tokens).items()}


class PerRequestSampler(ContinuousBatchingLogitsProcessorList):
    """A processor list whose only member samples; its small arguments travel as one float per request and setting.

    Penalties are as wide as the vocabulary, and log probabilities come back, so both have tensors of their own. These
    keep their place in memory, because a CUDA graph repeats what it captured. They are written and read between two
    steps, which is why the manager must not prepare a step while another one runs (`use_async_batching=False`).
    """

    def __init__(self, rows: int, vocabulary: int, device: torch.device):
        """
        Args:
            rows: Most requests in one step.
            vocabulary: Number of logits.
            device: Where the model is.
        """
        super().__init__(LogitsProcessorList())
        self.do_processing = True
        self.tensors_required = 4  # temperature, top_p, top_k, uniform
        self.supported_keys = {"draws": Draws}
        self._penalties = torch.zeros(rows, vocabulary, device=device)
        self._penalised = False  # whether any of them is not 0
        self._chosen = torch.zeros(rows, 2, device=device)  # ids, exact up to 2**24, and log probabilities
        self._top = torch.zeros(rows, min(MAX_TOP_LOGPROBS, vocabulary), 2, device=device)
        self._scoring: list[tuple[int, Draws]] = []  # rows of this step whose log probabilities were asked for

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        int32_tensor.zero_()  # temperature 0: a row without a request is greedy

    def prepare_tensor_args(
        self, requests_in_batch: list[FutureRequestState], arg_storage: torch.Tensor
    ) -> torch.Tensor:
        states = [future.state for future in requests_in_batch if future.has_new_token]
        draws = [state.logit_processor_kwargs["draws"] for state in states]
        if draws:
            columns = torch.tensor([one.row() for one in draws], dtype=torch.float32).T.contiguous()
            arg_storage[:, : len(draws)] = columns.view(torch.int32).to(arg_storage.device)
        self._scoring = [(row, one) for row, one in enumerate(draws) if one.sampling.logprobs is not None]
        self._set_penalties([one.penalties(_answer(state)) for one, state in zip(draws, states, strict=True)])
        return arg_storage

    def _set_penalties(self, penalties: list[dict[int, float]]) -> None:
        if self._penalised:
            self._penalties.zero_()
        self._penalised = any(penalties)
        if self._penalised:
            for row, values in enumerate(penalties):
                tokens = torch.tensor(list(values), dtype=torch.int64, device=self._penalties.device)
                self._penalties[row, tokens] = torch.tensor(list(values.values()), device=self._penalties.device)
            if self._penalties.device.type == "cuda":  # the step runs on another stream
                torch.cuda.current_stream().synchronize()

    def __call__(self, input_ids, scores: torch.Tensor, logits_processor_args: torch.Tensor) -> torch.Tensor:
        """Args: scores `[requests, vocabulary]`, arguments `[4, requests]` as the bits of float32. Returns scores."""
        rows = scores.size(0)
        settings = logits_processor_args[:, :rows].contiguous().view(torch.float32)
        on_cpu = scores.device.type == "cpu"
        # On an accelerator there is no branch on data: a CUDA graph must be able to capture this.
        logprobs = scores.log_softmax(dim=-1) if self._scoring or not on_cpu else None
        if self._penalised or not on_cpu:
            scores = scores - self._penalties[:rows]
        if on_cpu:
            sampled = settings[0].nonzero().squeeze(-1)
            if sampled.numel():  # sorting the vocabulary costs milliseconds a row, so greedy rows skip it
                of_sampled = scores[sampled]
                scores[sampled] = _only(draw(of_sampled, *settings[:, sampled]), of_sampled)
        else:
            scores = torch.where(settings[0].unsqueeze(-1) > 0, _only(draw(scores, *settings), scores), scores)
        if logprobs is not None:
            chosen = scores.argmax(dim=-1, keepdim=True)
            self._chosen[:rows] = torch.cat([chosen, logprobs.gather(-1, chosen)], dim=-1)
            values, ids = logprobs.topk(self._top.size(1), dim=-1)
            self._top[:rows] = torch.stack([ids, values], dim=-1)
        return scores

    def collect(self) -> None:
        """After a step: hand the log probabilities to the requests that asked for them."""
        if not self._scoring:
            return
        chosen, top = self._chosen.tolist(), self._top.tolist()
        for row, draws in self._scoring:
            likeliest = [(int(token), value) for token, value in top[row][: draws.sampling.logprobs]]
            draws.scored.append(ScoredToken((int(chosen[row][0]), chosen[row][1]), likeliest))
        self._scoring = []


def _answer(state: RequestState) -> list[int]:
    """The tokens generated so far; those from before the manager set a request back are with its prompt."""
    before = state.initial_tokens[state._true_initial_tokens :] if state._true_initial_tokens else []
    return before + state.generated_tokens


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
