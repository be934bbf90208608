"""`/v1/responses`, driven by the real `openai` client and by raw HTTP, over a scripted engine."""

import json

import openai
import pytest
from pydantic import BaseModel

from hfchat.chat import CallPart
from hfchat.serving.engines.engine import Piece

MODEL = "tiny-chat"


class City(BaseModel):
    city: str


TOOL = {"type": "function", "name": "get_weather", "parameters": City.model_json_schema(), "strict": True}
THOUGHT = [Piece("", 1, reasoning="Hm, "), Piece("", 1, reasoning="well.")]
CALL = [
    Piece("", 1, calls=(CallPart(0, "get_weather", '{"city": "Pa'),)),
    Piece("", 1, calls=(CallPart(0, None, 'ris"}'),)),
]


@pytest.fixture
def calling(serve, scripted):
    """A server whose model thinks, says something, and calls a function."""
    pieces = [*THOUGHT, "Let me ", "see.", *CALL]
    return serve(scripted(pieces=pieces, finish_reason="tool_calls", context_length=1000))


def streamed(served, **fields):
    with served.openai.responses.stream(model=MODEL, **fields) as stream:
        events = list(stream)
    return events, stream.get_final_response()


def without_ids(response):
    items = json.loads(response.model_dump_json(include={"output": True}))["output"]
    return [{name: value for name, value in item.items() if name not in ("id", "call_id")} for item in items]


def test_text(serve, scripted):
    served = serve(scripted())
    response = served.openai.responses.create(model=MODEL, input="Hi", instructions="Be kind", metadata={"a": "b"})
    assert response.id.startswith("resp-")
    assert (response.output_text, response.status, response.metadata) == ("Hello, world!", "completed", {"a": "b"})
    assert (response.usage.input_tokens, response.usage.output_tokens, response.usage.total_tokens) == (9, 5, 14)
    assert served.engine.prompts == [[{"role": "system", "content": "Be kind"}, {"role": "user", "content": "Hi"}]]


def test_a_stream_is_the_whole(calling):
    whole = calling.openai.responses.create(model=MODEL, input="Hi", tools=[TOOL])
    events, final = streamed(calling, input="Hi", tools=[TOOL])
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert without_ids(final)[2].pop("parsed_arguments") == {"city": "Paris"}
    kinds = [item.type for item in whole.output]
    assert kinds == [item.type for item in final.output] == ["reasoning", "message", "function_call"]
    assert whole.output[0].content[0].text == final.output[0].content[0].text == "Hm, well."
    assert whole.output_text == final.output_text == "Let me see."
    assert whole.output[2].arguments == final.output[2].arguments == '{"city": "Paris"}'
    assert {item.status for item in [*whole.output, *final.output]} == {"completed"}
    assert final.usage == whole.usage


def test_events_follow_one_another_as_the_client_expects(calling):
    response = calling.http.post("/v1/responses", json={"model": MODEL, "input": "Hi", "stream": True})
    lines = [block.split("\n") for block in response.text.split("\n\n") if block]
    events = [json.loads(data.removeprefix("data: ")) for _, data in lines]
    assert [name.removeprefix("event: ") for name, _ in lines] == [event["type"] for event in events]
    assert [event["type"].removeprefix("response.") for event in events] == [
        *("created", "in_progress"),
        *("output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.delta"),
        *("reasoning_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "content_part.added", "output_text.delta", "output_text.delta"),
        *("output_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta", "function_call_arguments.delta"),
        *("function_call_arguments.done", "output_item.done", "completed"),
    ]
    added = [event["item"] for event in events if event["type"] == "response.output_item.added"]
    assert [item.get("content", item.get("arguments")) for item in added] == [[], [], ""]
    parts = [event["part"] for event in events if event["type"] == "response.content_part.added"]
    assert [part["text"] for part in parts] == ["", ""]


def test_a_tool_loop(calling):
    """What the client got goes back as it is, and comes to the model as one turn of the assistant."""
    history = [{"role": "user", "content": "Weather?"}]
    first = calling.openai.responses.parse(model=MODEL, input=history, tools=[TOOL])
    call = first.output[-1]
    assert call.parsed_arguments == {"city": "Paris"}
    history += first.output
    history.append({"type": "function_call_output", "call_id": call.call_id, "output": "Sunny."})
    calling.openai.responses.create(model=MODEL, input=history, tools=[TOOL])
    function = {"name": "get_weather", "arguments": {"city": "Paris"}}
    assert calling.engine.chats[-1].messages == [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "Let me see.",
            "reasoning_content": "Hm, well.",
            "tool_calls": [{"id": call.call_id, "type": "function", "function": function}],
        },
        {"role": "tool", "content": "Sunny.", "tool_call_id": call.call_id},
    ]


def test_parse_asks_for_the_schema_and_reads_the_answer(serve, scripted):
    served = serve(scripted(pieces=['{"city": ', '"Paris"}']))
    response = served.openai.responses.parse(model=MODEL, input="Hi", text_format=City)
    assert response.output_parsed == City(city="Paris")
    _, final = streamed(served, input="Hi", text_format=City)
    assert final.output_parsed == City(city="Paris")
    asked = served.engine.chats[-1].response_format["json_schema"]
    assert (asked["name"], asked["strict"]) == ("City", True)
    assert asked["schema"]["properties"] == {"city": {"title": "City", "type": "string"}}
    history = [*response.output, {"role": "user", "content": "More"}]
    served.openai.responses.create(model=MODEL, input=history)
    assert served.engine.prompts[-1][0] == {"role": "assistant", "content": '{"city": "Paris"}'}


def test_what_else_is_asked_for_comes_to_the_engine(serve, scripted):
    served = serve(scripted())
    choice = {"type": "function", "name": "get_weather"}
    fields = {"tools": [TOOL], "tool_choice": choice, "parallel_tool_calls": False, "reasoning": {"effort": "none"}}
    fields |= {"temperature": 0.5, "top_p": 0.9, "max_output_tokens": 7, "store": False, "user": "me"}
    response = served.openai.responses.create(model=MODEL, input="Hi", **fields)
    chat, sampling = served.engine.chats[-1], served.engine.samplings[-1]
    assert [function.strict for function in chat.functions] == [True]
    assert (chat.must_call, chat.parallel_tool_calls, chat.reasoning_effort) == (True, False, "none")
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (0.5, 0.9, 7)
    echoed = response.to_dict()
    assert {name: echoed[name] for name in ("temperature", "top_p", "max_output_tokens", "user", "store")} == {
        name: fields[name] for name in ("temperature", "top_p", "max_output_tokens", "user", "store")
    }
    assert echoed["tool_choice"] == choice


@pytest.mark.parametrize(
    ("finish_reason", "pieces", "reason"),
    [("length", ["Hel"], "max_output_tokens"), ("content_filter", ["No."], "content_filter")],
)
def test_an_answer_that_is_not_complete_says_why(serve, scripted, finish_reason, pieces, reason):
    served = serve(scripted(finish_reason=finish_reason, pieces=pieces))
    whole = served.openai.responses.create(model=MODEL, input="Hi")
    assert (whole.status, whole.incomplete_details.reason) == ("incomplete", reason)
    last = list(served.openai.responses.create(model=MODEL, input="Hi", stream=True))[-1]
    assert (last.type, last.response.output_text) == ("response.incomplete", pieces[0])


def test_an_empty_answer_is_a_message_without_words(serve, scripted):
    response = serve(scripted(pieces=[""])).openai.responses.create(model=MODEL, input="Hi")
    assert ([item.type for item in response.output], response.output_text) == (["message"], "")


def test_a_failure_in_mid_answer_is_an_event(serve, scripted):
    served = serve(scripted(fail_after=2))
    *_, last = served.openai.responses.create(model=MODEL, input="Hi", stream=True)
    assert last.type == "response.failed"
    assert (last.response.status, last.response.error.code) == ("failed", "engine_error")
    assert last.response.output_text == "Hello, "
    with pytest.raises(openai.InternalServerError, match="scripted failure"):
        served.openai.responses.create(model=MODEL, input="Hi")


ITEM = {"type": "function_call", "call_id": "call_0", "name": "a", "arguments": "{}"}
RESULT = {"type": "function_call_output", "call_id": "call_0", "output": "x"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp-1"}, "previous_response_id"),
        ({"conversation": "conv"}, "conversation"),
        ({"background": True}, "background"),
        ({"store": True}, "store"),
        ({"include": ["reasoning.encrypted_content"]}, "include"),
        ({"truncation": "auto"}, "truncation"),
        ({"messages": []}, "messages"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"max_output_tokens": 99}, "max_output_tokens"),
        ({"input": []}, "input"),
        ({"input": "x" * 101}, "input"),
        ({"input": "refuse me"}, "input"),
        ({"input": [{"type": "web_search_call"}]}, "input[0].type"),
        ({"input": [{"type": []}]}, "input[0].type"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": [ITEM | {"arguments": "{"}]}, "input[0].arguments"),
        ({"input": [RESULT]}, "input[0].call_id"),
        ({"input": [ITEM, RESULT | {"call_id": "other"}]}, "input[1].call_id"),
        ({"input": [{"type": "reasoning", "summary": [], "encrypted_content": "x"}]}, "input[0].encrypted_content"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [TOOL, TOOL]}, "tools[1].name"),
        ({"tools": [TOOL | {"name": "a b"}]}, "tools[0].name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "auto"}}, "tool_choice.name"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name"),
        ({"text": {"format": {"type": "json_object", "name": "a"}}}, "text.format.name"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"reasoning": {"effort": "lots"}}, "reasoning.effort"),
        ({"reasoning": {"summary": "auto"}}, "reasoning.summary"),
        ({"stream_options": {}}, "stream_options"),
    ],
)
def test_a_field_is_honoured_or_refused_by_name(serve, scripted, fields, param):
    served = serve(scripted())
    response = served.http.post("/v1/responses", json={"model": MODEL, "input": "Hi"} | fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param), error
    assert error["message"].startswith(f"{param}: "), error
    assert served.engine.started == 0


@pytest.mark.parametrize(
    ("blamed", "param"),
    [
        ("response_format.json_schema.schema", "text.format.schema"),
        ("response_format", "text.format"),
        ("tools[3].function.parameters", "tools[3].parameters"),
        ("tool_choice.function.name", "tool_choice.name"),
        ("reasoning_effort", "reasoning.effort"),
        ("messages[2].content", "input"),
        ("tools", "tools"),
    ],
)
def test_what_an_engine_refuses_is_a_field_of_this_endpoint(serve, scripted, monkeypatch, blamed, param):
    from hfchat.serving.engines.engine import PromptError

    async def encode(self, chat):
        raise PromptError("it cannot be honoured", blamed)

    monkeypatch.setattr(scripted, "encode", encode)
    response = serve(scripted()).http.post("/v1/responses", json={"model": MODEL, "input": "Hi"})
    error = response.json()["error"]
    assert (error["param"], error["message"]) == (param, f"{param}: it cannot be honoured")


def test_there_can_be_feedback_on_a_response(serve, scripted, tmp_path):
    served = serve(scripted(), feedback=str(tmp_path / "feedback.db"))
    response = served.openai.responses.create(model=MODEL, input="Hi")
    said = served.http.post("/v1/feedback", json={"answer_id": response.id, "rating": "up"})
    assert said.status_code == 200, said.text
