"""Tokens per second of pretraining on one CPU machine: ours, `run_clm.py`, nanoGPT and litgpt, same model and batch.

    python -m benchmarks.throughput --peers ../peers  # about 20 minutes on two cores
    python -m benchmarks.throughput --peers ../peers --repeats 3 --precisions float32
    python -m benchmarks.throughput --peers ../peers --quick  # only to see that it runs

The model is GPT-2 with 4 layers of width 256 and a vocabulary of 4,096, the batch 8 x 256 tokens, the optimizer AdamW;
all compile. litgpt has no learned positions, so its model is GPT-2's but for rotary ones: 65,536 parameters of 4.3 M
fewer. On a CPU, nanoGPT computes in float32 only; the others in float32, and in bfloat16 by autocast.

Every tool runs in a fresh process, in turn, `--repeats` times; the row is its fastest run, as noise only slows down.

- tokens/s: from the end of the warm-up to the last step, by when the lines of progress came. Each tool logs every 10th
  step.
- start-up: seconds until the tool could train at that rate: imports, tokenizing, compiling.
- of the fastest: its tokens per second over those of the fastest other tool in the same precision.
"""

import argparse
import json
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml
from benchmarks.peers import (
    RUN_CLM,
    Finished,
    Ours,
    ProcessFailedError,
    Rate,
    find,
    machine,
    markdown_table,
    python_of,
    run,
    scratch_folder,
    steady_rate,
    steps,
)
from benchmarks.time_to_quality import DATA, VOCABULARY, check_data, prepare, train_tokenizer

LAYERS, WIDTH, HEADS = 4, 256, 4
BLOCK_SIZE, BATCH = 256, 8
LOGGING_STEPS = 10
NOT_FOUND = "not found"
HEADER = ("tool", "precision", "tokens/s", "start-up, s", "of the fastest")


@dataclass(frozen=True)
class Inputs:
    """The same documents as each tool reads them: Parquet, JSON lines, text files, tokens of nanoGPT."""

    corpus: Path
    tokenizer: Path
    json_lines: Path
    texts: Path
    tokens: Path


def prepare_inputs(data: Path, folder: Path) -> Inputs:
    """Prepare the corpus by our recipes, and write it for the other tools."""
    from hfchat.dataset import load_split

    corpus = prepare(data, folder, piece_characters=0)
    inputs = Inputs(
        corpus, train_tokenizer(corpus, folder / "tokenizer"), folder / "json", folder / "texts", folder / "tokens"
    )
    write_nanogpt_tokens(corpus, inputs.tokenizer, inputs.tokens)
    inputs.json_lines.mkdir(exist_ok=True)
    for split, short in (("train", "train"), ("validation", "val")):
        texts = load_split(str(corpus), split, "text")["text"]
        lines = (json.dumps({"text": text}) + "\n" for text in texts)
        (inputs.json_lines / f"{short}.json").write_text("".join(lines), encoding="utf-8")
        (inputs.texts / short).mkdir(parents=True, exist_ok=True)
        (inputs.texts / short / "all.txt").write_text("\n".join(texts), encoding="utf-8")
    return inputs


def write_nanogpt_tokens(corpus: Path, tokenizer_folder: Path, folder: Path) -> None:
    """The corpus as the tokens that nanoGPT reads, each document opened by the BOS token."""
    import numpy as np

    from hfchat.dataset import load_split
    from hfchat.models import load_tokenizer

    tokenizer = load_tokenizer(str(tokenizer_folder))
    folder.mkdir(exist_ok=True)
    for split, short in (("train", "train"), ("validation", "val")):
        with (folder / f"{short}.bin").open("wb") as file:
            for batch in load_split(str(corpus), split, "text").iter(256):
                for ids in tokenizer(batch["text"], add_special_tokens=False)["input_ids"]:
                    np.array([tokenizer.bos_token_id, *ids], dtype=np.uint16).tofile(file)
    (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": len(tokenizer)}))


def run_ours(inputs: Inputs, folder: Path, precision: str, max_steps: int) -> Rate:
    ours = Ours(
        [
            "--dataset_name", str(inputs.corpus), "--tokenizer_name", str(inputs.tokenizer), "--architecture", "gpt2",
            "--depth", str(LAYERS), "--block_size", str(BLOCK_SIZE), "--per_device_train_batch_size", str(BATCH),
            "--optimizer", "adamw", "--torch_compile", "true", "--bf16", str(precision == "bfloat16").lower(),
        ],
        folder,
    )  # fmt: skip
    finished = ours.launch(precision, "--max_steps", str(max_steps), "--logging_steps", str(LOGGING_STEPS))
    return _rate(finished, "trainer", max_steps)


def run_run_clm(checkout: Path, inputs: Inputs, folder: Path, precision: str, max_steps: int) -> Rate:
    model = {
        "n_layer": LAYERS, "n_embd": WIDTH, "n_head": HEADS, "n_positions": BLOCK_SIZE, "vocab_size": VOCABULARY,
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
    }  # fmt: skip
    command = [
        python_of(checkout), str(checkout / RUN_CLM), "--model_type", "gpt2",
        "--tokenizer_name", str(inputs.tokenizer),
        "--config_overrides", ",".join(f"{key}={value}" for key, value in model.items()),
        "--do_train", "--train_file", str(inputs.json_lines / "train.json"), "--block_size", str(BLOCK_SIZE),
        "--validation_file", str(inputs.json_lines / "val.json"), "--per_device_train_batch_size", str(BATCH),
        "--max_steps", str(max_steps), "--logging_steps", str(LOGGING_STEPS), "--save_strategy", "no",
        "--use_cpu", "true", "--bf16", str(precision == "bfloat16").lower(), "--torch_compile", "true",
        "--output_dir", str(folder), "--report_to", "none", "--disable_tqdm", "true",
    ]  # fmt: skip
    finished = run(command, environment={"HF_DATASETS_CACHE": str(folder.with_name("run_clm-cache"))})
    return _rate(finished, "trainer", max_steps)


def run_nanogpt(checkout: Path, inputs: Inputs, folder: Path, precision: str, max_steps: int) -> Rate:
    command = [
        python_of(checkout), "train.py", "--device=cpu", f"--dtype={precision}", f"--dataset={inputs.tokens}",
        f"--n_layer={LAYERS}", f"--n_embd={WIDTH}", f"--n_head={HEADS}", "--bias=True", f"--block_size={BLOCK_SIZE}",
        f"--batch_size={BATCH}", "--gradient_accumulation_steps=1", f"--max_iters={max_steps}", "--eval_iters=1",
        f"--eval_interval={10 * max_steps}", f"--log_interval={LOGGING_STEPS}", f"--out_dir={folder}",
    ]  # fmt: skip
    return _rate(run(command, cwd=checkout), "nanoGPT", max_steps)


def run_litgpt(checkout: Path, inputs: Inputs, folder: Path, precision: str, max_steps: int) -> Rate:
    config = {
        "model_name": "pythia-14m",  # asked for, and overridden by:
        "model_config": {
            "name": "gpt2-rotary", "block_size": BLOCK_SIZE, "n_layer": LAYERS, "n_embd": WIDTH, "n_head": HEADS,
            "vocab_size": VOCABULARY, "padded_vocab_size": VOCABULARY, "rotary_percentage": 1.0,
            "parallel_residual": False, "attn_bias": True, "gelu_approximate": "tanh",
        },
        "out_dir": str(folder),
        "precision": {"float32": "32-true", "bfloat16": "bf16-mixed"}[precision],
        "data": {
            "class_path": "litgpt.data.TextFiles",
            "init_args": {
                "train_data_path": str(inputs.texts / "train"), "val_data_path": str(inputs.texts / "val"),
                "num_workers": 1,
            },
        },
        "train": {
            "global_batch_size": BATCH, "micro_batch_size": BATCH, "max_tokens": max_steps * BATCH * BLOCK_SIZE,
            "max_norm": 1.0, "log_interval": LOGGING_STEPS, "lr_warmup_steps": 1, "tie_embeddings": True,
            "save_interval": 10 * max_steps,
        },
        "eval": {"interval": 10 * max_steps, "max_iters": 1, "initial_validation": False, "final_validation": False},
        "devices": 1,
        "tokenizer_dir": str(inputs.tokenizer),
        "logger_name": "csv",
    }  # fmt: skip
    file = folder.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [python_of(checkout), "-m", "litgpt", "pretrain", "--config", str(file)]
    return _rate(run(command, cwd=checkout, environment={"PYTHONPATH": str(checkout)}), "litgpt", max_steps)


def _rate(finished: Finished, style: str, max_steps: int) -> Rate:
    return steady_rate(steps(finished, style, LOGGING_STEPS), BATCH * BLOCK_SIZE, warmup_steps=max_steps // 3)


PEERS: dict[str, tuple[str, Callable[..., Rate], tuple[str, ...]]] = {
    "run_clm.py": ("transformers", run_run_clm, ("bfloat16", "float32")),
    "nanoGPT": ("nanoGPT", run_nanogpt, ("float32",)),
    "litgpt": ("litgpt", run_litgpt, ("bfloat16", "float32")),
}


def report(rates: dict[tuple[str, str], Rate | str]) -> str:
    """The table.

    Args:
        rates: By tool and precision; a string says why there is none.
    """
    rows = []
    for (tool, precision), rate in rates.items():
        if isinstance(rate, str):
            rows.append((tool, precision, "", "", rate))
            continue
        others = [
            other.tokens_per_second
            for (name, of), other in rates.items()
            if of == precision and name != tool and isinstance(other, Rate)
        ]
        ratio = f"{rate.tokens_per_second / max(others):.2f}" if others else ""
        rows.append((tool, precision, rate.tokens_per_second, rate.startup_seconds, ratio))
    return markdown_table(HEADER, rows)


def measure(
    peers: Path | None, inputs: Inputs, folder: Path, precisions: list[str], repeats: int, max_steps: int
) -> dict[tuple[str, str], Rate | str]:
    """Each tool's fastest run in each precision that it has, all in turn."""
    rates: dict[tuple[str, str], Rate | str] = {}
    for repeat in range(repeats):
        for precision in precisions:
            for tool in ("ours", *PEERS):
                output = folder / f"{tool}-{precision}-{repeat}"
                try:
                    if tool == "ours":
                        rate = run_ours(inputs, output, precision, max_steps)
                    else:
                        name, function, supported = PEERS[tool]
                        checkout = find(peers, name)
                        if precision not in supported:
                            continue
                        rate = function(checkout, inputs, output, precision, max_steps) if checkout else NOT_FOUND
                except ProcessFailedError as error:
                    print(f"{tool}: {error}", file=sys.stderr)
                    rate = "failed"
                before = rates.get((tool, precision))
                if not isinstance(before, Rate) or (
                    isinstance(rate, Rate) and rate.tokens_per_second > before.tokens_per_second
                ):
                    rates[tool, precision] = rate
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--peers", type=Path, help="folder of the checkouts")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the sources")
    parser.add_argument("--work_dir", type=Path, help="kept, with the prepared corpus; by default a temporary folder")
    parser.add_argument("--precisions", nargs="+", default=["bfloat16", "float32"], choices=["bfloat16", "float32"])
    parser.add_argument("--repeats", type=int, default=2, help="runs of each tool")
    parser.add_argument("--steps", type=int, default=90, help="of each run, a third of them warm-up")
    parser.add_argument("--quick", action="store_true", help="one short run of each, in one precision")
    arguments = parser.parse_args()
    check_data(arguments.data)
    if arguments.steps < 3 * LOGGING_STEPS:
        sys.exit(f"--steps must be at least {3 * LOGGING_STEPS}, not {arguments.steps}")
    if arguments.quick:
        arguments.precisions, arguments.repeats, arguments.steps = ["float32"], 1, 3 * LOGGING_STEPS

    with scratch_folder(arguments.work_dir) as scratch:
        inputs = prepare_inputs(arguments.data, scratch)
        runs = scratch / "runs"
        runs.mkdir(exist_ok=True)
        rates = measure(arguments.peers, inputs, runs, arguments.precisions, arguments.repeats, arguments.steps)
        print(report(rates))
        print(f"\ngoal: ours at least 1.00 of the fastest\n{machine()}")


if __name__ == "__main__":
    main()
