import numpy as np
import pytest

from hfchat.evaluation.bootstrap import difference, estimate, mean
from hfchat.evaluation.metrics import BLEU


def _noise(n, seed=0):
    return np.random.default_rng(seed).normal(0.5, 0.2, n).tolist()


def _width(result):
    low, high = result["interval"]
    return high - low


def test_estimate_is_the_mean_and_its_interval_is_that_of_the_normal():
    scores = _noise(400)
    result = estimate(mean(scores, "mean"), resamples=2000, seed=1)
    assert result["score"] == pytest.approx(np.mean(scores))
    assert result["interval"][0] < result["score"] < result["interval"][1]
    # For a mean of many examples the percentile bootstrap is the textbook's 2 x 1.96 standard errors.
    assert _width(result) == pytest.approx(2 * 1.96 * np.std(scores) / np.sqrt(400), rel=0.1)


def test_the_same_seed_gives_the_same_interval():
    statistics = mean(_noise(30), "mean")
    assert estimate(statistics, 500, seed=3) == estimate(statistics, 500, seed=3)
    assert estimate(statistics, 500, seed=3)["interval"] != estimate(statistics, 500, seed=4)["interval"]


def test_more_examples_give_a_narrower_interval():
    few, many = (estimate(mean(_noise(n), "mean"), 500, seed=0) for n in (25, 400))
    assert _width(many) < _width(few) / 2


def test_corpus_bleu_lies_in_its_interval():
    predictions = [f"the model {word} the corpus of text number {i}" for i in range(20) for word in ("reads", "is")]
    references = [f"the model reads the corpus of text number {i + i % 3}" for i in range(20) for _ in range(2)]
    result = BLEU().compute(predictions=predictions, references=references, resamples=200)
    low, high = result["interval"]
    assert 0 < low < result["score"] < high < 100


def test_differences_are_paired():
    before = _noise(50)
    after = [score + 0.05 for score in before]
    result = difference(mean(after, "mean"), mean(before, "mean"), 500, seed=0)
    # Either interval alone is wide, but every example improved by the same.
    assert _width(estimate(mean(before, "mean"), 500, seed=0)) > 0.05
    assert result["difference"] == pytest.approx(0.05)
    assert result["interval"] == pytest.approx([0.05, 0.05])


def test_unequal_examples_are_not_paired():
    with pytest.raises(ValueError, match="paired examples needed, got 3 and 4"):
        difference(mean(_noise(3), "mean"), mean(_noise(4), "mean"), 10, seed=0)
