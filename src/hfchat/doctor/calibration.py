"""A few real steps of a run, in a process of its own."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hfchat.doctor.recipes import Recipe

SECONDS = 10.0  # of steps after the warm-up
_SHORT_ANSWERS = 32  # tokens: of much shorter ones, most of the time is reading the prompts
_TIMEOUT = 900


@dataclass(frozen=True)
class Calibration:
    """What was measured: memory in bytes, time in seconds.

    Attributes:
        startup_seconds: From the start of the process to that of the training: libraries, data, model.
        samples_seconds: What the run does before its first step, such as answering prompts; with answers as long as
            the run's.
        warm_up_seconds: What the first steps took beyond as many later ones.
        step_seconds: Of one step after the warm-up: the median.
        measured_steps: How many there were.
        max_steps: Of the run.
        epochs: Of the run.
        training_peak_bytes: Until the last of these steps.
        evaluation_seconds: Of one evaluation, from a few batches.
        evaluation_peak_bytes: Of these.
        closing_seconds: From the end of the training to that of the process, without evaluations; None if not run.
        closing_peak_bytes: With what other processes it starts; None if not run.
    """

    startup_seconds: float
    samples_seconds: float
    warm_up_seconds: float
    step_seconds: float
    measured_steps: int
    max_steps: int
    epochs: float
    training_peak_bytes: int
    evaluation_seconds: float = 0.0
    evaluation_peak_bytes: int = 0
    closing_seconds: float | None = None
    closing_peak_bytes: int | None = None

    @property
    def peak_bytes(self) -> int:
        return max(self.training_peak_bytes, self.evaluation_peak_bytes, self.closing_peak_bytes or 0)


def calibrate(
    recipe: Recipe, argv: Sequence[str], settings: dict[str, object], *, close: bool, seconds: float = SECONDS
) -> Calibration | str:
    """Run the recipe for a few steps and measure it; nothing is left on disk.

    Args:
        recipe: What to run.
        argv: Its command line.
        settings: Its parsed settings.
        close: Whether it also does what follows the training: merge, save, certify.
        seconds: Of steps after the warm-up.

    Returns:
        What was measured, or in one line why it could not be.
    """
    # Answers take as long as they have tokens: the time of short ones is scaled to the run's.
    shorter = {key: min(_SHORT_ANSWERS, settings[key]) for key in recipe.shortened}
    scale = max((settings[key] / length for key, length in shorter.items()), default=1.0)
    overrides = [part for key, length in shorter.items() for part in (f"--{key}", str(length))]
    with tempfile.TemporaryDirectory(prefix="hfchat-doctor-") as folder:
        result = Path(folder) / "measured.json"
        command = [sys.executable, "-m", "hfchat.doctor.probe", result, seconds, int(close), recipe.script, *argv]
        command += [*overrides, "--output_dir", Path(folder) / "output", "--report_to", "none"]
        try:
            finished = subprocess.run(
                list(map(str, command)),
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_TIMEOUT,
                check=False,
                env={**os.environ, "PYTHONWARNINGS": "ignore"},
            )
        except subprocess.TimeoutExpired:
            return f"the first steps took more than {_TIMEOUT // 60} minutes"
        if not result.is_file():
            return _reason(finished)
        measured = json.loads(result.read_text(encoding="utf-8"))
    measured["samples_seconds"] *= scale
    return Calibration(**measured)


def _reason(finished: "subprocess.CompletedProcess[str]") -> str:
    lines = finished.stderr.strip().splitlines() or finished.stdout.strip().splitlines()
    if finished.returncode < 0:
        return f"the first steps were ended by signal {-finished.returncode}: out of memory, probably"
    return lines[-1].removeprefix("error: ") if lines else f"the first steps ended with status {finished.returncode}"
