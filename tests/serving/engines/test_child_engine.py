"""An engine whose tokens are made by a child process, which is killed, hangs, and talks rubbish."""

import asyncio
import os
import signal
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import openai
import pytest

from hfchat.chat import Chat
from hfchat.errors import UserError
from hfchat.serving.engines import child_engine, supervising
from hfchat.serving.engines.child_engine import Child
from hfchat.serving.engines.engine import EngineError, PromptError, Sampling
from hfchat.serving.engines.prompting import TokenPrompt
from hfchat.serving.versions.models import ServedModels, Version
from tests.servers.llamacpp import DIALECT, Scripted, ScriptedChildEngine
from tests.serving.conftest import MODEL

HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def llamacpp(tmp_path):
    return Scripted(tmp_path)


@asynccontextmanager
async def running(engine):
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


async def answer(engine, **sampling):
    prompt = await engine.encode(Chat(HI))
    return [piece async for piece in engine.stream(prompt, Sampling(**{"max_tokens": 10} | sampling))]


async def until(condition, seconds=20):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def text(pieces):
    return "".join(piece.text for piece in pieces)


def over(*, engine, work):
    async def test():
        async with running(engine):
            return await work()

    return asyncio.run(test())


def test_an_answer_comes_in_pieces_and_all_is_said_of_how(llamacpp):
    engine = ScriptedChildEngine(llamacpp, top_k=7, min_p=0.1, repetition_penalty=1.2, temperature=0.5, top_p=0.9)
    pieces = over(engine=engine, work=lambda: answer(engine, seed=-1))
    assert [piece.text for piece in pieces] == ["Hello", ", ", "wor", "ld", "!", ""]
    assert [piece.tokens for piece in pieces] == [1, 1, 1, 1, 1, 0]
    assert [piece.finish_reason for piece in pieces] == [None] * 5 + ["stop"]
    assert all(event.get("authorized", True) for event in llamacpp.seen)
    (body,) = llamacpp.asked
    asked = {"top_k": 7, "min_p": 0.1, "repeat_penalty": 1.2, "temperature": 0.5, "top_p": 0.9, "n_predict": 10}
    assert body == body | asked | {"prompt": [ord("H"), ord("i")], "seed": 2**32 - 2, "stream": True}
    assert engine.prompting.is_closed


def test_what_a_request_asks_for_takes_the_place_of_what_the_model_does(llamacpp):
    engine = ScriptedChildEngine(llamacpp, top_k=7, min_p=0.1, repetition_penalty=1.2, temperature=0.5)
    asked = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "logit_bias": {5: 2.5}}
    over(engine=engine, work=lambda: answer(engine, **asked))
    (body,) = llamacpp.asked
    assert body == body | {"top_k": 0, "min_p": 0, "repeat_penalty": 1, "temperature": 0.5, "logit_bias": [[5, 2.5]]}


# The form of an answer

GRAMMAR = '%llguidance {}\nstart: "{" /[a-zé]+/ "}"'


def in_form(engine, **sampling):
    async def work():
        prompt = replace(await engine.encode(Chat(HI)), grammar=GRAMMAR)
        return [piece async for piece in engine.stream(prompt, Sampling(10, **sampling))]

    return over(engine=engine, work=work)


def spell(llamacpp, tokenizer, *pieces, **fields):
    """The pieces of an answer and the tokens that they have; of several, llama.cpp tells the last one only."""
    llamacpp.script(pieces=pieces, ids=[tokenizer.encode(piece) for piece in pieces], **fields)


def test_an_answer_that_has_its_form_goes_through(llamacpp, tokenizer):
    spell(llamacpp, tokenizer, "{", "a", "éé", "}")
    assert text(in_form(ScriptedChildEngine(llamacpp, tokenizer=tokenizer))) == "{aéé}"
    (body,) = llamacpp.asked
    assert body["grammar"] == GRAMMAR.replace("start: ", "start: bound_answer (<[2]>)?\nbound_answer: ")
    spell(llamacpp, tokenizer, "{", "a", stop_type="limit")
    pieces = in_form(ScriptedChildEngine(llamacpp, tokenizer=tokenizer))
    assert (text(pieces), pieces[-1].finish_reason) == ("{a", "length")


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        (["Sure", ": {a}"], "left the grammar"),
        (["{", "a", "É"], "left the grammar"),
        (["{", "a", "}", "}"], "left the grammar"),
        (["{", "a"], "before its grammar"),
    ],
)
def test_an_answer_that_leaves_its_form_is_an_error(llamacpp, tokenizer, pieces, message):
    """llama.cpp does that in silence where its llguidance cannot do what ours can."""
    spell(llamacpp, tokenizer, *pieces)
    with pytest.raises(EngineError, match=message):
        in_form(ScriptedChildEngine(llamacpp, tokenizer=tokenizer))


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}}, "response_format"),
        ({"tools": [{"type": "function", "function": {"name": "f", "strict": True}}]}, "tools"),
    ],
)
def test_a_format_that_llama_cpp_does_not_know_is_refused(llamacpp, asked, field):
    engine = ScriptedChildEngine(llamacpp)

    async def encode(chat):
        return TokenPrompt([1], grammar='start: %json {"type": "string", "format": "uri"}')

    engine.prompting.encode = encode
    with pytest.raises(PromptError, match="llamacpp cannot honour the format 'uri'") as refused:
        asyncio.run(engine.encode(Chat(HI, **asked)))
    assert refused.value.field == field


def test_log_probabilities_of_a_mask_are_refused(llamacpp, tokenizer):
    class Masks(type(DIALECT)):
        masks_logprobs = True

    dialect = Masks(DIALECT.model, 1, 100)
    with pytest.raises(PromptError, match="llamacpp tells only") as refused:
        in_form(ScriptedChildEngine(llamacpp, dialect=dialect, tokenizer=tokenizer), logprobs=1)
    assert refused.value.field == "logprobs"
    assert llamacpp.asked == []


def test_a_token_that_ends_answers_ends_them_whatever_the_file_says(llamacpp):
    engine = ScriptedChildEngine(llamacpp)
    engine.prompting.ends = frozenset({5})  # which all of the scripted server's tokens are
    (piece,) = over(engine=engine, work=lambda: answer(engine))
    assert (piece.text, piece.tokens, piece.finish_reason) == ("", 1, "stop")


def test_who_stops_listening_ends_the_work(llamacpp):
    llamacpp.script(after=2, then="hold")
    engine = ScriptedChildEngine(llamacpp)

    async def leave():
        async with aclosing(engine.stream(await engine.encode(Chat(HI)), Sampling(10))) as pieces:
            await anext(pieces)
        await until(lambda: llamacpp.closed)
        # A task that is cancelled has the same effect.
        task = asyncio.create_task(answer(engine))
        await until(lambda: len(llamacpp.asked) == 2)
        task.cancel()
        await until(lambda: llamacpp.closed == 2)

    over(engine=engine, work=leave)


def test_an_abort_ends_what_runs_and_what_comes_later(llamacpp):
    llamacpp.script(after=2, then="hold")
    engine = ScriptedChildEngine(llamacpp)

    async def abort():
        task = asyncio.create_task(answer(engine))
        await until(lambda: llamacpp.asked)
        await asyncio.sleep(0.05)
        engine.abort("time to go")
        with pytest.raises(EngineError, match=r"^time to go$"):
            await task
        await until(lambda: llamacpp.closed)
        with pytest.raises(EngineError, match=r"^time to go$"):
            await answer(engine)
        assert engine.error == "time to go"

    over(engine=engine, work=abort)


def test_an_abort_ends_what_has_not_begun(llamacpp):
    """The child does not say anything, or is being started again."""
    engine = ScriptedChildEngine(llamacpp)

    async def abort():
        llamacpp.script(start="deaf")
        silent = asyncio.create_task(answer(engine))
        await asyncio.sleep(0.1)
        os.kill(llamacpp.pids[-1], signal.SIGKILL)
        llamacpp.script(start="hang")
        await until(lambda: len(llamacpp.pids) == 2)
        waiting = asyncio.create_task(answer(engine))
        await asyncio.sleep(0.1)
        assert not silent.done()
        assert not waiting.done()
        engine.abort("time to go")
        for task in (silent, waiting):
            with pytest.raises(EngineError, match=r"^time to go$"):
                await asyncio.wait_for(task, 5)

    over(engine=engine, work=abort)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ({"after": 2, "then": "break"}, "the engine broke the answer off"),
        ({"after": 0, "then": "break"}, "the engine broke the answer off"),
        ({"after": 2, "then": "rubbish"}, "llama.cpp sent an event that is not a part of an answer"),
        ({"after": 2, "then": "error"}, "the cache is full"),
        ({"status": 500}, "llama.cpp answered 500: .*no room"),
        ({"stop_type": "none"}, "llama.cpp sent an event that is not a part of an answer"),
    ],
)
def test_what_is_not_an_answer_is_an_error_and_the_next_is_answered(llamacpp, monkeypatch, script, message):
    monkeypatch.setattr(child_engine, "_NOTICE_S", 0.05)
    engine = ScriptedChildEngine(llamacpp)

    async def fail():
        llamacpp.script(**script)
        with pytest.raises(EngineError, match=message):
            await answer(engine)
        llamacpp.script(after=None, status=None, stop_type="eos")
        assert text(await answer(engine)) == "Hello, world!"
        assert (engine.restarts, engine.error) == (0, None)

    over(engine=engine, work=fail)


def test_kill_9_in_an_answer_is_an_error_and_the_next_waits_for_the_restart(llamacpp):
    llamacpp.script(after=2, then="hold")
    engine = ScriptedChildEngine(llamacpp)

    async def kill():
        running = asyncio.create_task(answer(engine))
        await until(lambda: llamacpp.asked)
        await asyncio.sleep(0.05)
        os.kill(llamacpp.pids[-1], signal.SIGKILL)
        with pytest.raises(EngineError, match="broke the answer off"):
            await running
        llamacpp.script(then=None, after=None)
        # At once, when nothing has been noticed perhaps, and later.
        assert [text(pieces) for pieces in await asyncio.gather(answer(engine), answer(engine))] == [
            "Hello, world!"
        ] * 2
        assert engine.restarts == 1
        assert engine.error is None
        assert len(set(llamacpp.pids)) == 2

    over(engine=engine, work=kill)


def test_it_is_not_ready_while_it_is_started_again(llamacpp):
    engine = ScriptedChildEngine(llamacpp)

    async def kill():
        await engine.ready()
        llamacpp.script(start="hang")
        os.kill(llamacpp.pids[-1], signal.SIGKILL)
        await until(lambda: len(llamacpp.pids) == 2)
        assert engine.error is None  # those who ask wait
        llamacpp.script(start="deaf")
        with pytest.raises((EngineError, TimeoutError)):
            await asyncio.wait_for(engine.ready(), 0.5)

    over(engine=engine, work=kill)


def test_one_that_crashes_in_a_row_is_down_and_pauses(llamacpp, monkeypatch):
    monkeypatch.setattr(supervising, "_RESTART_PAUSE_S", 0.05)
    engine = ScriptedChildEngine(llamacpp)

    async def kill():
        llamacpp.script(start="die")
        os.kill(llamacpp.pids[-1], signal.SIGKILL)
        await until(lambda: engine.error)
        assert "llama.cpp ended with status 3: error: no such model" in engine.error
        with pytest.raises(EngineError, match="no such model"):
            await answer(engine)
        llamacpp.script(start=None)
        await until(lambda: engine.error is None)
        assert text(await answer(engine)) == "Hello, world!"
        assert engine.restarts == 1

    over(engine=engine, work=kill)


def test_one_that_cannot_start_is_one_line_and_leaves_nothing(llamacpp, recwarn):
    llamacpp.script(start="die")
    engine = ScriptedChildEngine(llamacpp)
    with pytest.raises(UserError, match=r"^llama\.cpp ended with status 3: error: no such model$"):
        asyncio.run(engine.start())
    assert engine.prompting.is_closed
    del engine
    assert [str(warning.message) for warning in recwarn if warning.category is ResourceWarning] == []


def test_a_start_that_is_given_up_leaves_nothing(llamacpp):
    llamacpp.script(start="hang")
    engine = ScriptedChildEngine(llamacpp)

    async def give_up():
        task = asyncio.create_task(engine.start())
        await until(lambda: llamacpp.pids)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(give_up())
    assert not Path(f"/proc/{llamacpp.pids[0]}").exists()


def test_a_model_and_its_adapters_share_a_child_that_stops_with_the_last(llamacpp):
    dialect = replace(DIALECT, adapters={"poet": Path("poet.gguf"), "clerk": Path("clerk.gguf")})
    child = Child(llamacpp.program)
    engines = [ScriptedChildEngine(llamacpp, child, name, dialect) for name in (None, "poet", "clerk")]

    async def share():
        for engine in engines:
            await engine.start()
        for engine in engines:
            await answer(engine)
        assert len(llamacpp.pids) == 1
        scales = [[adapter["scale"] for adapter in body["lora"]] for body in llamacpp.asked]
        assert scales == [[0, 0], [1, 0], [0, 1]]
        # A restart counts once.
        os.kill(llamacpp.pids[0], signal.SIGKILL)
        await until(lambda: engines[0].restarts)
        assert [engine.restarts for engine in engines] == [1, 0, 0]
        for engine in engines[:-1]:
            await engine.stop()
        assert text(await answer(engines[-1])) == "Hello, world!"
        await engines[-1].stop()
        assert not child.server.is_running

    asyncio.run(share())


def test_the_api_over_it(serve, llamacpp):
    """What it is, what it cannot do, and what is said of both."""
    served = serve(ScriptedChildEngine(llamacpp))
    assert served.chat().json()["choices"][0]["message"]["content"] == "Hello, world!"
    (model,) = served.http.get("/v1/models").json()["data"]
    assert (model["engine"], model["weights"]) == ("llamacpp", "q8_0")
    assert 'hfchat_engine_info{engine="llamacpp",weights="q8_0"} 1.0' in served.http.get("/metrics").text
    before = len(llamacpp.asked)
    for ask in (served.chat, served.complete):
        for fields in ({"presence_penalty": 1}, {"frequency_penalty": -1}):
            for more in ({}, {"stream": True}, {"n": 2}):
                refused = ask(**fields, **more)
                assert refused.status_code == 400
                assert refused.json()["error"]["param"] in fields
                assert refused.json()["error"]["code"] == "unsupported_field"
    for refused in (served.chat(logprobs=True), served.complete(logprobs=0), served.chat(logprobs=True, stream=True)):
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "logprobs")
    assert len(llamacpp.asked) == before
    assert served.chat(presence_penalty=0, frequency_penalty=0, logprobs=False, n=2).status_code == 200


def test_what_cannot_be_honoured_is_refused_by_name_before_a_token_is_spent(serve, llamacpp, monkeypatch):
    engine = ScriptedChildEngine(llamacpp)
    served = serve(engine)

    def complete(prompt, sampling):
        raise PromptError("the model has no token 999", "logit_bias")

    monkeypatch.setattr(engine.prompting, "complete", complete)
    for ask in (served.chat, served.complete):
        for more in ({}, {"stream": True}):
            refused = ask(logit_bias={"999": 1}, **more)
            assert refused.status_code == 400
            error = refused.json()["error"]
            assert (error["param"], error["message"]) == ("logit_bias", "logit_bias: the model has no token 999")
    assert llamacpp.asked == []


def test_kill_9_in_a_stream_of_the_api(serve, llamacpp):
    served = serve(ScriptedChildEngine(llamacpp))
    for _ in range(2):  # a crash after a whole answer is not one in a row, for which there would be a 503
        llamacpp.script(after=2, then="hold")
        stream = served.openai.chat.completions.create(model=MODEL, messages=HI, stream=True)
        assert [next(stream).choices[0].delta.content for _ in range(2)][-1] in ("", "Hello")
        os.kill(llamacpp.pids[-1], signal.SIGKILL)
        with pytest.raises(openai.APIError, match="broke the answer off"):
            list(stream)
        llamacpp.script(after=None)
        assert served.chat().json()["choices"][0]["message"]["content"] == "Hello, world!"
    assert "hfchat_engine_restarts_total 2.0" in served.http.get("/metrics").text
    assert served.http.get("/ready").status_code == 200


def test_one_that_is_down_for_good_is_a_503(serve, llamacpp, eventually):
    served = serve(ScriptedChildEngine(llamacpp))
    llamacpp.script(start="die")
    os.kill(llamacpp.pids[0], signal.SIGKILL)
    eventually(lambda: served.engine.error is not None, 20)
    refused = served.chat()
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_unavailable")
    assert refused.headers["retry-after"]
    assert served.http.get("/ready").status_code == 503
    assert served.http.get("/health").status_code == 200


def test_another_version_is_another_child_and_the_old_one_ends(serve, tmp_path, eventually):
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    old, new = Scripted(tmp_path / "old", after=2, then="hold"), Scripted(tmp_path / "new", pieces=["New."])
    switch = asyncio.Event()

    async def follow(models):
        await switch.wait()
        version = Version(ScriptedChildEngine(new), "v2")
        await models.start_version(version)
        models.deploy(MODEL, version)

    models = ServedModels([MODEL], lambda: {MODEL: Version(ScriptedChildEngine(old), "v1")}, follow)
    served = serve(models)
    stream = served.openai.chat.completions.create(model=MODEL, messages=HI, stream=True)
    next(stream)
    loop = served.server.servers[0].get_loop()
    loop.call_soon_threadsafe(switch.set)
    eventually(lambda: served.http.get("/v1/models").json()["data"][0]["version"] == "v2", 20)
    assert served.chat().json()["choices"][0]["message"]["content"] == "New."
    # Who asked the old one gets its answer to the end.
    old.script(then=None)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream).endswith(" world!")
    eventually(lambda: not Path(f"/proc/{old.pids[0]}").exists(), 20)
