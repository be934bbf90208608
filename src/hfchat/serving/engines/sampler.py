"""Sampling per request in one continuous batch: greedy, sampled, penalised and seeded answers side by side.

transformers' manager has one `do_sample` for all requests. Here it always takes the likeliest token, and for the
requests that sample, `BatchSampler` draws the token itself and leaves no other choice. So greedy rows reach the
argmax untouched, exactly as in `generate(do_sample=False)`. transformers' own processors for each request (seen in
5.24) know no greedy rows beside sampled ones, no seeds, no penalties, no grammars and no log probabilities.

What changes a row's logits comes in this order: the repetition penalty, the other penalties and `logit_bias`, and the
mask of its grammar; then temperature, top_k, top_p and min_p choose among what is left. Log probabilities are those
of the model's own distribution, before all of these.
"""

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

import torch

from hfchat.serving.engines.engine import Sampling
from hfchat.structured.masks import Matcher, MatcherError, allowed_next

_LOGGER = logging.getLogger("hfchat.serving")
MAX_TOP_LOGPROBS = 20  # what OpenAI's API lets a client ask for
_FLOAT = torch.finfo(torch.float32)
_FAR = 12.0  # tokens whose probability is below e**-12 of the likeliest one's are looked at only if they are needed


@dataclass
class ScoredToken:
    """Ids and log probabilities at one place of an answer: of the chosen token, and of the likeliest ones."""

    chosen: tuple[int, float]
    top: list[tuple[int, float]]


@dataclass
class Draws:
    """The sampling of one request: its settings and its own source of random numbers, one for each token.

    Attributes:
        sampling: What the request asks for, with the model's own values where it says nothing (`Prompting.complete`).
        owner: The name of the API key that the request came with.
        prompt_tokens: Length of its prompt.
        matcher: Follows the answer by its grammar; None where it may be any text.
        scored: The tokens so far, if log probabilities were asked for. Written by the generation's thread.
        failure: Why the answer cannot go on. Written by the generation's thread, which takes any token then: the
            request ends alone, and those beside it go on.
    """

    sampling: Sampling
    owner: str | None = None
    prompt_tokens: int = 0
    matcher: Matcher | None = None
    random: Random = field(init=False)
    scored: list[ScoredToken] = field(default_factory=list)
    failure: str | None = None
    _present: torch.Tensor | None = None  # which tokens of the vocabulary the prompt and the answer have
    _looked_at: int = 0
    _matched: int = 0  # how many tokens of the answer the matcher knows

    def __post_init__(self) -> None:
        # Python's generator takes -1 for 1, and then two answers to one request would be the same.
        self.random = Random(None if self.sampling.seed is None else self.sampling.seed % 2**64)

    def __deepcopy__(self, memo: object) -> "Draws":
        """The manager copies a request that it sets back when the cache is full; it stays the same request."""
        return self

    def row(self) -> tuple[float, ...]:
        """Temperature, top_p, top_k, a uniform number, min_p and the repetition penalty."""
        temperature = min(self.sampling.temperature or 0.0, _FLOAT.max)
        if temperature > 0:
            temperature = max(temperature, _FLOAT.tiny)  # a smaller one is not a normal number, or 0
        top_p = 1.0 if self.sampling.top_p is None else self.sampling.top_p
        repetition = 1.0 if self.sampling.repetition_penalty is None else self.sampling.repetition_penalty
        uniform = self.random.random() if temperature else 0.0
        return temperature, top_p, float(self.sampling.top_k or 0), uniform, self.sampling.min_p or 0.0, repetition

    def penalties(self, tokens: list[int]) -> dict[int, float]:
        """What to take off the logit of each token, by the formula of OpenAI's API reference and by `logit_bias`."""
        presence, frequency = self.sampling.presence_penalty, self.sampling.frequency_penalty
        taken_off = {token: -bias for token, bias in self.sampling.logit_bias.items()}
        if presence or frequency:
            for token, count in Counter(tokens).items():
                taken_off[token] = taken_off.get(token, 0.0) + presence + count * frequency
        return taken_off

    def present(self, tokens: list[int], vocabulary: int) -> torch.Tensor:
        """Which tokens of the vocabulary are among these, which begin with those of the call before."""
        if self._present is None:
            self._present = torch.zeros(vocabulary, dtype=torch.bool)
        self._present[tokens[self._looked_at :]] = True
        self._looked_at = len(tokens)
        return self._present

    def follow(self, tokens: list[int]) -> None:
        """Tell the matcher of the tokens of the answer, which begin with those of the call before.

        Raises:
            MatcherError: If one of them may not come there.
        """
        if self.matcher is not None:
            for token in tokens[self._matched :]:
                self.matcher.accept(token)
            self._matched = len(tokens)

    def fail(self, error: Exception) -> None:
        """End this request alone; the first failure counts."""
        if self.failure is None:
            _LOGGER.error("an answer failed in its step", exc_info=error)
            self.failure = str(error) or type(error).__name__


class Row(NamedTuple):
    """A request in one step.

    Attributes:
        draws: Its sampling.
        initial: The tokens that were read for it: those of its prompt, and after them those of its answer that were
            there when the manager set it back.
        generated: The tokens that were generated since then.
    """

    draws: Draws
    initial: list[int]
    generated: list[int]


_NO_CHOICE = (0.0, 1.0, 0.0, 0.0, 0.0, 1.0)  # the settings of a row that has failed: greedy
SETTINGS = len(_NO_CHOICE)  # numbers of a row


class BatchSampler:
    """Samples the tokens of each step; small settings travel as one float for each request and setting.

    Penalties and masks are as wide as the vocabulary, and log probabilities come back, so they have tensors of their
    own. These keep their place in memory, because a CUDA graph repeats what it captured. They are written and read
    between two steps, which is why the manager must not prepare a step while another one runs
    (`use_async_batching=False`).

    What goes wrong for one request (an exception here would end the generation of all) is noted in its `Draws`.
    """

    def __init__(self, rows: int, vocabulary: int, device: torch.device):
        """
        Args:
            rows: Most requests in one step.
            vocabulary: Number of logits.
            device: Where the model is.
        """
        self._present = torch.zeros(rows, vocabulary, dtype=torch.bool, device=device)
        self._repeating = False  # whether any row has a repetition penalty
        self._penalties = torch.zeros(rows, vocabulary, device=device)
        self._penalised = False  # whether any of them is not 0
        self._forbidden = torch.zeros(rows, vocabulary, dtype=torch.bool, device=device)
        self._masked: list[int] = []  # rows that have a grammar
        self._chosen = torch.zeros(rows, 2, device=device)  # ids, exact up to 2**24, and log probabilities
        self._top = torch.zeros(rows, min(MAX_TOP_LOGPROBS, vocabulary), 2, device=device)
        self._sound = torch.ones(rows, dtype=torch.bool, device=device)  # whether its logits are numbers
        self._draws: list[Draws] = []  # those of the rows of this step

    def begin(self, rows: Sequence[Row], settings: torch.Tensor) -> None:
        """Before a step: write what its rows are sampled with.

        Args:
            rows: The requests that get a token in this step.
            settings: `[6, at least as many]`, int32, for the bits of float32.
        """
        # A request that cannot say what it wants takes the likeliest token, and fails alone.
        self._draws = [row.draws for row in rows]
        numbers: list[tuple[float, ...]] = []
        penalties: list[dict[int, float]] = []
        for draws, initial, generated in rows:
            row: tuple[float, ...] = _NO_CHOICE
            taken_off: dict[int, float] = {}
            if draws.failure is None:
                try:
                    answer = initial[draws.prompt_tokens :] + generated
                    draws.follow(answer)
                    row, taken_off = _as_floats(draws.row()), draws.penalties(answer)
                except Exception as error:
                    draws.fail(error)
            numbers.append(row)
            penalties.append(taken_off)

        # All of them go to the device in one piece; the penalties are there already where nothing has changed.
        if all(row == _NO_CHOICE for row in numbers):
            settings[:, : len(rows)] = 0
        else:
            columns = torch.tensor(numbers, dtype=torch.float32).T.contiguous()
            settings[:, : len(rows)] = columns.view(torch.int32).to(settings.device)
        self._set_penalties(penalties)
        self._repeating = any(repetition != 1 for *_, repetition in numbers)
        self._set_present(rows)
        self._set_masks()
        written = self._penalised or self._repeating or self._masked
        if written and self._penalties.device.type == "cuda":  # the step runs on another stream
            torch.cuda.current_stream().synchronize()

    def _set_penalties(self, penalties: list[dict[int, float]]) -> None:
        if self._penalised:
            self._penalties.zero_()
        self._penalised = any(penalties)
        if self._penalised:
            for row, values in enumerate(penalties):
                tokens = torch.tensor(list(values), dtype=torch.int64, device=self._penalties.device)
                self._penalties[row, tokens] = torch.tensor(list(values.values()), device=self._penalties.device)

    def _set_present(self, rows: Sequence[Row]) -> None:
        if not self._repeating:
            return
        for place, (draws, initial, generated) in enumerate(rows):
            try:
                self._present[place].copy_(draws.present(initial + generated, self._present.size(1)))
            except Exception as error:
                draws.fail(error)

    def _set_masks(self) -> None:
        """Which tokens the grammars forbid; that of one that fails forbids nothing, because its request ends."""
        bound = {
            place: draws.matcher
            for place, draws in enumerate(self._draws)
            if draws.matcher is not None and draws.failure is None
        }
        masks = allowed_next(list(bound.values()))
        before, self._masked = self._masked, []
        for place, mask in zip(bound, masks, strict=True):
            if isinstance(mask, MatcherError):
                self._draws[place].fail(mask)
            else:
                torch.logical_not(mask.to(self._forbidden.device), out=self._forbidden[place])
                self._masked.append(place)
        for place in set(before) - set(self._masked):  # the others were written over
            self._forbidden[place] = False

    def sample(self, scores: torch.Tensor, settings: torch.Tensor) -> torch.Tensor:
        """In a step: leave each row that is sampled no other token than the one drawn for it.

        Args:
            scores: Logits, `[rows, vocabulary]`.
            settings: As `begin` has written them.

        Returns:
            Scores; the manager takes the highest one of each row.
        """
        rows = scores.size(0)
        settings = settings[:, :rows].contiguous().view(torch.float32)
        on_cpu = scores.device.type == "cpu"
        # On an accelerator there is no branch on data: a CUDA graph must be able to capture this.
        scoring = any(draws.sampling.logprobs is not None for draws in self._draws)
        self._sound[:rows] = ~scores.amax(dim=-1).isnan()  # the highest is no number where any of them is none
        logprobs = scores.log_softmax(dim=-1) if scoring or not on_cpu else None

        # Penalties and masks change the logits, after the log probabilities of the model's own distribution are known.
        choosing, repetition = settings[:-1], settings[-1].unsqueeze(-1)
        if self._repeating or not on_cpu:
            repetition = torch.where(repetition > 0, repetition, 1.0)  # a row without a request has 0
            penalised = torch.where(scores < 0, scores * repetition, scores / repetition)
            scores = torch.where(self._present[:rows] & (repetition != 1), penalised, scores)
        if self._penalised or not on_cpu:
            scores = scores - self._penalties[:rows]
        if not on_cpu:
            scores = scores.masked_fill(self._forbidden[:rows], float("-inf"))
        for place in self._masked if on_cpu else ():
            scores[place].masked_fill_(self._forbidden[place], float("-inf"))

        # Sorting the vocabulary costs milliseconds a row, so on a CPU each sampled row sorts what it needs.
        if on_cpu:
            self._draw_each(scores, choosing)
        else:
            scores = torch.where(choosing[0].unsqueeze(-1) > 0, _only(draw(scores, *choosing), scores), scores)

        # `collect` reads these when the step is over.
        if logprobs is not None:
            chosen = scores.argmax(dim=-1, keepdim=True)
            self._chosen[:rows] = torch.cat([chosen, logprobs.gather(-1, chosen)], dim=-1)
            values, ids = logprobs.topk(self._top.size(1), dim=-1)
            self._top[:rows] = torch.stack([ids, values], dim=-1)
        return scores

    def _draw_each(self, scores: torch.Tensor, settings: torch.Tensor) -> None:
        """Leave each row that is sampled its token, one by one, so that only the request that is to blame fails."""
        for place, row in enumerate(settings.T):
            if row[0] > 0:
                try:
                    token = draw_among_likely(scores[place], row)
                except Exception as error:
                    self._draws[place].fail(error)
                else:
                    scores[place] = float("-inf")
                    scores[place, token] = 0.0

    def collect(self) -> None:
        """After a step: hand the log probabilities to the requests that asked for them."""
        step, self._draws = self._draws, []
        sound = self._sound.tolist()
        scoring = any(draws.sampling.logprobs is not None for draws in step)
        chosen, top = (self._chosen.tolist(), self._top.tolist()) if scoring else ([], [])
        for row, draws in enumerate(step):
            if not sound[row]:
                draws.fail(ArithmeticError("the model's logits are not numbers (NaN)"))
            if draws.sampling.logprobs is not None:
                likeliest = [(int(token), value) for token, value in top[row][: max(draws.sampling.logprobs, 0)]]
                draws.scored.append(ScoredToken((int(chosen[row][0]), chosen[row][1]), likeliest))


def _as_floats(row: tuple[float, ...]) -> tuple[float, ...]:
    """The row, where each of its values is a number that float32 has."""
    if any(math.isnan(value) for value in row):
        raise ValueError(f"its sampling is not in numbers: {row}")
    return tuple(min(max(value, _FLOAT.min), _FLOAT.max) for value in row)


def draw(
    scores: torch.Tensor,
    temperature: torch.Tensor,
    top_p: torch.Tensor,
    top_k: torch.Tensor,
    uniform: torch.Tensor,
    min_p: torch.Tensor | None = None,
) -> torch.Tensor:
    """Draw one token per row by inverting the distribution function at a number in [0, 1).

    There is a token for any settings and any logits: no row is ever out of bounds, and none changes another.

    Args:
        scores: Logits, `[rows, vocabulary]`.
        temperature, top_p, top_k, uniform: `[rows]` each; top_k 0 means all.
        min_p: `[rows]`; None is 0 for each.

    Returns:
        Token ids, `[rows]`.
    """
    min_p = torch.zeros_like(top_p) if min_p is None else min_p
    columns = (temperature, top_p, top_k, uniform, min_p)
    temperature, top_p, top_k, uniform, min_p = (column.unsqueeze(-1) for column in columns)
    scores = scores.nan_to_num(nan=_FLOAT.min, posinf=_FLOAT.max, neginf=_FLOAT.min)
    scores, order = scores.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(scores.size(-1), device=scores.device)
    # The highest is taken off before the division: with a tiny temperature, inf - inf would not be a number.
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


def draw_among_likely(scores: torch.Tensor, settings: torch.Tensor) -> torch.Tensor:
    """The token that `draw` draws for one row, found among the likely ones wherever these decide it.

    Args:
        scores: Logits, `[vocabulary]`.
        settings: As `draw` takes them, `[5]`; min_p is the last.

    Returns:
        Its id, `[]`.
    """
    temperature, top_p, top_k, uniform, min_p = settings.tolist()
    highest = scores.max()
    kept = min(int(top_k), len(scores))
    lowest = scores.topk(kept).values[-1] if top_k > 0 else highest - _FAR * temperature
    likely = ((scores >= lowest) & (scores > float("-inf"))).nonzero().squeeze(-1)  # not what a grammar forbids

    # The others are a part of the whole by which top_p and the uniform number are meant, unless top_k leaves them out.
    share = 1.0
    if top_k <= 0:
        weights = ((scores - highest) / temperature).exp()
        share = (weights[likely].sum() / weights.sum()).item()
    none_beside = top_k > 0 or min_p > math.exp(-_FAR)  # none of the others may be drawn
    if top_p < 1:
        top_p /= share
        decided = none_beside or top_p < 1
    elif none_beside:
        decided = True
    else:
        uniform /= share
        decided = uniform < 1
    if not decided or not highest.isfinite():
        return draw(scores[None], *settings.unsqueeze(-1))[0]
    columns = torch.tensor([temperature, top_p, top_k, uniform, min_p]).unsqueeze(-1)
    return likely[draw(scores[likely][None], *columns)[0]]


def _only(tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    return torch.full_like(scores, float("-inf")).scatter(-1, tokens.unsqueeze(-1), 0.0)
