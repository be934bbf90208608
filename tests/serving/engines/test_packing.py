"""Packed linear layers: the same weights, the same products, and a model that answers as before."""

import copy

import pytest
import torch
from torch import nn

from hfchat.models import supports_bf16
from hfchat.serving.engines.packing import PackedLinear, pack

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available() or not supports_bf16() or not torch.backends.cpu.get_cpu_capability().startswith("AVX"),
    reason="needs an x86 CPU with bfloat16",
)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(64,), (1, 64), (1, 8, 64), (2, 40, 64), (0, 64)])
def test_products_are_those_of_the_layer(shape, bias):
    torch.manual_seed(0)
    linear = nn.Linear(64, 96, bias=bias, dtype=torch.bfloat16).requires_grad_(False)
    layer, inputs = PackedLinear(linear), torch.randn(*shape, dtype=torch.bfloat16)
    torch.testing.assert_close(layer(inputs), linear(inputs), atol=0.01, rtol=0.01)
    torch.testing.assert_close(layer(inputs.flip(0)), linear(inputs.flip(0)), atol=0.01, rtol=0.01)
    assert torch.equal(layer.weight, linear.weight)


def test_a_model_keeps_its_distribution(tiny_model):
    model = copy.deepcopy(tiny_model).to(torch.bfloat16)
    packed = copy.deepcopy(model)
    pack(packed)
    assert not [name for name, module in packed.named_modules() if type(module) is nn.Linear]
    assert torch.equal(packed.get_input_embeddings().weight, model.get_input_embeddings().weight)
    tokens = torch.arange(40).unsqueeze(0)
    with torch.inference_mode():
        expected, found = (one(tokens).logits.float().log_softmax(-1) for one in (model, packed))
    divergence = (expected.exp() * (expected - found)).sum(-1).mean()
    assert divergence < 1e-4  # what another number of rows changes, too


def test_other_types_are_left_as_they_are(tiny_model):
    model = copy.deepcopy(tiny_model)
    pack(model)
    assert not [name for name, module in model.named_modules() if type(module) is PackedLinear]
