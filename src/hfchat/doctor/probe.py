"""The program that the calibration runs: a recipe whose training ends after a few steps, and is measured.

    python -m hfchat.doctor.probe RESULT.json SECONDS CLOSE RECIPE.py --config FILE ...

The recipe is run as it is, with its own data, model and `Trainer`, whose steps end after the seconds given; no
checkpoint is written. With CLOSE 1, what the recipe does after the training is run too, but for whole evaluations.
"""

import json
import os
import runpy
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils.data import Subset
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import TrainOutput

from hfchat.doctor.machine import peak_children_bytes, resident_bytes
from hfchat.errors import run
from hfchat.processes import peak_resident_bytes, reset_peak_resident_bytes

_WARM_UP = 2  # steps: the first ones allocate, choose kernels and compile
_LEAST_STEPS = 3
_EVALUATION_BATCHES = 3


class _Stopwatch(TrainerCallback):
    """Ends a training when its steps after the warm-up have taken `seconds`, and keeps it from saving."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.times: list[float] = []
        self.began = 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        self.began = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        steps = len(self.times) - _WARM_UP
        if steps >= _LEAST_STEPS and self.times[-1] - self.times[_WARM_UP - 1] >= self.seconds:
            control.should_training_stop = True
        self._leave_out_the_rest(control)

    def on_epoch_end(self, args, state, control, **kwargs):
        self._leave_out_the_rest(control)

    @staticmethod
    def _leave_out_the_rest(control: Any) -> None:
        control.should_save = control.should_evaluate = control.should_log = False

    @property
    def step_seconds(self) -> float:
        """Median of the steps after the warm-up; with fewer, of all."""
        steps = [end - start for start, end in pairwise([self.began, *self.times])]
        return statistics.median(steps[_WARM_UP:] or steps)

    @property
    def warm_up_seconds(self) -> float:
        """What the first steps took beyond as many later ones."""
        first = self.times[:_WARM_UP][-1] - self.began
        return max(0.0, first - min(_WARM_UP, len(self.times)) * self.step_seconds)


class _Measurement:
    """Stands in for `Trainer.train` and `Trainer.evaluate`: peaks in bytes (of the process, or of the GPU's memory),
    times in seconds."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.measured: dict[str, float] = {}
        self._train, self._evaluate = Trainer.train, Trainer.evaluate
        self.trained = False
        self._closing_began = 0.0
        self._evaluating = 0.0
        self._samples = 0

    def train(self, trainer: Trainer) -> TrainOutput:
        began = time.time()
        self.measured["startup_seconds"] = began - psutil.Process().create_time()
        stopwatch = _Stopwatch(self.seconds)
        trainer.add_callback(stopwatch)
        trainer.args.load_best_model_at_end = trainer.args.eval_on_start = False
        entered = time.perf_counter()
        output = self._train(trainer)
        self.measured |= {
            "samples_seconds": stopwatch.began - entered,
            "training_peak_bytes": _peak(),
            "step_seconds": stopwatch.step_seconds,
            "warm_up_seconds": stopwatch.warm_up_seconds,
            "measured_steps": len(stopwatch.times),
            "max_steps": trainer.state.max_steps,
            "epochs": trainer.state.num_train_epochs,
        }
        _reset_peak()
        if trainer.eval_dataset is not None and not isinstance(trainer.eval_dataset, dict):
            self._measure_evaluation(trainer)
        _reset_peak()
        self.trained, self._closing_began = True, time.perf_counter()
        return output

    def evaluate(self, trainer: Trainer, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        began, whole = time.perf_counter(), trainer.eval_dataset
        if eval_dataset is None:
            trainer.eval_dataset = _first(whole, self._samples)
        try:
            return self._evaluate(trainer, eval_dataset, *args, **kwargs)
        finally:
            trainer.eval_dataset = whole
            self._evaluating += time.perf_counter() - began

    def close(self) -> None:
        """After the recipe's last line."""
        peak = _peak()
        if not torch.cuda.is_available():  # other processes that it started ran beside it
            peak = max(peak, resident_bytes() + peak_children_bytes())
        self.measured["closing_peak_bytes"] = peak
        self.measured["closing_seconds"] = time.perf_counter() - self._closing_began - self._evaluating

    def _measure_evaluation(self, trainer: Trainer) -> None:
        """One batch, then some: what each takes, and what an evaluation takes besides, such as samples."""
        size = trainer.args.eval_batch_size
        batches = -(-len(trainer.eval_dataset) // size)
        few = min(batches, 1 + _EVALUATION_BATCHES)
        seconds = {}
        for count in (1, few):
            self._samples, began = count * size, time.perf_counter()
            trainer.evaluate()
            seconds[count] = time.perf_counter() - began
        per_batch = (seconds[few] - seconds[1]) / (few - 1) if few > 1 else seconds[1]
        self.measured["evaluation_seconds"] = max(0.0, seconds[1] - per_batch) + batches * max(per_batch, 0.0)
        self.measured["evaluation_peak_bytes"] = _peak()
        self._samples, self._evaluating = size, 0.0


def _first(dataset: Any, count: int) -> Any:
    samples = range(min(count, len(dataset)))
    return dataset.select(samples) if hasattr(dataset, "select") else Subset(dataset, samples)


def _peak() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved() + _context_bytes()
    return peak_resident_bytes()


def _context_bytes() -> int:
    """Of the GPU's memory, what this process holds beside tensors: its context and kernels, with those of others."""
    free, total = torch.cuda.mem_get_info()
    return total - free - torch.cuda.memory_reserved()


def _reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    reset_peak_resident_bytes()


def main(result: str, seconds: str, close: str, recipe: str, *arguments: str) -> None:
    measurement = _Measurement(float(seconds))

    def train(self: Trainer, *_: Any, **__: Any) -> TrainOutput:
        output = measurement.train(self)
        if close != "1":
            write()
            os._exit(0)
        return output

    def write() -> None:
        Path(result).write_text(json.dumps(measurement.measured), encoding="utf-8")
        sys.stdout.flush()

    Trainer.train = train
    Trainer.evaluate = lambda self, *args, **kwargs: measurement.evaluate(self, *args, **kwargs)
    sys.argv = [recipe, *arguments]
    try:
        runpy.run_path(recipe, run_name="__main__")
    finally:  # also where a model that learned for so few steps fails a check at the end: it took its time
        if measurement.trained:
            measurement.close()
            write()


if __name__ == "__main__":
    run(lambda: main(*sys.argv[1:]))
