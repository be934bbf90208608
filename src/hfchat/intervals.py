"""Intervals and tests for shares that hold for few trials; evaluation and feedback both use them for counts."""

import math
from statistics import NormalDist

CONFIDENCE = 0.95
Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)


def wilson_interval(successes: float, trials: int) -> tuple[float, float]:
    """Limits of the 95% interval of a share.

    E. B. Wilson's score interval (https://doi.org/10.1080/01621459.1927.10502953) also holds for few trials and for
    shares near 0 and 1.

    Args:
        successes: How many there were; halves may count, which makes the interval a little too wide.
        trials: At least one.
    """
    share, weight = successes / trials, Z * Z / trials
    middle = (share + weight / 2) / (1 + weight)
    half = Z * math.sqrt(share * (1 - share) / trials + weight / (4 * trials)) / (1 + weight)
    return max(0.0, middle - half), min(1.0, middle + half)


def share_difference(before: tuple[int, int], now: tuple[int, int]) -> tuple[float, float, float]:
    """How much a share rose, and the limits of the 95% interval of the rise, from the intervals of both shares.

    The trials of both must be independent; for answers to the same questions see `paired_interval`. R. G. Newcombe,
    "Interval estimation for the difference between independent proportions" (1998), method 10
    (https://pubmed.ncbi.nlm.nih.gov/9595617/).

    Args:
        before: Successes and trials, at least one.
        now: The same, later.
    """
    old, new = (successes / trials for successes, trials in (before, now))
    (old_low, old_high), (low, high) = wilson_interval(*before), wilson_interval(*now)
    rise = new - old
    return rise, rise - math.hypot(new - low, old_high - old), rise + math.hypot(high - new, old - old_low)


def paired_interval(gained: float, lost: float, pairs: int) -> tuple[float, float]:
    """Limits of the 95% interval of the difference of two shares of the same trials, `(gained - lost) / pairs`.

    T. Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample
    design", Statistics in Medicine 17 (1998), which M. W. Fagerland et al. recommend (2014,
    https://doi.org/10.1002/sim.6148). It inverts McNemar's test, and is Wilson's interval if all pairs changed.

    Args:
        gained: Pairs in which only the second trial succeeded; ties may count as halves.
        lost: Pairs in which only the first trial succeeded.
        pairs: Number of all pairs, at least one.
    """
    return -_upper_limit(lost, gained, pairs), _upper_limit(gained, lost, pairs)


def _upper_limit(gained: float, lost: float, pairs: int) -> float:
    """The greatest difference that the score test does not reject, by bisection."""
    low, high = (gained - lost) / pairs, 1.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        # The share of pairs in which only the first trial succeeds, by maximum likelihood under this difference.
        linear = (2 * pairs - gained + lost) * middle - gained - lost
        constant = -lost * middle * (1 - middle)
        share = (math.sqrt(max(0.0, linear * linear - 8 * pairs * constant)) - linear) / (4 * pairs)
        variance = pairs * (2 * share + middle * (1 - middle))
        if gained - lost - pairs * middle < -Z * math.sqrt(max(0.0, variance)):
            high = middle
        else:
            low = middle
    return low


def sign_test(gained: int, lost: int) -> float:
    """The exact p-value of a change in either direction, from the pairs that changed: McNemar's exact test.

    Under no difference each of them goes either way like a coin (Conover, "Practical Nonparametric Statistics", 3rd
    ed., 1999, sections 3.4 and 3.5). With fewer than 6 pairs it is never below 0.05.

    Args:
        gained: Pairs that became better.
        lost: Pairs that became worse. Unchanged pairs do not count.
    """
    changed, ways, tail = gained + lost, 1, 0
    for count in range(min(gained, lost) + 1):  # `ways` is the binomial coefficient of each
        tail += ways
        ways = ways * (changed - count) // (count + 1)
    return min(1.0, 2 * tail / 2**changed)
