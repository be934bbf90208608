import itertools
import math

import numpy as np
import pytest
import sacrebleu
from sacrebleu.significance import PairedTest

from hfchat.evaluation.bootstrap import Statistics, difference, estimate, mean
from hfchat.evaluation.metrics import BLEU
from hfchat.evaluation.verdict import outcome
from hfchat.intervals import paired_interval, sign_test, wilson_interval


def _noise(n, seed=0):
    return np.random.default_rng(seed).normal(0.5, 0.2, n).tolist()


def _width(result):
    low, high = result.interval
    return high - low


def _decided(changes, resamples=500):
    """The difference of two models whose scores of the examples differ by this, and what it shows."""
    before = _noise(len(changes), seed=len(changes))
    found = difference(mean((before + np.asarray(changes)).tolist(), "mean"), mean(before, "mean"), resamples, seed=0)
    return found, outcome("higher", found, found.p_value)


def test_estimate_is_the_mean_and_its_interval_is_students():
    scores = _noise(400)
    result = estimate(mean(scores, "mean"), resamples=2000, seed=1)
    assert result.score == pytest.approx(np.mean(scores))
    assert result.interval[0] < result.score < result.interval[1]
    assert _width(result) == pytest.approx(2 * 1.96 * np.std(scores) / np.sqrt(400), rel=0.05)


def test_the_interval_of_a_handful_is_students():
    # A symmetric sample, so that there is no skewness: mean 3, standard error sqrt(2.5 / 5), t(4) = 2.7764451.
    low, high = estimate(mean([1, 2, 3, 4, 5], "mean"), 10, seed=0).interval
    assert (low, high) == (
        pytest.approx(3 - 2.7764451 * math.sqrt(0.5)),
        pytest.approx(3 + 2.7764451 * math.sqrt(0.5)),
    )


def test_the_interval_of_skewed_scores_reaches_further_to_the_long_side():
    scores = np.random.default_rng(0).lognormal(size=40)
    result = estimate(mean(scores.tolist(), "mean"), 10, seed=0)
    error, t = np.std(scores, ddof=1) / np.sqrt(40), 2.0226909
    assert result.interval[0] == pytest.approx(scores.mean() - t * error)
    assert result.interval[1] > scores.mean() + 1.1 * t * error


def test_one_outlier_does_not_make_the_interval_absurd():
    scores = [0.0] * 19 + [0.01] * 20 + [1.0]
    low, high = estimate(mean(scores, "mean"), 10, seed=0).interval
    error, t = np.std(scores, ddof=1) / np.sqrt(40), 2.0226909
    assert (np.mean(scores) - low, high - np.mean(scores)) == pytest.approx((t * error, 2 * t * error))


@pytest.mark.parametrize("n", [1, 2, 5, 84])
@pytest.mark.parametrize("right", [0, 1])
def test_the_interval_of_a_share_is_wilsons_even_if_all_examples_are_alike(n, right):
    result = estimate(mean([right] * n, "share"), 100, seed=0)
    assert result.interval == pytest.approx(wilson_interval(right * n, n))
    assert _width(result) > 0
    mixed = estimate(mean([True] * 15 + [False] * 133, "share"), 100, seed=0)
    assert mixed.interval == pytest.approx([0.0624, 0.1605], abs=5e-5)  # Newcombe (1998), table I


def test_of_wins_and_ties_the_interval_is_that_of_the_difference_of_both():
    result = estimate(mean([1.0] * 12 + [0.5] * 36 + [0.0] * 2, "win rate"), 100, seed=0)
    assert result.score == 0.6
    assert result.interval == pytest.approx([(1 + end) / 2 for end in paired_interval(12, 2, 50)])


@pytest.mark.parametrize("n", [1, 2, 10])
def test_equal_scores_leave_it_possible_that_others_differ(n):
    for bounds in ((0, 1), (-math.inf, math.inf)):
        low, high = estimate(mean([0.7] * n, "mean", bounds), 100, seed=0).interval
        assert low < 0.7 < high
    assert estimate(mean([96] * n, "tokens", (0, 96)), 100, seed=0).interval[1] == 96
    perfect = BLEU().compute(predictions=["one two three four five"] * n, references=["one two three four five"] * n)
    assert perfect["score"] == pytest.approx(100)
    assert perfect["interval"] == pytest.approx([100 * wilson_interval(n, n)[0], 100])


def test_what_has_no_score_does_not_count():
    values = np.array([[1.0, 1.0], [0.0, 0.0], [0.0, 1.0]])
    result = estimate(Statistics(values, lambda sums: sums[0] / sums[1], "share", is_mean=True), 100, seed=0)
    assert (result.n, result.scored) == (3, 2)
    assert result.interval == pytest.approx(wilson_interval(1, 2))


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
    after = [score + 0.05 + 0.001 * (-1) ** index for index, score in enumerate(before)]
    result = difference(mean(after, "mean"), mean(before, "mean"), 500, seed=0)
    # Either interval alone is wide, but every example improved by nearly the same.
    assert _width(estimate(mean(before, "mean"), 500, seed=0)) > 0.05
    assert result.interval == pytest.approx([0.05, 0.05], abs=4e-4)
    assert result.p_value == pytest.approx(1 / 501)  # never 0


@pytest.mark.parametrize(("n", "p_value"), [(1, 1), (2, 0.5), (3, 0.25), (5, 0.0625), (6, 0.03125)])
def test_few_equal_changes_show_as_little_as_as_many_tosses_of_a_coin(n, p_value):
    won = difference(mean([1.0] * n, "win rate"), mean([0.5] * n, "by definition"), 1000, seed=0)
    for found, shows in (_decided([0.05] * n), (won, outcome("higher", won, won.p_value))):
        assert found.p_value == p_value
        assert _width(found) > 0
        assert (shows == "better") == (n > 5)


def test_shares_of_the_same_examples_are_compared_by_mcnemars_exact_test():
    before = [1] * 30 + [0] * 20
    after = [0] * 3 + [1] * 36 + [0] * 11
    result = difference(mean(after, "share"), mean(before, "share"), 100, seed=0)
    assert result.p_value == sign_test(9, 3) == pytest.approx(598 / 4096)
    assert result.interval == pytest.approx(paired_interval(9, 3, 50))


def test_of_up_to_13_examples_all_exchanges_are_tried():
    changes = np.array([0.3, -0.1, 0.25, 0.4, 0.15, 0.2, -0.05])
    found, _ = _decided(changes, resamples=1)
    ways = [np.dot(signs, changes) for signs in itertools.product((-1, 1), repeat=7)]
    assert found.p_value == np.mean(np.abs(ways) >= changes.sum() - 1e-12)
    # The same of a corpus score: here the ratio of two sums.
    ours, theirs = (np.stack([_noise(7, seed), np.ones(7) + seed], axis=1) for seed in (1, 2))
    statistics = [Statistics(values, lambda sums: math.exp(sums[0] / sums[1]), "ratio") for values in (ours, theirs)]
    scores = [one.of_all() for one in statistics]
    moved = []
    for kept in itertools.product((True, False), repeat=7):
        first = np.where(np.array(kept)[:, None], ours, theirs).sum(axis=0)
        second = (ours + theirs).sum(axis=0) - first
        moved.append(abs(math.exp(first[0] / first[1]) - math.exp(second[0] / second[1])))
    expected = np.mean(np.array(moved) >= abs(scores[0] - scores[1]) - 1e-12)
    assert difference(*statistics, 1, seed=0).p_value == pytest.approx(expected)


def test_models_that_say_the_same_are_not_shown_to_be_equal():
    for scores in ([1, 0] * 10, [0.3] * 20, _noise(20)):
        found = difference(mean(scores, "mean"), mean(scores, "mean"), 100, seed=0)
        assert found.p_value == 1
        assert found.interval[0] < 0 < found.interval[1]


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_what_is_no_number_shows_nothing(broken):
    scores = [0.1, broken, 0.3, 0.4]
    result = estimate(mean(scores, "mean"), 10, seed=0)
    assert not math.isfinite(result.score)
    assert not any(map(math.isfinite, result.interval))
    values = np.stack([scores, np.ones(4)], axis=1)
    ratio = Statistics(values, lambda sums: sums[0] / sums[1], "ratio")
    for one, other in ((mean(scores, "mean"), mean([0.1] * 4, "mean")), (ratio, ratio)):
        found = difference(one, other, 10, seed=0)
        assert outcome("higher", found, found.p_value) == "not shown to differ"
        assert found.p_value == 1


def test_what_rounding_leaves_is_no_difference():
    texts = [f"the model reads the corpus of text number {i}" for i in range(20)]
    sums = np.array([[0.1 * i, 0.3] for i in range(1, 21)])
    ratios = [Statistics(sums * factor, lambda sums: sums[0] / sums[1], "ratio") for factor in (1, 3)]
    for one, other in ([BLEU().statistics(texts, texts)] * 2, ratios):
        found = difference(one, other, 100, seed=0)
        assert (found.difference, found.p_value) == (0, 1)
        assert found.interval[0] < 0 < found.interval[1]


NORMAL, LOGNORMAL = "normal", "lognormal"


@pytest.mark.parametrize(
    ("drawn", "n", "at_most"),
    [*((NORMAL, n, 0.065) for n in (5, 8, 16, 40)), *((LOGNORMAL, n, 0.10) for n in (16, 40))],
)
def test_equal_models_are_seldom_said_to_differ(drawn, n, at_most):
    """At a nominal 5%: of the verdict, and of the interval alone, which the gates read."""
    chance = np.random.default_rng(20)
    drawn_once = {NORMAL: chance.normal, LOGNORMAL: lambda size: chance.lognormal(size=size) - math.exp(0.5)}[drawn]
    verdicts = [_decided(drawn_once(size=n), resamples=200) for _ in range(600)]
    assert np.mean([shows != "not shown to differ" for _, shows in verdicts]) <= at_most
    assert np.mean([found.interval[0] > 0 or found.interval[1] < 0 for found, _ in verdicts]) <= at_most


def test_a_true_difference_of_half_a_standard_deviation_is_mostly_seen_in_40():
    chance = np.random.default_rng(21)
    found = [_decided(chance.normal(0.5, 1, 40))[1] for _ in range(200)]
    assert found.count("better") > 0.75 * 200  # the t-test sees 87%
    assert "worse" not in found


def test_a_model_does_not_differ_from_itself():
    same = mean(_noise(50), "mean")
    assert difference(same, same, 500, seed=0).p_value == 1.0


def test_p_value_is_that_of_the_normal_and_of_either_direction():
    before = _noise(400, seed=1)
    after = (before + np.random.default_rng(2).normal(0.01, 0.1, 400)).tolist()
    result = difference(mean(after, "mean"), mean(before, "mean"), 5000, seed=0)
    changes = np.subtract(after, before)
    z = changes.mean() / (changes.std() / np.sqrt(400))
    expected = math.erfc(abs(z) / math.sqrt(2))  # of a z-test in both directions
    assert 0.02 < expected < 0.5
    assert result.p_value == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / 5000) + 0.01)
    swapped = difference(mean(before, "mean"), mean(after, "mean"), 5000, seed=0)
    assert swapped.p_value == result.p_value
    assert swapped.difference == -result.difference


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
    assert ours.p_value == pytest.approx(theirs["ar"], abs=4 * np.sqrt(0.25 / 2000))
    assert theirs["bs"] < 0.6 * ours.p_value


def test_unequal_examples_are_not_paired():
    with pytest.raises(ValueError, match="paired examples needed, got 3 and 4"):
        difference(mean(_noise(3), "mean"), mean(_noise(4), "mean"), 10, seed=0)
