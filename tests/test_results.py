"""`results.json` is written and read by one shape, and what is not of it is refused in one line."""

import json

import pytest

from hfchat.errors import UserError
from hfchat.results import (
    AskedData,
    Comparison,
    Contamination,
    Difference,
    Estimate,
    Hardware,
    Metric,
    ModelResult,
    Results,
    Speed,
    TaskResult,
)

MODEL = ModelResult("outputs/model", "0", ["mit"], "folder", "float32", None, speed=Speed(2.5, 10, 4.0, 8))
TASK = TaskResult(
    kind="answers",
    title="Chat",
    dataset=AskedData("rows.jsonl", "0", ["mit"], 2, "test"),
    limits=["It sees no truth."],
    group_label="category",
    headline="quality",
    metrics={"length": Metric("Length", None), "quality": Metric("Quality")},
    scores={"base": {"quality": Estimate(0.5, (0.25, 0.75), 2, "mean", 2)}, "tuned": {}},
    groups={"base": {"age": {"quality": Estimate(0.5, (0.25, 0.75), 1)}}},
    comparisons=[Comparison("tuned", "base", {"quality": Difference(0.125, (-0.5, 0.5), 2, 1.0, 2)})],
    details={"outcomes": {"tuned": {"wins": 1}}},
    contamination={"base": Contamination("unknown", "Not known.")},
    records={"base": "records/chat/base.jsonl"},
)
RESULTS = Results(
    created="2026-01-02T03:04:05+00:00",
    command="python recipes/evaluate.py",
    hardware=Hardware("CPU"),
    models={"base": MODEL, "tuned": MODEL},
    tasks={"chat": TASK},
)


def test_what_is_written_is_read_again(tmp_path):
    RESULTS.write(tmp_path)
    assert Results.read("results", tmp_path) == RESULTS
    assert RESULTS.metrics() == {"chat": {"base": {"quality": 0.5}, "tuned": {}}}


def test_data_without_splits_has_no_key_for_one(tmp_path):
    of_probe = TaskResult(**{**vars(TASK), "dataset": AskedData("probe.yaml", "0", ["Apache-2.0"], 2)})
    Results(models={}, tasks={"with": TASK, "without": of_probe}).write(tmp_path)
    tasks = json.loads((tmp_path / "results.json").read_text())["tasks"]
    assert tasks["with"]["dataset"]["split"] == "test"
    assert "split" not in tasks["without"]["dataset"]


def test_a_file_of_before_opens(tmp_path):
    """It counted no examples with a score, compared nothing with the training data, and named no records."""
    RESULTS.write(tmp_path)
    content = json.loads((tmp_path / "results.json").read_text())
    (task,) = content["tasks"].values()
    for key in ("contamination", "left_out", "records"):
        del task[key]
    del task["scores"]["base"]["quality"]["scored"]
    del task["comparisons"][0]["metrics"]["quality"]["p_value"]
    read = Results.parse(content).tasks["chat"]
    assert read.score("base", "quality").scored is None
    assert read.comparison("tuned").metrics["quality"].p_value is None
    assert read.contamination == read.left_out == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"results .*: has no results.json; recipes/evaluate.py makes it"),
        ("{", r"results .*: has no results.json; recipes/evaluate.py makes it"),
        (
            '{"models": {}}',
            r"not one that this version reads \(tasks: field required\); evaluate again",
        ),
        ('{"models": {}, "tasks": {"chat": {"kind": 1}}}', r"\(tasks.chat.kind: input should be a valid string\)"),
    ],
)
def test_what_is_no_evaluation_is_refused_in_one_line(tmp_path, text, message):
    if text is not None:
        (tmp_path / "results.json").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        Results.read("results", tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("headline", "decisive"), [("quality", "quality"), ("length", "length"), (None, "quality"), ("gone", "quality")]
)
def test_a_task_is_judged_by_its_headline_or_by_what_can_be_better(headline, decisive):
    assert TaskResult(**{**vars(TASK), "headline": headline}).decisive == decisive
    assert TaskResult(**{**vars(TASK), "metrics": {}}).decisive is None
