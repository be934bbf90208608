"""A run killed at random moments ends as if it had not been."""

import contextlib
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hfchat.lineage import CHECKPOINTS, read_lineage
from tests.conftest import ROOT

RUN = [
    "--depth", 1, "--block_size", 32, "--per_device_train_batch_size", 8, "--gradient_accumulation_steps", 2,
    "--max_steps", 36, "--save_steps", 4, "--eval_steps", 10, "--logging_steps", 3, "--bf16", "false",
    "--sample_prompts", "The recipe",
]  # fmt: skip
CASES = {
    "muon": ([], 20),
    "dropout": (["--architecture", "gpt2", "--dropout", 0.1, "--optimizer", "adamw", "--block_size", 64], 4),
    "streaming": (["--streaming", "true"], 5),
}


class RunServer:
    """See `run_server.py`."""

    def __init__(self, log: Path):
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("run_server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )

    def run(self, arguments: list, kill_after: float | None = None) -> int:
        """Exit status of a run with these arguments, killed after so many seconds unless it has ended by then."""
        self.process.stdin.write(json.dumps([str(argument) for argument in arguments]) + "\n")
        self.process.stdin.flush()
        number = int(self._answer())
        if kill_after is not None and not select.select([self.process.stdout], [], [], kill_after)[0]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        return int(self._answer())

    def _answer(self) -> str:
        answer = self.process.stdout.readline()
        assert answer, self.log.read_text()[-4000:]
        return answer


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = RunServer(tmp_path_factory.mktemp("server") / "log")
    yield server
    server.process.stdin.close()
    server.process.wait(timeout=60)


@pytest.fixture(scope="module")
def arguments(corpus, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return ["--dataset_name", corpus, "--tokenizer_name", folder, *RUN]


def outcome(folder: Path) -> dict:
    """All that a run leaves behind, but for how long it took."""
    checkpoints = sorted((folder / CHECKPOINTS).glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    last = checkpoints[-1]
    curve = json.loads((folder / "loss_curve.json").read_text())
    timed = ("elapsed_seconds", "tokens_per_second", "mfu", "_runtime", "_per_second")
    return {
        "weights": load_file(folder / "model.safetensors"),
        "checkpoint": last.name,
        "optimizer": torch.load(last / "optimizer.pt"),
        "schedule": torch.load(last / "scheduler.pt"),
        "metrics": [{key: value for key, value in entry.items() if not key.endswith(timed)} for entry in curve],
        "final": {key: value for key, value in read_lineage(folder)["metrics"].items() if not key.endswith(timed)},
    }


def assert_identical(one, other, place="outcome"):
    assert type(one) is type(other), place
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, place
        assert torch.equal(one, other), place
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one:
            assert_identical(one[key], other[key], f"{place}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), place
        for index, (first, second) in enumerate(zip(one, other, strict=True)):
            assert_identical(first, second, f"{place}[{index}]")
    else:
        assert one == other, place


@pytest.mark.parametrize("case", CASES)
def test_a_run_killed_at_random_moments_ends_as_if_it_had_not_been(server, arguments, tmp_path, case):
    extra, kills = CASES[case]
    arguments = [*arguments, *extra, "--output_dir"]
    assert server.run([*arguments, tmp_path / "warm-up", "--max_steps", 1]) == 0
    began = time.monotonic()
    assert server.run([*arguments, tmp_path / "undisturbed"]) == 0
    duration = time.monotonic() - began
    undisturbed = outcome(tmp_path / "undisturbed")

    moments, killed, resumed, finished = random.Random(0), 0, set(), 0
    while killed < kills:
        # What is left to do gets less with every kill, so the moments of one output are drawn from what is left.
        output, left = tmp_path / f"killed-{finished}", duration
        while killed < kills:
            status = server.run([*arguments, output], kill_after=moments.uniform(0.05, left))
            assert status in (0, -signal.SIGKILL), server.log.read_text()[-4000:]
            if status == 0:
                break
            killed += 1
            found = {path.name for path in tmp_path.glob(f"{output.name}.partial-*/{CHECKPOINTS}/checkpoint-*")}

            resumed |= found
        else:
            assert server.run([*arguments, output]) == 0, server.log.read_text()[-4000:]
        assert_identical(outcome(output), undisturbed)
        finished += 1
    print(case, finished, time.monotonic()-began, duration)
    assert len(resumed) > 2, "no moment was one in the training"
