"""Counts of what holds, and the interval of a share."""

from datetime import UTC, datetime, timedelta

import pytest

from hfchat.feedback.exchange import Opinion
from hfchat.feedback.statistics import share_difference, statistics, wilson_interval


def test_what_holds_is_counted(database, open_store, exchange):
    store = open_store(database)
    yesterday = datetime.now(UTC) - timedelta(days=1)
    store.keep(exchange("chatcmpl-0", model_version="v1", created_at=yesterday))
    for number in range(4):
        rating = "up" if number else "down"
        opinion = Opinion(f"chatcmpl-{number}", rating=rating, tags=("clear",), comment="!" if number else None)
        store.say(opinion, [exchange(f"chatcmpl-{number}")])
    store.say(Opinion("chatcmpl-3", correction="No.", preferred_over="chatcmpl-2"))
    store.say(Opinion("chatcmpl-2"))  # taken back
    found = statistics(store.engine)
    total = found.total
    assert (total.answers, total.feedback, total.up, total.down) == (4, 3, 1, 1)
    assert (total.corrections, total.comments, total.preferences) == (1, 1, 1)
    assert found.tags == {"clear": 2}
    assert found.replaced == 2
    assert {name: (tally.answers, tally.down) for name, tally in found.models.items()} == {
        "assistant@v1": (1, 1),
        "assistant": (3, 0),
    }
    days = list(found.days)
    assert days == sorted(days)
    assert found.days[yesterday.date().isoformat()].answers == 1
    assert sum(tally.feedback for tally in found.days.values()) == 3


def test_nothing_is_counted_as_nothing(open_store):
    assert statistics(open_store().engine).total.share_up is None


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
