"""Sampling per request in one continuous batch: greedy, sampled, penalised and seeded answers side by side.

transformers' manager has one `do_sample` for all requests. Here it always takes the likeliest token, and for the
requests that sample, this processor draws the token itself and leaves no other choice. So greedy rows reach the
argmax untouched, exactly as in `generate(do_sample=False)`.
"""

import logging
import math
from collections import Counter
from dataclasses import dataclass, field
from random import Random

import torch
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessorList
from transformers.generation.continuous_batching.requests import FutureRequestState, RequestState

from hfchat.errors import UserError
from hfchat.serving.engines.engine import Sampling

_LOGGER = logging.getLogger("hfchat.serving")
MAX_TOP_LOGPROBS = 20  # what OpenAI's API lets a client ask for
_TOP_K = 50  # what `generate` takes where a configuration that samples does not say
_FLOAT = torch.finfo(torch.float32)
# What `generate` would obey and this engine cannot, with the values that change nothing beside None; the second group
# matters only where the model is sampled from.
_UNSUPPORTED = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "penalty_alpha": 0,
    "guidance_scale": 1,
    "no_repeat_ngram_size": 0,
    "sequence_bias": {},
    "bad_words_ids": [],
    "force_words_ids": [],
    "constraints": [],
    "min_length": 0,
    "min_new_tokens": 0,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "suppress_tokens": [],
    "begin_suppress_tokens": [],
    "watermarking_config": None,
    "stop_strings": [],
    "dola_layers": None,
}
_UNSUPPORTED_SAMPLING = {"typical_p": 1, "epsilon_cutoff": 0, "eta_cutoff": 0, "top_h": None}


@dataclass(frozen=True)
class ModelSampling:
    """How a model's generation config has it sampled; what a request does not say is as it says.

    Attributes:
        temperature: 0 where it does not sample.
        top_p: In [0, 1].
        top_k: How many of the likeliest tokens may be drawn; 0 is all.
        min_p: Share of the likeliest token's probability that a token must have to be drawn.
        repetition_penalty: Divides the positive logits of the tokens that the prompt and the answer have, and
            multiplies their negative ones (https://arxiv.org/abs/1909.05858).
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    @classmethod
    def of(cls, config: GenerationConfig, name: str) -> "ModelSampling":
        """What `generate` would do by a generation config.

        Args:
            config: The model's.
            name: The model's, for the message.

        Raises:
            UserError: If it asks for something that this engine cannot do. Names the field.
        """
        refused = _UNSUPPORTED | (_UNSUPPORTED_SAMPLING if config.do_sample else {})
        for field_, harmless in refused.items():
            value = getattr(config, field_, None)
            if value is not None and value != harmless:
                raise UserError(
                    f"{name}: its generation_config.json has {field_}: {value}, which this server cannot do; "
                    "take that line out, or serve the model with another engine"
                )
        penalty = _number(config, "repetition_penalty", 1.0, name)
        if penalty <= 0:
            raise UserError(
                f"{name}: its generation_config.json has repetition_penalty: {penalty}; it must be above 0"
            )
        if not config.do_sample:
            return cls(repetition_penalty=penalty)
        return cls(
            temperature=_number(config, "temperature", 1.0, name),
            top_p=_number(config, "top_p", 1.0, name),
            top_k=int(_number(config, "top_k", _TOP_K, name)),
            min_p=_number(config, "min_p", 0.0, name),
            repetition_penalty=penalty,
        )


def _number(config: GenerationConfig, field_: str, default: float, name: str) -> float:
    value = getattr(config, field_, None)
    if value is None:
        return default
    if not isinstance(value, int | float) or not 0 <= value < 2**31:
        raise UserError(
            f"{name}: its generation_config.json has {field_}: {value}, which is not a number of its range"
        )
    return value


@dataclass
class ScoredToken:
    """Ids and log probabilities at one place of an answer: of the chosen token, and of the likeliest ones."""

    chosen: tuple[int, float]
    top: list[tuple[int, float]]


@dataclass
class Draws:
    """The sampling of one request: its settings and its own source of random numbers, one per token.

    Attributes:
        sampling: What the request asks for.
        model: What its model asks for beside that.
        owner: The name of the API key that it came with.
        scored: The tokens so far, if log probabilities were asked for. Written by the generation's thread.
        failure: Why the answer cannot go on. Written by the generation's thread, which takes any token then: the
            request ends alone, and those beside it go on.
    """

    sampling: Sampling
    model: ModelSampling = ModelSampling()
    owner: str | None = None
    random: Random = field(init=False)
    scored: list[ScoredToken] = field(default_factory=list)
    failure: str | None = None
    _present: torch.Tensor | None = None  # which tokens of the vocabulary the prompt and the answer have
    _looked_at: int = 0

    def __post_init__(self):
        # Python's generator takes -1 for 1, and then two answers to one request would be the same.
        self.random = Random(None if self.sampling.seed is None else self.sampling.seed % 2**64)

    def __deepcopy__(self, memo) -> "Draws":
        """The manager copies a request that it sets back when the cache is full; it stays the same request."""
        return self

    def row(self) -> tuple[float, float, float, float, float]:
        """Temperature, top_p, top_k, a uniform number and min_p."""
        temperature = min(self.sampling.temperature, _FLOAT.max)
        if temperature > 0:
            temperature = max(temperature, _FLOAT.tiny)  # a smaller one is not a normal number, or 0
        uniform = self.random.random() if temperature else 0.0
        return temperature, self.sampling.top_p, float(self.model.top_k), uniform, self.model.min_p

    def penalties(self, tokens: list[int]) -> dict[int, float]:
        """What to take off the logit of each token that the answer has, by the formula of OpenAI's API reference."""
        presence, frequency = self.sampling.presence_penalty, self.sampling.frequency_penalty
        if not presence and not frequency:
            return {}
        return {token: presence + count * frequency for token, count in Counter(tokens).items()}

    def present(self, tokens: list[int], vocabulary: int) -> torch.Tensor:
        """Which tokens of the vocabulary are among these, which begin with those of the call before."""
        if self._present is None:
            self._present = torch.zeros(vocabulary, dtype=torch.bool)
        self._present[tokens[self._looked_at :]] = True
        self._looked_at = len(tokens)
        return self._present

    def fail(self, error: Exception) -> None:
        """End this request alone; the first failure counts."""
        if self.failure is None:
            _LOGGER.error("an answer failed in its step", exc_info=error)
            self.failure = str(error) or type(error).__name__


_NO_CHOICE = (0.0, 1.0, 0.0, 0.0, 0.0)  # of a row that has failed: greedy


class PerRequestSampler(ContinuousBatchingLogitsProcessorList):
    """A processor list whose only member samples; its small arguments travel as one float per request and setting.

    Penalties are as wide as the vocabulary, and log probabilities come back, so both have tensors of their own. These
    keep their place in memory, because a CUDA graph repeats what it captured. They are written and read between two
    steps, which is why the manager must not prepare a step while another one runs (`use_async_batching=False`).

    What goes wrong for one request (an exception here would end the generation of all) is noted in its `Draws`.
    """

    def __init__(self, rows: int, vocabulary: int, device: torch.device, repetition_penalty: float = 1.0):
        """
        Args:
            rows: Most requests in one step.
            vocabulary: Number of logits.
            device: Where the model is.
            repetition_penalty: The model's, for all requests.
        """
        super().__init__(LogitsProcessorList())
        self.do_processing = True
        self.tensors_required = len(_NO_CHOICE)
        self.supported_keys = {"draws": Draws}
        self._repetition_penalty = repetition_penalty
        if repetition_penalty != 1:
            self._present = torch.zeros(rows, vocabulary, dtype=torch.bool, device=device)
        self._penalties = torch.zeros(rows, vocabulary, device=device)
        self._penalised = False  # whether any of them is not 0
        self._chosen = torch.zeros(rows, 2, device=device)  # ids, exact up to 2**24, and log probabilities
        self._top = torch.zeros(rows, min(MAX_TOP_LOGPROBS, vocabulary), 2, device=device)
        self._sound = torch.ones(rows, dtype=torch.bool, device=device)  # whether its logits are numbers
        self._draws: list[Draws] = []  # of the rows of this step

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        int32_tensor.zero_()  # temperature 0: a row without a request is greedy

    def prepare_tensor_args(
        self, requests_in_batch: list[FutureRequestState], arg_storage: torch.Tensor
    ) -> torch.Tensor:
        states = [future.state for future in requests_in_batch if future.has_new_token]
        self._draws = [state.logit_processor_kwargs["draws"] for state in states]
        rows, penalties = [], []
        for draws, state in zip(self._draws, states, strict=True):
            row, taken_off = _NO_CHOICE, {}
            if draws.failure is None:
                try:
                    row, taken_off = _as_floats(draws.row()), draws.penalties(_answer(state))
                except Exception as error:
                    draws.fail(error)
            rows.append(row)
            penalties.append(taken_off)
        if rows:
            columns = torch.tensor(rows, dtype=torch.float32).T.contiguous()
            arg_storage[:, : len(rows)] = columns.view(torch.int32).to(arg_storage.device)
        self._set_penalties(penalties)
        self._set_present(states)
        written = self._penalised or self._repetition_penalty != 1
        if written and self._penalties.device.type == "cuda":  # the step runs on another stream
            torch.cuda.current_stream().synchronize()
        return arg_storage

    def _set_penalties(self, penalties: list[dict[int, float]]) -> None:
        if self._penalised:
            self._penalties.zero_()
        self._penalised = any(penalties)
        if self._penalised:
            for row, values in enumerate(penalties):
                tokens = torch.tensor(list(values), dtype=torch.int64, device=self._penalties.device)
                self._penalties[row, tokens] = torch.tensor(list(values.values()), device=self._penalties.device)

    def _set_present(self, states: list[RequestState]) -> None:
        if self._repetition_penalty == 1:
            return
        for row, (draws, state) in enumerate(zip(self._draws, states, strict=True)):
            try:
                tokens = state.initial_tokens + state.generated_tokens
                self._present[row].copy_(draws.present(tokens, self._present.size(1)))
            except Exception as error:
                draws.fail(error)

    def __call__(self, input_ids, scores: torch.Tensor, logits_processor_args: torch.Tensor) -> torch.Tensor:
        """Args: scores `[requests, vocabulary]`, arguments `[5, requests]` as the bits of float32. Returns scores."""
        rows = scores.size(0)
        settings = logits_processor_args[:, :rows].contiguous().view(torch.float32)
        on_cpu = scores.device.type == "cpu"
        # On an accelerator there is no branch on data: a CUDA graph must be able to capture this.
        scoring = any(draws.sampling.logprobs is not None for draws in self._draws)
        self._sound[:rows] = ~scores.isnan().any(dim=-1)
        logprobs = scores.log_softmax(dim=-1) if scoring or not on_cpu else None
        if self._repetition_penalty != 1:
            penalised = torch.where(scores < 0, scores * self._repetition_penalty, scores / self._repetition_penalty)
            scores = torch.where(self._present[:rows], penalised, scores)
        if self._penalised or not on_cpu:
            scores = scores - self._penalties[:rows]
        if on_cpu:
            sampled = settings[0].nonzero().squeeze(-1)
            if sampled.numel():  # sorting the vocabulary costs milliseconds a row, so greedy rows skip it
                of_sampled = scores[sampled]
                scores[sampled] = _only(self._draw_each(of_sampled, settings, sampled), of_sampled)
        else:
            scores = torch.where(settings[0].unsqueeze(-1) > 0, _only(draw(scores, *settings), scores), scores)
        if logprobs is not None:
            chosen = scores.argmax(dim=-1, keepdim=True)
            self._chosen[:rows] = torch.cat([chosen, logprobs.gather(-1, chosen)], dim=-1)
            values, ids = logprobs.topk(self._top.size(1), dim=-1)
            self._top[:rows] = torch.stack([ids, values], dim=-1)
        return scores

    def _draw_each(self, scores: torch.Tensor, settings: torch.Tensor, sampled: torch.Tensor) -> torch.Tensor:
        """The tokens drawn for the sampled rows. What cannot be drawn together is drawn one by one, to find whose
        fault it is."""
        try:
            return draw(scores, *settings[:, sampled])
        except Exception:
            tokens = torch.zeros(len(sampled), dtype=torch.int64)
            for position, row in enumerate(sampled.tolist()):
                try:
                    tokens[position : position + 1] = draw(
                        scores[position : position + 1], *settings[:, row : row + 1]
                    )
                except Exception as error:
                    self._draws[row].fail(error)
            return tokens

    def collect(self) -> None:
        """After a step: hand the log probabilities to the requests that asked for them."""
        draws, self._draws = self._draws, []
        sound = self._sound.tolist()
        scoring = any(one.sampling.logprobs is not None for one in draws)
        chosen, top = (self._chosen.tolist(), self._top.tolist()) if scoring else ([], [])
        for row, one in enumerate(draws):
            if not sound[row]:
                one.fail(ArithmeticError("the model's logits are not numbers (NaN)"))
            if one.sampling.logprobs is not None:
                likeliest = [(int(token), value) for token, value in top[row][: max(one.sampling.logprobs, 0)]]
                one.scored.append(ScoredToken((int(chosen[row][0]), chosen[row][1]), likeliest))


def _answer(state: RequestState) -> list[int]:
    """The tokens generated so far; those from before the manager set a request back are with its prompt."""
    before = state.initial_tokens[state._true_initial_tokens :] if state._true_initial_tokens else []
    return before + state.generated_tokens


def _as_floats(row: tuple[float, ...]) -> tuple[float, ...]:
    """The row, where each of its values is a number that float32 has."""
    if any(math.isnan(value) for value in row):
        raise ValueError(f"its sampling is not in numbers: {row}")
    return tuple(min(max(value, _FLOAT.min), _FLOAT.max) for value in row)


def draw(scores, temperature, top_p, top_k, uniform, min_p=None) -> torch.Tensor:
    """Draw one token per row by inverting the distribution function at a number in [0, 1).

    There is a token for any settings and any logits: a row of it is never out of bounds, and never changes another.

    Args:
        scores: Logits, `[rows, vocabulary]`.
        temperature, top_p, top_k, uniform: `[rows]` each; top_k 0 means all.
        min_p: Likewise; None is 0.

    Returns:
        Token ids, `[rows]`.
    """
    min_p = torch.zeros_like(top_p) if min_p is None else min_p
    columns = (temperature, top_p, top_k, uniform, min_p)
    temperature, top_p, top_k, uniform, min_p = (column.unsqueeze(-1) for column in columns)
    scores = scores.nan_to_num(nan=_FLOAT.min, posinf=_FLOAT.max, neginf=_FLOAT.min)
    scores, order = scores.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(scores.size(-1), device=scores.device)
    # Less the highest before the division: of a tiny temperature, inf - inf would be no number.
    scaled = (scores - scores[:, :1]) / torch.where(temperature > 0, temperature, 1.0)
    probabilities = scaled.softmax(dim=-1)
    last = (top_k.nan_to_num().clamp(1, scores.size(-1)) - 1).long()
    beyond = scores < scores.gather(-1, last)  # tokens as likely as the k-th stay, as in `generate`
    probabilities = torch.where((top_k > 0) & beyond, 0.0, probabilities)
    probabilities = probabilities / probabilities.sum(dim=-1, keepdim=True)
    # The nucleus: the fewest tokens that reach top_p, and always one (https://arxiv.org/abs/1904.09751).
    before = probabilities.cumsum(dim=-1) - probabilities
    nucleus = (before < top_p) | (top_p >= 1)  # rounding may take the sum of a long tail above 1
    probabilities = torch.where(nucleus | (rank == 0), probabilities, 0.0)
    unlikely = probabilities < min_p * probabilities[:, :1]  # https://arxiv.org/abs/2407.01082
    probabilities = torch.where(unlikely & (rank > 0), 0.0, probabilities)
    cumulative = probabilities.cumsum(dim=-1)
    position = (cumulative <= uniform * cumulative[:, -1:]).sum(dim=-1, keepdim=True)
    # Rounding may leave the position behind the last token with any probability.
    position = torch.minimum(position, (probabilities > 0).sum(dim=-1, keepdim=True) - 1).clamp(min=0)
    return order.gather(-1, position).squeeze(-1)


def _only(tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    return torch.full_like(scores, float("-inf")).scatter(-1, tokens.unsqueeze(-1), 0.0)
