"""Whether the examples of an evaluation are in what a model was trained on, as far as its lineage and the data tell.

Two ways to be in it: a text of a training row that is the whole question, but for case and white space; and a run of
words that a training row shares with an example. The latter is the rule of GPT-3 (arXiv:2005.14165, appendix C): the
run is as long as the shorter examples of the task (the 5th percentile of their words), but 8 words at least and 13 at
most, and one that more than 10 training documents have is a common phrase, or the wording of the task: it does not
count. But an example is no phrase: if one document has most of its runs, or most of those of its question, it is
counted, however many documents have them. Of scripts without spaces, runs have more letters than words, see
`hfchat.words.runs`.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from hfchat.dataset import load_split
from hfchat.errors import UserError
from hfchat.evaluation.task import Example
from hfchat.lineage import Ancestor, describe
from hfchat.results import ComparedSource, Contamination
from hfchat.words import runs, word_sixths, words

_SHORTEST, _LONGEST = 8, 13  # words of a run
_COMMON = 10  # documents; and examples, of which a run that more have is the wording of the task

# What each training stage learns from: the role of its input, and the columns that one of them must be there.
_LEARNED = {
    "pretrain": ("corpus", ("text",)),
    "finetune": ("conversations", ("messages",)),
    "align": ("preferences", ("chosen", "label")),
}
_TEXTS = ("text", "messages", "prompt", "chosen", "rejected", "completion")


@dataclass(frozen=True)
class _Source:
    """A dataset that a stage of a model's training learned from."""

    stage: str
    path: str
    split: str
    config_name: str | None
    columns: Sequence[str]
    sha256: str

    def rows(self) -> Iterator[list[str]]:
        """The texts of each row.

        Raises:
            UserError: If it cannot be read here, or is not what it was.
        """
        if describe(self.path)["sha256"] != self.sha256:
            raise UserError(f"{self.path} has changed since")
        for column in self.columns:
            try:
                rows = load_split(self.path, self.split, column, config_name=self.config_name, streaming=True)
                break
            except UserError:
                if column == self.columns[-1]:
                    raise
        named = {*self.columns, *_TEXTS}
        try:
            for row in rows:
                yield list(chain.from_iterable(_texts(value) for name, value in row.items() if name in named))
        except Exception as error:  # the errors of the builders have no common base
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"{self.path}: {reason}") from error


def find_contamination(
    tasks: Mapping[str, Sequence[Example]], ancestry: Sequence[Ancestor]
) -> dict[str, Contamination]:
    """Compare the examples of tasks with every row that a model was trained on, in one pass over them.

    The memory is that of the examples; the rows are streamed.

    Args:
        tasks: Name to examples.
        ancestry: Lineages of what made the model, see `hfchat.lineage.ancestry`.

    Returns:
        Task to what was found; a task without examples has no entry.
    """
    compared = {name: _Compared(examples) for name, examples in tasks.items() if examples}
    sources, unknown = _learned_from(ancestry)
    read: list[tuple[_Source, int]] = []
    seen: dict[str, list[_Seen]] = {name: [] for name in compared}
    for source in sources:
        try:
            rows, found = _compare(source, list(compared.values()))
        except UserError as error:
            unknown.append(f"What {source.stage} learned from cannot be read here: {error}.")
            continue
        read.append((source, rows))
        for own, one in zip(seen.values(), found, strict=True):
            own.append(one)
    return {name: one.result(read, seen[name], unknown) for name, one in compared.items()}


def _learned_from(ancestry: Sequence[Ancestor]) -> tuple[list[_Source], list[str]]:
    """List the data that the lineages name, and what of the training they do not tell."""
    sources, unknown = [], []
    made = {lineage["path"] for lineage in ancestry}
    for lineage in ancestry:
        config, inputs = lineage["config"], lineage["inputs"]
        role, columns = _LEARNED.get(lineage["stage"], ("", ()))
        if role in inputs:
            if lineage["stage"] == "pretrain":
                columns = (config.get("text_column") or "text",)
            source = _Source(
                lineage["stage"],
                inputs[role]["path"],
                config.get("dataset_train_split") or "train",
                config.get("dataset_config_name"),
                columns,
                inputs[role]["sha256"],
            )
            if source not in sources:
                sources.append(source)
        # A stage may write its output into a folder of its own (`merged`); then the lineage is one level up.
        base = inputs["model"]["path"] if "model" in inputs else None
        if base is not None and not made & {base, base.rpartition("/")[0]}:
            unknown.append(f"What {base} was trained on is not known here.")
    if not sources and not unknown:
        unknown.append("What the model was trained on is not known here.")
    return sources, unknown


def _compare(source: _Source, compared: Sequence["_Compared"]) -> tuple[int, list["_Seen"]]:
    """Read a source: how many rows it has, and what of each task is in them."""
    seen, rows = [_Seen() for _ in compared], 0
    for texts in tqdm(source.rows(), desc=f"contamination: {source.path}", unit="row", delay=2):
        rows += 1
        normalized, in_words = {_normalized(text) for text in texts}, [words(text) for text in texts]
        for one, of_one in zip(compared, seen, strict=True):
            one.compare_whole(normalized, of_one)
            one.compare_runs(in_words, of_one)
    return rows, seen


@dataclass
class _Seen:
    """What of a task's examples is in a source.

    Attributes:
        equal: Examples whose whole question is there.
        with_answer: Those of them whose answer stands beside it.
        copied: Examples of which one row has most.
        rows: In how many rows each run is.
    """

    equal: set[int] = field(default_factory=set)
    with_answer: set[int] = field(default_factory=set)
    copied: set[int] = field(default_factory=set)
    rows: Counter[int] = field(default_factory=Counter)


class _Compared:
    """The examples of a task, and the runs of words that they are made of. A run is the hash of its words."""

    def __init__(self, examples: Sequence[Example]):
        self._examples = len(examples)
        self._whole: dict[str, set[int]] = defaultdict(set)
        self._answers: list[set[str]] = []
        found = []  # the words of each example, text by text
        asked = []  # the words of its question alone
        for index, one in enumerate(examples):
            question, texts = _question(one), [*one.references, *one.targets]
            for text in [question] if question else texts:
                self._whole[_normalized(text)].add(index)
            self._answers.append({_normalized(text) for text in one.references} if question else set())
            found.append([words(text) for text in dict.fromkeys([*_prompt_texts(one), *texts])])
            asked.append([words(text) for text in ([question] if question else texts)])
        lengths = [max((sum(word_sixths(text)) / 6 for text in texts), default=0) for texts in found]
        self._n = int(np.clip(np.percentile(lengths, 5), _SHORTEST, _LONGEST))
        self._too_short = sum(length < self._n for length in lengths)

        # The examples that have a run, and what each example is made of. So is its question, whose number follows
        # those of all examples.
        self._vocabulary = frozenset(chain.from_iterable(chain.from_iterable(found)))
        self._owners: dict[int, list[int]] = defaultdict(list)
        for index, of_example in enumerate(found):
            for run in self._runs(of_example):
                self._owners[run].append(index)
        self._parts = {run: list(owners) for run, owners in self._owners.items() if len(owners) <= _COMMON}
        for index, of_question in enumerate(asked):
            for run in self._runs(of_question) & self._parts.keys():
                self._parts[run].append(self._examples + index)
        self._sizes = Counter(chain.from_iterable(self._parts.values()))

    def _runs(self, texts: Iterable[Sequence[str]]) -> set[int]:
        """The runs of texts; those that begin or end with a word that is in no example are left out."""
        known = self._vocabulary
        found = set()
        for text in texts:
            for start, end in runs(text, self._n):
                if text[start] in known and text[end - 1] in known:
                    found.add(hash(tuple(text[start:end])))
        return found

    def compare_whole(self, normalized: Set[str], seen: _Seen) -> None:
        """Look for whole questions among the texts of a row, and for the answers beside them."""
        for index in chain.from_iterable(self._whole.get(text, ()) for text in normalized):
            seen.equal.add(index)
            if self._answers[index] & normalized:
                seen.with_answer.add(index)

    def compare_runs(self, texts: Sequence[Sequence[str]], seen: _Seen) -> None:
        """Look for runs of words in the texts of a row."""
        present = self._runs(texts) & self._owners.keys()
        seen.rows.update(present)
        shared = Counter(chain.from_iterable(self._parts.get(run, ()) for run in present))
        seen.copied |= {part % self._examples for part, count in shared.items() if 2 * count > self._sizes[part]}

    def result(
        self, sources: Sequence[tuple[_Source, int]], seen: Sequence[_Seen], unknown: Sequence[str]
    ) -> Contamination:
        """Say what was found.

        Args:
            sources: Those that were read, each with its number of rows.
            seen: What is in each of them.
            unknown: What could not be read.
        """
        # A run of many rows, of whichever sources, is a common phrase and tells nothing.
        counts = sum((one.rows for one in seen), Counter())
        telling = {run for run in self._owners if counts[run] <= _COMMON}
        overlapping = [one.copied | self._owners_of(telling & one.rows.keys()) for one in seen]
        equal = set().union(*(one.equal for one in seen))
        with_answer = set().union(*(one.with_answer for one in seen))
        found = equal.union(*overlapping)
        common = self._owners_of(self._owners) - self._owners_of(telling) - found
        rows = sum(number for _, number in sources)
        return Contamination(
            status="unknown" if not sources else "partly" if unknown else "checked",
            sentence=self._sentence(len(found), len(with_answer), len(common), rows, unknown)
            if sources
            else " ".join(unknown),
            examples=self._examples,
            found=sorted(found),
            equal=sorted(equal),
            equal_with_answer=sorted(with_answer),
            overlapping=sorted(set().union(*overlapping)),
            words=self._n,
            too_short=self._too_short,
            common=sorted(common),
            sources=[
                ComparedSource(source.stage, source.path, source.split, number, len(one.equal | own))
                for (source, number), one, own in zip(sources, seen, overlapping, strict=True)
            ],
            unknown=list(unknown),
        )

    def _owners_of(self, runs: Iterable[int]) -> set[int]:
        return set(chain.from_iterable(self._owners[run] for run in runs))

    def _sentence(self, found: int, with_answer: int, common: int, rows: int, unknown: Sequence[str]) -> str:
        what = "what it was trained on" if not unknown else "what is known of its training"
        text = f"{found or 'None'} of the {self._examples:,} examples {'are' if found > 1 else 'is'} in {what}"
        if found:
            text += f" ({found / self._examples:.1%}; {with_answer:,} with the question and the answer word by word)"
        text += f": {rows:,} rows were compared, by whole questions and by runs of {self._n} words."
        if common:
            consist = "examples consist" if common > 1 else "example consists"
            text += f" {common:,} {consist} of common runs only, each in more than {_COMMON} rows, so it cannot tell."
        return " ".join([text, *unknown])


def _question(example: Example) -> str:
    """What is asked, without the turns before."""
    return example.prompt if isinstance(example.prompt, str) else example.prompt[-1]["content"]


def _prompt_texts(example: Example) -> list[str]:
    if isinstance(example.prompt, str):
        return [example.prompt]
    return [turn["content"] for turn in example.prompt]


def _normalized(text: str) -> str:
    return " ".join(text.casefold().split())


def _texts(value: Any) -> Iterator[str]:
    """The texts of a cell: of turns, their contents."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts(value.get("content"))
    elif isinstance(value, Sequence):
        for part in value:
            yield from _texts(part)
