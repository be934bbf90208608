"""`results.json`: the scores of a suite, with everything that one needs to know of the models and the run."""

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hfchat.evaluation.model import EvaluatedModel
from hfchat.evaluation.records import read_records
from hfchat.evaluation.task import Bootstrap
from hfchat.evaluation.usage import hardware
from hfchat.lineage import versions

_PACKAGES = ("torch", "transformers", "evaluate", "sacrebleu", "rouge-score", "nltk", "lm-eval")
_OF_A_STAGE = (
    "stage", "path", "command", "finished", "duration_s", "inputs", "licenses", "config", "metrics", "versions",
)  # fmt: skip


def collect_results(
    scores: Mapping[str, Mapping[str, Any]],
    models: Sequence[EvaluatedModel],
    usage: Mapping[str, Mapping[str, Any]],
    bootstrap: Bootstrap,
    folder: Path,
) -> dict[str, Any]:
    """What `results.json` holds.

    Args:
        scores: And `usage`: of `hfchat.evaluation.suite.run_suite`.
        models: That were asked.
        usage: Model to `{"parameters", "peak_memory_bytes"}`.
        bootstrap: Of the intervals.
        folder: With the records, in `records/`.
    """
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.argv]),
        "versions": versions(_PACKAGES),
        "hardware": hardware(),
        "bootstrap": vars(bootstrap),
        "models": {
            model.name: {
                **model.describe(),
                "lineage": [{key: stage[key] for key in _OF_A_STAGE} for stage in model.ancestry()],
                "speed": _speed(model, folder / "records"),
                **{key: usage.get(model.name, {}).get(key) for key in ("parameters", "peak_memory_bytes")},
            }
            for model in models
        },
        "tasks": {
            name: {**task, "records": {model: f"records/{name}/{model}.jsonl" for model in task["scores"]}}
            for name, task in scores.items()
        },
    }


def write_results(results: Mapping[str, Any], folder: Path) -> None:
    """Write `results.json`."""
    text = json.dumps(results, indent=2, ensure_ascii=False)
    (folder / "results.json").write_text(text + "\n", encoding="utf-8")


def metrics_of(results: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """Task to model to metric to score, for the lineage."""
    return {
        name: {
            model: {metric: estimate["score"] for metric, estimate in scores.items()}
            for model, scores in task["scores"].items()
        }
        for name, task in results["tasks"].items()
    }


def _speed(model: EvaluatedModel, folder: Path) -> dict[str, Any] | None:
    """Generated tokens per second of generation, over all tasks in which the model generated."""
    records = [
        record
        for file in sorted(folder.glob(f"*/{model.name}.jsonl"))
        for record in read_records(file)
        if record.answer is not None and record.seconds
    ]
    if not records:
        return None
    tokens, seconds = (sum(getattr(record, key) for record in records) for key in ("answer_tokens", "seconds"))
    return {
        "tokens_per_second": tokens / seconds,
        "answer_tokens": tokens,
        "seconds": seconds,
        "batch_size": model.batch_size,
    }
