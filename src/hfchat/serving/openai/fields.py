"""What all requests have in common: strict fields, and what is said of one that is not valid.

A field that is not in a request's model is refused by name: nothing that a client asks for is ignored in silence.

pydantic notes every error of every element, field and branch of a union: 300,000 errors in two gigabytes, for a
body of a mebibyte. One error is enough to refuse a request, so lists are bounded and fail at their first error.
"""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError, PydanticKnownError

from hfchat.serving.openai.errors import ApiError

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


Text = Annotated[str, AfterValidator(check_unicode)]


def invalid_request(errors: Sequence[ErrorDetails]) -> ApiError:
    """The 400 for pydantic's list of errors: it names one field, the one that lies deepest."""
    error = max(errors, key=lambda error: len(error["loc"]))
    if error["type"] == "json_invalid":
        return ApiError(400, f"The body is not valid JSON: {error['ctx']['error']}.")
    param = _path(error["loc"][1:], unknown_field=error["type"] == "extra_forbidden")
    if error["type"] in ("extra_forbidden", "none_required"):
        return ApiError(400, f"{param}: this field is not supported.", param=param, code="unsupported_field")
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":  # of a validator over several fields, which names one itself
        return ApiError(400, message, param=message.split(":")[0])
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
