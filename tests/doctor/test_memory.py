import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config

from hfchat.doctor.memory import Step, evaluation_bytes, optimizer_bytes, step_bytes, trained_bytes, weight_bytes
from hfchat.training.optimizer import MuonWithAdamW
from tests.conftest import tiny_model


def gpt2(depth: int = 4, dtype: torch.dtype = torch.bfloat16, device: str = "meta"):
    config = GPT2Config(
        n_layer=depth, n_embd=128, n_head=2, n_positions=128, vocab_size=512, activation_function="gelu",
        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
    )  # fmt: skip
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def test_weights_and_gradients_are_those_of_the_loaded_model(tokenizer):
    model = tiny_model(tokenizer)
    with torch.device("meta"):
        planned = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32)
    held = sum(tensor.numel() * tensor.element_size() for tensor in [*model.parameters(), *model.buffers()])
    assert weight_bytes(planned) == held
    assert trained_bytes(planned) == sum(weight.numel() * 4 for weight in model.parameters())


@pytest.mark.parametrize("name", ["muon", "adamw_torch"])
def test_the_optimizer_is_as_large_as_the_state_of_a_real_one(name, tokenizer):
    model = tiny_model(tokenizer)
    expected = optimizer_bytes(model, name)
    if name == "muon":
        optimizer = MuonWithAdamW(model, lr=1e-3, embedding_lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95))
    else:
        optimizer = torch.optim.AdamW(model.parameters())
    ids = torch.zeros(1, 8, dtype=torch.long)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    tensors = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    held = sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor.ndim)  # without step counters
    assert held == expected


def kept_by_autograd(model, ids):
    """Bytes that a forward pass keeps for the backward pass, weights left out."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(input_ids=ids, labels=ids, use_cache=False)  # held, so that no place is taken twice
    del output
    return sum(kept.values())


def test_a_layer_keeps_about_what_autograd_keeps():
    ids = torch.zeros(4, 128, dtype=torch.long)
    few, more = (gpt2(depth, torch.float32, device="cpu").train() for depth in (2, 6))
    step = Step(4, 128, 128, value_bytes=4)
    kept = kept_by_autograd(more, ids) - kept_by_autograd(few, ids)
    assert step_bytes(more, step) - step_bytes(few, step) == pytest.approx(kept, rel=0.25)


def test_what_takes_less_memory_is_estimated_to():
    def taken(rows=8, length=128, checkpointing=False):
        return step_bytes(gpt2(8), Step(rows, length, length, 2, checkpointing))

    assert taken(rows=16) == 2 * taken()
    assert taken(length=64) < taken()
    assert taken(checkpointing=True) < 0.7 * taken()
    assert evaluation_bytes(gpt2(8), Step(8, 128, 128, 2)) < 0.7 * taken()
    # Only the adapter has gradients and moments, in float32 on a base in bfloat16.
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", fan_in_fan_out=True)
    with torch.device("meta"):
        adapted = get_peft_model(gpt2(), lora)
    assert trained_bytes(adapted) < 0.2 * trained_bytes(gpt2())
    assert optimizer_bytes(adapted, "adamw_torch") == 2 * trained_bytes(adapted)
    assert weight_bytes(adapted) == weight_bytes(gpt2()) + trained_bytes(adapted)


def test_quantized_linear_layers_take_half_a_byte_a_weight(tokenizer):
    model = tiny_model(tokenizer).to(torch.bfloat16)
    ends = model.get_input_embeddings().weight.numel()
    linear = sum(weight.numel() for weight in model.parameters() if weight.ndim == 2) - ends
    saved = weight_bytes(model) - weight_bytes(model, 4)
    assert saved == pytest.approx(linear * (2 - 4.127 / 8), rel=1e-3)  # arXiv:2305.14314
