"""An upstream's streams become pieces, its failures errors that say whose fault they are, and nothing of it leaks."""

import asyncio
import tracemalloc
from contextlib import aclosing, asynccontextmanager

import pytest

from hfchat.chat import Chat
from hfchat.serving.engines.engine import EngineError, Logprob, Piece, Sampling, TokenLogprobs
from hfchat.serving.engines.upstream import Upstream, UpstreamBusyError, UpstreamError
from hfchat.serving.openai.errors import ApiError
from tests.servers.streams import DONE, chunk, event, says, stream_server, usage

MESSAGES = [{"role": "user", "content": "Hi"}]
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


async def answer(engine, sampling=PLAIN, text=None):
    prompt = await (engine.encode(Chat(MESSAGES)) if text is None else engine.encode_text(text))
    assert prompt.tokens is None
    return [piece async for piece in engine.stream(prompt, sampling)]


def ask(script, sampling=PLAIN, text=None, **fields):
    """The pieces of one answer, and the request that was made for it."""

    async def run():
        async with upstream(script, **fields) as (engine, server):
            return await answer(engine, sampling, text), server.requests[-1]

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
    sampling = Sampling(5, 0.0, 0.5, 3, 1.0, -1.0, 2, ("a", "b"))
    _, request = ask(says("x"), sampling, api_key="secret", model="chosen")
    assert request.body == {
        "model": "chosen",
        "messages": MESSAGES,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 5,
        "temperature": 0.0,
        "top_p": 0.5,
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
    [("eos", "stop"), ("STOP", "stop"), ("end_turn", "stop"), ("MAX_TOKENS", "length"), ("model_length", "length")],
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


def endless(text):
    async def script(request, send):
        await send.start()
        for _ in range(1000):
            await send.send(event(chunk(text)) * 100)

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
        (packets(event(chunk(finish_reason="tool_calls"))), "tool_calls"),
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
