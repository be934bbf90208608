"""From predictions to scores: every metric with its interval for each model, and the last model against the first."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hfchat.evaluation.bootstrap import Statistics, difference, estimate, mean
from hfchat.evaluation.metrics import BLEU, METEOR, ROUGE
from hfchat.evaluation.perplexity import bits_per_byte, perplexity
from hfchat.evaluation.predictions import Prediction
from hfchat.lineage import read_lineage


def measure(predictions: list[Prediction], template: str, dtype: str) -> dict[str, Statistics]:
    """Statistics of every metric of one model.

    Args:
        predictions: One per example.
        template: Fingerprint of the chat template.
        dtype: Of the weights.
    """
    answers = [prediction.prediction for prediction in predictions]
    references = [prediction.reference for prediction in predictions]
    losses = [prediction.reference_loss for prediction in predictions]
    setting = f"target:answer+end-of-turn|context:prompt|template:{template}|dtype:{dtype}"
    return {
        "perplexity": perplexity(losses, [prediction.reference_tokens for prediction in predictions], setting),
        "bits_per_byte": bits_per_byte(losses, references, setting),
        "bleu": BLEU().statistics(answers, references),
        "rouge1": ROUGE("rouge1").statistics(answers, references),
        "rouge2": ROUGE("rouge2").statistics(answers, references),
        "rougeL": ROUGE("rougeL").statistics(answers, references),
        "meteor": METEOR().statistics(answers, references),
        "answer_tokens": mean(
            [prediction.prediction_tokens for prediction in predictions], "mean|tokens of the model's own tokenizer"
        ),
        "ended": mean([prediction.ended for prediction in predictions], "share|end-of-turn before max_new_tokens"),
    }


def score(
    models: Mapping[str, dict[str, Statistics]], resamples: int, seed: int
) -> tuple[dict[str, dict[str, Any]], dict[str, Any] | None]:
    """Score each model, and compare the last with the first, the baseline.

    Returns:
        Model to metric to estimate, and `{"model", "baseline", "metrics": metric to difference}`, or None if there is
        only one model. See `bootstrap` for both.
    """
    scores = {
        name: {metric: estimate(statistics, resamples, seed) for metric, statistics in measured.items()}
        for name, measured in models.items()
    }
    names = list(models)
    if len(names) == 1:
        return scores, None
    baseline, last = names[0], names[-1]
    differences = {
        metric: difference(statistics, models[baseline][metric], resamples, seed)
        for metric, statistics in models[last].items()
    }
    return scores, {"model": last, "baseline": baseline, "metrics": differences}


def tokens_per_second(predictions: list[Prediction]) -> float:
    """Generated tokens per second of generation, over all batches."""
    return sum(prediction.prediction_tokens for prediction in predictions) / sum(
        prediction.seconds for prediction in predictions
    )


def training_of(model_path: str) -> dict[str, Any] | None:
    """What a model was made from, as its lineage says: `{"stage", "finished", "inputs"}`, or None without one.

    A stage may write several models, each a folder (`adapter`, `merged`) beside the one lineage.
    """
    lineage = read_lineage(model_path) or read_lineage(Path(model_path).parent)
    return lineage and {key: lineage[key] for key in ("stage", "finished", "inputs")}


def device_name() -> str:
    """The device that models run on, for the report."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return str(accelerator or f"CPU ({torch.get_num_threads()} threads)")
