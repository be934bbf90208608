"""A suite: the tasks that are put to each model, as a recipe's YAML lists them."""

import dataclasses
import difflib
import importlib
import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any, Self

import pydantic

from hfchat.entries import Entry, explain
from hfchat.errors import UserError
from hfchat.evaluation.contamination import find_contamination
from hfchat.evaluation.engine_model import EngineChoice, EngineModel
from hfchat.evaluation.local_model import LocalModel
from hfchat.evaluation.model import EvaluatedModel
from hfchat.evaluation.openai_model import RemoteModel
from hfchat.evaluation.records import read_records
from hfchat.evaluation.task import Task, result
from hfchat.evaluation.usage import hardware, peak_memory, reset_peak_memory
from hfchat.lineage import Ancestor, versions
from hfchat.processes import launched
from hfchat.results import Bootstrap, Estimate, ModelResult, Results, Speed, TaskResult
from hfchat.storage import write_whole

# Kind to its class. Modules are imported when a suite asks for them: lm-eval alone takes seconds.
_KINDS = {
    "answers": "hfchat.evaluation.tasks.answers:Answers",
    "facts": "hfchat.evaluation.tasks.facts:Facts",
    "perplexity": "hfchat.evaluation.tasks.text:TextPerplexity",
    "benchmark": "hfchat.evaluation.tasks.benchmark:Benchmark",
    "crows_pairs": "hfchat.evaluation.tasks.crows_pairs:CrowsPairs",
    "continuations": "hfchat.evaluation.tasks.continuations:Continuations",
    "refusal": "hfchat.evaluation.tasks.refusal:Refusal",
    "preferences": "hfchat.evaluation.tasks.preferences:Preferences",
    "judge": "hfchat.evaluation.tasks.judge:Judge",
    "tools": "hfchat.evaluation.tasks.tools:Tools",
    "json": "hfchat.evaluation.tasks.json_answers:JsonAnswers",
}


class TaskEntry(Entry):
    """An entry of `tasks`: its `kind`, by default `answers`, its `name`, by default the kind, and its task's keys."""

    # The other keys are the fields of the kind's class, which `build` checks.
    model_config = pydantic.ConfigDict(extra="allow")

    kind: str
    name: str

    @classmethod
    def expand(cls, value: object) -> Mapping[str, Any]:
        fields = {"kind": value} if isinstance(value, str) and not value.lstrip().startswith("{") else value
        fields = super().expand(fields)
        kind = fields.get("kind", "answers")
        return {"kind": kind, "name": kind, **fields}

    @classmethod
    def title(cls, fields: Mapping[str, Any]) -> str:
        return f"tasks: {fields['name']}" if fields.get("name") else "tasks"

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        self.build()
        return self

    def build(self) -> Task:
        """Make the task, with its settings checked and its data not read.

        Raises:
            ValueError: For an unknown kind, an unknown or missing key, or a wrong value. Names the key.
        """
        if self.kind not in _KINDS:
            raise ValueError(f"there is no kind {self.kind!r}; there are {', '.join(_KINDS)}")
        if not re.fullmatch(r"[\w.-]+", self.name):
            raise ValueError(f"the name {self.name!r} must be a word")
        module, _, name = _KINDS[self.kind].partition(":")
        task = getattr(importlib.import_module(module), name)
        settings = {"name": self.name, **(self.model_extra or {})}
        known = [field.name for field in dataclasses.fields(task) if field.init]
        for key in settings.keys() - known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"it takes {', '.join(known)}"
            raise ValueError(f"unknown key '{key}' of the kind {self.kind}; {hint}")
        try:
            return pydantic.TypeAdapter(task).validate_python(settings)
        except pydantic.ValidationError as error:
            raise ValueError(explain(error, TaskEntry)) from error


RECORDS = "records"
_PACKAGES = ("torch", "transformers", "evaluate", "sacrebleu", "rouge-score", "nltk", "lm-eval", "xllamacpp", "vllm")
_OF_A_STAGE = (
    "stage", "path", "command", "finished", "duration_s", "inputs", "licenses", "config", "metrics", "versions",
)  # fmt: skip
_USAGE = "usage.json"  # beside the records: what a run that goes on with them does not measure again


def open_model(
    name: str,
    path: str,
    batch_size: int,
    dtype: str,
    allow_template_mismatch: bool = False,
    engine: EngineChoice | None = None,
) -> EvaluatedModel:
    """Open a URL as a `RemoteModel`, and anything else as a `LocalModel`, or one whose answers an engine generates."""
    if re.match(r"https?://", path):
        return RemoteModel(name, path, batch_size)
    if engine is not None:
        return EngineModel(name, path, batch_size, dtype, engine, allow_template_mismatch)
    return LocalModel(name, path, batch_size, dtype, allow_template_mismatch)


def prepare_suite(tasks: Sequence[Task], models: Sequence[EvaluatedModel]) -> None:
    """Read what the tasks ask, and check it with every model; no weights are loaded.

    Raises:
        UserError: For what is wrong with the data, what a model cannot read, and a task that no model can take.
    """
    for task in tasks:
        task.prepare()
    for task in tasks:
        refusals = [task.refusal(model) for model in models]
        if None not in refusals:
            raise UserError(f"tasks: {task.name}: {refusals[0]}")
        for model, refusal in zip(models, refusals, strict=True):
            if refusal is None:
                task.check(model)


def run_suite(
    tasks: Sequence[Task], models: Sequence[EvaluatedModel], folder: Path, bootstrap: Bootstrap
) -> Results | None:
    """Put every task to every model, one model in memory at a time, and score them.

    What `folder` holds already is not asked again.

    Args:
        tasks: With different names, after `prepare_suite`.
        models: The first is the baseline.
        folder: Gets `records/<task>/<model>.jsonl`.
        bootstrap: Resamples of the intervals and the tests.

    Returns:
        The results, or None in a process of a launch that is not the main one.
    """
    records = folder / RECORDS
    asked = {task.name: [model for model in models if task.refusal(model) is None] for task in tasks}
    for task in tasks:
        task.check_suite(tasks, asked[task.name], records / task.name)
    _collect(tasks, models, asked, records)
    if not launched().is_main_process:
        return None

    # No model is loaded any more: what remains is scored from the records.
    names = {task.name: [model.name for model in asked[task.name]] for task in tasks}
    for task in tasks:
        task.collect_jointly(names[task.name], records / task.name)
    ancestries = {model.name: model.ancestry() for model in models}
    examples = {task.name: task.examples for task in tasks}
    seen = {name: find_contamination(examples, lineages) for name, lineages in ancestries.items()}
    usage = _read_usage(records)
    return Results(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=shlex.join(["python", *sys.argv]),
        versions=versions(_PACKAGES),
        hardware=hardware(),
        bootstrap=bootstrap,
        models={
            model.name: ModelResult(
                **vars(model.describe()),
                lineage=[_in_short(stage) for stage in ancestries[model.name]],
                speed=_speed(model, records),
                parameters=usage.get(model.name, {}).get("parameters"),
                peak_memory_bytes=usage.get(model.name, {}).get("peak_memory_bytes"),
            )
            for model in models
        },
        tasks={
            task.name: replace(
                _signed(result(task, names[task.name], records / task.name, bootstrap), task, asked[task.name]),
                contamination={name: seen[name][task.name] for name in names[task.name] if task.name in seen[name]},
                left_out={model.name: reason for model in models if (reason := task.refusal(model)) is not None},
                records={name: f"{RECORDS}/{task.name}/{name}.jsonl" for name in names[task.name]},
            )
            for task in tasks
        },
    )


def _collect(
    tasks: Sequence[Task],
    models: Sequence[EvaluatedModel],
    asked: Mapping[str, Sequence[EvaluatedModel]],
    folder: Path,
) -> None:
    """Put the tasks to one model after the other, and note what asking it took."""
    for model in models:
        model.prepare()
    for model in models:
        reset_peak_memory()
        try:
            for task in tasks:
                if model in asked[task.name]:
                    task.collect(model, folder / task.name)
            if model.parameters is not None and launched().is_main_process:
                _write_usage(folder, model)
        finally:
            model.free()


def _signed(result: TaskResult, task: Task, models: Sequence[EvaluatedModel]) -> TaskResult:
    """The same, in which each signature says what computed the score."""
    by_name = {model.name: model for model in models}

    def sign(model: str, scores: Mapping[str, Estimate]) -> dict[str, Estimate]:
        by = {metric: by_name[model].computed_by(metric in task.needs_weights) for metric in scores}
        return {metric: replace(one, signature=f"{one.signature}|{by[metric]}") for metric, one in scores.items()}

    return replace(
        result,
        scores={model: sign(model, scores) for model, scores in result.scores.items()},
        groups={
            model: {group: sign(model, scores) for group, scores in groups.items()}
            for model, groups in result.groups.items()
        },
    )


def _in_short(stage: Ancestor) -> dict[str, object]:
    """What the report and the cards show of a stage."""
    return {key: value for key, value in stage.items() if key in _OF_A_STAGE}


def _speed(model: EvaluatedModel, folder: Path) -> Speed | None:
    """Count tokens and seconds over all tasks in which the model generated."""
    files = sorted(folder.glob(f"*/{model.name}.jsonl"))
    answered = [
        record
        for record in chain.from_iterable(map(read_records, files))
        if record.answer is not None and record.seconds
    ]
    if not answered:
        return None
    tokens, seconds = sum(record.answer_tokens for record in answered), sum(record.seconds for record in answered)
    return Speed(tokens / seconds, tokens, seconds, model.batch_size)


def _read_usage(folder: Path) -> dict[str, dict[str, int | None]]:
    file = folder / _USAGE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _write_usage(folder: Path, model: EvaluatedModel) -> None:
    usage = _read_usage(folder) | {
        model.name: {
            "parameters": model.parameters,
            "peak_memory_bytes": None if model.is_served else peak_memory(),  # not that of another process
        },
    }
    write_whole(folder / _USAGE, json.dumps(usage))
