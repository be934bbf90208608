"""Tools, JSON and reasoning in chat completions, as the real `openai` client asks for them and reads them."""

import json
from typing import Literal

import openai
import pytest
from pydantic import BaseModel

from hfchat.chat import CallPart
from hfchat.serving.engines.engine import Piece, PromptError
from hfchat.serving.http import logs
from hfchat.serving.http.record import RequestRecord
from tests.conftest import random_llama

MODEL = "tiny-chat"
HI = [{"role": "user", "content": "Hi"}]


class GetWeather(BaseModel):
    city: str
    unit: Literal["c", "f"] | None = None


TOOL = openai.pydantic_function_tool(GetWeather, name="get_weather")
CALLS = [
    Piece("", 1, calls=(CallPart(0, "get_weather", '{"city": "Par'),)),
    Piece("", 1, calls=(CallPart(0, None, 'is", "unit": null}'),)),
    Piece("", 1, calls=(CallPart(1, "get_weather", '{"city": "Rome", "unit": "c"}'),)),
]
THOUGHT = [Piece("", 1, reasoning="Hm, "), Piece("", 1, reasoning="well.")]
PARIS, ROME = '{"city": "Paris", "unit": null}', '{"city": "Rome", "unit": "c"}'


@pytest.fixture
def calling(serve, scripted):
    """Makes servers whose model calls two functions, after what else it says."""

    def start(*said, **script):
        return serve(scripted(pieces=[*said, *CALLS], finish_reason="tool_calls", context_length=1000, **script))

    return start


def test_a_whole_answer_has_openais_shape(calling):
    choice = calling(*THOUGHT, "I look.").chat(tools=[TOOL]).json()["choices"][0]
    message = choice["message"]
    ids = [call.pop("id") for call in message["tool_calls"]]
    assert all(each.startswith("call_") for each in ids)
    assert len(set(ids)) == 2
    assert message == {
        "role": "assistant",
        "content": "I look.",
        "refusal": None,
        "reasoning_content": "Hm, well.",
        "tool_calls": [
            {"type": "function", "function": {"name": "get_weather", "arguments": PARIS}},
            {"type": "function", "function": {"name": "get_weather", "arguments": ROME}},
        ],
    }
    assert choice["finish_reason"] == "tool_calls"
    assert calling().chat(tools=[TOOL]).json()["choices"][0]["message"]["content"] is None


def test_a_stream_has_openais_shape(calling):
    response = calling(*THOUGHT, "I look.").chat(tools=[TOOL], stream=True, stream_options={"include_usage": True})
    *events, done = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    *chunks, usage = map(json.loads, events)
    assert done == "[DONE]"
    assert usage["usage"]["completion_tokens"] == 6
    choices = [chunk["choices"][0] for chunk in chunks]
    calls = [call for choice in choices for call in choice["delta"].get("tool_calls", [])]
    ids = [call.pop("id", None) for call in calls]
    assert [bool(each) for each in ids] == [True, False, True]
    assert [choice["delta"] for choice in choices] == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "Hm, "},
        {"reasoning_content": "well."},
        {"content": "I look."},
        *({"tool_calls": [call]} for call in calls),
        {},
    ]
    assert calls == [
        {"index": 0, "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Par'}},
        {"index": 0, "function": {"arguments": 'is", "unit": null}'}},
        {"index": 1, "type": "function", "function": {"name": "get_weather", "arguments": ROME}},
    ]
    assert [choice["finish_reason"] for choice in choices] == [None] * 7 + ["tool_calls"]
    first = calling().chat(tools=[TOOL], stream=True).text.split("\n\n")[0]
    assert json.loads(first.removeprefix("data: "))["choices"][0]["delta"] == {"role": "assistant"}


def test_a_tool_loop(calling):
    """What the client got goes back as it is."""
    served = calling("I look.")
    messages = list(HI)
    message = served.openai.chat.completions.parse(model=MODEL, messages=messages, tools=[TOOL]).choices[0].message
    assert [call.function.parsed_arguments.city for call in message.tool_calls] == ["Paris", "Rome"]
    messages.append(message)
    messages += [{"role": "tool", "tool_call_id": call.id, "content": "Sunny."} for call in message.tool_calls]
    served.openai.chat.completions.create(model=MODEL, messages=messages, tools=[TOOL])
    _, assistant, *results = served.engine.prompts[-1]
    assert [call["function"]["arguments"] for call in assistant["tool_calls"]] == [
        {"city": "Paris", "unit": None},
        {"city": "Rome", "unit": "c"},
    ]
    assert [result["tool_call_id"] for result in results] == [call.id for call in message.tool_calls]
    assert served.engine.chats[-1].functions[0].strict


@pytest.mark.parametrize("said", [(), ("I look.",), (*THOUGHT, "I look.")])
def test_a_streaming_tool_loop(calling, said):
    served = calling(*said)
    with served.openai.chat.completions.stream(model=MODEL, messages=HI, tools=[TOOL]) as stream:
        events = list(stream)
    done = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    assert [event.arguments for event in done] == [PARIS, ROME]
    choice = stream.get_final_completion().choices[0]
    assert choice.finish_reason == "tool_calls"
    assert (choice.message.content or None) == ("I look." if said else None)
    assert [call.function.arguments for call in choice.message.tool_calls] == [PARIS, ROME]
    messages = [*HI, choice.message]
    messages += [{"role": "tool", "tool_call_id": call.id, "content": "Sunny."} for call in choice.message.tool_calls]
    with served.openai.chat.completions.stream(model=MODEL, messages=messages, tools=[TOOL]) as stream:
        assert stream.get_final_completion().choices[0].finish_reason == "tool_calls"
    assistant = served.engine.prompts[-1][1]
    assert assistant.get("reasoning_content") == ("Hm, well." if THOUGHT[0] in said else None)


def test_parse_with_a_pydantic_model(serve, scripted):
    served = serve(scripted(pieces=['{"city": "Par', 'is", "unit": null}']))
    parse = served.openai.chat.completions.parse
    message = parse(model=MODEL, messages=HI, response_format=GetWeather).choices[0].message
    assert message.parsed == GetWeather(city="Paris")
    asked = served.engine.chats[-1]
    assert asked.answer_schema["required"] == ["city", "unit"]
    assert {"type": "null"} in asked.answer_schema["properties"]["unit"]["anyOf"]
    with served.openai.chat.completions.stream(model=MODEL, messages=HI, response_format=GetWeather) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == GetWeather(city="Paris")
    assert parse(model=MODEL, messages=[*HI, message, *HI], response_format=GetWeather)
    assert served.engine.prompts[-1][1] == {"role": "assistant", "content": PARIS}


def test_what_is_asked_for_comes_to_the_engine(serve, scripted):
    served = serve(scripted())
    parameters = {"properties": {"a": {"enum": ["x", None], "default": None}}, "description": None}
    tool = {"type": "function", "function": {"name": "f", "description": None, "strict": None}}
    tool["function"]["parameters"] = parameters
    choice = {"type": "function", "function": {"name": "f"}}
    served.chat(
        tools=[tool],
        tool_choice=choice,
        parallel_tool_calls=False,
        reasoning_effort="none",
        chat_template_kwargs={"enable_thinking": False},
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "a", "schema": {"const": None}, "strict": True},
        },
        logit_bias={"7": -100, "8": 1.5},
        top_k=-1,
        min_p=0.1,
        repetition_penalty=1.2,
    )
    chat, sampling = served.engine.chats[-1], served.engine.samplings[-1]
    assert chat.tools == [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    assert (chat.tool_choice, chat.parallel_tool_calls, chat.reasoning_effort) == (choice, False, "none")
    assert (chat.must_call, chat.template_options) == (True, {"enable_thinking": False})
    assert chat.answer_schema == {"const": None}
    assert (sampling.logit_bias, sampling.top_k) == ({7: -100, 8: 1.5}, 0)
    assert (sampling.min_p, sampling.repetition_penalty) == (0.1, 1.2)
    served.complete(logit_bias={"7": 1}, top_k=5, min_p=0.2, repetition_penalty=1.1)
    sampling = served.engine.samplings[-1]
    assert (sampling.logit_bias, sampling.top_k, sampling.min_p, sampling.repetition_penalty) == ({7: 1}, 5, 0.2, 1.1)


@pytest.mark.parametrize("stream", [False, True])
def test_what_an_engine_refuses_when_it_begins_is_the_requests_fault(serve, scripted, monkeypatch, stream):
    async def refuse(self, prompt, sampling):
        raise PromptError("the model has no token 9", "logit_bias")
        yield

    monkeypatch.setattr(scripted, "stream", refuse)
    response = serve(scripted()).chat(logit_bias={"9": 1}, stream=stream)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "logit_bias"
    assert response.json()["error"]["message"] == "logit_bias: the model has no token 9"


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings_are_for_the_text(calling, stream):
    thought = Piece("", 1, reasoning="STOP and think")
    served = calling(thought, "So. ", "ST", "OP me")
    text = served.chat(tools=[TOOL], stop="STOP", stream=stream).text
    assert "STOP and think" in text
    assert "So. " in text
    assert "me" not in text.replace("message", "").replace("name", "")
    assert '"finish_reason":"stop"' in text
    assert '"tool_calls"' not in text
    assert "get_weather" in calling("no").chat(stop="city", stream=stream).text


def test_each_answer_has_calls_of_its_own(calling):
    served = calling()
    choices = served.chat(tools=[TOOL], n=3).json()["choices"]
    ids = [call["id"] for choice in choices for call in choice["message"]["tool_calls"]]
    assert len(set(ids)) == 6
    text = served.chat(tools=[TOOL], n=3, stream=True).text
    chunks = [json.loads(line.removeprefix("data: ")) for line in text.split("\n\n") if line.startswith("data: {")]
    joined = ["", "", ""]
    for choice in (chunk["choices"][0] for chunk in chunks):
        for call in choice["delta"].get("tool_calls", []):
            joined[choice["index"]] += call["function"]["arguments"]
    assert joined == [PARIS + ROME] * 3


def test_the_log_has_calls_and_reasoning_only_with_its_content(calling, eventually, caplog, monkeypatch):
    seen: list[RequestRecord] = []
    monkeypatch.setattr("hfchat.serving.http.app.log_request", seen.append)
    served = calling(*THOUGHT, "I look.")
    served.chat(tools=[TOOL])
    eventually(lambda: seen)
    (record,) = seen
    answer = record.answers[0]
    assert (answer.text, answer.reasoning) == ("I look.", "Hm, well.")
    assert [(call.name, call.arguments) for call in answer.calls] == [("get_weather", PARIS), ("get_weather", ROME)]
    record.with_content = True
    with caplog.at_level("INFO", logger="hfchat.serving.requests"):
        logs.log_request(record)
        record.with_content = False
        logs.log_request(record)
    shown, hidden = caplog.records
    assert (shown.reasoning, shown.calls[0][1]["arguments"]) == (["Hm, well."], ROME)
    assert not hasattr(hidden, "calls")
    assert not hasattr(hidden, "reasoning")


class Verdict(BaseModel):
    answer: Literal["yes", "no"]
    sure: bool


def test_a_real_model_writes_what_the_schema_and_the_tool_say(serve, tiny_tokenizer):
    """Its weights are random, so nothing but the mask makes JSON of its answer."""
    pytest.importorskip("llguidance")
    engine = pytest.importorskip("hfchat.serving.engines.transformers_engine")
    end = tiny_tokenizer.eos_token_id
    model = random_llama(tiny_tokenizer, max_position_embeddings=2048, eos_token_id=end, pad_token_id=end)
    served = serve(engine.TransformersEngine(model, tiny_tokenizer, max_concurrent_requests=1))
    sampled = {"model": MODEL, "temperature": 1, "seed": 1}
    complete = served.openai.chat.completions
    message = complete.parse(messages=HI, response_format=Verdict, **sampled).choices[0].message
    assert isinstance(message.parsed, Verdict)
    tool = openai.pydantic_function_tool(Verdict, name="judge")
    choice = complete.parse(messages=HI, tools=[tool], tool_choice="required", parallel_tool_calls=False, **sampled)
    (call,) = choice.choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, Verdict)
    assert choice.choices[0].finish_reason == "tool_calls"
    response = served.openai.responses.parse(model=MODEL, input="Hi", text_format=Verdict)
    assert isinstance(response.output_parsed, Verdict)
