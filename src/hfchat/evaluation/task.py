"""What a task of a suite is: examples, what is kept of each model's answers to them, and the scores of these.

A task is prepared before any model is loaded, then asks one model after the other, and is scored from its files alone:
a run that was stopped goes on where it was, and one that is finished is scored anew without asking again.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from hfchat.chat import Chat, Json
from hfchat.dataset import load_split
from hfchat.evaluation.bootstrap import Statistics, difference, estimate
from hfchat.evaluation.model import EvaluatedModel, Prompt
from hfchat.lineage import describe
from hfchat.results import AskedData, Bootstrap, Comparison, Difference, Estimate, Metric, TaskResult


@dataclass(frozen=True)
class Example:
    """What every model is asked.

    Attributes:
        prompt: Messages, given under the model's own chat template, or a text that is given as it is.
        references: What a good answer says. The best of several counts.
        targets: Texts whose likelihood after the prompt is measured.
        group: For a table by groups, such as a category of bias.
        info: Anything else of the row that its record should carry, as JSON.
        place: Where it stands, for messages: `"data.jsonl (validation) row 3"`, counted from 1.
        chat: What is asked in place of `prompt`, with tools or the format of the answer; `prompt` shows it as text.
        answers: Messages, in place of `targets` after a chat; `targets` show them as text.
    """

    prompt: Prompt
    references: Sequence[str] = ()
    targets: Sequence[str] = ()
    group: str | None = None
    info: Mapping[str, Any] = field(default_factory=dict)
    place: str = ""
    chat: Chat | None = None
    answers: Sequence[Json] = ()


@dataclass
class Record:
    """A line of `records/<task>/<model>.jsonl`: what one model said to an example, and its scores.

    Attributes:
        index: Position of the example in the task, from 0.
        prompt: As in `Example`, and so are `references`, `targets`, `group` and `info`.
        answer: What the model said; None where nothing was generated. Calls stand at its end, a line each.
        calls: The tool calls in it, `{"name", "arguments"}` each; the arguments are JSON in a text.
        answer_tokens: Its length, the end-of-turn token included.
        ended: Whether the model ended the turn itself, before `max_new_tokens`.
        losses: Negative log-likelihood of each target, in nats.
        target_tokens: How many tokens each target has.
        seconds: The example's share of the time of its batch.
        scores: Metric to the score of this example, where a metric has one.
    """

    index: int
    prompt: Prompt
    references: list[str] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)
    group: str | None = None
    info: dict[str, Any] = field(default_factory=dict)
    answer: str | None = None
    calls: list[dict[str, str]] = field(default_factory=list)
    answer_tokens: int = 0
    ended: bool | None = None
    losses: list[float] = field(default_factory=list)
    target_tokens: list[int] = field(default_factory=list)
    seconds: float = 0.0
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The answer, which tasks that generate have of every example."""
        return self.answer or ""


@dataclass(frozen=True)
class Measured:
    """What a task knows of one model's records.

    Attributes:
        statistics: What each metric is made of, in the order of the table.
        groups: The same for each group of examples.
    """

    statistics: Mapping[str, Statistics]
    groups: Mapping[str, Mapping[str, Statistics]] = field(default_factory=dict)


class Task:
    """A task of a suite. Subclasses are dataclasses whose fields are the keys of its entry in the YAML.

    Attributes:
        kind: Names the class in the YAML.
        columns: The metrics that it can measure, in the order of the table.
        limits: What its numbers do not say, a sentence each.
        group_label: What `Example.group` is, as the head of a column: `"category"`.
        headline: The metric that the report's verdict reads.
        needs_weights: The metrics that only loaded weights give, such as those of likelihoods. The others are of
            answers, which an engine may generate.
        split: Name of the dataset's split, if it has splits.
    """

    kind: str
    columns: Mapping[str, Metric]
    limits: Sequence[str] = ()
    group_label: str = "group"
    headline: str | None = None
    needs_weights: Collection[str] = ()
    split: str | None = None

    name: str
    examples: Sequence[Example] = ()  # since `prepare`; it is not a setting, so subclasses have no such field

    @property
    def title(self) -> str:
        return self.name

    def require_at_least(self, least: int, *keys: str) -> None:
        """Raise a `ValueError` that names the first of these settings that is less; one that is not set may be."""
        for key in keys:
            if getattr(self, key) is not None and getattr(self, key) < least:
                raise ValueError(f"{key}: must be at least {least}, not {getattr(self, key)}")

    def prepare(self) -> None:
        """Read the data and refuse what is wrong with it, before a model is loaded.

        Raises:
            UserError: In one line that names the task's key, or the row.
        """

    @property
    def source(self) -> str | None:
        """Folder, file or Hub id of its data, which is an input of the run; None for data of hfchat's own."""
        return None

    def dataset(self) -> AskedData | None:
        """Say where the examples are from."""
        if self.source is None:
            return None
        return AskedData(**describe(self.source), n=len(self.examples), split=self.split)

    def refusal(self, model: EvaluatedModel) -> str | None:
        """Say why a model cannot take part, e.g. a server that gives no likelihoods. The report says so too."""
        return None

    def check(self, model: EvaluatedModel) -> None:
        """Refuse a model that cannot be asked, before any is: see `prepare`."""

    def check_suite(self, tasks: Sequence["Task"], models: Sequence[EvaluatedModel], folder: Path) -> None:
        """Refuse a suite that lacks other tasks or models which this task needs. All tasks are prepared by then.

        Args:
            tasks: All tasks of the suite.
            models: Those that this task will be put to.
            folder: The task's own, see `collect`.
        """

    def collect(self, model: EvaluatedModel, folder: Path) -> None:
        """Ask one model what `folder/<model.name>.jsonl` does not hold yet. Runs in every process of a launch."""

    def collect_jointly(self, models: Sequence[str], folder: Path) -> None:
        """Ask about the answers of all models, after the last one was unloaded. Runs in the main process."""

    def measure(self, model: str, folder: Path) -> Measured:
        """Score what `folder` holds of a model."""
        raise NotImplementedError

    def in_words(self, scores: Mapping[str, Estimate]) -> str:
        """Say a model's scores in words, for the first lines of the report; empty where the numbers say it all."""
        return ""

    def details(self, models: Sequence[str], folder: Path) -> dict[str, Any]:
        """Give more figures for `results.json` and the report, as JSON."""
        return {}


def read_rows(
    dataset_name: str, split: str, columns: Sequence[str], max_samples: int | None, **options: Any
) -> Iterator[tuple[dict[str, Any], str]]:
    """Read the rows of a split, each with its place.

    Args:
        dataset_name: Folder, file or Hub id.
        split: Name of its split.
        columns: Columns that it must have.
        max_samples: How many of the first rows are read; all by default.
        options: Further ones of `hfchat.dataset.load_split`.

    Raises:
        UserError: If there is no such dataset, split or column, or no row.
    """
    rows = load_split(dataset_name, split, *columns, **options)
    if max_samples is not None:
        rows = rows.take(max_samples)
    for number, row in enumerate(rows, start=1):
        yield row, f"{dataset_name} ({split}) row {number}"


def result(task: Task, models: Sequence[str], folder: Path, bootstrap: Bootstrap) -> TaskResult:
    """Score a task from its files.

    Every model but the first is compared with the first, the baseline.
    """
    measured = {model: task.measure(model, folder) for model in models}
    scores = {model: _estimates(measured[model].statistics, bootstrap) for model in models}
    groups = {
        model: {group: _estimates(statistics, bootstrap) for group, statistics in measured[model].groups.items()}
        for model in models
    }
    tables = [*scores.values(), *chain.from_iterable(of_model.values() for of_model in groups.values())]
    baseline, *others = models
    return TaskResult(
        kind=task.kind,
        title=task.title,
        dataset=task.dataset(),
        limits=list(task.limits),
        group_label=task.group_label,
        headline=task.headline,
        metrics={name: metric for name, metric in task.columns.items() if any(name in table for table in tables)},
        scores=scores,
        groups=groups,
        comparisons=[
            Comparison(model, baseline, _differences(measured[model], measured[baseline], bootstrap))
            for model in others
        ],
        in_words={model: words for model in models if (words := task.in_words(scores[model]))},
        details=task.details(models, folder),
    )


def _estimates(statistics: Mapping[str, Statistics], bootstrap: Bootstrap) -> dict[str, Estimate]:
    return {name: estimate(values, bootstrap.resamples, bootstrap.seed) for name, values in statistics.items()}


def _differences(measured: Measured, baseline: Measured, bootstrap: Bootstrap) -> dict[str, Difference]:
    return {
        metric: difference(statistics, baseline.statistics[metric], bootstrap.resamples, bootstrap.seed)
        for metric, statistics in measured.statistics.items()
        if metric in baseline.statistics
    }
