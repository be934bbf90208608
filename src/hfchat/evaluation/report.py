"""The report of an evaluation: Markdown that reads the same on a terminal, on GitHub and in an editor."""

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from hfchat.evaluation.bootstrap import CONFIDENCE
from hfchat.evaluation.predictions import Prediction

# Metric to its name, the direction of better, and its format.
METRICS = {
    "perplexity": ("Perplexity", "↓", ".2f"),
    "bits_per_byte": ("Bits per byte", "↓", ".3f"),
    "bleu": ("BLEU", "↑", ".1f"),
    "rouge1": ("ROUGE-1", "↑", ".3f"),
    "rouge2": ("ROUGE-2", "↑", ".3f"),
    "rougeL": ("ROUGE-L", "↑", ".3f"),
    "meteor": ("METEOR", "↑", ".3f"),
    "answer_tokens": ("Answer length, tokens", "", ".1f"),
    "ended": ("Ended by themselves", "↑", ".2f"),
}

# What Markdown would take for its own: anywhere, at either end of a word, and at the start of a line.
_MARKDOWN = re.compile(r"[\\`*<>|~\[\]&]|(?<![^\W_])_|_(?![^\W_])|^\s*[-+=#]", re.MULTILINE)


def report(results: Mapping[str, Any], predictions: Mapping[str, list[Prediction]], command: str) -> str:
    """The whole report as Markdown.

    Args:
        results: What `results.json` holds.
        predictions: Of each model, in the dataset's order.
        command: The command line that made it.
    """
    dataset, generation, models = (results[key] for key in ("dataset", "generation", "models"))
    title = " against ".join(reversed(models)) if len(models) == 2 else ", ".join(models)
    sections = [
        f"# Evaluation: {title}",
        f"{dataset['n']} held-out conversations of `{dataset['path']}`, split `{dataset['split']}` "
        f"(licence: {_licences(dataset)}). Every model got the same prompts under its own chat template and answered "
        f"greedily, with at most {generation['max_new_tokens']} tokens.",
        "\n".join(_provenance(name, model) for name, model in models.items()),
        "## Result",
        verdict(results),
        table(results),
        _reading(results),
        "## How it was computed",
        "\n".join(_signatures(models)),
        "\n".join(
            f"- `{name}` generated {model['tokens_per_second']:.0f} tokens/s in batches of {generation['batch_size']} "
            f"on {generation['device']}, {generation['dtype']}."
            for name, model in models.items()
        ),
        f"```bash\n{command}\n```",
        "## Limits",
        _limits(dataset["n"]),
        "## Answers",
        *_answers(predictions),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def table(results: Mapping[str, Any]) -> str:
    """Metrics by models, with intervals, and the difference of the last model and the first: aligned Markdown."""
    models, comparison = results["models"], results["comparison"]
    rows = [["", *models]]
    if comparison:
        rows[0].append(f"{comparison['model']} - {comparison['baseline']}")
    for metric, (label, direction, form) in METRICS.items():
        scores = [_number(model["metrics"][metric], "score", form) for model in models.values()]
        if comparison:
            scores.append(_number(comparison["metrics"][metric], "difference", f"+{form}"))
        rows.append([f"{label} {direction}".strip(), *scores])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    )


def verdict(results: Mapping[str, Any]) -> str:
    """One sentence: whether the last model's answers overlap more with the references than the baseline's."""
    comparison = results["comparison"]
    if comparison is None:
        return ""
    model, baseline = comparison["model"], comparison["baseline"]
    low, high = comparison["metrics"]["rougeL"]["interval"]
    after, before = (
        _number(results["models"][name]["metrics"]["rougeL"], "score", ".2f") for name in (model, baseline)
    )
    if low <= 0 <= high:
        return (
            f"**{model} and {baseline} are not shown to differ** in how their answers overlap with the references: "
            f"ROUGE-L {after} against {before}, difference [{low:+.2f}, {high:+.2f}]."
        )
    return (
        f"**{model}'s answers overlap {'more' if low > 0 else 'less'} with the references than {baseline}'s**: "
        f"ROUGE-L {after} against {before}."
    )


def _number(estimate: Mapping[str, Any], key: str, form: str) -> str:
    low, high = estimate["interval"]
    return f"{estimate[key]:{form}} [{low:{form}}, {high:{form}}]"


def _licences(source: Mapping[str, Any]) -> str:
    return ", ".join(source["licenses"])


def _provenance(name: str, model: Mapping[str, Any]) -> str:
    line = f"- `{name}`: `{model['path']}` (licence: {_licences(model)}), chat template {model['chat_template']}"
    training = model["training"]
    if training is None:
        return f"{line}; no lineage, so what it was trained on is not known here."
    sources = "; ".join(
        f"{role} `{source['path']}` ({_licences(source)})" for role, source in training["inputs"].items()
    )
    return f"{line}; made by the stage `{training['stage']}` from {sources}."


def _reading(results: Mapping[str, Any]) -> str:
    bootstrap = results["bootstrap"]
    text = (
        f"In brackets: {CONFIDENCE:.0%} intervals of a percentile bootstrap over examples "
        f"({bootstrap['resamples']} resamples, seed {bootstrap['seed']}). "
        "↓ lower is better, ↑ higher is better."
    )
    if results["comparison"]:
        text += (
            " The last column is the paired difference, both models resampled on the same examples: they differ in a "
            "metric where its interval leaves out 0."
        )
    return text


def _signatures(models: Mapping[str, Any]) -> list[str]:
    """A line per signature; one line where all models share it."""
    lines = []
    for metric, (label, _, _) in METRICS.items():
        signatures = {name: model["metrics"][metric]["signature"] for name, model in models.items()}
        if len(set(signatures.values())) == 1:
            lines.append(f"- {label}: `{next(iter(signatures.values()))}`")
        else:
            lines += [f"- {label}, {name}: `{signature}`" for name, signature in signatures.items()]
    return lines


def _limits(n: int) -> str:
    return "\n".join(
        [
            f"- {n} examples are few. The intervals cover the choice of examples, not the choice of training seed, "
            "prompt wording or decoding.",
            "- BLEU, ROUGE and METEOR count words shared with one reference. They see neither whether another wording "
            "is right nor whether a fluent sentence is false: read the answers below.",
            "- A held-out set with the facts of the training set in other words, as the project's own "
            "`recipes/data/assistant` is, measures whether the model learned those facts, not its general ability.",
            "- Perplexity compares models of one tokenizer, under the templates named above; bits per byte compares "
            "others too.",
        ]
    )


def _answers(predictions: Mapping[str, list[Prediction]]) -> list[str]:
    sections = []
    for rows in zip(*predictions.values(), strict=True):
        sections.append(f"### {rows[0].index + 1}")
        sections += [f"**{message['role']}**\n\n{_quote(message['content'])}" for message in rows[0].prompt]
        sections.append(f"**reference**\n\n{_quote(rows[0].reference)}")
        for name, row in zip(predictions, rows, strict=True):
            cut = "" if row.ended else " (cut at the longest answer)"
            sections.append(f"**{name}**{cut}\n\n{_quote(row.prediction)}")
    return sections


def _quote(text: str) -> str:
    """A blockquote that shows `text` letter by letter: a model's Markdown must not become the report's."""
    if not text.strip():
        return "> *(nothing)*"
    literal = _MARKDOWN.sub(lambda match: f"{match[0][:-1]}\\{match[0][-1]}", text.strip())
    return "\n".join(f"> {line}".rstrip() + "\\" * breaks for line, breaks in _with_breaks(literal.splitlines()))


def _with_breaks(lines: list[str]) -> list[tuple[str, bool]]:
    """Each line, and whether a hard break (a backslash at its end) must keep the next one from joining it."""
    return [(line, bool(line.strip() and after.strip())) for line, after in pairwise([*lines, ""])]
