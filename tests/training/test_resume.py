"""A run that is killed ends, when it is started again, as if it had not been."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT
from tests.training.runs import assert_identical, checkpoints, outcome

STEPS = [
    "--per_device_train_batch_size", 8, "--gradient_accumulation_steps", 2, "--max_steps", 24, "--save_steps", 4,
    "--eval_steps", 9, "--logging_steps", 3,
]  # fmt: skip
# What is asked for beyond that, and how many kills.
CASES = {
    "muon": ([], 20),
    "dropout": (["--architecture", "gpt2", "--dropout", 0.1, "--optimizer", "adamw", "--block_size", 64], 3),
    "streaming": (["--streaming", "true"], 5),
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_killed_at_random_moments_ends_as_if_it_had_not_been(runs, inputs, tmp_path, case):
    extra, kills = CASES[case]
    arguments = [*inputs, *STEPS, *extra, "--output_dir"]
    runs.finish([*arguments, tmp_path / "warm-up", "--max_steps", 1])
    began = time.monotonic()
    runs.finish([*arguments, tmp_path / "undisturbed"])
    duration = time.monotonic() - began
    undisturbed = outcome(tmp_path / "undisturbed")

    moments, killed, finished, resumed = random.Random(0), 0, 0, set()
    while killed < kills:
        output = tmp_path / f"killed-{finished}"
        while killed < kills:
            runs.start([*arguments, output])
            statuses = runs.wait(moments.uniform(0, duration)) or runs.kill()
            assert statuses in ([0], [-signal.SIGKILL]), runs.tail()
            if statuses == [0]:  # before its kill, which therefore is for another output
                break
            killed += 1
            resumed |= {checkpoint.name for checkpoint in checkpoints(output)}
        else:
            runs.finish([*arguments, output])
        assert_identical(outcome(output), undisturbed)
        finished += 1
    assert len(resumed) > 1, "no kill came while a run was training"


def wait_for_checkpoint(output, is_alive):
    deadline = time.monotonic() + 120
    while not checkpoints(output) and time.monotonic() < deadline:
        assert is_alive()
        time.sleep(0.01)


@pytest.fixture(scope="module")
def long_run(runs, inputs, tmp_path_factory):
    """Arguments of a run that leaves time for a signal after its first checkpoint, and its outcome without one."""
    arguments = [*inputs, *STEPS, "--max_steps", 60, "--save_steps", 20, "--eval_steps", 30, "--output_dir"]
    output = tmp_path_factory.mktemp("long-run") / "undisturbed"
    runs.finish([*arguments, output])
    return arguments, outcome(output)


def assert_goes_on(runs, output, arguments, undisturbed):
    """As an undisturbed run, but for the log, which has the step of the signal besides."""
    runs.finish([*arguments, output])
    for part in ("weights", "optimizer", "schedule"):
        assert_identical(outcome(output)[part], undisturbed[part])


def test_sigterm_saves_where_the_run_is_and_ends_it(runs, long_run, tmp_path):
    output = tmp_path / "terminated"
    (process,) = runs.start([*long_run[0], output])
    wait_for_checkpoint(output, lambda: runs.wait(0) is None)
    os.kill(process, signal.SIGTERM)
    assert runs.wait() == [128 + signal.SIGTERM], runs.tail()
    assert not output.exists()
    last = checkpoints(output)[-1].name
    assert f"SIGTERM: saved {last}; the same command goes on from there" in runs.tail()
    assert_goes_on(runs, output, *long_run)


def test_sigterm_to_the_launcher_saves_too(runs, long_run, tmp_path):
    output = tmp_path / "terminated"
    config = ROOT / "accelerate_configs" / "cpu.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), "recipes/pretrain.py"]
    command += map(str, [*long_run[0], output])
    launcher = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    wait_for_checkpoint(output, lambda: launcher.poll() is None)
    launcher.terminate()
    printed, _ = launcher.communicate(timeout=120)  # the training has the other end of the pipe, too
    assert f"SIGTERM: saved {checkpoints(output)[-1].name}" in printed
    assert_goes_on(runs, output, *long_run)
