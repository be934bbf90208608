"""`--toy`: the settings of any run made so small that it ends in minutes, without a GPU or a network."""

import json
from pathlib import Path
from typing import Any

from hfchat.models import BUNDLED
from hfchat.pipeline import Settings, recipes_root

# What is small for each recipe, whatever its YAML says.
_FEW_STEPS = {
    "max_steps": 24,
    "logging_steps": 8,
    "eval_strategy": "steps",
    "eval_steps": 12,
    "save_strategy": "steps",
    "save_steps": 12,
    "gradient_accumulation_steps": 1,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 2,
}
SMALL: dict[str, Settings] = {
    "prepare_data": {
        "sources": [{"path": "installed-docs", "max_bytes_per_package": 60_000}],
        "validation_fraction": 0.05,
        "tasks": 2,
    },
    "train_tokenizer": {"vocab_size": 2048},
    "pretrain": {
        **_FEW_STEPS,
        "depth": 2,
        "block_size": 256,
        "max_steps": 40,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 16,
    },
    "prepare_conversations": {"validation_fraction": 0.1},
    "finetune": {**_FEW_STEPS, "max_length": 256, "sample_answers": 4, "sample_max_new_tokens": 32},
    "align": {**_FEW_STEPS, "max_length": 256},
    "evaluate": {"bootstrap_resamples": 100},
    "publish": {"dry_run": True},
}
# The keys of an evaluation's tasks that make them small, by kind. Other kinds need a network, and are left out.
_SMALL_TASKS: dict[str, dict[str, int]] = {
    "answers": {"max_samples": 8, "max_new_tokens": 48},
    "facts": {"max_samples": 8, "max_new_tokens": 48},
    "perplexity": {"max_samples": 20},
    "crows_pairs": {"max_samples": 8},
    "continuations": {"max_templates": 1, "max_new_tokens": 8},
    "refusal": {"max_new_tokens": 8},
    "preferences": {"max_samples": 8},
    "tools": {"max_samples": 8, "max_new_tokens": 48},
    "json": {"max_samples": 8, "max_new_tokens": 48},
}
PAIRS = "toy-pairs"  # below the run's output
_PAIRS = 40


def shrink(recipe: str, settings: Settings, output_dir: str, *, has_align: bool) -> tuple[Settings, str]:
    """What to override of a recipe's settings, and in one line what that makes smaller.

    Args:
        recipe: Its name.
        settings: Those of its YAML, with the paths of the toy run.
        output_dir: The toy run's folder; what lies there is at hand, or will be.
        has_align: Whether the run learns from preferences, which prepared conversations then are.
    """
    small = dict(SMALL[recipe])
    if recipe == "prepare_conversations":
        rows = f"{output_dir}/{PAIRS}/train.jsonl" if has_align else f"{_assistant()}/train.jsonl"
        small["sources"] = [{"path": rows, "name": "toy", "license": "Apache-2.0"}]
    if recipe == "finetune":
        small |= _local_conversations(settings, output_dir)
    if recipe == "align" and not _is_here(settings.get("dataset_name", ""), output_dir):
        small["dataset_name"] = f"{output_dir}/{PAIRS}"
    base = settings.get("model_name_or_path")
    if base and not _is_here(base, output_dir):
        small["model_name_or_path"] = BUNDLED
    left_out = ""
    if recipe == "evaluate":
        shrunk, left_out = _small_evaluation(settings, output_dir)
        small |= shrunk
    said = ", ".join(f"{key} {_shown(value)}" for key, value in small.items() if settings.get(key) != value)
    return small, f"{recipe}: {said}{left_out}"


def write_pairs(output_dir: str) -> None:
    """Write pairs of answers, for a run whose own are on the Hub: a right answer before that to another question."""
    folder = Path(output_dir) / PAIRS
    folder.mkdir(parents=True, exist_ok=True)
    lines = Path(_assistant(), "train.jsonl").read_text(encoding="utf-8").splitlines()
    turns = [row["messages"] for row in map(json.loads, lines) if len(row["messages"]) == 2]
    turns = turns[:: max(1, len(turns) // (2 * _PAIRS))]
    pairs = [
        {"prompt": prompt["content"], "chosen": right["content"], "rejected": other["content"]}
        for (prompt, right), (_, other) in zip(turns, [*turns[1:], turns[0]], strict=True)
        if right != other
    ]
    for split, rows in (("train", pairs[:_PAIRS]), ("validation", pairs[_PAIRS : _PAIRS + 8])):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")


def _local_conversations(settings: Settings, output_dir: str) -> Settings:
    """Those datasets of a fine-tuning that are at hand; the repository's conversations where none is."""
    if mixture := settings.get("dataset_mixture"):
        here = [entry for entry in mixture if _is_here(entry["path"], output_dir)]
        return {"dataset_mixture": here or [{"path": _assistant()}]}
    if name := settings.get("dataset_name"):
        return {} if _is_here(name, output_dir) else {"dataset_name": _assistant()}
    return {}


def _small_evaluation(settings: Settings, output_dir: str) -> tuple[Settings, str]:
    """Overrides of an evaluation, and what is left out because it is on the Hub or a server."""
    models = settings.get("models", [])
    here = [entry for entry in models if _is_here(entry.partition("=")[2], output_dir)]
    small: Settings = {"models": here or models}
    if "tasks" not in settings:
        return small | {"max_samples": 8, "max_new_tokens": 48}, ""

    # A task's data may be the Hub's, too.
    tasks = [{"kind": task} if isinstance(task, str) else task for task in settings["tasks"]]
    kept = []
    for task in tasks:
        keys = _SMALL_TASKS.get(task.get("kind", "answers"))
        if keys is not None and _is_here(task.get("dataset_name", "recipes"), output_dir):
            kept.append(task | keys)
    names = [task.get("name", task.get("kind")) for task in tasks]
    gone = set(names) - {task.get("name", task.get("kind")) for task in kept}
    gone |= {entry.partition("=")[0] for entry in models} - {entry.partition("=")[0] for entry in small["models"]}
    left_out = f"; left out, as they need a network: {', '.join(sorted(map(str, gone)))}" if gone else ""
    return small | {"tasks": kept}, left_out


def _is_here(name: str, output_dir: str) -> bool:
    """Whether a dataset or model is on this machine, or will be when the stages before have run."""
    return name == BUNDLED or name.startswith(f"{output_dir}/") or Path(name).exists() or name == "recipes"


def _assistant() -> str:
    return str(recipes_root() / "recipes" / "data" / "assistant")


def _shown(value: Any) -> str:
    """A value in a line: of lists of mappings, what they are of."""
    if isinstance(value, list):
        shown = [
            item.get("path") or item.get("name") or item.get("kind") if isinstance(item, dict) else item
            for item in value
        ]
        return f"[{', '.join(map(str, shown))}]"
    return str(value)
