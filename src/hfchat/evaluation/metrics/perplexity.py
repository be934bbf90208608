"""Perplexity of texts as an `evaluate.Metric`."""

from typing import TYPE_CHECKING, Any

import evaluate
import numpy as np
from datasets import Features, Value

from hfchat.evaluation.bootstrap import estimate
from hfchat.evaluation.encoding import what_is_lost
from hfchat.evaluation.metrics.text_metric import as_computed
from hfchat.evaluation.perplexity import bits_per_byte, perplexity, text_losses, text_setting, window_and_stride
from hfchat.models import load_model, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_INPUTS = """
Args:
    predictions: Texts.
    model_id: Folder or Hub id of a causal language model; or give `model` and `tokenizer`.
    batch_size: Windows at a time, 16 by default; does not change the result.
    window: Tokens that the model reads at a time; by default its context, at most 2048.
    stride: How many tokens the window moves on, half of it by default.
    resamples: Bootstrap resamples where the interval has no formula, 1000 by default.
    seed: Seed of the resamples, 42 by default.

Returns:
    `{"score", "interval": [low, high], "n", "scored", "signature", "bits_per_byte", "lost", "perplexities",
    "mean_perplexity"}`. The score is over all tokens; `bits_per_byte` has a score, interval, n and signature of its
    own, and is None where the tokenizer loses a part of a text: `lost` says what, by position. `perplexities` are
    of each text, and `mean_perplexity` is their mean, as in `evaluate`'s own module: short texts, which are harder,
    weigh as much as long ones.
"""


class Perplexity(evaluate.Metric):
    """Perplexity of texts under a causal language model, each after the token that begins a document."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.__doc__,
            citation="https://doi.org/10.1121/1.2016299",
            inputs_description=_INPUTS,
            features=Features(predictions=Value("string")),
            reference_urls=["https://huggingface.co/docs/transformers/perplexity"],
        )

    def _compute(
        self,
        predictions: list[str],
        model_id: str | None = None,
        batch_size: int = 16,
        window: int | None = None,
        stride: int | None = None,
        model: "PreTrainedModel | None" = None,
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        resamples: int = 1000,
        seed: int = 42,
    ) -> dict[str, Any]:
        if (model_id is None) == (model is None) or (model is None) != (tokenizer is None):
            raise ValueError("give model_id, or model and tokenizer")
        model = model or load_model(model_id or "").eval()
        tokenizer = tokenizer or load_tokenizer(model_id or "")
        context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        window, stride = window_and_stride(context, window, stride)
        losses, tokens = text_losses(model, tokenizer, predictions, batch_size, window, stride)
        setting = text_setting(window, stride)
        of_tokens = perplexity(losses, tokens, setting)
        perplexities = of_tokens.of_examples()
        lost = {index: what for index, text in enumerate(predictions) if (what := what_is_lost(tokenizer, text))}
        of_bytes = (
            None if lost else as_computed(estimate(bits_per_byte(losses, predictions, setting), resamples, seed))
        )
        return {
            **as_computed(estimate(of_tokens, resamples, seed)),
            "bits_per_byte": of_bytes,
            "lost": lost,
            "perplexities": perplexities,
            "mean_perplexity": float(np.mean(perplexities)),
        }
