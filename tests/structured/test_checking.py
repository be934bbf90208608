"""Schemas that would take the server's time or memory are refused, and nothing else is."""

import os

import pytest

from hfchat.chat import Chat
from hfchat.structured import checking
from hfchat.structured.checking import GrammarChecker
from hfchat.structured.grammars import GrammarError
from tests.structured.test_grammars import HERMES

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@pytest.fixture(scope="module")
def checker(tokenizer):
    checker = GrammarChecker(tokenizer, len(tokenizer), {tokenizer.eos_token_id})
    yield checker
    checker.close()


def asking(schema):
    return Chat([], response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": schema}})


def test_what_can_be_compiled_has_its_grammar(checker):
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    assert "%json" in checker.grammar(asking(schema), None, "no")
    assert checker.grammar(Chat([]), None, "no") is None


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"allOf": [{"anyOf": [{"required": [f"{i} {j}"]} for j in range(4)]} for i in range(9)]}, "too large"),
        ({"$ref": "#"}, "no answer can be valid"),
        ({"allOf": [{"const": 1}, {"const": 2}]}, "nsatisfiable"),
        ({"oneOf": [{"type": "object"}, {"type": "object"}]}, "oneOf"),
        pytest.param({"type": "integer", "multipleOf": 999_983}, r"more than 0\.3 s", marks=needs_fork),
    ],
)
def test_what_cannot_be_is_refused_and_others_are_answered(checker, schema, why):
    with pytest.raises(GrammarError, match=why) as refused:
        checker.grammar(asking(schema), None, "no")
    assert refused.value.field == "response_format.json_schema.schema"
    assert "\n" not in str(refused.value)
    assert checker.grammar(asking({"type": "boolean"}), None, "no")


def test_the_function_to_blame_is_named(checker):
    tools = [
        {"type": "function", "function": {"name": name, "parameters": {"type": "object", "oneOf": schemas}}}
        for name, schemas in (("fine", [{}]), ("wrong", [{}, {}]))
    ]
    with pytest.raises(GrammarError, match="oneOf") as refused:
        checker.grammar(Chat([], tools, "required"), HERMES, "no")
    assert refused.value.field == "tools[1].function.parameters"


def test_a_verdict_is_kept(checker, monkeypatch):
    wrong, fine = asking({"$ref": "#"}), asking({"type": "null"})
    checker.grammar(fine, None, "no")
    with pytest.raises(GrammarError):
        checker.grammar(wrong, None, "no")
    monkeypatch.setattr(checking._process, "ask", lambda *_: pytest.fail("it was tried again"))
    checker.grammar(fine, None, "no")
    with pytest.raises(GrammarError, match="no answer can be valid"):
        checker.grammar(wrong, None, "no")
