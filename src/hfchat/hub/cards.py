"""The cards of what is published: made of lineages and results, or as their author wrote them, and checked offline."""

import copy
import json
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from hfchat.errors import UserError
from hfchat.hub.artefacts import CARD, EVALUATION, Repository, clean_json, named_inputs
from hfchat.hub.leaks import clean_paths
from hfchat.hub.model_card import license_of_model, model_card
from hfchat.licenses import license_entry
from hfchat.lineage import ancestry
from hfchat.results import ModelResult, Results
from hfchat.templates import markdown_environment

_IN_A_CARD = "path/of/this/folder"  # what the cards of the data stage say in place of the repository
_RESULTS = ("report.md", "report.html")
_NOT_PUBLISHED = (
    "\nIn this repository are the data, this card and `lineage.json`. What was removed, and the reports that quote "
    "some of it, stayed where they were made.\n"
)


def add_card(repository: Repository, published: Mapping[str, str], *, served: str | None = None) -> None:
    """Write `README.md`, and beside it the results of the artefact's evaluation.

    Args:
        repository: Its configs have been linked.
        published: The digest of an artefact to the id of its repository.
        served: The id of the model's repository, for a Space that serves it.

    Raises:
        UserError: If the evaluation is missing or is of other models, or the card is not one that the Hub takes.
    """
    if repository.kind == "space":
        _name_model(repository, served)
    elif repository.kind == "dataset":
        _address_dataset(repository)
    elif repository.kind == "tokenizer":
        _write_tokenizer_card(repository, published)
    else:
        evaluation = repository.artefact.evaluation
        results, name = _evaluated(repository, evaluation) if evaluation else _unevaluated(repository)
        model = _linked(results.models[name], published)
        results = replace(results, models=results.models | {name: model})
        repository.write(CARD, clean_paths(str(model_card(results, name, repo_id=repository.repo_id))))
    check_card(repository)


def check_card(repository: Repository) -> None:
    """Refuse metadata that the Hub would refuse, as far as that can be told without asking it.

    Raises:
        UserError: That names the key.
    """
    from huggingface_hub import DatasetCard, ModelCard, SpaceCard
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    # The header has the keys and types that the Hub's own classes take.
    place = repository.place_of(CARD)
    kind = {"dataset": DatasetCard, "space": SpaceCard}.get(repository.repo_type, ModelCard)
    try:
        data = kind(repository.read(CARD)).data.to_dict()
    except Exception as error:  # raised by YAML, by the Hub's classes, or for their types
        raise UserError(f"{place}: its header is not a card's: {' '.join(str(error).split())[:200]}") from error
    if repository.kind == "space":
        if data.get("sdk") != "docker":
            raise UserError(f"{place}: sdk must be docker")
        return

    # Its values are among those that the Hub knows.
    licenses = _as_list(data.get("license"))
    if not licenses:
        raise UserError(f"{place}: its header names no license; add a line such as `license: cc-by-4.0`")
    for license in licenses:
        if license != "other" and license_entry([license])["license"] == "other":
            raise UserError(f"{place}: license {license} is not one of the Hub's; say `other`, and add a license_name")
    if "other" in licenses and "license_name" not in data:
        raise UserError(f"{place}: license other needs a license_name")
    for key in ("base_model", "datasets"):
        for name in _as_list(data.get(key)):
            try:
                validate_repo_id(name)
            except HFValidationError as error:
                raise UserError(f"{place}: {key} {name!r} is not the id of a repository on the Hub") from error
    for code in _as_list(data.get("language")):
        if not (isinstance(code, str) and 2 <= len(code.split("-")[0]) <= 3):
            raise UserError(f"{place}: language {code!r} is not a code such as `en`; in YAML, write 'no' in quotes")


def _evaluated(repository: Repository, evaluation: str) -> tuple[Results, str]:
    """The results, and the name in them of the model that these files are, by their content."""
    folder = Path(evaluation)
    results = Results.read("evaluation", evaluation)
    names = [name for name, model in results.models.items() if model.sha256 == repository.sha256]
    if not names:
        raise UserError(
            f"evaluation {evaluation}: none of its models ({', '.join(results.models)}) is {repository.folder} as "
            "it is now; evaluate it again, or leave evaluation out"
        )
    content = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    repository.write(f"{EVALUATION}results.json", clean_json(content))
    for report in _RESULTS:
        if (folder / report).is_file():
            repository.write(f"{EVALUATION}{report}", clean_paths((folder / report).read_text(encoding="utf-8")))
    return results, names[0]


def _unevaluated(repository: Repository) -> tuple[Results, str]:
    """What results would say of a model that took part in no task."""
    name = repository.folder.name
    config = "tokenizer_config.json"
    tokenizer = json.loads(repository.read(config)) if repository.has(config) else {}
    model = ModelResult(
        path=str(repository.folder),
        kind="adapter" if repository.kind == "adapter" else "folder",
        sha256=repository.sha256 or "",
        licenses=repository.licenses,
        dtype=None,
        # A base model has a template for those who fine-tune it, and does not answer.
        chat_template=None if repository.kind == "base" else tokenizer.get("chat_template_fingerprint"),
        parameters=_parameters(repository),
        lineage=[dict(stage) for stage in ancestry(repository.folder)],
    )
    return Results(models={name: model}, tasks={}), name


def _linked(model: ModelResult, published: Mapping[str, str]) -> ModelResult:
    """The model with inputs that are published named by their repositories."""
    model = copy.deepcopy(model)
    for stage in model.lineage:
        for source in stage["inputs"].values():
            if source["sha256"] in published:
                repo_id = published[source["sha256"]]
                source |= {"path": repo_id, "sha256": f"hub:{repo_id}"}
    return model


def _parameters(repository: Repository) -> int:
    """As they are stored, from the headers of the files: a tied weight once."""
    from safetensors import SafetensorError, safe_open

    total = 0
    for file in sorted(repository.staged.rglob("*.safetensors")):
        try:
            with safe_open(file, framework="np") as weights:
                total += sum(prod(weights.get_slice(key).get_shape()) for key in weights.keys())  # noqa: SIM118
        except SafetensorError as error:
            place = repository.place_of(file.relative_to(repository.staged).as_posix())
            raise UserError(f"{place}: is not a whole safetensors file ({error}); save it again") from error
    return total


def _write_tokenizer_card(repository: Repository, published: Mapping[str, str]) -> None:
    from huggingface_hub import ModelCardData

    from hfchat.models import load_tokenizer

    tokenizer = load_tokenizer(str(repository.folder))
    lineage = repository.lineage
    inputs = named_inputs(lineage, published) if lineage else {}
    datasets = [source["path"] for source in inputs.values() if source["sha256"] in published]
    data = ModelCardData(
        **license_of_model(repository.licenses),
        library_name="transformers",
        tags=["hfchat", "tokenizer"],
        datasets=datasets or None,
    )
    context = {
        "name": repository.repo_id.rpartition("/")[2],
        "repo_id": repository.repo_id,
        "vocab_size": len(tokenizer),
        "chat_template": tokenizer.init_kwargs.get("chat_template_fingerprint") if tokenizer.chat_template else None,
        "lineage": lineage | {"inputs": inputs} if lineage else None,
        "bytes_per_token": lineage["metrics"].get("validation_bytes_per_token") if lineage else None,
        "report": repository.has("tokenizer_report.md"),
    }
    body = markdown_environment("hfchat.hub").get_template("tokenizer_card.md.jinja").render(context)
    repository.write(CARD, clean_paths(f"---\n{data.to_yaml()}\n---\n\n{body}"))


def _address_dataset(repository: Repository) -> None:
    """A card that a stage made gets the name of the repository; one that a person wrote stays as it is."""
    if repository.lineage is None:
        return
    text = repository.read(CARD).replace(_IN_A_CARD, repository.repo_id)
    repository.write(CARD, clean_paths(text) + (_NOT_PUBLISHED if repository.left_out else ""))


def _name_model(repository: Repository, served: str | None) -> None:
    """A Space serves the model that is published with it."""
    if served is not None:
        lines = repository.read("Dockerfile").splitlines(keepends=True)
        lines = [f"ENV MODEL={served}\n" if line.startswith("ENV MODEL=") else line for line in lines]
        repository.write("Dockerfile", "".join(lines))


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
