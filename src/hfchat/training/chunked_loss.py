"""The loss without all the logits at once: of a batch, they take more memory than the rest of a small model."""

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers.modeling_outputs import CausalLMOutput, ModelOutput

from hfchat.errors import UserError
from hfchat.training.packing import IGNORE

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class TokenLosses(ModelOutput):
    """Attributes:
    token_losses: Nats of each token, 0 where there is none to predict; shape `(batch, sequence)`, float32.
    """

    token_losses: torch.Tensor | None = None


def use_chunked_loss(model: "PreTrainedModel") -> None:
    """Have `model` compute its training loss by `torch.nn.functional.linear_cross_entropy`, a chunk at a time.

    In training, its output then holds no logits. Asked for `token_losses=True`, it returns `TokenLosses`, which an
    evaluation needs. What it is asked for otherwise does not change.

    Args:
        model: Whose labels come as `shift_labels`.

    Raises:
        UserError: If this PyTorch cannot, or if the model's logits are not just hidden states times the head's weight.
    """
    if not hasattr(torch.nn.functional, "linear_cross_entropy"):
        raise UserError(f"chunked_loss: needs PyTorch 2.13 or newer, this is {torch.__version__}; leave it out")
    _check_head(model)
    forward = model.forward

    @functools.wraps(forward)  # `Trainer` looks into the signature for what it may pass
    def forward_in_chunks(
        *args: Any, shift_labels: torch.Tensor | None = None, token_losses: bool = False, **kwargs: Any
    ) -> Any:
        if shift_labels is None or not (model.training or token_losses):
            return forward(*args, shift_labels=shift_labels, **kwargs)
        kwargs.pop("labels", None)
        num_items = kwargs.pop("num_items_in_batch", None)
        hidden = model.base_model(*args, **kwargs).last_hidden_state
        weight = model.get_output_embeddings().weight
        if token_losses:  # in float32, as each is looked at
            with torch.autocast(hidden.device.type, enabled=False):
                return TokenLosses(_token_losses(hidden.float(), weight.float(), shift_labels))
        if torch.is_autocast_enabled(hidden.device.type):
            dtype = torch.get_autocast_dtype(hidden.device.type)
            hidden, weight = hidden.to(dtype), weight.to(dtype)
        losses = _token_losses(hidden, weight, shift_labels)
        if num_items is None:
            num_items = shift_labels.ne(IGNORE).sum()
        return CausalLMOutput(loss=losses.sum(dtype=torch.float32) / num_items)

    model.forward = forward_in_chunks


def _token_losses(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    losses = torch.nn.functional.linear_cross_entropy(
        hidden.flatten(0, 1),
        weight,
        labels.flatten(),
        ignore_index=IGNORE,
        # Its own sum is in the dtype of the hidden states: in bfloat16, it would be off by some percent.
        reduction="none",
        options=torch.nn.LinearCrossEntropyOptions(),
    )
    return losses.view(labels.shape)


@torch.no_grad()
def _check_head(model: "PreTrainedModel") -> None:
    """Some models scale, cap or shift what their head gives (Granite, Gemma 2, Phi): their loss would be another."""
    if model.device.type == "meta":
        return
    was_training = model.training
    model.eval()
    ids = torch.zeros((1, 2), dtype=torch.long, device=model.device)
    hidden = model.base_model(input_ids=ids).last_hidden_state
    product = hidden @ model.get_output_embeddings().weight.T
    same = torch.allclose(model(input_ids=ids).logits, product, rtol=1e-3, atol=1e-3)
    model.train(was_training)
    if not same:
        raise UserError(f"chunked_loss: the logits of {type(model).__name__} are not a matrix product; leave it out")
