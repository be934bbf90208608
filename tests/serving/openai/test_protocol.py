"""What a body of a mebibyte may cost: one error is enough to refuse it, so no others are looked for."""

import tracemalloc
from functools import reduce

import pytest
from pydantic import ValidationError

from hfchat.serving.openai.requests import ChatCompletionRequest, CompletionRequest, FeedbackRequest
from hfchat.serving.openai.responses_requests import ResponsesRequest

MANY = 50_000
MESSAGE = {"role": "user", "content": "Hi"}
CHAT = {"model": "m", "messages": [MESSAGE]}
FEEDBACK = {"answer_id": "chatcmpl-1", "rating": "up"}
UNKNOWN = {f"unknown {i}": 1 for i in range(MANY)}
TOOL = {"type": "function", "function": {"name": "a"}}
DEEP = {"type": "function", "function": {"name": "a", "parameters": reduce(lambda inner, _: [inner], range(200), {})}}
RESULT = {"type": "function_call_output", "call_id": "call_0"}
PART = {"type": "text", "text": "a"}


def message(**fields):
    return {"model": "m", "messages": [MESSAGE | fields]}


BODIES = {
    "prompt: empty lists": (CompletionRequest, {"model": "m", "prompt": [[]] * MANY}),
    "prompt: lists of texts": (CompletionRequest, {"model": "m", "prompt": [["a"]] * MANY}),
    "prompt: objects": (CompletionRequest, {"model": "m", "prompt": [{}] * MANY}),
    "prompt: texts": (CompletionRequest, {"model": "m", "prompt": ["a"] * MANY}),
    "prompt: ids and texts": (CompletionRequest, {"model": "m", "prompt": [1] + ["a"] * MANY}),
    "prompt: negative ids": (CompletionRequest, {"model": "m", "prompt": [-1] * MANY}),
    "prompt: negative ids in a list": (CompletionRequest, {"model": "m", "prompt": [[-1] * MANY]}),
    "prompt: too many ids": (CompletionRequest, {"model": "m", "prompt": [1] * 300_000}),
    "messages: numbers": (ChatCompletionRequest, {"model": "m", "messages": [1] * MANY}),
    "messages: objects": (ChatCompletionRequest, {"model": "m", "messages": [{}] * MANY}),
    "messages: too many": (ChatCompletionRequest, {"model": "m", "messages": [MESSAGE] * MANY}),
    "messages: unknown fields": (ChatCompletionRequest, message(**UNKNOWN)),
    "content: numbers": (ChatCompletionRequest, message(content=[1] * MANY)),
    "content: objects": (ChatCompletionRequest, message(content=[{}] * MANY)),
    "content: images": (ChatCompletionRequest, message(content=[{"type": "image_url", "image_url": {}}] * MANY)),
    "content: too many parts": (ChatCompletionRequest, message(content=[PART] * MANY)),
    "content: unknown fields": (ChatCompletionRequest, message(content=[PART | UNKNOWN])),
    "annotations": (ChatCompletionRequest, message(annotations=[1] * MANY)),
    "unknown fields": (ChatCompletionRequest, CHAT | UNKNOWN),
    "stream_options": (ChatCompletionRequest, CHAT | {"stream": True, "stream_options": UNKNOWN}),
    "response_format": (ChatCompletionRequest, CHAT | {"response_format": UNKNOWN}),
    "stop": (ChatCompletionRequest, CHAT | {"stop": [1] * MANY}),
    "metadata": (ChatCompletionRequest, CHAT | {"metadata": UNKNOWN}),
    "logit_bias": (ChatCompletionRequest, CHAT | {"logit_bias": dict.fromkeys(UNKNOWN, "high")}),
    "modalities": (ChatCompletionRequest, CHAT | {"modalities": ["audio"] * MANY}),
    "modalities: too many": (ChatCompletionRequest, CHAT | {"modalities": ["text"] * MANY}),
    "tools": (ChatCompletionRequest, CHAT | {"tools": [{}] * MANY}),
    "tools: too many": (ChatCompletionRequest, CHAT | {"tools": [TOOL] * MANY}),
    "tools: unknown fields": (ChatCompletionRequest, CHAT | {"tools": [TOOL | UNKNOWN]}),
    "tool_choice": (ChatCompletionRequest, CHAT | {"tools": [TOOL], "tool_choice": UNKNOWN}),
    "tool_calls: numbers": (ChatCompletionRequest, message(tool_calls=[1] * MANY)),
    "tool_calls: objects": (ChatCompletionRequest, message(tool_calls=[{}] * MANY)),
    "parameters: wide": (ChatCompletionRequest, CHAT | {"tools": [DEEP | {"wide": [[]] * 100_000}]}),
    "input: numbers": (ResponsesRequest, {"model": "m", "input": [1] * MANY}),
    "input: objects": (ResponsesRequest, {"model": "m", "input": [{}] * MANY}),
    "input: too many": (ResponsesRequest, {"model": "m", "input": [MESSAGE] * MANY}),
    "input: unknown fields": (ResponsesRequest, {"model": "m", "input": [MESSAGE | UNKNOWN]}),
    "input: parts": (ResponsesRequest, {"model": "m", "input": [MESSAGE | {"content": [{}] * MANY}]}),
    "output: parts": (ResponsesRequest, {"model": "m", "input": [RESULT | {"output": [1] * MANY}]}),
    "summary": (ResponsesRequest, {"model": "m", "input": [{"type": "reasoning", "summary": [1] * MANY}]}),
    "include": (ResponsesRequest, {"model": "m", "input": "Hi", "include": [1] * MANY}),
    "text": (ResponsesRequest, {"model": "m", "input": "Hi", "text": UNKNOWN}),
    "feedback: unknown fields": (FeedbackRequest, FEEDBACK | UNKNOWN),
    "tags": (FeedbackRequest, FEEDBACK | {"tags": [1] * MANY}),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_large_body_is_refused_at_its_first_errors(name):
    model, body = BODIES[name]
    tracemalloc.start()
    try:
        with pytest.raises(ValidationError) as refused:
            model.model_validate(body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert refused.value.error_count() <= 4
    assert peak < 16 * 2**20, f"{peak / 2**20:.0f} MiB"


@pytest.mark.parametrize(
    ("prompt", "param"),
    [([1, "a"], "prompt[0]"), (["a", [1]], "prompt[1]"), ([[1], [2, -1]], "prompt[1][1]"), ([1, -1], "prompt[1]")],
)
def test_a_prompt_is_refused_for_what_it_is_meant_to_be(serve, scripted, prompt, param):
    assert serve(scripted()).complete(prompt=prompt).json()["error"]["param"] == param


def test_one_of_many_unknown_fields_is_named(serve, scripted):
    error = serve(scripted()).chat(**UNKNOWN).json()["error"]
    assert (error["param"], error["code"]) == ("unknown 0", "unsupported_field")
