"""Muon for the hidden matrices, AdamW for the rest, behind one `torch.optim.Optimizer`."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.tensor import DTensor, Replicate

from hfchat.models import trains_faster_in_bf16

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_AT_ONCE = 2**25  # elements that are orthogonalised together: the copies of all of a large model would not fit


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon on the matrices between embeddings and head, `torch.optim.AdamW` on all other parameters.

    Muon: Jordan et al., https://kellerjordan.github.io/posts/muon. Its updates are scaled to the size of AdamW's (Liu
    et al., arXiv:2502.16982). AdamW decays none of its weights: they are embeddings and gains.

    The groups and the state of both are those of this optimizer, so that it is saved, loaded and sharded like any
    other.

    Args:
        model: Its trainable parameters are optimized.
        lr: Learning rate of the hidden matrices.
        embedding_lr: Learning rate of all other parameters.
        weight_decay: Weight decay of the hidden matrices.
        betas: Those of AdamW.
        dtype: What Muon orthogonalises in; by default bfloat16 where the machine is faster with it, else float32.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        lr: float,
        embedding_lr: float,
        weight_decay: float,
        betas: tuple[float, float],
        dtype: torch.dtype | None = None,
    ):
        hidden, rest = split_parameters(model)
        if dtype is None:
            dtype = torch.bfloat16 if trains_faster_in_bf16() else torch.float32
        muon = BatchedMuon(hidden, dtype, lr=lr, weight_decay=weight_decay)
        adamw = torch.optim.AdamW(rest, lr=embedding_lr, weight_decay=0.0, betas=betas)
        self._parts = (muon, adamw)
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # `load_state_dict` comes here with groups and state that are new objects
        self._share()

    def _share(self) -> None:
        for part, group in zip(self._parts, self.param_groups, strict=True):
            part.param_groups = [group]
            part.state = self.state


class BatchedMuon(torch.optim.Muon):
    """`torch.optim.Muon` in a type of one's choice, and for all matrices of one shape at once.

    PyTorch's own always orthogonalises in bfloat16, which takes a CPU without instructions for it 20 times as long as
    float32 does, and one matrix after the other, which leaves a GPU waiting for hundreds of small kernels.

    Args:
        params: Matrices.
        dtype: What to orthogonalise in.
        lr: Learning rate.
        weight_decay: Decoupled from the gradient, as AdamW's.
    """

    def __init__(self, params: list[torch.nn.Parameter], dtype: torch.dtype, lr: float, weight_decay: float):
        super().__init__(params, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameters in _alike(group["params"]):
                directions = torch.stack([self._direction(parameter, group["momentum"]) for parameter in parameters])
                if isinstance(directions, DTensor):  # each process has some rows; their products need all
                    directions = directions.redistribute(placements=[Replicate()] * directions.device_mesh.ndim)
                directions = orthogonalize(directions, group["ns_coefficients"], group["ns_steps"], group["eps"])
                rate = group["lr"] * 0.2 * math.sqrt(max(parameters[0].shape))  # the size of AdamW's updates
                for parameter, direction in zip(parameters, directions, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(direction, alpha=-rate)
        return loss

    def _direction(self, parameter: torch.nn.Parameter, momentum: float) -> torch.Tensor:
        """Nesterov's: the gradient with what is kept of those before it."""
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter.grad)
        state["momentum_buffer"].lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(state["momentum_buffer"], momentum).to(self._dtype)


def _alike(parameters: list[torch.nn.Parameter]) -> Iterator[tuple[torch.nn.Parameter, ...]]:
    """Those that have a gradient, by shape, as many at once as memory is to be spent on."""
    by_shape = defaultdict(list)
    for parameter in parameters:
        if parameter.grad is not None:
            by_shape[parameter.shape].append(parameter)
    for shape, alike in by_shape.items():
        count = max(1, _AT_ONCE // shape.numel())
        yield from (tuple(alike[first : first + count]) for first in range(0, len(alike), count))


def orthogonalize(
    matrices: torch.Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> torch.Tensor:
    """Move all singular values of each matrix towards 1, by a Newton-Schulz iteration of fifth order.

    As in `torch.optim.Muon`, but for many matrices at once, in the type that they have.

    Args:
        matrices: Shape `(number, rows, columns)`.
        coefficients: Those of the polynomial, from the first order to the fifth.
        steps: How often it is applied.
        eps: Least norm to divide by.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    result = matrices.mT if tall else matrices
    result = result / result.norm(dim=(1, 2), keepdim=True).clamp(min=eps)  # no singular value is above 1
    first, third, fifth = coefficients
    for _ in range(steps):
        gram = result @ result.mT
        result = torch.baddbmm(result, torch.baddbmm(gram, gram, gram, beta=third, alpha=fifth), result, beta=first)
    return result.mT if tall else result


def split_parameters(model: "PreTrainedModel") -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """The trainable matrices between embeddings and head, and all other trainable parameters."""
    ends = {id(part.weight) for part in (model.get_input_embeddings(), model.get_output_embeddings()) if part}
    ends |= {id(part.weight) for part in model.modules() if isinstance(part, torch.nn.Embedding)}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    hidden = [parameter for parameter in trained if parameter.ndim == 2 and id(parameter) not in ends]
    taken = {id(parameter) for parameter in hidden}
    return hidden, [parameter for parameter in trained if id(parameter) not in taken]
