"""Reviews by people who cannot have read the answers: too fast, the same everywhere, or too many."""

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import timedelta

from hfchat.feedback.reviews import Person, Review
from hfchat.words import words

_MINUTE = timedelta(minutes=1)
# People who mean the same use the same few words: "wrong", "thank you".
_COMMENT_WORDS = 5
# A correction may be much longer than a short answer: in place of "No." a page may be needed.
_ALWAYS_SHORT_ENOUGH = 1000  # characters
_RUN = 3  # words


def too_fast(reviews: Iterable[Review], max_per_minute: int) -> set[str]:
    """The ids of reviews that are among more than `max_per_minute` of one person within a minute.

    Args:
        reviews: Oldest first.
        max_per_minute: Nobody reads more answers in a minute.
    """
    by_person: dict[Person, list[Review]] = defaultdict(list)
    for review in reviews:
        by_person[review.person].append(review)
    found: set[str] = set()
    for given in by_person.values():
        for start, (first, last) in enumerate(zip(given, given[max_per_minute:], strict=False)):
            if last.said_at - first.said_at < _MINUTE:
                found |= {review.id for review in given[start : start + max_per_minute + 1]}
    return found


def same_everywhere(reviews: Iterable[Review], max_prompts: int) -> set[str]:
    """The ids of reviews whose correction, or comment of some words, was given to more than `max_prompts` prompts.

    It does not matter who wrote it, because many accounts may be one person. Texts are the same if their words and
    numbers are, whatever the punctuation.
    """
    prompts: dict[tuple[str, ...], set[str]] = defaultdict(set)
    ids: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for review in reviews:
        for text, at_least in ((review.corrected_words, 1), (review.comment or "", _COMMENT_WORDS)):
            found = tuple(words(text, keep_numbers=True))
            if len(found) >= at_least:
                prompts[found].add(review.answer.prompt_hash)
                ids[found].add(review.id)
    return set().union(*(ids[text] for text, prompts_of in prompts.items() if len(prompts_of) > max_prompts))


def _person(review: Review) -> Person:
    return review.person


def too_many(reviews: Sequence[Review], max_share: float, by: Callable[[Review], Person] = _person) -> set[str]:
    """The ids of reviews to drop, so that nobody has more than a share of those that are left.

    The ids decide which of a person's reviews go, because they are random. Where there are few people the share is
    twice an equal one, so one person alone, or two, lose nothing.

    Args:
        reviews: All reviews that are left.
        max_share: Largest share of them.
        by: What has the share, instead of the person.
    """
    by_person: dict[Person, list[str]] = defaultdict(list)
    for review in reviews:
        by_person[by(review)].append(review.id)
    limit = _limit([len(ids) for ids in by_person.values()], max_share)
    return set().union(*(sorted(ids)[limit:] for ids in by_person.values()))


def _limit(counts: Collection[int], max_share: float) -> int:
    """The largest number of reviews that is no more than the share of all, when nobody has more than that number."""
    limit = max(counts, default=0)
    while True:
        left = sum(min(count, limit) for count in counts)
        allowed = max(math.floor(max_share * left), 2 * left // max(len(counts), 1))
        if limit <= allowed:
            return limit
        limit = allowed


def fault_of_correction(
    correction: str, answer: str, prompt: str, max_ratio: float, max_repeated: float
) -> str | None:
    """Why a correction cannot be what an answer should have been: `empty`, `too_long` or `repeats_prompt`.

    Args:
        correction: What should have been said.
        answer: What was said.
        prompt: What the user had said last.
        max_ratio: How many times as long as the answer it may be, in characters.
        max_repeated: Share of its runs of three words that may be the prompt's.
    """
    found = words(correction, keep_numbers=True)
    if not found:
        return "empty"
    if len(correction) > max(max_ratio * len(answer), _ALWAYS_SHORT_ENOUGH):
        return "too_long"
    asked = set(_runs(words(prompt, keep_numbers=True)))
    runs = _runs(found)
    if runs and sum(run in asked for run in runs) > max_repeated * len(runs):
        return "repeats_prompt"
    return None


def _runs(found: Sequence[str]) -> list[tuple[str, ...]]:
    return [tuple(found[start : start + _RUN]) for start in range(len(found) - _RUN + 1)]
