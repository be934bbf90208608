"""`hfchat feedback report`: what people asked and said over time, as a page that needs no other file, and Markdown."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import chain, pairwise
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
        periods: The time that it is about.
        timeline: The columns of the charts; None if nothing is stored.
        charts: The charts over time.
        before: Figures of the earlier period, and `now` of the later one.
        changes: The changes between them.
        drift: How prompts changed.
        models: The figures of each model, the newest last.
        model_changes: The changes from one model to the next, by the next one's name.
        findings: What guards found, as guard, place, action and category, and how often.
        tags: How often each tag was given in the later period.
        loudest: The share of the later thumbs that the busiest person gave; None without a named author.
        history: What all of it comes from.
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
        """The most important findings, a line each."""
        lines = [f"{one.name}: {one.outcome}; {one.words}" for one in self.changes]
        return [*lines, self.drift.sentence, *([self.warning] if self.warning else [])]

    @property
    def warning(self) -> str | None:
        if self.loudest is None or self.loudest.value < _MUCH_OF_ONE or self.loudest.trials < LEAST_THUMBS:
            return None
        return f"one person gave {self.loudest.hits:,} of the {self.loudest.trials:,} thumbs"


def watch(engine: sa.Engine, since: datetime, until: datetime, trusted_keys: Collection[str] = ()) -> Watched:
    """Summarize what is stored of a period, and compare it with as much time before.

    Args:
        engine: What `hfchat.feedback.database.open_database` returns.
        since: When the period begins, with a time zone.
        until: When it ends.
        trusted_keys: API keys whose users are each a person, see `hfchat.feedback.reviews.person_of`.
    """
    periods = Periods.since(since, until)
    history = read_history(engine, periods, trusted_keys)
    begin = history.begin
    timeline = None if begin is None else Timeline.of(begin, periods.middle, periods.end)
    before, now = (of_period(history, period) for period in (False, True))
    # Models are shown in the order in which they first answered, each against the one before it.
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
    """Write the page and, beside it, the same as Markdown. Both quote people, so only their owner can read them.

    Args:
        watched: What `watch` returned.
        path: Where to write the page, `*.html`.

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


def _context(watched: Watched) -> dict[str, object]:
    rows = {
        "Thumbs up": {name: figures.up for name, figures in watched.models.items()},
        "Refusals": {name: figures.refused for name, figures in watched.models.items()},
    }
    plots = {}
    for label, shares in rows.items():
        ends = ((share.value, *share.interval) for share in shares.values() if share.trials)
        scale = Scale.of(chain.from_iterable(ends))
        if scale is not None:
            plots[label] = shares, scale
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
