"""`results.json`, what an evaluation measured: its shape, said once for those who write it and those who read it.

Every class here is an object of that file, and every attribute a key of it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hfchat.errors import UserError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

FILE = "results.json"
COMPUTED_BY = "engine:"  # begins the last part of each signature


@dataclass(frozen=True)
class Estimate:
    """A score of a corpus.

    Attributes:
        score: NaN where the model's likelihoods are no numbers.
        interval: Low and high end, at 95%.
        n: Examples.
        signature: Everything that shapes the score.
        scored: How many of the examples have a score; None in files that did not count them.
    """

    score: float
    interval: tuple[float, float]
    n: int
    signature: str = ""
    scored: int | None = None

    @property
    def computed_by(self) -> str:
        """The end of the signature, on what computed it: `"engine:llamacpp|weights:q8_0"`; empty if unknown."""
        _, found, rest = self.signature.rpartition(COMPUTED_BY)
        return f"{COMPUTED_BY}{rest}" if found else ""


@dataclass(frozen=True)
class Difference:
    """The score of a model minus that of the baseline on the same examples.

    Attributes:
        difference: NaN where one of both is.
        interval: Low and high end, at 95%.
        n: Examples.
        p_value: How often chance alone would make two equal models differ by at least as much, in either direction.
            It is never 0.
        scored: How many of the examples have a score of both.
    """

    difference: float
    interval: tuple[float, float]
    n: int
    p_value: float | None = None
    scored: int | None = None


@dataclass(frozen=True)
class Metric:
    """How a score is shown.

    Attributes:
        label: `"ROUGE-L"`.
        better: Which way is better; None where neither is.
        form: Format specification: `".3f"`.
    """

    label: str
    better: Literal["higher", "lower"] | None = "higher"
    form: str = ".3f"


@dataclass(frozen=True)
class Comparison:
    """The differences of a model from the baseline, by metric."""

    model: str
    baseline: str
    metrics: dict[str, Difference]


@dataclass(frozen=True)
class AskedData:
    """Where the examples of a task are from.

    Attributes:
        path: Folder, file or Hub id.
        sha256: Identifies the content, see `hfchat.lineage.describe`.
        licenses: Licences of the data.
        n: Examples that were asked.
        split: None, and no key of the file, where the data has no splits.
    """

    path: str
    sha256: str
    licenses: list[str]
    n: int
    split: str | None = None


@dataclass(frozen=True)
class ComparedSource:
    """A dataset that a stage of the model's training learned from, and how many examples were found in its rows."""

    stage: str
    path: str
    split: str
    rows: int
    found: int


@dataclass(frozen=True)
class Contamination:
    """Whether a model was trained on the examples of a task. Examples are named by their index.

    Attributes:
        status: `partly` where some of what the model learned from cannot be read here, `unknown` where nothing can.
        sentence: All of it in words.
        examples: How many were looked for.
        found: Examples that were seen: those of the next three together.
        equal: Examples whose whole question is a text of a training row, but for case and white space.
        equal_with_answer: Those of them whose answer stands beside it.
        overlapping: Examples that share a run of words with a training row.
        words: Length of a run.
        too_short: How many examples have no run.
        common: Examples that were not found, and of which every run is in too many rows to tell.
        sources: What was compared.
        unknown: What could not be, a sentence each.
    """

    status: Literal["checked", "partly", "unknown"]
    sentence: str
    examples: int = 0
    found: list[int] = field(default_factory=list)
    equal: list[int] = field(default_factory=list)
    equal_with_answer: list[int] = field(default_factory=list)
    overlapping: list[int] = field(default_factory=list)
    words: int = 0
    too_short: int = 0
    common: list[int] = field(default_factory=list)
    sources: list[ComparedSource] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """What a task measured.

    Attributes:
        kind: The task's kind: `"answers"`.
        title: How the report calls it.
        dataset: Where its examples are from.
        limits: What its numbers do not say, a sentence each.
        group_label: What a group is, as the head of a column: `"category"`.
        headline: The metric that the task itself calls its headline; see `decisive`.
        metrics: Those that were measured, in the order of the table.
        scores: Model to metric to score.
        groups: Model to group of examples to metric to score.
        comparisons: Each model but the first with the first, the baseline.
        in_words: Model to its scores in words, of tasks that are read so.
        details: More figures, by kind.
        contamination: Model to what was found.
        left_out: Model to why it did not take part.
        records: Model to the file of its answers, below the folder of the results.
    """

    kind: str
    title: str
    dataset: AskedData | None
    limits: list[str]
    group_label: str
    headline: str | None
    metrics: dict[str, Metric]
    scores: dict[str, dict[str, Estimate]]
    groups: dict[str, dict[str, dict[str, Estimate]]]
    comparisons: list[Comparison]
    in_words: dict[str, str] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    contamination: dict[str, Contamination] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    records: dict[str, str] = field(default_factory=dict)

    @property
    def decisive(self) -> str | None:
        """The metric that the task is judged by: its headline, or its first one with a better direction."""
        if self.headline in self.metrics:
            return self.headline
        return next((name for name, metric in self.metrics.items() if metric.better), next(iter(self.metrics), None))

    def score(self, model: str, metric: str | None) -> Estimate | None:
        """The score of a model; None where it has none."""
        return self.scores.get(model, {}).get(metric or "")

    def comparison(self, model: str) -> Comparison | None:
        """The differences of a model from the baseline; None for the baseline, and where it did not take part."""
        return next((one for one in self.comparisons if one.model == model), None)


@dataclass(frozen=True)
class Speed:
    """How quickly the answers of all tasks were generated."""

    tokens_per_second: float
    answer_tokens: int
    seconds: float
    batch_size: int


@dataclass(frozen=True)
class ModelIdentity:
    """What tells a model from others.

    Attributes:
        path: Folder, Hub id or URL.
        sha256: Identifies the content, see `hfchat.lineage.describe`.
        licenses: Licences of the model.
        kind: `"folder"`, `"adapter"`, `"hub"` or `"remote"`.
        dtype: Type of its weights in transformers, which measures likelihoods: `"bfloat16"`.
        chat_template: Fingerprint of the template.
        engine: What generated its answers: `"transformers"`, `"llamacpp"`, `"vllm"` or `"remote"`; None in files that
            do not say it.
        weights: Type of the weights there: `"q8_0"`; None where that is not known.
    """

    path: str
    sha256: str
    licenses: list[str]
    kind: str
    dtype: str | None
    chat_template: str | None
    engine: str | None = None
    weights: str | None = None

    @property
    def generated_by(self) -> str:
        """`"llamacpp q8_0"`."""
        return " ".join(filter(None, (self.engine, self.weights))) or "unknown"


@dataclass(frozen=True)
class ModelResult(ModelIdentity):
    """A model of an evaluation, and what asking it took.

    Attributes:
        lineage: What `lineage.json` says of each stage that made it, the last stage first.
        speed: None where it generated nothing.
        parameters: How many it has.
        peak_memory_bytes: Most memory of the accelerator, or of the process on a CPU.
    """

    lineage: Sequence[Mapping[str, Any]] = field(default_factory=list)
    speed: Speed | None = None
    parameters: int | None = None
    peak_memory_bytes: int | None = None


@dataclass(frozen=True)
class Hardware:
    """The machine; None for what it does not tell."""

    device: str
    cpu: str | None = None
    cores: int | None = None
    memory_gib: float | None = None


@dataclass(frozen=True)
class Bootstrap:
    """How many exchanges the tests try, and how many resamples the intervals take that have no formula."""

    resamples: int = 1000
    seed: int = 42


@dataclass(frozen=True, kw_only=True)
class Results:
    """An evaluation.

    Attributes:
        created: When, in ISO 8601.
        command: Makes the same again.
        versions: Versions of the libraries that measured.
        hardware: The machine that the models ran on.
        bootstrap: Resamples of the intervals and tests.
        models: By name; the first is the baseline.
        tasks: By name, in the order of the suite.
    """

    created: str = ""
    command: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    hardware: Hardware | None = None
    bootstrap: Bootstrap = field(default_factory=Bootstrap)
    models: dict[str, ModelResult]
    tasks: dict[str, TaskResult]

    @property
    def headlines(self) -> list[str]:
        """`"fine-tuned: 54 of 60 facts right, ..."`: what tasks say in words, the last model first."""
        telling = {name: task for name, task in self.tasks.items() if task.in_words}
        lines = []
        for model in reversed(self.models):
            words = {name: task.in_words[model] for name, task in telling.items() if model in task.in_words}
            lines += [
                f"{model}, {name}: {said}" if len(telling) > 1 else f"{model}: {said}" for name, said in words.items()
            ]
        return lines

    def metrics(self) -> dict[str, dict[str, dict[str, float]]]:
        """Task to model to metric to score, for the lineage."""
        return {
            name: {
                model: {metric: estimate.score for metric, estimate in scores.items()}
                for model, scores in task.scores.items()
            }
            for name, task in self.tasks.items()
        }

    def write(self, folder: Path) -> None:
        """Write `results.json` into a folder. It begins with the headlines, for those who read no further."""
        content = {"headlines": self.headlines, **asdict(self)}
        for task in content["tasks"].values():
            if task["dataset"] and task["dataset"]["split"] is None:
                del task["dataset"]["split"]
        (folder / FILE).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, key: str, folder: str | Path) -> "Results":
        """Read `results.json`.

        Args:
            key: The setting that names the folder, for messages.
            folder: Output of `recipes/evaluate.py`.

        Raises:
            UserError: If there is no such file, or it is not one of an evaluation.
        """
        try:
            content = json.loads((Path(folder) / FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{key} {folder}: has no {FILE}; recipes/evaluate.py makes it") from error
        try:
            return cls.parse(content)
        except ValueError as error:
            raise UserError(
                f"{key} {folder}: its {FILE} is not one that this version reads ({error}); evaluate again"
            ) from error

    @staticmethod
    def parse(content: Mapping[str, Any]) -> "Results":
        """Take what `results.json` holds.

        Raises:
            ValueError: If a key is missing, or its value is not what it should be. Names the key in one line.
        """
        from pydantic import ValidationError

        try:
            return _adapter().validate_python(content)
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg'].lower()}") from error


@cache
def _adapter() -> "TypeAdapter[Results]":
    from pydantic import TypeAdapter

    return TypeAdapter(Results)
