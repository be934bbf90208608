"""Scores of a corpus with percentile-bootstrap intervals, and differences of two models by the paired bootstrap.

Efron & Tibshirani, "An Introduction to the Bootstrap" (1993), ch. 13; for corpus metrics and pairs of systems Koehn,
"Statistical Significance Tests for Machine Translation Evaluation" (https://aclanthology.org/W04-3250).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

CONFIDENCE = 0.95


@dataclass
class Statistics:
    """What a metric needs to know of each example.

    Every metric here is a function of sums over examples (BLEU of its n-gram counts, perplexity of losses and token
    counts, a mean of scores), so a resample costs one product of matrices and no text is scored twice.

    Attributes:
        values: `[examples, k]`, for each example the `k` sufficient statistics.
        score: From the `k` sums to the corpus score.
        signature: Everything that shapes the score.
        example_score: From the `k` statistics of one example to its score, where that is not `score` of them.
    """

    values: np.ndarray
    score: Callable[[np.ndarray], float]
    signature: str
    example_score: Callable[[np.ndarray], float] | None = None

    def of_examples(self) -> list[float]:
        """The score of each example by itself, to tell the best and the worst."""
        return [float((self.example_score or self.score)(values)) for values in self.values]


def mean(scores: list[float], signature: str) -> Statistics:
    """Statistics of a metric that is the mean of one score per example."""
    return Statistics(np.stack([scores, np.ones(len(scores))], axis=1), lambda sums: sums[0] / sums[1], signature)


def estimate(statistics: Statistics, resamples: int, seed: int) -> dict[str, Any]:
    """Score a corpus.

    Returns:
        `{"score", "interval": [low, high], "n", "signature"}`, the interval at 95% over examples.
    """
    return {
        "score": float(statistics.score(statistics.values.sum(axis=0))),
        "interval": _interval(_resample(statistics, resamples, seed)),
        "n": len(statistics.values),
        "signature": statistics.signature,
    }


def difference(statistics: Statistics, baseline: Statistics, resamples: int, seed: int) -> dict[str, Any]:
    """Score of a model minus that of the baseline on the same examples, in the same order.

    Returns:
        `{"difference", "interval": [low, high], "p_value", "n"}`, see `p_value`.
    """
    if len(statistics.values) != len(baseline.values):
        raise ValueError(f"paired examples needed, got {len(statistics.values)} and {len(baseline.values)}")
    # The same seed draws the same examples for both: that is what makes it paired.
    differences = _resample(statistics, resamples, seed) - _resample(baseline, resamples, seed)
    observed = statistics.score(statistics.values.sum(axis=0)) - baseline.score(baseline.values.sum(axis=0))
    return {
        "difference": float(observed),
        "interval": _interval(differences),
        "p_value": p_value(differences, observed),
        "n": len(statistics.values),
    }


def p_value(differences: np.ndarray, observed: float) -> float:
    """How often chance alone would make two equal models differ by at least as much, in either direction.

    What the resamples differ by, shifted to a mean of 0, is how differences vary if the models are equal (Efron &
    Tibshirani 1993, section 16.4). With one added to both counts, so that it is never 0 (as `_compute_p_value` in
    sacreBLEU's significance.py). sacreBLEU's paired bootstrap takes absolute values before it shifts: far from 0 its
    p-value is half of this one, as of a test in one direction. Its approximate randomization agrees with this.

    Args:
        differences: `[resamples]`, of the paired resamples.
        observed: Of the examples as they are.
    """
    exceeding = np.sum(np.abs(differences - differences.mean()) >= abs(observed))
    return float((exceeding + 1) / (len(differences) + 1))


def _resample(statistics: Statistics, resamples: int, seed: int) -> np.ndarray:
    n = len(statistics.values)
    # How often each example is drawn when n are drawn with replacement.
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    return np.array([statistics.score(sums) for sums in counts @ statistics.values])


def _interval(scores: np.ndarray) -> list[float]:
    tail = (1 - CONFIDENCE) / 2
    return np.quantile(scores, [tail, 1 - tail]).tolist()
