"""The two runs that end in a chat model of one's own: whole, and small enough with `--toy` for any machine."""

import json
from pathlib import Path

import pytest

from hfchat.doctor.recipes import find_recipe
from hfchat.run import RunOptions, stages_of
from tests.conftest import ROOT

ALWAYS = ["prepare_data", "train_tokenizer", "pretrain", "finetune", "evaluate"]


@pytest.mark.parametrize(
    ("run", "recipes"),
    [("own-small", ALWAYS), ("own-gpu", [*ALWAYS[:3], "prepare_conversations", "finetune", "align", "evaluate"])],
)
def test_each_stage_takes_its_toy_settings_and_needs_no_network(run, recipes, monkeypatch):
    monkeypatch.chdir(ROOT)
    stages, output_dir, notes = stages_of(RunOptions(f"recipes/configs/{run}", toy=True))
    assert [stage.recipe for stage in stages] == recipes
    for stage in stages:
        arguments = stage.command[stage.command.index("--config") :]
        parsed = find_recipe(None, stage.recipe).parse(arguments)[0]
        assert parsed.output_dir.startswith(output_dir)
        # What is read is in the repository, installed, or made by a stage before.
        text = str({key: value for key, value in stage.settings.items() if key != "output_dir"})
        assert not [name for name in ("HuggingFace", "codeparrot", "openai-community", "Salesforce") if name in text]
    assert any(line.strip().startswith("evaluate: ") for line in notes)


def test_the_small_run_learns_nothing_that_another_model_said(monkeypatch):
    monkeypatch.chdir(ROOT)
    stages, _, _ = stages_of(RunOptions("recipes/configs/own-small"))
    settings = {stage.recipe: stage.settings for stage in stages}
    assistant, talk = settings["finetune"]["dataset_mixture"]
    assert assistant["where"] == {"kind": ["fact", "unknown"]}
    assert talk["path"] == "recipes/data/small_talk"
    assert settings["finetune"]["model_name_or_path"] == settings["pretrain"]["output_dir"]
    # What that model said is of another kind, also within a conversation.
    rows, replayed = (_rows(f"{assistant['path']}/{name}.jsonl") for name in ("train", "replayed"))
    its_words = {turn["content"] for row in replayed for turn in row["messages"] if turn["role"] == "assistant"}
    learned = [turn["content"] for row in rows if row["kind"] != "ordinary" for turn in row["messages"]]
    assert its_words
    assert not its_words.intersection(learned)


def _rows(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
