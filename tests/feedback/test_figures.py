import math

import pandas as pd
import pytest

from hfchat.feedback.figures import Lengths, Share, share_change


@pytest.mark.parametrize(
    ("before", "now", "outcome"),
    [
        ((500, 1000), (600, 1000), "better"),
        ((600, 1000), (500, 1000), "worse"),
        ((500, 1000), (510, 1000), "not shown to differ"),
        ((0, 19), (1000, 1000), "too few to tell"),
        ((1000, 1000), (0, 19), "too few to tell"),
    ],
)
def test_a_share_changes_if_its_interval_says_so(before, now, outcome):
    change = share_change("thumbs up", Share(*before), Share(*now), 20, ("better", "worse"))
    assert change.outcome == outcome


def test_a_change_is_said_in_percentage_points():
    change = share_change("refusals", Share(600, 1000), Share(500, 1000), 20, ("changed", "changed"))
    assert change.words == "50.0%, before 60.0% (−10.0 pp, −14.3 to −5.6)"


def test_the_share_of_nothing():
    assert math.isnan(Share(0, 0).value)
    assert Share(0, 0).interval == (0, 1)


def test_lengths():
    lengths = Lengths.of(pd.Series(range(1, 101)))
    assert (lengths.count, lengths.median) == (100, 50.5)
    assert (lengths.low, lengths.high) == (25.75, 75.25)
    # Conover, table A3 (binomial): at least 95% between the 40th and the 61st of 100.
    assert lengths.interval[0] == pytest.approx(40, abs=1)
    assert lengths.interval[1] == pytest.approx(61, abs=1)
    assert Lengths.of(pd.Series([7])).interval == (7, 7)
    assert math.isnan(Lengths.of(pd.Series([], dtype=float)).median)
