"""Remove documents that are unfit for everybody: by a list of words, or by a model that classifies them."""

import functools
from typing import TYPE_CHECKING, Any

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.writers.disk_base import DiskWriter

from hfchat.data.removal import Removal
from hfchat.errors import UserError
from hfchat.models import check_kernels
from hfchat.safety.lexicon import Lexicon

if TYPE_CHECKING:
    from transformers import Pipeline


class LexiconFilter(BaseFilter):
    """Removes documents that are dense with several words of a list.

    C4's rule, to remove a page for a single word, takes novels, and texts by and about minorities, with it
    (arXiv:2104.08758). Here a document must have both many of the words and different ones.

    Args:
        lexicon: Path of a list, see `hfchat.safety.lexicon`; by default the one that comes with hfchat.
        min_hits_per_1000_words: Fewer words of the list do not remove a document.
        min_distinct: Nor do fewer different ones.
    """

    name = "🔞 Lexicon"

    def __init__(
        self,
        lexicon: str | None = None,
        min_hits_per_1000_words: float = 10.0,
        min_distinct: int = 3,
        exclusion_writer: DiskWriter | None = None,
    ):
        super().__init__(exclusion_writer)
        self.lexicon = Lexicon(lexicon)
        self.min_hits_per_1000_words, self.min_distinct = min_hits_per_1000_words, min_distinct

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        hits = self.lexicon.find(doc.text)
        entries = sorted({hit.entry for hit in hits})
        if len(entries) < self.min_distinct:
            return True
        density = 1000 * len(hits) / len(doc.text.split())
        if density < self.min_hits_per_1000_words:
            return True
        return Removal("inappropriate", density, ", ".join(entries[:10])).note(doc)


class ClassifierFilter(BaseFilter):
    """Removes documents to which a `text-classification` model gives a label with a probability or more.

    Args:
        model_name_or_path: A checkpoint's folder or Hub id; safetensors, and no code of its own.
        label: As the model's config names it.
        threshold: Probability from which a document is removed.
        revision: Branch, tag or commit on the Hub.
        max_length: Tokens that are read of each document, from its beginning; no more than the model takes.
        batch_size: Documents at a time.

    Raises:
        ValueError: For a label that the model does not have.
        UserError: For a model that cannot be loaded.
    """

    name = "🤖 Classifier"

    def __init__(
        self,
        model_name_or_path: str,
        label: str,
        threshold: float = 0.5,
        revision: str = "main",
        max_length: int = 512,
        batch_size: int = 16,
        exclusion_writer: DiskWriter | None = None,
    ):
        super().__init__(exclusion_writer, batch_size)
        self.model_name_or_path, self.label, self.threshold = model_name_or_path, label, threshold
        self.revision, self.max_length = revision, max_length
        labels = _labels(model_name_or_path, revision)
        if label not in labels:
            raise ValueError(f"classifier: {model_name_or_path} has no label '{label}', only {', '.join(labels)}")

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        return self.filter_batch([doc])[0]

    def filter_batch(self, batch: list[Document]) -> list[bool | tuple[bool, str]]:
        classify = _classifier(self.model_name_or_path, self.revision)
        answers = classify(
            [document.text for document in batch],
            top_k=None, truncation=True, batch_size=self.batch_size,
            max_length=min(self.max_length, classify.tokenizer.model_max_length),
        )  # fmt: skip
        results: list[bool | tuple[bool, str]] = []
        for document, answer in zip(batch, answers, strict=True):
            score = next(entry["score"] for entry in answer if entry["label"] == self.label)
            if score >= self.threshold:
                results.append(Removal("classifier", score, self.label).note(document))
            else:
                results.append(True)
        return results


@functools.cache
def _labels(model_name_or_path: str, revision: str) -> list[str]:
    from transformers import AutoConfig

    try:
        check_kernels(model_name_or_path, revision)
        config: Any = AutoConfig.from_pretrained(model_name_or_path, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _unloadable(model_name_or_path, error) from error
    return list(config.id2label.values())


@functools.cache
def _classifier(model_name_or_path: str, revision: str) -> "Pipeline":
    import torch
    from transformers import pipeline

    torch.set_num_threads(1)  # there are as many workers as cores
    try:
        classify = pipeline(
            "text-classification", model=model_name_or_path, revision=revision,
            trust_remote_code=False, model_kwargs={"use_safetensors": True},
        )  # fmt: skip
    except (OSError, ValueError) as error:
        raise _unloadable(model_name_or_path, error) from error
    # A tokenizer does not always know for how many tokens the model has positions.
    positions = getattr(classify.model.config, "max_position_embeddings", None)
    if positions and classify.tokenizer.model_max_length > positions:
        classify.tokenizer.model_max_length = positions
    return classify


def _unloadable(model_name_or_path: str, error: Exception) -> UserError:
    reason = str(error).strip().splitlines()[0]
    return UserError(f"steps: classifier: {model_name_or_path} cannot be loaded: {reason}")
