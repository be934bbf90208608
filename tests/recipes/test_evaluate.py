import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from hfchat.config import parse
from hfchat.errors import UserError
from hfchat.evaluation.local_model import LocalModel
from tests.servers.chat_api import chat_api

ROOT = Path(__file__).parents[2]
ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"Question {i}?"},
            {"role": "assistant", "content": f"It is {'very ' * i}easy."},
        ]
    }
    for i in range(6)
]


@pytest.fixture(scope="module")
def recipe():
    """The recipe under another name: `evaluate` is a library."""
    spec = importlib.util.spec_from_file_location("recipes_evaluate", ROOT / "recipes" / "evaluate.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(chat_model, tmp_path_factory):
    """Two models, a dataset and a config."""
    folder = tmp_path_factory.mktemp("evaluate")
    shutil.copytree(chat_model, folder / "model-0")
    shutil.copytree(chat_model, folder / "model-1")
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(chat_model)).save_pretrained(folder / "model-1")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    settings = {
        "models": [f"base={folder}/model-0", f"tuned={folder}/model-1"],
        "dataset_name": f"{folder}/rows.jsonl",
        "max_new_tokens": 8,
        "per_device_eval_batch_size": 4,
        "bootstrap_resamples": 50,
        "output_dir": f"{folder}/evaluation",
    }
    (folder / "evaluate.yaml").write_text(yaml.safe_dump(settings))
    return folder


def test_the_recipe_end_to_end(recipe, folder, tokenizer, run_recipe, capsys):
    first = run_recipe("evaluate", "--config", folder / "evaluate.yaml")
    output = folder / "evaluation"
    assert "ROUGE-L" in first.stdout
    assert f"report: {output}/report.html" in first.stdout
    assert "conversations: base: 100%" in first.stderr
    results = json.loads((output / "results.json").read_text())
    task = results["tasks"]["conversations"]
    for name in ("base", "tuned"):
        scores = task["scores"][name]
        for metric in ("perplexity", "bits_per_byte", "bleu", "chrf", "rouge1", "rouge2", "rougeL", "meteor"):
            assert {"score", "interval", "n", "signature"} <= scores[metric].keys()
            assert scores[metric]["n"] == 6
        lines = (output / task["records"][name]).read_text().splitlines()
        assert [json.loads(line)["index"] for line in lines] == [0, 1, 2, 3, 4, 5]
        assert results["models"][name]["speed"]["answer_tokens"] > 0
        assert results["models"][name]["parameters"] > 0
        assert (output / "cards" / f"{name}.md").read_text().startswith("---\n")
    # A model that knows nothing is as surprised as a die with as many sides as there are tokens.
    assert task["scores"]["base"]["perplexity"]["score"] == pytest.approx(len(tokenizer), rel=0.2)
    assert task["comparisons"][0]["baseline"] == "base"
    lineage = json.loads((output / "lineage.json").read_text())
    assert lineage["stage"] == "evaluate"
    assert lineage["metrics"]["conversations"]["base"]["rougeL"] == task["scores"]["base"]["rougeL"]["score"]
    assert (output / "report.md").read_text().startswith("# ")
    assert "<html" in (output / "report.html").read_text()

    written = (output / "lineage.json").read_bytes()
    recipe.main(["--config", str(folder / "evaluate.yaml")])
    assert "nothing to do" in capsys.readouterr().out
    assert (output / "lineage.json").read_bytes() == written


def test_two_processes_have_the_same_results_as_one(folder, run_recipe):
    common = ["--config", folder / "evaluate.yaml", "--dtype", "float32", "--output_dir"]
    run_recipe("evaluate", *common, folder / "one")
    run_recipe("evaluate", *common, folder / "two", launch="cpu_two_processes")
    one, two = (json.loads((folder / name / "results.json").read_text()) for name in ("one", "two"))
    for name, scores in one["tasks"]["conversations"]["scores"].items():
        for metric, estimate in scores.items():
            assert two["tasks"]["conversations"]["scores"][name][metric]["score"] == pytest.approx(estimate["score"])


def test_bad_input_is_one_line_and_status_2(folder, run_recipe):
    bad = run_recipe("evaluate", "--config", folder / "evaluate.yaml", "--models", "base", check=False)
    assert bad.returncode == 2
    last = bad.stderr.strip().splitlines()[-1]
    assert last == "error: models: 'base' must be name=folder, name=hub-id or name=URL, the name a word"
    assert "Traceback" not in bad.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "=x"], "models: '=x' must be name=folder"),
        (["--models", "a/b=x"], "models: 'a/b=x' must be name=folder"),
        (["--models", "a={folder}/model-0", "a={folder}/model-1"], "models: the name 'a' is given twice"),
        (["--models", "a={folder}/none"], "none: no such model folder"),
        (["--max_samples", "0"], "max_samples: must be at least 1, not 0"),
        (["--dtype", "int8"], "dtype"),
        (["--engine", "llamcpp"], "engine"),
        (["--weights", "q8_0"], "weights: is for the engines llamacpp and vllm; for transformers there is `dtype`"),
        (["--engine_args=--x"], "engine_args: is for the engines llamacpp and vllm"),
        (["--engine", "llamacpp", "--weights", "q9"], "--weights q9: --engine llamacpp has f32, "),
        (["--dataset_name", "{folder}/no-answer.jsonl"], "no-answer.jsonl \\(validation\\) row 2: the last"),
        (["--dataset_name", "{folder}/model-0"], "dataset_name .*model-0"),
        (["--tasks", '{{"kind": "answers", "dataset_name": "x"}}'], "dataset_name: stands in place of tasks"),
    ],
)
def test_bad_input_is_said_before_a_model_is_loaded(recipe, folder, monkeypatch, arguments, message):
    monkeypatch.setattr(LocalModel, "_load", lambda self: pytest.fail("loaded a model"))
    rows = [ROWS[0], {"messages": ROWS[1]["messages"][:1]}]
    (folder / "no-answer.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = [argument.format(folder=folder) for argument in arguments]
    with pytest.raises(UserError, match=message) as error:
        recipe.main(["--config", str(folder / "evaluate.yaml"), "--output_dir", str(folder / "bad"), *arguments])
    assert "\n" not in str(error.value)
    assert not list(folder.glob("bad*"))


def test_a_model_without_a_chat_template_is_refused(recipe, folder, monkeypatch):
    monkeypatch.setattr(LocalModel, "_load", lambda self: pytest.fail("loaded a model"))
    base = folder / "base-model"
    tokenizer = AutoTokenizer.from_pretrained(folder / "model-0")
    tokenizer.chat_template = None
    tokenizer.save_pretrained(base)
    arguments = ["--models", f"a={folder}/model-0", f"b={base}", "--output_dir", str(folder / "no-template")]
    with pytest.raises(UserError, match="has no chat template"):
        recipe.main(["--config", str(folder / "evaluate.yaml"), *arguments])


def test_the_shipped_configs_parse(recipe):
    config = ROOT / "recipes" / "configs" / "demo" / "evaluate.yaml"
    (arguments,) = parse(recipe.EvaluateArguments, argv=["--config", str(config)])
    assert [entry.partition("=")[0] for entry in arguments.models] == ["base", "fine-tuned"]
    assert arguments.output_dir == "outputs/demo/evaluation"


def test_a_suite_of_every_kind_ends_in_a_report(recipe, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    pairs = ["sent_more,sent_less,stereo_antistereo,bias_type", "He is old.,He is young.,stereo,age"]
    (folder / "pairs.csv").write_text("\n".join([*pairs, "She is old.,She is young.,antistereo,gender"]) + "\n")
    (folder / "texts.txt").write_text("The recipe reads files.\n\nA tokenizer turns text into numbers.")
    tasks = [
        {"kind": "answers", "name": "chat", "dataset_name": f"{folder}/rows.jsonl", "max_new_tokens": 2},
        {"kind": "perplexity", "dataset_name": f"{folder}/texts.txt", "separator": "\n\n"},
        {"kind": "crows_pairs", "dataset_name": f"{folder}/pairs.csv"},
        {"kind": "continuations", "max_templates": 1, "max_new_tokens": 2},
        {"kind": "refusal", "max_new_tokens": 2},
        {"kind": "judge", "of": "chat", "judge": ""},
    ]
    with chat_api(lambda _: "I prefer neither. [[C]]") as server:
        tasks[-1]["judge"] = server.url
        arguments = ["--models", f"a={folder}/model-0", f"b={folder}/model-1", "--output_dir", str(folder / "suite")]
        recipe.main([*arguments, "--tasks", *map(json.dumps, tasks), "--bootstrap_resamples", "20"])
    names = [task.get("name", task["kind"]) for task in tasks]
    results = json.loads((folder / "suite" / "results.json").read_text())
    assert list(results["tasks"]) == names
    page = (folder / "suite" / "report.html").read_text()
    for name in names:
        assert name in page
        assert name in (folder / "suite" / "report.md").read_text()
    assert "a against b" in capsys.readouterr().out.replace("b against a", "a against b")
    assert str(folder) not in (folder / "suite" / "cards" / "a.md").read_text()
