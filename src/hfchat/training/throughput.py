"""How fast a model is trained, and what share of its device's arithmetic that is."""

import contextlib
import re
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from transformers import TrainerCallback

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainerState

# Dense bfloat16 (V100, T4: float16) FLOP/s of tensor cores, from the makers' data sheets. The keys are patterns; the
# first that the device's own name has as whole words counts.
PEAK_FLOPS = {
    "GB200": 2.5e15,
    "B200": 2.25e15,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A100": 312e12,
    "A10G": 70e12,
    "A10": 125e12,
    "RTX 5090$": 209.5e12,
    "RTX 4090$": 165.2e12,
    "RTX 3090$": 71e12,
    "V100": 125e12,
    "T4": 65e12,
    "MI300X": 1307e12,
    "MI250X": 191.5e12,  # half a card: each of its two dies is a device
}


class Throughput(TrainerCallback):
    """Measures tokens per second and model FLOPs utilisation (MFU) between two logs.

    Args:
        model: Before it is wrapped.
        block_size: Tokens per sequence.
        tokens_per_step: Those of all processes.
        device: The one of this process; all are taken to have the same.
        world_size: Number of processes.
    """

    def __init__(
        self, model: "PreTrainedModel", block_size: int, tokens_per_step: int, device: torch.device, world_size: int
    ):
        self.flops_per_token = flops_per_token(model, block_size)
        self.tokens_per_step = tokens_per_step
        peak = peak_flops(device)
        self.peak_flops = None if peak is None else peak * world_size
        self.began: float | None = None
        self.earlier = 0.0
        self.last = (0.0, 0)  # when the last log was made, at which step
        self.pause = 0.0
        self.is_paused = False

    def on_train_begin(self, args: object, state: "TrainerState", control: object, **kwargs: object) -> None:
        logged = [entry["elapsed_seconds"] for entry in state.log_history if "elapsed_seconds" in entry]
        self.earlier = logged[-1] if logged else 0.0
        self.began = time.perf_counter()
        self.last, self.pause = (self.began, state.global_step), 0.0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent within does not count as training."""
        started = time.perf_counter()
        self.is_paused = True
        try:
            yield
        finally:
            self.is_paused = False
            self.pause += time.perf_counter() - started

    def measure(self, state: "TrainerState") -> dict[str, float]:
        """What to log: `elapsed_seconds` of training and evaluation, those before the run was resumed included.

        Outside of pauses, there are also `tokens_per_second` since the last measurement and, where the peak of the
        device is known, `mfu`.
        """
        if self.began is None:
            return {}
        now = time.perf_counter()
        measured = {"elapsed_seconds": round(self.earlier + now - self.began, 3)}
        then, step = self.last
        if state.global_step > step and not self.is_paused:
            seconds = now - then - self.pause
            speed = (state.global_step - step) * self.tokens_per_step / seconds
            measured["tokens_per_second"] = round(speed, 1)
            if self.peak_flops is not None:
                measured["mfu"] = round(speed * self.flops_per_token / self.peak_flops, 4)
            self.last, self.pause = (now, state.global_step), 0.0
        return measured


def flops_per_token(model: "PreTrainedModel", block_size: int) -> float:
    """FLOP of a forward and a backward pass for each token (Chowdhery et al., arXiv:2204.02311, appendix B).

    They are 6 for each parameter that is multiplied with, and 12 for each layer, width and position attended to.
    Embeddings that are only looked up do not count; the head does, tied or not.
    """
    config = model.config.get_text_config()
    looked_up = [part.weight for part in model.modules() if isinstance(part, torch.nn.Embedding)]
    head = model.get_output_embeddings()
    lookups = sum(weight.numel() for weight in looked_up if head is None or weight is not head.weight)
    multiplied = sum(parameter.numel() for parameter in model.parameters()) - lookups
    return 6 * multiplied + 12 * config.num_hidden_layers * config.hidden_size * block_size


def peak_flops(device: torch.device) -> float | None:
    """Dense bfloat16 FLOP/s of a device, or None where the table does not have it."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    if "MIG" in name:  # a slice of a GPU
        return None
    return next((peak for known, peak in PEAK_FLOPS.items() if re.search(rf"\b{known}\b", name)), None)
