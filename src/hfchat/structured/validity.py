"""Whether JSON is valid by a schema that somebody sent, who may have sent one that no validator gets through."""

from typing import TYPE_CHECKING, Any

from hfchat.bounded_process import BoundedProcess, ProcessStoppedError, Subject, serve
from hfchat.chat import Json

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

_TIME_LIMIT_S = 5.0
_MEMORY_BYTES = 2**28
_SHOWN = 200  # characters of what is wrong
_process = BoundedProcess("hfchat.structured.validity")


def fault_by_schema(value: object, schema: Json) -> str | None:
    """What keeps a value from being valid by a JSON schema; None for a valid one. It blocks; any thread may ask.

    Args:
        value: JSON.
        schema: By the draft that it names, or by 2020-12. References lead to places in itself.
    """
    subject = Subject(schema)
    try:
        return _process.ask(subject, _TIME_LIMIT_S, "fault", value).get("fault")
    except ProcessStoppedError as error:
        return f"the schema takes {error} to check"
    finally:
        _process.forget(subject)


def _validator(schema: Json) -> "Validator":
    from jsonschema import Draft202012Validator
    from jsonschema.validators import validator_for
    from referencing import Registry

    # Without a registry of its own, it would get what a reference names from the network.
    return validator_for(schema, default=Draft202012Validator)(schema, registry=Registry())


def _answer(validator: "Validator", method: str, value: Any) -> Json:
    from jsonschema.exceptions import best_match

    try:
        validator.check_schema(validator.schema)
        error = best_match(validator.iter_errors(value))
    except (Exception, RecursionError) as error:  # a schema that is not valid fails in ways of its own
        return {"fault": f"the schema cannot be read: {str(error).splitlines()[0]:.{_SHOWN}}"}
    if error is None:
        return {}
    place = "".join(f"[{part!r}]" for part in error.absolute_path)
    return {"fault": f"{place}: {error.message:.{_SHOWN}}" if place else f"{error.message:.{_SHOWN}}"}


if __name__ == "__main__":
    serve(_validator, _answer, _MEMORY_BYTES, _TIME_LIMIT_S)
