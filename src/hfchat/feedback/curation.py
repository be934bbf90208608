"""From what people said to what a model may learn of it: who is believed, what holds, and what it is an example of.

Anybody who can give feedback can teach the model, so everything here assumes that somebody wants to teach it the
worst: with many votes of one account, one text from many accounts, votes against all others, or corrections that
nobody should learn. A person is an API key; the users that its requests name count only where the key is trusted. What
this cannot see is a crowd of keys that agree with each other where nobody else says anything; the gate before a
promotion is for that.
"""

import functools
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, cycle, islice
from operator import attrgetter
from typing import TypeVar

from hfchat.chat import Json
from hfchat.feedback.exchange import Call, Rating, Turn, words_of
from hfchat.feedback.reviews import Person, Review, Who, reviews_of
from hfchat.feedback.spam import fault_of_correction, same_everywhere, too_fast, too_many
from hfchat.feedback.tables import AnswerRow, digest_of_answer
from hfchat.feedback.votes import (
    Agreement,
    Ballot,
    agreements,
    ballot_of,
    find_untrusted,
    pair_of,
    side_of_others,
    verdict,
)

Columns = Mapping[str, list[Turn] | list[Json] | bool]  # of a dataset's row
_Said = TypeVar("_Said")  # a rating, a correction, or what an answer was preferred over

DATASETS = ("conversations", "preferences", "thumbs")
# Why whole reviews are removed, in the order in which the reasons are looked for.
REASONS_OF_REVIEWS = {
    "replaced": "the same person said something else of the same answer later",
    "other_model": "the answer is of another model than the one that was asked for",
    "other_template": "the answer was made with another chat template than the one that was asked for",
    "blocked": "a guard blocked the prompt or the answer: what was rated is the guard's message",
    "too_fast": "one person gave more of them within a minute than anybody reads answers",
    "same_everywhere": "the same correction or comment was given to answers to many prompts",
    "only_words": "there is no rating, correction or preference in it to learn from",
    "untrusted": "the person is against the majority of the others in most of what they share",
    "too_many": "the person, or the API key with all its users, would have more than their share of all",
}
# Why ratings, corrections and preferences are removed from the reviews that are left.
REASONS_OF_STATEMENTS = {
    "replaced": "the same person said something of the same text, as answer to the same prompt, later",
    "contradictory": "others say the opposite, and no side has a majority; or a correction is what was rated down",
    "outvoted": "a majority of the others says the opposite",
    "same_answer": "the two answers are the same, or the correction is the answer",
    "unfinished": "the answer that would be learned was cut off",
    "unsafe": "the guards find something in the text that would be learned",
    "unknown_function": "what would be learned calls a function that the conversation does not offer",
    "empty": "the correction has no words",
    "too_long": "the correction is many times as long as the answer",
    "repeats_prompt": "the correction is little else than the prompt",
}
REASONS_OF_EXAMPLES = {
    "contradictory": "another pair has the two answers the other way round",
    "duplicate": "another example is the same",
    "too_many_of_prompt": "there are many others of the same prompt",
}


@dataclass
class CurationArguments:
    """Which feedback to believe, and how much of it."""

    model: str | None = field(
        default=None, metadata={"help": "Only answers of this model, by its name in the API, or name@version."}
    )
    template_fingerprint: str | None = field(
        default=None, metadata={"help": "Only answers that were made with this chat template."}
    )
    person: Who = field(
        default="api_key",
        metadata={
            "help": "Who counts as one person: everything that comes with one api_key, and everything without one; or "
            "each user that requests name, which is only for a server that nobody else reaches, because anybody can "
            "name many."
        },
    )
    trusted_keys: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Names of API keys whose users each count as a person: keys of your own front ends, which know "
            "who their users are."
        },
    )
    max_per_minute: int = field(
        default=20, metadata={"help": "Reviews that one person may give in a minute; at 20, each takes 3 seconds."}
    )
    max_prompts_per_text: int = field(
        default=5,
        metadata={"help": "Prompts whose answers may get the same correction; more if answers are mere labels."},
    )
    max_share_of_person: float = field(
        default=0.2,
        metadata={"help": "Largest share of all reviews, or twice an equal share where there are few people."},
    )
    max_share_of_key: float = field(
        default=0.5,
        metadata={"help": "Largest share of everything that comes with one API key, however many users it has."},
    )
    min_lead: int = field(
        default=2,
        metadata={"help": "Votes by which a side must lead where people disagree; with 1, one vote decides."},
    )
    min_overlaps: int = field(
        default=5, metadata={"help": "Votes that a person must share with others before being judged by them."}
    )
    min_agreement: float = field(
        default=0.5,
        metadata={"help": "Share of these votes that agree with the majority; a person with less is not believed."},
    )
    max_correction_ratio: float = field(
        default=10,
        metadata={"help": "Length of a correction relative to the answer; 1,000 characters are never too many."},
    )
    max_repeated_prompt: float = field(
        default=0.9, metadata={"help": "Share of a correction's runs of three words that may be the prompt's."}
    )
    max_per_prompt: int = field(
        default=8, metadata={"help": "Examples of one prompt in a dataset, so that it is not all about a few of them."}
    )
    learn_from_praise: bool = field(
        default=False,
        metadata={
            "help": "Take answers with a thumb up as conversations to imitate. They are the model's own: imitating "
            "them makes it narrower (arXiv:2305.17493), and what is clicked is not what is right (arXiv:2310.13548)."
        },
    )

    def __post_init__(self) -> None:
        for name in ("max_per_minute", "max_prompts_per_text", "min_lead", "min_overlaps", "max_per_prompt"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("max_share_of_person", "max_share_of_key", "min_agreement", "max_repeated_prompt"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be above 0 and at most 1, not {getattr(self, name)}")
        if not self.max_correction_ratio > 0:
            raise ValueError(f"max_correction_ratio must be above 0, not {self.max_correction_ratio}")


@dataclass(frozen=True)
class Removed:
    """What is not learned from.

    Attributes:
        feedback_id: The review.
        what: What is removed: the whole `review`; its `rating`, `correction` or `preference`; or, if what it says
            holds, the example in one of `DATASETS`.
        reason: Why, as in `REASONS_OF_REVIEWS`, `REASONS_OF_STATEMENTS` and `REASONS_OF_EXAMPLES`.
    """

    feedback_id: str
    what: str
    reason: str


@dataclass(frozen=True)
class Example:
    """What a model may learn from.

    Attributes:
        source: `correction`, `praise`, `retry` or `thumbs`.
        row: `messages`, `messages` and `label`, or `prompt`, `chosen` and `rejected`; and `tools`, if there were any.
        answer_id: The answer that it is about; of a pair, the better one.
        feedback_id: The review that it comes from.
        prompt: Hash of the prompt.
        texts: Hashes of what would be learned, and of what it is preferred over.
    """

    source: str
    row: Columns
    answer_id: str
    feedback_id: str
    prompt: str
    texts: tuple[bytes, ...]


@dataclass(frozen=True)
class PersonSummary:
    """What one person said.

    Attributes:
        reviews: How many reviews hold.
        kept: How many of them are left to learn from.
        agreement: How often they agree with the others who are believed.
        is_trusted: Whether they are believed.
        feedback_id: One of the reviews, by which the person can be found in the database.
    """

    reviews: int
    kept: int
    agreement: Agreement
    is_trusted: bool
    feedback_id: str


@dataclass
class Curation:
    """What is learned from, and what is not.

    Attributes:
        reviews: How many reviews were read.
        kept_reviews: How many of them are left.
        statements: How many ratings, corrections and preferences are in these.
        removed: Everything that is not learned from, each once.
        examples: The examples for each of `DATASETS`.
        people: Those with most reviews first.
        models: The number of reviews that are left, by model and fingerprint of its chat template.
    """

    reviews: int
    kept_reviews: int
    statements: Counter[str]
    removed: list[Removed]
    examples: dict[str, list[Example]]
    people: list[PersonSummary]
    models: Counter[tuple[str, str | None]]

    def removed_of(self, what: str) -> Counter[str]:
        """How many were removed for each reason (`Removed`)."""
        return Counter(removed.reason for removed in self.removed if removed.what == what)


def curate(
    answers: Sequence[AnswerRow], args: CurationArguments, find_unsafe: Callable[[str], Sequence[str]]
) -> Curation:
    """Decide what is learned from.

    Args:
        answers: What `hfchat.feedback.reviews.read_reviewed` returned.
        args: The thresholds.
        find_unsafe: Returns what it finds in a text that should not be learned, and nothing for one that may be.
    """
    reviews, replaced = reviews_of(answers, args.person, args.trusted_keys)
    removed = [Removed(id, "review", "replaced") for id in replaced]
    everybody = reviews

    def drop(reason: str, ids: set[str]) -> None:
        nonlocal reviews
        removed.extend(Removed(review.id, "review", reason) for review in reviews if review.id in ids)
        reviews = [review for review in reviews if review.id not in ids]

    # First what says nothing about the model; then what nobody can have meant; last who is believed, and how much.
    answered = {review.id: review.answer for review in reviews}
    model, template = args.model, args.template_fingerprint
    drop(
        "other_model", {id for id, answer in answered.items() if model not in (None, answer.model, answer.full_model)}
    )
    drop(
        "other_template",
        {id for id, answer in answered.items() if template not in (None, answer.template_fingerprint)},
    )
    drop("blocked", {id for id, answer in answered.items() if _is_blocked(answer)})
    drop("too_fast", too_fast(reviews, args.max_per_minute))
    drop("same_everywhere", same_everywhere(reviews, args.max_prompts_per_text))
    drop("only_words", {review.id for review in reviews if not review.statements})
    ballot = ballot_of(reviews)
    untrusted = find_untrusted(ballot, args.min_lead, args.min_overlaps, args.min_agreement)
    drop("untrusted", {review.id for review in reviews if review.person in untrusted})
    drop("too_many", too_many(reviews, args.max_share_of_person))
    drop("too_many", too_many(reviews, args.max_share_of_key, by=lambda review: review.person[:1]))

    statements = _Statements(reviews, args, find_unsafe)
    examples, removed_examples = _choose(statements.examples(), args.max_per_prompt)
    return Curation(
        reviews=len(everybody) + len(replaced),
        kept_reviews=len(reviews),
        statements=Counter(chain.from_iterable(review.statements for review in reviews)),
        removed=removed + statements.removed + removed_examples,
        examples=examples,
        people=_summarize_people(everybody, reviews, agreements(ballot, args.min_lead, untrusted), untrusted),
        models=Counter((review.answer.model, review.answer.template_fingerprint) for review in reviews),
    )


class _Statements:
    """The ratings, corrections and preferences of reviews, and what can be learned from those that hold."""

    def __init__(
        self, reviews: Sequence[Review], args: CurationArguments, find_unsafe: Callable[[str], Sequence[str]]
    ):
        self.removed: list[Removed] = []
        self._args = args
        self._is_unsafe = functools.cache(lambda text: bool(find_unsafe(text)))
        self._ballot: Ballot = ballot_of(reviews)
        self._verdicts = {key: verdict(votes.values(), args.min_lead) for key, votes in self._ballot.items()}
        ratings = [(review, review.rating) for review in reviews if review.rating is not None]
        preferences = [(review, review.over) for review in reviews if review.over is not None]
        corrections = [(review, review.correction) for review in reviews if review.correction is not None]
        self._rated = self._hold("rating", ratings, self._fault_of_rating)
        self._preferred = self._hold("preference", preferences, self._fault_of_preference)
        self._corrected = self._hold("correction", corrections, self._fault_of_correction)

    def examples(self) -> Iterator[tuple[str, Example]]:
        """The examples, each with the name of its dataset."""
        for review, correction in self._corrected:
            answer, calls = review.answer, review.corrected_calls
            corrected, digest = _turn(correction, calls), digest_of_answer(correction, calls)
            yield "conversations", _conversation("correction", review, corrected, digest)
            # Nobody writes the reasoning of a correction. If only the other answer had some, the model would learn to
            # tell them apart by it.
            worse = _turn(answer.text, answer.tool_calls)
            yield "preferences", _pair("correction", review, corrected, worse, (digest, answer.key[1]))
        for review, over in self._preferred:
            texts = (review.answer.key[1], over.key[1])
            yield "preferences", _pair("retry", review, _said(review.answer), _said(over), texts)
        by_prompt: dict[str, dict[Rating, list[Review]]] = defaultdict(lambda: {"up": [], "down": []})
        # However many say it of one answer, it is one example.
        rated = sorted(self._rated, key=lambda statement: statement[0].id)
        for review, rating in {review.answer.key: (review, rating) for review, rating in rated}.values():
            answer = review.answer
            row = {"messages": [*answer.messages, _said(answer)], "label": rating == "up", **_tools(answer)}
            yield "thumbs", Example("thumbs", row, answer.answer_id, review.id, answer.prompt_hash, (answer.key[1],))
            if rating == "up" and self._args.learn_from_praise:
                yield "conversations", _conversation("praise", review, _said(answer), answer.key[1])
            by_prompt[answer.prompt_hash][rating].append(review)
        for thumbs in by_prompt.values():
            # Each with another one, and no more: all with all would be mostly about the prompts with most answers.
            pairs = zip(cycle(thumbs["up"]), cycle(thumbs["down"]), strict=False)
            for up, down in islice(pairs, max(map(len, thumbs.values()))):
                texts = (up.answer.key[1], down.answer.key[1])
                yield "preferences", _pair("thumbs", up, _said(up.answer), _said(down.answer), texts)

    def _hold(
        self,
        what: str,
        statements: Sequence[tuple[Review, _Said]],
        fault: Callable[[Review, _Said], str | None],
    ) -> list[tuple[Review, _Said]]:
        """The statements that hold; the others are removed. If one person makes several, the last counts."""

        def question(review: Review) -> Hashable:
            pair = review.over if what == "preference" else None
            return review.person, review.answer.key if pair is None else pair_of(review.answer, pair)

        last = {question(review): review.id for review, _ in statements}
        holding = []
        for review, said in statements:
            replaced = last[question(review)] != review.id
            if reason := "replaced" if replaced else fault(review, said):
                self.removed.append(Removed(review.id, what, reason))
            else:
                holding.append((review, said))
        return holding

    def _fault_of_rating(self, review: Review, rating: Rating) -> str | None:
        side = self._verdicts[review.answer.key]
        if side is None:
            return "contradictory"
        if side != rating:
            return "outvoted"
        return self._fault_of_good(review.answer) if rating == "up" else None

    def _fault_of_preference(self, review: Review, over: AnswerRow) -> str | None:
        if review.answer.key == over.key:
            return "same_answer"
        side = self._verdicts[pair_of(review.answer, over)]
        if side is None:
            return "contradictory"
        if side != review.answer.key:
            return "outvoted"
        return self._fault_of_good(review.answer)

    def _fault_of_correction(self, review: Review, correction: str) -> str | None:
        answer, calls = review.answer, review.corrected_calls
        said = words_of(correction, calls)
        asked = next((turn["content"] for turn in reversed(answer.messages) if turn["role"] == "user"), "")
        limits = (self._args.max_correction_ratio, self._args.max_repeated_prompt)
        # What a function is called with may be what was asked, word for word.
        compared = "" if calls else asked
        if fault := fault_of_correction(said, words_of(answer.text, answer.tool_calls), compared, *limits):
            return fault
        if not _are_offered(calls, answer):
            return "unknown_function"
        key = (answer.prompt_hash, digest_of_answer(correction, calls))
        if key == answer.key:
            return "same_answer"
        if self._verdicts.get(key) == "down":
            return "contradictory"
        if side_of_others(self._ballot.get(answer.key, {}), review.person, self._args.min_lead) == "up":
            return "outvoted"
        return "unsafe" if self._is_unsafe(said) else None

    def _fault_of_good(self, answer: AnswerRow) -> str | None:
        """What keeps an answer from being learned, however good it is said to be."""
        if answer.finish_reason not in ("stop", "tool_calls"):
            return "unfinished"
        if not _are_offered(answer.tool_calls, answer):
            return "unknown_function"
        is_flagged = any(finding["place"] == "answer" for finding in answer.findings)
        learned = "\n".join(filter(None, (answer.reasoning, words_of(answer.text, answer.tool_calls))))
        return "unsafe" if is_flagged or self._is_unsafe(learned) else None


def _choose(
    candidates: Iterable[tuple[str, Example]], max_per_prompt: int
) -> tuple[dict[str, list[Example]], list[Removed]]:
    """The examples of each dataset, without duplicates, contradictions and too many of one prompt.

    If there are too many, the ids of their reviews decide, which are random.
    """
    examples: dict[str, list[Example]] = {dataset: [] for dataset in DATASETS}
    removed = []
    for dataset, example in candidates:
        examples[dataset].append(example)
    for dataset, made in examples.items():
        # Two pairs that say the opposite teach nothing, so both go; of all others the first stays.
        directions = {(example.prompt, example.texts) for example in made}
        seen: set[tuple[str, tuple[bytes, ...]]] = set()
        of_prompt: Counter[str] = Counter()
        kept = []
        for example in sorted(made, key=attrgetter("feedback_id")):
            reason = None
            if len(example.texts) == 2 and (example.prompt, example.texts[::-1]) in directions:
                reason = "contradictory"
            elif (example.prompt, example.texts) in seen:
                reason = "duplicate"
            elif of_prompt[example.prompt] == max_per_prompt:
                reason = "too_many_of_prompt"
            if reason is not None:
                removed.append(Removed(example.feedback_id, dataset, reason))
                continue
            seen.add((example.prompt, example.texts))
            of_prompt[example.prompt] += 1
            kept.append(example)
        examples[dataset] = kept
    return examples, removed


def _conversation(source: str, review: Review, said: Turn, digest: bytes) -> Example:
    answer = review.answer
    row = {"messages": [*answer.messages, said], **_tools(answer)}
    return Example(source, row, answer.answer_id, review.id, answer.prompt_hash, (digest,))


def _pair(source: str, review: Review, better: Turn, worse: Turn, texts: tuple[bytes, bytes]) -> Example:
    answer = review.answer
    row = {"prompt": answer.messages, "chosen": [better], "rejected": [worse], **_tools(answer)}
    return Example(source, row, answer.answer_id, review.id, answer.prompt_hash, texts)


def _turn(text: str, calls: Sequence[Call], reasoning: str = "") -> Turn:
    turn = Turn(role="assistant", content=text)
    if reasoning:
        turn["reasoning_content"] = reasoning
    if calls:
        turn["tool_calls"] = list(calls)
    return turn


def _said(answer: AnswerRow) -> Turn:
    """The answer as the model gave it."""
    return _turn(answer.text, answer.tool_calls, answer.reasoning)


def _tools(answer: AnswerRow) -> Columns:
    return {"tools": answer.tools} if answer.tools else {}


def _are_offered(calls: Sequence[Call], answer: AnswerRow) -> bool:
    offered = {tool["function"]["name"] for tool in answer.tools}
    return all(call["function"]["name"] in offered for call in calls)


def _is_blocked(answer: AnswerRow) -> bool:
    return any(finding["action"] == "block" for finding in answer.findings)


def _summarize_people(
    everybody: Iterable[Review], kept: Iterable[Review], agreed: Mapping[Person, Agreement], untrusted: set[Person]
) -> list[PersonSummary]:
    reviews: dict[Person, list[str]] = defaultdict(list)
    for review in everybody:
        reviews[review.person].append(review.id)
    left = Counter(review.person for review in kept)
    found = [
        PersonSummary(len(ids), left[person], agreed.get(person, Agreement()), person not in untrusted, min(ids))
        for person, ids in reviews.items()
    ]
    return sorted(found, key=lambda person: (-person.reviews, person.feedback_id))
