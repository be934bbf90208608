"""Several upstreams are one engine: who is asked, who makes up for whom, and who is left alone until it is back."""

import asyncio
import subprocess
import sys
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress

import pytest

from hfchat.chat import Chat
from hfchat.errors import UserError
from hfchat.serving.engines import gateway as module
from hfchat.serving.engines.engine import EngineError, Sampling
from hfchat.serving.engines.gateway import Gateway, open_gateway
from hfchat.serving.engines.upstream import Upstream, UpstreamBusyError
from hfchat.serving.http.record import RequestRecord
from hfchat.serving.openai.errors import ApiError
from tests.servers.streams import chunk, event, says, stream_server

MESSAGES = [{"role": "user", "content": "Hi"}]


def fails(status, message="no", **headers):
    async def script(request, send):
        await send.answer(status, {"error": {"message": message}}, **headers)

    return script


async def breaks_off(request, send):
    await send.start()
    await send.send(event(chunk("begun")))
    send.abort()


async def hangs(request, send):
    await send.start()
    await send.send(event(chunk("begun")))
    await asyncio.sleep(60)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    for name in ("_CHECK_EVERY_S", "_FIRST_PAUSE_S", "_LONGEST_PAUSE_S"):
        monkeypatch.setattr(module, name, 0.02)


@asynccontextmanager
async def gateway(*scripts):
    """A gateway over upstreams that answered well when it was started, and then do what the scripts say."""
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(stream_server(says("ok"))) for _ in scripts]
        engine = Gateway([Upstream(server.url, "m") for server in servers])
        await engine.start()
        stack.push_async_callback(engine.stop)
        for server, script in zip(servers, scripts, strict=True):
            server.script = script
            server.requests.clear()
        yield engine, servers


async def answer(engine, **sampling):
    prompt = await engine.encode(Chat(MESSAGES))
    async with aclosing(engine.stream(prompt, Sampling(**({"max_tokens": None} | sampling)))) as pieces:
        return "".join([piece.text async for piece in pieces])


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def run(function):
    asyncio.run(function())


def test_answers_are_spread_by_what_is_in_flight():
    async def test():
        async with gateway(hangs, hangs, hangs) as (engine, servers):
            prompt = await engine.encode(Chat(MESSAGES))
            streams = [engine.stream(prompt, Sampling(None)) for _ in range(6)]
            for stream in streams:
                await anext(stream)
            assert [one.in_flight for one in engine.upstreams] == [2, 2, 2]
            await streams[0].aclose()
            await streams[3].aclose()  # of the same upstream
            assert sorted(one.in_flight for one in engine.upstreams) == [0, 2, 2]
            more = [engine.stream(prompt, Sampling(None)) for _ in range(2)]
            for stream in more:
                await anext(stream)
            assert [one.in_flight for one in engine.upstreams] == [2, 2, 2]
            for stream in [*more, *streams]:
                await stream.aclose()
            assert [one.in_flight for one in engine.upstreams] == [0, 0, 0]
            assert not any(one.failures for one in engine.upstreams)  # clients who leave are nobody's failure
        async with gateway(says("x"), says("x")) as (engine, servers):
            for _ in range(4):
                await answer(engine)
            assert [len(server.requests) for server in servers] == [2, 2]

    run(test)


@pytest.mark.parametrize("failure", [fails(500), fails(503), fails(401), fails(404), fails(429)])
def test_another_upstream_makes_up_for_one_that_fails_first(failure):
    async def test():
        async with gateway(failure, says("well")) as (engine, servers):
            for _ in range(2):
                assert await answer(engine) == "well"
            assert engine.retries == 1
            assert len(servers[0].requests) == 1

    run(test)


def test_an_answer_that_has_begun_is_not_begun_again():
    async def test():
        async with gateway(breaks_off, breaks_off) as (engine, servers):
            with pytest.raises(EngineError, match="broke"):
                await answer(engine)
            assert sum(len(server.requests) for server in servers) == 1

    run(test)


@pytest.mark.parametrize("with_content", [False, True])
def test_what_an_upstream_says_may_quote_the_prompt_so_it_is_not_logged(serve, scripted, caplog, with_content):
    quoting = f"cannot answer {MESSAGES[0]['content']} secret prompt"

    async def test():
        for script in (fails(500, quoting), fails(404, quoting), quotes_in_an_event, quotes_in_a_reason):
            async with gateway(script) as (engine, _):
                with suppress(ApiError, EngineError):
                    await answer(engine)

    async def quotes_in_an_event(request, send):
        await send.start()
        await send.send(event({"error": {"message": quoting, "code": 500}}))

    async def quotes_in_a_reason(request, send):
        await send.start()
        await send.send(event(chunk("x", quoting)))

    record = RequestRecord(with_content=with_content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "current_record", lambda: record)
        run(test)
    assert ("secret" in caplog.text) == with_content
    assert "it answered 500" in caplog.text
    assert "it answered 404" in caplog.text


def test_the_code_of_an_upstreams_error_is_logged_only_if_it_is_one():
    async def test():
        for code, kept in (("context_length_exceeded", "context_length_exceeded"), ("your secret prompt", None)):

            async def script(request, send, code=code):
                await send.answer(400, {"error": {"message": "no", "code": code}})

            async with gateway(script) as (engine, _):
                with pytest.raises(ApiError) as refused:
                    await answer(engine)
                assert refused.value.body.error.code == kept

    run(test)


def test_nonsense_of_an_upstream_is_made_up_for_by_another():
    async def nonsense(request, send):
        await send.start()
        await send.send(b"data: " + b"[" * 100_000 + b"\n\n")

    async def test():
        async with gateway(nonsense, says("well")) as (engine, _):
            for _ in range(6):
                assert await answer(engine) == "well"
            assert sum(one.failures for one in engine.upstreams) >= 3
            assert engine.retries >= 3

    run(test)


def test_a_refusal_is_passed_on_and_is_no_failure():
    async def test():
        async with gateway(fails(400, "too long"), fails(400, "too long")) as (engine, servers):
            for _ in range(8):
                with pytest.raises(ApiError, match="too long"):
                    await answer(engine)
            assert sum(len(server.requests) for server in servers) == 8
            assert engine.error is None

    run(test)


def test_tries_are_bounded_in_number_and_in_time(monkeypatch):
    monkeypatch.setattr(module, "_CHECK_EVERY_S", 60)

    async def test():
        async with gateway(*[fails(500)] * 5) as (engine, servers):
            with pytest.raises(ApiError) as failed:
                await answer(engine)
            assert failed.value.status == 502
            assert "500" not in failed.value.message
            assert sum(len(server.requests) for server in servers) == 3
            monkeypatch.setattr(module, "_RETRY_S", 0.0)
            with pytest.raises(ApiError):
                await answer(engine)
            assert sum(len(server.requests) for server in servers) == 4

    run(test)


def test_busy_is_not_down():
    async def test():
        async with gateway(fails(429, retry_after="9"), fails(500)) as (engine, _):
            with pytest.raises(UpstreamBusyError) as busy:
                await answer(engine)
            assert busy.value.headers == {"Retry-After": "9"}
            for _ in range(4):
                with pytest.raises(UpstreamBusyError):
                    await answer(engine)
            assert [one.down for one in engine.upstreams] == [False, True]

    run(test)


def test_an_upstream_that_fails_again_and_again_is_left_alone_until_it_is_back(monkeypatch):
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 60)

    async def test():
        async with gateway(fails(500)) as (engine, servers):
            for _ in range(3):
                assert engine.error is None
                with pytest.raises(ApiError, match="could not answer"):
                    await answer(engine)
            assert engine.error == "no upstream answers"
            with pytest.raises(ApiError) as refused:
                await answer(engine)
            assert refused.value.status == 503
            assert len(servers[0].requests) == 3
            with pytest.raises(EngineError):
                await engine.ready()
            monkeypatch.setattr(module, "_FIRST_PAUSE_S", 0.02)

        async with gateway(fails(500)) as (engine, servers):
            for _ in range(3):
                with pytest.raises(ApiError):
                    await answer(engine)
            await until(lambda: len(servers[0].requests) > 5)  # it is probed, and fails
            assert engine.error is not None
            servers[0].script = says("back")
            await until(lambda: engine.error is None)
            assert await answer(engine) == "back"
            await engine.ready()

    run(test)


def test_only_failures_in_a_row_count():
    async def test():
        async with gateway(says("x")) as (engine, servers):
            for script in [fails(500), fails(500), says("x")] * 3:
                servers[0].script = script
                with suppress(ApiError):
                    await answer(engine)
                assert engine.error is None
            assert engine.upstreams[0].failures == 6

    run(test)


def test_health_is_asked_for_and_believed():
    async def test():
        async with gateway(says("x"), says("x")) as (engine, servers):
            servers[0].health = 500
            await until(lambda: engine.upstreams[0].failures >= 3)
            servers[0].script = fails(500)
            await until(lambda: engine.upstreams[0].down)
            assert engine.error is None
            servers[0].health, servers[0].script = 200, says("x")
            await until(lambda: not engine.upstreams[0].down)

    run(test)


def test_it_starts_without_upstreams_and_finds_them_later():
    async def test():
        async with stream_server(fails(503)) as server:
            engine = Gateway([Upstream(server.url, "m")])
            await engine.start()
            assert engine.error is not None
            server.script = says("here")
            await until(lambda: engine.error is None)
            assert await answer(engine) == "here"
            engine.abort("the end")
            assert engine.error == "the end"
            with pytest.raises(EngineError, match="the end"):
                await answer(engine)
            assert not engine.upstreams[0].failures > 3
            await engine.stop()

    run(test)


def test_the_models_name(serve, scripted):
    served = serve(scripted())
    url = f"{served.url}/v1"
    assert open_gateway([url])[0] == "tiny-chat"
    assert open_gateway([url, "http://127.0.0.1:9/v1"])[0] == "tiny-chat"
    assert open_gateway(["http://127.0.0.1:9"], model="given")[0] == "given"
    with pytest.raises(UserError, match="--upstream-model"):
        open_gateway(["http://127.0.0.1:9"])
    with pytest.raises(UserError, match="ftp://a: an upstream must"):
        open_gateway(["ftp://a"])


def test_through_a_server_in_front(serve, scripted):
    """Ours over ours: what a client sees of either is the same."""
    behind = serve(scripted(pieces=["Hi", " th", "ere, ", "you"], temperature=0.5))
    _, engine = open_gateway([f"{behind.url}/v1"])
    front = serve(engine)
    for fields in (
        {},
        {"stop": "there"},
        {"logprobs": True, "top_logprobs": 2},
        {"seed": 4},
        {"max_tokens": 3, "temperature": 1.5, "top_p": 0.5, "presence_penalty": 1, "frequency_penalty": -1},
    ):
        ours, theirs = front.chat(**fields).json(), behind.chat(**fields).json()
        assert ours["choices"] == theirs["choices"]
        through, straight = behind.engine.samplings[-2:]
        assert through == straight
    assert front.chat().json()["usage"] == behind.chat().json()["usage"]
    ours, theirs = front.complete(logprobs=2).json(), behind.complete(logprobs=2).json()
    assert (ours["choices"], ours["usage"]) == (theirs["choices"], theirs["usage"])
    stream = front.openai.chat.completions.create(
        model="tiny-chat", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Hi there, you"
    assert chunks[-1].usage.prompt_tokens == 2
    refused = front.chat(max_tokens=1000)
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    assert front.http.get("/ready").status_code == 200
    metrics = front.http.get("/metrics").text
    assert f'hfchat_upstream_up{{upstream="{behind.url}/v1"}} 1.0' in metrics
    assert "hfchat_upstream_retries_total 0.0" in metrics


def test_a_client_that_leaves_frees_the_upstream(serve, scripted, eventually):
    behind = serve(scripted())
    front = serve(open_gateway([f"{behind.url}/v1"], "tiny-chat")[1])
    behind.engine.held = True
    with front.http.stream(
        "POST", "/v1/chat/completions", json={"model": "tiny-chat", "messages": MESSAGES, "stream": True}
    ) as response:
        parts = response.iter_text()  # without a name, its end would be that of the connection
        assert "role" in next(parts)
        eventually(lambda: behind.engine.active == 1)
    eventually(lambda: behind.engine.active == 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["http://a/v1", "folder"], "MODEL"),
        (["one", "two"], "MODEL"),
        (["http://127.0.0.1:9/v1"], "--upstream-model"),
        (["http://127.0.0.1:9/v1", "--weights", "float32"], "--weights"),
        (["folder", "--upstream-model", "m"], "--upstream-model"),
        (["http://127.0.0.1:9/v1", "--upstream-api-key-env", "NOT_THERE"], "NOT_THERE"),
    ],
)
def test_the_command_line(arguments, words, capsys):
    from hfchat.cli import main

    with pytest.raises(SystemExit) as ended:
        main(["serve", *arguments])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_a_gateway_needs_no_torch():
    code = "import sys; sys.modules['torch'] = None; import hfchat.serving.http.app, hfchat.serving.engines.gateway"
    subprocess.run([sys.executable, "-c", code], check=True)
