import pytest

from hfchat.evaluation.bootstrap import mean
from hfchat.evaluation.predictions import Prediction
from hfchat.evaluation.report import METRICS, report, table, verdict
from hfchat.evaluation.results import measure, score, tokens_per_second

PROMPT = [{"role": "user", "content": "What is | a pipe?"}]


def _predictions(answers, ended=True):
    return [
        Prediction(index, PROMPT, "It joins two commands.", answer, len(answer), ended, 12.0, 6, 0.5)
        for index, answer in enumerate(answers)
    ]


@pytest.fixture
def predictions():
    bad = ["<!-- no idea", "", "# Yes\n- one\n1. two `x`\n\nIt ends\nin __init__ of *snake_case*"]
    return {"base": _predictions(bad, ended=False), "tuned": _predictions(["It joins two commands."] * 3)}


@pytest.fixture
def results(predictions):
    scores, comparison = score({name: measure(rows, "f1d0", "float32") for name, rows in predictions.items()}, 100, 0)
    source = {"path": "data", "sha256": "0", "licenses": ["apache-2.0"]}
    training = {"stage": "finetune", "inputs": {"conversations": source | {"path": "train.jsonl"}}}
    return {
        "dataset": source | {"split": "validation", "n": 3},
        "generation": {"device": "CPU", "dtype": "float32", "max_new_tokens": 9, "batch_size": 2},
        "bootstrap": {"resamples": 100, "seed": 0},
        "models": {
            name: source
            | {"metrics": scores[name], "training": training if name == "tuned" else None, "chat_template": "f1d0"}
            | {"tokens_per_second": tokens_per_second(rows)}
            for name, rows in predictions.items()
        },
        "comparison": comparison,
    }


def test_the_last_model_is_compared_with_the_first(results):
    assert (results["comparison"]["model"], results["comparison"]["baseline"]) == ("tuned", "base")
    before, after = (results["models"][name]["metrics"]["rougeL"]["score"] for name in ("base", "tuned"))
    assert results["comparison"]["metrics"]["rougeL"]["difference"] == pytest.approx(after - before)
    assert verdict(results).startswith(
        "**tuned's answers overlap more with the references than base's**: ROUGE-L 1.00 [1.00, 1.00] against 0.0"
    )


def test_a_difference_within_its_interval_is_not_called_one(results):
    results["comparison"]["metrics"]["rougeL"]["interval"] = [-0.1, 1.0]
    assert "**tuned and base are not shown to differ**" in verdict(results)
    results["comparison"]["metrics"]["rougeL"]["interval"] = [-0.3, -0.1]
    assert "overlap less with the references" in verdict(results)


def test_one_model_has_no_comparison():
    statistics = {"perplexity": mean([1.0, 2.0], "mean")}
    scores, comparison = score({"only": statistics}, 10, 0)
    assert comparison is None
    assert scores["only"]["perplexity"]["score"] == pytest.approx(1.5)


def test_the_table_has_a_row_per_metric_and_is_aligned(results):
    lines = table(results).splitlines()
    assert len(lines) == 2 + len(METRICS)
    assert len(set(map(len, lines))) == 1
    assert [cell.strip() for cell in lines[0].split("|")[2:-1]] == ["base", "tuned", "tuned - base"]
    assert "| Perplexity ↓" in lines[2]
    assert "7.39 [7.39, 7.39]" in lines[2]  # e^(12/6)


def test_the_report_says_what_was_compared_and_how(results, predictions):
    text = report(results, predictions, "python recipes/evaluate.py")
    assert text.startswith("# Evaluation: tuned against base\n")
    assert "3 held-out conversations of `data`, split `validation` (licence: apache-2.0)" in text
    assert "made by the stage `finetune` from conversations `train.jsonl` (apache-2.0)." in text
    assert "no lineage" in text
    assert "`perplexity|tokens:18|target:answer+end-of-turn|context:prompt|template:f1d0|dtype:float32`" in text
    assert "```bash\npython recipes/evaluate.py\n```" in text


def test_answers_are_shown_letter_by_letter(results, predictions):
    answers = report(results, predictions, "").split("## Answers")[1]
    assert answers.count("\n### ") == 3
    assert "> What is \\| a pipe?" in answers
    assert "**base** (cut at the longest answer)\n\n> \\<!-- no idea" in answers
    assert "> *(nothing)*" in answers
    assert (
        "> \\# Yes\\\n> \\- one\\\n> 1. two \\`x\\`\n>\n> It ends\\\n> in \\_\\_init\\_\\_ of \\*snake_case\\*\n"
        in answers
    )
