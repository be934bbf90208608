"""Whether people ask other things than before: the openings of two periods, compared by a permutation test.

Each prompt counts the same, however long. A difference is called a change only if chance alone seldom makes it (the
p-value), and if what it has over chance is large enough to matter.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hfchat.feedback.history import Opening

LEAST_OPENINGS = 50  # of each period; of fewer, the buckets below hold too few
LEVEL = 0.05
_PERMUTATIONS = 999
_LENGTH_BUCKETS = 10
_VOCABULARY = 2000  # the commonest words; all others are one
_LEAST_LANGUAGE_SHARE = 0.01  # rarer ones are one bucket
# From here on a population stability index is by convention a "moderate" change (N. Siddiqi, "Credit Risk Scorecards",
# 2006, ch. 9), and the exchange of one word in twenty is our own choice.
_LEAST_INDEX = 0.1
_LEAST_EXCHANGED = 0.05
_SHOWN_WORDS = 6
_LEAST_PROMPTS = 5  # with a word that is shown


@dataclass(frozen=True)
class Measure:
    """How much one property of prompts differs.

    Attributes:
        name: The property.
        statistic: What `value` is.
        value: Of the two periods.
        by_chance: What 95 of 100 random divisions of the same prompts stay below.
        p_value: How often a random division differs as much, times the number of properties (Bonferroni).
        changed: Whether that is seldom, and the difference large enough.
        words: What it means.
    """

    name: str
    statistic: str
    value: float
    by_chance: float
    p_value: float
    changed: bool
    words: str


@dataclass(frozen=True)
class WordShares:
    """A word, and in which share of the prompts it is, before and now."""

    word: str
    before: float
    now: float


@dataclass(frozen=True)
class Drift:
    """What is known of how prompts changed.

    Attributes:
        before: How many openings were compared, and `now`.
        measures: None if there are too few.
        words: Those that became more frequent, and less; if words changed.
    """

    before: int
    now: int
    measures: list[Measure] | None
    words: list[WordShares]

    @property
    def changed(self) -> list[Measure]:
        return [measure for measure in self.measures or () if measure.changed]

    @property
    def sentence(self) -> str:
        if self.measures is None:
            return f"prompts: too few to tell; {self.now}, before {self.before}, and it takes {LEAST_OPENINGS} each"
        if not self.changed:
            return "prompts are not shown to have changed"
        return "prompts changed: " + "; ".join(f"their {one.name}: {one.words}" for one in self.changed)


def compare(before: Sequence[Opening], now: Sequence[Opening], seed: int = 0) -> Drift:
    """Compare the words, lengths and languages of openings of two periods.

    - Words: the Jensen-Shannon divergence in bits (J. Lin, https://doi.org/10.1109/18.61115) of the mean share of each
      word, whose square root, a distance, is given (Endres & Schindelin, https://doi.org/10.1109/TIT.2003.813506).
    - Lengths in tenths of all, and languages: the population stability index, `sum((p - q) * ln(p / q))` over the
      buckets. It is the symmetric divergence of H. Jeffreys (https://doi.org/10.1098/rspa.1946.0056).

    By chance both are above 0, the more the fewer prompts there are, so they are judged by what random divisions of
    the same prompts give. P-values have one added to both counts (Phipson & Smyth, arXiv:1603.05766).

    Args:
        before: Openings of the earlier period, a random sample of them if there are many.
        now: Of the later one.
        seed: Of the random divisions.
    """
    if min(len(before), len(now)) < LEAST_OPENINGS:
        return Drift(len(before), len(now), None, [])
    openings = [*before, *now]
    rng = np.random.default_rng(seed)
    is_now = np.repeat([0.0, 1.0], [len(before), len(now)]).astype(np.float32)
    # The first row is the division by time.
    divisions = np.vstack([is_now, rng.permuted(np.tile(is_now, (_PERMUTATIONS, 1)), axis=1)])
    measures = [
        _words(_word_shares(openings), divisions),
        _index("length", _length_buckets(openings), divisions, _quartiles(before, now)),
        _index("language", _language_buckets(openings), divisions, _top_languages(before, now)),
    ]
    moved = _moved_words(before, now) if measures[0].changed else []
    return Drift(len(before), len(now), measures, moved)


def exchanged_share(divergence: float) -> float:
    """Which share of the words must be exchanged for ones that were not used before to get a divergence.

    If `f` of all words are new ones and the others as before, the Jensen-Shannon divergence in bits is
    `h(f / 2) - h(f) / 2`, with the entropy `h` of a coin: the definition, with the two distributions written out.
    """
    shares = np.linspace(0, 1, 1001)
    return float(np.interp(divergence, _coin_entropy(shares / 2) - _coin_entropy(shares) / 2, shares))


def _coin_entropy(p: np.ndarray) -> np.ndarray:
    return -_p_log2_p(p) - _p_log2_p(1 - p)


def _p_log2_p(p: np.ndarray) -> np.ndarray:
    return p * np.log2(p, out=np.zeros_like(p), where=p > 0)


def _words(shares: np.ndarray, divisions: np.ndarray) -> Measure:
    before, now = _means(shares, divisions)
    middle = (before + now) / 2
    entropies = [-_p_log2_p(one).sum(axis=1) for one in (before, now, middle)]
    divergences = np.maximum(0, entropies[2] - (entropies[0] + entropies[1]) / 2)
    exchanged = exchanged_share(divergences[0] - divergences[1:].mean())
    means = f"as much as if {exchanged:.0%} of the words were new ones"
    return _measure("words", "Jensen-Shannon distance", np.sqrt(divergences), exchanged >= _LEAST_EXCHANGED, means)


def _index(name: str, buckets: np.ndarray, divisions: np.ndarray, means: str) -> Measure:
    """The population stability index; half a prompt is added to each bucket, as of an empty one it is infinite."""
    one_hot = (buckets[:, None] == np.unique(buckets)).astype(np.float32)
    shares = []
    for mean, size in zip(_means(one_hot, divisions), _sizes(divisions), strict=True):
        counts = mean * size + 0.5
        shares.append(counts / counts.sum(axis=1, keepdims=True))
    before, now = shares
    indexes = ((now - before) * np.log(now / before)).sum(axis=1)
    matters = indexes[0] - indexes[1:].mean() >= _LEAST_INDEX
    return _measure(name, "population stability index", indexes, matters, means)


def _measure(name: str, statistic: str, values: np.ndarray, matters: bool, means: str) -> Measure:
    observed, random = values[0], values[1:]
    # A division that is the same but for rounding differs as much.
    p_value = (1 + int(np.sum(random >= observed * (1 - 1e-6)))) / (1 + len(random))
    corrected = min(1.0, 3 * p_value)
    changed = bool(corrected < LEVEL and matters)
    return Measure(name, statistic, float(observed), float(np.quantile(random, 0.95)), corrected, changed, means)


def _means(values: np.ndarray, divisions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The means `[divisions, k]` of earlier and later prompts, of `[prompts, k]` and `[divisions, prompts]`."""
    sizes = _sizes(divisions)
    now = divisions @ values
    return ((values.sum(axis=0) - now) / sizes[0]).astype(float).clip(min=0), (now / sizes[1]).astype(float)


def _sizes(divisions: np.ndarray) -> tuple[float, float]:
    now = float(divisions[0].sum())
    return divisions.shape[1] - now, now


def _word_shares(openings: Sequence[Opening]) -> np.ndarray:
    """`[prompts, words]`, for each prompt the shares of its words, the last column for rare ones and for no word."""
    in_prompts = Counter(word for opening in openings for word in set(opening.words))
    places = {word: place for place, (word, _) in enumerate(in_prompts.most_common(_VOCABULARY))}
    shares = np.zeros((len(openings), len(places) + 1), np.float32)
    for row, opening in zip(shares, openings, strict=True):
        for word, count in Counter(opening.words).items():
            row[places.get(word, -1)] += count / len(opening.words)
        if not opening.words:
            row[-1] = 1
    return shares


def _length_buckets(openings: Sequence[Opening]) -> np.ndarray:
    lengths = np.array([opening.characters for opening in openings])
    edges = np.unique(np.quantile(lengths, np.arange(1, _LENGTH_BUCKETS) / _LENGTH_BUCKETS))
    return np.searchsorted(edges, lengths, side="left")


def _language_buckets(openings: Sequence[Opening]) -> np.ndarray:
    counts = Counter(opening.language for opening in openings)
    rare = {language for language, count in counts.items() if count < _LEAST_LANGUAGE_SHARE * len(openings)}
    return np.array(["others" if opening.language in rare else opening.language for opening in openings])


def _quartiles(before: Sequence[Opening], now: Sequence[Opening]) -> str:
    quartiles = [np.quantile([one.characters for one in openings], [0.25, 0.75]) for openings in (now, before)]
    return "half of them have {:,.0f} to {:,.0f} characters, before {:,.0f} to {:,.0f}".format(*np.ravel(quartiles))


def _top_languages(before: Sequence[Opening], now: Sequence[Opening]) -> str:
    """The three whose shares moved most."""
    shares = [Counter(opening.language for opening in openings) for openings in (before, now)]
    moved = {one: shares[1][one] / len(now) - shares[0][one] / len(before) for one in {*shares[0], *shares[1]}}
    most = sorted(moved, key=lambda one: (-abs(moved[one]), one))[:3]
    return ", ".join(f"{one} {shares[0][one] / len(before):.0%} to {shares[1][one] / len(now):.0%}" for one in most)


def _moved_words(before: Sequence[Opening], now: Sequence[Opening]) -> list[WordShares]:
    """Those whose shares differ most in standard errors, the risen ones first."""
    counts = [Counter(word for opening in openings for word in set(opening.words)) for openings in (before, now)]
    common = {word for one in counts for word, count in one.items() if count >= _LEAST_PROMPTS}
    found = [WordShares(word, counts[0][word] / len(before), counts[1][word] / len(now)) for word in sorted(common)]

    def score(one: WordShares) -> float:
        pooled = (counts[0][one.word] + counts[1][one.word]) / (len(before) + len(now))
        return (one.now - one.before) / max(1e-9, (pooled * (1 - pooled)) ** 0.5)

    ranked = sorted(found, key=score)
    fallen = [one for one in ranked[:_SHOWN_WORDS] if one.now < one.before]
    risen = [one for one in ranked[: -_SHOWN_WORDS - 1 : -1] if one.now > one.before]
    return [*risen, *fallen]
