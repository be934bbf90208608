"""The chain of a corpus: `steps` in the YAML, in their order, each a datatrove block with its parameters."""

import importlib
import inspect
import json
from typing import Any

from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.writers.disk_base import DiskWriter

# Name in the YAML to the block. They are imported when a chain uses them: some bring spaCy or a language model.
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


class Step(dict):
    """One step of the chain: `{name: parameters}`. In YAML it is a name, or a name with its parameters.

    Raises:
        ValueError: For a step that is not known, or a parameter that it does not take.
    """

    def __init__(self, value: dict[str, Any] | str):
        if isinstance(value, str):
            value = json.loads(value) if value.lstrip().startswith("{") else {value: None}
        if not isinstance(value, dict) or len(value) != 1:
            raise ValueError(f"each of steps is a name, or one name with its parameters, not {value!r}")
        ((name, parameters),) = value.items()
        if name not in NAMES:
            raise ValueError(f"steps: there is no step '{name}'; there are {', '.join(NAMES)}")
        if not isinstance(parameters or {}, dict):
            raise ValueError(f"steps: {name}: must be a mapping of parameters, not {parameters!r}")
        super().__init__({name: _check(name, _load(name), parameters or {})})
        self.index() if self.indexed else self.build(None)  # what the block itself has to say of its parameters

    @property
    def name(self) -> str:
        return next(iter(self))

    @property
    def parameters(self) -> dict[str, Any]:
        return self[self.name]

    @property
    def indexed(self) -> bool:
        """Whether it needs phases of its own before it can remove documents."""
        return self.name in INDEXED

    def build(self, exclusion_writer: DiskWriter | None) -> PipelineStep:
        """The datatrove block of a step that is not `indexed`.

        Args:
            exclusion_writer: Where a filter writes what it removes; formatters have none.
        """
        block = _load(self.name)
        if "exclusion_writer" in inspect.signature(block).parameters:
            return block(**self.parameters, exclusion_writer=exclusion_writer)
        return block(**self.parameters)

    def index(self) -> Any:
        """The parts of a step that is `indexed`, see `hfchat.data.deduplication`."""
        return _load(self.name)(**self.parameters)


def _load(name: str) -> Any:
    module, attribute = (BLOCKS | INDEXED)[name].split(":")
    return getattr(importlib.import_module(module), attribute)


def _check(name: str, block: Any, parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters as the block's signature has them; pydantic compares names and types."""
    import pydantic

    fields = {
        parameter.name: (_annotation(parameter), ... if parameter.default is parameter.empty else parameter.default)
        for parameter in inspect.signature(block).parameters.values()
        if parameter.name != "exclusion_writer"
    }
    model = pydantic.create_model(name, __config__=pydantic.ConfigDict(extra="forbid"), **fields)
    try:
        checked = model(**parameters)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            problem = f"unknown key '{key}'; it takes {', '.join(fields) or 'none'}"
        elif first["type"] == "missing":
            problem = f"needs '{key}'"
        else:
            problem = f"'{key}': {first['msg'].lower()}, not {first['input']!r}"
        raise ValueError(f"steps: {name}: {problem}") from error
    return {key: getattr(checked, key) for key in parameters}


def _annotation(parameter: inspect.Parameter) -> Any:
    # datatrove annotates its tables of n-grams as tuples of one entry.
    if parameter.annotation is parameter.empty or "tuple[tuple" in str(parameter.annotation):
        return Any
    return parameter.annotation
