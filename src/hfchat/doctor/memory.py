"""How much memory a training takes, from the shapes of its tensors: no weights are loaded and nothing is computed.

The step is run on tensors that have a shape and no data (PyTorch's `FakeTensorMode`), and what is alive at a time is
counted: every buffer that autograd keeps, in its own dtype, whatever the architecture. Of a deep model, two shallow
versions are run, as each layer keeps as much as any other. For GPT-2 with a fused GELU, this gives the 34 bytes a
layer, token and unit of width of Korthikanti et al. (arXiv:2205.05198, section 4.1) but for the masks of dropout.
"""

import contextlib
import copy
import functools
import weakref
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedConfig, PreTrainedModel

_SHALLOW = (2, 4)  # layers
# Bytes of state per trained weight. Two moments in float32 for AdamW (arXiv:1711.05101), each in 8 bits with
# bitsandbytes (arXiv:2110.02861); one for Muon and SGD with momentum; Adafactor keeps sums of rows and columns only.
_ADAMW = 8.0
_STATE_BYTES = {"adafactor": 0.0, "sgd": 0.0, "lion": 4.0, "8bit": 2.0}
# glibc gives a block of this size or more back to the system when it is freed, and keeps the pages of smaller ones
# (mallopt(3): DEFAULT_MMAP_THRESHOLD_MAX, up to which the threshold grows by itself).
_MMAP_THRESHOLD = 32 * 2**20
# Rows of other lengths in every step leave holes in glibc's heap that the next do not fill, and kernels compiled for
# each: of what a step holds in small blocks, this many times more stays. Measured: the demo's fine-tuning after 100
# steps (2.17 GiB where 1.18 GiB live), torch 2.13.
_HOLES = 4.0
# NF4 in blocks of 64 whose scales are quantized again: 4.127 bits (Dettmers et al., arXiv:2305.14314, section 3);
# one float32 per row is next to nothing for 8 bits.
_QUANTIZED_BYTES = {4: 4.127 / 8, 4.5: 4.5 / 8, 8: 1.0}


@dataclass(frozen=True)
class Blueprint:
    """What is trained, without its weights.

    Attributes:
        config: Of the model.
        dtype: Of the weights that are loaded.
        attn_implementation: As of `from_pretrained`.
        adapter: What is trained instead of all weights.
        quantized_bits: Of the linear layers, if they are quantized: 4 (4.5 without double quantization) or 8.
    """

    config: "PreTrainedConfig"
    dtype: torch.dtype
    attn_implementation: str | None = None
    adapter: "PeftConfig | None" = None
    quantized_bits: float | None = None

    def build(self) -> "PreTrainedModel":
        """The model on the meta device, in training mode."""
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            options = {"attn_implementation": self.attn_implementation} if self.attn_implementation else {}
            model = AutoModelForCausalLM.from_config(self.config, dtype=self.dtype, trust_remote_code=False, **options)
            if self.adapter is not None:
                from peft import get_peft_model

                model = get_peft_model(model, copy.deepcopy(self.adapter))
        return model.train()

    @property
    def depth(self) -> int:
        return self.config.get_text_config().num_hidden_layers

    def with_depth(self, layers: int) -> "Blueprint":
        config = copy.deepcopy(self.config)
        text = config.get_text_config()
        text.num_hidden_layers = layers
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[:layers]
        return replace(self, config=config)


@dataclass(frozen=True)
class Batch:
    """What one forward pass of a process gets.

    Attributes:
        rows: Sequences.
        length: Tokens of each.
        predicted: Positions of a row whose logits are made in training; None for all.
        varying: Whether the next rows have other lengths.
        masked: Whether attention gets a mask, as packed sequences need.
        chunked_loss: Whether no logits are made (`hfchat.training.chunked_loss`).
    """

    rows: int
    length: int
    predicted: int | None = None
    varying: bool = False
    masked: bool = True
    chunked_loss: bool = False


@dataclass(frozen=True)
class Numerics:
    """How a step is computed.

    Attributes:
        device: `"cpu"` or `"cuda"`.
        autocast: The dtype of mixed precision; None for none.
        checkpointing: Whether activations are computed again in the backward pass (arXiv:1604.06174).
    """

    device: str
    autocast: torch.dtype | None
    checkpointing: bool


@dataclass(frozen=True)
class Memory:
    """Bytes of one process.

    Attributes:
        libraries: The process itself, before it holds a tensor; on a GPU, its context.
        weights: As loaded, adapters included.
        gradients: Of the trained weights, float32.
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
    def training_peak(self) -> int:
        return self.kept + self.gradients + self.activations + self.slack

    @property
    def peak(self) -> int:
        return max(self.training_peak, self.kept + self.evaluation, self.kept + self.export)


def weight_bytes(model: "PreTrainedModel", quantized_bits: float | None = None) -> int:
    """Of all parameters and buffers; shared ones once."""
    quantized: set[int] = set()
    if quantized_bits is not None:
        head = model.get_output_embeddings()
        quantized = {
            id(module.weight)
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and module is not head and "lora_" not in name
        }
    tensors = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}.values()
    return round(
        sum(
            tensor.numel() * (_QUANTIZED_BYTES[quantized_bits] if id(tensor) in quantized else tensor.element_size())
            for tensor in tensors
        )
    )


def trained_bytes(model: "PreTrainedModel") -> int:
    """Of the weights that are trained, and of as many gradients."""
    return sum(weight.numel() * weight.element_size() for weight in model.parameters() if weight.requires_grad)


def optimizer_bytes(model: "PreTrainedModel", optimizer: str) -> int:
    """Of the optimizer's state.

    Args:
        model: Whose trained weights are optimized.
        optimizer: `"muon"` for `hfchat.training.optimizer.MuonWithAdamW`, or a name of `TrainingArguments.optim`.
    """
    if optimizer == "muon":
        from hfchat.training.optimizer import split_parameters

        hidden, rest = split_parameters(model)
        return 4 * sum(weight.numel() for weight in hidden) + 8 * sum(weight.numel() for weight in rest)
    each = next((size for name, size in _STATE_BYTES.items() if name in optimizer), _ADAMW)
    return round(each * sum(weight.numel() for weight in model.parameters() if weight.requires_grad))


@dataclass(frozen=True)
class Peaks:
    """Bytes of the tensors that operations make.

    Attributes:
        total: The most that live together.
        small: The most of those of less than 32 MiB each.
        large: The most of the others.
    """

    total: int
    small: int
    large: int


def step_peaks(blueprint: Blueprint, batch: Batch, numerics: Numerics) -> Peaks:
    """What a forward and backward pass holds beyond the weights, gradients included."""
    return _by_depth(blueprint, functools.partial(_step, batch=batch, numerics=numerics))


def evaluation_peaks(blueprint: Blueprint, batch: Batch, numerics: Numerics) -> Peaks:
    """What a forward pass with the loss of all positions holds beyond the weights."""
    return _by_depth(blueprint, functools.partial(_evaluation, batch=batch, numerics=numerics))


def slack_bytes(step: Peaks, batch: Batch, numerics: Numerics) -> int:
    """What the allocator of a CPU comes to keep beyond what lives: only small blocks stay with it."""
    return round(_HOLES * step.small) if batch.varying and numerics.device == "cpu" else 0


def _by_depth(blueprint: Blueprint, measure: Callable[["PreTrainedModel"], Peaks]) -> Peaks:
    if blueprint.depth <= max(_SHALLOW):
        return measure(blueprint.build())
    few, more = (astuple(measure(blueprint.with_depth(layers).build())) for layers in _SHALLOW)
    further = (blueprint.depth - _SHALLOW[0]) / (_SHALLOW[1] - _SHALLOW[0])
    return Peaks(*(round(first + further * (second - first)) for first, second in zip(few, more, strict=True)))


def _step(model: "PreTrainedModel", batch: Batch, numerics: Numerics) -> Peaks:
    if numerics.checkpointing:
        model.activation_checkpointing_enable()
        model.enable_input_require_grads()
    if batch.chunked_loss:
        from hfchat.training.chunked_loss import use_chunked_loss

        use_chunked_loss(model)
    with _without_data(model, numerics.device), _LiveBytes() as live:
        inputs = _inputs(batch, numerics.device)
        labels = inputs["input_ids"]
        if batch.predicted is None:
            with _autocast(numerics):
                loss = model(**inputs, labels=labels, shift_labels=labels, use_cache=False).loss
        else:
            kept = torch.arange(batch.predicted, device=numerics.device)
            with _autocast(numerics):
                logits = model(**inputs, use_cache=False, logits_to_keep=kept).logits
            loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), labels[:, kept].flatten())
        loss.backward()
    return live.peaks()


def _evaluation(model: "PreTrainedModel", batch: Batch, numerics: Numerics) -> Peaks:
    model.eval()
    if batch.chunked_loss:
        from hfchat.training.chunked_loss import use_chunked_loss

        use_chunked_loss(model)
    with _without_data(model, numerics.device), _LiveBytes() as live, torch.no_grad():
        inputs = _inputs(batch, numerics.device)
        labels = inputs["input_ids"]
        if batch.chunked_loss:
            with _autocast(numerics):
                model(**inputs, shift_labels=labels, token_losses=True, use_cache=False)
            return live.peaks()
        with _autocast(numerics):
            output = model(**inputs, labels=labels, shift_labels=labels, use_cache=False)
        logits = output.logits.float()  # accelerate hands on what autocast made in float32
        del output
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return live.peaks()


def _inputs(batch: Batch, device: str) -> dict[str, torch.Tensor]:
    inputs = {"input_ids": torch.zeros(batch.rows, batch.length, dtype=torch.long, device=device)}
    if batch.masked:
        shape = (batch.rows, 1, batch.length, batch.length)
        inputs["attention_mask"] = torch.ones(shape, dtype=torch.bool, device=device)
    return inputs


def _autocast(numerics: Numerics) -> Any:
    if numerics.autocast is None:
        return contextlib.nullcontext()
    return torch.autocast(numerics.device, dtype=numerics.autocast)


@contextlib.contextmanager
def _without_data(model: "PreTrainedModel", device: str) -> Iterator[None]:
    """Within, `model`'s tensors are of `device`, and nothing that is computed takes memory or time."""
    with FakeTensorMode():
        made: dict[int, torch.Tensor] = {}  # tied weights stay tied
        for module in model.modules():
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is None:
                        continue
                    if id(tensor) not in made:
                        empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
                        is_parameter = isinstance(tensor, torch.nn.Parameter)
                        made[id(tensor)] = (
                            torch.nn.Parameter(empty, requires_grad=tensor.requires_grad) if is_parameter else empty
                        )
                    tensors[name] = made[id(tensor)]
        yield


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make within it, while they live."""

    def __init__(self) -> None:
        super().__init__()
        self._alive: dict[int, int] = {}
        self._small = self._large = 0
        self._most = Peaks(0, 0, 0)

    def peaks(self) -> Peaks:
        return self._most

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        before = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if _is_tensor(leaf)}
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if _is_tensor(tensor) and tensor.untyped_storage()._cdata not in before:  # else a view, or in place
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._alive:
            return
        self._alive[key] = storage.nbytes()
        self._add(storage.nbytes(), 1)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self._add(self._alive.pop(key, 0), -1)

    def _add(self, size: int, sign: int) -> None:
        if size < _MMAP_THRESHOLD:
            self._small += sign * size
        else:
            self._large += sign * size
        most = self._most
        self._most = Peaks(
            max(most.total, self._small + self._large), max(most.small, self._small), max(most.large, self._large)
        )


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)
