"""The loss without all the logits at once: of a batch, they take more memory than the rest of a small model."""

import functools
from typing import TYPE_CHECKING, Any

import torch

from hfchat.errors import UserError
from hfchat.training.packing import IGNORE

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def use_chunked_loss(model: "PreTrainedModel") -> None:
    """Have `model` compute its training loss by `torch.nn.functional.linear_cross_entropy`, a chunk at a time.

    In training, its output then holds no logits. What it is asked for otherwise does not change.

    Args:
        model: Whose labels come as `shift_labels`.

    Raises:
        UserError: If this PyTorch cannot.
    """
    if not hasattr(torch.nn.functional, "linear_cross_entropy"):
        raise UserError(f"chunked_loss: needs PyTorch 2.13 or newer, this is {torch.__version__}")
    forward = model.forward

    @functools.wraps(forward)
    def forward_in_chunks(*args: Any, shift_labels: torch.Tensor | None = None, **kwargs: Any) -> Any:
        if shift_labels is None or not model.training:
            return forward(*args, shift_labels=shift_labels, **kwargs)
        from transformers.modeling_outputs import CausalLMOutput

        kwargs.pop("labels", None)
        num_items = kwargs.pop("num_items_in_batch", None)
        hidden = model.base_model(*args, **kwargs).last_hidden_state.flatten(0, 1)
        weight = model.get_output_embeddings().weight
        if torch.is_autocast_enabled(hidden.device.type):
            dtype = torch.get_autocast_dtype(hidden.device.type)
            hidden, weight = hidden.to(dtype), weight.to(dtype)
        loss = torch.nn.functional.linear_cross_entropy(
            hidden,
            weight,
            shift_labels.flatten(),
            ignore_index=IGNORE,
            reduction="mean" if num_items is None else "sum",
            options=torch.nn.LinearCrossEntropyOptions(),
        )
        return CausalLMOutput(loss=loss if num_items is None else loss / num_items)

    model.forward = forward_in_chunks
