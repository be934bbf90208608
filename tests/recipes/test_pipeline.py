"""The recipes as a user runs them, one after the other, on tiny models."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from hfchat.errors import UserError
from hfchat.lineage import read_lineage
from recipes.finetune import main as finetune
from recipes.pretrain import main as pretrain
from tests.conftest import ROOT, TEXTS, needs_chunked_loss, tiny_model

SMALL = ["--depth", 2, "--block_size", 64, "--per_device_train_batch_size", 4, "--logging_steps", 1, "--bf16", "false"]


def test_from_texts_to_a_tokenizer(run_recipe, tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    for i, text in enumerate(TEXTS):
        (texts / f"{i}.txt").write_text(text)
    corpus, tokenizer = tmp_path / "corpus", tmp_path / "tokenizer"
    source = json.dumps({"path": f"{texts}/*.txt", "license": "CC0-1.0"})
    prepare = ["prepare_data", "--sources", source, "--validation_fraction", 0.2, "--tasks", 2, "--output_dir", corpus]
    prepare += ["--steps", "clean_text", "quality", "exact_dedup"]  # they are near-duplicates of each other
    assert "60 documents" in run_recipe(*prepare).stdout
    assert "nothing to do" in run_recipe(*prepare).stdout
    run_recipe("train_tokenizer", "--dataset_name", corpus, "--vocab_size", 512, "--output_dir", tokenizer)
    assert AutoTokenizer.from_pretrained(tokenizer).eos_token == "<|im_end|>"
    assert read_lineage(tokenizer)["licenses"] == ["CC0-1.0"]


def test_pretraining_ends_with_a_base_model_and_its_loss_curve(run_recipe, corpus, tokenizer_folder, tmp_path):
    output = tmp_path / "base"
    arguments = ["--dataset_name", corpus, "--tokenizer_name", tokenizer_folder, *SMALL, "--max_steps", 12]
    arguments += ["--eval_steps", 6, "--output_dir", output]
    finished = run_recipe("pretrain", *arguments, launch="cpu")
    assert "12 steps of 256 tokens (4 x 64), muon, " in finished.stdout
    lineage = read_lineage(output)
    curve = json.loads((output / "loss_curve.json").read_text())
    first, last = (entry["eval_bits_per_byte"] for entry in curve if "eval_bits_per_byte" in entry)
    assert last < first
    assert lineage["metrics"]["eval_bits_per_byte"] == last
    assert (output / "loss_curve.png").stat().st_size > 5_000
    model, tokenizer = AutoModelForCausalLM.from_pretrained(output), AutoTokenizer.from_pretrained(output)
    assert model.config.use_cache
    assert model.generation_config.eos_token_id == sorted({tokenizer.bos_token_id, tokenizer.eos_token_id})
    assert "nothing to do" in run_recipe("pretrain", *arguments).stdout


@needs_chunked_loss
def test_the_shipped_settings_of_gpt2_train_on_a_local_corpus(run_recipe, corpus, tokenizer_folder, tmp_path):
    """The YAML of GPT-2 124M on FineWeb-Edu, but for the corpus and the size: streamed, with the chunked loss."""
    settings = ["--config", "recipes/configs/gpt2-124m/pretrain.yaml", "--dataset_name", corpus, "--depth", 2]
    settings += ["--dataset_config_name", "default", "--tokenizer_name", tokenizer_folder, "--block_size", 64]
    settings += ["--max_steps", 4, "--sample_prompts", "Document"]
    run_recipe("pretrain", *settings, "--output_dir", tmp_path / "base", launch="cpu")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "base").config.model_type == "gpt2"
    used = read_lineage(tmp_path / "base")["config"]
    assert used["streaming"]
    assert used["chunked_loss"]
    assert used["learning_rate"] > 0, "the lineage has what was derived"
    assert used["output_dir"] == str(tmp_path / "base")


def test_pretraining_goes_on_from_gpt2(run_recipe, corpus, tokenizer, tmp_path):
    model = tiny_model(tokenizer, "gpt2")
    model.save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    arguments = ["--model_name_or_path", tmp_path / "gpt2", "--dataset_name", corpus, "--max_steps", 3, *SMALL[2:]]
    run_recipe("pretrain", *arguments, "--output_dir", tmp_path / "out")
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(trained).__name__ == "GPT2LMHeadModel"
    assert not torch.equal(trained.transformer.wte.weight, model.transformer.wte.weight)
    refused = run_recipe("pretrain", *arguments, "--block_size", 4096, "--output_dir", tmp_path / "no", check=False)
    assert refused.returncode == 2
    assert "the model's context is 128 tokens" in refused.stderr


def test_finetuning_ends_with_an_adapter_and_a_model_that_chats(run_recipe, chat_model, conversations, tmp_path):
    arguments = [
        "--model_name_or_path", chat_model, "--dataset_name", conversations, "--max_length", 64,
        "--num_train_epochs", 2, "--lora_r", 4, "--logging_steps", 1, "--bf16", "false",
        "--sample_max_new_tokens", 8,
    ]  # fmt: skip
    output = tmp_path / "out"
    finished = run_recipe("finetune", *arguments, "--output_dir", output, launch="cpu")
    assert "16 conversations" in finished.stdout
    assert "⟦The answer is 0.<|im_end|>⟧" in finished.stdout
    assert "of 4 answers to held-out prompts, the model ended by itself (within 8 tokens)" in finished.stdout
    assert len((output / "answers.jsonl").read_text().splitlines()) == 4
    assert (output / "adapter" / "adapter_model.safetensors").is_file()
    assert (output / "merged" / "certificate.json").is_file()
    lineage = read_lineage(output)
    assert lineage["metrics"]["train_supervised_tokens"] > 0
    assert lineage["config"]["learning_rate"] == 2e-4, "what was derived is recorded"
    chat = pipeline("text-generation", str(output / "merged"), max_new_tokens=4)
    answer = chat([{"role": "user", "content": "Question 3?"}])[0]["generated_text"][-1]
    assert answer["role"] == "assistant"
    assert "nothing to do" in run_recipe("finetune", *arguments, "--output_dir", output).stdout


def test_a_base_without_turns_is_taught_them_by_a_mixture_with_all_its_weights(
    run_recipe, plain_base, conversations, tmp_path
):
    (tmp_path / "more").mkdir()
    turns = [{"role": "user", "content": "More?"}, {"role": "assistant", "content": "No."}]
    for split, rows in (("train", [turns]), ("validation", [[*turns, *turns]])):
        text = "".join(json.dumps({"messages": row}) + "\n" for row in rows)
        (tmp_path / "more" / f"{split}.jsonl").write_text(text)
    (tmp_path / "more" / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    entries = [{"path": str(conversations), "epochs": 2}, {"path": str(tmp_path / "more"), "weight": 0.25}]
    arguments = [
        "--model_name_or_path", plain_base, "--dataset_mixture", *map(json.dumps, entries), "--max_length", 96,
        "--use_peft", "false", "--max_steps", 2, "--eval_strategy", "no", "--bf16", "false",
        "--sample_max_new_tokens", 8,
    ]  # fmt: skip
    finished = run_recipe("finetune", *arguments, "--output_dir", tmp_path / "out")
    assert "to learn from: 40 conversations, " in finished.stdout
    assert "; a pass takes each 8 times" in finished.stdout
    assert "held-out loss of each: " in finished.stdout
    lineage = read_lineage(tmp_path / "out")
    assert lineage["metrics"]["train_conversations"] == 40
    counts, names = lineage["metrics"]["train_datasets"], [str(conversations), str(tmp_path / "more")]
    assert list(counts) == names
    assert all(lineage["metrics"][f"eval_{name}_loss"] > 0 for name in names)
    assert counts[names[0]]["times_seen"] * 4 == pytest.approx(counts[names[1]]["times_seen"], rel=1e-3)
    inputs = lineage["inputs"]
    assert [inputs[f"conversations {i}"]["path"] for i in range(2)] == names
    assert inputs["conversations 1"]["licenses"] == ["cc-by-4.0"]
    assert inputs["conversations 0"]["sha256"] != inputs["conversations 1"]["sha256"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "model")
    assert tokenizer.eos_token == "<|im_end|>"
    assert model.get_input_embeddings().num_embeddings >= len(tokenizer) == 322
    assert tokenizer.eos_token_id in model.generation_config.eos_token_id
    assert (tmp_path / "out" / "model" / "certificate.json").is_file()


def test_bad_input_is_one_line_and_status_2(run_recipe):
    finished = run_recipe("pretrain", "--depht", 4, check=False)
    assert finished.returncode == 2
    last = finished.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "unknown key 'depht'; did you mean 'depth'?" in last
    assert "Traceback" not in finished.stderr


@pytest.mark.parametrize(
    ("main", "arguments", "problem"),
    [
        (
            pretrain,
            ["--dataset_name", "a/b/c", "--tokenizer_name", "tokenizer", "--output_dir", "x"],
            "corpus: a/b/c: no such file or folder",
        ),
        (finetune, ["--model_name_or_path", "a/b/c", "--output_dir", "x"], "a/b/c: no such model folder"),
    ],
)
def test_what_is_missing_is_named(monkeypatch, main, arguments, problem):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=problem):
        main(arguments)
