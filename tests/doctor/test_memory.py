import pytest
import torch
from transformers import GPT2Config

from hfchat.doctor.memory import (
    Batch,
    Blueprint,
    Numerics,
    evaluation_peaks,
    optimizer_bytes,
    step_peaks,
    trained_bytes,
    weight_bytes,
)
from hfchat.training.optimizer import MuonWithAdamW
from tests.conftest import needs_chunked_loss, tiny_model

PLAIN = Numerics("cpu", None, checkpointing=False)


def gpt2(depth: int = 4, dtype: torch.dtype = torch.bfloat16) -> Blueprint:
    config = GPT2Config(
        n_layer=depth, n_embd=128, n_head=2, n_positions=128, vocab_size=512, activation_function="gelu",
        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
    )  # fmt: skip
    return Blueprint(config, dtype, "sdpa")


def lora(blueprint: Blueprint) -> Blueprint:
    from peft import LoraConfig

    adapter = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", fan_in_fan_out=True)
    return Blueprint(blueprint.config, blueprint.dtype, "sdpa", adapter)


def test_weights_and_gradients_are_those_of_the_loaded_model(tokenizer):
    model = tiny_model(tokenizer)
    blueprint = Blueprint(model.config, torch.float32)
    held = sum(tensor.numel() * tensor.element_size() for tensor in [*model.parameters(), *model.buffers()])
    assert weight_bytes(blueprint.build()) == held
    assert trained_bytes(blueprint.build()) == sum(weight.numel() * 4 for weight in model.parameters())


@pytest.mark.parametrize("name", ["muon", "adamw_torch"])
def test_the_optimizer_is_as_large_as_the_state_of_a_real_one(name, tokenizer):
    model = tiny_model(tokenizer)
    expected = optimizer_bytes(Blueprint(model.config, torch.float32).build(), name)
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


def test_a_step_holds_what_pytorch_s_own_tracker_counts():
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker
    from transformers import AutoModelForCausalLM

    with FakeTensorMode():
        model = AutoModelForCausalLM.from_config(gpt2().config, dtype=torch.bfloat16, attn_implementation="sdpa")
        tracker = MemTracker()
        tracker.track_external(model)
        with tracker:
            ids = torch.zeros(2, 128, dtype=torch.long)
            model(input_ids=ids, labels=ids, shift_labels=ids, use_cache=False).loss.backward()
    [total] = [kinds["Total"] for kinds in tracker.get_tracker_snapshot("peak").values()]
    weights = weight_bytes(gpt2().build())
    assert step_peaks(gpt2(), Batch(2, 128, masked=False), PLAIN).total == pytest.approx(total - weights, rel=0.01)


def test_a_layer_of_gpt2_keeps_the_activations_of_the_formula():
    rows, length, width = 8, 128, 128
    few, more = (step_peaks(gpt2(depth), Batch(rows, length, masked=False), PLAIN).total for depth in (2, 4))
    per_value = (more - few) / 2 / (rows * length * width)
    assert 31 < per_value < 35  # 34 (arXiv:2205.05198), less two masks of dropout, and with the norms' statistics


def test_activations_grow_with_the_batch():
    one, two, four = (step_peaks(gpt2(), Batch(rows, 128), PLAIN).total for rows in (4, 8, 16))
    assert four - two == pytest.approx(2 * (two - one), rel=0.02)


def test_a_deep_model_is_estimated_from_shallow_ones(monkeypatch):
    estimated = step_peaks(gpt2(9), Batch(8, 128), PLAIN)
    monkeypatch.setattr("hfchat.doctor.memory._SHALLOW", (2, 9))  # nine layers are run
    assert step_peaks(gpt2(9), Batch(8, 128), PLAIN).total == pytest.approx(estimated.total, rel=0.01)


def test_what_takes_less_memory_is_estimated_to():
    batch = Batch(8, 128)
    plain = step_peaks(gpt2(8), batch, PLAIN).total
    assert step_peaks(gpt2(8), batch, Numerics("cpu", None, checkpointing=True)).total < 0.7 * plain
    assert evaluation_peaks(gpt2(8), batch, PLAIN).total < 0.7 * plain
    assert step_peaks(gpt2(8), Batch(8, 64), PLAIN).total < plain
    # Only the adapter has gradients and moments, in float32 on a base in bfloat16.
    adapted = lora(gpt2()).build()
    assert trained_bytes(adapted) < 0.2 * trained_bytes(gpt2().build())
    assert optimizer_bytes(adapted, "adamw_torch") == 2 * trained_bytes(adapted)
    assert weight_bytes(adapted) == weight_bytes(gpt2().build()) + trained_bytes(adapted)


@pytest.mark.parametrize(
    ("vocab_size", "chunked"), [(512, False), (50_304, False), pytest.param(512, True, marks=needs_chunked_loss)]
)
def test_an_evaluation_of_the_batch_of_the_training_needs_less_memory(vocab_size, chunked):
    """So that no pretraining ends for want of it: there, the batch of the training is the default."""
    blueprint = gpt2(2, dtype=torch.float32)
    blueprint.config.vocab_size = vocab_size
    batch = Batch(2, 128, chunked_loss=chunked)
    autocast = Numerics("cpu", torch.bfloat16, checkpointing=False)
    assert evaluation_peaks(blueprint, batch, autocast).total < step_peaks(blueprint, batch, autocast).total


def test_quantized_linear_layers_take_half_a_byte_a_weight(tokenizer):
    blueprint = Blueprint(tiny_model(tokenizer).config, torch.bfloat16)
    model = blueprint.build()
    ends = model.get_input_embeddings().weight.numel()
    linear = sum(weight.numel() for weight in model.parameters() if weight.ndim == 2) - ends
    saved = weight_bytes(model) - weight_bytes(model, 4)
    assert saved == pytest.approx(linear * (2 - 4.127 / 8), rel=1e-3)  # arXiv:2305.14314
