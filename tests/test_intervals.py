"""Intervals and tests of shares, by the figures of the papers that they are from."""

import math

import pytest

from hfchat.intervals import paired_interval, share_difference, sign_test, wilson_interval


@pytest.mark.parametrize(
    # Newcombe, "Two-sided confidence intervals for the single proportion" (1998), table I, method 3.
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval(successes, trials, low, high):
    assert wilson_interval(successes, trials) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@pytest.mark.parametrize(
    # Newcombe, "Interval estimation for the difference between independent proportions" (1998), table II, method 10.
    ("now", "before", "low", "high"),
    [((56, 70), (48, 80), 0.0524, 0.3339), ((9, 10), (3, 10), 0.1705, 0.8090), ((10, 10), (0, 10), 0.6075, 1.0)],
)
def test_difference_of_shares(now, before, low, high):
    rise = now[0] / now[1] - before[0] / before[1]
    limits = pytest.approx(rise), pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5)
    assert share_difference(before, now) == limits


def test_paired_interval_is_that_of_the_literature():
    # Fagerland et al. (2014), table V: airway hyper-responsiveness of 21 children, 1 and 7 of whom changed.
    assert paired_interval(1, 7, 21) == (pytest.approx(-0.517, abs=5e-4), pytest.approx(-0.026, abs=5e-4))


@pytest.mark.parametrize(("gained", "pairs"), [(5, 5), (0, 5), (7, 10), (1, 1), (84, 84), (300, 1000)])
def test_paired_interval_of_pairs_that_all_changed_is_wilsons(gained, pairs):
    low, high = wilson_interval(gained, pairs)
    assert paired_interval(gained, pairs - gained, pairs) == pytest.approx((2 * low - 1, 2 * high - 1), abs=1e-9)


@pytest.mark.parametrize("pairs", [1, 2, 10, 1000])
def test_pairs_that_did_not_change_leave_a_change_possible(pairs):
    low, high = paired_interval(0, 0, pairs)
    assert -low == high == pytest.approx(1.959964**2 / (pairs + 1.959964**2), abs=1e-6)


@pytest.mark.parametrize(
    ("gained", "lost", "p_value"),
    [(0, 0, 1), (1, 0, 1), (2, 0, 0.5), (0, 5, 0.0625), (6, 0, 0.03125), (3, 9, 2 * 299 / 4096), (4, 4, 1)],
)
def test_sign_test_counts_the_ways(gained, lost, p_value):
    assert sign_test(gained, lost) == sign_test(lost, gained) == p_value


def test_sign_test_of_many_is_that_of_the_normal():
    z = (300 - 1) / math.sqrt(12_300)  # with the correction for continuity
    assert sign_test(6000, 6300) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=1e-3)
