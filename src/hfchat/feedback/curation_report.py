"""What was learned from feedback and what was not, with reasons: as numbers, as a report, and as dataset cards."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from hfchat.feedback.curation import (
    REASONS_OF_EXAMPLES,
    REASONS_OF_REVIEWS,
    REASONS_OF_STATEMENTS,
    Curation,
    CurationArguments,
)
from hfchat.templates import markdown_environment

STATEMENTS = ("rating", "correction", "preference")
COLUMNS = {
    "conversations": ("messages",),
    "preferences": ("prompt", "chosen", "rejected"),
    "thumbs": ("prompt", "completion", "label"),
}
# Of those who look at examples after the curation, for all that training takes.
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
        rows: Of each split.
        sources: What they come from (`hfchat.feedback.curation.Example`).
        samples: Texts of some that are learned from.
        is_enough: Whether there are as many as were asked for.
    """

    rows: dict[str, int]
    sources: Counter[str] = field(default_factory=Counter)
    samples: list[str] = field(default_factory=list)
    is_enough: bool = False


def counts(curation: Curation, datasets: Mapping[str, DatasetSummary]) -> dict[str, Any]:
    """For the lineage.

    Returns:
        `reviews` and the `statements` in those that are left, each with how many were `read`, `kept` and `removed` for
        which reason; `people` and how many of them are `untrusted`; `datasets` with the rows of each split, and which
        of them are `enough`.
    """
    removed = curation.removed_of("review")
    return {
        "reviews": {"read": curation.reviews, "kept": curation.kept_reviews, "removed": dict(removed.most_common())},
        "people": len(curation.people),
        "untrusted": sum(not person.is_trusted for person in curation.people),
        "statements": {what: _funnel(curation, what) for what in STATEMENTS},
        "datasets": {
            name: {
                **summary.rows,
                "sources": dict(summary.sources.most_common()),
                "removed": dict(curation.removed_of(name).most_common()),
            }
            for name, summary in datasets.items()
        },
        "enough": [name for name, summary in datasets.items() if summary.is_enough],
    }


def report(
    curation: Curation,
    datasets: Mapping[str, DatasetSummary],
    args: CurationArguments,
    minimum: Mapping[str, int],
    personal_data: Mapping[str, int],
    evaluation_sets: Mapping[str, Mapping[str, int]],
) -> str:
    """What was kept and what was removed, in Markdown. Of what was removed it has no texts, and of people no names.

    Args:
        curation: What `hfchat.feedback.curation.curate` returned, and what else was removed of its examples.
        datasets: What became of its examples.
        args: The thresholds.
        minimum: Of each split, how many rows are enough.
        personal_data: How much of each kind was replaced.
        evaluation_sets: Of each set that was kept out: `rows`, `n_grams`, `too_short`.
    """
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
        "settings": {one.name: getattr(args, one.name) for one in fields(args)},
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
    return _template("curation_card.md.jinja").render(name=name, summary=summary, columns=COLUMNS[name])


def missing(found: Mapping[str, Any], minimum: Mapping[str, int]) -> str:
    """What there is too little of, in a few words; for the `counts` of a curation of which nothing is enough."""
    have = "; ".join(
        f"{name}: " + ", ".join(f"{dataset[split]} for {split}" for split in minimum)
        for name, dataset in found["datasets"].items()
    )
    needed = " and ".join(f"{rows} for {split}" for split, rows in minimum.items())
    reviews = found["reviews"]
    return f"of {reviews['read']} reviews too little is left to learn from ({have}); a dataset needs {needed}"


def _funnel(curation: Curation, what: str) -> dict[str, Any]:
    read, removed = curation.statements[what], curation.removed_of(what)
    return {"read": read, "kept": read - removed.total(), "removed": dict(removed.most_common())}


def _with_words(removed: Counter[str], words: Mapping[str, str]) -> Sequence[tuple[str, str, int]]:
    otherwise = "it is no conversation that training takes"
    return [(reason, words.get(reason, otherwise), count) for reason, count in removed.most_common()]


def _template(name: str) -> Any:
    environment = markdown_environment("hfchat.feedback")
    environment.filters["percent"] = lambda share: "–" if share is None else f"{share:.0%}"
    return environment.get_template(name)
