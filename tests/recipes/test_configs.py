"""Every shipped YAML is one that its program takes."""

import dataclasses
import importlib
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from hfchat.config import StageArguments, parse
from recipes.data import tool_conversations
from tests.conftest import ROOT, SHARED_DATA

CONFIGS = sorted((ROOT / "recipes" / "configs").glob("*/*.yaml"))
# Folders with the settings of one recipe for several corpora; elsewhere a file is named like its recipe.
RECIPES = {
    "data": "prepare_data",
    "conversations": "prepare_conversations",
    "tokenizers": "train_tokenizer",
    "align": "align",
    "publish": "publish",
}


def config_classes(recipe: str) -> list[type]:
    """What the recipe's `main` parses."""
    module = importlib.import_module(f"recipes.{recipe}")
    return [
        value
        for name, value in vars(module).items()
        if dataclasses.is_dataclass(value) and name.endswith("Arguments") and value is not StageArguments
    ]


def names_absent_data(file: Path) -> bool:
    return "../shared/" in file.read_text(encoding="utf-8") and not SHARED_DATA.exists()


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_a_recipe_takes_its_configs(file, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    if file.parent.name == "tools":  # its sources are what a program writes
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", ["program", "--output-dir", "outputs/tools/written"])
        tool_conversations.main()
    if names_absent_data(file):
        pytest.skip("names files of the shared data, which are not here")
    configs = parse(*config_classes(RECIPES.get(file.parent.name, file.stem)), argv=["--config", str(file)])
    assert any(config.asked for config in configs)


@pytest.mark.parametrize("file", sorted((ROOT / "accelerate_configs").glob("*.yaml")), ids=lambda file: file.stem)
def test_accelerate_takes_its_configs(file: Path):
    assert load_config_from_file(str(file)).num_processes >= 1


def test_a_key_of_another_stage_is_refused(tmp_path):
    file = tmp_path / "pretrain.yaml"
    file.write_text("tokenizer_name: tokenizer\noutput_dir: out\nlora_r: 8\n")
    with pytest.raises(Exception, match="unknown key 'lora_r'"):
        parse(*config_classes("pretrain"), argv=["--config", str(file)])
    assert "recipes.pretrain" in sys.modules
