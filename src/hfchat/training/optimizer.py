"""Muon for the hidden matrices, AdamW for the rest, behind one `torch.optim.Optimizer`."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class MuonWithAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` on the matrices between embeddings and head, `torch.optim.AdamW` on all other parameters.

    Muon: Jordan et al., https://kellerjordan.github.io/posts/muon. Its updates are scaled to the size of AdamW's (Liu
    et al., arXiv:2502.16982). AdamW decays none of its weights: they are embeddings and gains.

    The groups and the state of both are those of this optimizer, so that it is saved, loaded and sharded like any
    other.

    Args:
        model: Its trainable parameters are optimized.
        lr: Learning rate of the hidden matrices.
        embedding_lr: Learning rate of all other parameters.
        weight_decay: Of the hidden matrices.
        betas: Of AdamW.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        lr: float,
        embedding_lr: float,
        weight_decay: float,
        betas: tuple[float, float],
    ):
        hidden, rest = split_parameters(model)
        muon = torch.optim.Muon(hidden, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
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


def split_parameters(model: "PreTrainedModel") -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """The trainable matrices between embeddings and head, and all other trainable parameters."""
    ends = {id(part.weight) for part in (model.get_input_embeddings(), model.get_output_embeddings()) if part}
    ends |= {id(part.weight) for part in model.modules() if isinstance(part, torch.nn.Embedding)}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    hidden = [parameter for parameter in trained if parameter.ndim == 2 and id(parameter) not in ends]
    taken = {id(parameter) for parameter in hidden}
    return hidden, [parameter for parameter in trained if id(parameter) not in taken]
