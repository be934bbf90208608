"""METEOR as an `evaluate.Metric`."""

from typing import Any

import nltk
from nltk.translate.meteor_score import meteor_score

from hfchat.evaluation.bootstrap import Statistics, mean
from hfchat.evaluation.metrics.text_metric import TextMetric
from hfchat.evaluation.metrics.tokenizer import UnicodeTokenizer
from hfchat.evaluation.resources import find_wordnet


class METEOR(TextMetric):
    """METEOR (Lavie & Agarwal 2007, https://aclanthology.org/W07-0734) by NLTK, 0 to 1, mean over examples.

    Words match if equal, if their Porter stems are, or, where WordNet is found on this machine (`hfchat resources`
    fetches it), as synonyms. Scores with and without WordNet do not compare; the signature says which it was. Of
    several references the best one counts. A text of m words that is equal to its reference scores 1 - 0.5 / m^3.
    """

    citation = "https://aclanthology.org/W07-0734"

    def __init__(self, **kwargs: Any):
        self._tokenizer = UnicodeTokenizer()
        wordnet = find_wordnet()
        self._wordnet = wordnet or _NoWordNet()
        synonyms = f"+synonym(wordnet:{wordnet.get_version()})" if wordnet else ""
        self._signature = f"meteor|nltk:{nltk.__version__}|modules:exact+stem{synonyms}|tokenizer:unicode"
        super().__init__(**kwargs)

    def _statistics(self, predictions: list[str], references: list[list[str]]) -> Statistics:
        scores = [
            meteor_score(
                [self._words(text) for text in texts],
                self._words(prediction),
                wordnet=self._wordnet,
            )
            for prediction, texts in zip(predictions, references, strict=True)
        ]
        return mean(scores, self._signature, bounds=(0, 1))

    def _words(self, text: str) -> list[str]:
        return self._tokenizer.tokenize(text) or text.split()  # signs alone are words too


class _NoWordNet:
    """Stands in for WordNet: no word has a synonym."""

    def synsets(self, word: str) -> list[Any]:
        return []
