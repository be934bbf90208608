"""Other projects' training scripts, run as their READMEs say, and ours: what the pretraining benchmarks share.

A folder holds the checkouts, each under its repository's name: `nanochat`, `nanoGPT`, `litgpt`, and `transformers`, of
which `examples/pytorch/language-modeling/run_clm.py` is enough. A checkout with a `venv` is run by that Python, any
other by ours. Nothing is written into a checkout.

nanochat's own validation reads an endless stream of cropped documents, so its checkpoint is measured here:

    NANOCHAT_BASE_DIR=scratch/nanochat PYTHONPATH=peers/nanochat peers/nanochat/venv/bin/python benchmarks/peers.py \
        nanochat d4 300 256

nanoGPT's is a mean over windows drawn at random, so its checkpoint is measured too, over each token once.
"""

import argparse
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RUN_CLM = Path("examples") / "pytorch" / "language-modeling" / "run_clm.py"
_ENTRY = {
    "nanochat": Path("scripts") / "base_train.py",
    "nanoGPT": Path("train.py"),
    "litgpt": Path("litgpt") / "pretrain.py",
    "transformers": RUN_CLM,
}
# Each counts the optimizer steps that are done when the line appears; nanochat and nanoGPT number them from 0.
_STEP_LINES = {
    "nanochat": (re.compile(r"^step (\d+)/\d+ .*?\| loss: ([\d.]+|nan)"), 1),
    "nanoGPT": (re.compile(r"^iter (\d+): loss ([\d.]+|nan)"), 1),
    "litgpt": (re.compile(r"\| iter \d+ step (\d+) \| loss train: ([\d.]+|nan)"), 0),
}
_TRAINER_LOG = re.compile(r"\{'[^{}]*\}")
_NANOCHAT_DT = re.compile(r"^step \d+/\d+ .*?\| dt: ([\d.]+)ms")
_NANOGPT_EVALUATION = re.compile(r"^step (\d+): train loss [\d.]+, val loss ([\d.]+)")


@dataclass(frozen=True)
class Line:
    """A printed line and when it came, in seconds since the process was started."""

    seconds: float
    text: str


@dataclass(frozen=True)
class Step:
    """`number` optimizer steps were done after `seconds`, counted from the start of the process."""

    number: int
    seconds: float
    loss: float


@dataclass(frozen=True)
class Finished:
    """A process that ended well: its wall-clock time, imports and compiling included, and what it printed."""

    seconds: float
    lines: Sequence[Line]


class ProcessFailedError(Exception):
    """A training process failed, or took longer than it may; the message has its last lines."""


def find(peers: Path | None, name: str) -> Path | None:
    """The checkout of a peer, or None where its training script is not there."""
    if peers is None or not (peers / name / _ENTRY[name]).is_file():
        return None
    return (peers / name).resolve()


def python_of(checkout: Path) -> str:
    """The Python that runs a peer."""
    own = checkout / "venv" / "bin" / "python"
    return str(own) if own.is_file() else sys.executable


def run(
    command: Sequence[str],
    *,
    cwd: Path = ROOT,
    environment: Mapping[str, str] | None = None,
    timeout: float = 1800,
) -> Finished:
    """Run a process to its end, noting when each line came. Each starts with an empty cache of compiled kernels.

    Args:
        command: What to run.
        cwd: Where.
        environment: Variables beside those of this process.
        timeout: Seconds after which the process and its children are ended.

    Raises:
        ProcessFailedError: If it ends with another status than 0.
    """
    threads = os.environ.get("OMP_NUM_THREADS", str(os.cpu_count()))
    with tempfile.TemporaryDirectory(prefix="inductor-") as kernels:
        variables = {
            **os.environ,
            "OMP_NUM_THREADS": threads,
            "PYTHONUNBUFFERED": "1",
            "TORCHINDUCTOR_CACHE_DIR": kernels,
            "HF_HUB_OFFLINE": "1",
            "WANDB_MODE": "disabled",
            **(environment or {}),
        }
        started = time.perf_counter()
        process = subprocess.Popen(
            list(command),
            cwd=cwd,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        watch = Timer(timeout, end_tree, (process,))
        watch.start()
        try:
            lines = [Line(time.perf_counter() - started, text.rstrip()) for text in process.stdout]
            status = process.wait()
            seconds = time.perf_counter() - started
        finally:
            watch.cancel()
            end_tree(process)
    if status:
        end = "\n".join(line.text for line in lines[-15:])
        raise ProcessFailedError(f"{' '.join(command[:4])} ... ended with status {status}:\n{end}")
    return Finished(seconds, lines)


def end_tree(process: subprocess.Popen) -> None:
    """End a process that still runs, and those that it started: a launcher would leave its training behind."""
    import psutil

    if process.poll() is None:
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()
        process.kill()
        process.wait()


def recipe(name: str, *arguments: str) -> list[str]:
    """The command of one of our recipes, as a user gives it."""
    return [sys.executable, f"recipes/{name}.py", *arguments]


def pretrain(config_file: str, *arguments: str) -> list[str]:
    """The command of our pretraining; `config_file` is one of `accelerate_configs/`."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", f"accelerate_configs/{config_file}"]
    return [*launch, "recipes/pretrain.py", *arguments, "--report_to", "none", "--disable_tqdm", "true"]


def steps(finished: Finished, style: str, logging_steps: int = 1) -> list[Step]:
    """The progress that a process printed.

    Args:
        finished: The process.
        style: `nanochat`, `nanoGPT`, `litgpt`, or `trainer` (ours and `run_clm.py`).
        logging_steps: Of `trainer`, whose lines have no number of their own.
    """
    if style == "trainer":
        logs = [(line.seconds, log) for line, log in trainer_logs(finished) if "loss" in log]
        return [Step(i * logging_steps, seconds, float(log["loss"])) for i, (seconds, log) in enumerate(logs, 1)]
    pattern, offset = _STEP_LINES[style]
    matches = [(line.seconds, match) for line in finished.lines if (match := pattern.search(line.text))]
    return [Step(int(match[1]) + offset, seconds, float(match[2])) for seconds, match in matches]


def trainer_logs(finished: Finished) -> Iterator[tuple[Line, dict[str, Any]]]:
    """What `transformers.PrinterCallback` printed. Its numbers are strings of four significant digits."""
    for line in finished.lines:
        for text in _TRAINER_LOG.findall(line.text):
            try:
                yield line, json.loads(text.replace("'", '"'))
            except ValueError:  # some other dictionary that was printed
                continue


def last_logged(finished: Finished, key: str) -> float:
    """The value that `Trainer` printed last under `key`.

    Raises:
        ProcessFailedError: If it printed none.
    """
    values = [float(log[key]) for _, log in trainer_logs(finished) if key in log]
    if not values:
        raise ProcessFailedError(f"the run printed no {key}")
    return values[-1]


def nanochat_step_seconds(finished: Finished) -> float:
    """What all of nanochat's optimizer steps took by its own clock, compiling included."""
    return sum(float(match[1]) for line in finished.lines if (match := _NANOCHAT_DT.search(line.text))) / 1000


def nanogpt_evaluations(finished: Finished) -> list[Step]:
    """nanoGPT's own validation losses, in nats per token."""
    matches = [(line.seconds, match) for line in finished.lines if (match := _NANOGPT_EVALUATION.search(line.text))]
    return [Step(int(match[1]), seconds, float(match[2])) for seconds, match in matches]


@dataclass(frozen=True)
class Rate:
    """Steady state, and what came before it.

    Attributes:
        tokens_per_second: From the first step after the warm-up to the last.
        startup_seconds: What the process took until it could train at that rate: imports, data, compiling.
    """

    tokens_per_second: float
    startup_seconds: float


def steady_rate(progress: Sequence[Step], tokens_per_step: int, warmup_steps: int) -> Rate:
    """The rate after the first `warmup_steps` steps.

    Raises:
        ProcessFailedError: If fewer than two lines of progress came after them.
    """
    after = [step for step in progress if step.number >= warmup_steps]
    if len(after) < 2:
        raise ProcessFailedError(f"only {len(after)} lines of progress after step {warmup_steps}; need two")
    first, last = after[0], after[-1]
    step_seconds = (last.seconds - first.seconds) / (last.number - first.number)
    return Rate(tokens_per_step / step_seconds, first.seconds - first.number * step_seconds)


def steps_within(seconds: float, rate: Rate, tokens_per_step: int) -> int:
    """How many steps a process can do in so many seconds, its start-up included; at least 1."""
    return max(1, math.floor((seconds - rate.startup_seconds) * rate.tokens_per_second / tokens_per_step))


@dataclass(frozen=True)
class Outcome:
    """What a training run took in seconds, and what it reached on the validation text."""

    steps: int
    tokens_per_step: int
    process_seconds: float
    training_seconds: float
    bits_per_byte: float
    checkpoint: Path | None = None


class Ours:
    """Our pretraining recipe.

    Args:
        arguments: Of the recipe; of a name that is given twice, the last counts.
        folder: Where its outputs go.
        config_file: One of `accelerate_configs/`.

    Attributes:
        tokens_per_step: By the arguments.
    """

    def __init__(self, arguments: Sequence[str], folder: Path, config_file: str = "cpu.yaml"):
        self.arguments, self.folder, self.config_file = list(arguments), folder, config_file
        self.tokens_per_step = tokens_of_a_step(arguments)

    def launch(self, name: str, *arguments: str) -> Finished:
        """Run it anew, without evaluations on the way; the output goes to `folder/name`."""
        for earlier in self.folder.glob(f"{name}*"):  # of a kept folder: a finished stage would not run again
            shutil.rmtree(earlier)
        last = ["--output_dir", str(self.folder / name), "--overwrite_output_dir", "true", "--eval_strategy", "no"]
        return run(pretrain(self.config_file, *self.arguments, *last, "--save_strategy", "no", *arguments))

    def train(self, max_steps: int) -> Outcome:
        """Train so many steps and evaluate at the end, which is part of the process's time, not of the training's."""
        name = f"{max_steps}-steps"
        finished = self.launch(name, "--max_steps", str(max_steps))
        history = json.loads((self.folder / name / "loss_curve.json").read_text(encoding="utf-8"))
        (final,) = [entry["eval_bits_per_byte"] for entry in history if "eval_bits_per_byte" in entry]
        training = last_logged(finished, "train_runtime")
        return Outcome(max_steps, self.tokens_per_step, finished.seconds, training, final, self.folder / name)

    def calibrate(self, max_steps: int) -> Rate:
        """The rate and the start-up, to which the evaluation at the end is added."""
        finished = self.launch("calibration", "--max_steps", str(max_steps), "--logging_steps", "5")
        progress = steps(finished, "trainer", logging_steps=5)
        rate = steady_rate(progress, self.tokens_per_step, warmup_steps=max_steps // 3)
        return Rate(rate.tokens_per_second, rate.startup_seconds + finished.seconds - progress[-1].seconds)


def tokens_of_a_step(arguments: Sequence[str]) -> int:
    """Tokens of an optimizer step by the arguments of the recipe; block and batch size must be among them."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--block_size", type=int, required=True)
    parser.add_argument("--per_device_train_batch_size", type=int, required=True)
    parser.add_argument("--gradient_accumulation_steps", type=int, default=1)
    known, _ = parser.parse_known_args(list(arguments))
    return known.block_size * known.per_device_train_batch_size * known.gradient_accumulation_steps


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table with text to the left and numbers (three significant digits below 100) to the right."""
    rows = [[_shown(cell) for cell in row] for row in rows]
    numeric = [any(re.match(r"[\d,.]+$", row[i]) for row in rows) for i in range(len(header))]
    rule = ["---:" if number else "---" for number in numeric]
    return "\n".join(f"| {' | '.join(row)} |" for row in ([*header], rule, *rows))


def _shown(cell: Any) -> str:
    if not isinstance(cell, float):
        return str(cell)
    return f"{cell:,.0f}" if abs(cell) >= 100 else f"{cell:.3g}"


def machine() -> str:
    """The processor, the threads and the versions behind a table, in one line."""
    import torch
    import transformers

    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.is_file() else []
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else names[0] if names else platform.processor()
    threads = os.environ.get("OMP_NUM_THREADS", os.cpu_count())
    return f"{device}, {threads} threads, torch {torch.__version__}, transformers {transformers.__version__}"


def measure_nanogpt(checkpoint: Path, checkout: Path, tokens: Path, device: str = "cpu") -> float:
    """Nats per token of nanoGPT's checkpoint over each token of a file of uint16 once, in blocks of its own size."""
    command = [python_of(checkout), str(Path(__file__).resolve()), "nanoGPT", str(checkpoint), str(tokens), device]
    return _measured(run(command, cwd=checkout, environment={"PYTHONPATH": str(checkout)}))["nats_per_token"]


def measure_nanochat(base_dir: Path, checkout: Path, tag: str, step: int, block_size: int) -> dict[str, float]:
    """`bits_per_byte` of nanochat's checkpoint over each token of its validation shard once, `own_bits_per_byte`.

    Args:
        base_dir: Its `NANOCHAT_BASE_DIR`, with tokenizer, data and checkpoint.
        checkout: Of nanochat.
        tag: Name of the checkpoint, e.g. `d4`.
        step: Of the checkpoint.
        block_size: Tokens per sequence.
    """
    arguments = ["nanochat", tag, str(step), str(block_size)]
    environment = {"NANOCHAT_BASE_DIR": str(base_dir), "PYTHONPATH": str(checkout)}
    command = [python_of(checkout), str(Path(__file__).resolve()), *arguments]
    return _measured(run(command, cwd=checkout, environment=environment))


def measure_ours(checkpoint: Path, corpus: Path, block_size: int) -> float:
    """Bits per byte of our checkpoint over the validation split as nanochat's is measured: each document begins a
    block, and its end is not predicted.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from hfchat.dataset import load_split

    model, tokenizer = AutoModelForCausalLM.from_pretrained(checkpoint), AutoTokenizer.from_pretrained(checkpoint)
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    texts = list(load_split(str(corpus), "validation", "text")["text"])
    ignored, pairs, nats = -100, [], 0.0
    for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]:
        ids = [tokenizer.bos_token_id, *ids]
        for start in range(0, len(ids) - 1, block_size):
            y = ids[start + 1 : start + block_size + 1]
            x, missing = ids[start : start + len(y)], block_size - len(y)
            pairs.append((x + [tokenizer.bos_token_id] * missing, y + [ignored] * missing))
    for first in range(0, len(pairs), 16):
        x, y = (torch.tensor(part, device=model.device) for part in zip(*pairs[first : first + 16], strict=True))
        with torch.no_grad():
            logits = model(x).logits.float().flatten(0, 1)
        nats += torch.nn.functional.cross_entropy(logits, y.flatten(), ignore_index=ignored, reduction="sum").item()
    return nats / math.log(2) / sum(len(text.encode()) for text in texts)


def _measured(finished: Finished) -> dict[str, float]:
    return json.loads(finished.lines[-1].text)


def _measure_nanogpt(checkpoint: str, tokens: str, device: str) -> dict[str, float]:
    import numpy as np
    import torch
    from model import GPT, GPTConfig

    saved = torch.load(checkpoint, map_location=device, weights_only=False)
    model = GPT(GPTConfig(**saved["model_args"])).eval().to(device)
    model.load_state_dict({name.removeprefix("_orig_mod."): value for name, value in saved["model"].items()})
    stream = torch.from_numpy(np.fromfile(tokens, dtype=np.uint16).astype(np.int64)).to(device)
    block_size, nats = saved["model_args"]["block_size"], 0.0
    whole = (len(stream) - 1) // block_size * block_size
    inputs, targets = stream[:whole].view(-1, block_size), stream[1 : whole + 1].view(-1, block_size)
    batches = list(zip(inputs.split(64), targets.split(64), strict=True))
    if whole < len(stream) - 1:
        batches.append((stream[None, whole:-1], stream[None, whole + 1 :]))
    with torch.no_grad():
        for x, y in batches:
            nats += model(x, y)[1].item() * y.numel()
    return {"nats_per_token": nats / (len(stream) - 1)}


def _measure_nanochat(tag: str, step: str, block_size: str) -> dict[str, float]:
    import torch
    from nanochat.checkpoint_manager import load_model
    from nanochat.dataloader import tokenizing_distributed_data_loader_bos_bestfit
    from nanochat.dataset import parquets_iter_batched
    from nanochat.loss_eval import evaluate_bpb
    from nanochat.tokenizer import get_token_bytes

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, tokenizer, _ = load_model("base", device, "eval", model_tag=tag, step=int(step))
    texts = [text for batch in parquets_iter_batched("val") for text in batch]
    size, bos = int(block_size), tokenizer.get_bos_token_id()

    def blocks(open_with_bos: bool) -> Iterator[tuple[list[int], list[int]]]:
        for ids in tokenizer.encode(texts, prepend=bos):
            for start in range(0, len(ids) - 1, size):
                x, y = ids[start : start + size], ids[start + 1 : start + size + 1]
                if open_with_bos:  # as every block that it was trained on; the first token is predicted from it alone
                    x = [bos, *x[1:]]
                x = x[: len(y)]
                yield x + [bos] * (size - len(x)), y + [-1] * (size - len(y))

    @torch.no_grad()
    def bits_per_byte(open_with_bos: bool) -> float:
        pairs, nats = list(blocks(open_with_bos)), 0.0
        for first in range(0, len(pairs), 16):
            x, y = (torch.tensor(part, device=device) for part in zip(*pairs[first : first + 16], strict=True))
            nats += model(x, y, loss_reduction="none").sum(dtype=torch.float64).item()
        return nats / math.log(2) / sum(len(text.encode()) for text in texts)

    loader = tokenizing_distributed_data_loader_bos_bestfit(tokenizer, 16, size, split="val", device=device.type)
    own = evaluate_bpb(model, loader, 8, get_token_bytes(device=device))
    # Whichever way of cutting long documents suits it better.
    return {"bits_per_byte": min(bits_per_byte(False), bits_per_byte(True)), "own_bits_per_byte": own}


@contextmanager
def scratch_folder(work_dir: Path | None) -> Iterator[Path]:
    """A folder that is removed afterwards, or `work_dir`, which is kept with what earlier runs prepared there."""
    if work_dir is None:
        with tempfile.TemporaryDirectory(prefix="hfchat-benchmark-") as folder:
            yield Path(folder)
    else:
        work_dir.mkdir(parents=True, exist_ok=True)
        yield work_dir.resolve()


if __name__ == "__main__":
    measure = {"nanochat": _measure_nanochat, "nanoGPT": _measure_nanogpt}[sys.argv[1]]
    print(json.dumps(measure(*sys.argv[2:])))
