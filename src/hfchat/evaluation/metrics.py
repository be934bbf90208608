"""BLEU, ROUGE and METEOR as `evaluate.Metric`s that need no network, each with its signature and interval.

The reference implementations do the scoring: sacreBLEU, Google's rouge-score, and NLTK.
"""

from importlib.metadata import version
from itertools import zip_longest
from typing import Any

import evaluate
import nltk
import numpy as np
import regex
import sacrebleu
from datasets import Features, Sequence, Value
from nltk.translate.meteor_score import meteor_score
from rouge_score.rouge_scorer import RougeScorer

from hfchat.evaluation.bootstrap import Statistics, estimate, mean

_INPUTS = """
Args:
    predictions: One text per example.
    references: One text per example, or one list of texts per example.
    resamples: Bootstrap resamples for the interval, 1000 by default.
    seed: Seed of the resamples, 42 by default.

Returns:
    `{"score", "interval": [low, high], "n", "signature"}`: the interval at 95%, over examples.

Raises:
    ValueError: If there are not as many references as predictions, none at all, or any that is not a text.
"""


class TextMetric(evaluate.Metric):
    """A metric over texts. Subclasses give the statistics of each example, see `Statistics`."""

    description = citation = ""

    def statistics(self, predictions: list[str], references: list[str] | list[list[str]]) -> Statistics:
        return self._statistics(predictions, _nested(predictions, references))

    def _statistics(self, predictions: list[str], references: list[list[str]]) -> Statistics:
        raise NotImplementedError

    def _info(self) -> evaluate.MetricInfo:
        text = Value("string")
        return evaluate.MetricInfo(
            description=self.__doc__,
            citation=self.citation,
            inputs_description=_INPUTS,
            features=[
                Features(predictions=text, references=text),
                Features(predictions=text, references=Sequence(text)),
            ],
        )

    def add_batch(self, *, predictions=None, references=None, **kwargs):
        """Add examples."""
        _nested(predictions, references)  # `evaluate` itself looks at the first example only, and casts the rest
        super().add_batch(predictions=predictions, references=references, **kwargs)

    def _compute(self, predictions, references, resamples: int = 1000, seed: int = 42) -> dict[str, Any]:
        return estimate(self.statistics(predictions, references), resamples, seed)


class BLEU(TextMetric):
    """Corpus BLEU (Papineni et al. 2002, https://aclanthology.org/P02-1040) by sacreBLEU (arXiv:1804.08771), 0 to 100.

    Args:
        tokenize: sacreBLEU's tokenizer: `13a`, `zh`, `ja-mecab`, `intl`, `char`, ...
    """

    citation = "https://aclanthology.org/W18-6319"

    def __init__(self, tokenize: str = "13a", **kwargs):
        self._bleu = sacrebleu.BLEU(tokenize=tokenize)
        super().__init__(**kwargs)

    def _statistics(self, predictions, references):
        # sacreBLEU wants one stream per reference, None where an example has fewer.
        streams = list(zip_longest(*references))
        # What sacreBLEU's own significance tests resample: lengths, n-gram matches and totals of each segment.
        values = self._bleu._extract_corpus_statistics(predictions, streams)
        return Statistics(
            np.array(values),
            lambda sums: self._bleu._compute_score_from_stats(sums.tolist()).score,
            f"BLEU|{self._bleu.get_signature()}",
        )


class ROUGE(TextMetric):
    """F1 of one ROUGE type (Lin 2004, https://aclanthology.org/W04-1013) by rouge-score, 0 to 1, mean over examples.

    Of several references the best one counts.

    Args:
        config_name: `rouge1`, `rouge2` or `rougeL`.
    """

    citation = "https://aclanthology.org/W04-1013"

    def __init__(self, config_name: str = "rougeL", **kwargs):
        self._scorer = RougeScorer([config_name], tokenizer=UnicodeTokenizer())
        super().__init__(config_name, **kwargs)

    def _statistics(self, predictions, references):
        scores = [
            self._scorer.score_multi(texts, prediction)[self.config_name].fmeasure
            for prediction, texts in zip(predictions, references, strict=True)
        ]
        return mean(scores, f"{self.config_name}|f1|tokenizer:unicode|stem:no|rouge-score:{version('rouge-score')}")


class METEOR(TextMetric):
    """METEOR (Lavie & Agarwal 2007, https://aclanthology.org/W07-0734) by NLTK, 0 to 1, mean over examples.

    Words match if equal, if their Porter stems are, or, where NLTK finds WordNet on this machine, as synonyms. Scores
    with and without WordNet do not compare; the signature says which it was. Of several references the best counts.
    """

    citation = "https://aclanthology.org/W07-0734"

    def __init__(self, **kwargs):
        self._tokenizer = UnicodeTokenizer()
        self._wordnet, synonyms = _wordnet()
        self._signature = f"meteor|nltk:{nltk.__version__}|modules:exact+stem{synonyms}|tokenizer:unicode"
        super().__init__(**kwargs)

    def _statistics(self, predictions, references):
        scores = [
            meteor_score(
                [self._tokenizer.tokenize(text) for text in texts],
                self._tokenizer.tokenize(prediction),
                wordnet=self._wordnet,
            )
            for prediction, texts in zip(predictions, references, strict=True)
        ]
        return mean(scores, self._signature)


class UnicodeTokenizer:
    """Lower-cased runs of letters, marks and digits; of scripts written without spaces, each character by itself.

    rouge-score's own tokenizer keeps only a-z and 0-9, so that identical Arabic or Chinese texts score 0. On English
    the two agree. A character takes its marks along: a vowel sign is not a word.
    """

    _WORD = r"[\p{L}\p{M}\p{N}]"
    _UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
    _TOKEN = regex.compile(rf"[{_UNSPACED}&&{_WORD}--\p{{M}}]\p{{M}}*|[{_WORD}--{_UNSPACED}]+", regex.V1)

    def tokenize(self, text: str) -> list[str]:
        return self._TOKEN.findall(text.lower())


class _NoWordNet:
    """Stands in for WordNet: no word has a synonym."""

    def synsets(self, word: str) -> list:
        return []


def _wordnet() -> tuple[Any, str]:
    for name in ("wordnet", "wordnet.zip"):
        try:
            nltk.data.find(f"corpora/{name}")
        except LookupError:
            continue
        from nltk.corpus import wordnet

        return wordnet, f"+synonym(wordnet:{wordnet.get_version()})"
    return _NoWordNet(), ""


def _nested(predictions: Any, references: Any) -> list[list[str]]:
    """Check the shapes, and give references as one list per example."""
    for name, texts in (("predictions", predictions), ("references", references)):
        if isinstance(texts, str) or not hasattr(texts, "__len__") or not len(texts):
            raise ValueError(f"{name} must be a list with a text per example, not {texts!r}")
    if len(predictions) != len(references):
        raise ValueError(
            f"there are {len(predictions)} predictions but {len(references)} references; "
            "references must be one text, or one list of texts, per prediction"
        )
    for index, text in enumerate(predictions):
        if not isinstance(text, str):
            raise ValueError(f"predictions[{index}] must be a text, not {text!r}")
    nested = [[texts] if isinstance(texts, str) else texts for texts in references]
    for index, texts in enumerate(nested):
        if not isinstance(texts, list | tuple) or not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"references[{index}] must be a text or a list of texts, not {references[index]!r}")
    return nested
