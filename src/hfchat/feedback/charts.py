"""Charts over time: what their marks stand for, and where. They are drawn by the report's template."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import pandas as pd

from hfchat.plots import round_ticks

# The spans for which a column of a chart is an hour, a day or a week.
_HOURLY, _DAILY = timedelta(days=3), timedelta(days=100)
_SERIES = 5  # no more colours can be told apart; if there are more kinds, the rarest are one
OTHERS = "others"


@dataclass(frozen=True)
class Timeline:
    """Time in columns.

    Attributes:
        begin: When the first column begins.
        width: How long each column is.
        count: How many columns there are.
        middle: Where the later period begins, in columns; None if all columns are in it.
    """

    begin: datetime
    width: timedelta
    count: int
    middle: float | None

    @classmethod
    def of(cls, begin: datetime, middle: datetime, end: datetime) -> "Timeline":
        span = end - begin
        width = timedelta(hours=1) if span <= _HOURLY else timedelta(days=1 if span <= _DAILY else 7)
        begin = begin.replace(minute=0, second=0, microsecond=0)
        if width > timedelta(hours=1):
            begin = begin.replace(hour=0)
        count = max(1, -((begin - end) // width))  # rounded up
        return cls(begin, width, count, (middle - begin) / width if middle > begin else None)

    @property
    def unit(self) -> str:
        return {3600: "hour", 86400: "day"}.get(int(self.width.total_seconds()), "week")

    @property
    def labels(self) -> list[str]:
        """When each column begins, in UTC."""
        form = "%Y-%m-%d %H:%M" if self.unit == "hour" else "%Y-%m-%d"
        return [format(self.begin + place * self.width, form) for place in range(self.count)]

    def columns(self, times: pd.Series) -> pd.Series:
        """The column of each time."""
        return (times - self.begin) // self.width

    def counts(self, times: pd.Series) -> list[int]:
        """How many there are in each column."""
        return np.bincount(self.columns(times).to_numpy(int), minlength=self.count).tolist()


@dataclass(frozen=True)
class Chart:
    """A chart with an axis from 0.

    Attributes:
        title: What it shows.
        form: Format specification of its values.
        high: The value at its top.
        notes: What each column says, in words.
    """

    title: str
    form: str
    high: float
    notes: list[str]

    @property
    def ticks(self) -> list[float]:
        return [tick for tick in round_ticks(0, self.high) if self.form.endswith("%") or tick == int(tick)]

    def at(self, value: float) -> float:
        """How far from the top a value stands, in percent of the height."""
        return round(100 * (1 - value / self.high), 2)


@dataclass(frozen=True)
class Bars(Chart):
    """Stacked bars.

    Attributes:
        series: The values of each series by column, the lowest series first.
    """

    series: Mapping[str, Sequence[float]]

    def boxes(self) -> list[tuple[int, int, float, float]]:
        """Series, column, top and height of each bar, in percent."""
        found, tops = [], np.zeros(len(self.notes))
        for number, values in enumerate(self.series.values()):
            tops = tops + np.asarray(values, float)
            for column, (value, top) in enumerate(zip(values, tops, strict=True)):
                if value:
                    found.append((number, column, self.at(top), round(100 * value / self.high, 2)))
        return found


@dataclass(frozen=True)
class Band(Chart):
    """A line with a band around it.

    Attributes:
        points: The low end, the value and the high end in each column; None where nothing is known.
    """

    points: Sequence[tuple[float, float, float] | None]

    def runs(self) -> list[list[tuple[float, float, float, float]]]:
        """Neighbouring points: in each the column's middle, and its low, value and high from the top, in percent."""
        found: list[list[tuple[float, float, float, float]]] = [[]]
        for column, point in enumerate(self.points):
            if point is None:
                found.append([])
            else:
                low, value, high = map(self.at, point)
                found[-1].append((column + 0.5, low, value, high))
        return [run for run in found if run]


def bars(title: str, timeline: Timeline, series: Mapping[str, pd.Series], shares: bool = False) -> Bars:
    """A chart of how many events of each kind there were.

    Args:
        title: What it shows.
        timeline: Its columns.
        series: The times of the events of each kind.
        shares: Show the share of each kind instead of the number.
    """
    counts = {name: timeline.counts(times) for name, times in series.items()}
    notes = [", ".join(f"{name} {counts[name][column]:,}" for name in counts) for column in range(timeline.count)]
    totals = np.sum(list(counts.values()), axis=0)
    if shares:
        counts = {name: (np.array(values) / np.maximum(1, totals)).tolist() for name, values in counts.items()}
    return Bars(title, ".0%" if shares else ",.0f", 1.0 if shares else max(1, int(totals.max())), notes, counts)


def band(
    title: str,
    timeline: Timeline,
    points: Mapping[int, tuple[float, float, float]],
    form: str,
    high: float | None = None,
) -> Band:
    """A chart of a value with an interval around it.

    Args:
        title: What it shows.
        timeline: Its columns.
        points: The low end, the value and the high end by column.
        form: Format specification of the values.
        high: The value at the top; if None, that of the highest point.
    """
    known = [points.get(column) for column in range(timeline.count)]
    notes = [
        "nothing" if one is None else "{1:{form}} ({0:{form}} to {2:{form}})".format(*one, form=form) for one in known
    ]
    top = high or max((point[2] for point in known if point is not None), default=0) or 1.0
    return Band(title, form, top, notes, known)


def by_kind(table: pd.DataFrame, column: str) -> dict[str, pd.Series]:
    """The times of the commonest kinds, and of all others together."""
    kinds = table[column].value_counts().sort_index().sort_values(ascending=False, kind="stable").index
    named = list(kinds if len(kinds) <= _SERIES else kinds[: _SERIES - 1])
    found = {kind: table["time"][table[column] == kind] for kind in named}
    if len(kinds) > len(named):
        found[OTHERS] = table["time"][~table[column].isin(named)]
    return found
