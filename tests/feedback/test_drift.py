"""What counts as a change of prompts, and that chance does not."""

import random

import numpy as np
import pytest

from hfchat.feedback.drift import LEAST_OPENINGS, compare
from hfchat.feedback.history import Opening

TOPICS = {
    "code": ["sort", "list", "python", "function", "loop", "error", "array", "string", "index", "print"],
    "orders": ["refund", "parcel", "invoice", "return", "address", "payment", "delivery", "broken", "late", "shop"],
}


@pytest.fixture
def opening():
    """Draws openings: `opening(topic, language, factor)`, whose length is about `factor` words of five letters."""
    rng = random.Random(5)

    def draw(topic="code", language="en", factor=8):
        words = rng.choices(TOPICS[topic], k=max(1, round(factor * rng.lognormvariate(0, 0.4))))
        return Opening(words, 6 * len(words), language)

    return draw


def changed(drift):
    return [measure.name for measure in drift.changed]


def test_the_same_prompts_are_not_called_changed(opening):
    openings = [opening(topic) for topic in ["code", "orders"] * 2 * LEAST_OPENINGS]
    shuffle = random.Random(1)
    found = []
    for _ in range(20):
        shuffle.shuffle(openings)
        found.append(compare(openings[: 2 * LEAST_OPENINGS], openings[2 * LEAST_OPENINGS :]))
    unchanged = [drift for drift in found if not drift.changed]
    assert len(unchanged) >= 18  # 19 are expected
    assert {drift.sentence for drift in unchanged} == {"prompts are not shown to have changed"}
    p_values = [[measure.p_value for measure in drift.measures] for drift in found]
    assert 0.2 < np.mean(np.array(p_values) < 1) < 0.5  # chance alone does it so often: a third, of three


def test_new_words(opening):
    before = [opening() for _ in range(200)]
    now = [opening("orders" if number % 10 < 3 else "code") for number in range(200)]
    drift = compare(before, now)
    assert changed(drift) == ["words"]
    assert drift.measures[0].p_value == 0.003  # 3 / (999 + 1)
    assert drift.measures[0].distance > drift.measures[0].by_chance
    moved = drift.sentence.removeprefix("prompts changed: their words: ").split(", ")
    assert len(moved) == 6
    for word, before, _, now in map(str.split, moved):
        assert word in {*TOPICS["orders"], *TOPICS["code"]}
        assert (word in TOPICS["orders"]) == (before == "0%") == (float(now[:-1]) > float(before[:-1]))


def test_what_chance_makes_of_rare_words_is_no_change(opening):
    rare = [f"word{number}" for number in range(3000)]
    rng = random.Random(3)

    def prompts(new):
        return [opening("orders") if number < new else Opening(rng.sample(rare, 8), 70, "en") for number in range(100)]

    assert changed(compare(prompts(0), prompts(0))) == []
    words = compare(prompts(0), prompts(20)).measures[0]
    assert words.by_chance > 0.5
    assert words.changed


def test_longer_prompts(opening):
    drift = compare([opening() for _ in range(100)], [opening(factor=16) for _ in range(100)])
    assert "length" in changed(drift)
    assert "language" not in changed(drift)
    assert "characters, before" in drift.sentence


def test_other_languages(opening):
    now = [opening(language="de" if number % 3 == 0 else "en") for number in range(120)]
    drift = compare([opening() for _ in range(120)], now)
    assert changed(drift) == ["language"]
    assert "en 100% to 67%" in drift.sentence
    assert "de 0% to 33%" in drift.sentence


def test_of_a_few_prompts_nothing_is_said(opening):
    few = [opening() for _ in range(LEAST_OPENINGS - 1)]
    for before, now in ((few, [opening("orders")] * 500), ([opening("orders")] * 500, few), ([], [])):
        drift = compare(before, now)
        assert drift.measures is None
        assert drift.changed == []
        assert drift.sentence.startswith("prompts: too few to tell")


def test_what_is_certain_but_small_is_not_called_a_change(opening):
    before = [opening() for _ in range(1500)]
    now = [opening("orders" if number % 100 < 2 else "code") for number in range(1500)]
    drift = compare(before, now)
    assert drift.measures[0].p_value < 0.05
    assert changed(drift) == []


def test_a_twentieth_of_new_words_is_a_change(opening):
    before = [opening() for _ in range(1500)]
    now = [opening("orders" if number % 100 < 7 else "code") for number in range(1500)]
    assert changed(compare(before, now)) == ["words"]


def test_a_long_prompt_counts_as_a_short_one(opening):
    one = Opening(TOPICS["orders"] * 1000, 60_000, "en")
    drift = compare([opening() for _ in range(100)], [*(opening() for _ in range(99)), one])
    assert changed(drift) == []


def test_prompts_without_words_can_be_compared():
    empty = [Opening([], 0, "unclear")] * LEAST_OPENINGS
    assert changed(compare(empty, empty)) == []
