"""ROUGE as an `evaluate.Metric`."""

import re
from importlib.metadata import version
from typing import Any

from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from hfchat.evaluation.bootstrap import Statistics, mean
from hfchat.evaluation.metrics.text_metric import TextMetric
from hfchat.evaluation.metrics.tokenizer import UnicodeTokenizer

_TOKENIZERS = {"unicode": UnicodeTokenizer, "rouge-score": DefaultTokenizer}


class ROUGE(TextMetric):
    """F1 of one ROUGE type (Lin 2004, https://aclanthology.org/W04-1013) by rouge-score, 0 to 1, mean over examples.

    Of several references the best one counts. A text that is equal to one, but for white space, scores 1, also where
    it has too few words for an n-gram, or signs alone.

    Args:
        config_name: `rouge1`, `rouge2` (or up to 9), `rougeL`, or `rougeLsum`: ROUGE-L with each line as a sentence.
        tokenizer: `unicode`, see `UnicodeTokenizer`, or `rouge-score`: its own, for ASCII texts alone.
        use_stemmer: Whether English words count as equal if their Porter stems are.
    """

    citation = "https://aclanthology.org/W04-1013"

    def __init__(
        self, config_name: str | None = None, tokenizer: str = "unicode", use_stemmer: bool = False, **kwargs: Any
    ):
        name = config_name or "rougeL"
        if not re.fullmatch("rouge([1-9]|L|Lsum)", name):
            raise ValueError(f"there is no {name!r}, only rouge1 to rouge9, rougeL and rougeLsum")
        if tokenizer not in _TOKENIZERS:
            raise ValueError(f"tokenizer: there is no {tokenizer!r}, only {' and '.join(_TOKENIZERS)}")
        self._scorer = RougeScorer([name], tokenizer=_TOKENIZERS[tokenizer](use_stemmer))
        split = "|split:newline" if name == "rougeLsum" else ""
        stem = "porter" if use_stemmer else "no"
        self._signature = f"{name}|f1|tokenizer:{tokenizer}|stem:{stem}{split}|rouge-score:{version('rouge-score')}"
        super().__init__(name, **kwargs)

    def _statistics(self, predictions: list[str], references: list[list[str]]) -> Statistics:
        scores = [self._score(prediction, texts) for prediction, texts in zip(predictions, references, strict=True)]
        return mean(scores, self._signature, bounds=(0, 1))

    def _score(self, prediction: str, references: list[str]) -> float:
        if prediction.split() in ([], *(text.split() for text in references)):
            return float(bool(prediction.split()))
        return self._scorer.score_multi(references, prediction)[self.config_name].fmeasure
