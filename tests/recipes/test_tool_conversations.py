"""The program that writes conversations with tools, and what it makes of its functions."""

import json
from collections import Counter
from itertools import chain

import pytest

from hfchat.errors import UserError
from hfchat.evaluation.schemas import is_valid
from hfchat.messages import ROLES_WITH_TOOLS, check_messages
from recipes.data import tool_conversations as program

SPLITS = {split: list(program.conversations(split, 200, 7)) for split in program.COUNTS}
ROWS = [*chain.from_iterable(SPLITS.values())]


def calls_of(message):
    return [call["function"] for call in message.get("tool_calls", [])]


def test_each_is_a_conversation_whose_calls_are_valid_by_their_schemas():
    for row in ROWS:
        check_messages(row["messages"], row["id"], ROLES_WITH_TOOLS)
        schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in row["tools"]}
        assert len(schemas) == len(row["tools"]), row["id"]
        for call in chain.from_iterable(map(calls_of, row["messages"])):
            strict = {**schemas[call["name"]], "additionalProperties": False}
            assert is_valid(call["arguments"], strict), (row["id"], call)


def test_results_name_their_calls():
    for row in ROWS:
        called = [call["id"] for message in row["messages"] for call in message.get("tool_calls", [])]
        answered = [message["tool_call_id"] for message in row["messages"] if message["role"] == "tool"]
        assert len({*called}) == len(called)
        assert answered == called[: len(answered)], row["id"]


def test_the_kinds_end_as_they_should():
    endings = {"call": 1, "several": 2, "given": 1, "again": 1, "talk": 0, "unable": 0, "lacking": 0, "result": 0}
    for row in ROWS:
        last = row["messages"][-1]
        assert len(calls_of(last)) == endings[row["kind"]], row["id"]
        assert all(fact in last["content"] for fact in row["facts"]), row["id"]
        assert bool(row["facts"]) == (row["kind"] == "result"), row["id"]
    counts = Counter(row["kind"] for row in SPLITS["test"])
    assert all(abs(counts[kind] - 2 * share) <= 1 for kind, share in program.SHARES.items())


def test_no_split_shares_a_function_a_question_or_a_name_of_either_with_another():
    functions, content = program.read_functions(program.FUNCTIONS)
    names = {split: {*chain.from_iterable(one.names for one in functions[split])} for split in functions}
    asked = {split: {*chain.from_iterable(one.ask for one in functions[split])} for split in functions}
    talk = {split: {said for said, _ in content["talk"][split]} for split in functions}
    for kind in (names, asked, talk):
        for one in kind:
            assert not kind[one] & {*chain.from_iterable(kind[other] for other in kind if other != one)}
    # Nor do the names that are made of them, in both ways to write them.
    made = {split: {tool["function"]["name"] for row in SPLITS[split] for tool in row["tools"]} for split in SPLITS}
    assert not made["train"] & made["test"]
    assert not made["validation"] & made["test"]


@pytest.mark.parametrize("split", program.COUNTS)
def test_a_question_leaves_out_no_argument_that_is_required(split):
    functions, _ = program.read_functions(program.FUNCTIONS)
    for function in functions[split]:
        assert len({*chain.from_iterable(one.names for one in function.parameters.values())}) == sum(
            len(one.names) for one in function.parameters.values()
        ), function.names
        for question in function.ask:
            outside = "".join(part.split("]")[-1] for part in question.split("["))
            required = {name for name, one in function.parameters.items() if not one.optional}
            assert required == {*program.slots(outside)}, question
        for lacking, (question, _) in function.lacking.items():
            assert {*program.slots(question), lacking} == {
                name for name, one in function.parameters.items() if not one.optional
            }, question


def test_all_kinds_of_arguments_occur():
    values = [
        value for row in ROWS for message in row["messages"] for call in calls_of(message)
        for value in json.loads(call["arguments"]).values()
    ]  # fmt: skip
    assert {type(value) for value in values} == {str, int, float, bool, list, dict, type(None)}
    enums = [
        one for row in ROWS for tool in row["tools"] for one in tool["function"]["parameters"]["properties"].values()
    ]
    assert any("enum" in one for one in enums)


def test_json_is_valid_by_its_schema_and_the_schema_is_told():
    for row in program.json_rows(40, 7):
        check_messages(row["messages"], row["id"])
        assert is_valid(row["messages"][-1]["content"], row["schema"])
        assert json.dumps(row["schema"], ensure_ascii=False) in row["messages"][0]["content"]


def test_the_same_seed_makes_the_same_files(tmp_path, monkeypatch):
    monkeypatch.setattr(program, "COUNTS", {"train": 20, "validation": 5, "test": 5})
    monkeypatch.setattr(program, "JSON_COUNT", 5)

    def written(folder, seed):
        monkeypatch.setattr("sys.argv", ["program", "--output-dir", str(tmp_path / folder), "--seed", str(seed)])
        program.main()
        files = sorted((tmp_path / folder).rglob("*.jsonl"))
        return {file.relative_to(tmp_path / folder).as_posix(): file.read_bytes() for file in files}

    first = written("first", 1)
    assert [*first] == ["calls/test.jsonl", "calls/train.jsonl", "calls/validation.jsonl", "json/test.jsonl"]
    assert first == written("again", 1)
    assert first != written("other", 2)


def test_a_place_that_is_no_folder_is_one_line(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setattr("sys.argv", ["tool_conversations.py", "--output-dir", str(file / "deeper")])
    with pytest.raises(UserError, match=r"^--output-dir .*deeper: is no place for a folder \(Not a directory\)$"):
        program.main()
