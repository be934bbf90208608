"""Records of what lm-eval logs of each document, and its aggregates as functions of sums over the documents."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from lm_eval.api import metrics
from lm_eval.api.task import ConfigurableTask

from hfchat.evaluation.bootstrap import Statistics
from hfchat.evaluation.harness import Harness, max_new_tokens
from hfchat.evaluation.task import Example, Record

GENERATE = "generate_until"

# lm-eval's aggregates that are functions of two sums over documents, of values and of their weights
# (`lm_eval/api/metrics.py`). The weight is 1 where a metric has none. Others (F1, BLEU) need all documents at once.
_OF_SUMS = {
    metrics.mean: lambda sums: sums[0] / sums[1],
    metrics.brier_score: lambda sums: sums[0] / sums[1],
    metrics.perplexity: lambda sums: math.exp(-sums[0] / sums[1]),
    metrics.weighted_perplexity: lambda sums: math.exp(-sums[0] / sums[1]),
    metrics.bits_per_byte: lambda sums: -sums[0] / sums[1] / math.log(2),
}
_MEANS = (metrics.mean, metrics.brier_score)


def metrics_of(task: ConfigurableTask) -> dict[str, str]:
    """The metrics of a task that can be resampled, named as in lm-eval's results, `exact_match,strict-match`.

    Returns:
        Each with its name without the filter.
    """
    names = [metric for metric, aggregate in task.aggregation().items() if aggregate in _OF_SUMS]
    return {f"{metric},{filter.name}": metric for metric, filter in product(names, task._filters)}


def example(task: ConfigurableTask, doc: Mapping[str, Any], place: str) -> Example:
    """Make an example of a document's own text, without worked examples."""
    question, target = task.doc_to_text(doc), task.doc_to_target(doc)
    choices = task.doc_to_choice(doc) if task.config.doc_to_choice is not None else []
    if isinstance(target, int) and choices:
        target = choices[target]
    prompt = question if isinstance(question, str) else ""
    return Example(prompt, _texts(target), [str(choice) for choice in choices], task.task_name, place=place)


def make_records(
    tasks: Sequence[ConfigurableTask], samples: Mapping[str, Sequence[Mapping[str, Any]]], harness: Harness
) -> list[Record]:
    """Make a record of each document.

    Args:
        tasks: lm-eval's own.
        samples: What `simple_evaluate` logs of each task, by its name: a sample for each document and filter.
        harness: The model that was asked.
    """
    records: list[Record] = []
    for task in tasks:
        documents = defaultdict(list)
        for sample in samples[task.task_name]:
            documents[sample["doc_id"]].append(sample)
        # Several processes log their documents one process after the other.
        for _, of_document in sorted(documents.items()):
            records.append(_record(len(records), task, of_document, harness))
    return records


def statistics(task: ConfigurableTask, key: str, records: Sequence[Record], signature: str) -> Statistics:
    """Collect a metric of `metrics_of` over the documents that have a score in it."""
    scored = [one for one in records if key in one.scores]
    items = [one.info["items"].get(key, [one.scores[key], 1.0]) for one in scored]
    aggregate = task.aggregation()[metrics_of(task)[key]]
    return Statistics(
        np.array(items, dtype=float),
        _OF_SUMS[aggregate],
        f"{key}|{signature}",
        is_mean=aggregate in _MEANS and all(weight == 1 for _, weight in items),
    )


def _record(index: int, task: ConfigurableTask, samples: Sequence[Mapping[str, Any]], harness: Harness) -> Record:
    first = samples[0]
    arguments, responses = first["arguments"], [of_request[0] for of_request in first["resps"]]
    prompt: str = arguments[0][0]
    record = Record(index, prompt, group=task.task_name)
    record.info = {"document": first["doc_id"], "cut": False}
    # What is kept of the requests depends on their kind.
    kind = task.OUTPUT_TYPE
    if kind == GENERATE:
        reply, record.info["cut"] = harness.reply(prompt, responses[0], max_new_tokens(arguments[0][1]))
        record.answer, record.answer_tokens, record.ended = reply.text, reply.tokens, reply.ended
        record.references = _texts(first["target"])
        record.info["filtered"] = {sample["filter"]: sample["filtered_resps"][0] for sample in samples}
    elif kind == "loglikelihood_rolling":
        record.prompt, record.targets, record.losses = "", [prompt], [-responses[0]]
    else:
        kind = "loglikelihood"
        sizes = [harness.sizes(context, target) for context, target in arguments]
        record.targets = [target for _, target in arguments]
        record.losses = [-likelihood for likelihood, _ in responses]
        record.target_tokens = [tokens for tokens, _ in sizes]
        record.info["cut"] = any(is_cut for _, is_cut in sizes)
    record.seconds = len(arguments) * harness.seconds.get(kind, 0.0)
    # Each filter has metrics of its own.
    items = {}
    for sample in samples:
        for metric in sample["metrics"]:
            aggregate, key = task.aggregation().get(metric), f"{metric},{sample['filter']}"
            if aggregate in _OF_SUMS:
                record.scores[key] = float(aggregate([sample[metric]]))
                items[key] = _item(sample[metric], record.scores[key])
    record.info["items"] = {key: item for key, item in items.items() if item != [record.scores[key], 1.0]}
    return record


def _item(value: Any, score: float) -> list[float]:
    """The value and the weight of a document in an aggregate, see `_OF_SUMS`."""
    if isinstance(value, int | float | np.number):
        return [float(value), 1.0]
    if len(value) == 2 and all(isinstance(part, int | float | np.number) for part in value):
        return [float(value[0]), float(value[1])]
    return [score, 1.0]


def _texts(target: Any) -> list[str]:
    return [str(text) for text in target] if isinstance(target, list) else [str(target)]
