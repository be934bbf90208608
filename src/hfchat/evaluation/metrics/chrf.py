"""chrF as an `evaluate.Metric`."""

from itertools import zip_longest
from typing import Any

import numpy as np
import sacrebleu

from hfchat.evaluation.bootstrap import Statistics
from hfchat.evaluation.metrics.text_metric import TextMetric


class CHRF(TextMetric):
    """Corpus chrF (Popović 2015, https://aclanthology.org/W15-3049) by sacreBLEU (arXiv:1804.08771), 0 to 100.

    An F score of character n-grams, so that it needs no tokenizer. Of several references the best one counts.

    Args:
        char_order: Longest n-gram of characters.
        word_order: Longest n-gram of words; 2 is chrF++ (https://aclanthology.org/W17-4770).
        beta: How many times as much recall counts as precision.
        lowercase: Whether case is ignored.
        whitespace: Whether white space counts as a character.
        eps_smoothing: As in chrF++.py, NLTK and Moses, instead of the effective order.
    """

    citation = "https://aclanthology.org/W15-3049"

    def __init__(
        self,
        char_order: int = 6,
        word_order: int = 0,
        beta: int = 2,
        lowercase: bool = False,
        whitespace: bool = False,
        eps_smoothing: bool = False,
        **kwargs: Any,
    ):
        self._options: dict[str, Any] = {
            "char_order": char_order,
            "word_order": word_order,
            "beta": beta,
            "lowercase": lowercase,
            "whitespace": whitespace,
            "eps_smoothing": eps_smoothing,
        }
        super().__init__(**kwargs)

    def _statistics(self, predictions: list[str], references: list[list[str]]) -> Statistics:
        chrf = sacrebleu.CHRF(**self._options)
        values = chrf._extract_corpus_statistics(predictions, list(zip_longest(*references)))
        name = f"chrF{chrf.beta}{'+' * chrf.word_order}"
        return Statistics(
            np.array(values),
            lambda sums: chrf._compute_score_from_stats(sums.tolist()).score,
            f"{name}|{chrf.get_signature()}",
            bounds=(0, 100),
        )
