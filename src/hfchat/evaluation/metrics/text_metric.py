"""What the metrics over texts and their references have in common."""

import inspect
from abc import ABC, abstractmethod
from typing import Any

import evaluate
from datasets import Features, Sequence, Value

from hfchat.evaluation.bootstrap import Statistics, estimate
from hfchat.results import Estimate

_INPUTS = """
Args:
    predictions: One text per example.
    references: One text per example, or one list of texts per example.
    resamples: Bootstrap resamples where the interval has no formula, 1000 by default.
    seed: Seed of the resamples, 42 by default.

Returns:
    `{"score", "interval": [low, high], "n", "signature"}`: the interval at 95%, over examples.

Raises:
    ValueError: If there are not as many references as predictions, none at all, or any that is not a text.
"""


# Abstract, as `evaluate.load` takes the first class of a file that is not.
class TextMetric(evaluate.Metric, ABC):
    """A metric over texts. Subclasses give the statistics of each example, see `Statistics`."""

    citation = ""

    def __init__(self, config_name: str | None = None, **kwargs: Any):
        known = inspect.signature(evaluate.EvaluationModule.__init__).parameters
        for option in kwargs:
            if option not in known:  # `evaluate` would take it and say nothing
                raise ValueError(f"{type(self).__name__} has no option {option!r}")
        super().__init__(config_name, **kwargs)

    def statistics(self, predictions: list[str], references: list[str] | list[list[str]]) -> Statistics:
        """What the score is made of, by example: to compare two models, or to score the examples one by one."""
        return self._statistics(predictions, _nested(predictions, references))

    @abstractmethod
    def _statistics(self, predictions: list[str], references: list[list[str]]) -> Statistics: ...

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

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Add examples."""
        _nested(predictions, references)  # `evaluate` itself looks at the first example only, and casts the rest
        super().add_batch(predictions=predictions, references=references, **kwargs)

    def _compute(
        self, predictions: list[str], references: list[list[str]], resamples: int = 1000, seed: int = 42
    ) -> dict[str, Any]:
        return as_computed(estimate(self.statistics(predictions, references), resamples, seed))


def as_computed(estimate: Estimate) -> dict[str, Any]:
    """A score as `evaluate` returns it: a mapping."""
    return {**vars(estimate), "interval": list(estimate.interval)}


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
