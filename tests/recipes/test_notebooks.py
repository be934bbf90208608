"""The notebooks run from start to end on tiny models, and what is committed of them is fit to be read.

The four that take longest run only where they are asked for: `HFCHAT_NOTEBOOKS=1 make test
ARGS=tests/recipes/test_notebooks.py`. CI has 25 minutes for everything.
"""

import ast
import json
import os
import re
import shutil

import nbformat
import papermill
import pytest
import torch
import yaml
from transformers import LlamaForCausalLM

from hfchat.chat_template import record_fingerprint
from hfchat.lineage import read_lineage
from hfchat.registry.versions import Registry
from hfchat.training.dial import Shape
from tests.conftest import ROOT, TEXTS

NOTEBOOKS = sorted((ROOT / "recipes" / "notebooks").glob("*.ipynb"))
MAX_BYTES = 400_000
_MACHINE = re.compile(r"/(?:home|root|tmp|work|Users)/|https?://(?!127\.0\.0\.1)[\w.-]+:\d+|\x1b\[|it/s\]|\d%\|")


asked_for = pytest.mark.skipif("HFCHAT_NOTEBOOKS" not in os.environ, reason="takes long; HFCHAT_NOTEBOOKS=1 runs it")


def by_name(path):
    return path.stem


@pytest.fixture(params=NOTEBOOKS, ids=by_name)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_there_is_one_for_each_stage():
    stages = ["the_whole_way", "data", "tokenizer", "pretraining", "finetuning", "evaluation", "safety"]
    stages += ["serving_and_feedback", "the_loop"]
    assert [path.stem for path in NOTEBOOKS] == [f"{number:02}_{stage}" for number, stage in enumerate(stages)]


def test_it_can_be_opened_everywhere(notebook):
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert len(notebook.cells) <= 25
    title = notebook.cells[0]
    assert title.cell_type == "markdown"
    assert title.source.startswith("# ")


def test_its_settings_are_one_cell_of_constants_and_need_no_hub(notebook):
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert tagged == code_cells(notebook)[:1]
    settings = ast.parse(tagged[0].source).body
    values = {statement.targets[0].id: ast.literal_eval(statement.value) for statement in settings}
    assert all(name.isupper() for name in values)
    assert not values.get("USE_HUB")
    assert values["HFCHAT_SOURCE"] == "", "there is no address that everybody could install from"
    assert values["OUTPUT"].startswith("outputs/notebooks/")
    used = {word for cell in code_cells(notebook)[1:] for word in re.findall(r"\w+", cell.source)}
    assert values.keys() <= used


def test_its_imports_are_at_the_top(notebook):
    _, install, imports, *rest = code_cells(notebook)
    assert "%pip install" in install.source
    assert isinstance(ast.parse(imports.source).body[0], ast.Import | ast.ImportFrom)
    for cell in rest:
        for statement in ast.parse(cell.source).body:
            assert not isinstance(statement, ast.Import | ast.ImportFrom), cell.source


def test_its_links_lead_somewhere(notebook):
    for cell in notebook.cells:
        for target in re.findall(r"\]\(([^)#]+)\)", cell.source) if cell.cell_type == "markdown" else ():
            assert target.startswith("https://") or (NOTEBOOKS[0].parent / target).exists(), target


@pytest.mark.parametrize("path", NOTEBOOKS, ids=by_name)
def test_what_is_committed_of_a_run_is_small_and_names_no_machine(path):
    assert path.stat().st_size < MAX_BYTES
    for cell in code_cells(nbformat.read(path, as_version=4)):
        for output in cell.outputs:
            assert output.output_type != "error"
            pictures = output.get("data", {})
            shown = output.get("text", "") + "".join(text for kind, text in pictures.items() if "image" not in kind)
            assert not (found := _MACHINE.search(shown)), shown[max(0, found.start() - 60) :][:160]


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """Runs a notebook in a folder that is empty, in a kernel of its own. Returns that folder and what was printed."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("PYTEST_CURRENT_TEST")  # with it, a kernel does not show what the recipes print
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))

    def run(name, **parameters):
        (path,) = (path for path in NOTEBOOKS if path.stem == name)
        folder = tmp_path / "run"
        folder.mkdir()
        parameters = {key: str(value) if hasattr(value, "parts") else value for key, value in parameters.items()}
        done = papermill.execute_notebook(
            path, tmp_path / path.name, parameters, cwd=folder, progress_bar=False, start_timeout=300
        )
        outputs = [output for cell in code_cells(done) for output in cell.outputs]
        pictures = sum("image/png" in output.get("data", {}) for output in outputs)
        return folder / "outputs" / "notebooks", "".join(output.get("text", "") for output in outputs), pictures

    return run


@asked_for
def test_the_whole_way(execute):
    outputs, printed, pictures = execute("00_the_whole_way")
    made = outputs / "own-small-toy"
    assert (made / "assistant" / "model" / "model.safetensors").is_file()
    assert "of 8 facts right" in printed
    assert "<|im_start|>assistant\n⟦" in printed
    assert pictures == 3


def test_data(execute, tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    for number, text in enumerate([*TEXTS, TEXTS[0], "Too short."]):
        (texts / f"{number}.txt").write_text(text)
    outputs, printed, pictures = execute("01_data", SOURCE=f"{texts}/*.txt", VALIDATION_FRACTION=0.2)
    assert read_lineage(outputs / "corpus")["metrics"]["removed"] == {"too_short": 1, "exact_duplicate": 1}
    assert "62 documents were read, 60 kept" in printed
    assert pictures == 2


def test_tokenizer(execute, corpus, tokenizer_folder):
    outputs, printed, pictures = execute(
        "02_tokenizer", CORPUS=corpus, VOCAB_SIZE=576, SMALLER=[512], OTHER=tokenizer_folder
    )
    assert read_lineage(outputs / "tokenizer")["config"]["vocab_size"] == 576
    assert "the first merges" in printed
    assert pictures == 2


def test_pretraining(execute, corpus, tokenizer_folder):
    outputs, printed, pictures = execute(
        "03_pretraining", CORPUS=corpus, TOKENIZER=tokenizer_folder, DEPTH=2, BLOCK_SIZE=64, STEPS=8
    )
    curve = json.loads((outputs / "base" / "loss_curve.json").read_text())
    losses = [entry["loss"] for entry in curve if "loss" in entry]
    assert losses[-1] < losses[0]
    assert "by hand and by the model: outputs differ by at most" in printed
    assert pictures == 4


@asked_for
def test_finetuning(execute, chat_model, conversations):
    outputs, printed, pictures = execute(
        "04_finetuning", MODEL=chat_model, CONVERSATIONS=conversations, MAX_LENGTH=64, RANK=4, EPOCHS=4, ANSWERS=2,
        ANSWER_TOKENS=4,
    )  # fmt: skip
    assert (outputs / "assistant" / "merged" / "certificate.json").is_file()
    assert "⟦The answer is 0.<|im_end|>⟧" in printed
    assert pictures == 2


@asked_for
def test_evaluation(execute, chat_model, conversations):
    outputs, printed, pictures = execute(
        "05_evaluation", BASE=chat_model, CANDIDATE=chat_model, CONVERSATIONS=conversations, ANSWER_TOKENS=4
    )
    assert (outputs / "evaluation" / "report.html").is_file()
    assert "the interval includes 0" in printed, "of a model and itself"
    assert pictures == 2


def test_safety(execute, chat_model):
    outputs, printed, pictures = execute("06_safety", MODEL=chat_model, TEMPLATES=1, ANSWER_TOKENS=2)
    assert (outputs / "safety" / "report.html").is_file()
    assert "[email]" in printed
    assert "gmail" not in printed
    assert pictures == 2


@pytest.fixture(scope="module")
def talkative_model(tokenizer, tmp_path_factory):
    """A tiny chat model that knows nothing, and says something else to each prompt."""
    folder = tmp_path_factory.mktemp("talkative-model")
    torch.manual_seed(0)
    config = Shape.from_depth(2).model_config("llama", tokenizer, block_size=128, tie_word_embeddings=False)
    config.initializer_range = 0.5
    model = LlamaForCausalLM(config)
    record_fingerprint(tokenizer, model)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_serving_and_feedback(execute, talkative_model):
    outputs, printed, pictures = execute(
        "07_serving_and_feedback", MODEL=talkative_model, ANSWER_TOKENS=8, THINGS=[f"thing {n}" for n in range(8)]
    )
    assert read_lineage(outputs / "serving" / "feedback")["metrics"]["reviews"]["read"] == 24
    assert "400 temperature - " in printed
    assert "ended with status 0" in printed
    assert pictures == 1


# Training and evaluating take minutes of a test's seconds, and have tests of their own; what feedback becomes is real.
_STAND_IN = """
import json, shutil
from pathlib import Path
from hfchat import improve, pipeline

def run_recipe(command):
    value = lambda name: command[command.index(f"--{name}") + 1]
    recipe, output = Path(command[command.index("--config") - 1]).stem, Path(value("output_dir"))
    if recipe == "prepare_feedback":
        return pipeline.run_recipe(command)
    if recipe in ("finetune", "align"):
        shutil.copytree(value("model_name_or_path"), output / "merged")
        (output / "merged" / "trained.txt").write_text(recipe)
    else:
        output.mkdir()
        (output / "lineage.json").write_text(json.dumps({"metrics": {"passed": True}}))
        (output / "verdict.md").write_text("# the verdict")

improve.run_recipe = run_recipe
"""


@asked_for
def test_the_loop(execute, talkative_model, tmp_path):
    startup = tmp_path / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "stand_in.py").write_text(_STAND_IN)
    settings = ROOT / "recipes" / "configs" / "improve"
    few = {"min_train": 4, "min_validation": 1, "validation_fraction": 0.3}
    configs = tmp_path / "configs"
    shutil.copytree(settings, configs)
    recipe = yaml.safe_load((settings / "prepare_feedback.yaml").read_text())
    (configs / "prepare_feedback.yaml").write_text(yaml.safe_dump(recipe | few))

    outputs, printed, pictures = execute(
        "08_the_loop", MODEL=talkative_model, CONFIGS=configs, WORDS=3, ANSWER_TOKENS=16,
        THINGS=[f"thing {n}" for n in range(6)], HELD_OUT=["a sea"],
    )  # fmt: skip
    registry = Registry(outputs / "loop" / "assistant")
    actions = [(entry["action"], entry["version"]) for entry in registry.history()]
    assert actions[-2:] == [("rollback", "v1"), ("promote", "v2")], "only to show it"
    assert "v2 passed the gates and answers now" in printed
    assert "v2 answers; the crowd likes" in printed
    refused = (outputs / "loop" / "improve-poisoned" / "outcome.md").read_text()
    assert "Too few pairs are left of the feedback; v2 stays." in refused
    assert pictures == 1
