"""How much memory a training takes, from the shapes of its weights: none are loaded, and nothing is computed.

Weights, gradients and the optimizer's state are exact. What a step holds beside them is a rule of thumb; the
calibration measures it. For steps of GPT-2 and SmolLM2-135M with and without mixed precision, an adapter and
checkpointing, the rules are within 14% of what PyTorch 2.13 counts on tensors without data.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Bytes of state per trained weight. Two moments in float32 for AdamW (arXiv:1711.05101), each in 8 bits with
# bitsandbytes (arXiv:2110.02861); one for Muon and SGD with momentum; Adafactor keeps sums of rows and columns only.
_ADAMW = 8.0
_STATE_BYTES = {"adafactor": 0.0, "sgd": 0.0, "lion": 4.0, "8bit": 2.0}
# NF4 in blocks of 64 whose scales are quantized again: 4.127 bits (Dettmers et al., arXiv:2305.14314, section 3);
# one float32 per row is next to nothing for 8 bits.
_QUANTIZED_BYTES = {4: 4.127 / 8, 4.5: 4.5 / 8, 8: 1.0}
# A layer keeps the inputs and outputs of its matrices, and somewhat more for what is between them, of which mixed
# precision makes some in float32 (arXiv:2205.05198, section 4.1, counts it for one architecture).
_KEPT = {2: 1.5, 4: 1.25}  # times as much, by the bytes of a value; fitted to the count above
_TRAINING_LOGIT = 12  # bytes: the logit, its log-softmax and its gradient, in float32
_EVALUATION_LOGIT = 8  # bytes: the logit and its log-softmax; in 16 bits another two
# Rows of other lengths in every step leave holes in the heap of the CPU's allocator that the next do not fill.
# Measured: the demo's fine-tuning after 100 steps held 2.17 GiB where 1.18 GiB lived (torch 2.13).
_HOLES = 0.85


@dataclass(frozen=True)
class Memory:
    """Bytes of one process.

    Attributes:
        libraries: The process itself, before it holds a tensor; on a GPU, its context.
        weights: As loaded, adapters included.
        gradients: Those of the trained weights.
        optimizer: State of the optimizer.
        activations: The most that a step holds beyond all these: activations, logits, temporary buffers.
        slack: Freed in the course of the steps, and kept by the allocator.
        evaluation: The most that an evaluation holds beyond libraries, weights and optimizer.
        export: The most that the end of the run holds beyond libraries, weights and optimizer.
    """

    libraries: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    slack: int = 0
    evaluation: int = 0
    export: int = 0

    @property
    def kept(self) -> int:
        return self.libraries + self.weights + self.optimizer

    @property
    def peak(self) -> int:
        training = self.gradients + self.activations + self.slack
        return self.kept + max(training, self.evaluation, self.export)


@dataclass(frozen=True)
class Step:
    """What one forward and backward pass of a process computes.

    Attributes:
        rows: Sequences.
        length: Tokens of each.
        logits: Positions of a row whose logits are made; 0 where the loss is computed in chunks.
        value_bytes: Bytes of a value: 2 in mixed precision, or for weights in 16 bits.
        checkpointing: Whether activations are computed again in the backward pass (arXiv:1604.06174).
        accumulation: Passes per step.
        varying: Whether the next rows have other lengths, and their memory is a CPU's.
    """

    rows: int
    length: int
    logits: int
    value_bytes: int
    checkpointing: bool = False
    accumulation: int = 1
    varying: bool = False


def weight_bytes(model: "PreTrainedModel", quantized_bits: float | None = None) -> int:
    """Bytes of all parameters and buffers; shared ones count once.

    Args:
        model: On any device.
        quantized_bits: Bits of a weight in the linear layers, if they are quantized: 4 (4.5 without double
            quantization) or 8.
    """
    quantized: set[int] = set()
    if quantized_bits is not None:
        quantized = {id(weight) for weight in _matrices(model)}
    total = 0.0
    for tensor in {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}.values():
        each = _QUANTIZED_BYTES[quantized_bits or 8] if id(tensor) in quantized else tensor.element_size()
        total += tensor.numel() * each
    return round(total)


def trained_bytes(model: "PreTrainedModel") -> int:
    """Bytes of the weights that are trained, and of as many gradients."""
    return sum(weight.numel() * weight.element_size() for weight in model.parameters() if weight.requires_grad)


def optimizer_bytes(model: "PreTrainedModel", optimizer: str) -> int:
    """Bytes of the optimizer's state.

    Args:
        model: Its trained weights are optimized.
        optimizer: `"muon"` for `hfchat.training.optimizer.MuonWithAdamW`, or a name of `TrainingArguments.optim`.
    """
    if optimizer == "muon":
        from hfchat.training.optimizer import split_parameters

        hidden, rest = split_parameters(model)
        return 4 * sum(weight.numel() for weight in hidden) + 8 * sum(weight.numel() for weight in rest)
    each = next((size for name, size in _STATE_BYTES.items() if name in optimizer), _ADAMW)
    return round(each * sum(weight.numel() for weight in model.parameters() if weight.requires_grad))


def step_bytes(model: "PreTrainedModel", step: Step) -> int:
    """About what a forward and backward pass holds beyond weights and gradients, at its peak."""
    text = model.config.get_text_config()
    tokens = step.rows * step.length
    activations = _KEPT[step.value_bytes] * step.value_bytes * tokens * sum(sum(w.shape) for w in _matrices(model))
    if step.checkpointing:  # the inputs of all layers, and what one layer keeps
        activations /= text.num_hidden_layers
        activations += tokens * text.hidden_size * text.num_hidden_layers * step.value_bytes
    return round(activations) + _TRAINING_LOGIT * step.rows * step.logits * text.vocab_size


def slack_bytes(step_peak: int, step: Step) -> int:
    """About what the allocator of a CPU comes to keep beyond what lives in a step."""
    return round(_HOLES * step_peak) if step.varying else 0


def evaluation_bytes(model: "PreTrainedModel", step: Step) -> int:
    """About what a forward pass with the loss of all positions holds beyond the weights."""
    each = _EVALUATION_LOGIT + (2 if step.value_bytes == 2 else 0)
    return each * step.rows * step.logits * model.config.get_text_config().vocab_size


def _matrices(model: "PreTrainedModel") -> list[torch.nn.Parameter]:
    """The weights of the linear layers, without the output layer and adapters."""
    ends = [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    others = {id(end.weight) for end in (*ends, model.get_output_embeddings())}
    return [
        weight
        for name, weight in model.named_parameters()
        if weight.ndim == 2 and id(weight) not in others and "lora_" not in name
    ]
