import json
import math

import numpy as np
import pytest
from matplotlib import pyplot as plt

from hfchat.training.loss_curve import save_loss_curve

HISTORY = [
    {"loss": 5.0, "step": 10, "elapsed_seconds": 60.0},
    {"loss": 9.0, "step": 20, "elapsed_seconds": 120.0, "loss_spike": True},
    {"eval_bits_per_byte": 2.0, "eval_loss": 4.0, "step": 20, "elapsed_seconds": 180.0},
    {"loss": math.nan, "step": 30, "elapsed_seconds": 240.0, "loss_spike": True},
    {"loss": 3.0, "step": 40, "elapsed_seconds": 300.0},
    {"eval_bits_per_byte": 1.5, "eval_loss": 3.0, "step": 40, "elapsed_seconds": 360.0},
    {"train_runtime": 300.0, "step": 40},
]


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """Draws a history, and returns the picture's axes."""
    figures = []
    monkeypatch.setattr(plt, "close", figures.append)

    def draw(history):
        save_loss_curve(history, tmp_path, "eval_bits_per_byte", "bits per byte")
        (tmp_path / "loss_curve.png").read_bytes().index(b"PNG")
        (figure,) = figures
        return figure.axes

    yield draw
    monkeypatch.undo()
    for figure in figures:
        plt.close(figure)


def points(line):
    return [list(map(float, point)) for point in line.get_xydata()]


def test_the_curve_shows_losses_validations_and_spikes_over_the_steps(draw, tmp_path):
    left, right = draw(HISTORY)
    (train,), (validation,), (spikes,) = left.get_lines(), right.get_lines(), left.collections
    np.testing.assert_equal(points(train), [[10, 5], [20, 9], [30, math.nan], [40, 3]])
    assert points(validation) == [[20, 2.0], [40, 1.5]]
    assert [segment[0][0] for segment in spikes.get_segments()] == [20, 30]
    assert (left.get_xlabel(), right.get_ylabel()) == ("step", "bits per byte")
    (legend,) = left.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["training loss", "loss spike", "bits per byte"]
    assert [text.get_text() for text in right.texts] == ["1.500"]
    assert np.array_equal(json.loads((tmp_path / "loss_curve.json").read_text())[1]["loss"], 9.0)


def test_the_time_that_had_passed_stands_above_its_step(draw):
    (top,) = draw(HISTORY)[0].child_axes
    assert top.get_xlabel() == "minutes"
    marks = dict(zip([text.get_text() for text in top.get_xticklabels()], top.get_xticks(), strict=True))
    assert marks["1"] == 10
    assert marks["4"] == 30
    assert marks["6"] == 40


@pytest.mark.parametrize(
    "history",
    [
        [],
        [{"loss": 5.0, "step": 1}],
        [{"eval_bits_per_byte": 2.0, "step": 1, "elapsed_seconds": 0.5}],
        [{"loss": 5.0, "step": 1, "elapsed_seconds": 0.0}, {"loss": 5.0, "step": 2, "elapsed_seconds": 0.0}],
        [{"loss": math.nan, "step": 1, "loss_spike": True}, {"eval_bits_per_byte": math.inf, "step": 1}],
    ],
)
def test_a_run_of_which_little_is_known_is_drawn_too(draw, history):
    assert draw(history)
