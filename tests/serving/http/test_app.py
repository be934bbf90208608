"""The application over a scripted engine, driven by the real `openai` client and by raw HTTP."""

import asyncio
import json
import threading

import httpx
import openai
import pytest

from hfchat.serving.versions.models import ServedModels

MODEL = "tiny-chat"
HI = [{"role": "user", "content": "Hi"}]


def events(response) -> list[str]:
    lines = [line for line in response.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    return [line[6:] for line in lines]


# ---------------------------------------------------------------------------------------------------------- shapes


def test_completion_has_openais_shape(serve, scripted):
    served = serve(scripted())
    response = served.chat(max_tokens=7, temperature=0.5, top_p=0.9, seed=3)
    body = response.json()
    assert response.status_code == 200
    assert body.pop("id").startswith("chatcmpl-")
    assert isinstance(body.pop("created"), int)
    message = {"role": "assistant", "content": "Hello, world!", "refusal": None}
    assert body == {
        "object": "chat.completion",
        "model": MODEL,
        "system_fingerprint": None,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 2, "completion_tokens": 5, "total_tokens": 7},
    }
    sampling = served.engine.samplings[0]
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.seed) == (7, 0.5, 0.9, 3)


def test_stream_has_openais_shape(serve, scripted):
    served = serve(scripted(finish_reason="length"))
    response = served.chat(stream=True, stream_options={"include_usage": True})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    *chunks, done = events(response)
    assert done == "[DONE]"
    chunks = [json.loads(chunk) for chunk in chunks]
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1
    assert chunks[0]["object"] == "chat.completion.chunk"
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:-1]]
    texts = [{"content": text} for text in ["Hello", ", ", "wor", "ld", "!"]]
    assert deltas == [{"role": "assistant", "content": ""}, *texts, {}]
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]]
    assert reasons == [None] * 6 + ["length"]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == {"prompt_tokens": 2, "completion_tokens": 5, "total_tokens": 7}


def test_stream_without_usage_says_nothing_of_it(serve, scripted):
    assert "usage" not in serve(scripted()).chat(stream=True).text


def test_openai_client(serve, scripted):
    served = serve(scripted())
    create = served.openai.chat.completions.create
    answer = create(model=MODEL, messages=HI)
    assert answer.choices[0].message.content == "Hello, world!"
    with create(model=MODEL, messages=HI, stream=True, stream_options={"include_usage": True}) as stream:
        chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Hello, world!"
    assert chunks[-1].usage.total_tokens == 7
    # an answer can be sent back as it came
    history = [*HI, answer.choices[0].message, *HI]
    assert create(model=MODEL, messages=history).choices[0].finish_reason == "stop"
    assert [message["role"] for message in served.engine.prompts[-1]] == ["user", "assistant", "user"]
    assert [model.id for model in served.openai.models.list()] == [MODEL]
    assert served.openai.models.retrieve(MODEL).owned_by == "hfchat"
    with pytest.raises(openai.NotFoundError):
        served.openai.models.retrieve("another/model")


def test_a_model_whose_id_has_a_slash(serve, scripted):
    models = ServedModels.of("org/tiny", scripted())
    served = serve(models, served_model_name="org/tiny")
    assert served.openai.models.retrieve("org/tiny").id == "org/tiny"
    for id in ("org/tiny", "org%2Ftiny"):
        assert served.http.get(f"/v1/models/{id}").json()["id"] == "org/tiny"
        assert served.http.get(f"/v1/models/{id}/card").json()["object"] == "model.card"
        assert served.http.get(f"/v1/models/{id}x").status_code == 404
    assert served.http.get("/v1/models/org").status_code == 404
    assert served.chat(model="org/tiny").json()["model"] == "org/tiny"


def test_async_openai_client_streams_side_by_side(serve, scripted):
    served = serve(scripted())

    async def one(client):
        stream = await client.chat.completions.create(model=MODEL, messages=HI, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def all_of_them():
        async with served.async_openai() as client:
            return await asyncio.gather(*(one(client) for _ in range(12)))

    assert asyncio.run(all_of_them()) == ["Hello, world!"] * 12


def test_text_parts_are_joined(serve, scripted):
    served = serve(scripted())
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert served.chat(messages=[{"role": "user", "content": parts}]).status_code == 200
    assert served.engine.prompts == [[{"role": "user", "content": "ab"}]]


def test_defaults_are_the_engines(serve, scripted):
    served = serve(scripted(temperature=0.7, top_p=0.8, context_length=50), default_max_tokens=20)
    served.chat()
    served.chat(messages=[{"role": "user", "content": "x" * 40}])
    first, second = served.engine.samplings
    assert (first.temperature, first.top_p, first.max_tokens) == (0.7, 0.8, 20)
    assert second.max_tokens == 10  # what the context has left


# ------------------------------------------------------------------------------------------------------ bad input

VALID = b'{"model": "tiny-chat", "messages": [{"role": "user", "content": "x"}]'  # and open
TOOL = {"role": "tool", "tool_call_id": "call_0", "content": "x"}


def tool(name, **fields):
    return {"type": "function", "function": {"name": name} | fields}


def chosen(name):
    return {"type": "function", "function": {"name": name}}


def json_schema(schema):
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}


def nested(levels):
    return {} if levels == 1 else {"a": nested(levels - 1)}


def called(arguments="{}", **fields):
    call = {"id": "call_0", "function": {"name": "a", "arguments": arguments}} | fields
    return {"role": "assistant", "content": None, "tool_calls": [call]}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temprature": 1}, "temprature"),
        ({"logit-bias[0] é": {}}, "logit-bias[0] é"),
        ({"tools": []}, "tools"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [tool("a b")]}, "tools[0].function.name"),
        ({"tools": [tool("a"), tool("a")]}, "tools[1].function.name"),
        ({"tools": [tool("a", parameters=[])]}, "tools[0].function.parameters"),
        ({"tools": [tool("a", parameters=nested(101))]}, "tools[0].function.parameters"),
        ({"tools": [tool("a", strict="yes")]}, "tools[0].function.strict"),
        ({"tools": [tool(f"f{i}") for i in range(129)]}, "tools"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tool_choice": "maybe"}, "tool_choice"),
        ({"tools": [tool("a")], "tool_choice": chosen("b")}, "tool_choice.function.name"),
        ({"tools": [tool("a")], "tool_choice": {"type": "allowed_tools"}}, "tool_choice.type"),
        ({"functions": [{"name": "a"}]}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": {"-1": 5}}, "logit_bias"),
        ({"logit_bias": {"a": 5}}, "logit_bias"),
        ({"logit_bias": dict.fromkeys(map(str, range(1025)), 1)}, "logit_bias"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 1.5}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"chat_template_kwargs": {"a": nested(101)}}, "chat_template_kwargs"),
        ({"store": True}, "store"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"reasoning_effort": "lots"}, "reasoning_effort"),
        ({"modalities": ["text", "audio"]}, "modalities[1]"),
        ({"response_format": {"type": "grammar"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_object", "json_schema": {"name": "a"}}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.name"),
        ({"response_format": json_schema(nested(101))}, "response_format.json_schema.schema"),
        ({"n": 0}, "n"),
        ({"n": 41}, "n"),  # more than run and wait together
        ({"n": 129}, "n"),
        ({"logprobs": 2}, "logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": -2.5}, "frequency_penalty"),
        ({"seed": 2**63}, "seed"),
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": -1}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"max_tokens": 99}, "max_tokens"),
        ({"max_completion_tokens": 10**30}, "max_completion_tokens"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [*HI, TOOL | {"tool_call_id": "call_1"}]}, "messages[1].tool_call_id"),
        ({"messages": [called(), TOOL | {"name": "other"}]}, "messages[1].name"),
        ({"messages": [called(), TOOL | {"content": None}]}, "messages[1].content"),
        ({"messages": [called() | {"role": "user"}]}, "messages[0].tool_calls"),
        ({"messages": [HI[0] | {"reasoning_content": "Hm"}]}, "messages[0].reasoning_content"),
        ({"messages": [called("{")]}, "messages[0].tool_calls[0].function.arguments"),
        ({"messages": [called("[]")]}, "messages[0].tool_calls[0].function.arguments"),
        ({"messages": [called('{"a": NaN}')]}, "messages[0].tool_calls[0].function.arguments"),
        ({"messages": [called('{"a": "\\ud800"}')]}, "messages[0].tool_calls[0].function.arguments"),
        ({"messages": [called('{"a":' * 10_000)]}, "messages[0].tool_calls[0].function.arguments"),
        ({"messages": [called(index=1)]}, "messages[0].tool_calls[0].index"),
        ({"messages": [called(type="custom")]}, "messages[0].tool_calls[0].type"),
        ({"messages": [called() | {"function_call": {"name": "a"}}]}, "messages[0].function_call"),
        ({"messages": [called() | {"refusal": "no"}]}, "messages[0].refusal"),
        ({"messages": [called() | {"annotations": [{}]}]}, "messages[0].annotations"),
        ({"messages": [called() | {"audio": {"id": "a"}}]}, "messages[0].audio"),
        ({"messages": [called() | {"parsed": {"a": 1}}]}, "messages[0].parsed"),
        ({"messages": [*HI, {"role": "user"}]}, "messages[1].content"),
        ({"messages": [{"role": "user", "content": "x", "name": "me"}]}, "messages[0].name"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": "x" * 101}]}, "messages"),
        ({"messages": [{"role": "user", "content": "refuse me"}]}, "messages"),
    ],
)
def test_a_field_is_honoured_or_refused_by_name(serve, scripted, fields, param):
    served = serve(scripted())
    response = served.chat(**fields)
    error = response.json()["error"]
    assert response.status_code == 400, error
    assert error["param"] == param, error
    assert error["message"].startswith(f"{param}: "), error
    assert error["type"] == "invalid_request_error"
    assert set(error) == {"message", "type", "param", "code"}
    assert served.engine.started == 0  # nothing was computed


@pytest.mark.parametrize(
    "neutral",
    [
        {"n": 1},
        {"logprobs": False},
        {"presence_penalty": 0},
        {"frequency_penalty": 0.0},
        {"stop": None},
        {"tools": None},
        {"logit_bias": {}},
        {"user": "me", "safety_identifier": "me", "prompt_cache_key": "k"},
        {"metadata": {"team": "a"}, "store": False, "service_tier": "auto"},
        {"response_format": {"type": "text"}, "modalities": ["text"]},
        {"response_format": None, "tool_choice": "none", "parallel_tool_calls": None, "function_call": "none"},
        {"top_k": None, "min_p": None, "repetition_penalty": None, "chat_template_kwargs": None},
    ],
)
def test_values_that_change_nothing_are_accepted(serve, scripted, neutral):
    assert serve(scripted()).chat(**neutral).status_code == 200


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{", 400),
        (b"", 400),
        (b"[]", 400),
        (b"null", 400),
        (b"\xff\xfe", 400),
        (b'{"model": "tiny-chat", "messages": [{"role": "user", "content": "\\ud800"}]}', 400),
        (b'{"model": "tiny-chat", "temperature": NaN, "messages": [{"role": "user", "content": "x"}]}', 400),
        (b'{"\\ud800": 1, "model": "tiny-chat", "messages": [{"role": "user", "content": "x"}]}', 400),
        (VALID + b', "chat_template_kwargs": {"a": ["\\ud800"]}}', 400),
        (VALID + b', "chat_template_kwargs": {"a": NaN}}', 400),
        (b'{"model": "\\ud800", "messages": [{"role": "user", "content": "x"}]}', 400),
        (VALID + b', "tools": [' + b'{"a": ' * 10_000 + b"1" + b"}" * 10_000 + b"]}", 400),
        (b"[" * 100_000, 400),
        (b'{"a": ' * 100_000, 400),
        (b" " * (1024 * 1024 + 1), 413),
    ],
)
def test_broken_bodies(serve, scripted, content, status):
    served = serve(scripted())
    response = served.http.post("/v1/chat/completions", content=content, headers={"content-type": "application/json"})
    assert response.status_code == status, response.text
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert served.chat().status_code == 200  # and it goes on


def test_a_body_without_a_length_is_bounded_too(serve, scripted):
    def endless():
        for _ in range(2000):
            yield b" " * 1024

    served = serve(scripted())
    response = served.http.post(
        "/v1/chat/completions", content=endless(), headers={"content-type": "application/json"}
    )
    assert response.status_code == 413
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_a_form_of_another_site_is_not_json(serve, scripted):
    served = serve(scripted())
    body = json.dumps({"model": MODEL, "messages": HI})
    response = served.http.post("/v1/chat/completions", content=body, headers={"content-type": "text/plain"})
    assert response.status_code == 415
    assert served.engine.started == 0


def test_wrong_names(serve, scripted):
    served = serve(scripted())
    response = served.chat(model="gpt-5")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"
    assert response.json()["error"]["param"] == "model"
    assert served.http.get("/v1/nothing").json()["error"]["type"] == "invalid_request_error"
    assert served.http.get("/v1/nothing").status_code == 404
    response = served.http.get("/v1/chat/completions")
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    assert "GET" in response.json()["error"]["message"]


def test_only_local_names_reach_a_local_server(serve, scripted):
    served = serve(scripted())
    response = served.http.get("/v1/models", headers={"host": "evil.example"})
    assert response.status_code == 403
    assert "error" in response.json()
    for host in ("localhost:1234", "127.0.0.1", "[::1]:80"):
        assert served.http.get("/v1/models", headers={"host": host}).status_code == 200


# ---------------------------------------------------------------------------------------------------------- stops


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ("world", "Hello, "),
        (["zzz", "o, w"], "Hell"),
        ("!", "Hello, world"),
        ("Hello", ""),
        (["world!", "wor"], "Hello, "),
        ("world?", "Hello, world!"),  # held back, but it was none
    ],
)
def test_stop_strings_are_never_sent(serve, scripted, eventually, stream, stop, expected):
    served = serve(scripted())
    response = served.chat(stop=stop, stream=stream)
    if stream:
        chunks = [json.loads(event)["choices"][0] for event in events(response)[:-1]]
        text = "".join(chunk["delta"].get("content", "") for chunk in chunks)
        reason = chunks[-1]["finish_reason"]
    else:
        choice = response.json()["choices"][0]
        text, reason = choice["message"]["content"], choice["finish_reason"]
    assert (text, reason) == (expected, "stop")
    eventually(lambda: served.engine.active == 0)


# --------------------------------------------------------------------------------------------------------- limits


def state(served):
    health = served.http.get("/health").json()
    return health["running"], health["waiting"]


def test_the_queue_is_bounded(serve, scripted, eventually):
    served = serve(scripted(held=True), max_concurrent_requests=2, max_waiting_requests=1)
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(served.chat())) for _ in range(3)]
    for thread in threads:
        thread.start()
    eventually(lambda: state(served) == (2, 1))
    assert served.engine.active == 2
    refused = served.chat(stream=True)
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) > 0
    assert refused.json()["error"]["type"] == "rate_limit_error"
    served.engine.release()
    for thread in threads:
        thread.join(10)
    assert [answer.status_code for answer in answers] == [200] * 3
    assert state(served) == (0, 0)
    assert served.chat().status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_place(serve, scripted, eventually, stream):
    served = serve(scripted(held=True), max_concurrent_requests=1, max_waiting_requests=5)
    body = {"model": MODEL, "messages": HI, "stream": stream}

    def leave_early():
        with httpx.Client(base_url=served.url) as client:
            if stream:
                with client.stream("POST", "/v1/chat/completions", json=body) as response:
                    assert next(response.iter_text())
            else:
                with pytest.raises(httpx.ReadTimeout):
                    client.post("/v1/chat/completions", json=body, timeout=0.3)

    leave_early()
    eventually(lambda: served.engine.active == 0, 1)
    assert state(served) == (0, 0)
    # also while it waits for its place
    blocker = threading.Thread(target=served.chat)
    blocker.start()
    eventually(lambda: state(served) == (1, 0))
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=0.3)
    eventually(lambda: state(served) == (1, 0), 1)
    served.engine.release()
    blocker.join(10)
    assert served.engine.started == 2  # the one that waited was never begun
    assert state(served) == (0, 0)


# --------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_fails_at_once_is_a_500(serve, scripted, stream):
    response = serve(scripted(fail_after=0)).chat(stream=stream)
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "server_error"
    assert "scripted failure" in response.json()["error"]["message"]


def test_an_engine_that_fails_in_a_stream_ends_it_with_an_error_event(serve, scripted):
    served = serve(scripted(fail_after=2))
    *_, error, done = events(served.chat(stream=True))
    assert json.loads(error)["error"]["code"] == "engine_error"
    assert done == "[DONE]"
    with pytest.raises(openai.APIError, match="scripted failure"):
        list(served.openai.chat.completions.create(model=MODEL, messages=HI, stream=True))
    assert state(served) == (0, 0)


def test_a_dead_engine_is_not_ready_and_nothing_is_asked_of_it(serve, scripted):
    served = serve(scripted())
    assert served.http.get("/ready").json() == {"status": "ready"}
    served.engine.error = "out of memory"
    for response in (served.http.get("/ready"), served.chat(), served.complete()):
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) > 0
        assert "out of memory" in response.json()["error"]["message"]
    assert served.engine.started == 0
    assert served.http.get("/health").json() == {"status": "ok", "model": MODEL, "running": 0, "waiting": 0}


def test_a_bug_is_a_500_in_openais_shape(serve, scripted):
    engine = scripted()
    engine.encode = None  # TypeError
    response = serve(engine).chat()
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "server_error"
    assert "NoneType" not in response.text
