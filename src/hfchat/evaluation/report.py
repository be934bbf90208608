"""The report of an evaluation: a page of HTML that needs no other file, the same as Markdown, and a table."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from hfchat.evaluation.examples import Shown, choose_examples
from hfchat.evaluation.verdict import ARROWS, Outcome, findings, headline, outcome, summary, verdict
from hfchat.intervals import CONFIDENCE
from hfchat.plots import Scale
from hfchat.templates import add_figures, figure, html_environment, interval, markdown_environment

if TYPE_CHECKING:
    import jinja2

__all__ = ["table", "verdict", "write_report"]

# Longer texts are folded, and the longest are cut: the page stays light.
FOLDED_CHARACTERS = 400
LONGEST_CHARACTERS = 20_000


@dataclass(frozen=True)
class Cell:
    """What a table says of one model.

    Attributes:
        estimate: An entry of `scores`; None where the model has none.
        best: Whether it is shown to be better than every other model.
        difference: From the baseline, an entry of `comparisons`; None for the baseline.
        outcome: What the difference shows.
    """

    estimate: Mapping[str, Any] | None
    best: bool = False
    difference: Mapping[str, Any] | None = None
    outcome: Outcome | None = None


@dataclass(frozen=True)
class Row:
    """A metric of a task, or of a group of its examples.

    Attributes:
        label: Of the metric, or the group's name.
        better: `"higher"`, `"lower"` or None; None too for a group, as its table says it.
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
    def estimates(self) -> dict[str, Mapping[str, Any]]:
        """Of the models that have one."""
        return {model: cell.estimate for model, cell in self.cells.items() if cell.estimate is not None}

    @property
    def scale(self) -> Scale | None:
        """An axis for all scores and intervals of the row."""
        return Scale.of(_ends([self]))


@dataclass(frozen=True)
class Groups:
    """A metric by groups of examples: a row per group, and one axis for all of them."""

    name: str
    rows: Sequence[Row]

    @property
    def scale(self) -> Scale | None:
        """An axis for all rows, from 0, where bars begin."""
        return Scale.of([0.0, *_ends(self.rows)])


@dataclass(frozen=True)
class Details:
    """Figures that only this kind of task has: a table, or where they are none a text.

    Attributes:
        title: The keys that lead to them.
        columns: Heads of the table; `rows` are name and values.
        text: YAML.
    """

    title: str
    columns: Sequence[str] = ()
    rows: Sequence[tuple[str, Sequence[Any]]] = ()
    text: str = ""


@dataclass(frozen=True)
class Section:
    """What the report says of a task, beside its entry in `results.json`.

    Attributes:
        name: Of the task; `task` is its entry.
        rows: Of the table.
        groups: Tables by groups, that of the headline metric first.
        signatures: Label of a metric, the model or None for all of them, and the signature.
        details: More figures.
        examples: Some of them, with the answers.
    """

    name: str
    task: Mapping[str, Any]
    rows: Sequence[Row]
    groups: Sequence[Groups]
    signatures: Sequence[tuple[str, str | None, str]]
    details: Sequence[Details]
    examples: Sequence[Shown]

    @property
    def headline(self) -> Row | None:
        names = list(self.task["metrics"])
        return self.rows[names.index(headline(self.task))] if names else None


def write_report(results: Mapping[str, Any], folder: Path) -> None:
    """Write `report.html`, which needs no other file, and `report.md`.

    Args:
        results: What `results.json` holds.
        folder: With the records that it names; it gets the report.
    """
    found = findings(results)
    context = {
        "results": results,
        "models": list(results["models"]),
        "title": _title(list(results["models"])),
        "sections": [_section(name, task, folder) for name, task in results["tasks"].items()],
        "findings": found,
        "summary": summary(found),
        "confidence": CONFIDENCE,
    }
    for name, environment in (("report.html", html_environment), ("report.md", markdown_environment)):
        page = _with_filters(environment("hfchat.evaluation")).get_template(f"{name}.jinja").render(context)
        (folder / name).write_text(page, encoding="utf-8")


def table(results: Mapping[str, Any]) -> str:
    """Tasks by models, each with its headline metric and interval, aligned for a terminal."""
    models = list(results["models"])
    lines = [["", *models]]
    for name, task in results["tasks"].items():
        metric = headline(task)
        if metric is None:
            continue
        shown = task["metrics"][metric]
        scores = [task["scores"].get(model, {}).get(metric) for model in models]
        lines.append(
            [
                f"{name}: {shown['label']} {ARROWS[shown['better']]}".rstrip(),
                *(_with_interval(score, shown["form"]) if score else "–" for score in scores),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _with_interval(estimate: Mapping[str, Any], form: str) -> str:
    return f"{figure(estimate['score'], form)} {interval(estimate['interval'], form)}"


def _title(models: Sequence[str]) -> str:
    return " against ".join(reversed(models)) if len(models) == 2 else ", ".join(models)


def _section(name: str, task: Mapping[str, Any], folder: Path) -> Section:
    rows = [_row(task, metric) for metric in task["metrics"]]
    measured = {metric for groups in task["groups"].values() for scores in groups.values() for metric in scores}
    in_groups = [metric for metric in dict.fromkeys([headline(task), *task["metrics"]]) if metric in measured]
    return Section(
        name=name,
        task=task,
        rows=rows,
        groups=[_groups(task, metric) for metric in in_groups],
        signatures=[line for metric in task["metrics"] for line in _signatures(task, metric)],
        details=[one for key, value in task["details"].items() for one in _details(key, value)],
        examples=choose_examples(task, folder),
    )


def _row(task: Mapping[str, Any], metric: str) -> Row:
    better = task["metrics"][metric]["better"]
    estimates = {model: scores[metric] for model, scores in task["scores"].items() if metric in scores}
    differences = {
        one["model"]: (one["baseline"], one["metrics"][metric])
        for one in task["comparisons"]
        if metric in one["metrics"]
    }
    cells = {model: Cell(None) for model in task["scores"]}
    for model, estimate in estimates.items():
        others = [other for other in estimates if other != model]
        best = bool(others) and all(_is_better(model, other, better, estimates, differences) for other in others)
        _, difference = differences.get(model, (None, None))
        shows = None if difference is None else outcome(better, difference, difference.get("p_value"))
        cells[model] = Cell(estimate, best, difference, shows)
    return Row(task["metrics"][metric]["label"], better, task["metrics"][metric]["form"], cells)


def _is_better(
    model: str,
    other: str,
    better: str | None,
    estimates: Mapping[str, Mapping[str, Any]],
    differences: Mapping[str, tuple[str, Mapping[str, Any]]],
) -> bool:
    """Whether it is shown: by the paired comparison, or where there is none by intervals that lie apart."""
    for first, second, wanted in ((model, other, "better"), (other, model, "worse")):
        baseline, difference = differences.get(first, (None, None))
        if baseline == second:
            return outcome(better, difference, difference.get("p_value")) == wanted
    (low, high), (other_low, other_high) = (estimates[name]["interval"] for name in (model, other))
    return {"higher": low > other_high, "lower": high < other_low}.get(better, False)


def _groups(task: Mapping[str, Any], metric: str) -> Groups:
    shown = task["metrics"][metric]
    names = dict.fromkeys(
        name for groups in task["groups"].values() for name, scores in groups.items() if metric in scores
    )
    rows = [
        Row(
            name,
            None,
            shown["form"],
            {model: Cell(groups.get(name, {}).get(metric)) for model, groups in task["groups"].items()},
        )
        for name in names
    ]
    return Groups(f"{shown['label']} {ARROWS[shown['better']]}".rstrip(), rows)


def _signatures(task: Mapping[str, Any], metric: str) -> list[tuple[str, str | None, str]]:
    """One line where all models share it, else one for each."""
    label = task["metrics"][metric]["label"]
    signatures = {model: scores[metric]["signature"] for model, scores in task["scores"].items() if metric in scores}
    if len(set(signatures.values())) == 1:
        return [(label, None, next(iter(signatures.values())))]
    return [(label, model, signature) for model, signature in signatures.items()]


def _details(title: str, value: Any) -> Iterator[Details]:
    """Mappings of mappings of single values are tables, wherever they stand."""
    entries = list(value.values()) if isinstance(value, Mapping) else []
    if not entries or not all(isinstance(entry, Mapping) for entry in entries):
        text = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100)
        yield Details(title, text=text.removesuffix("...\n"))
    elif any(isinstance(one, Mapping | list) for entry in entries for one in entry.values()):
        for key, entry in value.items():
            yield from _details(f"{title}: {key}", entry)
    else:
        columns = list(dict.fromkeys(column for entry in entries for column in entry))
        yield Details(
            title, columns, [(key, [entry.get(column) for column in columns]) for key, entry in value.items()]
        )


def _ends(rows: Sequence[Row]) -> list[float]:
    """Scores and ends of intervals."""
    estimates = [one for row in rows for one in row.estimates.values()]
    return [value for one in estimates for value in (one["score"], *one["interval"])]


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
    environment.globals |= {"FOLDED": FOLDED_CHARACTERS}
    return add_figures(environment)


def _duration(seconds: float) -> str:
    for unit, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} s"


def _licences(licences: Sequence[str], most: int = 5) -> str:
    named = ", ".join(licences[:most]) or "unknown"
    return named if len(licences) <= most else f"{named} and {len(licences) - most} more"
