"""The precision of a run is decided once: by its first process, for all of them, and for when it is resumed."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from accelerate.utils import broadcast_object_list

from hfchat.storage import write_whole
from hfchat.training.run_arguments import replaced

if TYPE_CHECKING:
    from transformers import TrainingArguments

Arguments = TypeVar("Arguments", bound="TrainingArguments")

_RECORD = "precision.json"


def keep_precision(args: Arguments, folder: Path) -> Arguments:
    """The same settings, in the precision that the run began in where no precision is asked for.

    Each process measures which one is faster (`hfchat.models.trains_faster_in_bf16`). On a machine where they are
    nearly equal, two processes, or a run and its continuation, may decide differently.

    Args:
        args: From `hfchat.config.parse`.
        folder: Where the decision is recorded.
    """
    if not {"bf16", "fp16"}.isdisjoint(args.asked):
        return args
    record, decided = folder / _RECORD, [args.bf16]
    if args.process_index == 0 and record.is_file():
        decided = [json.loads(record.read_text(encoding="utf-8"))["bf16"]]
    elif args.process_index == 0:
        record.parent.mkdir(parents=True, exist_ok=True)
        write_whole(record, json.dumps({"bf16": args.bf16}))
    broadcast_object_list(decided)
    (bf16,) = decided
    mixed_precision = "bf16" if bf16 else os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    return replaced(args, bf16=bf16, mixed_precision=mixed_precision)
