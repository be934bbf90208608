"""A few real steps of a run, measured from inside.

Each training recipe calls `observe` on its trainer. That does nothing, unless `hfchat doctor` has started the recipe:
then the training ends after a few steps and leaves out its checkpoints, and what was measured is written to a file.
"""

import atexit
import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from hfchat.doctor.machine import peak_children_bytes, resident_bytes
from hfchat.processes import peak_resident_bytes, reset_peak_resident_bytes
from hfchat.storage import write_whole

if TYPE_CHECKING:
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

_VARIABLE = "HFCHAT_TRIAL"
_WARM_UP = 2  # steps: the first ones allocate, choose kernels and compile
_LEAST_STEPS = 3
_EVALUATION_BATCHES = 4


@dataclass(frozen=True)
class Trial:
    """What to measure.

    Attributes:
        result: File of the `Calibration`.
        seconds: Seconds of steps after the warm-up.
        close: Whether the recipe also does what follows the training: merge, save, certify. Its evaluations are short.
    """

    result: str
    seconds: float
    close: bool

    def environment(self) -> Mapping[str, str]:
        """What the environment of the recipe needs to have."""
        return {_VARIABLE: json.dumps(dataclasses.asdict(self))}


@dataclass
class Calibration:
    """What was measured: memory in bytes (of the process, or of the GPU's memory), time in seconds.

    Attributes:
        startup_seconds: From the start of the process to that of the training: libraries, data, model.
        samples_seconds: What the run does before its first step, such as answering prompts.
        warm_up_seconds: What the first steps took beyond as many later ones.
        step_seconds: One step after the warm-up: the median.
        measured_steps: How many steps there were.
        max_steps: Steps of the whole run.
        epochs: Epochs of the whole run.
        training_peak_bytes: Until the last of these steps.
        evaluation_seconds: One whole evaluation, from a few batches.
        evaluation_peak_bytes: While these batches were evaluated.
        closing_seconds: From the end of the training to that of the process, with short evaluations; None if not run.
        closing_peak_bytes: With what other processes it starts; None if not run.
    """

    startup_seconds: float
    samples_seconds: float = 0.0
    warm_up_seconds: float = 0.0
    step_seconds: float = 0.0
    measured_steps: int = 0
    max_steps: int = 0
    epochs: float = 0.0
    training_peak_bytes: int = 0
    evaluation_seconds: float = 0.0
    evaluation_peak_bytes: int = 0
    closing_seconds: float | None = None
    closing_peak_bytes: int | None = None

    @property
    def peak_bytes(self) -> int:
        return max(self.training_peak_bytes, self.evaluation_peak_bytes, self.closing_peak_bytes or 0)


def observe(trainer: "Trainer") -> None:
    """Measure a training that is about to begin, if the doctor asks for it in the environment."""
    if _VARIABLE in os.environ:
        trainer.add_callback(_Observer(trainer, Trial(**json.loads(os.environ[_VARIABLE]))))


class _Observer(TrainerCallback):
    """Ends a training when its steps after the warm-up have taken long enough, and keeps it from saving."""

    def __init__(self, trainer: "Trainer", trial: Trial):
        import psutil

        self.trainer, self.trial = trainer, trial
        self.measured = Calibration(startup_seconds=time.time() - psutil.Process().create_time())
        self.observed = self.began = self.ended = time.perf_counter()
        self.steps: list[float] = []  # when each ended
        self.batches: list[float] = []  # the same of an evaluation
        trainer.args.load_best_model_at_end = trainer.args.eval_on_start = False

    def on_train_begin(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        self.began = time.perf_counter()

    def on_step_end(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.steps.append(time.perf_counter())
        warm = len(self.steps) - _WARM_UP
        if warm >= _LEAST_STEPS and self.steps[-1] - self.steps[_WARM_UP - 1] >= self.trial.seconds:
            control.should_training_stop = True
        control.should_save = control.should_evaluate = control.should_log = False

    def on_epoch_end(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        control.should_save = control.should_evaluate = control.should_log = False

    def on_prediction_step(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        self.batches.append(time.perf_counter())

    def on_train_end(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        seconds = [end - start for start, end in pairwise([self.began, *self.steps])]
        each = statistics.median(seconds[_WARM_UP:] or seconds)
        self.measured = dataclasses.replace(
            self.measured,
            samples_seconds=self.began - self.observed,
            warm_up_seconds=max(0.0, sum(seconds[:_WARM_UP]) - len(seconds[:_WARM_UP]) * each),
            step_seconds=each,
            measured_steps=len(seconds),
            max_steps=state.max_steps,
            epochs=state.num_train_epochs,
            training_peak_bytes=_peak(),
        )
        _reset_peak()
        self._evaluate()
        _reset_peak()
        if not self.trial.close:
            self._write()
            os._exit(0)  # nothing that the recipe has begun is to be finished
        self.ended = time.perf_counter()
        # Also where a model that learned for so few steps fails a check at the end: that took its time.
        atexit.register(self._close)

    def _evaluate(self) -> None:
        """Evaluate a few batches: what each takes, and what an evaluation takes besides, such as samples."""
        whole = self.trainer.eval_dataset
        if whole is None or isinstance(whole, dict):
            return
        size = self.trainer.args.eval_batch_size
        samples = range(min(_EVALUATION_BATCHES * size, len(whole)))
        few = whole.select(samples) if hasattr(whole, "select") else torch.utils.data.Subset(whole, samples)
        began = time.perf_counter()
        self.trainer.evaluate(few)
        taken = time.perf_counter() - began
        self.trainer.eval_dataset = few  # what the recipe evaluates at its end

        # A trainer that has a loop of its own tells of no batches: it has evaluated everything.
        between = [end - start for start, end in pairwise(self.batches)]
        each = statistics.median(between) if between else taken
        further = -(-len(whole) // size) - -(-len(samples) // size) if self.batches else 0
        self.measured.evaluation_seconds = taken + further * each
        self.measured.evaluation_peak_bytes = _peak()

    def _close(self) -> None:
        """After the recipe's last line."""
        peak = _peak()
        if not torch.cuda.is_available():  # other processes that it started ran beside it
            peak = max(peak, resident_bytes() + peak_children_bytes())
        self.measured.closing_peak_bytes = peak
        self.measured.closing_seconds = time.perf_counter() - self.ended
        self._write()

    def _write(self) -> None:
        write_whole(Path(self.trial.result), json.dumps(dataclasses.asdict(self.measured)))
        sys.stdout.flush()


def _peak() -> int:
    if torch.cuda.is_available():
        # The context and the kernels of this process are memory beside its tensors, with that of other processes.
        free, total = torch.cuda.mem_get_info()
        return torch.cuda.max_memory_reserved() + total - free - torch.cuda.memory_reserved()
    return peak_resident_bytes()


def _reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    reset_peak_resident_bytes()
