"""Weight-only int8: close to the layer it replaces, for few rows and for many, and a model that still answers."""

import copy

import pytest
import torch
from torch import nn

from hfchat.serving.engines.quantization import Int8Linear, quantize_int8


@pytest.mark.parametrize("rows", [(1,), (3, 4), (33,), (2, 40)])  # both ways of computing
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_is_close_to_the_one_it_replaces(rows, bias, dtype):
    torch.manual_seed(0)
    linear = nn.Linear(64, 48, bias=bias, dtype=dtype)
    with torch.no_grad():
        linear.weight[3] *= 1000  # one large row must not cost the others their precision
        linear.weight[5] = 0
    inputs = torch.randn(*rows, 64, dtype=dtype)
    expected, outputs = linear(inputs), Int8Linear(linear)(inputs)
    assert outputs.shape == expected.shape
    assert outputs.dtype == dtype
    scale = inputs.float().norm(dim=-1, keepdim=True) * linear.weight.float().norm(dim=1)
    assert ((outputs - expected).float().abs() <= 0.02 * scale + 0.01 * expected.float().abs()).all()


def test_steps_are_those_of_the_rounded_scale():
    linear = nn.Linear(64, 8, bias=False, dtype=torch.bfloat16)
    layer = Int8Linear(linear)
    whole = layer.weight.float() * layer.scale.float().unsqueeze(1)
    # half a step, or a little more where the rounded scale does not reach the largest weight
    assert ((whole - linear.weight.float()).abs() <= layer.scale.float().unsqueeze(1) * 0.8).all()


def test_a_model_keeps_its_distribution(tiny_model):
    quantized = copy.deepcopy(tiny_model).to(torch.bfloat16)
    embeddings = quantized.get_input_embeddings().weight.clone()
    quantize_int8(quantized)
    assert not [name for name, module in quantized.named_modules() if type(module) is nn.Linear]
    assert isinstance(quantized.lm_head, Int8Linear)
    assert torch.equal(quantized.get_input_embeddings().weight, embeddings)
    tokens = torch.arange(40).unsqueeze(0)
    with torch.no_grad():
        expected = tiny_model(tokens).logits.log_softmax(-1)
        found = quantized(tokens).logits.float().log_softmax(-1)
    divergence = (expected.exp() * (expected - found)).sum(-1).mean()
    assert divergence < 0.02
