"""Positions of marks on a horizontal axis, in percent of its width; the report's template draws them."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

_MARGIN = 0.06  # share of the width on both sides, so that a dot at an end is not cut
_TICKS = 4


@dataclass(frozen=True)
class Scale:
    """A horizontal axis.

    Attributes:
        low: The value at its left end.
        high: The value at its right end.
        ticks: Round values within it.
    """

    low: float
    high: float
    ticks: list[float]

    def at(self, value: float) -> float:
        """Where a value stands, in percent."""
        return round(100 * (value - self.low) / (self.high - self.low), 2)

    @classmethod
    def of(cls, values: Iterable[float]) -> "Scale | None":
        """An axis for these values, or None if they do not contain two different finite numbers."""
        finite = [value for value in values if math.isfinite(value)]
        if len(set(finite)) < 2:
            return None
        low, high = min(finite), max(finite)
        margin = _MARGIN * (high - low)
        low, high = low - margin, high + margin
        return cls(low, high, round_ticks(low, high))


def round_ticks(low: float, high: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten, at most about `_TICKS` of them."""
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [round(step * count, 12) for count in range(math.ceil(low / step), math.floor(high / step) + 1)]
