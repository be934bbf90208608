from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest

from hfchat.feedback.charts import OTHERS, Timeline, band, bars, by_kind

BEGIN = datetime(2025, 1, 30, 15, 30, tzinfo=UTC)


def timeline(**span):
    return Timeline.of(BEGIN, BEGIN + timedelta(hours=1), BEGIN + timedelta(**span))


def times(*hours):
    return pd.to_datetime(pd.Series([BEGIN + timedelta(hours=hour) for hour in hours]), utc=True)


@pytest.mark.parametrize(
    ("days", "unit", "first", "second", "count"),
    [
        (2, "hour", "2025-01-30 15:00", "2025-01-30 16:00", 49),
        (60, "day", "2025-01-30", "2025-01-31", 61),
        (365, "week", "2025-01-30", "2025-02-06", 53),
    ],
)
def test_columns_are_as_wide_as_the_span_asks(days, unit, first, second, count):
    found = timeline(days=days)
    assert (found.unit, found.labels[:2], found.count) == (unit, [first, second], count)
    assert len(found.labels) == count


def test_each_event_is_in_its_column():
    hourly = timeline(hours=4)
    assert hourly.count == 5  # from 15:00 to 19:30
    assert hourly.counts(times(0, 0.4, 0.5, 3.9)) == [2, 1, 0, 0, 1]
    assert hourly.counts(times()) == [0, 0, 0, 0, 0]
    assert hourly.middle == 1.5
    assert Timeline.of(BEGIN, BEGIN - timedelta(days=1), BEGIN + timedelta(hours=1)).middle is None


def test_bars_stand_on_each_other():
    chart = bars("Feedback", timeline(hours=2), {"up": times(0, 0, 0), "down": times(0, 1)})
    assert chart.high == 4
    assert chart.boxes() == [(0, 0, 25.0, 75.0), (1, 0, 0.0, 25.0), (1, 1, 75.0, 25.0)]
    assert chart.notes[0] == "up 3, down 1"
    assert all(tick == int(tick) for tick in chart.ticks)


def test_shares_of_a_column_are_one():
    chart = bars("Ends", timeline(hours=2), {"stop": times(0, 0, 0), "length": times(0)}, shares=True)
    assert chart.series == {"stop": [0.75, 0, 0], "length": [0.25, 0, 0]}
    assert chart.boxes() == [(0, 0, 25.0, 75.0), (1, 0, 0.0, 25.0)]


def test_a_band_is_broken_where_nothing_is_known():
    chart = band("Up", timeline(hours=3), {0: (0.2, 0.5, 0.8), 2: (0, 0, 0.5), 3: (0.5, 1, 1)}, ".0%", 1.0)
    assert [[point[0] for point in run] for run in chart.runs()] == [[0.5], [2.5, 3.5]]
    assert chart.runs()[0] == [(0.5, 80.0, 50.0, 20.0)]
    assert chart.notes[:2] == ["50% (20% to 80%)", "nothing"]


def test_rare_kinds_are_taken_together():
    table = pd.DataFrame({"time": times(*[0] * 21), "kind": list("aaaaaabbbbbccccddde" + "fg")})
    found = by_kind(table, "kind")
    assert list(found) == ["a", "b", "c", "d", OTHERS]
    assert sum(map(len, found.values())) == 21
    assert list(by_kind(table[:18], "kind")) == ["a", "b", "c", "d"]
