"""JSON that a model wrote: is it what was wanted, and is it valid by a schema?"""

import json
import unicodedata
from collections.abc import Mapping
from typing import Any

from hfchat.chat import Json


def normalized(value: Any) -> Any:
    """JSON in a form in which values are equal that mean the same.

    - Objects: the order of keys does not count.
    - Numbers: by value, so that 1 is 1.0 and 1e0; but true is not 1, and "1" is not 1.
    - Texts, and keys: in Unicode's composed form (NFC). Case and white space count.
    - Lists: order counts. A null is not a missing key.
    """
    if isinstance(value, str):
        return unicodedata.normalize("NFC", value)
    if isinstance(value, bool):
        return "bool", value  # Python has True == 1
    if isinstance(value, Mapping):
        return {unicodedata.normalize("NFC", key): normalized(item) for key, item in value.items()}
    return list(map(normalized, value)) if isinstance(value, list) else value


def read_json(text: str) -> Any:
    """What a text says as JSON, white space around it aside; `...` (Python's Ellipsis) if it is no JSON."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return ...


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def is_valid(text: str, schema: Json | None) -> bool:
    """Whether a text is JSON, and valid by a schema (draft 2020-12, unless it names another one); None allows all.

    Keys that the schema does not name are allowed unless it says otherwise. `format` is not checked.
    """
    from jsonschema import Draft202012Validator
    from jsonschema.validators import validator_for

    # A schema without a draft of its own is read by the newest one, as OpenAI's API does.
    value = read_json(text)
    if value is ...:
        return False
    return schema is None or validator_for(schema, default=Draft202012Validator)(schema).is_valid(value)
