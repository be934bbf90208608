"""Entries of a YAML's lists, such as sources, tasks, gates and artefacts: one base checks them and words their faults.

An entry is a pydantic model. Where entries of one list are of several kinds, each kind is a model of its own with a
`kind: Literal[...]`, and the base of them lists these models in `alternatives`.
"""

import difflib
import json
from collections.abc import Mapping
from typing import Self, get_args

import pydantic


class Entry(pydantic.BaseModel):
    """One entry of a YAML. It takes no unknown key and no value of another type, and does not change."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True)

    @classmethod
    def parse(cls, value: object) -> Self:
        """Make an entry from what the YAML or the command line says.

        Args:
            value: A mapping, a JSON text of one, a short form that `expand` knows, or an entry, which is returned.

        Raises:
            ValueError: If the entry is not valid. The message is one line, which names the entry and the key.
        """
        if isinstance(value, cls):
            return value
        fields = cls.expand(value)
        model = cls._model_for(fields)
        try:
            return model.model_validate(dict(fields))
        except pydantic.ValidationError as error:
            raise ValueError(f"{cls.title(fields)}: {explain(error, model)}") from error

    @classmethod
    def expand(cls, value: object) -> Mapping[str, object]:
        """The mapping that a value stands for. Entries with a short form, such as a name alone, override this.

        Raises:
            ValueError: If it stands for none.
        """
        fields = value
        if isinstance(value, str) and value.lstrip().startswith("{"):
            try:
                fields = json.loads(value)
            except ValueError as error:
                raise ValueError(f"{cls.title({})}: is not valid JSON: {error}") from error
        if not isinstance(fields, Mapping):
            raise ValueError(f"{cls.title({})}: must be a mapping, not {value!r}")
        return fields

    @classmethod
    def title(cls, fields: Mapping[str, object]) -> str:
        """What messages call the entry, e.g. `source corpus.jsonl`."""
        return cls.__name__.lower()

    @classmethod
    def alternatives(cls) -> "tuple[type[Self], ...]":
        """The models of the entry's kinds, where it has several."""
        return ()

    @classmethod
    def kind_of(cls, fields: Mapping[str, object]) -> object:
        """The kind of an entry, which may be seen from its other fields where it is not given."""
        return fields.get("kind")

    @classmethod
    def _model_for(cls, fields: Mapping[str, object]) -> type[Self]:
        if not cls.alternatives():
            return cls
        models: dict[object, type[Self]] = {}
        for model in cls.alternatives():
            models |= dict.fromkeys(get_args(model.model_fields["kind"].annotation), model)
        kind = cls.kind_of(fields)
        if kind is None:
            raise ValueError(f"{cls.title(fields)}: needs 'kind', one of {', '.join(map(str, models))}")
        if kind not in models:
            close = difflib.get_close_matches(str(kind), map(str, models), n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            raise ValueError(
                f"{cls.title(fields)}: kind must be one of {', '.join(map(str, models))}, not {kind!r}{hint}"
            )
        return models[kind]

    def given(self) -> dict[str, object]:
        """The keys that the user gave, with their values, as JSON has them."""
        return self.model_dump(mode="json", exclude_unset=True)


def explain(error: pydantic.ValidationError, model: type[pydantic.BaseModel]) -> str:
    """The first fault that pydantic found, as half a sentence that names the key.

    Args:
        error: What pydantic raised.
        model: The model that was validated.
    """
    # A misspelt key is often why another one is missing.
    fault = min(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    key = ".".join(map(str, fault["loc"]))
    match fault["type"]:
        case "extra_forbidden":
            known = [field.alias or name for name, field in model.model_fields.items()]
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"it takes {', '.join(known) or 'no parameters'}"
            return f"unknown key '{key}'; {hint}"
        case "missing":
            return f"needs '{key}'"
        case "value_error":  # raised by a validator of the model itself
            return f"'{key}': {fault['ctx']['error']}" if key else str(fault["ctx"]["error"])
    # pydantic says "Input should be a valid integer, unable to parse string as an integer", among other things.
    if fault["msg"].startswith("Input should be "):
        problem = fault["msg"].removeprefix("Input should be ").partition(", unable to ")[0]
        return f"'{key}' must be {problem}, not {fault['input']!r}"
    return f"'{key}': {fault['msg'][0].lower()}{fault['msg'][1:]}, not {fault['input']!r}"
