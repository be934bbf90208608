import sys
from types import ModuleType

import pytest
import torch

from hfchat.errors import UserError
from hfchat.training.fp8 import use_fp8
from tests.conftest import tiny_model


@pytest.fixture
def hopper(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))


@pytest.fixture
def torchao(monkeypatch):
    """What torchao does to the linear layers that its filter lets through: another class, the same weight."""

    class Float8Linear(torch.nn.Linear):
        pass

    def convert_to_float8_training(model, *, module_filter_fn):
        for name, module in list(model.named_modules()):
            if isinstance(module, torch.nn.Linear) and module_filter_fn(module, name):
                module.__class__ = Float8Linear

    float8 = ModuleType("torchao.float8")
    float8.convert_to_float8_training = convert_to_float8_training
    monkeypatch.setitem(sys.modules, "torchao.float8", float8)
    return Float8Linear


def test_the_layers_between_embeddings_and_head_are_converted(tokenizer, hopper, torchao):
    model = tiny_model(tokenizer)
    odd = torch.nn.Linear(128, 24, bias=False)  # half a tile
    model.model.layers[0].mlp.gate_proj = odd
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    use_fp8(model)
    converted = {name for name, module in model.named_modules() if isinstance(module, torchao)}
    attention = {f"model.layers.{i}.self_attn.{name}_proj" for i in range(2) for name in "qkvo"}
    mlp = {f"model.layers.{i}.mlp.{name}_proj" for i in range(2) for name in ("gate", "up", "down")}
    assert converted == (attention | mlp) - {"model.layers.0.mlp.gate_proj"}
    assert type(model.get_output_embeddings()) is torch.nn.Linear
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_a_model_without_linear_layers_is_refused(tokenizer, hopper, torchao):
    with pytest.raises(UserError, match="fp8: GPT2LMHeadModel has no linear layers"):
        use_fp8(tiny_model(tokenizer, "gpt2"))


@pytest.mark.parametrize(("available", "capability"), [(False, (0, 0)), (True, (8, 0))])
def test_a_device_without_8_bit_products_is_refused(tokenizer, torchao, monkeypatch, available, capability):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    with pytest.raises(UserError, match="fp8: this device has no 8-bit tensor cores"):
        use_fp8(tiny_model(tokenizer))


def test_without_torchao_it_says_what_to_install(tokenizer, hopper, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(UserError, match="fp8: torchao is not installed; run `pip install"):
        use_fp8(tiny_model(tokenizer))
