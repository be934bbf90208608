"""The chain of a corpus: `steps` in the YAML, in their order, each a datatrove block with its parameters."""

import difflib
import importlib
import inspect
from collections.abc import Mapping
from typing import Any

import pydantic
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.writers.disk_base import DiskWriter

from hfchat.data.pieces import Blocks, Piece, Place
from hfchat.entries import Entry, explain

# Names in the YAML, and their blocks, which are imported when a chain uses them: some bring spaCy or a model.
BLOCKS = {
    "url_filter": "hfchat.data.url_filter:UrlFilter",
    "fix_text": "hfchat.data.cleaning:FixText",
    "clean_text": "hfchat.data.cleaning:CleanText",
    "quality": "hfchat.data.cleaning:QualityFilter",
    "language": "hfchat.data.language:LanguageFilter",
    "gopher_repetition": "hfchat.data.measures:GopherRepetition",
    "gopher_quality": "hfchat.data.measures:GopherQuality",
    "c4_quality": "hfchat.data.measures:C4Quality",
    "fineweb_quality": "hfchat.data.measures:FineWebQuality",
    "inappropriate": "hfchat.data.inappropriate:LexiconFilter",
    "classifier": "hfchat.data.inappropriate:ClassifierFilter",
    "pii": "hfchat.data.pii:ReplacePII",
    "count_tokens": "hfchat.data.tokens:CountTokens",
}
# Steps that need to see the whole corpus, or an index, before they can remove a document.
INDEXED = {
    "exact_dedup": "hfchat.data.deduplication:ExactDedup",
    "near_dedup": "hfchat.data.deduplication:NearDedup",
    "decontaminate": "hfchat.data.deduplication:Decontamination",
}
NAMES = [*BLOCKS, *INDEXED]


class Step(Entry):
    """One step of the chain. In YAML it is a name, or a name with its parameters: `{name: parameters}`."""

    name: str
    parameters: dict[str, Any]

    @classmethod
    def expand(cls, value: object) -> Mapping[str, object]:
        if isinstance(value, str) and not value.lstrip().startswith("{"):
            value = {value: None}
        fields = super().expand(value) if isinstance(value, str | Mapping) else {}
        if len(fields) != 1:
            raise ValueError(f"each of steps is a name, or one name with its parameters, not {value!r}")
        ((name, parameters),) = fields.items()
        return {"name": name, "parameters": {} if parameters is None else parameters}

    @classmethod
    def title(cls, fields: Mapping[str, object]) -> str:
        return f"steps: {fields['name']}" if fields.get("name") in NAMES else "steps"

    @pydantic.model_validator(mode="before")
    @classmethod
    def _check(cls, fields: dict[str, object]) -> dict[str, object]:
        name, parameters = str(fields["name"]), fields["parameters"]
        if name not in NAMES:
            close = difflib.get_close_matches(name, NAMES, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"there are {', '.join(NAMES)}"
            raise ValueError(f"there is no step '{name}'; {hint}")
        if not isinstance(parameters, Mapping):
            raise ValueError(f"must be a mapping of parameters, not {parameters!r}")
        block = _load(name)
        checked = _checked(name, block, parameters)
        try:
            block(**checked)  # what the block itself has to say of its parameters
        except ValueError as error:
            raise ValueError(str(error).removeprefix(f"{name}: ")) from error
        return {"name": name, "parameters": checked}

    def given(self) -> dict[str, Any]:
        return {self.name: self.parameters}

    def build(self, exclusion_writer: DiskWriter | None) -> PipelineStep:
        """The datatrove block of a step that is not one of `INDEXED`.

        Args:
            exclusion_writer: Where a filter writes what it removes; formatters have none.
        """
        block = _load(self.name)
        if "exclusion_writer" in inspect.signature(block).parameters:
            return block(**self.parameters, exclusion_writer=exclusion_writer)
        return block(**self.parameters)

    def piece(self, place: Place) -> Piece:
        """What the step adds to the plan of a corpus."""
        if self.name in INDEXED:
            return _load(self.name)(**self.parameters).piece(place)
        return Piece(Blocks([self.build(place.removed())], [place.removed_files]))


def _load(name: str) -> Any:
    module, attribute = (BLOCKS | INDEXED)[name].split(":")
    return getattr(importlib.import_module(module), attribute)


def _checked(name: str, block: Any, parameters: Mapping[str, object]) -> dict[str, object]:
    """The parameters as the block's signature has them; pydantic compares names and types."""
    fields: dict[str, Any] = {
        parameter.name: (_annotation(parameter), ... if parameter.default is parameter.empty else parameter.default)
        for parameter in inspect.signature(block).parameters.values()
        if parameter.name != "exclusion_writer"
    }
    model = pydantic.create_model(name, __config__=pydantic.ConfigDict(extra="forbid"), **fields)
    try:
        checked = model(**parameters)
    except pydantic.ValidationError as error:
        raise ValueError(explain(error, model)) from error
    return {key: getattr(checked, key) for key in parameters}


def _annotation(parameter: inspect.Parameter) -> Any:
    # datatrove annotates its tables of n-grams as tuples of one entry.
    if parameter.annotation is parameter.empty or "tuple[tuple" in str(parameter.annotation):
        return Any
    return parameter.annotation
