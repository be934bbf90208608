"""The filters of Gopher, C4 and FineWeb, with the value that made them remove a document.

datatrove's filters say only why a document is removed. To judge a threshold, you want to see by how much it was
missed; so the value is computed again for removed documents, with the functions of the filter itself.
"""

import copy
import re

from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.filters.gopher_repetition_filter import (
    find_all_duplicate,
    find_duplicates,
    find_top_duplicate,
    get_n_grams,
)
from datatrove.utils.stats import Stats
from datatrove.utils.text import PUNCTUATION_SET, split_into_sentences, split_into_words

from hfchat.data.removal import Removal


class _Measured(BaseFilter):
    """Notes the value for which a filter removes a document. Mixed in before one of datatrove's filters."""

    language: str

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        result = super().filter(doc)
        if isinstance(result, tuple) and not result[0]:
            value = self.measure(result[1], doc.text)
            if value is not None:
                return Removal(result[1], score=float(value)).note(doc)
        return result

    def measure(self, reason: str, text: str) -> float | None:
        """The value behind a reason; None where no number belongs to it, as for "lorem ipsum"."""
        raise NotImplementedError


class GopherQuality(_Measured, GopherQualityFilter):
    """Removes documents that are unlike prose in words, symbols and lines (arXiv:2112.11446, appendix A1.1)."""

    def measure(self, reason: str, text: str) -> float | None:
        words = split_into_words(text, self.language)
        content = [word for word in words if any(letter not in PUNCTUATION_SET for letter in word)]
        lines = text.splitlines()
        if reason in ("gopher_short_doc", "gopher_long_doc"):
            return len(content)
        if reason in ("gopher_below_avg_threshold", "gopher_above_avg_threshold"):
            return sum(map(len, content)) / len(content) if content else 0.0
        if reason == "gopher_too_many_hashes":
            return text.count("#") / len(words)
        if reason == "gopher_too_many_ellipsis":
            return (text.count("...") + text.count("…")) / len(words)
        if reason == "gopher_too_many_bullets":
            return sum(line.lstrip().startswith(("•", "-")) for line in lines) / len(lines)
        if reason == "gopher_too_many_end_ellipsis":
            return sum(line.rstrip().endswith(("...", "…")) for line in lines) / len(lines)
        if reason == "gopher_below_alpha_threshold":
            return sum(any(map(str.isalpha, word)) for word in words) / len(words)
        if reason == "gopher_enough_stop_words":
            return len(self.stop_words.intersection(words))
        return None


class GopherRepetition(_Measured, GopherRepetitionFilter):
    """Removes documents that repeat lines, paragraphs or n-grams of words (arXiv:2112.11446, table A1)."""

    def measure(self, reason: str, text: str) -> float | None:
        if reason.startswith("dup_para"):
            parts = self.paragraph_exp.split(text.strip())
        else:
            parts = self._line_splitter.split(text)
        if reason in ("dup_para_frac", "dup_line_frac"):
            return find_duplicates(parts)[0] / len(parts)
        if reason in ("dup_para_char_frac", "dup_line_char_frac"):
            return find_duplicates(parts)[1] / len(text)
        words = split_into_words(text, self.language)
        if top := re.fullmatch(r"top_(\d+)_gram", reason):
            return find_top_duplicate(get_n_grams(words, int(top[1]))) / len(text)
        if duplicated := re.fullmatch(r"duplicated_(\d+)_n_grams", reason):
            return find_all_duplicate(words, int(duplicated[1])) / len(text)
        return None


class FineWebQuality(_Measured, FineWebQualityFilter):
    """Removes lists, and pages whose lines are short, repeated or no sentences (arXiv:2406.17557, section 3.6)."""

    def measure(self, reason: str, text: str) -> float | None:
        lines = [line for line in text.split("\n") if line.strip()]
        if reason == "line_punct_ratio":
            return sum(line.endswith(self.stop_chars) for line in lines) / len(lines)
        if reason == "short_line_ratio":
            return sum(len(line) <= self.short_line_length for line in lines) / len(lines)
        if reason == "char_dup_ratio":
            return find_duplicates(lines)[1] / len(text.replace("\n", ""))
        if reason == "list_ratio":
            return text.count("\n") / len(split_into_words(text, self.language))
        return None


class C4Quality(_Measured, C4QualityFilter):
    """Removes lines that are not sentences, and documents with few sentences or with code (C4, arXiv:1910.10683)."""

    def measure(self, reason: str, text: str) -> float | None:
        if reason != "too_few_sentences":
            return None
        # The filter counts the sentences of the lines that it would keep: those that it leaves when it counts none.
        lenient = copy.copy(self)
        lenient.stats, lenient.min_num_sentences = Stats("lenient"), -1
        kept = Document(text, "")
        C4QualityFilter.filter(lenient, kept)
        return sum(len(split_into_sentences(line, self.language)) for line in kept.text.split("\n") if line)
