"""The model card: what a model was made of and for, how it was evaluated, and what is not known of it."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfchat.licenses import license_entry
from hfchat.models import BUNDLED, BUNDLED_ON_HUB
from hfchat.results import Comparison, ModelResult, Results
from hfchat.templates import add_figures, markdown_environment, shown_paths

if TYPE_CHECKING:
    import jinja2
    from huggingface_hub import EvalResult, ModelCard

# Metrics to their names on the Hub, https://huggingface.co/metrics; the others have none there.
_HUB_METRICS = {
    **dict.fromkeys(("rouge1", "rouge2", "rougeL", "rougeLsum"), "rouge"),
    **{name: name for name in ("bleu", "chrf", "meteor", "perplexity", "exact_match")},
    **dict.fromkeys(("acc", "acc_norm"), "accuracy"),
}
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# Identification of languages errs on short texts: one of fewer documents may not be there at all.
_LANGUAGE_SHARE = 0.01
_OF_TRAINING = ("pretrain", "finetune", "align")
_NO_DATA = ("model", "tokenizer")  # roles of inputs


@dataclass(frozen=True)
class Footprint:
    """What a person states of the machine, so that time becomes energy, carbon and money.

    Attributes:
        watts: What all devices of the training draw together; None if it is not known.
        source: Where that number is from: `"TDP of 8 x H100 SXM, NVIDIA's data sheet"`.
        grams_per_kwh: CO2 per energy of the grid.
        grid: Where that number is from.
        price_per_hour: Price of the machine; None if it is not known.
        currency: Currency of the price.
    """

    watts: float | None = None
    source: str = ""
    grams_per_kwh: float = 436.0
    grid: str = "the world's average of 2022, Ember, Global Electricity Review 2023"
    price_per_hour: float | None = None
    currency: str = "USD"

    def kwh(self, seconds: float) -> float | None:
        return None if self.watts is None else self.watts * seconds / 3.6e6

    def kilograms(self, seconds: float) -> float | None:
        """CO2 of the energy: Lacoste et al., "Quantifying the Carbon Emissions of Machine Learning" (1910.09700)."""
        kwh = self.kwh(seconds)
        return None if kwh is None else kwh * self.grams_per_kwh / 1000

    def cost(self, seconds: float) -> float | None:
        return None if self.price_per_hour is None else self.price_per_hour * seconds / 3600


def model_card(
    results: Results,
    model_name: str,
    *,
    repo_id: str | None = None,
    footprint: Footprint | None = None,
) -> "ModelCard":
    """The card of one of the models of an evaluation.

    What the results do not say is "unknown" in its text and left out of its metadata. `ModelCard.validate` asks the
    Hub whether it takes the metadata, which needs a network.

    Args:
        results: What the evaluation measured.
        model_name: One of its `models`.
        repo_id: Where the model will be on the Hub.
        footprint: What its training took.
    """
    from huggingface_hub import ModelCard, ModelCardData

    model = results.models[model_name]
    base = _base_model(model)
    datasets = sorted(
        {source["path"] for role, source in _raw_sources(model) if role not in _NO_DATA and _is_hub_id(source)}
    )
    evaluations = list(_evaluations(results, model_name))
    is_adapter = model.kind == "adapter"

    # The header, by which the Hub finds the model; then the text, for people.
    data = ModelCardData(
        **license_of_model(model.licenses),
        language=_languages(model) or None,
        base_model=base,
        base_model_relation=None if base is None else "adapter" if is_adapter else "finetune",
        datasets=datasets or None,
        library_name=None if model.kind == "remote" else "peft" if is_adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["hfchat", *(["conversational"] if model.chat_template else [])],
        metrics=sorted({one.metric_type for one in evaluations} & {*_HUB_METRICS.values()}) or None,
        model_name=(repo_id or model_name) if evaluations else None,
        eval_results=evaluations or None,
    )
    context = {
        "name": (repo_id or model_name).rpartition("/")[2],
        "repository": repo_id or "path/of/the/model",
        "model_name": model_name,
        "model": model,
        "results": results,
        "base": base,
        "bundled": any((stage.get("config") or {}).get("model_name_or_path") == BUNDLED for stage in model.lineage),
        "languages": _languages(model),
        "sources": _raw_sources(model),
        "tasks": {name: task for name, task in results.tasks.items() if model_name in task.scores},
        "comparisons": _comparisons(results, model_name),
        "seconds": sum(stage["duration_s"] for stage in model.lineage),
        "trained": any(stage["stage"] in _OF_TRAINING for stage in model.lineage),
        "footprint": footprint or Footprint(),
        "command": shown_paths(results.command),
    }
    body = _environment().get_template("model_card.md.jinja").render(context)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}")


def write_cards(results: Results, folder: Path, footprint: Footprint | None = None) -> None:
    """Write `<name>.md` for every model of an evaluation."""
    for name in results.models:
        model_card(results, name, footprint=footprint).save(folder / f"{name}.md")


def _evaluations(results: Results, model_name: str) -> Iterator["EvalResult"]:
    """The entries of `model-index`. A score that is not a number is left out."""
    from huggingface_hub import EvalResult

    for name, task in results.tasks.items():
        dataset = task.dataset
        is_on_hub = dataset is not None and _is_hub_id(vars(dataset))
        for metric, estimate in task.scores.get(model_name, {}).items():
            if not math.isfinite(estimate.score):
                continue
            yield EvalResult(
                task_type="text-generation",
                task_name=task.title,
                dataset_type=dataset.path if dataset and is_on_hub else name,
                dataset_name=Path(dataset.path).name if dataset else task.title,
                dataset_split=dataset.split if dataset else None,
                metric_type=_HUB_METRICS.get(metric, metric),
                metric_name=task.metrics[metric].label,
                metric_value=_rounded(estimate.score),
                metric_args={
                    "signature": estimate.signature,
                    "n": estimate.n,
                    "interval": [_rounded(end) for end in estimate.interval],
                },
            )


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _comparisons(results: Results, model_name: str) -> dict[str, Comparison]:
    """Task to what the comparison of the model with the baseline says."""
    found = {name: task.comparison(model_name) for name, task in results.tasks.items()}
    return {name: comparison for name, comparison in found.items() if comparison is not None}


def _base_model(model: ModelResult) -> str | None:
    """The Hub id of what training began with, if it is one."""
    for stage in reversed(model.lineage):
        if stage["stage"] in _OF_TRAINING and "model" in stage["inputs"]:
            source = stage["inputs"]["model"]
            if _is_hub_id(source):
                return source["path"]
            given = (stage.get("config") or {}).get("model_name_or_path")
            return BUNDLED_ON_HUB if given == BUNDLED else None
    return None


def _raw_sources(model: ModelResult) -> list[tuple[str, Mapping[str, Any]]]:
    """Roles and inputs that no stage of the lineage has made, from the raw data on."""
    made = {Path(stage["path"]).absolute() for stage in model.lineage}
    sources = {}
    for stage in reversed(model.lineage):
        for role, source in stage["inputs"].items():
            path = Path(source["path"]).absolute()
            if not made & {path, path.parent}:  # a stage may have several outputs in one folder
                sources[role, source["path"]] = source
    return [(role, source) for (role, _), source in sources.items()]


def _is_hub_id(source: Mapping[str, Any]) -> bool:
    return "hub:" in source.get("sha256", "") and bool(_HUB_ID.fullmatch(source["path"]))


def _languages(model: ModelResult) -> list[str]:
    """Codes of the languages that a stage found in its data."""
    found: dict[str, int] = {}
    for stage in model.lineage:
        for code, documents in ((stage.get("metrics") or {}).get("languages") or {}).items():
            found[code] = found.get(code, 0) + documents
    return sorted(code for code, documents in found.items() if documents >= _LANGUAGE_SHARE * sum(found.values()))


def license_of_model(licenses: Sequence[str]) -> dict[str, Any]:
    """The entry of a model, which has one licence or a name for several, unlike that of a dataset."""
    entry = license_entry(["unknown" if license == "see the Hub" else license for license in licenses])
    if isinstance(entry["license"], list):
        return {"license": "other", "license_name": "several"}
    return entry


def _environment() -> "jinja2.Environment":
    environment = add_figures(markdown_environment("hfchat.hub"))
    environment.filters |= {
        "duration": lambda seconds: f"{seconds / 3600:,.2f} h" if seconds >= 360 else f"{seconds:.0f} s",
        "licences": lambda licenses: ", ".join(licenses) or "unknown",
    }
    return environment
