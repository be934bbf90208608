"""Preference tuning as a user runs it, on a tiny model."""

import json

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from hfchat.errors import UserError
from hfchat.lineage import read_lineage
from recipes.align import main

SMALL = [
    "--max_length", 64, "--max_steps", 4, "--lora_r", 4, "--learning_rate", "1e-2", "--logging_steps", 1,
    "--bf16", "false", "--sampled_prompts", 2, "--sampled_tokens", 4, "--min_thumbs", 4,
]  # fmt: skip


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Pairs as HH-RLHF has them, and thumbs."""
    folder = tmp_path_factory.mktemp("raw")
    pairs = [
        {
            "chosen": f"\n\nHuman: Question {i}?\n\nAssistant: The answer is {i}.",
            "rejected": f"\n\nHuman: Question {i}?\n\nAssistant: Who asks about {i}",
        }
        for i in range(24)
    ]
    thumbs = [
        {
            "prompt": [{"role": "user", "content": f"Question {i}?"}],
            "completion": [{"role": "assistant", "content": f"The answer is {i}."}],
            "label": i % 3 > 0,
        }
        for i in range(24)
    ]
    for name, rows in (("pairs", pairs), ("thumbs", thumbs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def prepare(run_recipe, source, output):
    """What `prepare_conversations.py` writes of it goes straight into `align.py`."""
    source = json.dumps({"path": str(source), "license": "MIT"})
    run_recipe(
        "prepare_conversations", "--sources", source, "--validation_fraction", 0.3, "--n_grams", 1000,
        "--output_dir", output,
    )  # fmt: skip
    return output


def test_pairs_end_with_an_aligned_model_and_what_it_gained(run_recipe, chat_model, raw, tmp_path, capsys):
    dataset = prepare(run_recipe, raw / "pairs.jsonl", tmp_path / "pairs")
    output = tmp_path / "out"
    arguments = ["--model_name_or_path", chat_model, "--dataset_name", dataset, *SMALL, "--output_dir", output]
    finished = run_recipe("align", *arguments, launch="cpu")
    for shown in ("chosen: ⟦The answer is ", "rejected: ⟦Who asks about ", "DPO with beta 0.1", "by construction ->"):
        assert shown in finished.stdout
    lineage = read_lineage(output)
    assert lineage["licenses"] == ["MIT", "unknown"]
    metrics = lineage["metrics"]
    assert metrics["eval_rewards/margins"] > 0
    assert metrics["eval_kl"] > 0
    assert metrics["held_out"]["rewards/accuracies"][0] == metrics["eval_rewards/accuracies"] > 0.5
    assert lineage["config"]["learning_rate"] == 0.01
    curve = json.loads((output / "loss_curve.json").read_text())
    assert curve[0]["eval_rewards/accuracies"] == 0.5
    assert (output / "loss_curve.png").stat().st_size > 5_000
    merged = AutoModelForCausalLM.from_pretrained(output / "merged")
    assert merged.generation_config.eos_token_id == AutoTokenizer.from_pretrained(output / "merged").eos_token_id
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(chat_model), output / "adapter")
    assert list(adapted.peft_config) == ["default"]
    main([str(argument) for argument in arguments])
    assert "nothing to do" in capsys.readouterr().out


def test_thumbs_are_for_kto(run_recipe, chat_model, raw, tmp_path):
    dataset = prepare(run_recipe, raw / "thumbs.jsonl", tmp_path / "thumbs")
    arguments = ["--model_name_or_path", chat_model, "--dataset_name", dataset, *SMALL]
    finished = run_recipe("align", *arguments, "--method", "kto", "--output_dir", tmp_path / "out", launch="cpu")
    assert "thumb down: ⟦The answer is " in finished.stdout
    config = read_lineage(tmp_path / "out")["config"]
    assert config["desirable_weight"] == 1 < config["undesirable_weight"]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "merged")
    arguments = [str(argument) for argument in [*arguments, "--output_dir", tmp_path / "no"]]
    with pytest.raises(UserError, match=r"has thumbs, and DPO learns from pairs .*; pass --method kto"):
        main(arguments)
    with pytest.raises(UserError, match="is an adapter; merge it first"):
        main([*arguments, "--model_name_or_path", str(tmp_path / "out" / "adapter"), "--method", "kto"])
