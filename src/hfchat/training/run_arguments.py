"""What the settings of several trainings have in common."""

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from hfchat.config import setting
from hfchat.models import trains_faster_in_bf16

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from hfchat.training.adapters import ModelArguments

Arguments = TypeVar("Arguments")


@dataclass
class RunArguments:
    """Fields of pretraining, fine-tuning and preference tuning; they go before a class of `TrainingArguments`."""

    dataset_config_name: str | None = setting(None, "Configuration of the dataset, if it has several.")
    overwrite_output_dir: bool = setting(
        False, "Replace an output that was made from other inputs or settings.", identity=False
    )
    bf16: bool | None = setting(None, "By default where the machine is faster with it.")
    logging_nan_inf_filter: bool = setting(False, "Hide losses that are not numbers.")
    save_total_limit: int | None = setting(2, "Number of checkpoints to keep.")


@dataclass
class TuningArguments(RunArguments):
    """Fields of fine-tuning and preference tuning."""

    dataset_train_split: str = setting("train", "Split to train on.")
    dataset_test_split: str = setting("validation", "Split to measure on.")
    allow_template_mismatch: bool = setting(
        False, "Go on although the model was trained with another version of hfchat's chat template."
    )
    max_length: int = setting(512, "Longest sequence in tokens; longer rows are left out, and none is cut.")
    # Unset, because transformers 5.24 warns of any value.
    gradient_checkpointing: bool | None = setting(None, "Use less memory for about a third more time.")
    lr_scheduler_type: str = setting("cosine", "Schedule of the learning rate.")
    warmup_steps: float = setting(0.05, "Warm-up in steps, or below 1 as a share of them.")
    eval_strategy: str = setting("epoch", "When to measure on the test split.")
    save_strategy: str = setting("epoch", "When to write a checkpoint.")


def settle_device(args: "TrainingArguments") -> None:
    """Fill `use_cpu` and `bf16` from the machine, where they are not set; call it in `__post_init__`."""
    args.use_cpu = args.use_cpu or not torch.accelerator.is_available()
    if args.bf16 is None:
        args.bf16 = not args.fp16 and trains_faster_in_bf16()


def derived_dtype(model: "ModelArguments", args: "TrainingArguments") -> str:
    """The type of the weights that are not trained: as it is set, or the one that the run computes in."""
    return model.dtype or ("bfloat16" if args.bf16 else "float32")


def steps_per_epoch(args: "TrainingArguments", sequences: int) -> int:
    """Steps in which a run goes once through so many sequences."""
    per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    return max(1, math.ceil(sequences / per_step))


def replaced(args: Arguments, **values: Any) -> Arguments:
    """A copy of `args` with other values.

    `dataclasses.replace` would run `__post_init__` again, which the libraries' classes are not made for: it takes what
    it derived for what was asked.
    """
    changed = copy.copy(args)
    for name, value in values.items():
        setattr(changed, name, value)
    return changed


def for_trainer(args: Arguments, checkpoints: Path) -> Arguments:
    """The same settings for a `Trainer`, whose `output_dir` is the folder of its checkpoints."""
    return replaced(args, output_dir=str(checkpoints))
