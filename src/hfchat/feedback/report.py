"""`hfchat feedback report`: what people asked and said over time, as a page that needs no other file, and Markdown."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import sqlalchemy as sa

from hfchat.errors import UserError
from hfchat.feedback.charts import Bars, Chart, Timeline, band, bars, by_kind
from hfchat.feedback.drift import Drift, compare
from hfchat.feedback.figures import LEAST_THUMBS, Change, Figures, Lengths, Share, changes, of_model, of_period
from hfchat.feedback.history import History, Periods, read_history
from hfchat.feedback.private_file import private_file
from hfchat.markdown import markdown_of
from hfchat.plots import Scale
from hfchat.templates import add_figures, html_environment

if TYPE_CHECKING:
    import jinja2

_MODELS = 5  # the newest
_TAGS = 15
_CATEGORIES = 15
_MUCH_OF_ONE = 0.2  # of the thumbs
# Of `Figures`, with what the table of models calls it.
_FIGURES = {
    "answers": "answers",
    "feedback": "feedback",
    "corrected": "corrections",
    "up": "thumbs up",
    "refused": "refusals",
    "cut": "cut at the greatest length",
    "lengths": "length, in characters",
}


@dataclass(frozen=True)
class Watched:
    """What the report says.

    Attributes:
        periods: Of which time.
        timeline: The columns of the charts; None if nothing is stored.
        charts: Over time.
        before: Figures of the earlier period, and `now` of the later one.
        changes: Between them.
        drift: Of prompts.
        models: The figures of each, the newest last.
        model_changes: Of each but the first, from the one before it.
        findings: Guard, place, action and category, and how often.
        tags: How often each was given now.
        loudest: Who gave the most thumbs now: which share of them; None without a named author.
        history: What it comes from.
    """

    periods: Periods
    timeline: Timeline | None
    charts: list[Chart]
    before: Figures
    now: Figures
    changes: list[Change]
    drift: Drift
    models: Mapping[str, Figures]
    model_changes: Mapping[str, list[Change]]
    findings: list[tuple[tuple[str, str, str, str], int]]
    tags: list[tuple[str, int]]
    loudest: Share | None
    history: History

    @property
    def summary(self) -> list[str]:
        """A line for each thing that one may want to know."""
        lines = [f"{one.name}: {one.outcome}; {one.words}" for one in self.changes]
        return [*lines, self.drift.sentence, *([self.warning] if self.warning else [])]

    @property
    def warning(self) -> str | None:
        if self.loudest is None or self.loudest.value < _MUCH_OF_ONE or self.loudest.trials < LEAST_THUMBS:
            return None
        return f"one person gave {self.loudest.hits:,} of the {self.loudest.trials:,} thumbs"


def watch(engine: sa.Engine, since: datetime, until: datetime, trusted_keys: Collection[str] = ()) -> Watched:
    """Look at what is stored from one moment to another, and compare it with as much time before.

    Args:
        engine: Of `hfchat.feedback.database.open_database`.
        since: Where the period begins, with a time zone.
        until: Where it ends.
        trusted_keys: API keys of which each user is a person, see `hfchat.feedback.reviews.person_of`.
    """
    periods = Periods.since(since, until)
    history = read_history(engine, periods, trusted_keys)
    begin = history.begin
    timeline = None if begin is None else Timeline.of(begin, periods.middle, periods.end)
    before, now = (of_period(history, period) for period in (False, True))
    first_answers = history.answers.groupby("model")["time"].min().sort_values(kind="stable")
    models = {model: of_model(history, model) for model in first_answers.index[-_MODELS:]}
    later = history.feedback[history.feedback["now"]]
    return Watched(
        periods=periods,
        timeline=timeline,
        charts=[] if timeline is None else _charts(history, timeline),
        before=before,
        now=now,
        changes=list(changes(before, now)),
        drift=compare(*history.openings),
        models=models,
        model_changes={new: list(changes(models[old], models[new])) for old, new in pairwise(models)},
        findings=_counted(history.findings, ["guard", "place", "action", "category"])[:_CATEGORIES],
        tags=Counter(history.tags["tag"][history.tags["now"]]).most_common(_TAGS),
        loudest=_loudest(later[later["rating"].notna()]),
        history=history,
    )


def write_report(watched: Watched, path: Path) -> Path:
    """Write the page, for its owner's eyes only as it quotes people, and the same as Markdown beside it.

    Args:
        watched: Of `watch`.
        path: Of the page, `*.html`.

    Returns:
        The path of the Markdown.

    Raises:
        UserError: If they cannot be written.
    """
    if path.suffix != ".html":
        raise UserError(f"{path}: the report is a page; name it *.html")
    template = _with_filters(html_environment("hfchat.feedback")).get_template("report.html.jinja")
    page = template.render(_context(watched))
    markdown = path.with_suffix(".md")
    _write(path, page)
    _write(markdown, markdown_of(page))
    return markdown


def _context(watched: Watched) -> dict[str, Any]:
    rows = {
        "Thumbs up": {name: figures.up for name, figures in watched.models.items()},
        "Refusals": {name: figures.refused for name, figures in watched.models.items()},
    }
    scales = {
        label: Scale.of(end for share in shares.values() if share.trials for end in (share.value, *share.interval))
        for label, shares in rows.items()
    }
    plots = {label: (shares, scales[label]) for label, shares in rows.items() if scales[label] is not None}
    return {"watched": watched, "plots": plots}


def _charts(history: History, timeline: Timeline) -> list[Chart]:
    conversations, answers, feedback = history.conversations, history.answers, history.feedback
    thumbs = feedback[feedback["rating"].notna()]
    kinds = {f"thumb {rating}": thumbs["time"][thumbs["rating"] == rating] for rating in ("up", "down")}
    others = feedback["time"][feedback["rating"].isna()]
    kinds |= {"no thumb": others} if len(others) else {}
    charts: list[Chart] = [
        bars("Conversations begun", timeline, {"conversations": conversations["time"]}),
        bars("Feedback", timeline, kinds),
        band("Thumbs up, of all thumbs", timeline, _shares(thumbs, thumbs["rating"] == "up", timeline), ".0%", 1.0),
        bars("Answers by model", timeline, by_kind(answers, "model")),
        band("Refusals, of all answers", timeline, _shares(answers, answers["refused"], timeline), ".1%"),
        bars("How answers ended", timeline, by_kind(answers, "finish_reason"), shares=True),
        band("Length of answers, in characters", timeline, _quartiles(answers, timeline), ",.0f"),
        band("Length of first prompts, in characters", timeline, _quartiles(conversations, timeline), ",.0f"),
        bars("Languages of first prompts", timeline, by_kind(conversations, "language"), shares=True),
    ]
    if len(history.findings):
        charts.append(bars("What guards found", timeline, by_kind(history.findings, "action")))
    return charts


def _shares(table: pd.DataFrame, hits: pd.Series, timeline: Timeline) -> dict[int, tuple[float, float, float]]:
    found = {}
    for column, group in hits.groupby(timeline.columns(table["time"])):
        share = Share(int(group.sum()), len(group))
        found[int(column)] = (share.interval[0], share.value, share.interval[1])
    return found


def _quartiles(table: pd.DataFrame, timeline: Timeline) -> dict[int, tuple[float, float, float]]:
    found = {}
    for column, group in table["characters"].groupby(timeline.columns(table["time"])):
        lengths = Lengths.of(group)
        found[int(column)] = (lengths.low, lengths.median, lengths.high)
    return found


def _counted(table: pd.DataFrame, columns: list[str]) -> list[tuple[Any, int]]:
    return Counter(table[columns].itertuples(index=False, name=None)).most_common()


def _loudest(thumbs: pd.DataFrame) -> Share | None:
    most = Counter(thumbs["author"].dropna()).most_common(1)
    return Share(most[0][1], len(thumbs)) if most else None


def _write(path: Path, text: str) -> None:
    with private_file(path) as file:
        file.write(text.encode())


def _with_filters(environment: "jinja2.Environment") -> "jinja2.Environment":
    environment.filters |= {
        "moment": lambda value: value.strftime("%Y-%m-%d %H:%M"),
        "capitalize_first": lambda text: text[:1].upper() + text[1:],
    }
    environment.globals |= {"FIGURES": _FIGURES, "is_bars": lambda chart: isinstance(chart, Bars)}
    return add_figures(environment)
