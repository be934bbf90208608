"""What all requests have in common: strict fields, and the error for one that is not valid.

A field that is not in a request's model is refused by name: nothing that a client asks for is ignored in silence.

pydantic notes every error of every element, field and branch of a union: 300,000 errors in two gigabytes, for a
body of a mebibyte. One error is enough to refuse a request, so lists are bounded and fail at their first error.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError, PydanticKnownError

from hfchat.chat import Json
from hfchat.serving.openai.errors import ApiError

_MAX_DEPTH = 100  # of JSON within a request
_FIELDS: set[str] = set()  # of all requests and their parts, to be told from the names of types in pydantic's errors


class StrictRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        _FIELDS.update(cls._names())

    @classmethod
    def _names(cls) -> set[str]:
        """The fields as a body names them."""
        return {field.alias or name for name, field in cls.model_fields.items()}

    @model_validator(mode="before")
    @classmethod
    def _keep_one_unknown_field(cls, given: Any) -> Any:
        """Each unknown field would be an error of its own."""
        if not isinstance(given, dict):
            return given
        known = cls._names()
        unknown = next((name for name in given if name not in known), None)
        return {name: value for name, value in given.items() if name in known or name == unknown}


def check_unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
        raise PydanticCustomError("unicode", "Input should be valid Unicode") from error
    return text


def at_most(entries: int) -> BeforeValidator:
    """Count the entries of an object before they are validated; `Field(max_length=...)` does so afterwards."""

    def check(given: Any) -> Any:
        if isinstance(given, dict) and len(given) > entries:
            counts = {"field_type": "Dictionary", "max_length": entries, "actual_length": len(given)}
            raise PydanticKnownError("too_long", counts)
        return given

    return BeforeValidator(check)


def check_json(value: Json) -> Json:
    """Refuse what Python reads as JSON and others do not, and what is nested so deep that they would give up."""
    level: list[Any] = [value]
    for _ in range(_MAX_DEPTH):
        values = [each.values() if isinstance(each, Mapping) else each for each in level]
        level = [inner for inner in chain.from_iterable(values) if isinstance(inner, dict | list)]
        if not level:
            break
    else:
        raise PydanticCustomError("depth", f"Input should be JSON of at most {_MAX_DEPTH} levels")
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        raise PydanticCustomError("unicode", "Input should be valid Unicode") from error
    except ValueError as error:
        raise PydanticCustomError("finite", "Input should be JSON, which has no NaN and no infinity") from error
    return value


Text = Annotated[str, AfterValidator(check_unicode)]
JsonObject = Annotated[Json, AfterValidator(check_json)]


def invalid_request(errors: Sequence[ErrorDetails]) -> ApiError:
    """The 400 for pydantic's list of errors: it names one field, the one that lies deepest."""
    error = max(errors, key=lambda error: len(error["loc"]))
    if error["type"] == "json_invalid":
        return ApiError(400, f"The body is not valid JSON: {error['ctx']['error']}.")
    param = _path(error["loc"][1:], unknown_field=error["type"] == "extra_forbidden")
    if error["type"] in ("extra_forbidden", "none_required"):
        return ApiError(400, f"{param}: this field is not supported.", param=param, code="unsupported_field")
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":  # of a validator over several fields, which names the one to blame itself
        param = f"{param}.{message.split(':')[0]}".removeprefix(".")
        return ApiError(400, f"{param}:{message.partition(':')[2]}", param=param)
    if not param:
        return ApiError(400, "The body must be a JSON object, sent as application/json.")
    missing = error["type"] == "missing"
    return ApiError(400, f"{param}: {message}.", param=param, code="missing_field" if missing else None)


def _path(location: Sequence[str | int], unknown_field: bool) -> str:
    """`("messages", 0, "content", "list[TextPart]", 1)` as `messages[0].content[1]`: names of types are left out."""
    path = ""
    for index, part in enumerate(location):
        if isinstance(part, int):
            path += f"[{part}]"
        elif part in _FIELDS or (unknown_field and index == len(location) - 1):
            path += f".{part}" if path else part
    return path
