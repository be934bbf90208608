"""The loss without all logits at once: those of a batch take more memory than the rest of a small model."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutput, ModelOutput

from hfchat.errors import UserError
from hfchat.training.packing import IGNORE

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class TokenLosses(ModelOutput):
    """Attributes:
    token_losses: Nats of each token, 0 where no token is predicted; shape `(batch, sequence)`, float32.
    """

    token_losses: torch.Tensor | None = None


def use_chunked_loss(model: "PreTrainedModel") -> None:
    """Have `model` compute its training loss by `torch.nn.functional.linear_cross_entropy`, a chunk at a time.

    In training, its output then holds no logits. Asked for `token_losses=True`, it returns `TokenLosses`, which an
    evaluation needs. What it is asked for otherwise does not change.

    Args:
        model: It takes its labels as `shift_labels`.

    Raises:
        UserError: If this PyTorch cannot, or if the model's logits are not just hidden states times the head's weight.
    """
    if not hasattr(torch.nn.functional, "linear_cross_entropy"):
        raise UserError(f"chunked_loss: needs PyTorch 2.13 or newer, this is {torch.__version__}; leave it out")
    _check_head(model)
    hooks, head = _Hooks(), model.get_output_embeddings()
    model.register_forward_pre_hook(hooks.before_model, with_kwargs=True)
    head.register_forward_pre_hook(hooks.before_head)
    head.register_forward_hook(hooks.after_head)
    model.register_forward_hook(hooks.after_model)


class _Hooks:
    """Keep the labels from the model and the hidden states from its head, and put losses in the place of logits.

    All is computed within the call of the head, where autocast is on and a sharded weight is whole.
    """

    def __init__(self) -> None:
        self.labels: torch.Tensor | None = None  # while losses are asked for
        self.num_items: torch.Tensor | int | None = None
        self.per_token = False
        self.hidden: torch.Tensor | None = None

    def before_model(self, model: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        self.per_token = kwargs.pop("token_losses", False)
        self.labels = kwargs.get("shift_labels") if model.training or self.per_token else None
        if self.labels is None:
            return args, kwargs
        self.num_items = kwargs.get("num_items_in_batch")
        unasked = ("labels", "shift_labels", "num_items_in_batch")
        return args, {name: value for name, value in kwargs.items() if name not in unasked}

    def before_head(self, head: nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor] | None:
        if self.labels is None:
            return None
        (self.hidden,) = args
        return (self.hidden[:, :0],)  # logits of no position

    def after_head(self, head: nn.Module, args: tuple[torch.Tensor], logits: torch.Tensor) -> torch.Tensor:
        if self.labels is None or self.hidden is None:
            return logits
        hidden, weight, self.hidden = self.hidden, head.weight, None
        if self.per_token:  # in float32, because each is looked at
            with torch.autocast(hidden.device.type, enabled=False):
                return _token_losses(hidden.float(), weight.float(), self.labels)
        if torch.is_autocast_enabled(hidden.device.type):
            dtype = torch.get_autocast_dtype(hidden.device.type)
            hidden, weight = hidden.to(dtype), weight.to(dtype)
        return _token_losses(hidden, weight, self.labels)

    def after_model(self, model: nn.Module, args: Any, output: ModelOutput) -> ModelOutput:
        labels, self.labels = self.labels, None
        if labels is None:
            return output
        if self.per_token:
            return TokenLosses(output.logits)
        num_items = labels.ne(IGNORE).sum() if self.num_items is None else self.num_items
        return CausalLMOutput(loss=output.logits.sum(dtype=torch.float32) / num_items)


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
    """Refuse models that scale, cap or shift what their head gives (Granite, Gemma 2, Phi): the loss would differ."""
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
