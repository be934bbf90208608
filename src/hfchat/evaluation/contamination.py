"""Whether the examples of an evaluation are in what a model was trained on, as far as its lineage and the data tell.

Two ways to be in it: a text of a training row that is the whole question, but for case and white space; and a run of
words that a training row shares with an example. The latter is the rule of GPT-3 (arXiv:2005.14165, appendix C): the
run is as long as the shorter examples of the task (the 5th percentile of their words), but 8 words at least and 13 at
most, and one that more than 10 training documents have is a common phrase, or the wording of the task: it does not
count. But an example is no phrase: if one document has most of its runs, or most of those of its question, it is
counted, however many documents have them. Of scripts without spaces, runs have more letters than words, see
`hfchat.words.runs`.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from hfchat.dataset import load_split
from hfchat.errors import UserError
from hfchat.evaluation.task import Example
from hfchat.lineage import Ancestor, describe
from hfchat.results import ComparedSource, Contamination
from hfchat.words import word_sixths, words

_SHORTEST, _LONGEST = 8, 13  # words of a run
_COMMON = 10  # documents; and examples, of which a run that more have is the wording of the task
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no bit of a hash is lost: 2**64 over the golden ratio
_INVERSE = np.uint64(pow(0x9E3779B97F4A7C15, -1, 2**64))
_CHUNK = 1 << 20  # characters that are compared at a time

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
                yield [text for name, value in row.items() if name in named for text in _texts(value)]
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
    """What is named in the lineages, and what of the training they do not tell."""
    sources, unknown = [], []
    made = {lineage["path"] for lineage in ancestry}
    for lineage in ancestry:
        config, inputs = lineage["config"], lineage["inputs"]
        role, columns = _LEARNED.get(lineage["stage"], (None, ()))
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
        # Of a folder that a stage wrote (`merged`), the lineage is one level up.
        base = inputs.get("model", {}).get("path")
        if base is not None and not made & {base, base.rpartition("/")[0]}:
            unknown.append(f"What {base} was trained on is not known here.")
    if not sources and not unknown:
        unknown.append("What the model was trained on is not known here.")
    return sources, unknown


def _compare(source: _Source, compared: Sequence["_Compared"]) -> tuple[int, list["_Seen"]]:
    """Read a source: how many rows it has, and what of each task is in them."""
    seen = [_Seen.nothing(len(one.runs)) for one in compared]
    rows, chunk, size = 0, [], 0
    for texts in tqdm(source.rows(), desc=f"contamination: {source.path}", unit="row", delay=2):
        rows += 1
        for one, of_one in zip(compared, seen, strict=True):
            one.compare_whole(texts, of_one)
        # Runs are compared many rows at a time, which is what makes numpy quick.
        chunk.append([words(text) for text in texts])
        size += sum(map(len, texts))
        if size >= _CHUNK:
            for one, of_one in zip(compared, seen, strict=True):
                one.compare_runs(chunk, of_one)
            chunk, size = [], 0
    for one, of_one in zip(compared, seen, strict=True):
        one.compare_runs(chunk, of_one)
    return rows, seen


@dataclass
class _Seen:
    """What of a task's examples is in a source.

    Attributes:
        equal: Examples whose whole question is there.
        with_answer: Those of them whose answer stands beside it.
        copied: Examples of which one document has most.
        documents: `[runs]`, how many documents have each run.
    """

    equal: set[int]
    with_answer: set[int]
    copied: set[int]
    documents: np.ndarray

    @classmethod
    def nothing(cls, runs: int) -> "_Seen":
        return cls(set(), set(), set(), np.zeros(runs, dtype=np.int64))


class _Compared:
    """The examples of a task, and their runs of words, as arrays that rows are compared with.

    Attributes:
        runs: `[runs]`, the hashes of all runs, sorted.
    """

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
        # Each word is a random number, so that a run of them has a hash that numpy computes.
        vocabulary = dict.fromkeys(word for texts in found for text in texts for word in text)
        numbers = np.random.default_rng(0).integers(1, 2**64, size=len(vocabulary), dtype=np.uint64)
        self._numbers = dict(zip(vocabulary, numbers.tolist(), strict=True))
        hashes, owners = self._hash(found)
        self.runs, self._run_of = np.unique(hashes, return_inverse=True)
        self._owner_of = owners
        self._index_parts(asked)

    def _index_parts(self, asked: Sequence[Sequence[Sequence[str]]]) -> None:
        """Which runs each example is made of, and each question: its parts, the examples first.

        A run of many examples is the wording of the task, and no part of any.
        """
        hashes, owners = self._hash(asked)
        of_examples = np.stack([self._run_of, self._owner_of])
        of_questions = np.stack([np.searchsorted(self.runs, hashes), owners + self._examples])
        pairs = np.unique(np.concatenate([of_examples, of_questions], axis=1), axis=1)
        owned_by = np.bincount(pairs[0, pairs[1] < self._examples], minlength=len(self.runs))
        pairs = pairs[:, owned_by[pairs[0]] <= _COMMON]
        self._parts = pairs[1]  # of all runs, one after the other
        self._parts_from = np.searchsorted(pairs[0], np.arange(len(self.runs) + 1))
        self._part_sizes = np.bincount(pairs[1], minlength=2 * self._examples)

    def compare_whole(self, texts: Sequence[str], seen: _Seen) -> None:
        """Look for whole questions among the texts of a row, and for the answers beside them."""
        normalized = {_normalized(text) for text in texts}
        for index in chain.from_iterable(self._whole.get(text, ()) for text in normalized):
            seen.equal.add(index)
            if self._answers[index] & normalized:
                seen.with_answer.add(index)

    def compare_runs(self, rows: Sequence[Sequence[Sequence[str]]], seen: _Seen) -> None:
        """Look for runs of words in the texts of rows."""
        hashes, documents = self._hash(rows)
        if not len(hashes) or not len(self.runs):
            return
        places = np.minimum(np.searchsorted(self.runs, hashes), len(self.runs) - 1)
        hits = self.runs[places] == hashes
        pairs = np.unique(np.stack([places[hits], documents[hits]]), axis=1)
        seen.documents += np.bincount(pairs[0], minlength=len(self.runs))
        seen.copied |= self._mostly_in_one(*pairs)

    def _mostly_in_one(self, runs: np.ndarray, documents: np.ndarray) -> set[int]:
        """The examples of which, or of whose question, one document has more than half of the runs.

        Args:
            runs: The run of each pair of a run and a document that has it.
            documents: The documents of these pairs.
        """
        counts = self._parts_from[runs + 1] - self._parts_from[runs]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        parts = self._parts[np.repeat(self._parts_from[runs], counts) + within]
        together = np.repeat(documents, counts) * len(self._part_sizes) + parts
        together, shared = np.unique(together, return_counts=True)
        parts = together % len(self._part_sizes)
        return {*(parts[2 * shared > self._part_sizes[parts]] % self._examples).tolist()}

    def result(
        self, sources: Sequence[tuple[_Source, int]], seen: Sequence[_Seen], unknown: Sequence[str]
    ) -> Contamination:
        """Say what was found.

        Args:
            sources: Those that were read, each with its number of rows.
            seen: What is in each of them.
            unknown: What could not be read.
        """
        # A run of many documents, wherever they are, is a common phrase and tells nothing.
        documents = sum((one.documents for one in seen), np.zeros(len(self.runs), dtype=np.int64))
        telling = documents <= _COMMON
        overlapping = [
            one.copied.union(self._owner_of[((one.documents > 0) & telling)[self._run_of]].tolist()) for one in seen
        ]
        equal = set().union(*(one.equal for one in seen))
        with_answer = set().union(*(one.with_answer for one in seen))
        found = equal.union(*overlapping)
        rare = {*self._owner_of[telling[self._run_of]].tolist()}
        common = {*self._owner_of.tolist()} - rare - found
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
                ComparedSource(source.stage, source.path, source.split, number, len(one.equal | runs))
                for (source, number), one, runs in zip(sources, seen, overlapping, strict=True)
            ],
            unknown=list(unknown),
        )

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

    def _hash(self, rows: Iterable[Iterable[Sequence[str]]]) -> tuple[np.ndarray, np.ndarray]:
        """A 64-bit hash of each run whose words are all in the examples, and the number of its row.

        A run goes on until it holds as much as n words, see `hfchat.words.runs`.
        """
        numbers: list[int] = []
        sixths: list[int] = []
        owners: list[tuple[int, int]] = []
        for index, texts in enumerate(rows):
            first = len(numbers)
            for text in texts:
                numbers += [*(self._numbers.get(word, 0) for word in text), 0]  # no run goes into the next text
                sixths += [*word_sixths(text), 6]
            owners.append((index, len(numbers) - first))
        values = np.array(numbers, dtype=np.uint64)
        if not len(values):
            return np.zeros(0, np.uint64), np.zeros(0, np.int64)
        rows_of = np.repeat(*np.array(owners).T)
        # Where the run from each word ends, if it does before the end.
        read = np.concatenate([[0], np.cumsum(sixths)])
        ends = np.searchsorted(read, read[:-1] + 6 * self._n)
        starts = np.flatnonzero(ends <= len(values))
        gaps = np.concatenate([[0], np.cumsum(values == 0)])
        starts = starts[gaps[ends[starts]] == gaps[starts]]
        ends = ends[starts]
        # The sum of each word's number times a power of the multiplier, from sums of all words before: numbers wrap.
        powers = np.cumprod(np.concatenate([[np.uint64(1)], np.full(len(values), _MULTIPLIER)]), dtype=np.uint64)
        inverses = np.cumprod(np.concatenate([[np.uint64(1)], np.full(len(values), _INVERSE)]), dtype=np.uint64)
        before = np.concatenate([[np.uint64(0)], np.cumsum(values * inverses[:-1], dtype=np.uint64)])
        return (before[ends] - before[starts]) * powers[ends], rows_of[starts]


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
