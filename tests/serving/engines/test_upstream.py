"""An upstream's streams become pieces, its failures errors that say whose fault they are, and nothing of it leaks."""

import asyncio
import tracemalloc
from contextlib import aclosing, asynccontextmanager

import pytest

from hfchat.chat import CallPart, Chat
from hfchat.serving.engines.engine import EngineError, Logprob, Piece, Sampling, TokenLogprobs
from hfchat.serving.engines.upstream import Upstream, UpstreamBusyError, UpstreamError
from hfchat.serving.openai.errors import ApiError
from tests.servers.streams import DONE, chunk, event, says, stream_server, usage

MESSAGES = [{"role": "user", "content": "Hi"}]
HI = Chat(MESSAGES)
PLAIN = Sampling(max_tokens=None)


@asynccontextmanager
async def upstream(script, api_key=None, model=None, **fields):
    async with stream_server(script, **fields) as server:
        engine = Upstream(server.url, model=model, api_key=api_key)
        engine.open()
        try:
            yield engine, server
        finally:
            await engine.stop()


async def answer(engine, sampling=PLAIN, text=None, chat=HI):
    prompt = await (engine.encode(chat) if text is None else engine.encode_text(text))
    assert prompt.tokens is None
    return [piece async for piece in engine.stream(prompt, sampling)]


def ask(script, sampling=PLAIN, text=None, chat=HI, **fields):
    """The pieces of one answer, and the request that was made for it."""

    async def run():
        async with upstream(script, **fields) as (engine, server):
            return await answer(engine, sampling, text, chat), server.requests[-1]

    return asyncio.run(run())


def packets(*sent, end=True):
    async def script(request, send):
        await send.start()
        for packet in sent:
            await send.send(packet)
        if end:
            await send.end()

    return script


def whole(status, body, **headers):
    async def script(request, send):
        await send.answer(status, body, **headers)

    return script


def test_an_answer_comes_piece_by_piece_and_the_usage_with_its_end():
    pieces, request = ask(says("Hel", "lo"))
    assert pieces == [Piece("Hel", 1), Piece("lo", 1), Piece("", 1, "stop", prompt_tokens=7)]
    assert request.path == "/v1/chat/completions"
    assert request.body == {
        "model": "upstream-model",
        "messages": MESSAGES,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert "authorization" not in request.headers


def test_what_a_request_sets_is_sent():
    sampling = Sampling(
        max_tokens=5,
        temperature=0.0,
        top_p=0.5,
        top_k=0,
        min_p=0.25,
        repetition_penalty=1.5,
        logit_bias={7: -100.0},
        seed=3,
        presence_penalty=1.0,
        frequency_penalty=-1.0,
        logprobs=2,
        stop=("a", "b"),
    )
    _, request = ask(says("x"), sampling, api_key="secret", model="chosen")
    assert request.body == {
        "model": "chosen",
        "messages": MESSAGES,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 5,
        "temperature": 0.0,
        "top_p": 0.5,
        "top_k": 0,
        "min_p": 0.25,
        "repetition_penalty": 1.5,
        "logit_bias": {"7": -100.0},
        "seed": 3,
        "presence_penalty": 1.0,
        "frequency_penalty": -1.0,
        "logprobs": True,
        "top_logprobs": 2,
        "stop": ["a", "b"],
    }
    assert request.headers["authorization"] == "bearer secret"


@pytest.mark.parametrize("prompt", ["Once", [1, 2]])
def test_completions(prompt):
    logprobs = {"tokens": ["a", "b"], "token_logprobs": [-1, -2.0], "top_logprobs": [{"a": -1, "c": -0.5}, None]}
    first = {"choices": [{"index": 0, "text": "ab", "logprobs": logprobs, "finish_reason": None}]}
    last = {"choices": [{"index": 0, "text": "", "logprobs": None, "finish_reason": "length"}]}
    script = packets(event(first), event(last), event(usage(1, 2)), DONE)
    pieces, request = ask(script, Sampling(2, logprobs=1), text=prompt)
    assert request.path == "/v1/completions"
    assert (request.body["prompt"], request.body["logprobs"]) == (prompt, 1)
    top = (Logprob("c", -0.5, b"c"), Logprob("a", -1.0, b"a"))
    assert pieces == [
        Piece("a", 1, logprobs=(TokenLogprobs(Logprob("a", -1.0, b"a"), top),)),
        Piece("b", 1, logprobs=(TokenLogprobs(Logprob("b", -2.0, b"b")),)),
        Piece("", 0, "length", prompt_tokens=1),
    ]


def test_log_probabilities_of_a_chat():
    content = [{"token": "é", "logprob": -1, "bytes": [195, 169], "top_logprobs": [{"token": "x", "logprob": -2.5}]}]
    script = packets(event(chunk("é", logprobs={"content": content})), event(chunk(finish_reason="stop")), DONE)
    pieces, _ = ask(script, Sampling(1, logprobs=1))
    token = TokenLogprobs(Logprob("é", -1.0, "é".encode()), (Logprob("x", -2.5, b"x"),))
    assert pieces == [Piece("é", 1, logprobs=(token,)), Piece("", 0, "stop")]


def test_text_that_comes_together_is_one_piece():
    script = packets(event(chunk("a")) + event(chunk("b")) + event(chunk("c", "stop")) + event(usage(2, 3)) + DONE)
    pieces, _ = ask(script)
    assert pieces == [Piece("abc", 3), Piece("", 0, "stop", prompt_tokens=2)]


def test_characters_are_whole_however_they_are_spelled():
    stream = b"".join(
        [
            b": comment\r\n\r\n",
            b'data:{"choices":[{"delta":{"role":"assistant","content":null}}]}\r\n\r\n',
            b'data: {"choices":[{"delta":{"content":"\\ud83d"}}]}\n\n',
            b'data: {"choices":[{"delta":{"content":"\\ude00 \\udc00 \xc3\xa9"}}]}\n\n',
            b'data: {"choices":[{"delta":{"content":"\\ud83d"},"finish_reason":"stop"}]}\n\n',
        ]
    )
    pieces, _ = ask(packets(*(stream[i : i + 7] for i in range(0, len(stream), 7))))
    assert "".join(piece.text for piece in pieces) == "😀 � é�"


def odd(*choices, **fields):
    """A chunk with these choices, as they are."""
    return event({"id": "x", "object": "chat.completion.chunk", "choices": list(choices)} | fields)


END = event(chunk(finish_reason="stop"))
ODD = {
    "an empty finish_reason": [event(chunk("a", "")), event(chunk("b", "")), END, DONE],
    "a finish_reason of false": [event(chunk("ab", False)), END],
    "a role with an empty text": [odd({"delta": {"role": "assistant", "content": ""}}), event(chunk("ab")), END],
    "a role alone": [odd({"delta": {"role": "assistant"}}), event(chunk("ab")), END],
    "no delta at the end": [event(chunk("ab")), odd({"index": 0, "finish_reason": "stop"})],
    "a null for a delta": [event(chunk("ab")), odd({"delta": None, "finish_reason": "stop"})],
    "nulls": [odd({"index": None, "delta": {"content": None}, "logprobs": None}, usage=None), event(chunk("ab")), END],
    "a null for choices": [event({"choices": None}), event(chunk("ab")), END],
    "no choices at all": [event({"id": "x"}), event(chunk("ab")), END],
    "a list of parts": [odd({"delta": {"content": [{"type": "text", "text": "ab"}]}}), END],
    "parts of thought": [odd({"delta": {"content": [{"type": "thinking", "thinking": []}]}}), event(chunk("ab")), END],
    "thoughts": [odd({"delta": {"reasoning_content": "hm", "content": None}}), event(chunk("ab")), END],
    "calls of tools that are none": [odd({"delta": {"tool_calls": [], "content": "ab"}}), END],
    "a choice that was not asked for": [odd({"index": 1, "delta": {"content": "z"}}), event(chunk("ab")), END],
    "a usage in each chunk": [event(chunk("ab") | {"usage": {"prompt_tokens": 1}}), END],
    "a usage without counts": [event(chunk("ab")), END, event({"choices": [], "usage": {"total_tokens": None}}), DONE],
    "comments": [b": ping\n\n", event(chunk("ab")), b":\n\n", END],
    "lines as on Windows": [(event(chunk("ab")) + END + DONE).replace(b"\n", b"\r\n")],
    "a byte order mark": [b"\xef\xbb\xbf" + event(chunk("ab")), END],
    "half a byte order mark": [b"\xef\xbb", b"\xbf" + event(chunk("ab")), END],
    "events with names": [b"event: message\nid: 1\n" + event(chunk("ab")), END],
    "no error": [event(chunk("ab") | {"error": None}), END],
}


@pytest.mark.parametrize("name", ODD)
def test_upstreams_have_their_ways(name):
    pieces, _ = ask(packets(*ODD[name]))
    assert "".join(piece.text for piece in pieces) == "ab"
    assert [piece.finish_reason for piece in pieces if piece.finish_reason] == ["stop"]


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("eos", "stop"),
        ("STOP", "stop"),
        ("end_turn", "stop"),
        ("MAX_TOKENS", "length"),
        ("model_length", "length"),
        ("tool_calls", "stop"),  # there are none
    ],
)
def test_words_for_the_end(word, reason):
    pieces, _ = ask(packets(event(chunk("a")), event(chunk(finish_reason=word))))
    assert pieces[-1].finish_reason == reason


def logprob(**fields):
    return event(chunk("a", logprobs={"content": [{"token": "a", "logprob": -1} | fields]}))


DEEP = b'data: {"choices": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n\n"


@pytest.mark.parametrize(
    "packet",
    [
        logprob(bytes=1_500_000_000),
        logprob(bytes="a"),
        logprob(bytes=[256]),
        logprob(logprob=float("nan")),
        logprob(logprob=float("inf")),
        logprob(logprob=10**400),
        logprob(logprob=None),
        DEEP,
        b'data: {"created": ' + b"9" * 5000 + b"}\n\n",
        odd({"delta": {"content": 5}}),
        odd({"delta": "text"}),
        odd(None),
        event("a text"),
        event(None),
        event(chunk("a", "no such word")),
        event(chunk("a", {"type": "stop"})),
    ],
    ids=range(16),
)
def test_nonsense_is_a_failed_upstream(packet):
    """As which the gateway asks another one, and counts it."""
    tracemalloc.start()
    with pytest.raises(UpstreamError, match="it sent"):
        ask(packets(packet), Sampling(5, logprobs=1))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 * 2**20


def test_an_error_that_is_nested_is_a_failed_upstream():
    with pytest.raises(UpstreamError, match="500"):
        ask(whole(500, "[" * 100_000))
    with pytest.raises(ApiError, match="a fault; another"):
        ask(whole(422, {"detail": [{"msg": "a fault", "input": "x"}, {"msg": "another"}]}))


def test_a_token_that_is_impossible_has_openais_number():
    pieces, _ = ask(packets(logprob(logprob=-float("inf")), END), Sampling(5, logprobs=1))
    assert pieces[0].logprobs[0].chosen.logprob == -9999.0


def endless(text, **delta):
    async def script(request, send):
        await send.start()
        for _ in range(1000):
            await send.send(odd({"delta": delta or {"content": text}}) * 100)

    return script


@pytest.mark.parametrize("text", ["x", "x" * 5000])
def test_an_answer_that_does_not_end_is_cut(text):
    pieces, _ = ask(endless(text), Sampling(5))
    assert pieces[-1].finish_reason == "length"
    assert sum(piece.tokens for piece in pieces) == 5
    assert sum(len(piece.text) for piece in pieces) < 10_000


def test_an_answer_without_any_limit_does_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr("hfchat.serving.engines.upstream_answer._MAX_CHARACTERS", 10_000)
    with pytest.raises(UpstreamError, match="without an end"):
        ask(endless("x" * 100))


def test_the_usage_has_the_last_word_on_tokens():
    script = packets(event(chunk("a")), event(chunk("b")), event(chunk("c", "length")), event(usage(4, 2)), DONE)
    pieces, _ = ask(script)
    assert sum(piece.tokens for piece in pieces) == 2
    pieces, _ = ask(packets(event(chunk("a")), event(chunk("b", "length")), DONE))
    assert sum(piece.tokens for piece in pieces) == 2
    assert pieces[-1].prompt_tokens is None


def test_an_answer_that_has_its_end_is_whole_whatever_comes_then(monkeypatch):
    monkeypatch.setattr("hfchat.serving.engines.upstream._USAGE_S", 0.05)
    ended = event(chunk("a", "stop"))
    for rest in (b"", b"data: nonsense\n\n", event({"error": {"message": "too late"}})):
        pieces, _ = ask(packets(ended, rest)) if rest else ask(packets(ended))
        assert [piece.text for piece in pieces] == ["a", ""]

    async def hangs(request, send):
        await packets(ended, end=False)(request, send)
        await asyncio.sleep(60)

    pieces, _ = ask(hangs)
    assert pieces[-1].finish_reason == "stop"


@pytest.mark.parametrize(
    ("script", "word"),
    [
        (packets(event(chunk("a"))), "broke"),
        (packets(event(chunk("a")), DONE), "broke"),
        (packets(event(chunk("a")), end=False), "connection"),
        (packets(b"data: nonsense\n\n"), "not a chunk"),
        (packets(event([])), "not a chunk"),
        (packets(event({"choices": [{}]})), "not a chunk"),
        (packets(*[b"x" * 262144] * 5), "more than"),
        (packets(event({"error": {"message": "out of memory", "type": "server_error"}})), "out of memory"),
        (packets(event({"object": "error", "message": "an older shape"})), "an older shape"),
        (whole(200, {"choices": []}), "application/json"),
        (whole(500, "<html>"), "500: <html>"),
        (whole(503, {"detail": "loading"}), "503: loading"),
        (whole(401, {"error": {"message": "no key"}}), "401"),
        (whole(403, {}), "403"),
        (whole(404, {"error": {"message": "no such model"}}), "no such model"),
        (whole(307, {}, location="http://elsewhere.invalid/v1"), "307"),
    ],
)
def test_failures_are_the_upstreams(script, word):
    async def breaking(request, send):
        await script(request, send)
        if word == "connection":
            send.abort()

    with pytest.raises(UpstreamError, match=word):
        ask(breaking)


@pytest.mark.parametrize(
    ("script", "status", "message", "param", "code"),
    [
        (
            whole(400, {"error": {"message": "too long", "param": "messages", "code": "c"}}),
            400,
            "too long",
            "messages",
            "c",
        ),
        (whole(422, {"error": "TGI's shape", "error_type": "validation"}), 422, "TGI's shape", None, None),
        (whole(400, {"object": "error", "message": "older", "code": 400}), 400, "older", None, None),
        (packets(event({"error": {"message": "late", "code": 400}})), 400, "late", None, None),
        (whole(413, "x" * 5000), 413, "x" * 1000, None, None),
    ],
)
def test_refusals_are_passed_on(script, status, message, param, code):
    with pytest.raises(ApiError) as refused:
        ask(script)
    error = refused.value
    assert (error.status, error.message) == (status, message)
    assert (error.body.error.param, error.body.error.code) == (param, code)


@pytest.mark.parametrize(
    ("headers", "seconds"), [({"retry_after": "7"}, "7"), ({"retry_after": "soon"}, "5"), ({}, "5")]
)
def test_a_busy_upstream_says_when_to_come_back(headers, seconds):
    with pytest.raises(UpstreamBusyError) as busy:
        ask(whole(429, {"error": {"message": "your organisation X"}}, **headers))
    assert (busy.value.status, busy.value.headers) == (429, {"Retry-After": seconds})
    assert "organisation" not in busy.value.message


def test_nobody_there():
    async def run():
        async with stream_server(says("x")) as server:
            url = server.url
        engine = Upstream(url, model="m")
        engine.open()
        with pytest.raises(UpstreamError, match="connection") as failed:
            await answer(engine)
        assert "127.0.0.1" not in str(failed.value)  # clients need not know where upstreams are
        with pytest.raises(UpstreamError):
            await engine.check()
        await engine.stop()

    asyncio.run(run())


def test_closing_an_answer_closes_its_connection_at_once():
    async def endless(request, send):
        await send.start()
        while True:
            await send.send(event(chunk("x")))

    async def run():
        async with upstream(endless) as (engine, server):
            async with aclosing(engine.stream(await engine.encode(Chat(MESSAGES)), PLAIN)) as pieces:
                await anext(pieces)
            async with asyncio.timeout(5):
                while not server.left:
                    await asyncio.sleep(0.001)

    asyncio.run(run())


def test_connections_are_used_again_also_after_one_was_closed():
    async def run():
        async with upstream(says("x")) as (engine, server):
            for _ in range(3):
                await answer(engine)
            assert server.connections == 1
            broken = 0

            async def closes_once(request, send):
                nonlocal broken
                broken += 1
                await (says("again")(request, send) if broken > 1 else asyncio.to_thread(send.writer.close))

            server.script = closes_once
            pieces = await answer(engine)
            assert [piece.text for piece in pieces] == ["again", ""]

    asyncio.run(run())


def test_silence_is_a_failure(monkeypatch):
    monkeypatch.setattr("hfchat.serving.engines.upstream._SILENCE_S", 0.05)

    async def silent(request, send):
        await asyncio.sleep(60)

    with pytest.raises(UpstreamError, match="nothing"):
        ask(silent)


def test_an_abort_ends_what_runs_and_what_comes():
    async def silent(request, send):
        await asyncio.sleep(60)

    async def run():
        async with upstream(silent, model="m") as (engine, server):
            waiting = asyncio.create_task(answer(engine))
            async with asyncio.timeout(5):
                while not server.requests:
                    await asyncio.sleep(0.001)
            engine.abort("the end is near")
            for task in (waiting, asyncio.create_task(answer(engine))):
                with pytest.raises(EngineError, match="the end is near") as ended:
                    await asyncio.wait_for(task, 10)
                assert not isinstance(ended.value, UpstreamError)  # nobody is to try another one
            assert engine.error == "the end is near"

    asyncio.run(run())


def test_health_and_models():
    async def run():
        async with upstream(says("x")) as (engine, server):
            await engine.check()
            await engine.ready()
            assert server.requests[-1].body["max_tokens"] == 1
            server.health = None  # no such path: its models are asked for
            await engine.check()
            server.health = 503
            with pytest.raises(UpstreamError, match="503"):
                await engine.check()
        async with upstream(says("x"), models=("a", "b")) as (engine, server):
            assert await engine.models() == ["a", "b"]
            with pytest.raises(UpstreamError, match="several"):
                await answer(engine)
        async with upstream(whole(400, {"error": {"message": "nothing to say"}})) as (engine, _):
            with pytest.raises(UpstreamError, match="nothing to say"):
                await engine.ready()

    asyncio.run(run())


# Tools, forms of answers, and reasoning

TOOLS = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in ("add", "now")]
WITH_TOOLS = Chat(MESSAGES, tools=TOOLS)


def test_what_the_answer_may_be_is_sent_as_openai_names_it():
    named = {"type": "function", "function": {"name": "now"}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}, "strict": True}}
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": None, "b": "é"}}}
    history = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [call]},
        {"role": "tool", "content": "3", "tool_call_id": "c1"},
        {"role": "assistant", "content": "Three."},
    ]
    chat = Chat(history, TOOLS, named, False, form, {"enable_thinking": True}, "none")
    _, request = ask(says("x"), chat=chat)
    written = {**call, "function": {"name": "add", "arguments": '{"a": null, "b": "é"}'}}
    assert request.body == {
        "model": "upstream-model",
        "messages": [history[0], {**history[1], "content": None, "tool_calls": [written]}, *history[2:]],
        "tools": TOOLS,
        "tool_choice": named,
        "parallel_tool_calls": False,
        "response_format": form,
        "reasoning_effort": "none",
        "chat_template_kwargs": {"enable_thinking": True},
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_what_a_request_leaves_open_is_not_sent():
    _, request = ask(says("x"), chat=WITH_TOOLS)
    assert request.body.keys() == {"model", "messages", "tools", "stream", "stream_options"}
    _, request = ask(says("x"), chat=Chat(MESSAGES, tool_choice="none", parallel_tool_calls=False))
    assert request.body.keys() == {"model", "messages", "stream", "stream_options"}


def calls(*fragments, finish_reason=None, **delta):
    return odd({"delta": {"tool_calls": list(fragments), **delta}, "finish_reason": finish_reason})


def fragment(arguments=None, name=None, index=0, **fields):
    function = {"name": name, "arguments": arguments}
    return {"index": index, "function": {key: value for key, value in function.items() if value is not None}, **fields}


ADD, NOW = CallPart(0, "add", '{"a": 1}', "c1"), CallPart(1, "now", "{}", "c2")
CALLED = odd({"delta": {}, "finish_reason": "tool_calls"})
FRAGMENTS = {
    "as OpenAI does": [
        calls(fragment("", "add", id="c1", type="function"), role="assistant", content=None),
        calls(fragment('{"a"')),
        calls(fragment(": 1}")),
        calls(fragment("", "now", 1, id="c2", type="function")),
        calls(fragment("{}", index=1)),
    ],
    "whole calls": [calls(fragment('{"a":1}', "add", id="c1"), fragment("{}", "now", 1, id="c2"))],
    "names and ids again": [
        calls(fragment('{"a"', "add", id="c1")),
        calls(fragment(":1}", "add", id="c1")),
        calls(fragment("{}", "now", 1, id="c2")),
    ],
    "no index": [
        calls(fragment('{"a":', "add", None, id="c1")),
        calls(fragment("1}", index=None)),
        calls(fragment("{}", "now", None, id="c2")),
    ],
    "the same index": [calls(fragment('{"a":1}', "add", id="c1")), calls(fragment("{}", "now", id="c2"))],
    "objects": [calls(fragment({"a": 1}, "add", id="c1"), fragment({}, "now", 1, id="c2"))],
    "nothing for no arguments": [calls(fragment('{"a": 1}', "add", id="c1"), fragment("", "now", 1, id="c2"))],
    "a name in parts": [
        calls(fragment(None, "ad", id="c1")),
        calls(fragment('{"a": 1}', "d")),
        calls(fragment("{}", "now", 1, id="c2")),
    ],
}


@pytest.mark.parametrize("name", FRAGMENTS)
def test_calls_are_handed_out_whole(name):
    pieces, _ = ask(packets(*FRAGMENTS[name], CALLED, event(usage(7, 12)), DONE), chat=WITH_TOOLS)
    assert [call for piece in pieces for call in piece.calls] == [ADD, NOW]
    assert "".join(piece.text for piece in pieces) == ""
    assert pieces[-1].finish_reason == "tool_calls"
    assert sum(piece.tokens for piece in pieces) == 12


@pytest.mark.parametrize("second", [fragment("{}", "now", 0, id="c2"), fragment("{}", "now", None, id="c1")])
def test_two_calls_of_one_function_are_two(second):
    first = {**second, "id": "c1"}
    pieces, _ = ask(packets(calls(first), calls(second), CALLED), chat=WITH_TOOLS)
    assert [call.name for piece in pieces for call in piece.calls] == ["now", "now"]


def test_calls_without_ids_and_the_older_shape():
    ended = odd({"delta": {}, "finish_reason": "stop"})
    pieces, _ = ask(packets(calls(fragment("{}", "now"), content="Now:"), ended), chat=WITH_TOOLS)
    assert (pieces[0].text, pieces[-1].calls) == ("Now:", (CallPart(0, "now", "{}"),))
    assert pieces[-1].finish_reason == "tool_calls"
    older = odd({"delta": {"function_call": {"name": "now", "arguments": "{}"}}, "finish_reason": "function_call"})
    pieces, _ = ask(packets(older), chat=WITH_TOOLS)
    assert (pieces[-1].calls, pieces[-1].finish_reason) == ((CallPart(0, "now", "{}"),), "tool_calls")


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("delete", '{"a":1}', '{"name": "delete", "arguments": {"a": 1}}'),
        ("add", "[1]", '{"name": "add", "arguments": [1]}'),
        ("add", '{"a": NaN}', '{"name": "add", "arguments": {"a": NaN}'),
        ("add", '{"a": "\\ud83d"}', '{"name": "add", "arguments": {"a": "\\ud83d"}'),
        ("add", "[" * 10_000, '{"name": "add", "arguments": ' + "[" * 10_000),
        ("a\ud83dd", "{}", '{"name": "a\ufffdd", "arguments": {}}'),
        ("", "{}", '{"name": "", "arguments": {}}'),
    ],
)
def test_a_call_that_is_broken_or_was_not_offered_is_text(name, arguments, text):
    sent = calls(fragment(arguments, name, id="c1"), fragment("{}", "now", 1, id="c2"))
    pieces, _ = ask(packets(event(chunk("Well: ")), sent, CALLED), chat=WITH_TOOLS)
    assert "".join(piece.text for piece in pieces) == "Well: " + text
    assert [call for piece in pieces for call in piece.calls] == [CallPart(0, "now", "{}", "c2")]
    pieces, _ = ask(packets(calls(fragment(arguments, name)), CALLED), chat=WITH_TOOLS)
    assert (pieces[-1].text, pieces[-1].finish_reason) == (text, "stop")


def test_a_call_that_is_cut_is_text():
    cut = odd({"delta": {}, "finish_reason": "length"})
    pieces, _ = ask(packets(calls(fragment('{"a": [1, "x', "add")), cut), chat=WITH_TOOLS)
    assert (pieces[-1].text, pieces[-1].finish_reason) == ('{"name": "add", "arguments": {"a": [1, "x', "length")
    # Whole ones before it are calls.
    sent = calls(fragment("{}", "now"), fragment('{"a', "add", 1))
    pieces, _ = ask(packets(sent, cut), chat=WITH_TOOLS)
    assert [call.name for piece in pieces for call in piece.calls] == ["now"]
    assert (pieces[-1].text, pieces[-1].finish_reason) == ('{"name": "add", "arguments": {"a', "length")


@pytest.mark.parametrize("delta", [{"reasoning_content": "x" * 5000}, {"tool_calls": [fragment("x" * 5000, "add")]}])
def test_calls_and_reasoning_count_as_parts_of_an_answer(delta, monkeypatch):
    pieces, _ = ask(endless("", **delta), Sampling(5), chat=WITH_TOOLS)
    assert pieces[-1].finish_reason == "length"
    assert sum(piece.tokens for piece in pieces) == 5
    assert sum(len(piece.text) + len(piece.reasoning) for piece in pieces) < 11_000
    monkeypatch.setattr("hfchat.serving.engines.upstream_answer._MAX_CHARACTERS", 10_000)
    with pytest.raises(UpstreamError, match="without an end"):
        ask(endless("", **delta), chat=WITH_TOOLS)


@pytest.mark.parametrize(
    "deltas",
    [
        [{"reasoning_content": "h"}, {"reasoning_content": "m\ud83d"}, {"reasoning_content": "\ude00"}],
        [{"reasoning": "hm"}, {"reasoning": "😀", "content": None}],
        [{"reasoning": "hm😀", "reasoning_content": "hm😀"}],
        [{"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]}, {"reasoning": "😀"}],
        [{"content": [{"type": "thinking", "thinking": "hm😀"}]}],
    ],
)
def test_reasoning_is_apart_from_the_text(deltas):
    logprobs = {"content": [{"token": "a", "logprob": -1}]}
    thought = [odd({"delta": delta, "logprobs": logprobs}) for delta in deltas]
    pieces, _ = ask(packets(*thought, event(chunk("a", logprobs=logprobs)), END), Sampling(9, logprobs=0))
    assert "".join(piece.reasoning for piece in pieces) == "hm😀"
    assert "".join(piece.text for piece in pieces) == "a"
    assert [token.chosen.token for piece in pieces for token in piece.logprobs] == ["a"]
    assert sum(piece.tokens for piece in pieces) == len(deltas) + 1


@pytest.mark.parametrize(
    "delta",
    [
        {"tool_calls": {"name": "add"}},
        {"tool_calls": [None]},
        {"tool_calls": [{"function": "add"}]},
        {"tool_calls": [fragment(5, "add")]},
        {"tool_calls": [fragment("{}", ["add"])]},
        {"tool_calls": [fragment("{}", "add", id=5)]},
        {"reasoning_content": ["hm"]},
        {"content": [{"type": "thinking", "thinking": [5]}]},
    ],
)
def test_calls_and_reasoning_that_are_nonsense_are_a_failed_upstream(delta):
    with pytest.raises(UpstreamError, match="not a chunk"):
        ask(packets(odd({"delta": delta}), CALLED), chat=WITH_TOOLS)


def test_urls():
    assert Upstream("http://a:8000").url == "http://a:8000/v1"
    assert Upstream("https://a/openai/v1/").url == "https://a/openai/v1"
    for url in (
        "a:8000",
        "ftp://a/v1",
        "http://",
        "http://a:x/v1",
        "http://a:99999/v1",
        "http://u:p@a/v1",
        "http://a/v1?x",
    ):
        with pytest.raises(ValueError, match="must"):
            Upstream(url)


def test_the_request_id_goes_along(monkeypatch):
    from hfchat.serving.http.record import RequestRecord

    monkeypatch.setattr("hfchat.serving.engines.upstream.current_record", lambda: RequestRecord(request_id="abc"))
    _, request = ask(says("x"))
    assert request.headers["x-request-id"] == "abc"
