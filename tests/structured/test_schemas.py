"""A schema is honoured whole or refused by name: what a validator asks for, the mask demands."""

import json
import random

import jsonschema
import pytest

from hfchat.structured.grammars import GrammarError, json_grammar
from hfchat.structured.masks import MatcherError
from hfchat.structured.schemas import honoured
from tests.structured.conftest import is_allowed


def answers(compiler, tokenizer, schema, count, most=300):
    """Answers of random tokens that the mask lets through; those that end in time."""
    generator = random.Random(0)
    for _ in range(count):
        matcher, tokens = compiler.matcher(json_grammar(schema)), []
        while len(tokens) < most:
            allowed = matcher.allowed().nonzero().squeeze(-1).tolist()
            ending = tokenizer.eos_token_id in allowed
            token = tokenizer.eos_token_id if ending and generator.random() < 0.5 else generator.choice(allowed)
            if token == tokenizer.eos_token_id:
                yield tokenizer.decode(tokens)
                break
            tokens.append(token)
            matcher.accept(token)


PERSON = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "title": "A person",
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 5, "description": "as written"},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["a", 1, None]}, "maxItems": 2, "uniqueItems": False},
        "friend": {"$ref": "#/definitions/a~1b%20c"},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
    "definitions": {"a/b c": {"type": ["object", "null"], "maxProperties": 0}, "unused": {"not": {}}},
}


@pytest.mark.parametrize(
    "schema",
    [
        PERSON,
        {"type": "array", "items": [{"type": "boolean"}, {"const": 2.5}], "additionalItems": False, "minItems": 2},
        {"prefixItems": [{"type": "boolean"}], "items": False, "type": "array"},
        {"type": "object", "patternProperties": {"^x[0-9]$": {"type": "null"}}, "additionalProperties": False},
        {"type": "string", "pattern": "^(ab|c){1,3}$"},
        {"type": "number", "minimum": 1, "exclusiveMaximum": 2.5, "multipleOf": 0.5},
        {"type": "number", "minimum": 1, "exclusiveMinimum": True, "maximum": 4},
        {"oneOf": [{"type": "integer", "maximum": 9, "minimum": 0}, {"type": "string", "maxLength": 2}]},
        {"allOf": [{"required": ["a"]}, {"properties": {"a": {"type": "null"}}, "additionalProperties": False}],
         "type": "object"},
        {"$ref": "#/$defs/list", "$defs": {"list": {"type": "array", "maxItems": 1, "items": {"$ref": "#"}}}},
        {"type": "string", "format": "uuid"},
        {"type": "object", "properties": {"$ref": {"type": "null"}, "not": {"type": "null"}}, "minProperties": 1,
         "additionalProperties": False},
    ],
)  # fmt: skip
def test_what_the_mask_lets_through_is_valid(compiler, tokenizer, schema):
    validator = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
    if isinstance(schema.get("exclusiveMinimum"), bool):
        validator = jsonschema.Draft4Validator
    if isinstance(schema.get("items"), list):
        validator = jsonschema.Draft7Validator
    found = list(answers(compiler, tokenizer, schema, 20))
    assert found
    for text in found:
        validator(schema).validate(json.loads(text))


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"not": {}}, "'not'"),
        ({"type": "array", "uniqueItems": True}, "'uniqueItems'"),
        ({"type": "array", "contains": {}}, "'contains'"),
        ({"if": {}}, "'if'"),
        ({"propertyNames": {"maxLength": 3}}, "'propertyNames'"),
        ({"dependentRequired": {"a": ["b"]}}, "'dependentRequired'"),
        ({"dependencies": {"a": ["b"]}}, "'dependencies'"),
        ({"unevaluatedProperties": False}, "'unevaluatedProperties'"),
        ({"$dynamicRef": "#a"}, "dynamicRef"),
        ({"$recursiveRef": "#"}, "recursiveRef"),
        # llguidance leaves these out without a word
        ({"type": "string", "minlength": 3}, "'minLength' meant"),
        ({"additonalProperties": False}, "'additionalProperties' meant"),
        ({"dependentrequired": {}}, "'dependentRequired' meant"),
        ({f"own {number}": 1 for number in range(300)}, "200 unknown"),
        ({"divisibleBy": 3}, "'divisibleBy'"),
        ({"extends": {}}, "'extends'"),
        ({"nullable": True}, "'nullable'"),
        ({"type": "integer", "format": "int32"}, "int32"),
        ({"type": "string", "format": "unknown"}, "unknown"),
        ({"enum": [2**53 + 1]}, "2\\*\\*53"),
        ({"maximum": 2**60}, "2\\*\\*53"),
        ({"type": "object", "minProperties": 3}, "minProperties"),
        ({"additionalItems": False, "items": {}}, "additionalItems"),
        ({"$schema": "http://json-schema.org/draft-07/schema#", "prefixItems": [{}]}, "prefixItems"),
        ({"x-guidance": {"lenient": True}, "not": {}}, "x-guidance"),
        ({"type": "string", "pattern": "[a&&b]"}, "ECMAScript"),
        ({"type": "string", "pattern": r"\Aa"}, "ECMAScript"),
        ({"patternProperties": {"[a--b]": {}}}, "ECMAScript"),
        ({"type": "string", "pattern": "((a{1000}){1000})"}, "repeats"),
        ({"type": "string", "pattern": "(?:[a-z]{100},){9999}"}, "repeats"),
        # what leads out of the schema, or nowhere
        ({"$ref": "https://example.com/a.json"}, "leads out"),
        ({"$ref": "#anchor", "$defs": {"a": {"$anchor": "anchor"}}}, "leads out"),
        ({"$ref": "#/$defs/a"}, "leads nowhere"),
        ({"properties": {"a": {"$id": "b", "type": "string"}}}, r"\$id"),
        ({"$schema": "https://example.com/own"}, "drafts"),
        # what is no schema
        ({"items": 3}, "3"),
        ({"properties": [1]}, "a list"),
        ({"anyOf": {}}, "an object"),
        ({"minLength": "3"}, "3"),
        ({"minLength": -1}, "-1"),
        ({"maxItems": 1e9}, "100000"),
        ({"maxItems": 10**5000}, "beyond"),
        ({"type": "text"}, "text"),
        ({"type": [[]]}, "a list"),
        ({"required": [1]}, "a list"),
        ({"pattern": {}}, "an object"),
        ({"format": ["date"]}, "a list"),
        ({"enum": []}, "a list"),
        # what is too large
        ({"enum": list(range(20_000))}, "10000"),
        ({"pattern": "a" * 300_000}, "200000"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(schema, named):
    for whole in (schema, {"type": "object", "properties": {"inner": {"anyOf": [schema]}}}):
        if "$ref" in schema or "$schema" in schema:
            whole = schema
        with pytest.raises(GrammarError, match=named) as refused:
            honoured(whole, "response_format.json_schema.schema")
        assert refused.value.field == "response_format.json_schema.schema"


def test_a_place_in_the_schema_is_named():
    schema = {"properties": {"a": {"items": {"anyOf": [{}, {"not": {}}]}}}}
    with pytest.raises(GrammarError, match=r"^properties/a/items/anyOf/1: the keyword 'not'"):
        honoured(schema, "x")


def test_deep_nesting_is_refused_before_anything_recurses():
    schema: dict = {"const": 1}
    deep: dict = {}
    for _ in range(10_000):
        schema, deep = {"properties": {"a": schema}}, {"a": deep}
    for nested in (schema, {"const": deep}, {"enum": [deep]}, {"default": deep, "items": [schema]}):
        with pytest.raises(GrammarError, match="nested"):
            honoured(nested, "x")


def test_annotations_and_unused_definitions_are_left_out():
    assert honoured(PERSON, "x")["$defs"] == {"0": {"type": ["object", "null"], "maxProperties": 0}}
    own = {"x-order": 1, "_uniqueItems": True, "discriminator": {"propertyName": "kind"}, "readonly": True}
    assert honoured({**own, "description": "d", "default": 2**80, "examples": [1]}, "x") == {}


@pytest.mark.parametrize("schema", [{"$ref": "#"}, {"allOf": [{"const": 1}, {"const": 2}]}])
def test_a_schema_that_nothing_fulfils_has_no_matcher_that_goes_on(compiler, schema):
    with pytest.raises((MatcherError, GrammarError)):
        compiler.matcher(json_grammar(schema)).allowed()


def test_json_is_written_as_json_dumps_writes_it(compiler, tokenizer):
    grammar = json_grammar({"type": "object"})
    for value in ({}, {"a": [1, 2.5, None], "ä🙂": {"b": '\n"x'}}):
        assert is_allowed(compiler, tokenizer, grammar, json.dumps(value, ensure_ascii=False))
        assert is_allowed(compiler, tokenizer, grammar, json.dumps(value, indent=1, ensure_ascii=False)) == (not value)
    assert not is_allowed(compiler, tokenizer, grammar, "[1]")
