"""Linear layers whose weights lie in memory as the CPU's kernels read them, so that a step does not repack them.

The product of a few rows with a bfloat16 matrix takes most of a step. PyTorch 2.13 hands the matrix to oneDNN as it is
stored, and oneDNN brings it into its own order anew in each call. To bring it there once takes a quarter to a half off
each call, for any number of rows (one thread of an EPYC with AVX-512, microseconds, stored and packed: 1 row by
1,536 x 576 296 and 164, 8 rows 331 and 185, 40 rows 617 and 466; 8 rows by 49,152 x 576 9,043 and 4,854). The numbers
of the weights stay what they are: only the order of the sums differs, as it does with the number of rows.
"""

import torch
from torch import nn
from transformers import PreTrainedModel

from hfchat.models import supports_bf16

# Internal to PyTorch (read in 2.13), which compiles models to these two and has no public name for them.
_PACK = torch.ops.mkldnn._reorder_linear_weight.default
_LINEAR = torch.ops.mkldnn._linear_pointwise.default


class PackedLinear(nn.Module):
    """A linear layer for inference on a CPU, over the packed weight and the bias of another."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.bias = linear.bias
        self._packed = _PACK(linear.weight.detach())

    @property
    def weight(self) -> torch.Tensor:
        """A copy of the weight, `[out, in]`, for a model that reads it beside calling the layer."""
        return self._packed.to_dense()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """`[..., in]` to `[..., out]`."""
        return _LINEAR(inputs, self._packed, self.bias, "none", [], "")


def pack(model: PreTrainedModel) -> None:
    """Replace each linear layer of a model in bfloat16, in place, where it is on a CPU that has kernels for it.

    A weight that the embeddings share (tied) is then there twice.
    """
    kernels = supports_bf16() and torch.backends.cpu.get_cpu_capability().startswith("AVX")
    if not kernels or model.device.type != "cpu" or model.dtype != torch.bfloat16:
        return
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear and child.weight.dtype == torch.bfloat16:
                setattr(module, name, PackedLinear(child))
    # A file of weights stays mapped in memory, all of it, as long as one of its tensors is used.
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
