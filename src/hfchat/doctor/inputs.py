"""For the recipes that do not train: whether what they read is there, what it may be used for, and how large it is."""

from collections.abc import Callable
from functools import partial
from glob import glob
from pathlib import Path
from typing import Any

from hfchat.doctor.machine import Machine, free_disk_bytes
from hfchat.doctor.recipes import Recipe
from hfchat.doctor.report import Report, Section, size
from hfchat.errors import UserError
from hfchat.lineage import Input, describe
from hfchat.models import resolve
from hfchat.storage import is_remote

NOT_ESTIMATED = {
    "prepare_data": "memory and time: both follow from the steps of the chain and the workers",
    "prepare_conversations": "memory and time: a few seconds for each ten thousand conversations",
    "prepare_feedback": "memory and time: a few seconds for each ten thousand answers with feedback",
    "train_tokenizer": "memory and time: both follow from the algorithm and sample_bytes",
    "evaluate": "memory and time: both follow from how long the answers get",
}
# Each document is written as text beside the steps that wait for all of them, and again at the end.
_COPIES = 2


def examine_inputs(recipe: Recipe, args: Any) -> Report:
    """Look at what a recipe reads, without reading it.

    Args:
        recipe: One that does not train.
        args: Its settings.
    """
    machine = Machine.here(use_cpu=True)
    report = Report(recipe.name, f"{machine.device}, {size(machine.memory_bytes)} free")
    section = report.section("Inputs")

    # Recipes have different settings for what they read; each is looked for in all of them.
    read = 0
    for source in getattr(args, "sources", ()):
        read += _look(section, f"source {source.path}", source.describe)
    for entry in getattr(args, "evaluation_sets", ()):
        _look(section, f"evaluation set {entry.name}", partial(describe, entry.path))
    tasks = [entry.build() for entry in args.tasks] if recipe.name == "evaluate" else []
    for task in tasks:
        if task.source is not None:
            read += _look(section, f"data of {task.name}", partial(describe, task.source))
    if not tasks and getattr(args, "dataset_name", None):
        read += _look(section, f"dataset {args.dataset_name}", partial(describe, args.dataset_name))
    for entry in getattr(args, "models", ()):
        name, _, model = entry.partition("=")
        if is_remote(model):
            section.add(f"model {name}", "a server, which is not asked now")
        else:
            _look(section, f"model {name}", partial(_described_model, model))

    # Only the data stage writes about as much as it reads.
    disk = report.section("Disk")
    free = free_disk_bytes(Path(args.output_dir)) if not is_remote(args.output_dir) else None
    if getattr(args, "sources", ()) and free is not None:
        needed = _COPIES * read
        name, advice = "output and intermediate files, at most about", "choose an output_dir with more room"
        disk.judge(name, size(needed), needed <= free, advice, "fails")
    if free is not None:
        disk.add("free", size(free))

    report.section("Not estimated").text = NOT_ESTIMATED[recipe.name]
    report.figures = {"read_bytes": read, "free_disk_bytes": free}
    faults = report.faults()
    report.verdict = (
        f"will not go well: {'; '.join(line.name for line in faults)}" if faults else "all inputs are there"
    )
    return report


def _described_model(name: str) -> Input:
    return describe(resolve(name))


def _look(section: Section, name: str, describe: Callable[[], Input]) -> int:
    """Add a line about an input, and return its size in bytes, 0 where it is not known."""
    try:
        found = describe()
    except UserError as error:
        section.add(name, "not found", "fails", str(error))
        return 0
    licenses = ", ".join(found.get("licenses", [])) or "unknown"
    length = _size(found["path"])
    known = f"{size(length)}, licence {licenses}" if length else f"licence {licenses}"
    section.judge(name, known, "unknown" not in licenses, "say its license in the YAML")
    return length


def _size(path: str) -> int:
    if is_remote(path):
        return 0
    files = [Path(found) for found in glob(path, recursive=True)] or [Path(path)]
    total = 0
    for place in files:
        inside = [place] if place.is_file() else place.rglob("*")
        total += sum(file.stat().st_size for file in inside if file.is_file())
    return total
