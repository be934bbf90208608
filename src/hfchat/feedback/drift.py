"""Whether people ask other things than before: the openings of two periods, compared by a permutation test.

Each prompt counts the same, however long. A difference is called a change only if chance alone seldom makes it (the
p-value), and if what it has over chance is large enough to matter.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from scipy.spatial.distance import jensenshannon
from scipy.stats import permutation_test

from hfchat.feedback.history import Opening

LEAST_OPENINGS = 50  # of each period; of fewer, the buckets below hold too few
LEVEL = 0.05
_PERMUTATIONS = 999
_LENGTH_BUCKETS = 10
_VOCABULARY = 2000  # the commonest words; all others are one
_LEAST_LANGUAGE_SHARE = 0.01  # rarer ones are one bucket
# In bits, over what chance makes. It is a "moderate" change by the convention for the population stability index, 0.1
# (N. Siddiqi, "Credit Risk Scorecards", 2006, ch. 9), of which a small divergence in nats is an eighth; and about what
# 5% of words that were never used before make.
_LEAST_DIVERGENCE = 0.02
_SHOWN_WORDS, _SHOWN_LANGUAGES = 6, 3


@dataclass(frozen=True)
class Measure:
    """How much one property of prompts differs.

    Attributes:
        name: The property.
        distance: Between the two periods, from 0 to 1.
        by_chance: What 95 of 100 random divisions of the same prompts stay below.
        p_value: How often a random division differs as much, times the number of properties (Bonferroni).
        changed: Whether that is seldom, and the difference large enough.
        words: What it means.
    """

    name: str
    distance: float
    by_chance: float
    p_value: float
    changed: bool
    words: str


@dataclass(frozen=True)
class Drift:
    """What is known of how prompts changed.

    Attributes:
        before: How many openings were compared, and `now`.
        measures: None if there are too few.
    """

    before: int
    now: int
    measures: list[Measure] | None

    @property
    def changed(self) -> list[Measure]:
        return [measure for measure in self.measures or () if measure.changed]

    @property
    def sentence(self) -> str:
        if self.measures is None:
            return f"prompts: too few to tell; {self.now}, before {self.before}, and it takes {LEAST_OPENINGS} each"
        if not self.changed:
            return "prompts are not shown to have changed"
        return "prompts changed: " + "; ".join(f"their {measure.name}: {measure.words}" for measure in self.changed)


def compare(before: Sequence[Opening], now: Sequence[Opening], seed: int = 0) -> Drift:
    """Compare the words, lengths and languages of the openings of two periods.

    Each is compared by the Jensen-Shannon distance (Endres & Schindelin, https://doi.org/10.1109/TIT.2003.813506): of
    the mean share of each word, of lengths in tenths of all, and of languages. By chance it is above 0, the more the
    fewer prompts there are, so it is judged by what random divisions of the same prompts give.

    Args:
        before: Openings of the earlier period, a random sample of them if there are many.
        now: Those of the later one.
        seed: Seed of the random divisions.
    """
    if min(len(before), len(now)) < LEAST_OPENINGS:
        return Drift(len(before), len(now), None)
    openings = [*before, *now]
    # Of each property: what is compared, a row for each prompt, and what a change of it means.
    words = _most_moved([one.words for one in before], [one.words for one in now], _SHOWN_WORDS)
    languages = _most_moved([[one.language] for one in before], [[one.language] for one in now], _SHOWN_LANGUAGES)
    properties = {
        "words": (_word_shares(openings), words),
        "length": (_one_hot(_length_buckets(openings)), _quartiles(before, now)),
        "language": (_one_hot(_language_buckets(openings)), languages),
    }
    measures = [
        _measure(name, shares, len(before), len(properties), seed, means)
        for name, (shares, means) in properties.items()
    ]
    return Drift(len(before), len(now), measures)


def _measure(name: str, shares: np.ndarray, size: int, tests: int, seed: int, words: str) -> Measure:
    """Compare the first `size` rows of `[prompts, k]` with the others."""
    total = shares.sum(axis=0)

    def distance(before: np.ndarray, now: np.ndarray, axis: int = -1) -> np.ndarray:
        # One product for all divisions: sums over rows picked for each would copy the shares a thousand times.
        is_now = np.zeros((*now.shape[:-1], len(shares)), np.float32)
        np.put_along_axis(is_now, now, 1, axis=-1)
        sums = is_now @ shares
        # Where both are equal but for rounding, the square of it may be a little below 0.
        return np.nan_to_num(jensenshannon((total - sums).clip(min=0), sums, base=2, axis=-1))

    rows = np.arange(len(shares))
    test = permutation_test(
        (rows[:size], rows[size:]),
        distance,
        n_resamples=_PERMUTATIONS,
        vectorized=True,
        alternative="greater",
        rng=np.random.default_rng(seed),
    )
    p_value = min(1.0, tests * float(test.pvalue))
    divergence = test.statistic**2 - np.mean(test.null_distribution**2)
    changed = bool(p_value < LEVEL and divergence >= _LEAST_DIVERGENCE)
    by_chance = float(np.quantile(test.null_distribution, 0.95))
    return Measure(name, float(test.statistic), by_chance, p_value, changed, words)


def _word_shares(openings: Sequence[Opening]) -> np.ndarray:
    """`[prompts, words]`, for each prompt the shares of its words, the last column for rare ones and for no word."""
    in_prompts = Counter(chain.from_iterable(set(opening.words) for opening in openings))
    places = {word: place for place, (word, _) in enumerate(in_prompts.most_common(_VOCABULARY))}
    shares = np.zeros((len(openings), len(places) + 1), np.float32)
    for row, opening in zip(shares, openings, strict=True):
        for word, count in Counter(opening.words).items():
            row[places.get(word, -1)] += count / len(opening.words)
        if not opening.words:
            row[-1] = 1
    return shares


def _one_hot(buckets: np.ndarray) -> np.ndarray:
    return (buckets[:, None] == np.unique(buckets)).astype(np.float32)


def _length_buckets(openings: Sequence[Opening]) -> np.ndarray:
    lengths = np.array([opening.characters for opening in openings])
    edges = np.unique(np.quantile(lengths, np.arange(1, _LENGTH_BUCKETS) / _LENGTH_BUCKETS))
    return np.searchsorted(edges, lengths, side="left")


def _language_buckets(openings: Sequence[Opening]) -> np.ndarray:
    counts = Counter(opening.language for opening in openings)
    rare = {language for language, count in counts.items() if count < _LEAST_LANGUAGE_SHARE * len(openings)}
    return np.array(["others" if opening.language in rare else opening.language for opening in openings])


def _quartiles(before: Sequence[Opening], now: Sequence[Opening]) -> str:
    quartiles = [np.quantile([opening.characters for opening in openings], [0.25, 0.75]) for openings in (now, before)]
    return "half of them have {:,.0f} to {:,.0f} characters, before {:,.0f} to {:,.0f}".format(*np.ravel(quartiles))


def _most_moved(before: Sequence[Collection[str]], now: Sequence[Collection[str]], shown: int) -> str:
    """What is in more or in fewer of the prompts than before, with its share of them before and now."""
    # Of two that moved as much, the one that rose says more.
    counts = [Counter(chain.from_iterable(map(set, prompts))) for prompts in (before, now)]
    shares = [(name, counts[0][name] / len(before), counts[1][name] / len(now)) for name in counts[0] | counts[1]]
    most = sorted(shares, key=lambda one: (-abs(one[2] - one[1]), one[1] - one[2], one[0]))[:shown]
    return ", ".join("{} {:.0%} to {:.0%}".format(*one) for one in most)
