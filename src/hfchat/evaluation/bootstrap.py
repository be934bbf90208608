"""Scores of a corpus with intervals at 95%, and differences of two models on the same examples with p-values.

- Shares, and wins with ties as halves: the intervals of `hfchat.intervals`, and McNemar's exact test.
- Means, and corpus scores that are smooth functions of sums (BLEU, perplexity): Student's t on jackknife pseudo-values
  (Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, ch. 11), widened on the long side of skewed ones (P.
  Hall, "On the removal of skewness by transformation", J. R. Stat. Soc. B 54, 1992).
- What has kinks (the largest of several differences): the percentile bootstrap, with the tails of t.
- All but shares are tested by exchanging the two models in each example: for a mean, Fisher's sign-flip test; for
  corpus scores, approximate randomization (Riezler & Maxwell 2005, https://aclanthology.org/W05-0908).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from scipy.special import stdtrit

from hfchat.intervals import CONFIDENCE, paired_interval, sign_test, wilson_interval
from hfchat.results import Difference, Estimate

Interval = tuple[float, float]

_EXACT = 13  # examples up to which all exchanges are tried: half of 2^13, as the other half mirrors it
_WIDEST = 2  # times Student's; more than that hardly ever holds a mean that this does not
_BLOCK = 1 << 22  # exchanges times examples that are held at a time
_UNBOUNDED = (-math.inf, math.inf)
_UNKNOWN = (math.nan, math.nan)
_ALIKE = 1e-9  # relative; what differs by less is one value, computed in two ways


@dataclass
class Statistics:
    """What a metric needs to know of each example.

    Every metric here is a function of sums over examples (BLEU of its n-gram counts, perplexity of losses and token
    counts, a mean of scores), so leaving one out or exchanging two costs no text that is scored twice.

    Attributes:
        values: `[examples, k]`, for each example the `k` sufficient statistics.
        score: From the `k` sums to the corpus score.
        signature: Everything that shapes the score.
        example_score: From the `k` statistics of one example to its score, where that is not `score` of them.
        is_mean: Whether `values` are scores and weights of 0 or 1, and the score is their mean; 0 leaves one out.
        bounds: The least and the greatest score that there can be.
        has_kinks: Whether the score is no smooth function of the sums.
        interval: At 95%, where it follows from another one.
    """

    values: np.ndarray
    score: Callable[[np.ndarray], float]
    signature: str
    example_score: Callable[[np.ndarray], float] | None = None
    is_mean: bool = False
    bounds: Interval = _UNBOUNDED
    has_kinks: bool = False
    interval: Interval | None = None

    def of_examples(self) -> list[float]:
        """The score of each example by itself, to tell the best and the worst."""
        return [float((self.example_score or self.score)(values)) for values in self.values]

    def of_all(self) -> float:
        """The score of the corpus."""
        return float(self.score(self.values.sum(axis=0)))


def mean(scores: Sequence[float], signature: str, bounds: Interval = _UNBOUNDED) -> Statistics:
    """Statistics of a metric that is the mean of one score per example; of `True` and `False`, or 0 and 1, a share."""
    values = np.stack([scores, np.ones(len(scores))], axis=1)
    return Statistics(values, lambda sums: sums[0] / sums[1], signature, is_mean=True, bounds=bounds)


def estimate(statistics: Statistics, resamples: int, seed: int) -> Estimate:
    """Score a corpus, with an interval over the examples that have a score.

    Args:
        statistics: Those of at least one example.
        resamples: Number of resamples of the bootstrap, for scores with kinks.
        seed: Seed of the resamples.
    """
    score, scores = statistics.of_all(), _pseudo_values(statistics)
    if statistics.interval is not None:
        interval = statistics.interval
    elif _are_outcomes(scores, statistics):
        # Wins less losses is a difference of two shares; where nothing is a tie, this is Wilson's interval.
        wins, losses = (int((scores == result).sum()) for result in (1, 0))
        low, high = paired_interval(wins, losses, len(scores))
        interval = (1 + low) / 2, (1 + high) / 2
    else:
        interval = (
            _percentiles(_resample(statistics, resamples, seed), len(scores))
            if statistics.has_kinks
            else _t_interval(score, scores)
        )
        below, above = (
            abs(score - end) if math.isfinite(end) else max(abs(score), _ALIKE) for end in statistics.bounds
        )
        low, high = np.clip(_never_a_point(interval, score, below, above, len(scores)), *statistics.bounds).tolist()
        interval = low, high
    return Estimate(score, interval, len(statistics.values), statistics.signature, len(scores))


def difference(statistics: Statistics, baseline: Statistics, resamples: int, seed: int) -> Difference:
    """Subtract the score of the baseline from that of a model on the same examples, in the same order.

    Of means, only the examples count that have a score of both.

    Args:
        statistics: The model's.
        baseline: The baseline's.
        resamples: Exchanges of the test, and resamples of the bootstrap for scores with kinks.
        seed: Seed of both.
    """
    if len(statistics.values) != len(baseline.values):
        raise ValueError(f"paired examples needed, got {len(statistics.values)} and {len(baseline.values)}")
    if statistics.is_mean and baseline.is_mean:
        return _mean_difference(statistics, baseline, resamples, seed)
    return _corpus_difference(statistics, baseline, resamples, seed)


def _corpus_difference(statistics: Statistics, baseline: Statistics, resamples: int, seed: int) -> Difference:
    observed, n = statistics.of_all() - baseline.of_all(), len(statistics.values)
    if not math.isfinite(observed):
        return Difference(observed, _UNKNOWN, n, 1.0, n)
    spread, before = _pseudo_values(statistics), _pseudo_values(baseline)
    greatest = float(max(np.abs(spread).max(), np.abs(before).max()))
    if abs(observed) <= _ALIKE * greatest:
        observed = 0.0  # and not what rounding left of it
    if statistics.has_kinks:
        # The same seed draws the same examples for both: that is what makes it paired.
        ours, theirs = (_resample(one, resamples, seed) for one in (statistics, baseline))
        interval = _percentiles(ours - theirs, n)
    else:
        interval = _t_interval(observed, spread - before, greatest)
    unseen = 2 * abs(observed) or float(np.std(spread)) or abs(statistics.of_all())
    interval = _never_a_point(interval, observed, unseen, unseen, n)
    return Difference(observed, interval, n, _exchange_test(statistics, baseline, observed, resamples, seed), n)


def _mean_difference(statistics: Statistics, baseline: Statistics, resamples: int, seed: int) -> Difference:
    both = (statistics.values[:, 1] > 0) & (baseline.values[:, 1] > 0)
    scores, before = statistics.values[both, 0], baseline.values[both, 0]
    n = len(scores)
    if not n or not np.isfinite([*scores, *before]).all():  # a model whose likelihoods are no numbers shows nothing
        return Difference(math.nan, _UNKNOWN, len(both), 1.0, n)
    changes = scores - before
    observed, greatest = float(changes.mean()), float(np.abs(changes).max())
    gained, lost = int((changes > 0).sum()), int((changes < 0).sum())
    are_outcomes = all(_are_outcomes(one, statistics) for one in (scores, before))
    if np.abs(changes[changes != 0]).min(initial=greatest) >= (1 - _ALIKE) * greatest:
        # All changes are as great, as of right answers and wrong ones: only their directions say something.
        size = greatest or (1.0 if are_outcomes else float(np.std(scores)) or abs(float(scores[0])))
        low, high = paired_interval(gained, lost, n)
        interval = size * low, size * high
    else:
        are_outcomes, interval = False, _t_interval(observed, changes)
    p_value = sign_test(gained, lost) if are_outcomes else _sign_flip_test(changes, resamples, seed)
    return Difference(observed, interval, len(both), p_value, n)


def _are_outcomes(scores: np.ndarray, statistics: Statistics) -> bool:
    """Whether all scores are 0, 1, or a half for a tie."""
    of_shares = statistics.is_mean and statistics.bounds in (_UNBOUNDED, (0, 1))
    return of_shares and bool(np.isin(scores, (0.0, 0.5, 1.0)).all())


def _pseudo_values(statistics: Statistics) -> np.ndarray:
    """What each example adds to the score, `[n]`: of a mean the scores themselves."""
    values = statistics.values
    if statistics.is_mean:
        return values[values[:, 1] > 0, 0]
    n, total = len(values), values.sum(axis=0)
    if n == 1 or statistics.has_kinks:
        return np.full(n, statistics.score(total), dtype=float)
    without = np.array([statistics.score(total - one) for one in values])
    return n * statistics.score(total) - (n - 1) * without


def _t_interval(score: float, values: np.ndarray, greatest: float = 0.0) -> Interval:
    """Student's interval of a mean, and on either side Hall's for skewed values where that is wider.

    By simulation, of samples of 3 to 40 from a normal, uniform, lognormal distribution, or the difference of two
    lognormal ones, it excludes the truth in 2 to 5% but for lognormal ones: 12% of 5, 8% of 16, 6% of 40.

    Args:
        score: Its middle.
        values: `[n]`, of the examples.
        greatest: The largest value that they were computed from: beside it, what rounding leaves is no difference.
    """
    n = len(values)
    if not np.isfinite(values).all():
        return _UNKNOWN
    deviations = values - values.mean()
    variance = float((deviations**2).mean())
    if n < 2 or variance <= (_ALIKE * max(greatest, float(np.abs(values).max()))) ** 2:
        return score, score
    error = math.sqrt(variance / (n - 1))
    skewness = float((deviations**3).mean()) / variance**1.5
    far = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2))
    # Of one great outlier among few values, Hall's transformation goes to where it does not hold.
    low, high = (min(max(far, sign * _unskewed(sign * far, skewness, n)), _WIDEST * far) for sign in (1, -1))
    return score - low * error, score + high * error


def _unskewed(quantile: float, skewness: float, n: int) -> float:
    """The quantile of a mean's t statistic from the one of its transformed statistic (Hall 1992, equation 2.3)."""
    step = skewness / math.sqrt(n)
    if abs(step) < 1e-6:
        return quantile
    return 3 / step * (float(np.cbrt(1 + step * (quantile - step / 6))) - 1)


def _never_a_point(interval: Interval, score: float, below: float, above: float, n: int) -> Interval:
    """An interval; where the examples are all alike, as far as those that were not seen may move it.

    Of n equal examples, up to so many others are left out by none (`wilson_interval(0, n)`).

    Args:
        interval: Low and high.
        score: The score of the corpus.
        below: How much less the score of an example may be that was not seen.
        above: And how much more.
        n: Examples.
    """
    if interval[1] > interval[0] or math.isnan(score):
        return interval
    unseen = wilson_interval(0, n)[1]
    return score - unseen * below, score + unseen * above


def _sign_flip_test(changes: np.ndarray, resamples: int, seed: int) -> float:
    """R. A. Fisher, "The Design of Experiments" (1935), section 21: equal models would change either way as well."""
    total = abs(changes.sum())
    extreme = [
        np.abs((2.0 * exchanged - 1) @ changes) >= total - _ALIKE * np.abs(changes).sum()
        for exchanged in _exchanges(len(changes), resamples, seed)
    ]
    return _share_of(np.concatenate(extreme), len(changes))


def _exchange_test(statistics: Statistics, baseline: Statistics, observed: float, resamples: int, seed: int) -> float:
    """As often as the examples' results may stand under either model's name, if both are equal."""
    ours, theirs = statistics.values, baseline.values
    total, changes = ours.sum(axis=0) + theirs.sum(axis=0), ours - theirs
    extreme = []
    for exchanged in _exchanges(len(ours), resamples, seed):
        for sums in theirs.sum(axis=0) + exchanged.astype(float) @ changes:
            moved = statistics.score(sums) - statistics.score(total - sums)
            extreme.append(abs(moved) >= abs(observed) - _ALIKE * (1 + abs(observed)))
    return _share_of(np.array(extreme), len(ours))


def _exchanges(n: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Which examples keep their model, `[some, n]` at a time: every way, or as many as asked at random."""
    if n <= _EXACT:
        yield (np.arange(2 ** (n - 1))[:, None] >> np.arange(n)) % 2 == 0
        return
    chance, rows = np.random.default_rng(seed), max(1, _BLOCK // n)
    for start in range(0, resamples, rows):
        yield chance.random((min(rows, resamples - start), n)) < 0.5


def _share_of(extreme: np.ndarray, n: int) -> float:
    """A p-value; of a random test what was observed is one of the exchanges, so that it is never 0."""
    return float(extreme.mean() if n <= _EXACT else (extreme.sum() + 1) / (len(extreme) + 1))


def _resample(statistics: Statistics, resamples: int, seed: int) -> np.ndarray:
    n = len(statistics.values)
    # How often each example is drawn when n are drawn with replacement.
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    return np.array([statistics.score(sums) for sums in counts @ statistics.values])


def _percentiles(scores: np.ndarray, n: int) -> Interval:
    """The percentile interval with tails that make up for few examples.

    T. Hesterberg, "What Teachers Should Know About the Bootstrap" (2015, doi:10.1080/00031305.2015.1089789), 5.3.
    """
    if n < 2:
        return float(scores[0]), float(scores[0])
    tail = NormalDist().cdf(float(stdtrit(n - 1, (1 - CONFIDENCE) / 2)) * math.sqrt(n / (n - 1)))
    low, high = np.quantile(scores, [tail, 1 - tail]).tolist()
    return low, high
