"""How long a training takes, from what its first steps took."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Duration:
    """Seconds of each part of a run."""

    startup: float
    training: float
    evaluation: float
    samples: float
    saving: float
    closing: float

    @property
    def total(self) -> float:
        return self.startup + self.training + self.evaluation + self.samples + self.saving + self.closing


def occurrences(strategy: str, every: float | None, max_steps: int, epochs: float, *, at_the_end: bool) -> int:
    """How often a run evaluates or saves.

    Args:
        strategy: `"no"`, `"steps"`, `"epoch"`, or `"best"`, which is at most as often as the steps.
        every: Steps between two of them; below 1 a share of all steps, as in `TrainingArguments`.
        max_steps: Steps of the run.
        epochs: Epochs of the run.
        at_the_end: Whether one comes after the last step anyway.
    """
    if strategy == "epoch":
        return max(1, math.ceil(epochs))
    if strategy == "no" or every is None:
        return int(at_the_end)
    steps = max(1, math.ceil(max_steps * every) if every < 1 else int(every))
    return max_steps // steps + int(at_the_end and max_steps % steps > 0)
