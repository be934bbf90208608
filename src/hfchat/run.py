"""`hfchat run FOLDER`: the stages of a folder of YAMLs, one after the other, as a user would run them by hand.

A YAML is named as its recipe. What is expected is said before the first stage starts, and what came out at the end.
"""

import itertools
import json
import tempfile
import time
from collections import ChainMap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from hfchat.config import identity_of
from hfchat.errors import UserError
from hfchat.lineage import Input, describe, is_whole, metrics_of, read_lineage
from hfchat.pipeline import (
    Settings,
    config_folder,
    moved_settings,
    read_settings,
    recipe_command,
    recipes_root,
    run_recipe,
)
from hfchat.results import Results
from hfchat.storage import as_path
from hfchat.toy import shrink, write_pairs

if TYPE_CHECKING:
    from hfchat.doctor.elsewhere import Gpus
    from hfchat.serving.settings import ServerSettings

# Each recipe in the order of a run, with what it does.
STAGES = {
    "prepare_data": "a corpus",
    "train_tokenizer": "a tokenizer trained on it",
    "pretrain": "a base model",
    "prepare_conversations": "conversations, or pairs of answers",
    "finetune": "a chat model fine-tuned on conversations",
    "align": "a chat model that learns which answers are preferred",
    "evaluate": "what the models can do, measured",
    "publish": "what was made, on the Hub",
}
_LAUNCHED = ("pretrain", "finetune", "align")  # by Accelerate
_CHARACTERS_PER_TOKEN = 4  # of English text, about


@dataclass(frozen=True)
class RunOptions:
    """What to run, and how.

    Attributes:
        folder: Folder of the YAMLs, relative to the working directory or to the place of the recipes.
        output_dir: In place of the folder that holds the outputs by the YAMLs.
        toy: Run each stage at toy size, offline; the outputs go beside those of the real run, with `-toy`.
        serve: Serve the chat at the end.
        port: Port of the chat.
        served_model_name: What the model is called there; by default as the folder.
        price_per_hour: US dollars for the machine, or for each of its GPUs.
        publish: Run `publish.yaml` too.
        accelerate_config: File for Accelerate; by default the one for what the machine has.
    """

    folder: str
    output_dir: str | None = None
    toy: bool = False
    serve: bool = True
    port: int = 8000
    served_model_name: str | None = None
    price_per_hour: float | None = None
    publish: bool = False
    accelerate_config: str | None = None


@dataclass(frozen=True)
class RunStage:
    """One stage of a run: its recipe, its settings with all that is overridden, and its command."""

    recipe: str
    settings: Settings
    command: list[str]

    @property
    def output_dir(self) -> str | None:
        return self.settings.get("output_dir")


def run(options: RunOptions) -> None:
    """Run every stage that is not finished, print what came out, and serve the chat.

    Raises:
        UserError: Before any work, if a YAML or the port is not what it should be.
    """
    stages, output_dir, notes = stages_of(options)
    server = _server(options, stages)
    print("\n".join([*notes, *expectations(stages, options.price_per_hour), ""]), flush=True)
    if options.toy:
        write_pairs(output_dir)

    # Each recipe skips what is finished already.
    started = time.monotonic()
    for number, stage in enumerate(stages, start=1):
        print(f"\n[{number}/{len(stages)}] {stage.recipe}: {STAGES[stage.recipe]}")
        run_recipe(stage.command)
    print(summary(stages, output_dir, time.monotonic() - started))
    if server is not None:
        from hfchat.serving.server import serve

        name = server.served_model_name
        print(f"\n$ hfchat serve {server.model} --served-model-name {name} --port {options.port}", flush=True)
        serve(server)


def stages_of(options: RunOptions) -> tuple[list[RunStage], str, list[str]]:
    """The stages of a folder in their order, the folder of their outputs, and what `--toy` makes smaller, in lines.

    Raises:
        UserError: If the folder holds no YAML, one of another name, or one that cannot be read.
    """
    configs = Path(options.folder)
    in_yaml = {recipe: read_settings(file) for recipe, file in _find(config_folder(configs)).items()}
    if not options.publish:
        in_yaml.pop("publish", None)
    root = _common_folder([settings["output_dir"] for settings in in_yaml.values() if "output_dir" in settings])
    output_dir = (options.output_dir or root).rstrip("/")
    if not root and (options.output_dir or options.toy):
        raise UserError(f"{configs}: the output_dirs of its YAMLs have no common folder that could be another")
    if options.toy:
        output_dir = f"{output_dir.removesuffix('-toy')}-toy"

    # The command of each stage, with what differs from its YAML.
    places = {root: output_dir} if root else {}
    accelerate_config = options.accelerate_config or _accelerate_config()
    stages, notes = [], ["A toy: it proves the path, not the model."] if options.toy else []
    for recipe, settings in in_yaml.items():
        moved = moved_settings(settings, places)
        small: Settings = {}
        if options.toy:
            small, note = shrink(recipe, moved, output_dir, has_align="align" in in_yaml)
            notes.append(f"  {note}")
        launched = recipe in _LAUNCHED
        command = recipe_command(
            recipe, configs, small, launched=launched, places=places, accelerate_config=accelerate_config
        )
        stages.append(RunStage(recipe, moved | small, command))
    return stages, output_dir, notes


def _find(folder: Path) -> dict[str, Path]:
    """The YAMLs of a run by their recipes, in the order of the stages."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; it must hold the YAMLs of a run")
    files = sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")])
    known = ", ".join(f"{recipe}.yaml" for recipe in STAGES)
    for file in files:
        if file.stem not in STAGES or file.suffix != ".yaml":
            raise UserError(f"{file}: is not named as a recipe of a run; there are {known}")
    if not files:
        raise UserError(f"{folder}: holds no YAML of a run; there may be {known}")
    return {recipe: folder / f"{recipe}.yaml" for recipe in STAGES if folder / f"{recipe}.yaml" in files}


def _common_folder(output_dirs: Sequence[str]) -> str:
    """The folder that holds all outputs, as a path or URL; empty if they have none in common."""
    above = [folder.rstrip("/").split("/")[:-1] for folder in output_dirs]
    shared = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*above, strict=False))
    return "/".join(parts[0] for parts in shared)


def _accelerate_config() -> str:
    import torch

    name = {0: "cpu", 1: "single_gpu"}.get(torch.cuda.device_count(), "multi_gpu")
    return str(recipes_root() / "accelerate_configs" / f"{name}.yaml")


def _chat_model(stages: Sequence[RunStage]) -> str | None:
    """The folder of the last model that can chat: an adapter is merged into its base."""
    for stage in reversed(stages):
        if stage.recipe in ("finetune", "align"):
            merged = stage.settings.get("use_peft", True)
            return f"{stage.output_dir}/{'merged' if merged else 'model'}"
    return None


def _server(options: RunOptions, stages: Sequence[RunStage]) -> "ServerSettings | None":
    """What serves the chat at the end. A port that is taken is reported now, not then."""
    model = _chat_model(stages)
    if not options.serve or model is None:
        return None
    from hfchat.serving.server import bind
    from hfchat.serving.settings import ServerSettings

    name = options.served_model_name or Path(options.folder).resolve().name
    settings = ServerSettings(model=model, port=options.port, served_model_name=name)
    bind(settings.host, options.port).close()
    return settings


def expectations(stages: Sequence[RunStage], price_per_hour: float | None = None) -> list[str]:
    """What the doctor expects of each stage, as lines of a table.

    Raises:
        UserError: If a recipe refuses its settings.
    """
    from hfchat.doctor.elsewhere import Gpus
    from hfchat.doctor.inputs import NOT_ESTIMATED
    from hfchat.doctor.recipes import find_recipe

    rows = [("stage", "time", "memory", "disk", *(("price",) if price_per_hour is not None else ()))]
    done, machine, reasons = True, None, []
    with tempfile.TemporaryDirectory(prefix="hfchat-run-") as folder:
        files = {stage.recipe: Path(folder) / f"{stage.recipe}.yaml" for stage in stages}
        for stage in stages:  # all of them first: what a stage will read follows from the YAMLs of the others
            files[stage.recipe].write_text(yaml.safe_dump(stage.settings, allow_unicode=True), encoding="utf-8")
        for stage in stages:
            if stage.recipe == "publish":
                rows.append(("publish", "not estimated"))
                continue
            recipe = find_recipe(None, stage.recipe)
            arguments = recipe.parse(stage.command[stage.command.index("--config") :])
            done = done and is_finished(stage, arguments)
            if done:
                rows.append((stage.recipe, "finished"))
            elif recipe.kind == "other":
                rows.append((stage.recipe, "not estimated"))
                reasons.append(f"{stage.recipe}: {NOT_ESTIMATED[stage.recipe]}")
            else:
                machine = machine or Gpus.here(price_per_hour)
                rows.append((stage.recipe, *_expected(stage, files[stage.recipe], machine)))
    if machine is not None:
        reasons.append("the others: computed, within a factor of two or three; `hfchat doctor` measures some steps")
    return [*_columns(rows), *(f"  {reason}" for reason in reasons)]


def is_finished(stage: RunStage, arguments: Sequence[Any]) -> bool:
    """Whether its output is whole, and was made with these settings of inputs that are still the same."""
    if stage.output_dir is None or (lineage := read_lineage(stage.output_dir)) is None:
        return False
    asked = dict(ChainMap(*map(identity_of, arguments)))
    is_same = lineage["identity"]["config"] == asked and all(map(_is_unchanged, lineage["inputs"].values()))
    return is_same and is_whole(as_path(stage.output_dir))


def _is_unchanged(source: Input) -> bool:
    """Whether an input is what it was; what is not a file or folder here is left to its recipe."""
    if not as_path(source["path"]).exists():
        return True
    try:
        return describe(source["path"])["sha256"] == source["sha256"]
    except UserError:  # it is being made anew
        return False


def _expected(stage: RunStage, file: Path, machine: "Gpus") -> list[str]:
    """The cells of a stage that trains."""
    from hfchat.doctor.elsewhere import expect_file
    from hfchat.doctor.recipes import find_recipe
    from hfchat.doctor.report import size
    from hfchat.doctor.report import time as shown_time

    try:
        found = expect_file(find_recipe(None, stage.recipe), file, machine)
    except UserError:  # of a base that is on the Hub, nothing is known without it
        return ["not estimated"]
    # Where the steps follow from the data, it is what its files hold.
    scale = 1.0
    if found.steps is None:
        tokens = list(map(_tokens, _datasets(stage.settings)))
        if not all(tokens):  # nobody knows how much there is of what is on the Hub
            return ["follows from its data", size(found.memory), size(found.disk)]
        scale = sum(tokens) * float(stage.settings.get("num_train_epochs", 1)) / found.tokens
    cells = [shown_time(scale * found.seconds), size(found.memory), size(found.disk)]
    return cells if found.price is None else [*cells, f"${scale * found.price:,.2f}"]


def _datasets(settings: Settings) -> list[Settings]:
    """What a tuning learns from, as entries of a mixture."""
    return settings.get("dataset_mixture") or [{"path": settings.get("dataset_name", "")}]


def _tokens(entry: Settings) -> float:
    """Tokens of the conversations that an entry takes of JSON lines at hand, about; 0 for other data."""
    files = Path(entry["path"]).glob("train*.jsonl") if entry["path"] else ()
    where = entry.get("where", {}).items()
    characters = 0
    try:
        lines = itertools.chain.from_iterable(file.read_text(encoding="utf-8").splitlines() for file in files)
        for row in map(json.loads, lines):
            if all(row.get(column) in values for column, values in where):
                characters += sum(len(turn.get("content") or "") for turn in row.get("messages", []))
    except (ValueError, TypeError, AttributeError):  # these are no conversations; the recipe says where, and why
        return 0
    return entry.get("epochs", 1) * characters / _CHARACTERS_PER_TOKEN


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows if len(row) > column) for column in range(len(rows[0]))]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)).rstrip() for row in rows]


def summary(stages: Sequence[RunStage], output_dir: str, seconds: float) -> str:
    """What the stages measured, from their lineages, and where the report and the card are."""
    lines = [f"\nDone in {seconds / 60:.1f} minutes. In {output_dir}:"]
    made = [(stage, Path(stage.output_dir)) for stage in stages if stage.output_dir]
    width = max((len(folder.name) for _, folder in made), default=0) + 1
    for stage, folder in made:
        lines.append(f"  {folder.name + '/':<{width}}  {_figures(stage.recipe, folder)}")
    model = _chat_model(stages)
    for stage, folder in made:
        if stage.recipe == "evaluate":
            lines += Results.read("evaluation", folder).headlines[:1]
            paths = dict(entry.split("=", 1) for entry in stage.settings["models"])
            names = [name for name, path in paths.items() if path == model]
            lines += [f"card: {folder}/cards/{name}.md" for name in names]
    return "\n".join(lines)


def _figures(recipe: str, folder: Path) -> str:
    """The figures of a stage, in a line."""
    metrics = metrics_of(folder)
    match recipe:
        case "prepare_data":
            return f"{metrics['documents']['train']:,} documents, {metrics['bytes']['train'] / 1e6:.1f} MB"
        case "train_tokenizer":
            return f"{metrics['vocab_size']:,} tokens, {metrics['validation_bytes_per_token']:.2f} bytes per token"
        case "pretrain":
            return f"{metrics['eval_bits_per_byte']:.2f} bits per byte; loss_curve.png"
        case "prepare_conversations":
            return "report.md says what was kept"
        case "finetune":
            return f"{metrics['train_supervised_tokens']:,} supervised tokens; loss_curve.png"
        case "align":
            return "loss_curve.png"
        case _:
            return "report.html: the models compared, their answers side by side"
