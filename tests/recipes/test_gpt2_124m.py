"""The table of `recipes/configs/gpt2-124m/README.md` is of what the recipe derives."""

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from hfchat.doctor.memory import optimizer_bytes, trained_bytes, weight_bytes
from hfchat.training.dial import Shape
from hfchat.training.pretrain_arguments import PretrainArguments
from hfchat.training.throughput import PEAK_FLOPS, flops_per_token
from tests.conftest import ROOT

FOLDER = ROOT / "recipes" / "configs" / "gpt2-124m"
MEMORY = 80 * 10**9  # bytes of an H100


class Gpt2Tokenizer:
    bos_token_id = eos_token_id = pad_token_id = 50256

    def __len__(self):
        return 50257


@pytest.fixture(scope="module")
def model():
    with torch.device("meta"):
        config = Shape.from_depth(12).model_config("gpt2", Gpt2Tokenizer(), block_size=1024)
        return AutoModelForCausalLM.from_config(config)


@pytest.fixture(scope="module")
def table():
    """For each row, what it says of one GPU and of eight."""
    lines = (FOLDER / "README.md").read_text().splitlines()
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in lines
        if line.startswith("| ") and "---" not in line
    ]
    return {name: (one, eight) for name, one, eight, _ in rows}


def derived(model, world, **changed):
    settings = yaml.safe_load((FOLDER / "pretrain.yaml").read_text()) | changed
    args = PretrainArguments(**settings, use_cpu=True, bf16=True)
    return args.derive(model, blocks=None, processes=world, gpu_bytes=MEMORY)


def gigabytes(model, args):
    """Memory of one GPU in a step."""
    held = weight_bytes(model) + trained_bytes(model) + optimizer_bytes(model, "muon")
    per_token = 34 * 12 * 768 + (0 if args.chunked_loss else 12 * model.config.vocab_size)
    return (held + per_token * args.train_batch_size * args.block_size) / 1e9


@pytest.mark.parametrize(("column", "world"), [(0, 1), (1, 8)])
def test_the_table_is_of_the_recipe(model, table, column, world):
    args = derived(model, world)
    tokens = 20 * model.num_parameters()
    flops = flops_per_token(model, args.block_size) * tokens
    minutes = flops / (0.4 * PEAK_FLOPS["H100"] * world) / 60
    expected = {
        "parameters": f"{model.num_parameters() / 1e6:.1f} M",
        "tokens": f"{tokens / 1e9:.2f} G",
        "tokens per step": f"{args.tokens_per_step * world:,}",
        "sequences per GPU and step": str(args.train_batch_size * args.gradient_accumulation_steps),
        "steps": f"{args.max_steps:,}",
        "arithmetic": f"{flops:.1e} FLOP".replace("+", ""),
        "time at 40% MFU": f"{minutes:.0f} min",
        "cost at $2.50 per GPU-hour": f"${minutes / 60 * 2.5 * world:.1f}0",
        "memory per GPU": f"{gigabytes(model, args):.0f} GB",
        "checkpoint on disk": f"{(weight_bytes(model) + optimizer_bytes(model, 'muon')) / 1e9:.1f} GB",
    }
    whole = derived(model, world, chunked_loss=False)
    assert whole.tokens_per_step == args.tokens_per_step
    expected["memory without `chunked_loss`"] = f"{gigabytes(model, whole):.0f} GB"
    assert {name: cells[column] for name, cells in table.items() if name} == expected


@pytest.mark.parametrize(("world", "accumulated"), [(8, 1), (1, 8)])
def test_the_larger_batch_that_it_names_is_the_one_it_says(model, world, accumulated):
    args = derived(
        model,
        world,
        per_device_train_batch_size=64,
        gradient_accumulation_steps=accumulated,
        max_steps=4750,
    )
    assert args.tokens_per_step * world == 524_288
    assert args.max_steps * args.tokens_per_step * world == pytest.approx(20 * model.num_parameters(), rel=1e-3)
