"""Several answers to one request, and log probabilities of a text that stop strings cut; over a scripted engine."""

import asyncio
import json
import threading

import pytest

from hfchat.serving.openai import generation
from hfchat.serving.openai.formats import Part

MODEL = "tiny-chat"
HI = [{"role": "user", "content": "Hi"}]


def chunks(response):
    assert response.status_code == 200, response.text
    *events, done = [line[6:] for line in response.text.split("\n\n") if line]
    assert done == "[DONE]"
    return [json.loads(event) for event in events]


def state(served):
    health = served.http.get("/health").json()
    return health["running"], health["waiting"]


def test_several_answers_have_openais_shape(serve, scripted):
    served = serve(scripted())
    body = served.chat(n=3, seed=5).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert {choice["message"]["content"] for choice in body["choices"]} == {"Hello, world!"}
    assert body["usage"] == {"prompt_tokens": 2, "completion_tokens": 15, "total_tokens": 17}
    assert sorted(sampling.seed for sampling in served.engine.samplings) == [5, 6, 7]
    assert served.engine.prompts == [HI]  # encoded once


def test_streamed_answers_are_told_apart_by_their_index(serve, scripted):
    served = serve(scripted())
    *parts, usage = chunks(served.chat(n=3, stream=True, stream_options={"include_usage": True}))
    assert all(len(chunk["choices"]) == 1 for chunk in parts)
    for index in range(3):
        choices = [chunk["choices"][0] for chunk in parts if chunk["choices"][0]["index"] == index]
        assert choices[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(choice["delta"].get("content", "") for choice in choices) == "Hello, world!"
        assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["stop"]
        assert choices[-1]["finish_reason"] == "stop"
    assert usage["usage"]["completion_tokens"] == 15


def test_each_answer_takes_a_place(serve, scripted, eventually):
    served = serve(scripted(held=True), max_concurrent_requests=2, max_waiting_requests=3)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(served.chat(n=4)))
    thread.start()
    eventually(lambda: state(served) == (2, 2))
    assert served.chat(n=2).status_code == 429
    served.engine.release()
    thread.join(10)
    assert len(answers[0].json()["choices"]) == 4
    refused = served.chat(n=6)  # more than there will ever be room for
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "n"
    assert state(served) == (0, 0)


@pytest.mark.parametrize("stream", [False, True])
def test_the_failure_of_one_answer_ends_all(serve, scripted, eventually, stream):
    served = serve(scripted(fail_after=2), max_concurrent_requests=2)
    response = served.chat(n=4, stream=stream)
    assert "scripted failure" in response.text
    assert response.status_code == (200 if stream else 500)
    eventually(lambda: served.engine.active == 0)
    assert state(served) == (0, 0)


def test_a_client_that_goes_away_frees_every_place(serve, scripted, eventually):
    served = serve(scripted(held=True), max_concurrent_requests=2)
    body = {"model": MODEL, "messages": HI, "n": 4, "stream": True}
    with served.http.stream("POST", "/v1/chat/completions", json=body) as response:
        texts = response.iter_text()  # kept: its end would close the response
        next(texts)
        eventually(lambda: state(served) == (2, 2))
    eventually(lambda: served.engine.active == 0, 1)
    assert state(served) == (0, 0)


def test_logprobs_have_openais_shape(serve, scripted):
    served = serve(scripted(pieces=["é", "!"]))
    choice = served.chat(logprobs=True, top_logprobs=2).json()["choices"][0]
    first = {"token": "é", "logprob": -1.0, "bytes": [0xC3, 0xA9]}
    assert choice["logprobs"]["refusal"] is None
    assert choice["logprobs"]["content"][0] == first | {
        "top_logprobs": [first, {"token": "é", "logprob": -2.0, "bytes": [0xC3, 0xA9]}]
    }
    assert [entry["token"] for entry in choice["logprobs"]["content"]] == ["é", "!"]
    assert served.engine.samplings[0].logprobs == 2
    assert served.chat(logprobs=True).json()["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []
    assert served.chat().json()["choices"][0]["logprobs"] is None


@pytest.mark.parametrize(
    ("stop", "tokens"),
    [
        (None, ["Hello", ", ", "wor", "ld", "!"]),
        ("world?", ["Hello", ", ", "wor", "ld", "!"]),  # held back, but sent in the end
        ("world", ["Hello", ", "]),
        ("rld", ["Hello", ", ", "wor"]),  # the beginning of "wor" was sent
        ("Hello", []),
    ],
)
def test_logprobs_come_with_their_text(serve, scripted, stop, tokens):
    served = serve(scripted())
    whole = served.chat(logprobs=True, stop=stop).json()["choices"][0]
    assert [entry["token"] for entry in whole["logprobs"]["content"]] == tokens
    text = ""
    seen = []
    for chunk in chunks(served.chat(logprobs=True, stop=stop, stream=True)):
        choice = chunk["choices"][0]
        text += choice["delta"].get("content", "")
        seen += [entry["token"] for entry in (choice["logprobs"] or {}).get("content", [])]
        assert "".join(seen).startswith(text) or text.startswith("".join(seen))
    assert seen == tokens
    assert text == whole["message"]["content"]


def test_parts_of_which_nothing_is_sent_are_no_sign_of_life(monkeypatch):
    """A guard may hold a whole answer back; the connection must not look dead meanwhile."""
    monkeypatch.setattr(generation, "_KEEP_ALIVE_S", 0.05)

    async def held_back():
        for _ in range(30):
            await asyncio.sleep(0.01)
            yield Part(0, "")
        yield Part(0, "All of it.", finish_reason="stop")

    async def read():
        return [part async for part in generation._merged([held_back()])]

    parts = asyncio.run(read())
    assert parts.count(None) >= 2
    assert parts[-1].text == "All of it."
