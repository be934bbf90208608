"""`/v1/completions`, driven by the real `openai` client and by raw HTTP, over a scripted engine."""

import asyncio
import json

import openai
import pytest

MODEL = "tiny-chat"


def test_completion_has_openais_shape(serve, scripted):
    served = serve(scripted())
    body = served.complete(max_tokens=7).json()
    assert body.pop("id").startswith("cmpl-")
    assert isinstance(body.pop("created"), int)
    assert body == {
        "object": "text_completion",
        "model": MODEL,
        "system_fingerprint": None,
        "choices": [{"index": 0, "text": "Hello, world!", "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 2, "completion_tokens": 5, "total_tokens": 7},
    }
    served.complete()
    assert [sampling.max_tokens for sampling in served.engine.samplings] == [7, 16]  # OpenAI's default


def test_stream_has_openais_shape(serve, scripted):
    served = serve(scripted(finish_reason="length"))
    response = served.complete(stream=True, stream_options={"include_usage": True}, stop="!")
    *events, done = [line[6:] for line in response.text.split("\n\n") if line]
    assert done == "[DONE]"
    *parts, usage = map(json.loads, events)
    assert {chunk["object"] for chunk in parts} == {"text_completion"}
    assert "".join(chunk["choices"][0]["text"] for chunk in parts) == "Hello, world"
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in parts]
    assert reasons == [None] * (len(parts) - 1) + ["stop"]
    assert all(chunk["usage"] is None for chunk in parts)
    assert usage["choices"] == []
    assert usage["usage"]["total_tokens"] == 7


@pytest.mark.parametrize(
    ("prompt", "encoded"),
    [
        ("Hi", ["Hi"]),
        (["Hi", "you"], ["Hi", "you"]),
        ([1, 2, 3], [[1, 2, 3]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
    ],
)
def test_prompts_are_texts_or_tokens_one_or_many(serve, scripted, prompt, encoded):
    served = serve(scripted())
    body = served.complete(prompt=prompt, n=2).json()
    assert served.engine.prompts == encoded
    assert [choice["index"] for choice in body["choices"]] == list(range(2 * len(encoded)))
    assert body["usage"]["prompt_tokens"] == sum(map(len, encoded))


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_have_the_old_shape(serve, scripted, stream):
    served = serve(scripted(pieces=["ab", "c", "STOP"]))
    response = served.complete(logprobs=1, stop="STOP", stream=stream)
    if stream:
        *events, _ = [line[6:] for line in response.text.split("\n\n") if line]
        chunks = map(json.loads, events)
        parts = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    else:
        parts = [response.json()["choices"][0]["logprobs"]]
    joined = {name: [entry for part in parts for entry in part[name]] for name in parts[0]}
    assert joined == {
        "tokens": ["ab", "c"],
        "token_logprobs": [-1.0, -1.0],
        "top_logprobs": [{"ab": -1.0}, {"c": -1.0}],
        "text_offset": [0, 2],
    }


def test_openai_clients(serve, scripted):
    served = serve(scripted())
    answer = served.openai.completions.create(model=MODEL, prompt=["a", "b"], logprobs=2)
    assert [choice.text for choice in answer.choices] == ["Hello, world!"] * 2
    assert answer.choices[0].logprobs.tokens[0] == "Hello"

    async def one(client):
        stream = await client.completions.create(model=MODEL, prompt="a", stream=True)
        return "".join([chunk.choices[0].text async for chunk in stream])

    async def all_of_them():
        async with served.async_openai() as client:
            return await asyncio.gather(*(one(client) for _ in range(4)))

    assert asyncio.run(all_of_them()) == ["Hello, world!"] * 4
    with pytest.raises(openai.NotFoundError):
        served.openai.completions.create(model="gpt-3", prompt="a")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt[0]"),  # texts or ids: either one of the two is wrong
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": [999]}, "prompt"),
        ({"prompt": "refuse me"}, "prompt"),
        ({"prompt": "x" * 101}, "prompt"),
        ({"prompt": "x" * 90}, "max_tokens"),
        ({"echo": True}, "echo"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"top_k": -2}, "top_k"),
        ({"tools": []}, "tools"),
        ({"response_format": {"type": "text"}}, "response_format"),
        ({"messages": []}, "messages"),
        ({"max_completion_tokens": 5}, "max_completion_tokens"),
        ({"prompt": ["a"] * 50}, "prompt"),
        ({"prompt": ["a"] * 21, "n": 2}, "n"),
    ],
)
def test_a_field_is_honoured_or_refused_by_name(serve, scripted, fields, param):
    served = serve(scripted())
    response = served.complete(**{"max_tokens": 20} | fields)
    error = response.json()["error"]
    assert response.status_code == 400, error
    assert error["param"] == param, error
    assert error["message"].startswith(f"{param}: "), error
    assert served.engine.started == 0
    neutral = {"echo": False, "suffix": None, "best_of": 1, "logprobs": None, "user": "me", "max_tokens": None}
    assert served.complete(**neutral).status_code == 200
