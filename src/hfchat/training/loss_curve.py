"""The loss along a run as a picture and as JSON."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# One of `trainer.state.log_history`; `step` and numbers by their names.
Entry = Mapping[str, float]
_CLOCKS = (("hours", 3600), ("minutes", 60), ("seconds", 1))


def save_loss_curve(log_history: Sequence[Entry], folder: Path, eval_metric: str, eval_label: str) -> None:
    """Write `loss_curve.png` and, with the numbers behind it, `loss_curve.json`.

    The picture shows training loss, its spikes and the validation metric over the steps, and above them the time.

    Args:
        log_history: `trainer.state.log_history`.
        folder: Where to write.
        eval_metric: Key of the validation metric, e.g. `"eval_bits_per_byte"`.
        eval_label: Label of its axis, with the unit.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    # On the left axis the training loss, with its spikes.
    figure, left = plt.subplots(figsize=(8, 4.5), layout="constrained")
    train = [entry for entry in log_history if "loss" in entry]
    _draw(left, train, "loss", color="tab:gray", linewidth=1.2, label="training loss")
    left.set_xlabel("step")
    left.set_ylabel("training loss (nats per token)")
    left.grid(alpha=0.25)
    spikes = [entry["step"] for entry in train if entry.get("loss_spike")]
    if spikes:  # as lines, since a loss that is not a number has no height
        height = left.get_xaxis_transform()
        left.vlines(spikes, 0, 1, transform=height, color="tab:red", alpha=0.5, linewidth=1, label="loss spike")
    # On the right one the validation metric, with its last value.
    evaluation = [entry for entry in log_history if eval_metric in entry]
    if evaluation:
        right = left.twinx()
        _draw(right, evaluation, eval_metric, color="tab:blue", marker="o", markersize=4, label=eval_label)
        right.set_ylabel(eval_label, color="tab:blue")
        right.tick_params(axis="y", colors="tab:blue")
        value = evaluation[-1][eval_metric]
        right.annotate(
            f"{value:.3f}",
            (evaluation[-1]["step"], value),
            textcoords="offset points",
            xytext=(0, 7),
            ha="right",
            color="tab:blue",
        )
    _show_time(left, log_history)
    handles = [handle for axes in figure.axes for handle in axes.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    figure.savefig(folder / "loss_curve.png", dpi=120)
    plt.close(figure)
    (folder / "loss_curve.json").write_text(json.dumps(log_history, indent=1), encoding="utf-8")


def _draw(axes: "Axes", entries: Sequence[Entry], key: str, **style: Any) -> None:
    axes.plot([entry["step"] for entry in entries], [entry[key] for entry in entries], **style)


def _show_time(axes: "Axes", log_history: Sequence[Entry]) -> None:
    """Mark round times above the steps at which they had passed."""
    import numpy as np
    from matplotlib.ticker import MaxNLocator

    clock = [(entry["step"], entry["elapsed_seconds"]) for entry in log_history if "elapsed_seconds" in entry]
    if len(clock) < 2:
        return
    steps, seconds = map(np.array, zip(*clock, strict=True))
    unit, length = next((unit for unit in _CLOCKS if seconds[-1] >= 2 * unit[1]), _CLOCKS[-1])
    times = MaxNLocator(6).tick_values(0, seconds[-1] / length)
    times = [time for time in times if seconds[0] <= time * length <= seconds[-1]]
    top = axes.secondary_xaxis("top")
    top.set_ticks(np.interp([time * length for time in times], seconds, steps), [f"{time:g}" for time in times])
    top.set_xlabel(unit)
