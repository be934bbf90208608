"""What was learned from feedback and what was not, with reasons: as numbers, as a report, and as dataset cards."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, TypedDict

from hfchat.feedback.curation import (
    REASONS_OF_EXAMPLES,
    REASONS_OF_REVIEWS,
    REASONS_OF_STATEMENTS,
    Curation,
    CurationArguments,
)
from hfchat.templates import markdown_environment

if TYPE_CHECKING:
    import jinja2

STATEMENTS = ("rating", "correction", "preference")
COLUMNS = {
    "conversations": ("messages",),
    "preferences": ("prompt", "chosen", "rejected"),
    "thumbs": ("prompt", "completion", "label"),
}
# Reasons of what looks at the examples after the curation: whether training takes them.
_REASONS_OF_EXAMPLES = REASONS_OF_EXAMPLES | {
    "contaminated": "a text shares a run of words with an evaluation set",
    "chosen_is_rejected": "the two answers are the same",
    "empty_turn": "a turn has no content",
    "not_alternating": "the turns are not by the user and the assistant in turn",
}
_PEOPLE_SHOWN = 50


@dataclass
class DatasetSummary:
    """What became of the examples of one dataset.

    Attributes:
        rows: How many each split has.
        sources: What they come from (`hfchat.feedback.curation.Example`).
        sizes: Bytes of each split that is not empty, in memory.
        download_size: Bytes of its files.
        samples: Texts of some that are learned from.
        is_enough: Whether there are as many as were asked for.
        has_tools: Whether there is a column `tools`.
    """

    rows: dict[str, int]
    sources: Counter[str] = field(default_factory=Counter)
    sizes: dict[str, int] = field(default_factory=dict)
    download_size: int = 0
    samples: list[str] = field(default_factory=list)
    is_enough: bool = False
    has_tools: bool = False


class Funnel(TypedDict):
    """How many were read and kept, and how many were removed for which reason."""

    read: int
    kept: int
    removed: dict[str, int]


class DatasetCounts(TypedDict):
    """The rows of each split, what they come from, and the examples that were removed, for which reason."""

    train: int
    validation: int
    sources: dict[str, int]
    removed: dict[str, int]


class CurationCounts(TypedDict):
    """The metrics of `lineage.json`: reviews, people, the statements in the reviews that are left, and datasets.

    `enough` names the datasets that have the rows that were asked for.
    """

    reviews: Funnel
    people: int
    untrusted: int
    statements: dict[str, Funnel]
    datasets: dict[str, DatasetCounts]
    enough: list[str]


def counts(curation: Curation, datasets: Mapping[str, DatasetSummary]) -> CurationCounts:
    """For the lineage."""
    removed = curation.removed_of("review")
    return {
        "reviews": {"read": curation.reviews, "kept": curation.kept_reviews, "removed": dict(removed.most_common())},
        "people": len(curation.people),
        "untrusted": sum(not person.is_trusted for person in curation.people),
        "statements": {what: _funnel(curation, what) for what in STATEMENTS},
        "datasets": {
            name: {
                "train": summary.rows["train"],
                "validation": summary.rows["validation"],
                "sources": dict(summary.sources.most_common()),
                "removed": dict(curation.removed_of(name).most_common()),
            }
            for name, summary in datasets.items()
        },
        "enough": [name for name, summary in datasets.items() if summary.is_enough],
    }


def summary_lines(counts: CurationCounts, minimum: Mapping[str, int]) -> Iterator[str]:
    """The counts of a curation, a line each; `minimum` says how many rows of each split are enough."""
    reviews, datasets = counts["reviews"], counts["datasets"]
    yield f"read {reviews['read']:,} reviews, kept {reviews['kept']:,}"
    for name, dataset in datasets.items():
        too_few = "" if name in counts["enough"] else ", too few to learn from"
        yield f"{name}: {dataset['train']:,} for train, {dataset['validation']:,} for validation{too_few}"
    if not counts["enough"]:
        have = "; ".join(
            f"{name}: {dataset['train']} for train, {dataset['validation']} for validation"
            for name, dataset in datasets.items()
        )
        needed = " and ".join(f"{rows} for {split}" for split, rows in minimum.items())
        yield f"of {reviews['read']} reviews too little is left to learn from ({have}); a dataset needs {needed}"


def report(
    curation: Curation,
    datasets: Mapping[str, DatasetSummary],
    args: CurationArguments,
    minimum: Mapping[str, int],
    personal_data: Mapping[str, int],
    evaluation_sets: Mapping[str, Mapping[str, int]],
) -> str:
    """What was kept and what was removed, in Markdown, without names of people and without texts of what was removed.

    Args:
        curation: What `hfchat.feedback.curation.curate` returned, and what else was removed of its examples.
        datasets: What became of its examples.
        args: The thresholds.
        minimum: How many rows of each split are enough.
        personal_data: How much of each kind was replaced.
        evaluation_sets: What is known of each set that was kept out: `rows`, `n_grams`, `too_short`.
    """
    # Reasons come with their words, so that the template needs to know none of them.
    context = {
        "curation": curation,
        "who": _who(args),
        "datasets": datasets,
        "minimum": minimum,
        "reviews": _with_words(curation.removed_of("review"), REASONS_OF_REVIEWS),
        "statements": [
            (what, _funnel(curation, what), _with_words(curation.removed_of(what), REASONS_OF_STATEMENTS))
            for what in STATEMENTS
        ],
        "examples": {name: _with_words(curation.removed_of(name), _REASONS_OF_EXAMPLES) for name in datasets},
        "people": curation.people[:_PEOPLE_SHOWN],
        "settings": asdict(args),
        "personal_data": personal_data,
        "evaluation_sets": evaluation_sets,
    }
    return _template("curation_report.md.jinja").render(context)


def _who(args: CurationArguments) -> str:
    """Who counts as one person, as a sentence."""
    if args.person == "user":
        return "Each user that requests name counts as one person."
    trusted = f"; of {', '.join(args.trusted_keys)}, each user does" if args.trusted_keys else ""
    return f"All that comes with an API key counts as one person, and so does all that comes without one{trusted}."


def card(name: str, summary: DatasetSummary) -> str:
    """The dataset card of one dataset, without its header."""
    columns = [*COLUMNS[name], *(["tools"] if summary.has_tools else [])]
    return _template("curation_card.md.jinja").render(name=name, summary=summary, columns=columns)


def _funnel(curation: Curation, what: str) -> Funnel:
    read, removed = curation.statements[what], curation.removed_of(what)
    return {"read": read, "kept": read - removed.total(), "removed": dict(removed.most_common())}


def _with_words(removed: Counter[str], words: Mapping[str, str]) -> Sequence[tuple[str, str, int]]:
    otherwise = "it is no conversation that training takes"
    return [(reason, words.get(reason, otherwise), count) for reason, count in removed.most_common()]


def _template(name: str) -> "jinja2.Template":
    environment = markdown_environment("hfchat.feedback")
    environment.filters["percent"] = lambda share: "–" if share is None else f"{share:.0%}"
    return environment.get_template(name)
