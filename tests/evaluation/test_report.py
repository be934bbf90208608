import json
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser

import numpy as np
import pytest

from hfchat.evaluation.bootstrap import difference, estimate, mean
from hfchat.evaluation.examples import choose_examples
from hfchat.evaluation.records import write_records
from hfchat.evaluation.report import table, write_report
from hfchat.evaluation.task import Record
from hfchat.evaluation.verdict import findings, holm, outcome, verdict
from hfchat.results import Difference, Metric, Results

HOSTILE = '</pre><script>alert(1)</script><img src="http://evil.example/x.png"> ``` \n# Heading\n| a | *b* | \u202e'
PROMPT = [{"role": "user", "content": "What is <b>a pipe</b> | in a shell?"}]


def a_task(folder, name, scores, metric=None, headline="quality", answers=None, **entries):
    """An entry of `results.json` with its records, from the scores of each model's examples."""
    metric = metric or Metric("Quality", "higher", ".2f")
    for model, values in scores.items():
        rows = [
            Record(
                i,
                PROMPT,
                ["It joins two commands."],
                answer=(answers or {}).get(model, f"{model} says {i}"),
                ended=True,
                scores={"quality": value},
            )
            for i, value in enumerate(values)
        ]
        write_records(folder / "records" / name / f"{model}.jsonl", rows)
    statistics = {model: mean(values, "mean|case:mixed") for model, values in scores.items()}
    baseline, *others = scores
    return {
        "kind": "answers",
        "title": name.capitalize(),
        "dataset": {"path": "data.jsonl", "sha256": "0", "licenses": ["mit"], "split": "test", "n": len(values)},
        "limits": ["It sees no truth."],
        "group_label": "category",
        "headline": headline,
        "metrics": {"quality": vars(metric)},
        "scores": {model: {"quality": asdict(estimate(one, 200, 0))} for model, one in statistics.items()},
        "groups": {model: {} for model in scores},
        "comparisons": [
            {
                "model": model,
                "baseline": baseline,
                "metrics": {"quality": asdict(difference(statistics[model], statistics[baseline], 200, 0))},
            }
            for model in others
        ],
        "details": {},
        "left_out": {},
        "records": {model: f"records/{name}/{model}.jsonl" for model in scores},
    } | entries


def parse_task(task):
    return Results.parse(the_results([], {"task": task})).tasks["task"]


def the_results(models, tasks):
    return {
        "created": "2026-01-02T03:04:05+00:00",
        "command": "python recipes/evaluate.py --config mine.yaml",
        "versions": {"hfchat": "0.1.0"},
        "hardware": {"device": "CPU (2 threads)", "cpu": None, "cores": 2, "memory_gib": 4.0},
        "bootstrap": {"resamples": 200, "seed": 0},
        "models": {
            name: {
                "path": f"models/{name}",
                "kind": "folder",
                "sha256": "0",
                "licenses": ["mit"],
                "dtype": "float32",
                "chat_template": "f1d0",
                "parameters": 1_000_000,
                "lineage": [],
                "speed": None,
                "peak_memory_bytes": None,
            }
            for name in models
        },
        "tasks": tasks,
    }


@pytest.fixture
def spread():
    """Scores of 30 examples about a mean."""
    return lambda middle: (middle + np.random.default_rng(0).normal(0, 0.05, 30)).tolist()


@pytest.fixture
def compared(tmp_path, spread):
    """Tuned gains in one task, loses in another, and a third shows nothing."""
    rng = np.random.default_rng(1)
    even = {model: rng.normal(0.5, 0.1, 30).tolist() for model in ("base", "tuned")}
    tasks = {
        "chat": a_task(tmp_path, "chat", {"base": spread(0.2), "tuned": spread(0.6)}),
        "safety": a_task(tmp_path, "safety", {"base": spread(0.8), "tuned": spread(0.4)}),
        "translation": a_task(tmp_path, "translation", even),
    }
    return the_results(["base", "tuned"], tasks)


@pytest.fixture
def pages(tmp_path):
    def write(results):
        write_report(Results.parse(results), tmp_path)
        return [(tmp_path / name).read_text() for name in ("report.html", "report.md")]

    return write


def test_the_verdict_says_what_is_better_worse_and_not_shown(compared):
    outcomes = {one.task: one.outcome for one in findings(Results.parse(compared))}
    assert outcomes == {"chat": "better", "safety": "worse", "translation": "not shown to differ"}
    lines = verdict(Results.parse(compared)).splitlines()
    assert lines[0] == "tuned against base, 3 tasks: better in 1, worse in 1, not shown to differ in 1"
    assert re.fullmatch(
        r"  chat         better               Quality 0\.\d\d against 0\.\d\d, "
        r"difference \+0\.40 \[\+0\.\d\d, \+0\.\d\d\], p = 0\.015",
        lines[1],
    )


def test_a_comparison_of_two_engines_says_so(compared, pages):
    scores = compared["tasks"]["chat"]["scores"]
    for model, by in (("base", "engine:transformers|weights:float32"), ("tuned", "engine:llamacpp|weights:q4_0")):
        scores[model]["quality"]["signature"] += f"|{by}"
    compared["models"]["tuned"] |= {"engine": "llamacpp", "weights": "q4_0"}
    said = "computed by engine:llamacpp, weights:q4_0 against engine:transformers, weights:float32"
    (line,) = (line for line in verdict(Results.parse(compared)).splitlines() if said in line)
    assert line.startswith("  chat ")
    for page in pages(compared):
        assert page.count(said) == 1
        assert "llamacpp q4_0" in page


def test_lower_can_be_better_and_either_may_be_neither():
    fell = Difference(-0.2, (-0.3, -0.1), 9)
    assert outcome("higher", fell) == "worse"
    assert outcome("lower", fell) == "better"
    assert outcome(None, fell) == "lower"
    assert outcome("higher", replace(fell, interval=(float("nan"), float("nan")))) == "not shown to differ"
    assert outcome("higher", replace(fell, n=1)) == "not shown to differ"


def test_many_comparisons_need_smaller_p_values(compared, tmp_path, spread):
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    compared["tasks"]["chat"]["comparisons"][0]["metrics"]["quality"]["p_value"] = 0.03
    assert {one.task: one.outcome for one in findings(Results.parse(compared))}["chat"] == "not shown to differ"
    only = compared["tasks"].pop("chat")
    compared["tasks"] = {"chat": only}
    assert findings(Results.parse(compared))[0].outcome == "better"


def test_a_gain_that_another_metric_contradicts_says_so(compared):
    task = compared["tasks"]["chat"]
    task["metrics"]["cost"] = vars(Metric("Cost", "lower"))
    for model in ("base", "tuned"):
        task["scores"][model]["cost"] = {"score": 1.0, "interval": [1, 1], "n": 30, "signature": "cost"}
    task["comparisons"][0]["metrics"]["cost"] = {"difference": 1, "interval": [0.5, 1.5], "p_value": 0.001, "n": 30}
    assert "; but worse by Cost" in verdict(Results.parse(compared))


def test_the_table_is_aligned_and_leaves_out_who_did_not_take_part(compared, tmp_path, spread):
    compared["tasks"]["alone"] = a_task(tmp_path, "alone", {"base": spread(0.3)}, left_out={"tuned": "it cannot"})
    head, *rows = table(Results.parse(compared)).splitlines()
    assert head.split() == ["base", "tuned"]
    assert rows[0].startswith("chat: Quality ↑")
    assert all(row.index("[") > head.index("base") for row in rows)
    assert rows[3].endswith("–")
    assert rows[3].index("–") == head.index("tuned")


def test_only_what_is_better_than_all_others_is_bold(tmp_path, spread, pages):
    scores = {"base": spread(0.2), "tuned": spread(0.6), "larger": spread(0.605)}
    results = the_results(scores, {"chat": a_task(tmp_path, "chat", scores)})
    _, page = pages(results)
    row = next(line for line in page.splitlines() if line.startswith("| Chat<br>Quality"))
    assert "**" not in row  # larger and tuned are not told apart
    scores["larger"] = spread(0.95)
    _, page = pages(the_results(scores, {"chat": a_task(tmp_path, "chat", scores)}))
    row = next(line for line in page.splitlines() if line.startswith("| Chat<br>Quality"))
    assert re.search(r"\| \*\*0\.9\d\*\*[^|]*\|$", row)


class Elements(HTMLParser):
    """All elements with their attributes, and the text."""

    def __init__(self, page):
        super().__init__()
        self.found, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_what_a_model_says_never_becomes_the_report(tmp_path, spread, pages):
    scores = {"base": spread(0.2), "tuned": spread(0.6)}
    task = a_task(tmp_path, "chat", scores, answers={"tuned": HOSTILE})
    html, markdown = pages(the_results(scores, {"chat": task}))
    elements = Elements(html)
    assert not {tag for tag, _ in elements.found} & {"script", "img", "iframe", "link", "object"}
    assert "<script>alert(1)</script>" in elements.text
    assert "What is <b>a pipe</b> | in a shell?" in elements.text
    assert "\u202e" not in html + markdown
    # In Markdown the answer stands in a fence that is longer than its own, to the end.
    fence = re.search(r"^(`{4,})text\n</pre><script>.*?\n\1$", markdown, re.MULTILINE | re.DOTALL)
    assert "# Heading" in fence[0]


def test_the_page_loads_nothing(compared, pages):
    html, _ = pages(compared)
    for tag, attributes in Elements(html).found:
        assert tag not in ("script", "link", "img")
        for key in ("src", "href", "srcset", "data"):
            assert attributes.get(key, "#").startswith("#"), (tag, attributes)
    assert "url(" not in html
    assert "@import" not in html


def test_best_and_worst_examples_are_chosen(tmp_path):
    scores = {"base": [0.5, 0.5, 0.5, 0.5, 0.0, 0.1], "tuned": [0.9, 0.5, 0.1, 0.5, 0.0, 0.1]}
    chosen = [
        (one.why, one.example.index) for one in choose_examples(parse_task(a_task(tmp_path, "chat", scores)), tmp_path)
    ]
    assert chosen == [
        ("Largest gain of tuned against base", 0),
        ("Largest loss of tuned against base", 2),
        ("Worst of all models together", 4),
        ("Worst of all models together", 5),
    ]
    lower = a_task(tmp_path, "chat", scores, metric=Metric("Loss", "lower"))
    chosen = [(one.why, one.example.index) for one in choose_examples(parse_task(lower), tmp_path)]
    assert chosen[:2] == [("Largest gain of tuned against base", 2), ("Largest loss of tuned against base", 0)]


def test_long_texts_are_folded(tmp_path, spread, pages):
    scores = {"base": spread(0.2), "tuned": spread(0.6)}
    task = a_task(tmp_path, "chat", scores, answers={"tuned": "word " * 10_000})
    html, markdown = pages(the_results(scores, {"chat": task}))
    assert "the whole of 50,000 characters" in html
    assert "<details><summary>the whole of 50,000 characters</summary>" in markdown
    assert "word " * 5_000 not in html + markdown


def test_a_single_model_is_compared_with_nothing(tmp_path, spread, pages):
    results = the_results(["only"], {"chat": a_task(tmp_path, "chat", {"only": spread(0.5)})})
    assert verdict(Results.parse(results)).startswith("Nothing was compared")
    html, markdown = pages(results)
    assert "Nothing was compared" in html
    assert "**Nothing was compared:**" in markdown
    assert "<details><summary>Best: example" in markdown
    assert "<details><summary>Worst: example" in markdown


def test_what_is_not_known_is_said(tmp_path, spread, compared, pages):
    compared["tasks"]["alone"] = a_task(
        tmp_path, "alone", {"base": spread(0.3)}, left_out={"tuned": "a server gives no likelihoods"}, dataset=None
    )
    for page in pages(compared):
        assert "did not take part: a server gives no likelihoods." in page
        assert "what it was trained on is unknown here" in page
        assert "whether the models were trained on these examples was not checked" in page
        assert "generated nothing" in page


def test_lineage_contamination_and_groups_are_shown(tmp_path, compared, pages):
    compared["models"]["tuned"]["lineage"] = [
        {
            "stage": "finetune",
            "path": str(tmp_path / "far" / "away" / "model"),
            "finished": "2026-01-01T00:00:00+00:00",
            "duration_s": 7200.0,
            "command": ["finetune.py", "--config", f"{tmp_path}/far/away/mine.yaml", "--lr", "1e-4"],
            "inputs": {"conversations": {"path": "chats.jsonl", "sha256": "0", "licenses": ["cc0-1.0"]}},
        }
    ]
    task = compared["tasks"]["chat"]
    del task["dataset"]["split"]  # hfchat's own prompts have none
    task["contamination"] = {"tuned": {"status": "checked", "sentence": "2 of 30 prompts are in chats.jsonl."}}
    task["groups"] = {"base": {"<age>": task["scores"]["base"]}, "tuned": {"<age>": task["scores"]["tuned"]}}
    task["details"] = {"outcomes": {"tuned": {"wins": 12, "ties": 3}}, "version": "7.5"}
    html, markdown = pages(compared)
    for page in (html, markdown):
        assert "2.0 h" in page
        assert "away/mine.yaml" in page
        assert "--lr 1e-4" in page
        assert "chats.jsonl" in page
        assert str(tmp_path) not in page  # nothing of the machine
        assert "2 of 30 prompts are in chats.jsonl." in page
        assert "&lt;age&gt;" in page
    assert "| tuned | 12 | 3 |" in markdown
    assert "`mean\\|case:mixed`" in markdown
    assert html.count("<rect") == 2


def test_a_score_that_is_no_number_is_a_dash(compared, pages):
    nan = float("nan")
    compared["tasks"]["chat"]["scores"]["tuned"]["quality"] |= {"score": nan, "interval": [nan, nan]}
    compared["tasks"]["chat"]["comparisons"][0]["metrics"]["quality"] |= {"difference": nan, "interval": [nan, nan]}
    results = json.loads(json.dumps(compared))
    html, _ = pages(results)
    assert "nan" not in html
    assert {one.task: one.outcome for one in findings(Results.parse(results))}["chat"] == "not shown to differ"
