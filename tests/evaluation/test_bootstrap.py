import math

import numpy as np
import pytest
import sacrebleu
from sacrebleu.significance import PairedTest

from hfchat.evaluation.bootstrap import Statistics, difference, estimate, mean
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


def test_examples_have_the_score_of_their_statistics_unless_the_metric_says_otherwise():
    values = np.array([[1.0, 2.0], [3.0, 4.0]])
    assert Statistics(values, lambda sums: sums[0] / sums[1], "ratio").of_examples() == [0.5, 0.75]
    assert Statistics(values, lambda sums: 0.0, "ratio", lambda one: one[1]).of_examples() == [2.0, 4.0]


def test_differences_are_paired():
    before = _noise(50)
    after = [score + 0.05 for score in before]
    result = difference(mean(after, "mean"), mean(before, "mean"), 500, seed=0)
    # Either interval alone is wide, but every example improved by the same.
    assert _width(estimate(mean(before, "mean"), 500, seed=0)) > 0.05
    assert result["difference"] == pytest.approx(0.05)
    assert result["interval"] == pytest.approx([0.05, 0.05])
    assert result["p_value"] == pytest.approx(1 / 501)  # never 0


def test_a_model_does_not_differ_from_itself():
    same = mean(_noise(50), "mean")
    assert difference(same, same, 500, seed=0)["p_value"] == 1.0


def test_p_value_is_that_of_the_normal_and_of_either_direction():
    before = _noise(400, seed=1)
    after = (before + np.random.default_rng(2).normal(0.01, 0.1, 400)).tolist()
    result = difference(mean(after, "mean"), mean(before, "mean"), 5000, seed=0)
    changes = np.subtract(after, before)
    z = changes.mean() / (changes.std() / np.sqrt(400))
    expected = math.erfc(abs(z) / math.sqrt(2))  # of a z-test in both directions
    assert 0.02 < expected < 0.5
    assert result["p_value"] == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / 5000) + 0.01)
    swapped = difference(mean(before, "mean"), mean(after, "mean"), 5000, seed=0)
    assert swapped["p_value"] == result["p_value"]
    assert swapped["difference"] == -result["difference"]


@pytest.fixture(scope="module")
def systems():
    """References, and two systems that drop some of their words, the second a few more."""
    chance = np.random.default_rng(6)
    words = ["a", "model", "reads", "the", "corpus", "and", "learns", "what", "comes", "next", "in", "each"]
    references = [" ".join(chance.choice(words, size=12)) for _ in range(120)]

    def drop(rate):
        return [" ".join(word for word in text.split() if chance.random() > rate) or "a" for text in references]

    return references, drop(0.15), drop(0.16)


def test_p_value_agrees_with_sacrebleus_tests(systems):
    references, first, second = systems
    ours = difference(BLEU().statistics(second, references), BLEU().statistics(first, references), 2000, seed=0)
    theirs = {}
    for test in ("ar", "bs"):
        _, scores = PairedTest(
            [("first", first), ("second", second)], {"BLEU": sacrebleu.BLEU()}, [references], test, n_samples=2000
        )()
        theirs[test] = scores["BLEU"][1].p_value
    # Approximate randomization is a test in both directions, as ours; their bootstrap is one in one direction.
    assert ours["p_value"] == pytest.approx(theirs["ar"], abs=4 * np.sqrt(0.25 / 2000))
    assert theirs["bs"] < 0.6 * ours["p_value"]


def test_unequal_examples_are_not_paired():
    with pytest.raises(ValueError, match="paired examples needed, got 3 and 4"):
        difference(mean(_noise(3), "mean"), mean(_noise(4), "mean"), 10, seed=0)
