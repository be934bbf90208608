"""Answers to held-out prompts, compared with references: chat, translation, summarization."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Formatter
from typing import Any

from hfchat.chat import Json
from hfchat.dataset import load_split
from hfchat.errors import UserError
from hfchat.evaluation.asking import Asked, AskingTask
from hfchat.evaluation.bootstrap import mean
from hfchat.evaluation.metrics import TextMetric, load_metric
from hfchat.evaluation.model import EvaluatedModel, Prompt
from hfchat.evaluation.perplexity import bits_per_byte, left_out, perplexity
from hfchat.evaluation.records import read_records, write_records
from hfchat.evaluation.task import Example, Measured
from hfchat.messages import check_messages
from hfchat.results import Metric

_OVERLAP = {
    "bleu": Metric("BLEU", form=".1f"),
    "chrf": Metric("chrF", form=".1f"),
    "rouge1": Metric("ROUGE-1"),
    "rouge2": Metric("ROUGE-2"),
    "rougeL": Metric("ROUGE-L"),
    "rougeLsum": Metric("ROUGE-Lsum"),
    "meteor": Metric("METEOR"),
}
_LIKELIHOODS = {
    "perplexity": Metric("Perplexity", "lower", ".2f"),
    "bits_per_byte": Metric("Bits per byte", "lower"),
}

_METRICS = {
    **_OVERLAP,
    **_LIKELIHOODS,
    "answer_tokens": Metric("Answer length, tokens", None, ".1f"),
    "ended": Metric("Ended by themselves", form=".2f"),
}


@dataclass
class Answers(AskingTask):
    """Answers to the prompts of a dataset.

    Its rows have `messages`, of which the last is the reference; or `prompt` names how a question is made of their
    columns, and `references` the column of the reference or of a list of them.

    Attributes:
        dataset_name: Folder, file or Hub id.
        dataset_config_name: Its configuration, if it has several.
        split: Its split of held-out rows.
        max_samples: Take only the first so many.
        prompt: A question with columns in braces: `"Translate to German: {en}"`. A brace that is text is written
            twice.
        references: Name of a column, where `prompt` is given.
        system: A system message before each question, where `prompt` is given.
        max_new_tokens: Longest answer.
        metrics: Names of those to measure, in the order of the table; perplexity and bits per byte are of the first
            reference.
        headline: The one of these metrics that the verdict reads.
        tokenize: BLEU's tokenizer; by default the one for the script of the references, see
            `hfchat.evaluation.metrics.bleu.tokenizer_of`.
    """

    kind = "answers"
    columns = _METRICS
    needs_weights = _LIKELIHOODS
    limits = (
        "BLEU, chrF, ROUGE and METEOR count what an answer shares with the references. They see neither whether "
        "another wording is right nor whether a fluent sentence is false: read the answers.",
        "Perplexity compares models of one tokenizer under one template; bits per byte compares others too, and a "
        "model whose tokenizer loses a part of a reference (an <unk>, or capitals) gets none.",
    )

    name: str
    dataset_name: str
    dataset_config_name: str | None = None
    split: str = "validation"
    max_samples: int | None = None
    prompt: str | None = None
    references: str | None = None
    system: str | None = None
    max_new_tokens: int = 96
    metrics: list[str] = field(default_factory=lambda: [*_OVERLAP, *_LIKELIHOODS])
    headline: str = "rougeL"
    tokenize: str | None = None

    def __post_init__(self) -> None:
        for name in [*self.metrics, self.headline]:
            if name not in self.columns:
                raise ValueError(f"metrics: there is no {name!r}, only {', '.join(self.columns)}")
        if self.headline not in self.metrics:
            raise ValueError(f"headline: {self.headline!r} is not among the metrics")
        if (self.prompt is None) != (self.references is None):
            raise ValueError("prompt and references: set both, or neither for rows with messages")
        self._parts = [] if self.prompt is None else _parse_prompt(self.prompt)
        self.require_at_least(1, "max_samples", "max_new_tokens")
        if self.tokenize is not None:
            if "bleu" not in self.metrics:
                raise ValueError("tokenize: is of BLEU, which is not among the metrics")
            self._metric("bleu")

    def _metric(self, name: str) -> TextMetric:
        return load_metric(name, **({"tokenize": self.tokenize} if name == "bleu" else {}))

    def prepare(self) -> None:
        column = self.references or "messages"
        rows = load_split(self.dataset_name, self.split, column, config_name=self.dataset_config_name)
        if self.max_samples is not None:
            rows = rows.take(self.max_samples)
        place = f"{self.dataset_name} ({self.split}) row"
        make = self._from_messages if self.prompt is None else self._from_columns
        self.examples = [make(row, f"{place} {number}") for number, row in enumerate(rows, start=1)]

    def _from_messages(self, row: Json, place: str) -> Example:
        check_messages(row["messages"], place)
        *prompt, answer = ({"role": turn["role"], "content": turn["content"]} for turn in row["messages"])
        if not prompt:
            raise UserError(f"{place}: has no turn before the answer")
        return self._example(prompt, [answer["content"]], place)

    def _from_columns(self, row: Json, place: str) -> Example:
        question = ""
        for text, column in self._parts:
            if column is not None and column not in row:
                raise UserError(
                    f"{self.name}: prompt: there is no column {column!r}, only {sorted(row)}; a brace that is text is "
                    "written twice: {{ or }}"
                )
            question += text if column is None else text + _as_text(row[column], f"{place}: {column}")
        references = row[self.references or ""]
        # What a list holds is checked text by text; no reference at all is as wrong as an empty one.
        several = (references or [None]) if isinstance(references, list) else [references]
        references = [_as_text(one, f"{place}: {self.references}", " or a list of texts") for one in several]
        turns = [("system", self.system)] if self.system else []
        prompt = [{"role": role, "content": content} for role, content in [*turns, ("user", question)]]
        return self._example(prompt, list(references), place)

    def _example(self, prompt: Prompt, references: list[str], place: str) -> Example:
        targets = references[:1] if self._asks_likelihoods else []
        return Example(prompt, references, targets, place=place)

    @property
    def _asks_likelihoods(self) -> bool:
        return not _LIKELIHOODS.keys().isdisjoint(self.metrics)

    @property
    def source(self) -> str:
        return self.dataset_name

    def asked(self, model: EvaluatedModel) -> Asked:
        return Asked(self.max_new_tokens, losses=self._asks_likelihoods and model.gives_losses)

    def measure(self, model: str, folder: Path) -> Measured:
        file = folder / f"{model}.jsonl"
        records = read_records(file)
        answers, references = [record.text for record in records], [record.references for record in records]
        statistics = {}
        for name in self.metrics:
            if name in _OVERLAP:
                statistics[name] = self._metric(name).statistics(answers, references)
                for record, score in zip(records, statistics[name].of_examples(), strict=True):
                    record.scores[name] = score
            elif name in _LIKELIHOODS and all(record.losses for record in records):
                losses = [record.losses[0] for record in records]
                setting = "target:answer+end-of-turn|context:prompt"
                if name == "perplexity":
                    statistics[name] = perplexity(losses, [record.target_tokens[0] for record in records], setting)
                elif not left_out({model: records}):
                    statistics[name] = bits_per_byte(losses, [record.references[0] for record in records], setting)
        tokens = [record.answer_tokens for record in records]
        statistics["answer_tokens"] = mean(
            tokens, "mean|tokens of the model's own tokenizer", bounds=(0, self.max_new_tokens)
        )
        ended = [bool(record.ended) for record in records]
        statistics["ended"] = mean(ended, "share|end of turn before max_new_tokens")
        write_records(file, records)
        return Measured(statistics)

    def details(self, models: Sequence[str], folder: Path) -> dict[str, Any]:
        """Why a model has no bits per byte, see `left_out`."""
        if "bits_per_byte" not in self.metrics:
            return {}
        return left_out({model: read_records(folder / f"{model}.jsonl") for model in models})


def _parse_prompt(prompt: str) -> list[tuple[str, str | None]]:
    """Texts, each with the column after it, None after the last.

    Raises:
        ValueError: If its braces are no columns.
    """
    try:
        found = list(Formatter().parse(prompt))
    except ValueError as error:
        raise ValueError(f"prompt: {error}; a brace that is text is written twice: {{{{ or }}}}") from error
    for _, column, form, conversion in found:
        if column == "" or form or conversion:
            written = f"{column or ''}{f'!{conversion}' if conversion else ''}{f':{form}' if form else ''}"
            raise ValueError(
                f"prompt: {{{written}}} is not a column; a brace that is text is written twice: {{{{ or }}}}"
            )
    return [(text, column) for text, column, *_ in found]


def _as_text(value: Any, place: str, or_else: str = "") -> str:
    """A text of a row as it is, and a number as it is written.

    Raises:
        UserError: If it is empty, or something else. Names `place`.
    """
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, int | float) and not (isinstance(value, float) and math.isnan(value)):
        return str(value)
    if value is None:
        raise UserError(f"{place} is empty (null); write something there, or remove the row")
    raise UserError(f"{place} must be a text{or_else}, not {str(value)[:80]!r}")
