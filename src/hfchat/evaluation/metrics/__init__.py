"""BLEU, chrF, ROUGE, METEOR and perplexity as `evaluate.Metric`s that need no network, with signature and interval.

The reference implementations do the scoring: sacreBLEU, Google's rouge-score, and NLTK. By name, or by file as any
module of `evaluate`, which may be combined with others:

    from hfchat.evaluation.metrics import load_metric

    load_metric("chrf", word_order=2).compute(predictions=["A cat."], references=[["A cat.", "The cat."]])

    rouge = evaluate.load("src/hfchat/evaluation/metrics/rouge.py", "rougeLsum", use_stemmer=True)
    evaluate.combine({"ROUGE-Lsum": rouge, "METEOR": load_metric("meteor")}, force_prefix=True)
"""

from collections.abc import Callable
from typing import Any

from hfchat.evaluation.metrics.bleu import BLEU
from hfchat.evaluation.metrics.chrf import CHRF
from hfchat.evaluation.metrics.meteor import METEOR
from hfchat.evaluation.metrics.perplexity import Perplexity
from hfchat.evaluation.metrics.rouge import ROUGE
from hfchat.evaluation.metrics.text_metric import TextMetric
from hfchat.evaluation.metrics.tokenizer import UnicodeTokenizer

__all__ = ["BLEU", "CHRF", "METEOR", "ROUGE", "Perplexity", "TextMetric", "UnicodeTokenizer", "load_metric"]

_METRICS: dict[str, Callable[..., TextMetric]] = {"bleu": BLEU, "chrf": CHRF, "meteor": METEOR}


def load_metric(name: str, **options: Any) -> TextMetric:
    """A metric that compares texts with references.

    Args:
        name: `bleu`, `chrf`, `meteor`, `rouge1`, `rouge2` (or up to 9), `rougeL` or `rougeLsum`.
        options: Those of its class.

    Raises:
        ValueError: If there is no such metric, or it does not take an option or its value.
    """
    if name in _METRICS:
        return _METRICS[name](**options)
    if name.startswith("rouge"):
        return ROUGE(name, **options)
    raise ValueError(
        f"there is no metric {name!r}; there are {', '.join(_METRICS)}, rouge1, rouge2, rougeL, rougeLsum"
    )
