"""Muon for the hidden matrices, AdamW for the rest, behind one `torch.optim.Optimizer`."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class MuonWithAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` on matrices between the embeddings, `torch.optim.AdamW` on embeddings, norms and biases.

    Muon (Jordan et al., https://kellerjordan.github.io/posts/muon) needs each matrix whole, so it does not go with
    FSDP or ZeRO-3. Its updates are scaled to the size of AdamW's, so that both take the same learning rate (Liu et
    al., arXiv:2502.16982). AdamW decays none of its weights: they are embeddings and gains.

    Args:
        model: Its trainable parameters are optimized.
        lr: Learning rate of both.
        weight_decay: Of the hidden matrices.
        betas: Of AdamW.
    """

    def __init__(self, model: "PreTrainedModel", lr: float, weight_decay: float, betas: tuple[float, float]):
        ends = {id(part.weight) for part in (model.get_input_embeddings(), model.get_output_embeddings()) if part}
        ends |= {id(part.weight) for part in model.modules() if isinstance(part, torch.nn.Embedding)}
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        hidden = [parameter for parameter in trained if parameter.ndim == 2 and id(parameter) not in ends]
        muon = {id(parameter) for parameter in hidden}
        rest = [parameter for parameter in trained if id(parameter) not in muon]
        self._parts = {
            "muon": torch.optim.Muon(hidden, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
            "adamw": torch.optim.AdamW(rest, lr=lr, weight_decay=0.0, betas=betas),
        }
        super().__init__(self._groups(), {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts.values():
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self._parts.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, part in self._parts.items():
            part.load_state_dict(state_dict[name])
        self.param_groups[:] = self._groups()  # a schedule sets the learning rate in these very dictionaries

    def _groups(self) -> list[dict[str, Any]]:
        return [group for part in self._parts.values() for group in part.param_groups]
