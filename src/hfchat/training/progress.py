"""What is seen of a training while it runs."""

import math
import statistics
from collections import deque
from typing import Any

from tqdm import tqdm
from transformers import ProgressCallback, TrainerCallback, TrainerState

# A loss this many standard deviations above the mean of those before it is a spike.
SPIKE_SIGMAS = 6.0
_WINDOW = 20


class PretrainProgress(ProgressCallback):
    """The bar of `Trainer` (with its estimate of the time left), with loss and speed beside it."""

    def on_log(self, args: object, state: TrainerState, control: object, logs: Any = None, **kwargs: object) -> None:
        if self.training_bar is None or not logs:
            return
        if "loss" in logs:
            shown = {"loss": f"{logs['loss']:.3f}"}
            if "tokens_per_second" in logs:
                shown["tok/s"] = f"{logs['tokens_per_second']:,.0f}"
                shown["MFU"] = f"{logs['mfu']:.0%}" if "mfu" in logs else "unknown"
            self.training_bar.set_postfix(shown)
        elif "eval_bits_per_byte" in logs:
            self.training_bar.write(
                f"  step {state.global_step:>5} | validation: {logs['eval_bits_per_byte']:.4f} bits per byte, "
                f"perplexity {logs['eval_perplexity']:,.2f} per token ({logs['eval_predicted_tokens']:,} tokens)"
            )


class LossSpikes(TrainerCallback):
    """Says when the loss jumps or is not a number, and marks it in the log as `loss_spike`."""

    def __init__(self) -> None:
        self.recent: deque[float] = deque(maxlen=_WINDOW)

    def on_train_begin(self, args: object, state: TrainerState, control: object, **kwargs: object) -> None:
        for entry in state.log_history:
            self._remember(entry.get("loss"))

    def on_log(self, args: object, state: TrainerState, control: object, logs: Any = None, **kwargs: object) -> None:
        loss = (logs or {}).get("loss")
        if loss is None:
            return
        if is_spike(loss, self.recent):
            state.log_history[-1]["loss_spike"] = True
            if state.is_world_process_zero:
                tqdm.write(f"  step {state.global_step:>5} | warning: the loss jumped to {loss:.3f}")
        self._remember(loss)

    def _remember(self, loss: float | None) -> None:
        if loss is not None and math.isfinite(loss):  # one NaN would make a NaN of every mean to come
            self.recent.append(loss)


def is_spike(loss: float, before: "deque[float]") -> bool:
    """Whether `loss` is not finite, or more than `SPIKE_SIGMAS` standard deviations above the mean of `before`.

    With fewer than half a window of losses before it, only what is not finite is one.
    """
    if not math.isfinite(loss):
        return True
    if len(before) < _WINDOW // 2:
        return False
    return loss > statistics.fmean(before) + SPIKE_SIGMAS * max(statistics.stdev(before), 1e-3)
