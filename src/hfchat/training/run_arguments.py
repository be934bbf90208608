"""What the settings of several trainings have in common."""

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from hfchat.models import trains_faster_in_bf16

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from hfchat.training.adapters import ModelArguments

Arguments = TypeVar("Arguments")


@dataclass
class RunArguments:
    """Fields of pretraining, fine-tuning and preference tuning; they go before a class of `TrainingArguments`."""

    dataset_config_name: str | None = field(
        default=None, metadata={"help": "Configuration of the dataset, if it has several."}
    )
    overwrite_output_dir: bool = field(
        default=False,
        metadata={"help": "Replace an output that was made from other inputs or settings.", "identity": False},
    )
    bf16: bool | None = field(default=None, metadata={"help": "By default where the machine is faster with it."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Hide losses that are not numbers."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Number of checkpoints to keep."})


@dataclass
class TuningArguments(RunArguments):
    """Fields of fine-tuning and preference tuning."""

    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_test_split: str = field(default="validation", metadata={"help": "Split to measure on."})
    allow_template_mismatch: bool = field(
        default=False,
        metadata={"help": "Go on although the model was trained with another version of hfchat's chat template."},
    )
    max_length: int = field(
        default=512, metadata={"help": "Longest sequence in tokens; longer rows are left out, and none is cut."}
    )
    gradient_checkpointing: bool | None = field(  # unset, because transformers 5.24 warns of any value
        default=None, metadata={"help": "Use less memory for about a third more time."}
    )
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule of the learning rate."})
    warmup_steps: float = field(default=0.05, metadata={"help": "Warm-up in steps, or below 1 as a share of them."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to measure on the test split."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to write a checkpoint."})


def settle_device(args: "TrainingArguments") -> None:
    """Fill `use_cpu` and `bf16` from the machine, where they are not set; call it in `__post_init__`."""
    args.use_cpu = args.use_cpu or not torch.accelerator.is_available()
    if args.bf16 is None:
        args.bf16 = not args.fp16 and trains_faster_in_bf16()


def derived_dtype(model: "ModelArguments", args: "TrainingArguments") -> str:
    """The type of the weights that are not trained: as it is set, or the one that the run computes in."""
    return model.dtype or ("bfloat16" if args.bf16 else "float32")


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
