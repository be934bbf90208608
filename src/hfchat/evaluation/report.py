"""The report of an evaluation: a page of HTML that needs no other file, the same as Markdown, and a table."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from hfchat.evaluation.examples import Shown, choose_examples
from hfchat.evaluation.verdict import ARROWS, Outcome, findings, outcome, summary, verdict
from hfchat.intervals import CONFIDENCE
from hfchat.markdown import markdown_of
from hfchat.plots import Scale
from hfchat.results import Difference, Estimate, Metric, Results, TaskResult
from hfchat.templates import add_figures, figure, html_environment, interval

if TYPE_CHECKING:
    import jinja2

__all__ = ["table", "verdict", "write_report"]

# Longer texts are folded, and the longest are cut: the page stays light.
FOLDED_CHARACTERS = 400
LONGEST_CHARACTERS = 20_000
# So is a table of more rows.
MANY_ROWS = 20


@dataclass(frozen=True)
class Cell:
    """What a table says of one model.

    Attributes:
        estimate: None where the model has none.
        best: Whether it is shown to be better than every other model.
        difference: From the baseline; None for the baseline.
        outcome: What the difference shows.
    """

    estimate: Estimate | None
    best: bool = False
    difference: Difference | None = None
    outcome: Outcome | None = None


@dataclass(frozen=True)
class Row:
    """A metric of a task, or of a group of its examples.

    Attributes:
        label: Label of the metric, or name of the group.
        better: `"higher"`, `"lower"` or None; None too for a group, because its table says it.
        form: Format specification.
        cells: Model to its figures.
    """

    label: str
    better: str | None
    form: str
    cells: Mapping[str, Cell]

    @property
    def arrow(self) -> str:
        return ARROWS[self.better]

    @property
    def name(self) -> str:
        """Its label with the direction of better."""
        return f"{self.label} {self.arrow}".rstrip()

    @property
    def estimates(self) -> dict[str, Estimate]:
        """The estimate of each model that has one."""
        return {model: cell.estimate for model, cell in self.cells.items() if cell.estimate is not None}

    @property
    def scale(self) -> Scale | None:
        """An axis for all scores and intervals of the row."""
        return Scale.of(_ends(self))


@dataclass(frozen=True)
class Groups:
    """A metric by groups of examples: a row per group, and one axis for all of them."""

    name: str
    rows: Sequence[Row]

    @property
    def scale(self) -> Scale | None:
        """An axis for all rows, from 0, where bars begin."""
        return Scale.of([0.0, *chain.from_iterable(map(_ends, self.rows))])


@dataclass(frozen=True)
class Details:
    """Figures that only this kind of task has: a table, or a text where they do not make one.

    Attributes:
        title: The keys that lead to them.
        columns: Heads of the table; `rows` are name and values.
        text: YAML.
    """

    title: str
    columns: Sequence[str] = ()
    rows: Sequence[tuple[str, Sequence[object]]] = ()
    text: str = ""


@dataclass(frozen=True)
class Section:
    """What the report says of a task, beside its results.

    Attributes:
        name: Name of the task.
        task: Its results.
        rows: Rows of the table.
        headline: The row that the summary shows.
        groups: Tables by groups, that of the decisive metric first.
        signatures: Label of a metric, the model or None for all of them, and the signature.
        details: More figures.
        examples: Some of them, with the answers.
    """

    name: str
    task: TaskResult
    rows: Sequence[Row]
    headline: Row | None
    groups: Sequence[Groups]
    signatures: Sequence[tuple[str, str | None, str]]
    details: Sequence[Details]
    examples: Sequence[Shown]


def write_report(results: Results, folder: Path) -> None:
    """Write `report.html`, which needs no other file, and `report.md`.

    Args:
        results: What was measured.
        folder: With the records that they name; it gets the report.
    """
    found = findings(results)
    models = list(results.models)
    context = {
        "results": results,
        "models": models,
        "title": " against ".join(reversed(models)) if len(models) == 2 else ", ".join(models),
        "sections": [_section(name, task, folder) for name, task in results.tasks.items()],
        "findings": found,
        "summary": summary(found),
        "confidence": CONFIDENCE,
    }
    page = _with_filters(html_environment("hfchat.evaluation")).get_template("report.html.jinja").render(context)
    (folder / "report.html").write_text(page, encoding="utf-8")
    (folder / "report.md").write_text(markdown_of(page), encoding="utf-8")


def table(results: Results) -> str:
    """Show the headlines, and tasks by models, each with its decisive metric and interval, aligned for a terminal."""
    lines = [["", *results.models]]
    for name, task in results.tasks.items():
        if task.decisive is not None:
            metric = task.metrics[task.decisive]
            scores = [_with_interval(task.score(model, task.decisive), metric.form) for model in results.models]
            lines.append([f"{name}: {_named(metric)}", *scores])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    headlines = [*results.headlines, ""] if results.headlines else []
    return "\n".join([*headlines, *("  ".join(line).rstrip() for line in padded)])


def _with_interval(estimate: Estimate | None, form: str) -> str:
    return f"{figure(estimate.score, form)} {interval(estimate.interval, form)}" if estimate else "–"


def _named(metric: Metric) -> str:
    return f"{metric.label} {ARROWS[metric.better]}".rstrip()


def _section(name: str, task: TaskResult, folder: Path) -> Section:
    rows = {metric: _row(task, metric) for metric in task.metrics}
    # The decisive metric comes first, and a metric that no group has makes no table.
    in_order = dict.fromkeys([task.decisive, *task.metrics] if task.decisive else ())
    tables = [_groups(task, metric) for metric in in_order]
    return Section(
        name=name,
        task=task,
        rows=list(rows.values()),
        headline=rows.get(task.decisive or ""),
        groups=[groups for groups in tables if groups.rows],
        signatures=list(chain.from_iterable(_signatures(task, metric) for metric in task.metrics)),
        details=list(chain.from_iterable(_details(key, value) for key, value in task.details.items())),
        examples=choose_examples(task, folder),
    )


def _row(task: TaskResult, metric: str) -> Row:
    shown = task.metrics[metric]
    measured = {model: scores[metric] for model, scores in task.scores.items() if metric in scores}
    cells = {}
    for model in task.scores:
        others = [other for other in measured if other != model]
        best = bool(others) and model in measured and all(_is_better(task, metric, model, other) for other in others)
        comparison = task.comparison(model)
        difference = comparison.metrics.get(metric) if comparison else None
        shows = outcome(shown.better, difference, difference.p_value) if difference else None
        cells[model] = Cell(measured.get(model), best, difference, shows)
    return Row(shown.label, shown.better, shown.form, cells)


def _is_better(task: TaskResult, metric: str, model: str, other: str) -> bool:
    """Tell whether it is shown, by the paired comparison or else by intervals that lie apart."""
    better = task.metrics[metric].better
    for first, second, wanted in ((model, other, "better"), (other, model, "worse")):
        comparison = task.comparison(first)
        if comparison is not None and comparison.baseline == second and metric in comparison.metrics:
            difference = comparison.metrics[metric]
            return outcome(better, difference, difference.p_value) == wanted
    (low, high), (other_low, other_high) = (task.scores[name][metric].interval for name in (model, other))
    return low > other_high if better == "higher" else better == "lower" and high < other_low


def _groups(task: TaskResult, metric: str) -> Groups:
    shown = task.metrics[metric]
    names = dict.fromkeys(chain.from_iterable(task.groups.values()))
    rows = []
    for name in names:
        estimates = {model: groups.get(name, {}).get(metric) for model, groups in task.groups.items()}
        if any(estimates.values()):
            rows.append(Row(name, None, shown.form, {model: Cell(one) for model, one in estimates.items()}))
    return Groups(_named(shown), rows)


def _signatures(task: TaskResult, metric: str) -> list[tuple[str, str | None, str]]:
    """One line where all models share it, else one for each."""
    label = task.metrics[metric].label
    signatures = {model: scores[metric].signature for model, scores in task.scores.items() if metric in scores}
    if len(set(signatures.values())) == 1:
        return [(label, None, next(iter(signatures.values())))]
    return [(label, model, signature) for model, signature in signatures.items()]


def _details(title: str, value: Any) -> Iterator[Details]:
    """Show mappings of mappings of single values as tables, wherever they stand, and anything else as text."""
    entries = list(value.values()) if isinstance(value, Mapping) else []
    if not entries or not all(isinstance(entry, Mapping) for entry in entries):
        text = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100)
        yield Details(title, text=text.removesuffix("...\n"))
    elif any(isinstance(one, Mapping | list) for one in chain.from_iterable(entry.values() for entry in entries)):
        for key, entry in value.items():
            yield from _details(f"{title}: {key}", entry)
    else:
        columns = list(dict.fromkeys(chain.from_iterable(entries)))
        yield Details(
            title, columns, [(key, [entry.get(column) for column in columns]) for key, entry in value.items()]
        )


def _ends(row: Row) -> list[float]:
    """Scores and ends of intervals."""
    return list(chain.from_iterable((one.score, *one.interval) for one in row.estimates.values()))


def _with_filters(environment: "jinja2.Environment") -> "jinja2.Environment":
    environment.filters |= {
        "tick": lambda value, form: f"{100 * value:g}%" if form.endswith("%") else f"{value:g}",
        "plain": lambda value: (
            f"{value:.4g}" if isinstance(value, float) else "unknown" if value is None else str(value)
        ),
        "duration": _duration,
        "yaml": lambda value: yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100),
        "gigabytes": lambda value: f"{value / 2**30:,.2f} GiB",
        "millions": lambda value: f"{value / 1e6:,.1f} M" if value < 1e9 else f"{value / 1e9:,.2f} B",
        "licences": _licences,
        "cut": lambda text: text if len(text) <= LONGEST_CHARACTERS else f"{text[:LONGEST_CHARACTERS]}…",
    }
    environment.globals |= {"FOLDED": FOLDED_CHARACTERS, "MANY": MANY_ROWS}
    return add_figures(environment)


def _duration(seconds: float) -> str:
    for unit, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} s"


def _licences(licences: Sequence[str], most: int = 5) -> str:
    named = ", ".join(licences[:most]) or "unknown"
    return named if len(licences) <= most else f"{named} and {len(licences) - most} more"
