import pytest

from hfchat.doctor.disk import checkpoints_held
from hfchat.doctor.duration import occurrences


@pytest.mark.parametrize(
    ("strategy", "every", "at_the_end", "expected"),
    [
        ("no", None, True, 1), ("no", None, False, 0), ("epoch", None, True, 3), ("steps", 100, True, 4),
        ("steps", 100, False, 3), ("steps", 0.2, True, 5), ("steps", 1000, True, 1),
    ],
)  # fmt: skip
def test_evaluations_and_saves_of_320_steps_in_three_epochs(strategy, every, at_the_end, expected):
    assert occurrences(strategy, every, 320, 2.5, at_the_end=at_the_end) == expected


def test_one_checkpoint_more_than_are_kept_is_on_disk_while_it_is_written():
    assert checkpoints_held(10, 2) == 3
    assert checkpoints_held(1, 2) == 1
    assert checkpoints_held(10, None) == 10
