"""The precision of a run is decided once: by its first process, for all of them, and for when it is resumed."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from accelerate.utils import broadcast_object_list

from hfchat.storage import write_whole

if TYPE_CHECKING:
    from transformers import TrainingArguments

_RECORD = "precision.json"


def keep_precision(args: "TrainingArguments") -> None:
    """Compute in the precision that the run began in, where no precision is asked for.

    Each process measures which one is faster (`hfchat.models.trains_faster_in_bf16`). On a machine where they are
    nearly equal, two processes, or a run and its continuation, may find different ones.

    Args:
        args: From `hfchat.config.parse`, changed in place. The decision is recorded in their `output_dir`.
    """
    if not {"bf16", "fp16"}.isdisjoint(args.asked):
        return
    record, decided = Path(args.output_dir) / _RECORD, [args.bf16]
    if args.process_index == 0 and record.is_file():
        decided = [json.loads(record.read_text(encoding="utf-8"))["bf16"]]
    elif args.process_index == 0:
        record.parent.mkdir(parents=True, exist_ok=True)
        write_whole(record, json.dumps({"bf16": args.bf16}))
    broadcast_object_list(decided)
    (args.bf16,) = decided
    args.mixed_precision = "bf16" if args.bf16 else os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
