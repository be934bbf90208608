"""The strings in JSON and in conversations: what guards read, and where what they have changed goes back to.

A string that is a value may be redacted; a key, a number, or the name of a function cannot be without making something
else of the whole, so guards are shown these as names (`hfchat.safety.guards.Guards.prompt`).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic_core import from_json

from hfchat.chat import Chat, Json

Change = Callable[[str], str]
See = Callable[[str], object]

# What stands in every schema and says nothing by itself. It need not be looked at once for each schema.
_JSON_TYPES = frozenset({"array", "boolean", "integer", "null", "number", "object", "string"})
_SCHEMA_WORDS = frozenset(
    {"additionalProperties", "anyOf", "default", "description", "enum", "items", "parameters", "properties"}
    | {"required", "schema", "strict", "title", "type"}
)


class Strings:
    """The strings that were found, each once.

    Attributes:
        texts: What may become something else.
        names: What may not.
    """

    def __init__(self, walk: Callable[[Change, See], object]):
        """
        Args:
            walk: Shows each string to one of two functions.
        """
        found: dict[str, None] = {}
        names: dict[str, None] = {}

        def keep(text: str) -> str:
            found[text] = None
            return text

        walk(keep, lambda name: names.setdefault(name))
        self.texts = list(found)
        self.names = list(names)

    def change_to(self, texts: Sequence[str]) -> Change:
        """What gives for each of `texts` the one at its place here."""
        return dict(zip(self.texts, texts, strict=True)).__getitem__


def ignore(name: str) -> None: ...


def map_json(value: Any, text: Change, name: See, number: See) -> Any:
    """JSON with each string that is a value changed; keys and numbers are only shown."""
    if isinstance(value, str):
        return text(value)
    if isinstance(value, Mapping):
        for key in value:
            name(key)
        return {key: map_json(inner, text, name, number) for key, inner in value.items()}
    if isinstance(value, list):
        return [map_json(inner, text, name, number) for inner in value]
    # A card or phone number may be written without quotes.
    if isinstance(value, int | float) and not isinstance(value, bool):
        number(str(value))
    return value


def map_written(written: str, text: Change, name: See) -> str:
    """As `map_json`, of JSON as it is written. What is not JSON, because it broke off, is only shown."""
    try:
        value = from_json(written)
    except ValueError:
        name(written)
        return written
    mapped = map_json(value, text, name, number=name)
    return written if mapped == value else json.dumps(mapped, ensure_ascii=False)


def map_chat(chat: Chat, text: Change, name: See) -> Chat:
    """A chat with each text of it changed: those of its messages, tools, answer's schema and template options."""
    # All that a client can write, in the order in which a template shows it.
    messages = [_map_message(message, text, name) for message in chat.messages]
    tools = [{**tool, "function": _map_declared(tool["function"], text, name)} for tool in chat.tools]
    response_format = chat.response_format
    if response_format is not None and "json_schema" in response_format:
        schema = _map_declared(response_format["json_schema"], text, name)
        response_format = {**response_format, "json_schema": schema}
    options = map_json(chat.template_options, text, name, number=name)
    return replace(chat, messages=messages, tools=tools, response_format=response_format, template_options=options)


def _map_message(message: Json, text: Change, name: See) -> Json:
    mapped = dict(message)
    for field in ("content", "reasoning_content"):
        if field in message:
            mapped[field] = text(message[field])
    if "tool_calls" in message:
        mapped["tool_calls"] = [_map_call(call, text, name) for call in message["tool_calls"]]
    return mapped


def _map_call(call: Json, text: Change, name: See) -> Json:
    function = call["function"]
    name(function["name"])
    arguments = map_json(function["arguments"], text, name, number=name)
    return {**call, "function": {**function, "arguments": arguments}}


def _map_declared(declared: Json, text: Change, name: See) -> Json:
    """A function or an answer's schema: its name stays. The numbers in a schema are limits."""
    name(declared["name"])

    def text_of_schema(value: str) -> str:
        return value if value in _JSON_TYPES else text(value)

    def name_of_schema(key: str) -> None:
        if key not in _SCHEMA_WORDS:
            name(key)

    described = {key: value for key, value in declared.items() if key != "name"}
    return {"name": declared["name"], **map_json(described, text_of_schema, name_of_schema, number=ignore)}
