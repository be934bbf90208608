"""Pretraining on one GPU: tokens per second and MFU of GPT-2's 124M shape, and bits per byte after equal minutes.

    python -m benchmarks.gpu  # about 3 minutes: ours alone
    python -m benchmarks.gpu --peers ../peers  # under 9 minutes: nanochat and nanoGPT for the same minutes
    python -m benchmarks.gpu --corpus outputs/mine/corpus --tokenizer outputs/mine/tokenizer

The model has 12 layers of width 768, blocks of 1,024 tokens, bfloat16, and is compiled; the vocabulary is that of the
tokenizer, GPT-2's 50,257 where none is given. Without `--corpus`, the documentation of the installed packages is the
text. nanochat has its own model at depth 12, and nanoGPT GPT-2; each trains for the minutes that ours gets.

- tokens/s: after the warm-up, from when the lines of progress came.
- MFU: `6 N + 12 layers x width x block` FLOPs a token (PaLM, arXiv:2204.02311, appendix B; N without the positions)
  over the dense bfloat16 peak of the data sheet.
- minutes: of the whole process, imports, tokenizing, compiling and (ours) the evaluation at the end included.
- bits per byte: every token of the validation text once.
"""

import argparse
import math
import shlex
import sys
import time
from pathlib import Path

from benchmarks.peers import (
    Finished,
    Ours,
    ProcessFailedError,
    find,
    machine,
    markdown_table,
    measure_nanochat,
    measure_nanogpt,
    python_of,
    recipe,
    run,
    scratch_folder,
    steady_rate,
    steps,
    steps_within,
)
from benchmarks.throughput import write_nanogpt_tokens
from benchmarks.time_to_quality import launch_nanochat, prepare_nanochat, train_tokenizer

LAYERS, WIDTH, HEADS, BLOCK_SIZE = 12, 768, 12, 1024
VOCABULARY = 50257
MARGIN = 0.95  # of the time that is given: the rate of the calibration is not exactly that of a longer run
LIMIT = 540.0  # seconds for the whole script
CALIBRATION = 30  # steps
CALIBRATION_SECONDS = 60.0  # with what a tool prepares
HEADER = ("run", "steps", "tokens/s", "MFU", "minutes", "bits per byte")


def model_flops_per_token(vocab_size: int) -> float:
    """Of a forward and a backward pass of GPT-2's shape, by `hfchat.training.throughput`."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from hfchat.training.throughput import flops_per_token

    shape = {"n_layer": LAYERS, "n_embd": WIDTH, "n_head": HEADS, "n_positions": BLOCK_SIZE}
    with torch.device("meta"):
        return flops_per_token(GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, **shape)), BLOCK_SIZE)


def prepare(folder: Path) -> tuple[Path, Path]:
    """A corpus from the documentation of the installed packages, one file a split, and GPT-2's size of a tokenizer."""
    corpus = folder / "corpus"
    one_file = ["--tasks", "1", "--output_dir", str(corpus), "--overwrite_output_dir", "true"]
    run(recipe("prepare_data", "--config", "recipes/configs/demo/prepare_data.yaml", *one_file))
    return corpus, train_tokenizer(corpus, folder / "tokenizer", VOCABULARY)


class Budget:
    """What is left of the script's time."""

    def __init__(self, seconds: float):
        self._end = time.monotonic() + seconds

    def check(self, seconds: float) -> None:
        """Raise `ProcessFailedError` where so many seconds are no longer there."""
        if time.monotonic() + seconds > self._end:
            raise ProcessFailedError("skipped: the time of the script is nearly over")


def run_nanogpt(checkout: Path, tokens: Path, folder: Path, batch: int, iterations: int) -> Finished:
    """nanoGPT with GPT-2's shape; its checkpoint is that of step `iterations`."""
    arguments = [
        f"--dataset={tokens}", f"--out_dir={folder}", "--dtype=bfloat16", f"--n_layer={LAYERS}", f"--n_embd={WIDTH}",
        f"--n_head={HEADS}", "--bias=True", f"--block_size={BLOCK_SIZE}", f"--batch_size={batch}",
        "--gradient_accumulation_steps=1", f"--max_iters={iterations}", f"--lr_decay_iters={iterations}",
        f"--warmup_iters={max(1, iterations // 30)}", "--eval_iters=1", f"--eval_interval={iterations}",
        "--log_interval=5",
    ]  # fmt: skip
    return run([python_of(checkout), "train.py", *arguments], cwd=checkout)


def nanogpt_row(checkout: Path, corpus: Path, tokenizer: Path, folder: Path, arguments: argparse.Namespace) -> tuple:
    """nanoGPT on the corpus for the minutes."""
    from hfchat.dataset import load_split

    write_nanogpt_tokens(corpus, tokenizer, folder / "nanoGPT-tokens")
    per_step = arguments.batch_size * BLOCK_SIZE

    def launch(iterations: int) -> Finished:
        output = folder / f"nanoGPT-{iterations}"
        return run_nanogpt(checkout, folder / "nanoGPT-tokens", output, arguments.batch_size, iterations)

    rate = steady_rate(steps(launch(CALIBRATION), "nanoGPT"), per_step, CALIBRATION // 3)
    iterations = steps_within(MARGIN * 60 * arguments.minutes, rate, per_step)
    finished = launch(iterations)
    validation = folder / "nanoGPT-tokens" / "val.bin"
    loss = measure_nanogpt(folder / f"nanoGPT-{iterations}" / "ckpt.pt", checkout, validation, "cuda")
    texts = load_split(str(corpus), "validation", "text")["text"]
    predicted = validation.stat().st_size // 2 - 1  # tokens of two bytes, of which the first is given
    bits = loss * predicted / math.log(2) / sum(len(text.encode()) for text in texts)
    return "nanoGPT", iterations, rate.tokens_per_second, "", finished.seconds / 60, bits


def nanochat_row(checkout: Path, corpus: Path, folder: Path, arguments: argparse.Namespace) -> tuple:
    """nanochat on the corpus for the minutes."""
    base, batch = folder / "nanochat", arguments.batch_size
    prepare_nanochat(checkout, corpus, base, VOCABULARY)
    shape = {"depth": LAYERS, "block_size": BLOCK_SIZE, "batch": batch}
    progress = steps(launch_nanochat(checkout, base, CALIBRATION, **shape), "nanochat")
    rate = steady_rate(progress, batch * BLOCK_SIZE, CALIBRATION // 3)
    iterations = steps_within(MARGIN * 60 * arguments.minutes, rate, batch * BLOCK_SIZE)
    finished = launch_nanochat(checkout, base, iterations, **shape)
    bits = measure_nanochat(base, checkout, f"d{LAYERS}", iterations, BLOCK_SIZE)["bits_per_byte"]
    return "nanochat", iterations, rate.tokens_per_second, "", finished.seconds / 60, bits


def ours_row(corpus: Path, tokenizer: Path, folder: Path, arguments: argparse.Namespace) -> tuple:
    """Ours on the corpus for the minutes, with its MFU."""
    import torch

    from hfchat.models import load_tokenizer
    from hfchat.training.throughput import peak_flops

    ours = Ours(
        [
            "--dataset_name", str(corpus), "--tokenizer_name", str(tokenizer), "--architecture", "gpt2",
            "--depth", str(LAYERS), "--block_size", str(BLOCK_SIZE), "--torch_compile", "true", "--bf16", "true",
            "--per_device_train_batch_size", str(arguments.batch_size), *shlex.split(arguments.recipe_arguments),
        ],
        folder / "ours",
        "single_gpu.yaml",
    )  # fmt: skip
    rate = ours.calibrate(CALIBRATION)
    outcome = ours.train(steps_within(MARGIN * 60 * arguments.minutes, rate, ours.tokens_per_step))
    peak = peak_flops(torch.device("cuda"))
    vocab_size = len(load_tokenizer(str(tokenizer)))
    mfu = f"{rate.tokens_per_second * model_flops_per_token(vocab_size) / peak:.1%}" if peak else "peak unknown"
    minutes = outcome.process_seconds / 60
    return "ours", outcome.steps, rate.tokens_per_second, mfu, minutes, outcome.bits_per_byte


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--peers", type=Path, help="folder of the checkouts")
    parser.add_argument("--corpus", type=Path, help="by default the documentation of the installed packages")
    parser.add_argument("--tokenizer", type=Path, help="by default one of GPT-2's size, trained on the corpus")
    parser.add_argument("--minutes", type=float, default=1.0, help="of training for each")
    parser.add_argument("--batch_size", type=int, default=32, help="sequences of an optimizer step")
    parser.add_argument("--recipe_arguments", default="", help="of ours, beside those of the benchmark")
    parser.add_argument("--work_dir", type=Path, help="kept; by default a temporary folder")
    arguments = parser.parse_args()
    if (arguments.corpus is None) != (arguments.tokenizer is None):
        sys.exit("--corpus and --tokenizer: give both or neither")
    import torch

    if not torch.cuda.is_available():
        sys.exit("this benchmark needs a CUDA GPU, and there is none here; benchmarks.time_to_quality runs on a CPU")
    budget = Budget(LIMIT)

    with scratch_folder(arguments.work_dir) as scratch:
        corpus, tokenizer = arguments.corpus, arguments.tokenizer
        if corpus is None:
            corpus, tokenizer = prepare(scratch)
        rows = [ours_row(corpus.resolve(), tokenizer.resolve(), scratch, arguments)]
        for name, row in (
            ("nanochat", lambda checkout: nanochat_row(checkout, corpus, scratch, arguments)),
            ("nanoGPT", lambda checkout: nanogpt_row(checkout, corpus, tokenizer, scratch, arguments)),
        ):
            try:
                checkout = find(arguments.peers, name)
                budget.check(60 * arguments.minutes + CALIBRATION_SECONDS)
                rows.append(row(checkout) if checkout else (name, "", "", "", "", "not found"))
            except ProcessFailedError as error:
                print(f"{name}: {error}", file=sys.stderr)
                rows.append((name, "", "", "", "", "skipped" if str(error).startswith("skipped") else "failed"))
        print(markdown_table(HEADER, rows))
        print(f"\ngoal: MFU 55% on a Hopper GPU\n{machine()}")


if __name__ == "__main__":
    main()
