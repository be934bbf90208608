"""What an answer may be, as a Lark grammar of llguidance (docs/syntax.md), for all engines.

JSON is written as `json.dumps` writes it, `{"a": [1, 2]}`: that is what chat templates show a model of earlier calls,
and where white space may be anything, a model that is not sure writes white space until its tokens are spent.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from hfchat.chat import Chat, Function, Json
from hfchat.response_template import CallForm, ResponseStyle, Thinking
from hfchat.structured.schemas import GrammarError, honoured

if TYPE_CHECKING:
    pass

__all__ = ["GrammarError", "answer_grammar", "bound_schemas", "json_grammar"]

_MOST_CALLS = 128  # of an answer, as many as a message of the history may have
_AS_JSON_DUMPS = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_SOME_SPACE = r"/[ \t\r\n]{1,4}/"  # between the reasoning and the answer
_SCHEMA_FIELD = "response_format.json_schema.schema"
_COMPOSED = {"allOf", "anyOf", "oneOf", "$ref", "patternProperties", "additionalProperties"}


def json_grammar(schema: Json, field: str = _SCHEMA_FIELD) -> str:
    """The grammar of JSON by a schema.

    Raises:
        GrammarError: If the schema cannot be honoured.
    """
    return _lark({"start": _json(schema, field)})


def answer_grammar(
    chat: Chat, style: ResponseStyle | None, thinking: Thinking, specials: Mapping[int, str] | None = None
) -> str | None:
    """All that the answer to a chat may be.

    Args:
        chat: With its tools and the format of its answer.
        style: How the model writes calls and reasoning; None if nobody knows.
        thinking: "open" if the prompt has opened the reasoning, "may" if the model may open it, "no" if not.
        specials: As `hfchat.token_ids.special_tokens` finds them; a grammar names them by their ids.

    Returns:
        A Lark grammar; None where the answer may be any text.

    Raises:
        GrammarError: If a schema cannot be honoured, or it is not known how this model's calls are written.
    """
    functions = chat.functions
    must_call = chat.must_call and bool(functions)
    strict = any(function.strict for function in functions)
    schema = chat.answer_schema
    if schema is None and not must_call and not strict:
        return None

    # One of these at a time: calls alone, JSON, JSON or calls, text that may end in calls.
    writer = _Writer(specials or {})
    schemas = bound_schemas(chat)
    if functions:
        form = None if style is None else style.call_form
        if form is None:
            problem = "it is not known how the calls of this model are written, so none can be forced"
            raise GrammarError(problem, _blamed(chat))
        calls = [
            f'{_head(function.name, form)} {_json(*bound)} "}}"'
            for function, bound in zip(functions, schemas, strict=False)
        ]
        writer.add_calls(form, calls, chat.parallel_tool_calls)
    if must_call:
        answer = "forced_calls"
    elif schema is not None:
        writer.rules["answer_json"] = _json(*schemas[-1])
        answer = "answer_json | forced_calls" if functions else "answer_json"
    else:
        answer = "text_and_calls"
    anchors = None if style is None else style.thinking
    writer.add_start(answer, anchors, "no" if anchors is None else thinking)
    return _lark(writer.rules)


def bound_schemas(chat: Chat) -> list[tuple[Json, str]]:
    """The schemas that bind an answer, each with its field: those of the functions' arguments, and of the answer.

    Raises:
        GrammarError: If the arguments of a function are no object.
    """
    numbers = {tool["function"]["name"]: number for number, tool in enumerate(chat.tools)}
    schemas = []
    for function in chat.functions:
        field = f"tools[{numbers[function.name]}].function.parameters"
        follows = chat.must_call or function.strict
        schemas.append((_arguments(function, field) if follows else {"type": "object"}, field))
    if chat.answer_schema is not None:
        is_object = chat.response_format is not None and chat.response_format["type"] == "json_object"
        schemas.append((chat.answer_schema, "response_format" if is_object else _SCHEMA_FIELD))
    return schemas


def _blamed(chat: Chat) -> str:
    """The field that asks for calls to be bound."""
    if chat.must_call:
        return "tool_choice"
    if chat.answer_schema is not None:
        return "response_format"
    first = next(number for number, tool in enumerate(chat.tools) if tool["function"].get("strict"))
    return f"tools[{first}].function.strict"


def _head(name: str, form: CallForm) -> str:
    """A call up to its arguments, cut where JSON is cut into lexemes: an answer may be another object instead."""
    pieces = ["{", json.dumps(form.name_key), ": ", json.dumps(name), ", ", json.dumps(form.arguments_key), ": "]
    return " ".join(map(_text, pieces))


def _arguments(function: Function, field: str) -> Json:
    """The schema of a function's arguments, which are an object in any case.

    Where the schema says nothing of further ones, none are allowed: a function has no use for them.
    """
    schema = function.parameters or {}
    types = schema.get("type", "object")
    if types != "object" and not (isinstance(types, list) and "object" in types):
        raise GrammarError("the arguments of a function are an object", f"{field}.type")
    closed = {} if schema.keys() & _COMPOSED or not schema.get("properties") else {"additionalProperties": False}
    return {**schema, "type": "object", **closed}


def _json(schema: Json, field: str) -> str:
    bound = honoured(schema, field)
    try:
        text = json.dumps({**bound, "x-guidance": _AS_JSON_DUMPS}, allow_nan=False)
    except ValueError as error:
        raise GrammarError("the schema has a number that JSON does not have (NaN or infinity)", field) from error
    return f"%json {text}"


def _text(text: str) -> str:
    return json.dumps(text)


def _lark(rules: Mapping[str, str]) -> str:
    return "%llguidance {}\n" + "".join(f"{name}: {body}\n" for name, body in rules.items())


class _Writer:
    """Writes the rules of an answer.

    Attributes:
        rules: Name and body of each; the first one is `start`.
    """

    def __init__(self, specials: Mapping[int, str]):
        self._specials = {text: id for id, text in specials.items()}
        self.rules: dict[str, str] = {"start": "", "TEXT": r"/(.|\n)*/"}

    def add_calls(self, form: CallForm, calls: Sequence[str], several: bool) -> None:
        """Rules for an answer of calls alone, and for one that has text before them or nothing but text."""
        for number, call in enumerate(calls):
            self.rules[f"call_{number}"] = call
        self.rules["call"] = " | ".join(f"call_{number}" for number in range(len(calls)))
        more = (
            f" ({self._literal(form.between)} call){{0,{_MOST_CALLS - 1}}}"
            if several and form.between is not None
            else ""
        )
        self.rules["calls"] = f"call{more} {self._literal(form.closing)}"
        self.rules["forced_calls"] = f"{self._literal(form.opening)} calls"

        # Text ends where a call begins. What begins it is sought without the white space around it, so that a model
        # that leaves that out does not slip through.
        opening = form.opening.strip()
        rest = form.opening.lstrip()[len(opening) :]
        special = self._leading_special(opening)
        if not opening:
            self.rules["ANY_TEXT"] = r"/[ \t\r\n]*([^{ \t\r\n](.|\n)*)?/"
            self.rules["text_and_calls"] = "ANY_TEXT | calls"
        elif special is not None:
            begins = f"{self._literal(special)} {self._literal(opening[len(special) :] + rest)}"
            self.rules["text_and_calls"] = f"TEXT ({begins} calls)?"
        else:
            self.rules["text_before[lazy]"] = f"ANY_TEXT {_text(opening)}"
            self.rules["ANY_TEXT"] = "TEXT"
            self.rules["text_and_calls"] = f"ANY_TEXT | text_before {self._literal(rest)} calls"

    def add_start(self, answer: str, anchors: tuple[str, str] | None, thinking: Thinking) -> None:
        """The rule for all: reasoning, where there is some, and the answer."""
        self.rules["answer"] = answer
        if anchors is None or thinking == "no":
            self.rules["start"] = "answer"
            return
        opening, closing = anchors
        special = self._leading_special(opening) == opening
        if self._leading_special(closing) == closing:
            self.rules["thoughts"] = f"TEXT {self._literal(closing)}"
        else:
            begin = "" if thinking == "open" or special else f"{_text(opening)} "
            self.rules["thoughts[lazy]"] = f"{begin}TEXT {_text(closing)}"
        self.rules["space"] = _SOME_SPACE
        if thinking == "open":
            self.rules["start"] = "thoughts space? answer"
            return
        if special:
            self.rules["start"] = f"({self._literal(opening)} thoughts space?)? answer"
            return
        if self._leading_special(closing) == closing:
            self.rules["thoughts"] = f"{_text(opening)} {self.rules['thoughts']}"
        self.rules["start"] = "(thoughts space?)? answer"
        # Text that begins with reasoning is reasoning: a call in it does not count.
        if "ANY_TEXT" in self.rules:
            self.rules["ANY_TEXT"] += f" & ~/[ \\t\\r\\n]*{_in_regex(opening)}(.|\\n)*/"

    def _leading_special(self, text: str) -> str | None:
        """The special token that a text begins with."""
        return max((token for token in self._specials if text.startswith(token)), key=len, default=None)

    def _literal(self, text: str | None) -> str:
        """A text as Lark, with its special tokens by their ids."""
        if not text:
            return ""
        if not self._specials:
            return _text(text)
        tokens = sorted(self._specials, key=len, reverse=True)
        parts = re.split("(" + "|".join(map(re.escape, tokens)) + ")", text)
        return " ".join(
            f"<[{self._specials[part]}]>" if part in self._specials else _text(part) for part in parts if part
        )


def _in_regex(text: str) -> str:
    """A text in one of Lark's regular expressions."""
    return "".join(char if char.isalnum() else f"\\x{{{ord(char):x}}}" for char in text)
