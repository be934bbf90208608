import json

import pytest

from hfchat.evaluation.schemas import is_valid, normalized, read_json

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('{"a": 1, "b": [2]}', '{"b": [2], "a": 1}'),
        ("1", "1.0"),
        ("100", "1e2"),
        ("0", "-0.0"),
        ('"Zürich"', '"Zu\\u0308rich"'),
        ('{"é": 1}', '{"e\\u0301": 1}'),
        ('{"a": {"x": null, "y": [1.0, true]}}', ' {"a":{"y":[1,true],"x":null}}\n'),
    ],
)
def test_what_means_the_same_is_equal(one, other):
    assert normalized(json.loads(one)) == normalized(json.loads(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1", "true"),
        ("0", "false"),
        ("1", '"1"'),
        ("1", "1.5"),
        ("9007199254740993", "9007199254740992.0"),
        ("[1, 2]", "[2, 1]"),
        ("[1]", "1"),
        ('"Oslo"', '"oslo"'),
        ('"Oslo"', '"Oslo "'),
        ('{"a": null}', "{}"),
        ("null", "false"),
        ("{}", "[]"),
        ('["bool", true]', "true"),
    ],
)
def test_what_differs_is_not(one, other):
    assert normalized(json.loads(one)) != normalized(json.loads(other))


@pytest.mark.parametrize("text", ["", "{", "{'a': 1}", '```json\n{"n": 1}\n```', "NaN", "[" * 100_000])
def test_what_is_no_json(text):
    assert read_json(text) is ...
    assert not is_valid(text, None)


@pytest.mark.parametrize(
    ("text", "valid"),
    [('{"n": 1}', True), ('{"n": 1.0}', True), ('{"n": "1"}', False), ("{}", False), ('{"n": 1, "m": 2}', False)],
)
def test_validity_is_by_the_schema(text, valid):
    assert is_valid(text, SCHEMA) is valid
    assert is_valid(text, None)
