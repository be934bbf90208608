"""BLEU as an `evaluate.Metric`."""

from collections.abc import Sequence
from itertools import chain, zip_longest
from typing import Any

import numpy as np
import regex
import sacrebleu

from hfchat.evaluation.bootstrap import Statistics
from hfchat.evaluation.metrics.text_metric import TextMetric
from hfchat.words import UNSPACED

# Fetch a SentencePiece model when they are first used; a metric here needs no network.
_FETCHED = ("spm", "flores101", "flores200", "spBLEU-1K")
_LETTER, _UNSPACED, _HAN = (regex.compile(pattern) for pattern in (r"\p{L}", f"[{UNSPACED}]", r"\p{Han}"))
_MANY = 0.1  # of the letters, in scripts without spaces: fewer are names and quotations
_FEW = 0.05  # of these that are not Chinese: fewer are names too


class BLEU(TextMetric):
    """Corpus BLEU (Papineni et al. 2002, https://aclanthology.org/P02-1040) by sacreBLEU (arXiv:1804.08771), 0 to 100.

    An example by itself is scored as `sacrebleu.sentence_bleu` does, with the effective n-gram order: a text of three
    words has no 4-grams, and would score 0 if they were asked for. The mean of such scores is not the corpus score. A
    corpus is scored so only if every example has a reference of less than four tokens. The signature says both.

    Args:
        tokenize: sacreBLEU's tokenizer: `13a`, `zh`, `ja-mecab`, `intl`, `char`, ...; by default the one for the
            script of the references, see `tokenizer_of`.
        lowercase: Whether case is ignored.
    """

    citation = "https://aclanthology.org/W18-6319"

    def __init__(self, tokenize: str | None = None, lowercase: bool = False, **kwargs: Any):
        offline = [name for name in sacrebleu.BLEU.TOKENIZERS if name not in _FETCHED]
        if tokenize in _FETCHED:
            raise ValueError(
                f"tokenize: {tokenize} would fetch a model from the network, which no metric here does; take one of "
                f"{', '.join(offline)}"
            )
        if tokenize is not None and tokenize not in offline:
            raise ValueError(f"tokenize: there is no {tokenize!r}, only {', '.join(offline)}")
        self._tokenize, self._lowercase = tokenize, lowercase
        if tokenize is not None:
            _sacrebleu(tokenize)  # which may need a package that is not there
        super().__init__(**kwargs)

    def _statistics(self, predictions: list[str], references: list[list[str]]) -> Statistics:
        tokenize = self._tokenize or tokenizer_of(references)
        sentence = _sacrebleu(tokenize, self._lowercase, effective_order=True)
        longest = max(min(len(sentence.tokenizer(text).split()) for text in texts) for texts in references)
        corpus = sentence if longest < sentence.max_ngram_order else _sacrebleu(tokenize, self._lowercase)
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


def tokenizer_of(references: Sequence[Sequence[str]]) -> str:
    """The tokenizer of sacreBLEU for the script of texts, of those that need no other package.

    `13a`, the default of the field, splits at spaces and punctuation, so that a sentence of Chinese is one word. Where
    more than a tenth of the letters are of scripts without spaces it is `zh` if they are Chinese, which takes each
    letter by itself and is nearly `13a` for the rest, and else `char`, which takes every character.

    Args:
        references: Lists of texts.
    """
    text = "".join(chain.from_iterable(references))
    unspaced = len(_UNSPACED.findall(text))
    if unspaced <= _MANY * len(_LETTER.findall(text)):
        return "13a"
    return "zh" if unspaced - len(_HAN.findall(text)) <= _FEW * unspaced else "char"


def _sacrebleu(tokenize: str, lowercase: bool = False, effective_order: bool = False) -> sacrebleu.BLEU:
    try:
        return sacrebleu.BLEU(tokenize=tokenize, lowercase=lowercase, effective_order=effective_order)
    except (RuntimeError, ImportError) as error:
        language = tokenize.partition("-")[0]
        raise ValueError(
            f"tokenize: {tokenize} needs a package that is not installed: `pip install 'sacrebleu[{language}]'`"
        ) from error
