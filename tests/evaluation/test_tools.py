import json
from dataclasses import replace

import pytest

from hfchat.errors import UserError
from hfchat.evaluation.local_model import LocalModel
from hfchat.evaluation.openai_model import RemoteModel
from hfchat.evaluation.records import read_records, write_records
from hfchat.evaluation.suite import TaskEntry, prepare_suite, run_suite
from hfchat.evaluation.task import Record, result
from hfchat.evaluation.tasks.tools import tells
from hfchat.results import Bootstrap
from tests.conftest import random_llama
from tests.servers.chat_api import chat_api


def _function(name, **properties):
    parameters = {"type": "object", "properties": properties, "required": [*properties]}
    return {"type": "function", "function": {"name": name, "description": name, "parameters": parameters}}


def _call(name, **arguments):
    return {"id": "call_0", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


def _turn(role, content=None, **fields):
    return {"role": role, "content": content, **fields}


TOOLS = [
    _function("get_weather", city={"type": "string"}),
    _function("add", a={"type": "number"}, b={"type": "number"}),
]
OSLO, LIMA = _call("get_weather", city="Oslo"), _call("get_weather", city="Lima")
# One call, two in one turn, none because nothing fits, and an answer that tells the result.
CONVERSATIONS = {
    "call": [_turn("user", "Weather in Oslo?"), _turn("assistant", tool_calls=[OSLO])],
    "several": [_turn("user", "In Oslo and Lima?"), _turn("assistant", tool_calls=[OSLO, LIMA])],
    "unable": [_turn("user", "Call Anna."), _turn("assistant", "I cannot.")],
    "result": [
        _turn("user", "How warm is it in Oslo?"),
        _turn("assistant", tool_calls=[OSLO]),
        _turn("tool", '{"degrees": 5}', tool_call_id="call_0"),
        _turn("assistant", "It is 5 degrees."),
    ],
}


def _row(kind):
    facts = ["5"] if kind == "result" else []
    return {"kind": kind, "messages": CONVERSATIONS[kind], "tools": json.dumps(TOOLS), "facts": facts}


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "tools.jsonl"
    file.write_text("".join(json.dumps(_row(kind)) + "\n" for kind in CONVERSATIONS))
    return str(file)


def _task(data, **settings):
    task = TaskEntry.parse({"kind": "tools", "dataset_name": data, **settings}).build()
    task.prepare()
    return task


def _scores(task, index, tmp_path, text="", *calls):
    """What an answer to one of the examples gets."""
    one = task.examples[index]
    made = [{"name": call["function"]["name"], "arguments": call["function"]["arguments"]} for call in calls]
    record = Record(0, one.prompt, list(one.references), group=one.group, info=dict(one.info), answer=text, calls=made)
    write_records(tmp_path / "m.jsonl", [record])
    result(task, ["m"], tmp_path, Bootstrap(10, 1))
    return {name: bool(score) for name, score in read_records(tmp_path / "m.jsonl")[0].scores.items()}


ADD = _call("add", a=1, b=2)


@pytest.mark.parametrize(
    ("calls", "wrong"),
    [
        ([OSLO], []),
        ([LIMA], ["exact_calls", "exact"]),
        ([ADD], ["exact_calls", "named", "exact"]),
        ([_call("get_weather", town="Oslo")], ["exact_calls", "valid", "exact"]),
        ([_call("get_weather", city=5)], ["exact_calls", "valid", "exact"]),
        ([_call("get_weather", city="Oslo", unit="c")], ["exact_calls", "exact"]),
        ([OSLO, OSLO], ["exact_calls", "named", "exact"]),
        ([], ["exact_calls", "called", "named", "valid", "exact"]),
    ],
)
def test_a_call_is_right_in_all_or_the_part_that_is_wrong_is_told(data, tmp_path, calls, wrong):
    scores = _scores(_task(data), 0, tmp_path, "", *calls)
    assert list(scores) == ["exact_calls", "called", "named", "valid", "exact"]
    assert [name for name, right in scores.items() if not right] == wrong


def test_calls_of_one_turn_have_no_order_and_each_counts(data, tmp_path):
    task = _task(data)
    assert all(_scores(task, 1, tmp_path, "", LIMA, OSLO).values())
    for calls in ([OSLO], [OSLO, OSLO], [OSLO, LIMA, LIMA]):
        assert not _scores(task, 1, tmp_path, "", *calls)["exact_calls"]


def test_where_no_call_is_asked_for_none_may_be_made(data, tmp_path):
    task = _task(data)
    assert _scores(task, 2, tmp_path, "Sorry.") == {"not_called": True, "exact": True}
    assert _scores(task, 2, tmp_path, "Sorry.", OSLO) == {"not_called": False, "exact": False}


def test_results_are_to_be_told(data, tmp_path):
    task = _task(data)
    assert all(_scores(task, 3, tmp_path, "Just 5 degrees!").values())
    assert _scores(task, 3, tmp_path, "15 degrees.") == {"not_called": True, "exact": False, "told": False}
    assert not _scores(task, 3, tmp_path, "5", OSLO)["told"]


@pytest.mark.parametrize(
    ("text", "fact", "found"),
    [
        ("It is 5.", "5", True),
        ("It is 5, or so", "5", True),
        ("15", "5", False),
        ("5.3", "5", False),
        ("1,5", "5", False),
        ("-5", "5", False),
        ("-5", "-5", True),
        ("It costs 7,445 in all", "7445", True),
        ("at 18:00.", "18:00", True),
        ("ZÜRICH", "Zürich", True),
        ("Zu\u0308rich", "Zürich", True),
        ("redder", "red", False),
        ("on its way", "On its way", True),
    ],
)
def test_a_fact_is_a_word_or_a_number_of_its_own(text, fact, found):
    assert tells(text, fact) is found


def _said(message):
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": None, **message}}
    return 200, {}, {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}


def _perfect(request):
    question = request["messages"][-1]["content"]
    answers = {turns[-2]["content"]: turns[-1] for turns in CONVERSATIONS.values()}
    return _said({key: value for key, value in answers[question].items() if key != "role"})


def _broken(request):
    return _said({"content": '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}'})


@pytest.mark.parametrize(("script", "share"), [(_perfect, 1.0), (_broken, 0.0)])
def test_a_server_that_is_perfect_and_one_whose_calls_are_broken(data, tmp_path, script, share):
    with chat_api(script) as api:
        task, model = _task(data, mask=True), RemoteModel("served", api.url, 2)
        prepare_suite([task], [model])
        found = run_suite([task], [model], tmp_path / "out", Bootstrap(10, 1)).tasks["tools"]
    scores = found.scores["served"]
    assert {name: scores[name].score for name in ("exact_calls", "called", "named", "valid")} == dict.fromkeys(
        ("exact_calls", "called", "named", "valid"), share
    )
    assert scores["not_called"].score == 1
    assert (scores["exact"].score, scores["told"].score) == ((1, 1) if share else (0.25, 0))
    assert (scores["exact_calls"].scored, scores["exact"].scored) == (2, 4)
    low, high = scores["exact"].interval
    assert 0 <= low < high <= 1
    assert list(found.groups["served"]) == list(CONVERSATIONS)
    # What was sent: strict functions, and a history as the API has it.
    sent = next(one for one in api.requests if len(one["messages"]) == 3)
    assert all(tool["function"]["strict"] for tool in sent["tools"])
    assert sent["messages"][1]["tool_calls"] == [OSLO]


def test_without_the_mask_functions_are_not_strict(data):
    chats = [one.chat for one in _task(data).examples]
    assert not any(function.strict for chat in chats for function in chat.functions)


@pytest.fixture
def folder(tokenizer, tmp_path):
    """A model that knows nothing, and reads long prompts."""
    random_llama(tokenizer, max_position_embeddings=1024).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_the_weights_here_answer(data, folder, tmp_path):
    model, task = LocalModel("tiny", str(folder), 4, "float32"), _task(data, max_new_tokens=8, mask=True)
    prepare_suite([task], [model])
    found = run_suite([task], [model], tmp_path, Bootstrap(10, 1)).tasks["tools"]
    assert found.scores["tiny"]["called"].score == 0  # it knows nothing


def test_the_mask_leaves_calls_that_are_valid_and_nothing_else(data, folder):
    model, chat = LocalModel("tiny", str(folder), 4, "float32"), _task(data).examples[0].chat
    schema = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Lima"]}}, "required": ["city"]}
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    bound = replace(chat, tools=tools, tool_choice="required", parallel_tool_calls=False)
    for reply in model.answer_chats([bound, chat, bound], 96, False)[::2]:
        ((name, arguments),) = [(call.name, json.loads(call.arguments)) for call in reply.calls]
        assert (name, reply.text, reply.ended) == ("f", "", True)
        assert arguments["city"] in ("Oslo", "Lima")


def test_a_template_without_tools_is_refused_or_replaced(data, folder):
    model = LocalModel("tiny", str(folder), 4, "float32")
    model.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert "writes no tools" in _task(data).refusal(model)
    task = _task(data, project_template=True)
    assert task.refusal(model) is None
    tokens = model.reader(True).encode(task.examples[0].chat)
    assert '"name": "get_weather"' in model.tokenizer.decode(tokens)


def test_a_server_takes_no_template(data):
    with chat_api(_perfect) as api:
        refusal = _task(data, project_template=True).refusal(RemoteModel("served", api.url, 2))
    assert "project_template" in refusal


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [_turn("assistant", "Hi")], "tools": TOOLS}, "row 1: has no turn before the answer"),
        (
            {"messages": [_turn("user", "Hi"), _turn("assistant", tool_calls=[_call("fly")])], "tools": TOOLS},
            "row 1: calls fly, which is not among its tools",
        ),
        ({"messages": CONVERSATIONS["call"], "tools": "nothing"}, "row 1: 'tools': not JSON"),
        ({"messages": CONVERSATIONS["call"][:1], "tools": TOOLS}, "row 1: the last turn must be the assistant's"),
    ],
)
def test_rows_that_cannot_be_asked_are_refused(tmp_path, row, message):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row))
    with pytest.raises(UserError, match=message):
        _task(str(file))
