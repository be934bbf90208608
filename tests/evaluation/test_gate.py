"""The gate: what was shown passes, what is only likely does not, and what was not measured fails."""

import json
from dataclasses import asdict

import pytest

from hfchat.errors import UserError
from hfchat.evaluation import gate as promotion
from hfchat.evaluation.bootstrap import difference, estimate, mean
from hfchat.evaluation.gate import PromotionGate, write_verdict
from hfchat.results import Results


def results(better="higher", score=0.7, interval=(0.6, 0.8), difference=0.0, change=(-0.05, 0.05), n=100):
    compared = {"difference": difference, "interval": list(change), "p_value": 0.5, "n": n}
    task = {
        "kind": "answers",
        "title": "Task",
        "dataset": None,
        "limits": [],
        "group_label": "group",
        "headline": "rate",
        "groups": {},
        "metrics": {"rate": {"label": "Rate", "better": better, "form": ".3f"}},
        "scores": {
            "current": {"rate": {"score": 0.5, "interval": [0.4, 0.6], "n": n}},
            "candidate": {"rate": {"score": score, "interval": list(interval), "n": n}},
        },
        "comparisons": [{"model": "candidate", "baseline": "current", "metrics": {"rate": compared}}],
    }
    models = {
        name: {
            "path": name,
            "sha256": "0",
            "licenses": [],
            "kind": "folder",
            "dtype": None,
            "chat_template": None,
            "speed": {"tokens_per_second": 1.0, "answer_tokens": 1, "seconds": seconds, "batch_size": 1},
        }
        for name, seconds in (("current", 80.0), ("candidate", 100.0))
    }
    return {"models": models, "tasks": {"task": task}}


a_gate = PromotionGate.parse


def judge(measured, gates, **options):
    return promotion.judge(Results.parse(measured), gates, **options)


def passes(entry, **measured):
    verdict = judge(results(**measured), [a_gate({"task": "task", "metric": "rate", **entry})])
    assert verdict.passed == (not verdict.failed)
    return verdict.passed


@pytest.mark.parametrize(
    ("gate", "measured", "passed"),
    [
        ({"above": 0.5}, {"interval": (0.51, 0.9)}, True),
        ({"above": 0.5}, {"interval": (0.49, 0.9)}, False),
        ({"below": 0.5}, {"interval": (0.1, 0.49)}, True),
        ({"below": 0.5}, {"interval": (0.1, 0.51)}, False),
        ({"may_lose": 0.02}, {"change": (-0.01, 0.3)}, True),
        ({"may_lose": 0.02}, {"change": (-0.03, 0.3)}, False),
        ({"may_lose": 0.02}, {"better": "lower", "change": (-0.3, 0.01)}, True),
        ({"may_lose": 0.02}, {"better": "lower", "change": (-0.3, 0.03)}, False),
        ({"must_gain": True}, {"change": (0.01, 0.3)}, True),
        ({"must_gain": True}, {"change": (0.0, 0.3)}, False),
        ({"must_gain": True}, {"better": "lower", "change": (-0.3, -0.01)}, True),
        ({"must_gain": True}, {"better": "lower", "change": (0.01, 0.3)}, False),
        ({"may_change": 0.1}, {"better": None, "change": (-0.09, 0.09)}, True),
        ({"may_change": 0.1}, {"better": None, "change": (-0.11, 0.0)}, False),
        ({"may_change": 0.1}, {"better": None, "change": (0.0, 0.11)}, False),
    ],
)
def test_a_gate_asks_what_the_interval_shows(gate, measured, passed):
    assert passes(gate, **measured) is passed


@pytest.mark.parametrize("gate", [{"above": 0.5}, {"below": 0.9}, {"may_lose": 1}, {"must_gain": True}])
def test_too_few_examples_fail_by_name(gate):
    measured = {"interval": (0.6, 0.8), "change": (0.1, 0.2)}
    assert passes(gate, n=10, **measured)
    assert not passes(gate, n=9, **measured)
    assert passes({**gate, "min_n": 9}, n=9, **measured)
    assert not passes({**gate, "min_n": 50}, n=49, **measured)
    one = a_gate({"task": "task", "metric": "rate", **gate})
    assert judge(results(n=9, **measured), [one], min_n=9).passed
    found = judge(results(n=3, **measured), [one]).outcomes[0].found
    assert found == "too few examples: n = 3, and the gate needs 10 (min_n)"


def test_what_has_no_score_is_no_example():
    measured = results(interval=(0.6, 0.8))
    measured["tasks"]["task"]["scores"]["candidate"]["rate"]["scored"] = 4
    assert not judge(measured, [a_gate({"task": "task", "metric": "rate", "above": 0.5})]).passed


@pytest.mark.parametrize(("n", "passed"), [(2, False), (80, False), (190, True)])
def test_none_of_few_is_not_shown_to_be_almost_none(n, passed):
    """Of none in 80, a true share of 4% is well possible."""
    none = mean([0.0] * n, "share")
    estimates = {name: {"rate": asdict(estimate(none, 100, 0))} for name in ("current", "candidate")}
    measured = results(better="lower")
    measured["tasks"]["task"] |= {
        "scores": estimates,
        "comparisons": [
            {"model": "candidate", "baseline": "current", "metrics": {"rate": asdict(difference(none, none, 9, 0))}}
        ],
    }
    for gate in ({"below": 0.02}, {"may_lose": 0.02}):
        assert judge(measured, [a_gate({"task": "task", "metric": "rate", "min_n": 2, **gate})]).passed is passed
    assert not judge(measured, [a_gate({"task": "task", "metric": "rate", "min_n": 2, "must_gain": True})]).passed


def test_what_the_candidate_did_not_take_part_in_fails():
    measured = results()
    del measured["tasks"]["task"]["scores"]["candidate"]
    measured["tasks"]["task"]["comparisons"] = []
    for gate in ({"above": 0}, {"may_lose": 1}):
        verdict = judge(measured, [a_gate({"task": "task", "metric": "rate", **gate})])
        assert not verdict.passed
        assert "not measured" in verdict.outcomes[0].found


def test_two_engines_are_not_compared():
    measured = results()
    scores = measured["tasks"]["task"]["scores"]
    scores["current"]["rate"]["signature"] = "rate|engine:transformers|weights:bfloat16"
    scores["candidate"]["rate"]["signature"] = "rate|engine:llamacpp|weights:q4_0"
    gate = {"task": "task", "metric": "rate"}
    (outcome,) = judge(measured, [a_gate({**gate, "may_lose": 1})]).outcomes
    assert not outcome.passed
    assert outcome.found == (
        "computed by engine:llamacpp, weights:q4_0 against engine:transformers, weights:bfloat16; evaluate both with "
        "one engine and the same weights"
    )
    assert judge(measured, [a_gate({**gate, "above": 0.5})]).passed
    scores["current"]["rate"]["signature"] = "another one|engine:llamacpp|weights:q4_0"
    assert judge(measured, [a_gate({**gate, "may_lose": 1})]).passed


def test_the_speeds_of_two_engines_are_not_compared():
    measured = results()
    measured["models"]["candidate"] |= {"engine": "llamacpp", "weights": "q4_0"}
    (outcome,) = judge(measured, [a_gate({"speed": True, "keeps": 0.5})]).outcomes
    assert not outcome.passed
    assert outcome.found == "generated by llamacpp q4_0 against unknown; evaluate both with one"
    measured["models"]["current"] |= {"engine": "llamacpp", "weights": "q4_0"}
    assert judge(measured, [a_gate({"speed": True, "keeps": 0.5})]).passed


def test_speed_is_a_share_of_the_current_one():
    assert judge(results(), [a_gate({"speed": True, "keeps": 0.8})]).passed
    assert not judge(results(), [a_gate({"speed": True, "keeps": 0.81})]).passed
    measured = results()
    measured["models"]["candidate"]["speed"] = None
    assert not judge(measured, [a_gate({"speed": True, "keeps": 0.5})]).passed


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"task": "task", "metric": "rate"}, "one condition"),
        ({"task": "task", "metric": "rate", "above": 0, "below": 1}, "one condition"),
        ({"task": "task", "above": 0}, "task and a metric"),
        ({"task": "task", "metric": "rate", "may_loose": 0.1}, "unknown key 'may_loose'"),
        (
            {"task": "task", "metric": "rate", "may_lose": -0.1},
            "'may_lose' must be greater than or equal to 0",
        ),
        ({"task": "task", "metric": "rate", "may_lose": "little"}, "'may_lose' must be a valid number, not 'little'"),
        ({"task": "task", "metric": "rate", "must_gain": False}, "'must_gain' must be True, not False"),
        ({"task": "task", "metric": "rate", "keeps": 0.5}, "`keeps` is the condition of `speed: true`"),
        (
            {"task": "task", "metric": "rate", "above": 0.5, "min_n": 0},
            "'min_n' must be greater than or equal to 1",
        ),
        (
            {"task": "task", "metric": "rate", "above": 0.5, "min_n": "ten"},
            "'min_n' must be a valid integer",
        ),
        ({"speed": True, "keeps": 0.5, "min_n": 5}, "min_n is for a task and a metric"),
        ({"speed": True, "above": 5}, "`keeps` is the condition of `speed: true`"),
    ],
)
def test_what_is_no_gate_is_refused(entry, words):
    with pytest.raises(ValueError, match=words):
        a_gate(entry)


@pytest.mark.parametrize(
    ("gate", "measured", "words"),
    [
        ({"task": "another", "metric": "rate", "above": 0}, {}, "no task 'another'; it has task"),
        ({"task": "task", "metric": "ratio", "above": 0}, {}, "no metric 'ratio'; it has rate"),
        ({"task": "task", "metric": "rate", "may_lose": 0.1}, {"better": None}, "may_change"),
    ],
)
def test_a_gate_that_does_not_fit_the_results_is_refused(gate, measured, words):
    with pytest.raises(UserError, match=words):
        judge(results(**measured), [a_gate(gate)])


def test_there_are_a_current_model_and_a_candidate():
    measured = results()
    measured["models"]["third"] = measured["models"]["current"]
    with pytest.raises(UserError, match="compares two models"):
        judge(measured, [a_gate({"speed": True, "keeps": 0.5})])


def test_the_verdict_is_written_for_people_and_programs(tmp_path):
    gates = [
        a_gate({"task": "task", "metric": "rate", "above": 0.5, "why": "people | like it"}),
        a_gate({"speed": True, "keeps": 0.9}),
    ]
    verdict = judge(results(), gates)
    write_verdict(verdict, tmp_path)
    page = (tmp_path / "verdict.md").read_text()
    assert page.startswith("# candidate failed 1 of 2 gates; current stays.\n")
    assert "| passed | task: rate | above 0.500 | 0.700 \\[0.600, 0.800\\], n = 100 | people \\| like it |" in page
    found = "80%, 100.0 s against 80.0 s for the same prompts"
    assert f"| **failed** | speed | at least 90% of the current speed | {found} |  |" in page
    record = json.loads((tmp_path / "verdict.json").read_text())
    assert (record["passed"], [one["passed"] for one in record["outcomes"]]) == (False, [True, False])
    assert "FAILED  speed" in str(verdict)
