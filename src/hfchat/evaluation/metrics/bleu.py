"""BLEU as an `evaluate.Metric`."""

from itertools import zip_longest

import numpy as np
import sacrebleu

from hfchat.evaluation.bootstrap import Statistics
from hfchat.evaluation.metrics.text_metric import TextMetric


class BLEU(TextMetric):
    """Corpus BLEU (Papineni et al. 2002, https://aclanthology.org/P02-1040) by sacreBLEU (arXiv:1804.08771), 0 to 100.

    An example by itself is scored as `sacrebleu.sentence_bleu` does, with the effective n-gram order: a text of three
    words has no 4-grams, and would score 0 if they were asked for. The mean of such scores is not the corpus score.

    Args:
        tokenize: sacreBLEU's tokenizer: `13a`, `zh`, `ja-mecab`, `intl`, `char`, ...
        lowercase: Whether case is ignored.
    """

    citation = "https://aclanthology.org/W18-6319"

    def __init__(self, tokenize: str = "13a", lowercase: bool = False, **kwargs):
        if tokenize not in sacrebleu.BLEU.TOKENIZERS:
            raise ValueError(f"tokenize: there is no {tokenize!r}, only {', '.join(sacrebleu.BLEU.TOKENIZERS)}")
        self._options = {"tokenize": tokenize, "lowercase": lowercase}
        super().__init__(**kwargs)

    def _statistics(self, predictions, references):
        corpus = sacrebleu.BLEU(**self._options)
        sentence = sacrebleu.BLEU(**self._options, effective_order=True)
        # sacreBLEU wants one stream per reference, None where an example has fewer; and the lengths, n-gram matches
        # and totals of each segment are what its own significance tests resample.
        values = corpus._extract_corpus_statistics(predictions, list(zip_longest(*references)))
        return Statistics(
            np.array(values),
            lambda sums: corpus._compute_score_from_stats(sums.tolist()).score,
            f"BLEU|{corpus.get_signature()}",
            lambda sums: sentence._compute_score_from_stats(sums.tolist()).score,
            bounds=(0, 100),
        )
