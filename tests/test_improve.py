"""`hfchat improve`: which recipes run on what, and how it ends. The recipes themselves are not run here."""

import json
import os
import shlex
from pathlib import Path

import pytest

from hfchat import improve as program
from hfchat.cli import main
from hfchat.improve import Improvement, improve
from hfchat.lineage import LINEAGE
from hfchat.registry.versions import Deployment, Registry
from tests.conftest import ROOT


@pytest.fixture
def registry(tmp_path):
    registry = Registry(tmp_path / "models" / "assistant")
    registry.promote(registry.add(model(tmp_path / "first")))
    return registry


def model(folder):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(str(folder)))
    return folder


@pytest.fixture
def recipes(monkeypatch, tmp_path):
    """Stands in for the recipes: writes what they would, and keeps their commands. `metrics` are what they measure."""
    monkeypatch.chdir(ROOT)
    ran = {}
    metrics = {"prepare_feedback": {"enough": ["conversations", "preferences"]}, "gate": {"passed": True}}

    def run(command):
        recipe = next(Path(part).stem for part in command if part.endswith(".py"))
        output = Path(command[command.index("--output_dir") + 1])
        output.mkdir(parents=True, exist_ok=True)
        if recipe in ("finetune", "align"):
            model(output / "merged")
        else:
            (output / LINEAGE).write_text(json.dumps({"metrics": metrics.get(recipe, {})}))
        ran[recipe] = command

    monkeypatch.setattr(program, "run_recipe", run)
    return metrics, ran


def run(registry, tmp_path, **settings):
    output = tmp_path / "out"
    improve(Improvement(str(registry.folder), "feedback.sqlite", str(output), **settings))
    return (output / "outcome.md").read_text()


def test_its_folder_is_for_its_owner_alone(registry, recipes, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)
    caches = []
    run_recipe = program.run_recipe
    monkeypatch.setattr(
        program, "run_recipe", lambda command: (caches.append(os.environ["HF_DATASETS_CACHE"]), run_recipe(command))
    )
    (tmp_path / "out").mkdir(mode=0o755)
    run(registry, tmp_path)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o700
    assert set(caches) == {str(tmp_path / "out" / "cache")}
    assert "HF_DATASETS_CACHE" not in os.environ
    version = registry.folder / registry.deployment().current
    assert version.stat().st_mode & 0o077  # while others may serve the model


def option(command, name):
    return command[command.index(f"--{name}") + 1]


def test_a_candidate_that_passes_answers(registry, recipes, tmp_path):
    _, commands = recipes
    outcome = run(registry, tmp_path)
    out = tmp_path / "out"
    assert outcome.startswith("# v2 passed the gates and answers now, in place of v1.\n")
    assert registry.deployment() == Deployment("v2")
    assert json.loads((registry.current / "config.json").read_text()) == f"{out}/aligned/merged"
    assert list(commands) == ["prepare_feedback", "finetune", "align", "evaluate", "gate"]
    assert option(commands["prepare_feedback"], "feedback") == "feedback.sqlite"
    assert option(commands["finetune"], "model_name_or_path") == f"{registry.folder}/v1"
    assert option(commands["finetune"], "dataset_name") == f"{out}/feedback/conversations"
    assert option(commands["align"], "model_name_or_path") == f"{out}/corrected/merged"
    models = commands["evaluate"][commands["evaluate"].index("--models") + 1 :][:2]
    assert models == [f"current={registry.folder}/v1", f"candidate={out}/aligned/merged"]
    assert f'"dataset_name": "{out}/feedback/preferences"' in shlex.join(commands["evaluate"])
    assert option(commands["gate"], "results") == f"{out}/evaluation"
    assert f"improved from v1 by {out}" in [entry["reason"] for entry in registry.history()]


def test_a_candidate_that_fails_is_kept_and_does_not_answer(registry, recipes, tmp_path, capsys):
    metrics, _ = recipes
    metrics["gate"]["passed"] = False
    assert "v2 is not promoted: it failed the gates. v1 stays." in run(registry, tmp_path)
    assert registry.deployment() == Deployment("v1")
    assert registry.versions() == ["v1", "v2"]
    assert "verdict/verdict.md" in capsys.readouterr().out


def test_promotion_can_be_left_to_people(registry, recipes, tmp_path):
    assert "`hfchat models promote` lets it answer" in run(registry, tmp_path, promote=False)
    assert registry.deployment() == Deployment("v1")


def test_too_few_corrections_are_not_learned_from(registry, recipes, tmp_path):
    metrics, commands = recipes
    metrics["prepare_feedback"]["enough"] = ["preferences", "thumbs"]
    run(registry, tmp_path)
    assert "finetune" not in commands
    assert option(commands["align"], "model_name_or_path") == f"{registry.folder}/v1"


@pytest.mark.parametrize("enough", [[], ["conversations", "thumbs"]])
def test_without_pairs_nothing_is_trained(registry, recipes, tmp_path, enough):
    metrics, commands = recipes
    metrics["prepare_feedback"]["enough"] = enough
    outcome = run(registry, tmp_path)
    assert "Too few pairs are left of the feedback; v1 stays." in outcome
    assert "feedback/report.md" in outcome
    assert list(commands) == ["prepare_feedback"]
    assert registry.versions() == ["v1"]


def test_what_is_missing_is_said_before_any_work(tmp_path, recipes, capsys):
    with pytest.raises(SystemExit) as exit:
        main(["improve", str(tmp_path / "models"), "--feedback", "feedback.sqlite"])
    assert exit.value.code == 2
    assert "no version answers yet; `hfchat models add" in capsys.readouterr().err
    _, ran = recipes
    assert not ran
