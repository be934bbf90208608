"""Perplexity and bits per byte of plain texts: how well a model knows a language, a domain, or held-out data."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hfchat.character_encodings import read_text
from hfchat.dataset import load_split
from hfchat.errors import UserError
from hfchat.evaluation.asking import Asked, ask
from hfchat.evaluation.model import EvaluatedModel
from hfchat.evaluation.perplexity import bits_per_byte, left_out, perplexity, text_setting, window_and_stride
from hfchat.evaluation.records import read_records, write_records
from hfchat.evaluation.task import Example, Measured, Task
from hfchat.results import Metric

_METRICS = {
    "bits_per_byte": Metric("Bits per byte", "lower"),
    "perplexity": Metric("Perplexity", "lower", ".2f"),
}


@dataclasses.dataclass
class TextPerplexity(Task):
    """Perplexity of the texts of a dataset, each after the token that begins a document.

    Attributes:
        dataset_name: Folder, file or Hub id; a `.txt` file is one text, or with `separator` several.
        dataset_config_name: Its configuration, if it has several.
        split: Its split of held-out rows.
        text_column: Name of the column.
        separator: What stands between the texts of a `.txt` file. Its lines end with `\\n`, whatever they do in it.
        max_samples: Take only the first so many.
        window: Tokens that a model reads at a time; by default its context, at most 2048.
        stride: How many tokens the window moves on in a long text; by default half of it.
    """

    kind = "perplexity"
    columns = needs_weights = _METRICS
    limits = (
        "Perplexity compares models of one tokenizer; bits per byte compares others too, and a model whose tokenizer "
        "loses a part of a text (an <unk>, or capitals) gets none.",
        "A text that a model has been trained on looks easier than it is: see the contamination.",
    )
    headline = "bits_per_byte"

    name: str
    dataset_name: str
    dataset_config_name: str | None = None
    split: str = "validation"
    text_column: str = "text"
    separator: str | None = None
    max_samples: int | None = None
    window: int | None = None
    stride: int | None = None

    def __post_init__(self) -> None:
        self.require_at_least(1, "max_samples", "stride")
        self.require_at_least(2, "window")
        if self.separator is not None and not self._is_text_file:
            raise ValueError(f"separator: is for a .txt file, which dataset_name {self.dataset_name} is not")

    @property
    def _is_text_file(self) -> bool:
        return Path(self.dataset_name).suffix == ".txt"

    def prepare(self) -> None:
        texts = self._read_file() if self._is_text_file else self._load_rows()
        self.examples = []
        for number, text in enumerate(texts[: self.max_samples], start=1):
            place = f"{self.dataset_name} ({self.split}) row {number}"
            if not isinstance(text, str) or not text.strip():
                raise UserError(f"{place}: {self.text_column} must be a text, not {text!r}")
            self.examples.append(Example("", targets=[text], place=place))

    def _load_rows(self) -> list[Any]:
        rows = load_split(self.dataset_name, self.split, self.text_column, config_name=self.dataset_config_name)
        return rows[: self.max_samples][self.text_column]

    def _read_file(self) -> list[str]:
        try:
            text = read_text(Path(self.dataset_name))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"dataset_name {self.dataset_name}: cannot be read: {error}") from error
        texts = text.split(self.separator) if self.separator else [text]
        if self.separator and len(texts) == 1:
            print(f"dataset_name {self.dataset_name}: holds no {self.separator!r} (separator), so it is one text")
        texts = [text for text in texts if text.strip()]
        if not texts:
            raise UserError(f"dataset_name {self.dataset_name}: holds no text")
        return texts

    @property
    def source(self) -> str:
        return self.dataset_name

    def refusal(self, model: EvaluatedModel) -> str | None:
        return None if model.gives_losses else "a server gives no likelihoods of texts"

    def check(self, model: EvaluatedModel) -> None:
        self._window_and_stride(model)

    def _window_and_stride(self, model: EvaluatedModel) -> tuple[int, int]:
        try:
            return window_and_stride(model.context, self.window, self.stride)
        except ValueError as error:
            raise UserError(f"tasks: {self.name}: {model.path}: {error}") from error

    def collect(self, model: EvaluatedModel, folder: Path) -> None:
        window, stride = self._window_and_stride(model)
        examples = [dataclasses.replace(one, info={"window": window, "stride": stride}) for one in self.examples]
        ask(
            model,
            examples,
            folder / f"{model.name}.jsonl",
            Asked(windows=(window, stride)),
            f"{self.name}: {model.name}",
        )

    def measure(self, model: str, folder: Path) -> Measured:
        file = folder / f"{model}.jsonl"
        records = read_records(file)
        losses = [record.losses[0] for record in records]
        how = records[0].info
        setting = text_setting(how["window"], how["stride"])
        statistics = {"perplexity": perplexity(losses, [record.target_tokens[0] for record in records], setting)}
        if not left_out({model: records}):
            texts = [record.targets[0] for record in records]
            statistics = {"bits_per_byte": bits_per_byte(losses, texts, setting), **statistics}
        for name, values in statistics.items():
            for record, score in zip(records, values.of_examples(), strict=True):
                record.scores[name] = score
        write_records(file, records)
        return Measured(statistics)

    def details(self, models: Sequence[str], folder: Path) -> dict[str, Any]:
        """Why a model has no bits per byte, see `left_out`."""
        return left_out({model: read_records(folder / f"{model}.jsonl") for model in models})
