import json
import math
import subprocess
import sys

import pytest

from hfchat.doctor import examination
from hfchat.doctor.examination import examine
from hfchat.doctor.machine import Machine
from hfchat.doctor.recipes import RECIPES, find_recipe
from hfchat.doctor.trial import Calibration
from hfchat.errors import UserError
from tests.conftest import ROOT


@pytest.fixture
def pretraining(corpus, tokenizer_folder, tmp_path):
    return [
        "--dataset_name", str(corpus), "--tokenizer_name", str(tokenizer_folder), "--depth", "1", "--block_size", "32",
        "--bf16", "false", "--use_cpu", "true", "--max_steps", "4", "--per_device_train_batch_size", "4",
        "--output_dir", str(tmp_path / "base"),
    ]  # fmt: skip


@pytest.fixture
def conversations(tmp_path):
    """Writes the two splits of a dataset of conversations, and returns its folder."""

    def write(train, test):
        for split, rows in (("train", train), ("validation", test)):
            text = "".join(json.dumps({"messages": row}) + "\n" for row in rows)
            (tmp_path / f"{split}.jsonl").write_text(text)
        return tmp_path

    return write


def chat(question, answer="It is so."):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def finetuning(model, data, tmp_path, *more):
    return [
        "--model_name_or_path", str(model), "--dataset_name", str(data), "--output_dir", str(tmp_path / "out"),
        "--bf16", "false", "--use_cpu", "true", "--max_length", "64", *more,
    ]  # fmt: skip


def line(report, name):
    [found] = [line for section in report.sections for line in section.lines if line.name == name]
    return found


def forbid_calibration(*args, **kwargs):
    raise AssertionError("nothing may be run")


def test_every_shipped_yaml_is_known_by_its_name():
    for file in (ROOT / "recipes" / "configs").rglob("*.yaml"):
        if "publish" in (file.parent.name, file.stem):  # has a dry run of its own
            continue
        recipe = find_recipe(str(file), None)
        assert recipe.script.is_file()


def test_a_yaml_of_another_name_needs_the_recipe():
    with pytest.raises(UserError, match="--recipe"):
        find_recipe("mine.yaml", None)
    assert find_recipe("mine.yaml", "align").name == "align"
    with pytest.raises(UserError, match="pretrain"):
        find_recipe("mine.yaml", "bake")


def test_a_yaml_that_is_not_there_is_said_to_be_missing():
    with pytest.raises(UserError, match=r"--config mine\.yaml: no such file"):
        examine([], config="mine.yaml")


def test_a_pretraining_that_fits(pretraining):
    report = examine(pretraining, recipe="pretrain", calibration=False)
    assert report.ok
    assert report.verdict.startswith("will fit: ")
    memory = report.figures["memory"]
    parts = ("libraries", "weights", "gradients", "optimizer", "activations", "slack")
    assert memory["peak"] >= sum(memory[part] for part in parts) > memory["libraries"] > 0
    assert report.figures["data"]["train_rows"] == 54
    assert json.loads(report.as_json())["ok"]


def test_a_batch_that_cannot_fit_is_refused_with_one_that_fits(pretraining, monkeypatch):
    monkeypatch.setattr(examination, "calibrate", forbid_calibration)
    monkeypatch.setattr(Machine, "here", classmethod(lambda cls, use_cpu: cls("CPU", 4 * 2**30)))
    report = examine([*pretraining, "--per_device_train_batch_size", "1048576"], recipe="pretrain")
    peak = line(report, "peak by these")
    assert peak.verdict == "fails"
    assert "it fits with per_device_train_batch_size" in peak.advice
    settings = peak.advice.split("with ")[1].split(" (")[0]
    smaller = [part for setting in settings.split(", ") for part in ("--{} {}".format(*setting.split())).split()]
    assert examine([*pretraining, *smaller], recipe="pretrain", calibration=False).ok
    assert not report.ok
    assert "peak by these" in report.verdict


def test_a_model_that_no_setting_makes_fit_is_said_to(pretraining, monkeypatch):
    monkeypatch.setattr(examination, "calibrate", forbid_calibration)
    monkeypatch.setattr(Machine, "here", classmethod(lambda cls, use_cpu: cls("CPU", 4 * 2**30)))
    report = examine([*pretraining, "--depth", "40"], recipe="pretrain")  # three billion weights
    assert "no one setting is enough" in line(report, "peak by these").advice


def test_checkpoints_that_the_disk_has_no_room_for(pretraining, monkeypatch):
    monkeypatch.setattr(examination, "free_disk_bytes", lambda folder: 30 * 2**20)
    monkeypatch.setattr(examination, "calibrate", forbid_calibration)
    more = ["--save_steps", "1", "--save_total_limit", "10", "--max_steps", "100"]
    report = examine([*pretraining, *more], recipe="pretrain")
    assert line(report, "in all").verdict == "fails"
    assert "save_total_limit 1" in line(report, "in all").advice


def test_a_fine_tuning_shows_its_labels_and_finds_what_is_wrong_with_the_data(chat_model, conversations, tmp_path):
    data = conversations([chat("What?"), chat("what? "), chat("Who?")], [chat("Where?"), chat("Who?", "Another.")])
    report = examine(finetuning(chat_model, data, tmp_path), recipe="finetune", calibration=False)
    assert report.ok
    text = str(report)
    assert "⟦It is so.<|im_end|>" in text
    assert line(report, "duplicates in train").verdict == "warning"
    assert line(report, "others with the same first user turn").verdict == "warning"
    memory = report.figures["memory"]
    assert memory["optimizer"] == 2 * memory["gradients"] > 0  # of the adapter alone
    assert memory["weights"] > 4 * memory["gradients"]


def test_a_mixture_is_examined_as_a_whole(chat_model, conversations, tmp_path):
    data = conversations([chat(f"What is {number}?") for number in range(8)], [chat("Where?")])
    more = "".join(json.dumps({"messages": chat(f"Who {i}?")}) + "\n" for i in range(40))
    (tmp_path / "more.jsonl").write_text(more)
    entries = [{"path": str(data), "epochs": 9}, {"path": str(tmp_path / "more.jsonl")}]
    settings = finetuning(chat_model, data, tmp_path, "--packing", "false", "--num_train_epochs", "2")
    settings[2:4] = ["--dataset_mixture", *map(json.dumps, entries)]
    report = examine(settings, recipe="finetune", calibration=False)
    assert report.ok
    assert line(report, "rows").value == "46 to train on, 3 to evaluate on"
    assert f"warning: {data}: each conversation is seen 18 times" in str(report)
    assert "to learn from: 110 conversations" in str(report), "9 times 8, and 38"


@pytest.mark.parametrize(
    ("train", "test", "name"),
    [
        ([chat("What?"), chat("Who?")], [chat("Who? ")], "evaluation rows that are trained on"),
        ([chat("What?"), chat("Who?", " ")], [chat("Where?")], "conversations with an empty turn"),
        ([chat("What?"), [{"role": "user", "content": "Who?"}]], [chat("Where?")], "labels"),
    ],
)
def test_a_failed_check_ends_the_examination(train, test, name, chat_model, conversations, tmp_path, monkeypatch):
    monkeypatch.setattr(examination, "calibrate", forbid_calibration)
    report = examine(finetuning(chat_model, conversations(train, test), tmp_path), recipe="finetune")
    assert line(report, name).verdict == "fails"
    assert not report.ok
    assert name in report.verdict


def test_sources_that_are_not_there_are_named(tmp_path):
    (tmp_path / "a.txt").write_text("Text.")
    sources = [json.dumps({"path": str(tmp_path / name), "license": "CC0-1.0"}) for name in ("a.txt", "b.txt")]
    report = examine(["--sources", *sources, "--output_dir", str(tmp_path / "out")], recipe="prepare_data")
    assert line(report, f"source {tmp_path / 'a.txt'}").verdict == "ok"
    assert line(report, f"source {tmp_path / 'b.txt'}").verdict == "fails"


def test_the_data_of_every_task_and_the_models_are_looked_at(chat_model, tmp_path):
    (tmp_path / "rows.jsonl").write_text("{}")
    tasks = [{"name": name, "dataset_name": str(tmp_path / f"{name}.jsonl")} for name in ("rows", "gone")]
    models = [f"a={chat_model}", f"b={tmp_path}/none", "c=http://localhost:1/v1"]
    arguments = ["--tasks", *map(json.dumps, tasks), "--models", *models, "--output_dir", str(tmp_path / "out")]
    report = examine(arguments, recipe="evaluate")
    verdicts = {name: line(report, name).verdict for name in ("data of rows", "data of gone", "model b", "model c")}
    assert verdicts == {"data of rows": "warning", "data of gone": "fails", "model b": "fails", "model c": ""}


def test_the_calibration_measures_real_steps_and_leaves_nothing(pretraining, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    report = examine(pretraining, recipe="pretrain")
    assert report.ok, str(report)
    time = report.figures["time"]
    assert 0 < time["total"] < math.inf
    assert set(time["calibration"]) == set(Calibration.__dataclass_fields__)
    assert time["calibration"]["max_steps"] == 4
    assert time["calibration"]["evaluation_seconds"] > 0
    assert time["calibration"]["closing_seconds"] > 0
    assert report.figures["memory"]["calibrated_peak"] > 2**27
    assert not list(tmp_path.iterdir())


def test_a_fine_tuning_is_measured_until_its_certificate(chat_model, conversations, tmp_path):
    data = conversations([chat(f"What is {number}?") for number in range(8)], [chat("Where?"), chat("When?")])
    settings = ["--max_steps", "3", "--sample_answers", "2", "--lora_r", "2", "--per_device_train_batch_size", "2"]
    report = examine(finetuning(chat_model, data, tmp_path, *settings), recipe="finetune")
    calibration = report.figures["time"]["calibration"]
    assert calibration["measured_steps"] == 3
    assert min(calibration[part] for part in ("samples_seconds", "evaluation_seconds", "closing_seconds")) > 0
    assert not (tmp_path / "out").exists()


def test_a_preference_tuning_is_measured_until_its_certificate(chat_model, tmp_path):
    for split, numbers in (("train", range(8)), ("validation", range(8, 12))):
        rows = [
            {
                "prompt": [{"role": "user", "content": f"What is {number}?"}],
                "chosen": [{"role": "assistant", "content": f"It is {number}."}],
                "rejected": [{"role": "assistant", "content": "Who asks?"}],
            }
            for number in numbers
        ]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = ["--max_steps", "2", "--lora_r", "2", "--sampled_prompts", "1", "--sampled_tokens", "4"]
    report = examine(finetuning(chat_model, tmp_path, tmp_path, *settings), recipe="align")
    calibration = report.figures["time"]["calibration"]
    assert min(calibration[part] for part in ("step_seconds", "evaluation_seconds", "closing_seconds")) > 0


def test_what_stops_the_recipe_is_said(pretraining, monkeypatch, tmp_path):
    broken = find_recipe(None, "pretrain")
    script = tmp_path / "nothing.py"
    script.write_text(
        "from hfchat.training.pretrain_arguments import PretrainArguments\nARGUMENTS = (PretrainArguments,)\n"
        "if __name__ == '__main__':\n    raise SystemExit('error: nothing.py stops')\n"
    )
    monkeypatch.setattr(type(broken), "script", script)
    report = examine(pretraining, recipe="pretrain")
    assert line(report, "calibration").verdict == "fails"
    assert line(report, "calibration").value == "nothing.py stops"


def test_an_unknown_key_is_one_line_and_status_2():
    script = (
        "import argparse\nfrom hfchat.doctor.command import add_arguments, handler\nfrom hfchat.errors import run\n"
        "parser = argparse.ArgumentParser(allow_abbrev=False)\nadd_arguments(parser)\n"
        "run(lambda: handler(*parser.parse_known_args()))"
    )
    arguments = ["--config", "recipes/configs/demo/pretrain.yaml", "--block_sise", "64"]
    command = [sys.executable, "-c", script, *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert finished.returncode == 2
    said = finished.stderr.splitlines()[-1]
    assert said == "error: command line: unknown key 'block_sise'; did you mean 'block_size'?"


def test_every_recipe_can_be_parsed():
    assert {recipe.name for recipe in RECIPES} == {file.stem for file in (ROOT / "recipes").glob("*.py")} - {"publish"}
