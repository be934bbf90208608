"""The loss along a run as a picture and as JSON."""

import json
from pathlib import Path
from typing import Any


def save_loss_curve(log_history: list[dict[str, Any]], folder: Path, eval_metric: str, eval_label: str) -> None:
    """Write `loss_curve.png` and, with the numbers behind it, `loss_curve.json`.

    Args:
        log_history: `trainer.state.log_history`.
        folder: Where to write.
        eval_metric: Key of the validation metric, e.g. `"eval_bits_per_byte"`.
        eval_label: What it is, with its unit.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    train = [(entry["step"], entry["loss"]) for entry in log_history if "loss" in entry]
    evaluation = [(entry["step"], entry[eval_metric]) for entry in log_history if eval_metric in entry]
    figure, left = plt.subplots(figsize=(7, 4), layout="constrained")
    left.plot(*zip(*train, strict=True), color="tab:gray", linewidth=1, label="training loss")
    left.set_xlabel("step")
    left.set_ylabel("training loss (nats per token)", color="tab:gray")
    left.grid(alpha=0.3)
    if evaluation:
        right = left.twinx()
        right.plot(*zip(*evaluation, strict=True), color="tab:blue", marker="o", markersize=4)
        right.set_ylabel(eval_label, color="tab:blue")
        step, value = evaluation[-1]
        right.annotate(f"{value:.3f}", (step, value), textcoords="offset points", xytext=(-4, 8), ha="right")
    figure.savefig(folder / "loss_curve.png", dpi=120)
    plt.close(figure)
    (folder / "loss_curve.json").write_text(json.dumps(log_history, indent=1), encoding="utf-8")
