import json

import pytest

from hfchat.errors import UserError
from hfchat.evaluation.local_model import LocalModel
from hfchat.evaluation.openai_model import RemoteModel
from hfchat.evaluation.records import read_records
from hfchat.evaluation.suite import TaskEntry, prepare_suite, run_suite
from hfchat.results import Bootstrap
from tests.servers.chat_api import chat_api

SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Lima"]}, "days": {"type": "integer"}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
ROW = {
    "messages": [
        {"role": "user", "content": "Oslo for 3 days"},
        {"role": "assistant", "content": '{"city": "Oslo", "days": 3}'},
    ],
    "schema": SCHEMA,
}


def _task(tmp_path, row=ROW, **settings):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    task = TaskEntry.parse({"kind": "json", "dataset_name": str(file), **settings}).build()
    task.prepare()
    return task


def _run(task, model, folder):
    prepare_suite([task], [model])
    scores = run_suite([task], [model], folder, Bootstrap(10, 1)).tasks["json"].scores[model.name]
    return {name: one.score for name, one in scores.items()}


@pytest.mark.parametrize(
    ("answer", "scores"),
    [
        ('{"days": 3.0, "city": "Oslo"}\n', {"exact": 1, "fields": 1, "valid": 1}),
        ('{"city": "Lima", "days": 3}', {"exact": 0, "fields": 0.5, "valid": 1}),
        ('{"city": "Oslo", "days": 3, "more": 1}', {"exact": 0, "fields": 1, "valid": 0}),
        ('{"city": "Rome"}', {"exact": 0, "fields": 0, "valid": 0}),
        ("[]", {"exact": 0, "fields": 0, "valid": 0}),
        ('```json\n{"city": "Oslo", "days": 3}\n```', {"exact": 0, "fields": 0, "valid": 0}),
        ("Oslo", {"exact": 0, "fields": 0, "valid": 0}),
    ],
)
def test_json_is_right_valid_or_neither(tmp_path, answer, scores):
    message = {"role": "assistant", "content": answer}
    body = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    with chat_api(lambda _: (200, {}, {**body, "choices": [choice]})) as api:
        assert _run(_task(tmp_path, mask=True), RemoteModel("m", api.url, 1), tmp_path / "out") == scores
    (request,) = api.requests
    assert request["response_format"]["json_schema"]["schema"] == SCHEMA


def test_the_mask_makes_a_model_that_knows_nothing_write_valid_json(tmp_path, chat_model):
    model = LocalModel("tiny", str(chat_model), 2, "float32")
    city = {"type": "object", "properties": {"city": SCHEMA["properties"]["city"]}, "required": ["city"]}
    row = {**ROW, "schema": {**city, "additionalProperties": False}}
    row["messages"] = [ROW["messages"][0], {"role": "assistant", "content": '{"city": "Oslo"}'}]
    assert _run(_task(tmp_path, row, max_new_tokens=64), model, tmp_path / "free")["valid"] == 0
    assert _run(_task(tmp_path, row, mask=True, max_new_tokens=64), model, tmp_path / "bound")["valid"] == 1
    (record,) = read_records(tmp_path / "bound" / "records" / "json" / "tiny.jsonl")
    assert record.ended
    assert json.loads(record.answer)["city"] in ("Oslo", "Lima")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "nothing"}, "row 1: 'schema' must be a JSON object"),
        ({"schema": {"type": "array"}}, "row 1: its last turn is not JSON that is valid by its 'schema'"),
    ],
)
def test_rows_that_cannot_be_asked_are_refused(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        _task(tmp_path, {**ROW, **change})


def test_a_schema_that_cannot_be_honoured_is_refused_with_the_mask_alone(tmp_path, chat_model):
    row = {**ROW, "schema": {**SCHEMA, "not": {"type": "array"}}}
    model = LocalModel("tiny", str(chat_model), 2, "float32")
    assert _task(tmp_path, row).refusal(model) is None
    assert "not" in _task(tmp_path, row, mask=True).refusal(model)
