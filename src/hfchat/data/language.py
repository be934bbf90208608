"""Label documents with their language, and keep those in wanted ones."""

import re
from collections.abc import Sequence

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.writers.disk_base import DiskWriter

from hfchat.data.removal import Removal
from hfchat.language import identify


class LanguageFilter(BaseFilter):
    """Labels documents with `language` and `language_score`, and removes those in other languages than wanted.

    Args:
        languages: Codes of the languages to keep, e.g. `[en, de]`. Without them, documents are only labelled.
        threshold: Least score; 0.65 is FineWeb's (arXiv:2406.17557, section 3.3).

    Raises:
        ValueError: If a language is not written as a code.
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
            raise ValueError(f"language: '{wrong[0]}' is not a valid code of a language, such as en, de or ceb")
        self.languages, self.threshold = languages, threshold

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        language, score = identify(doc.text)
        doc.metadata["language"], doc.metadata["language_score"] = language, score
        if self.languages is None or (language in self.languages and score >= self.threshold):
            return True
        return Removal("language", score, language).note(doc)
