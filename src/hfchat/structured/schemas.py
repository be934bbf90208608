"""JSON schemas as llguidance honours them: whole, or not at all.

llguidance refuses most of what it does not implement, but not all of it (1.9.1, parser/src/json/schema.rs): keywords
that no draft has or that only other drafts have, `format` beside a type that is no string, numbers that float64
rounds, and the count of `minProperties` where a key may be written twice. Each of them is refused here by its name.
Keywords that only tell a reader something are left out, and so are definitions that nothing refers to. A keyword that
looks like a misspelt one is refused.
"""

import difflib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hfchat.chat import Json

# A schema that a person wrote has some hundreds of places; one with more of them is for a compiler to choke on.
_MOST_PLACES = 10_000  # schemas and values in one schema
_MOST_LEVELS = (
    60  # of schemas in schemas, and of JSON in `enum` and `const`; llguidance's own parser reads 128 of JSON
)
_MOST_CHARACTERS = 200_000  # of all its strings together
_MOST_REPEATS = 100_000  # in minLength, maxItems and the like
_EXACT = 2**53  # up to here float64, which llguidance counts in, has every integer

_DRAFTS = re.compile(r"https?://json-schema\.org/(draft/2020-12|draft/2019-09|draft-07|draft-06|draft-04)/schema#?")
_OLD_DRAFTS = ("draft/2019-09", "draft-0")

# What is said to a reader and never to a validator (JSON Schema 2020-12 and the drafts before it).
_ANNOTATIONS = {
    "$comment",
    "$schema",  # read at the root
    "$id",  # as `$schema`
    "id",
    "$anchor",  # a reference to one is refused
    "$defs",  # read where something refers to them
    "definitions",
    "title",
    "description",
    "default",
    "deprecated",
    "readOnly",
    "writeOnly",
    "example",
    "examples",
    "contentEncoding",
    "contentMediaType",
    "contentSchema",
}
# What binds a value by some draft, or by OpenAPI, and cannot be honoured.
_BINDING = {
    "not",
    "if",
    "then",
    "else",
    "contains",
    "minContains",
    "maxContains",
    "uniqueItems",
    "propertyNames",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "unevaluatedItems",
    "unevaluatedProperties",
    "$dynamicRef",
    "$recursiveRef",
    "divisibleBy",
    "disallow",
    "extends",
    "nullable",
    "x-guidance",  # llguidance's own
}
# Where these ask for nothing.
_HARMLESS: dict[str, list[object]] = {
    "uniqueItems": [False],
    "unevaluatedItems": [True, {}],
    "unevaluatedProperties": [True, {}],
    "propertyNames": [True, {}],
    "dependencies": [{}],
    "dependentRequired": [{}],
    "dependentSchemas": [{}],
    "nullable": [False],
}
_ONE_SCHEMA = {"items", "additionalItems", "additionalProperties"}
_SCHEMAS = {"anyOf", "oneOf", "allOf", "prefixItems"}
_NAMED_SCHEMAS = {"properties", "patternProperties"}
_NUMBERS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
_COUNTS = {"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"}
_PLAIN = {"type", "required", "pattern", "format", "enum", "const", "$ref"}
_HONOURED = _ONE_SCHEMA | _SCHEMAS | _NAMED_SCHEMAS | _NUMBERS | _COUNTS | _PLAIN
_SPELLINGS = {keyword.lower(): keyword for keyword in _HONOURED | _BINDING}
_SIMILAR = 0.85  # of two words, by difflib's ratio
_MOST_UNKNOWN = 200  # different keywords of nobody's
_FORMATS = {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"}
# Rust's regular expressions read these in another way than ECMAScript's, which JSON Schema means.
_OTHER_IN_RUST = re.compile(r"\\[AzZ<>]|\\b\{|\(\?[a-zA-Z]*x|\[[^\]\\]*(?:\\.[^\]\\]*)*(?:&&|--|~~|\[)")

_PARTS = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]|\(\?[^:)]*[:)]?|\{(?P<least>\d+)(?:,(?P<most>\d*))?\}|.", re.DOTALL)
_TYPES = {"null", "boolean", "integer", "number", "string", "array", "object"}


def _are_strings(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


_TAKES: dict[str, Callable[[Any], bool]] = {
    "type": lambda value: set([value] if isinstance(value, str) else value if _are_strings(value) else [""]) <= _TYPES,
    "required": _are_strings,
    "pattern": lambda value: isinstance(value, str),
    "format": lambda value: isinstance(value, str),
    "enum": lambda value: isinstance(value, list) and bool(value),
}


class GrammarError(ValueError):
    """An answer cannot be bound to this. The message says why.

    Attributes:
        field: The field of the request that is to blame, `response_format.json_schema.schema`.
    """

    def __init__(self, message: str, field: str):
        super().__init__(message)
        self.field = field


def honoured(schema: Json, field: str) -> Json:
    """A schema with all that binds an answer, and nothing else.

    Args:
        schema: One of any draft from 4 to 2020-12.
        field: Where it stands in the request.

    Returns:
        A schema of draft 2020-12 (with the array of `items` that older drafts have), its references as `#/$defs/0`.

    Raises:
        GrammarError: If it is too large, or asks for something that cannot be honoured. Names the keyword.
    """
    return _Reader(schema, field).read()


class _Reader:
    """Reads one schema; counts what it has read, so that none takes long."""

    def __init__(self, root: Json, field: str):
        self._root = root
        self._field = field
        self._places = 0
        self._characters = 0
        self._unknown: set[str] = set()  # keywords
        self._names: dict[str, str] = {}  # of the references that have been met: their names in the result
        draft = root.get("$schema", "http://json-schema.org/draft/2020-12/schema")
        known = _DRAFTS.fullmatch(draft) if isinstance(draft, str) else None
        if known is None:
            raise self._error("", f"$schema is {_shown(draft)}; known are the drafts 4, 6, 7, 2019-09, 2020-12")
        self._old = known[1].startswith(_OLD_DRAFTS)

    def read(self) -> Json:
        result = self._schema(self._root, "", 0)
        definitions: dict[str, object] = {}
        while len(definitions) < len(self._names):  # a definition may refer to further ones
            reference, name = list(self._names.items())[len(definitions)]
            definitions[name] = self._schema(self._target(reference), reference, 0)
        return {**result, "$defs": definitions} if definitions else result

    def _error(self, place: str, problem: str) -> GrammarError:
        where = f"{place.removeprefix('#').lstrip('/')[:200]}: " if place.strip("#/") else ""
        return GrammarError(where + problem, self._field)

    def _count(self, value: object, place: str, level: int) -> None:
        self._places += 1
        self._characters += len(value) if isinstance(value, str) else 0
        if self._places > _MOST_PLACES:
            raise self._error("", f"the schema has more than {_MOST_PLACES} schemas and values")
        if self._characters > _MOST_CHARACTERS:
            raise self._error("", f"the strings of the schema have more than {_MOST_CHARACTERS} characters")
        if level > _MOST_LEVELS:
            raise self._error(place[:40], f"it is nested in more than {_MOST_LEVELS} levels")

    def _schema(self, schema: object, place: str, level: int) -> Any:
        self._count(None, place, level)
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            raise self._error(place, f"a schema is an object, true or false, not {_shown(schema)}")
        if place and "$id" in schema and not schema.keys() <= _ANNOTATIONS:
            raise self._error(place, "$id is honoured at the root of a schema only; take it out")
        result: dict[str, object] = {}
        for keyword, value in schema.items():
            self._count(keyword, place, level)
            if not self._only_tells(keyword, value, place):
                result[keyword] = self._keyword(keyword, value, place, level)
        self._check_together(schema, place)
        return result

    def _only_tells(self, keyword: str, value: object, place: str) -> bool:
        if keyword in _HONOURED:
            return False
        if keyword in _BINDING:
            return any(type(value) is type(harmless) and value == harmless for harmless in _HARMLESS.get(keyword, []))
        if keyword not in _ANNOTATIONS and keyword not in self._unknown:
            # A keyword that nobody knows binds nothing, by JSON Schema. One that is misspelt was meant to.
            close = difflib.get_close_matches(keyword[:40].lower(), _SPELLINGS, 1, _SIMILAR)
            if close and keyword[:1].isalpha() and not keyword.startswith("x-"):
                meant = _SPELLINGS[close[0]]
                raise self._error(place, f"the keyword {keyword[:40]!r} is unknown; is {meant!r} meant?")
            self._unknown.add(keyword)
            if len(self._unknown) > _MOST_UNKNOWN:
                raise self._error("", f"the schema has more than {_MOST_UNKNOWN} unknown keywords")
        return True

    def _keyword(self, keyword: str, value: Any, place: str, level: int) -> Any:
        """The value of a keyword in the result."""
        below = f"{place}/{keyword}"
        if keyword in _NAMED_SCHEMAS:
            named = self._of_type(value, dict, below).items()
            return {
                name: self._schema(inner, f"{below}/{name}", level + 1) for name, inner in self._counted(named, below)
            }
        if keyword in _SCHEMAS or (keyword == "items" and isinstance(value, list)):
            schemas = enumerate(self._of_type(value, list, below))
            return [self._schema(inner, f"{below}/{number}", level + 1) for number, inner in schemas]
        if keyword in _ONE_SCHEMA:
            return self._schema(value, below, level + 1)
        if keyword == "$ref":
            return self._reference(value, place)
        if keyword in _NUMBERS | _COUNTS:
            return self._number(keyword, value, below)
        if keyword in _BINDING:
            raise self._error(place, f"the keyword {keyword!r} cannot be honoured; take it out")

        # The values of `enum` and `const`, and what is plain.
        if keyword in _TAKES and not _TAKES[keyword](value):
            raise self._error(below, f"it is {_shown(value)}, which the keyword does not take")
        for inner, depth in _values(value):
            self._count(inner, below, level + depth)
            if isinstance(inner, int) and abs(inner) > _EXACT:
                raise self._error(
                    below, f"the number {str(inner)[:40]} is beyond 2**53 and cannot be honoured exactly"
                )
        if keyword == "pattern":
            self._check_pattern(value, below)
        return value

    def _counted(self, items: Any, place: str) -> Iterator[tuple[str, object]]:
        """Names with their schemas; the names count as well."""
        for name, inner in items:
            self._count(name, place, 0)
            if place.endswith("/patternProperties"):
                self._check_pattern(name, place)
            yield name, inner

    def _of_type(self, value: Any, type_: type, place: str) -> Any:
        if not isinstance(value, type_):
            raise self._error(place, f"it is {_shown(value)}, which the keyword does not take")
        return value

    def _number(self, keyword: str, value: object, place: str) -> object:
        if isinstance(value, bool) and keyword.startswith("exclusive"):
            return value  # as draft 4 has it
        if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > _EXACT:
            raise self._error(place, f"it is {_shown(value)}, and not a number up to 2**53")
        if keyword in _COUNTS:
            if value < 0 or value != int(value) or value > _MOST_REPEATS:
                raise self._error(place, f"it is {value}, and not an integer from 0 to {_MOST_REPEATS}")
            return int(value)
        return value

    def _check_pattern(self, pattern: str, place: str) -> None:
        if _OTHER_IN_RUST.search(pattern):
            problem = f"the regular expression {pattern[:100]!r} cannot be honoured as ECMAScript reads it"
            raise self._error(place, problem)
        if _written_out(pattern) > _MOST_REPEATS:
            problem = f"the regular expression {pattern[:100]!r} has more than {_MOST_REPEATS} parts with its repeats"
            raise self._error(place, problem)

    def _check_together(self, schema: Json, place: str) -> None:
        """Refuse what llguidance leaves out because of what stands beside it."""
        form = schema.get("format")
        if form is not None and (form not in _FORMATS or "string" not in _types(schema)):
            kind = "a string " if "string" in _types(schema) else "another type "
            raise self._error(place, f"the format {_shown(form)} of {kind}cannot be honoured; take it out")
        if "additionalItems" in schema and not isinstance(schema.get("items"), list):
            raise self._error(place, "additionalItems means nothing without an array of items; take it out")
        if "prefixItems" in schema and (self._old or isinstance(schema.get("items"), list)):
            raise self._error(place, "prefixItems is of draft 2020-12, and this schema is of an older one")
        # A key beyond `properties` may be written twice, and then counts only once.
        least = schema.get("minProperties", 0)
        if least > 1 and least > len(schema.get("required", [])):
            raise self._error(place, "minProperties above 1 cannot be honoured, unless as many are required")

    def _reference(self, reference: object, place: str) -> str:
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
            problem = f"the reference {_shown(reference)} leads out of the schema; only #/... can be followed"
            raise self._error(place, problem)
        return f"#/$defs/{self._names.setdefault(reference, str(len(self._names)))}"

    def _target(self, reference: str) -> object:
        target: Any = self._root
        for step in reference.split("/")[1:]:
            name = _unquoted(step).replace("~1", "/").replace("~0", "~")
            try:
                target = target[int(name)] if isinstance(target, list) else target[name]
            except (KeyError, IndexError, ValueError, TypeError):
                raise self._error("", f"the reference {reference[:100]!r} leads nowhere") from None
        return target


def _shown(value: object) -> str:
    """A value in a message, which may be of any size and depth."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    if isinstance(value, int) and abs(value) > _EXACT:
        return "a number beyond 2**53"
    return json.dumps(value[:100] if isinstance(value, str) else value)


def _written_out(pattern: str) -> int:
    """How many characters and classes a regular expression has when its repeats are written out, about."""
    sizes, last = [0], 0  # of the groups that are open; of what a repeat would stand behind
    for part in _PARTS.finditer(pattern):
        if part[0].startswith("("):
            sizes.append(0)
        elif part[0] == ")" and len(sizes) > 1:
            last = sizes.pop()
            sizes[-1] += last
        elif part["least"]:
            times = max(int((part["most"] or part["least"])[:9]), 1)
            sizes[-1] += last * (times - 1)
            last *= times
        elif part[0] not in "*+?":
            sizes[-1], last = sizes[-1] + 1, 1
    return sum(sizes)


def _unquoted(step: str) -> str:
    return re.sub(
        "(?:%[0-9a-fA-F]{2})+", lambda match: bytes.fromhex(match[0].replace("%", "")).decode(errors="replace"), step
    )


def _types(schema: Json) -> Sequence[str]:
    types = schema.get("type", ["string"])
    return [types] if isinstance(types, str) else types


def _values(value: Any) -> Iterator[tuple[Any, int]]:
    """A value and all that is in it, each with its depth; never a recursion."""
    waiting = [(value, 0)]
    while waiting:
        inner, depth = waiting.pop()
        yield inner, depth
        if isinstance(inner, dict):
            waiting += [(key, depth + 1) for key in inner] + [(each, depth + 1) for each in inner.values()]
        elif isinstance(inner, list):
            waiting += [(each, depth + 1) for each in inner]
