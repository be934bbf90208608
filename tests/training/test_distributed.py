"""Several processes train the model that one would have trained."""

import json
import os
import signal
import time

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.conftest import TEXTS
from tests.training.runs import checkpoints, curve, losses

# The batch is the one that the depth asks for, however many processes there are to share it. Less than an epoch: its
# last batch is filled up where it cannot be shared out.
STEPS = ["--max_steps", 6, "--logging_steps", 1, "--save_steps", 2, "--eval_steps", 3]
# Rounding differs with the number of processes.
LOSS_TOLERANCE = 1e-5
WEIGHTS_TOLERANCE = 5e-4  # a weight whose gradient is next to nothing moves as far as others
OPTIMIZERS = ("adamw", "muon")
FSDP = "cpu_two_processes_fsdp"


@pytest.fixture(scope="module")
def inputs(inputs, tmp_path_factory):
    """With a corpus of more than one batch."""
    file = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS * 8))
    return [*inputs, "--dataset_name", file]


@pytest.fixture(scope="module")
def alone(runs, inputs, tmp_path_factory):
    """For each optimizer, what one process makes."""
    folder = tmp_path_factory.mktemp("alone")
    for optimizer in OPTIMIZERS:
        runs.finish([*inputs, *STEPS, "--optimizer", optimizer, "--output_dir", folder / optimizer])
    return folder


def assert_same_training(output, alone):
    assert losses(output) == pytest.approx(losses(alone), rel=LOSS_TOLERANCE)
    evaluations, expected = (
        [entry for entry in curve(folder) if "eval_bits_per_byte" in entry] for folder in (output, alone)
    )
    for one, other in zip(evaluations, expected, strict=True):
        assert one["eval_predicted_tokens"] == other["eval_predicted_tokens"]
        assert one["eval_bits_per_byte"] == pytest.approx(other["eval_bits_per_byte"], rel=LOSS_TOLERANCE)
    weights, expected = (load_file(folder / "model.safetensors") for folder in (output, alone))
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        assert (weight - expected[name]).norm() <= WEIGHTS_TOLERANCE * expected[name].norm(), name
    model = AutoModelForCausalLM.from_pretrained(output)
    assert all(torch.equal(model.state_dict()[name], weights[name]) for name in weights)


@pytest.mark.parametrize("config", ["cpu_two_processes", FSDP])
def test_two_processes_train_what_one_would(run_recipe, inputs, alone, tmp_path, config):
    arguments = [*inputs, *STEPS, "--optimizer", "adamw", "--output_dir", tmp_path / "two"]
    printed = run_recipe("pretrain", *arguments, launch=config).stdout
    assert "(64 x 32 x 2 processes)" in printed
    assert (checkpoints(tmp_path / "two")[-1] / "pytorch_model_fsdp_0").exists() == (config == FSDP)
    assert_same_training(tmp_path / "two", alone / "adamw")


def test_muon_is_sharded(runs, inputs, alone, tmp_path):
    runs.finish([*inputs, *STEPS, "--optimizer", "muon", "--output_dir", tmp_path / "two"], FSDP, processes=2)
    assert_same_training(tmp_path / "two", alone / "muon")
    shards = checkpoints(tmp_path / "two")[-1] / "optimizer_0"
    assert len(list(shards.glob("*.distcp"))) == 2


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_shards_are_resumed_by_another_number_of_processes(runs, inputs, alone, tmp_path, optimizer):
    arguments = [*inputs, *STEPS, "--optimizer", optimizer, "--output_dir", tmp_path / "out"]
    runs.start(arguments, FSDP, processes=2)
    deadline = time.monotonic() + 120
    while not checkpoints(tmp_path / "out") and time.monotonic() < deadline:
        assert runs.wait(0.01) is None, runs.tail()
    assert runs.kill() == [-signal.SIGKILL] * 2
    runs.finish(arguments, FSDP, processes=1)
    assert_same_training(tmp_path / "out", alone / optimizer)


def test_sigterm_stops_all_processes_after_the_same_step(runs, inputs, tmp_path):
    arguments = [*inputs, *STEPS, "--max_steps", 400, "--optimizer", "adamw", "--output_dir", tmp_path / "out"]
    processes = runs.start(arguments, "cpu_two_processes", processes=2)
    deadline = time.monotonic() + 120
    while not checkpoints(tmp_path / "out") and time.monotonic() < deadline:
        assert runs.wait(0.01) is None, runs.tail()
    os.kill(processes[1], signal.SIGTERM)
    assert runs.wait() == [128 + signal.SIGTERM] * 2, runs.tail()
    assert f"SIGTERM: saved {checkpoints(tmp_path / 'out')[-1].name}" in runs.tail()
