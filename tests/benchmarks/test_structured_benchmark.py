"""What the benchmark of structured answers counts as valid, and how it stands a compiler that does not end."""

import os
import time

import pytest
from benchmarks import structured
from benchmarks.structured import Walk, in_child, is_valid


def test_an_answer_is_valid_by_the_draft_that_its_schema_names():
    schema = {"$schema": "http://json-schema.org/draft-04/schema#", "minimum": 1, "exclusiveMinimum": True}
    assert is_valid("2", schema)
    assert not is_valid("1", schema)
    assert not is_valid("{", schema)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_schema_that_does_not_end_is_given_up(monkeypatch):
    monkeypatch.setattr(structured, "COMPILE_S", 0.1)
    assert in_child(lambda: Walk(answer="1")).answer == "1"
    assert in_child(lambda: time.sleep(60)).refused == "took more than 10 s"
    assert in_child(lambda: os._exit(3)).refused == "crashed"
