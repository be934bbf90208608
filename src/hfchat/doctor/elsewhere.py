"""What a run would take on GPUs that are not here: computed from its settings alone, without its data."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch

from hfchat.doctor.machine import Machine, resident_bytes
from hfchat.doctor.plan import RunPlan, Texts, plan_pretraining, plan_tuning
from hfchat.doctor.recipes import RECIPES, Recipe, find_recipe
from hfchat.doctor.report import Report, size, time
from hfchat.errors import UserError
from hfchat.models import load_tokenizer, resolve
from hfchat.training.run_arguments import replaced
from hfchat.training.throughput import PEAK_FLOPS, flops_per_token

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

# Bytes, from the makers' data sheets; an A100 of 40 GB is not in it.
MEMORY = {
    "H200": 141e9,
    "H100 PCIe": 80e9,
    "H100 NVL": 94e9,
    "H100": 80e9,
    "A100": 80e9,
    "L40S": 48e9,
    "L4": 24e9,
    "A10G": 24e9,
    "RTX 5090": 32e9,
    "RTX 4090": 24e9,
    "RTX 3090": 24e9,
    "T4": 16e9,
}
# Model FLOPs utilisation, the share of the peak that a training reaches. Published for code made for it: 52%
# (TinyLlama, on 64 A100), near 50% (picotron, on 8 H100). This is lower, because nobody has measured ours on each.
ASSUMED_MFU = 0.4
CPU = "CPU"  # a name for this machine, where it has no GPU
# A guess, above that of GPUs: it is a share of what products of matrices reach here, and not of a data sheet's peak.
_CPU_MFU = 0.6
# FLOP per weight and token: forward 2, gradients of activations 2, of weights 2 (arXiv:2204.02311, appendix B).
_FORWARD, _ADAPTER, _FULL = 2, 4, 6
_UNIT = 1e9  # tokens, where nobody knows how many there are


@dataclass(frozen=True)
class Gpus:
    """GPUs of one kind.

    Attributes:
        name: As in `MEMORY`.
        count: How many there are.
        mfu: Share of their peak that the run is taken to reach.
        price_per_hour: US dollars for each; None if unknown.
        measured_flops: FLOP/s of products of matrices on one, in place of the peak in its data sheet.
    """

    name: str
    count: int = 1
    mfu: float = ASSUMED_MFU
    price_per_hour: float | None = None
    measured_flops: float | None = None

    @classmethod
    def here(cls, price_per_hour: float | None = None) -> "Gpus":
        """What this machine computes with; how fast it multiplies matrices is measured, in a second."""
        on_gpu = torch.cuda.is_available()
        name, count = ("GPU", torch.cuda.device_count()) if on_gpu else (CPU, 1)
        dtype = torch.bfloat16 if on_gpu else torch.float32
        return cls(
            name,
            count,
            ASSUMED_MFU if on_gpu else _CPU_MFU,
            price_per_hour,
            _measure_flops(torch.device("cuda" if on_gpu else "cpu"), dtype),
        )

    @classmethod
    def parse(cls, name: str, count: int, mfu: float, price_per_hour: float | None) -> "Gpus":
        """GPUs as a command line names them: in any case, with hyphens or spaces.

        Raises:
            UserError: If there is no such GPU, or a number is out of its range.
        """
        known = {gpu.lower(): gpu for gpu in MEMORY}
        found = known.get(name.lower().replace("-", " "))
        if found is None:
            names = ", ".join(gpu.replace(" ", "-") for gpu in known)
            raise UserError(f"--gpu {name}: must be one of {names}")
        if count < 1:
            raise UserError(f"--gpus {count}: must be at least 1")
        if not 0 < mfu <= 1:
            raise UserError(f"--mfu {mfu:g}: is a share of the peak, above 0 and at most 1")
        if price_per_hour is not None and not 0 <= price_per_hour < float("inf"):
            raise UserError(f"--price-per-hour {price_per_hour:g}: must be dollars for a GPU, at least 0")
        return cls(found, count, mfu, price_per_hour)

    @property
    def flops(self) -> float:
        """FLOP/s that all of them reach together, as if they scaled perfectly."""
        peak = self.measured_flops
        if peak is None:
            peak = next(peak for pattern, peak in PEAK_FLOPS.items() if pattern.rstrip("$") == self.name)
        return self.count * self.mfu * peak

    @property
    def memory_bytes(self) -> int:
        """Memory of one."""
        return int(MEMORY[self.name]) if self.name in MEMORY else Machine.here(self.name == CPU).memory_bytes

    def __str__(self) -> str:
        return self.name if self.count == 1 else f"{self.count} x {self.name}"


def _measure_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of products of square matrices, the best of a few: other programs can only slow it."""
    size = 8192 if device.type == "cuda" else 1024
    left = torch.ones(size, size, device=device, dtype=dtype)
    seconds = []
    for _ in range(6):
        began = perf_counter()
        (left @ left)[0, 0].item()  # waits for the device
        seconds.append(perf_counter() - began)
    return 2 * size**3 / min(seconds)


@dataclass(frozen=True)
class Expected:
    """What one stage would take.

    Attributes:
        parameters: Weights of the model.
        steps: Steps of the run; None where they follow from data that nobody has counted. Then all that follows is for
            a billion tokens.
        tokens_per_step: Tokens of all GPUs together; where rows differ in length, the most that they can be.
        tokens: Tokens of the run.
        flops: Arithmetic of the run.
        seconds: Its time, without start-up, evaluations and checkpoints.
        price: US dollars for all GPUs; None if the price of one is unknown.
        memory: Bytes on each GPU, at the peak.
        disk: Bytes that it writes.
    """

    parameters: int
    steps: int | None
    tokens_per_step: int
    tokens: float
    flops: float
    seconds: float
    price: float | None
    memory: int
    disk: int

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


def expect(plan: RunPlan, gpus: Gpus, *, is_counted: bool, flops_per_weight: int = _FULL) -> Expected:
    """What a plan comes to on some GPUs.

    Args:
        plan: The work of one process.
        gpus: One for each process.
        is_counted: Whether the plan's steps are those of the run.
        flops_per_weight: FLOP for each weight and token: 6 where all weights are trained.
    """
    step = plan.step
    tokens_per_step = step.rows * step.length * step.accumulation * gpus.count
    tokens = plan.steps * tokens_per_step if is_counted else _UNIT
    flops = tokens * flops_per_token(plan.model, step.length) * flops_per_weight / _FULL
    seconds = flops / gpus.flops
    return Expected(
        parameters=plan.model.num_parameters(),
        steps=plan.steps if is_counted else None,
        tokens_per_step=tokens_per_step,
        tokens=tokens,
        flops=flops,
        seconds=seconds,
        price=None if gpus.price_per_hour is None else seconds / 3600 * gpus.count * gpus.price_per_hour,
        memory=plan.memory(resident_bytes() if plan.device == "cpu" else 0).peak,
        disk=plan.disk().total,
    )


def examine_elsewhere(config: str, gpus: Gpus) -> Report:
    """Say what a run would take on GPUs that are not here. Nothing is run, and of its data nothing is read.

    Args:
        config: YAML of one recipe, or a folder with those of a run.
        gpus: What it would run on.

    Raises:
        UserError: If there is no training in it, or what its settings name cannot be read.
    """
    expected = {recipe.name: expect_file(recipe, file, gpus) for recipe, file in _trainings(Path(config)).items()}
    report = Report(Path(config).stem, f"{gpus}, on none of which it ran: computed, not measured")
    for name, found in expected.items():
        _add_section(report, name, found, gpus)

    # The sum, and how far it is to be believed.
    report.section("Not computed").text = (
        "start-up, downloads, data, evaluations, checkpoints, and what is lost where GPUs wait for each other\n"
        "python benchmarks/gpu.py measures the MFU of a GPU at hand; --mfu takes it"
    )
    report.figures = {name: asdict(found) for name, found in expected.items()}
    counted = {name: found for name, found in expected.items() if found.steps is not None}
    seconds = sum(found.seconds for found in counted.values())
    price = f" and ${sum(found.price or 0 for found in counted.values()):,.2f}" if gpus.price_per_hour else ""
    report.verdict = f"{', '.join(counted)}: about {time(seconds)}{price}, if {gpus.mfu:.0%} of the peak is reached"
    if not counted:
        report.verdict = "how long it takes follows from its data"
    if faults := report.faults():
        report.verdict = f"will not fit: {', '.join(line.value for line in faults)}"
    return report


def _add_section(report: Report, name: str, found: Expected, gpus: Gpus) -> None:
    section = report.section(name)
    section.add("parameters", f"{found.parameters / 1e6:,.1f} M")
    if found.steps is None:
        section.add("tokens", f"follow from its data; what follows is for {found.tokens / 1e9:g} G")
    else:
        section.add("tokens", f"{found.tokens / 1e9:.2f} G ({found.steps:,} steps)")
    section.add("tokens per step", f"{found.tokens_per_step:,}")
    section.add("arithmetic", f"{found.flops:.1e} FLOP")
    section.add(f"tokens/s, at {gpus.mfu:.0%} MFU", f"{found.tokens_per_second:,.0f}")
    section.add("time", time(found.seconds))
    if found.price is not None:
        section.add("price", f"${found.price:,.2f} at ${gpus.price_per_hour:g} for each GPU and hour")
    fits = found.memory <= gpus.memory_bytes
    advice = "lower per_device_train_batch_size and raise gradient_accumulation_steps as much"
    section.judge("memory per GPU", f"{size(found.memory)} of {size(gpus.memory_bytes)}", fits, advice, "fails")
    section.add("disk", size(found.disk))


def _trainings(path: Path) -> dict[Recipe, Path]:
    """The YAMLs of a run that train, in their order."""
    if path.is_dir():
        files = {recipe: path / f"{recipe.name}.yaml" for recipe in RECIPES if recipe.kind != "other"}
        files = {recipe: file for recipe, file in files.items() if file.is_file()}
    elif path.is_file():
        recipe = find_recipe(str(path), None)
        files = {recipe: path} if recipe.kind != "other" else {}
    else:
        raise UserError(f"--config {path}: no such file or folder")
    if not files:
        raise UserError(f"--config {path}: nothing in it trains a model, and only that is computed for --gpu")
    return files


def expect_file(recipe: Recipe, file: Path, gpus: Gpus) -> Expected:
    """What a stage that trains would take; what earlier stages have yet to make follows from the YAMLs beside its own.

    Raises:
        UserError: If what its settings name cannot be read.
    """
    settings = recipe.parse(["--config", str(file)])
    # As they would be parsed there, and not where they were.
    args = settings[0] if gpus.name == CPU else replaced(settings[0], use_cpu=False, bf16=True)
    if recipe.kind == "pretraining":
        plan = _plan_base(args, file, gpus)
        return expect(_on(gpus, plan), gpus, is_counted=True)

    tokenizer, config = _base_of(settings[1].model_name_or_path, file, gpus)
    texts = Texts(None, args.max_length)
    plan = plan_tuning(args, settings[1], tokenizer, texts, config)
    reference = _FORWARD if recipe.name == "align" else 0  # the answers of the model that it starts from
    flops_per_weight = (_ADAPTER if settings[1].use_peft else _FULL) + reference
    return expect(_on(gpus, plan), gpus, is_counted=args.max_steps > 0, flops_per_weight=flops_per_weight)


def _on(gpus: Gpus, plan: RunPlan) -> RunPlan:
    return plan if gpus.name == CPU else replace(plan, device="cuda", step=replace(plan.step, varying=False))


def _plan_base(args: Any, file: Path, gpus: Gpus) -> RunPlan:
    tokenizer = _tokenizer(args.tokenizer_name or args.model_name_or_path, file)
    gpu_bytes = None if gpus.name == CPU else gpus.memory_bytes
    return plan_pretraining(args, tokenizer, Texts(None, args.block_size), gpus.count, gpu_bytes)


def _base_of(name: str, file: Path, gpus: Gpus) -> "tuple[PreTrainedTokenizerBase, PreTrainedConfig | None]":
    """Tokenizer and config of what a tuning starts from: those of the run's own base, or as they are read."""
    pretrain = file.with_name("pretrain.yaml")
    if not pretrain.is_file():
        return load_tokenizer(resolve(name)), None
    recipe = find_recipe(str(pretrain), None)
    (args,) = recipe.parse(["--config", str(pretrain)])
    if not name.startswith(f"{os.path.dirname(args.output_dir)}/"):  # trained elsewhere
        return load_tokenizer(resolve(name)), None
    return _tokenizer(args.tokenizer_name, pretrain), _plan_base(args, pretrain, gpus).model.config


def _tokenizer(name: str, file: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a run or, where the run has yet to train it, one with as many tokens."""
    train = file.with_name("train_tokenizer.yaml")
    if not train.is_file():
        return load_tokenizer(name)
    (args,) = find_recipe(str(train), None).parse(["--config", str(train)])
    return stand_in(args.vocab_size)


def stand_in(vocabulary: int) -> "PreTrainedTokenizerBase":
    """A tokenizer with so many tokens that mean nothing: shapes follow from their number."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words: Mapping[str, int] = {str(number): number for number in range(vocabulary)}
    tokenizer = Tokenizer(WordLevel(dict(words), unk_token="0"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="0", eos_token="1", pad_token="2")
