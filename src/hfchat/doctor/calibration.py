"""A few real steps of a run, in a process of its own."""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hfchat.doctor.recipes import Recipe
from hfchat.doctor.trial import Calibration, Trial

SECONDS = 10.0  # of steps after the warm-up
_SHORT_ANSWERS = 32  # tokens: of much shorter ones, most of the time is reading the prompts
_TIMEOUT = 900


def calibrate(
    recipe: Recipe, argv: Sequence[str], settings: Any, *, close: bool, seconds: float = SECONDS
) -> Calibration | str:
    """Run the recipe for a few steps and measure it; nothing is left on disk.

    Args:
        recipe: What to run.
        argv: Its command line.
        settings: The first of its parsed dataclasses.
        close: Whether it also does what follows the training: merge, save, certify.
        seconds: Seconds of steps after the warm-up.

    Returns:
        What was measured, with the time of samples as long as the run's; or in one line why nothing could be measured.
    """
    # Answers take as long as they have tokens: the time of short ones is scaled to the run's.
    overrides, scale = [], 1.0
    if key := recipe.shortened:
        tokens = getattr(settings, key)
        scale = max(1.0, tokens / _SHORT_ANSWERS)
        overrides = [f"--{key}", str(min(_SHORT_ANSWERS, tokens))]
    with tempfile.TemporaryDirectory(prefix="hfchat-doctor-") as folder:
        trial = Trial(f"{folder}/measured.json", seconds, close)
        command = [sys.executable, str(recipe.script), *argv, *overrides]
        command += ["--output_dir", f"{folder}/output", "--report_to", "none"]
        try:
            finished = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_TIMEOUT,
                check=False,
                env={**os.environ, "PYTHONWARNINGS": "ignore", **trial.environment()},
            )
        except subprocess.TimeoutExpired:
            return f"the first steps took more than {_TIMEOUT // 60} minutes"
        if not Path(trial.result).is_file():
            return _reason(finished)
        measured = Calibration(**json.loads(Path(trial.result).read_text(encoding="utf-8")))
    return dataclasses.replace(measured, samples_seconds=scale * measured.samples_seconds)


def _reason(finished: "subprocess.CompletedProcess[str]") -> str:
    lines = finished.stderr.strip().splitlines() or finished.stdout.strip().splitlines()
    if finished.returncode < 0:
        return f"the first steps were ended by signal {-finished.returncode}: out of memory, probably"
    return lines[-1].removeprefix("error: ") if lines else f"the first steps ended with status {finished.returncode}"
