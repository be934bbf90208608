"""Weight-only int8 for CPUs, where a token takes most of its time to read the weights.

The answers then differ from those of the model that was evaluated, so it is only for those who ask for it.
"""

import torch
from torch import nn
from torch.nn import functional

_ROWS = 32  # up to so many tokens in a step, reading the weights takes longer than computing with them


class Int8Linear(nn.Module):
    """A linear layer whose weights are int8, with one scale per output: a quarter of the memory of float32.

    The scale maps a row's largest magnitude to 127 (symmetric, per channel). The product is PyTorch's kernel for it,
    which reads the int8 directly (`_weight_int8pack_mm`, ATen/native/cpu/int8mm_kernel.cpp; torchao's int8 tensors
    reach it only when compiled). For a long prompt the weights are made whole first: once for all of its tokens.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        weight = linear.weight.detach().float()
        scale = (weight.abs().amax(dim=1) / 127).clamp(min=torch.finfo(torch.float32).tiny).to(linear.weight.dtype)
        steps = (weight / scale.float().unsqueeze(1)).round().clamp(-127, 127)  # by the scale as it was rounded
        self.register_buffer("weight", steps.to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """`[..., in]` to `[..., out]`, in the type of the inputs."""
        rows = inputs.reshape(-1, inputs.size(-1))
        if rows.size(0) > _ROWS:
            return functional.linear(inputs, self.weight.to(inputs.dtype) * self.scale.unsqueeze(1), self.bias)
        outputs = torch._weight_int8pack_mm(rows, self.weight, self.scale).view(*inputs.shape[:-1], -1)
        return outputs if self.bias is None else outputs + self.bias


def quantize_int8(model: nn.Module) -> None:
    """Replace every linear layer, in place, the one that makes the logits included. Embeddings stay as they are."""
    for name, child in list(model.named_children()):
        if type(child) is nn.Linear:
            setattr(model, name, Int8Linear(child))
        else:
            quantize_int8(child)
