"""Feedback through the real endpoint: what is stored, what is not, and what is refused."""

import asyncio
import json
import re
import time
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from hfchat.chat import CallPart
from hfchat.errors import UserError
from hfchat.feedback.database import open_database
from hfchat.feedback.exchange import Exchange
from hfchat.feedback.reading import rows
from hfchat.feedback.store import Store
from hfchat.safety.guards_file import load_guards
from hfchat.serving.collecting import feedback
from hfchat.serving.engines.engine import Piece
from hfchat.serving.http.auth import ApiKeys, hash_key
from hfchat.serving.openai.requests import FeedbackRequest
from hfchat.serving.settings import ServerSettings
from hfchat.structured import validity
from tests.serving.conftest import MODEL, ScriptedEngine, running


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    return str(tmp_path_factory.mktemp("feedback") / "feedback.db")


@pytest.fixture(scope="module")
def served(database):
    with running(ScriptedEngine(), feedback=database) as served:
        yield served


def say(served, answer_id, /, **fields):
    return served.http.post("/v1/feedback", json={"answer_id": answer_id} | fields)


def ratings_up(served):
    counted = re.search(r'hfchat_feedback_total{rating="up",version="none"} (\S+)', served.http.get("/metrics").text)
    return float(counted[1]) if counted else 0


def stored(database):
    engine = open_database(database)
    try:
        return {(row["answer_id"], row["choice"]): row for row in rows(engine)}
    finally:
        engine.dispose()


def error_of(response):
    return response.status_code, response.json()["error"]["code"], response.json()["error"]["param"]


def test_feedback_is_stored_with_the_conversation(served, database):
    answer = served.chat(user="alice", temperature=0.5, seed=3, stop=["?"], n=2).json()
    assert answer["id"] not in {answer_id for answer_id, _ in stored(database)}  # nothing was said of it yet
    said = {"rating": "down", "correction": "Hi!", "comment": "cold", "tags": ["rude"], "user": "alice"}
    response = say(served, answer["id"], choice=1, **said)
    assert response.status_code == 200
    body = response.json()
    assert body.items() >= (said | {"object": "feedback", "answer_id": answer["id"], "choice": 1}).items()
    assert body["replaces"] is None
    rated = stored(database)[answer["id"], 1]
    assert (answer["id"], 0) not in stored(database)
    assert rated["messages"] == [{"role": "user", "content": "Hi"}]
    assert rated["answer"] == "Hello, world!"
    assert rated["sampling"].items() >= {"temperature": 0.5, "seed": 4, "max_tokens": 98, "stop": ["?"]}.items()
    assert (rated["model"], rated["finish_reason"], rated["user"]) == (MODEL, "stop", "alice")
    assert rated["template_fingerprint"] == served.engine.template_fingerprint
    assert [one["id"] for one in rated["feedback"]] == [body["id"]]
    metrics = served.http.get("/metrics").text
    assert 'hfchat_feedback_total{rating="down",version="none"} 1.0' in metrics


CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "pattern": "^[A-Z]"}, "days": {"type": "integer"}},
    "required": ["city"],
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "Of a city.", "parameters": CITY}},
    {"type": "function", "function": {"name": "time"}},
]
HISTORY = [
    {"role": "user", "content": "Rome or Oslo?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "call_1", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "18"},
]
CALLING = [Piece("", 1, reasoning="Now "), Piece("Let me see.", 1, reasoning="Oslo.")]
CALLING += [Piece("", 1, calls=(CallPart(0, "weather", '{"city": '), CallPart(0, None, '"Paris"}'))), Piece("", 1)]


def corrected(*calls, content=None):
    return {"content": content, "tool_calls": [{"function": {"name": n, "arguments": a}} for n, a in calls]}


@pytest.fixture(scope="module")
def calling(tmp_path_factory):
    """A server whose model calls a function, the path of its database, and the id of an answer."""
    database = str(tmp_path_factory.mktemp("calls") / "feedback.db")
    with running(ScriptedEngine(CALLING, "tool_calls"), feedback=database) as served:
        answer = served.chat(messages=HISTORY, tools=TOOLS, tool_choice="required", top_k=5).json()
        yield served, database, answer["id"]


def test_tools_and_calls_are_stored_with_the_conversation(calling):
    served, database, answer_id = calling
    right = corrected(("weather", '{"days": 1, "city": "Oslo"}'), ("time", {"any": [None]}), content="Wait.")
    said = say(served, answer_id, rating="down", correction=right).json()
    written = [call["function"] for call in said["correction"]["tool_calls"]]
    assert written == [
        {"name": "weather", "arguments": '{"days": 1, "city": "Oslo"}'},
        {"name": "time", "arguments": '{"any": [null]}'},
    ]
    row = stored(database)[answer_id, 0]
    assert json.loads(row["tools"]) == TOOLS
    assert [turn["role"] for turn in row["messages"]] == ["user", "assistant", "tool"]
    assert row["messages"][1]["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city": "Rome"}'}
    assert row["messages"][2]["tool_call_id"] == row["messages"][1]["tool_calls"][0]["id"] == "call_1"
    assert (row["answer"], row["reasoning"], row["finish_reason"]) == ("Let me see.", "Now Oslo.", "tool_calls")
    assert row["tool_calls"] == [
        {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
    ]
    assert row["sampling"].items() >= {"top_k": 5, "tool_choice": "required"}.items()
    [opinion] = row["feedback"]
    assert opinion["correction"] == "Wait."
    assert [call["function"] for call in opinion["corrected_calls"]] == written


HANGS = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(a+)+$"}}}


@pytest.mark.parametrize(
    ("call", "param", "words"),
    [
        (("wether", "{}"), "name", "wether is no function that the conversation offers; those are weather, time"),
        (("weather", "{}"), "arguments", "the schema of weather: 'city' is a required property"),
        (("weather", '{"city": "oslo"}'), "arguments", "['city']: 'oslo' does not match"),
        (("weather", {"city": "Oslo", "days": "1"}), "arguments", "['days']: '1' is not of type 'integer'"),
        (("weather", "{city}"), "arguments", "Input should be a JSON object in a string"),
        (("weather", "[1]"), "arguments", "Input should be a JSON object in a string"),
        (("weather", '{"city": NaN}'), "arguments", "Input should be a JSON object in a string"),
    ],
)
def test_a_corrected_call_must_be_one_that_the_tools_allow(calling, call, param, words):
    served, _, answer_id = calling
    refused = say(served, answer_id, correction=corrected(("time", "{}"), call))
    assert error_of(refused) == (400, None, f"correction.tool_calls[1].function.{param}")
    assert words in refused.json()["error"]["message"]


def test_a_schema_that_hangs_a_validator_is_given_up(calling, monkeypatch):
    served, _, _ = calling
    monkeypatch.setattr(validity, "_TIME_LIMIT_S", 0.5)
    tools = [{"type": "function", "function": {"name": "f", "parameters": HANGS}}]
    answer_id = served.chat(tools=tools).json()["id"]
    refused = say(served, answer_id, correction=corrected(("f", {"a": "a" * 50 + "b"})))
    assert error_of(refused) == (400, None, "correction.tool_calls[0].function.arguments")
    assert "takes more than 0.5 s to check" in refused.json()["error"]["message"]
    assert say(served, answer_id, correction=corrected(("f", {"a": "aa"}))).status_code == 200


def test_what_is_no_correction_is_refused(calling):
    served, _, answer_id = calling
    for correction, param in (
        ({}, "correction"),
        ({"content": "", "tool_calls": []}, "correction"),
        ({"text": "x"}, "correction.text"),
        ({"tool_calls": [{"function": {"name": "time"}}]}, "correction.tool_calls[0].function.arguments"),
    ):
        refused = say(served, answer_id, correction=correction).json()["error"]
        assert refused["param"] == param, refused
    without_tools = served.chat().json()["id"]
    refused = say(served, without_tools, correction=corrected(("time", {}))).json()["error"]
    assert "there were none" in refused["message"]
    unknown = say(served, "chatcmpl-unknown", correction=corrected(("time", {})))
    assert error_of(unknown) == (404, "answer_not_found", "answer_id")


def test_the_tools_of_another_key_are_not_told(serve, tmp_path):
    keys = ApiKeys({name: hash_key(name) for name in ("alice", "bob")})
    settings = {"keys": keys, "feedback": str(tmp_path / "feedback.db")}
    asked = serve(ScriptedEngine(CALLING, "tool_calls"), **settings)
    asked.http.headers["Authorization"] = "Bearer alice"
    answer_id = asked.chat(tools=TOOLS).json()["id"]
    later = serve(ScriptedEngine(), **settings)  # knows of it by the database, once it is there
    for served in (asked, later):
        served.http.headers["Authorization"] = "Bearer bob"
        refused = say(served, answer_id, correction=corrected(("guess", {})))
        assert error_of(refused) == (404, "answer_not_found", "answer_id")
        served.http.headers["Authorization"] = "Bearer alice"
        refused = say(served, answer_id, correction=corrected(("guess", {})))
        assert error_of(refused) == (400, None, "correction.tool_calls[0].function.name")
        assert say(served, answer_id, correction=corrected(("time", {}))).status_code == 200


def test_a_call_that_was_cut_is_kept_as_text(serve, tmp_path, eventually):
    database = str(tmp_path / "feedback.db")
    parts = (CallPart(0, "time", "{}"), CallPart(1, "weather", '{"city": "Pa'))
    engine = ScriptedEngine([Piece("", 1, calls=parts), Piece("", 1)], "length")
    serve(engine, feedback=database, keep_conversations=True).chat(tools=TOOLS)
    eventually(lambda: stored(database))
    [row] = stored(database).values()
    assert [call["function"]["name"] for call in row["tool_calls"]] == ["time"]
    assert row["answer"] == 'weather({"city": "Pa'


def test_the_first_word_and_the_next_one(served, database):
    answer_id = served.chat().json()["id"]
    assert error_of(say(served, answer_id)) == (400, None, "rating")
    before = ratings_up(served)
    first = say(served, answer_id, rating="up").json()
    assert say(served, answer_id, rating="up").json()["id"] == first["id"]
    assert ratings_up(served) == before + 1
    assert say(served, answer_id, rating="down").json()["replaces"] == first["id"]
    assert say(served, answer_id).status_code == 200  # taken back
    assert len(stored(database)[answer_id, 0]["feedback"]) == 3


def test_without_keys_there_is_one_voter_whomever_it_names(served, database):
    answer_id = served.chat().json()["id"]
    before = ratings_up(served)
    assert len({say(served, answer_id, rating="up", user=f"sock{number}").json()["id"] for number in range(5)}) == 1
    assert len(stored(database)[answer_id, 0]["feedback"]) == 1
    assert ratings_up(served) == before + 1


@pytest.mark.parametrize(("trusted", "voices"), [((), 1), (("web",), 5)])
def test_a_key_is_one_voter_unless_it_is_trusted(serve, tmp_path, trusted, voices):
    database = str(tmp_path / "feedback.db")
    keys = ApiKeys({"web": hash_key("secret")})
    served = serve(ScriptedEngine(), feedback=database, keys=keys, trusted_keys=trusted)
    served.http.headers["Authorization"] = "Bearer secret"
    answer_id = served.chat().json()["id"]
    for number in range(5):
        assert say(served, answer_id, rating="up", user=f"sock{number}").status_code == 200
    holding = [one for one in stored(database)[answer_id, 0]["feedback"] if one["replaced_at"] is None]
    assert len(holding) == voices


def test_a_streamed_answer_can_be_rated_as_soon_as_it_ends(served, database):
    stream = served.openai.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Hi"}], stream=True
    )
    for chunk in stream:
        if chunk.choices[0].finish_reason:
            assert say(served, chunk.id, rating="up").status_code == 200
    assert stored(database)[chunk.id, 0]["answer"] == "Hello, world!"


def test_a_stopped_answer_can_be_rated(database, serve, eventually):
    engine = ScriptedEngine(held=True)
    served = serve(engine, feedback=database)
    messages = [{"role": "user", "content": "Hi"}]
    stream = served.openai.chat.completions.create(model=MODEL, messages=messages, stream=True)
    answer_id = next(chunk.id for chunk in stream if chunk.choices[0].delta.content)
    stream.close()
    eventually(lambda: not engine.active)
    eventually(lambda: say(served, answer_id, rating="down").status_code == 200)
    row = stored(database)[answer_id, 0]
    assert (row["answer"], row["finish_reason"]) == ("Hello", None)


def test_a_retry_is_preferred(served, database):
    discarded, kept = served.chat().json(), served.chat(seed=2).json()
    assert say(served, kept["id"], preferred_over=discarded["id"]).status_code == 200
    assert stored(database)[kept["id"], 0]["feedback"][0]["preferred_over"] == discarded["id"]
    assert (discarded["id"], 0) in stored(database)
    other = served.chat(messages=[{"role": "user", "content": "Bye"}]).json()
    assert error_of(say(served, kept["id"], preferred_over=other["id"])) == (400, None, "preferred_over")
    assert error_of(say(served, kept["id"], preferred_over="x")) == (404, "answer_not_found", "preferred_over")


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({}, (404, "answer_not_found", "answer_id")),
        ({"choice": 1}, (404, "answer_not_found", "answer_id")),
        ({"rating": "good"}, (400, None, "rating")),
        ({"stars": 5}, (400, "unsupported_field", "stars")),
        ({"choice": -1}, (400, None, "choice")),
        ({"tags": ["x"] * 17}, (400, None, "tags")),
        ({"tags": ["x" * 65]}, (400, None, "tags[0]")),
        ({"comment": "x" * 5_001}, (400, None, "comment")),
        ({"correction": "x" * 50_001}, (400, None, "correction")),
        ({"correction": ""}, (400, None, "correction")),
        ({"user": "x" * 513}, (400, None, "user")),
        ({"answer_id": None}, (400, None, "answer_id")),
    ],
)
def test_what_is_refused(served, database, fields, error):
    before = len(stored(database))
    assert error_of(say(served, "chatcmpl-unknown", **({"rating": "up"} | fields))) == error
    assert len(stored(database)) == before


def test_no_page_of_another_site_can_send_feedback(served):
    answer_id = served.chat().json()["id"]
    form = {"Content-Type": "text/plain", "Origin": "https://evil.example"}  # what a browser sends without asking
    body = f'{{"answer_id": "{answer_id}", "rating": "down"}}'
    assert served.http.post("/v1/feedback", content=body, headers=form).status_code == 415


def test_what_is_not_to_be_stored_is_not_held(served):
    answer_id = served.chat(store=False).json()["id"]
    assert error_of(say(served, answer_id, rating="up")) == (404, "answer_not_found", "answer_id")
    completion = served.complete().json()["id"]
    assert error_of(say(served, completion, rating="up")) == (404, "answer_not_found", "answer_id")


def test_without_the_setting_nothing_is_taken(serve):
    served = serve(ScriptedEngine())
    settings = {"enabled": False, "keeps_conversations": False, "logs_content": False}
    assert served.http.get("/v1/feedback/settings").json() == settings
    response = say(served, served.chat().json()["id"], rating="up")
    assert error_of(response) == (404, "feedback_disabled", None)


def test_kept_conversations_are_stored_at_once_unless_the_request_says_no(serve, tmp_path, eventually):
    database = str(tmp_path / "feedback.db")
    served = serve(ScriptedEngine(), feedback=database, keep_conversations=True, log_content=True)
    settings = {"enabled": True, "keeps_conversations": True, "logs_content": True}
    assert served.http.get("/v1/feedback/settings").json() == settings
    served.chat(store=False)
    served.complete()
    kept = served.chat().json()["id"]
    eventually(lambda: stored(database))
    assert list(stored(database)) == [(kept, 0)]


def test_guards_come_first_and_are_on_record(serve, tmp_path, eventually):
    (tmp_path / "guards.yaml").write_text(
        "- {type: pii, name: addresses, applies_to: [prompt], action: redact, kinds: [email]}\n"
        "- {type: pii, name: numbers, applies_to: [answer], action: flag, kinds: [phone]}\n"
    )
    guards, database = load_guards(str(tmp_path / "guards.yaml")), str(tmp_path / "feedback.db")
    engine = ScriptedEngine(["Call ", "(212) 736-5000."])
    settings = {"feedback": database, "keep_conversations": True, "feedback_redact": False}
    served = serve(engine, guards=guards, **settings)
    served.chat(messages=[{"role": "user", "content": "I am jane.roe@gmail.com, at (212) 736-5000."}])
    eventually(lambda: stored(database))
    [row] = stored(database).values()
    assert row["messages"][0]["content"] == "I am [email], at (212) 736-5000."
    assert row["answer"] == "Call (212) 736-5000."
    assert row["findings"] == [
        {"guard": "addresses", "place": "prompt", "action": "redact", "categories": ["email"]},
        {"guard": "numbers", "place": "answer", "action": "flag", "categories": ["phone"]},
    ]


def test_personal_data_is_not_stored(served, database):
    prompt = [{"role": "user", "content": "Call (212) 736-5000."}]
    answer_id = served.chat(messages=prompt).json()["id"]
    response = say(served, answer_id, comment="by jane.roe@gmail.com")
    assert response.json()["comment"] == "by email@example.com"
    assert "736-5000" not in str(stored(database)[answer_id, 0])


def test_feedback_is_for_the_key_that_got_the_answer(serve, tmp_path):
    keys = ApiKeys({name: hash_key(name) for name in ("alice", "bob")})
    database = str(tmp_path / "feedback.db")
    served = serve(ScriptedEngine(), keys=keys, feedback=database)
    served.http.headers["Authorization"] = "Bearer alice"
    answer_id = served.chat().json()["id"]
    served.http.headers["Authorization"] = "Bearer bob"
    assert error_of(say(served, answer_id, rating="down")) == (404, "answer_not_found", "answer_id")
    served.http.headers["Authorization"] = "Bearer alice"
    assert say(served, answer_id, rating="up").status_code == 200
    assert stored(database)[answer_id, 0]["api_key"] == "alice"


def test_a_locked_database_is_a_503_and_nothing_else_waits(serve, tmp_path, monkeypatch):
    monkeypatch.setattr("hfchat.feedback.database._WAIT_S", 1)
    monkeypatch.setattr(feedback, "_MAX_WAITING", 2)
    database = str(tmp_path / "feedback.db")
    served = serve(ScriptedEngine(), feedback=database)
    answer_id = served.chat().json()["id"]
    engine = open_database(database)

    async def at_once():
        async with httpx.AsyncClient(base_url=served.url, timeout=30) as client:
            body = {"answer_id": answer_id, "rating": "up"}
            saying = [asyncio.create_task(client.post("/v1/feedback", json=body)) for _ in range(4)]
            await asyncio.wait(saying, return_when=asyncio.FIRST_COMPLETED)  # the ones that have no place to wait in
            assert (await client.get("/health")).status_code == 200
            still_waiting = sum(not task.done() for task in saying)
            return still_waiting, [await task for task in saying]

    with engine.begin():
        still_waiting, responses = asyncio.run(at_once())
    assert still_waiting == 2
    assert {error_of(response)[:2] for response in responses} == {(503, "feedback_unavailable")}
    assert all("Retry-After" in response.headers for response in responses)
    assert stored(database) == {}
    assert say(served, answer_id, rating="up").status_code == 200
    engine.dispose()


def test_what_is_too_old_is_deleted(serve, tmp_path, eventually):
    database = str(tmp_path / "feedback.db")
    served = serve(ScriptedEngine(), feedback=database)
    assert say(served, served.chat().json()["id"], rating="up").status_code == 200
    time.sleep(0.01)
    serve(ScriptedEngine(), feedback=database, feedback_retention_days=1e-9)
    eventually(lambda: stored(database) == {})


def stores(database, *ages):
    """A database with answers that are so many days old; a negative age is of a clock that was ahead."""
    store = Store(open_database(database, create=True))
    for number, age in enumerate(ages):
        moment = datetime.now(UTC) - timedelta(days=age)
        message = {"role": "user", "content": "Hi"}
        store.keep(Exchange(f"chatcmpl-{number}", 0, moment, MODEL, [message], "Hello", "stop", {}))
    store.close()


class AheadByTenYears(datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.now(tz) + timedelta(days=3652)


@pytest.mark.parametrize("ages", [(0, 0, 1, 30, 80), (0, 1, 2, -3652), (0, 1, 80, -3652, -3652.5)])
def test_a_clock_that_is_ahead_deletes_nothing_at_the_start(serve, tmp_path, eventually, monkeypatch, caplog, ages):
    """Also not after a restart, when something was stored with a wrong time."""
    database = str(tmp_path / "feedback.db")
    stores(database, *ages)
    monkeypatch.setattr(feedback, "datetime", AheadByTenYears)
    serve(ScriptedEngine(), feedback=database, feedback_retention_days=90)
    eventually(lambda: "the clock is 365" in caplog.text)
    time.sleep(0.05)
    assert len(stored(database)) == len(ages)


def test_what_got_too_old_while_the_server_was_off_is_deleted_step_by_step(serve, tmp_path, eventually, monkeypatch):
    monkeypatch.setattr(feedback, "_BETWEEN_DELETIONS_S", 0)
    monkeypatch.setattr(feedback, "_BETWEEN_LOOKS_S", 0.001)
    database = str(tmp_path / "feedback.db")
    stores(database, 60, 50, 40, 35)
    serve(ScriptedEngine(), feedback=database, feedback_retention_days=38)
    eventually(lambda: [answer_id for answer_id, _ in stored(database)] == ["chatcmpl-3"])


def test_opinions_that_wait_for_the_same_lock_fail_together(serve, tmp_path, monkeypatch):
    """Not one after the other, each after as long a wait as the first."""
    monkeypatch.setattr("hfchat.feedback.database._WAIT_S", 0.5)
    monkeypatch.setattr(feedback, "_LONG_S", 0.4)
    database = str(tmp_path / "feedback.db")
    served = serve(ScriptedEngine(), feedback=database)
    answer_id = served.chat().json()["id"]
    waited = []
    say_so = Store.say
    monkeypatch.setattr(Store, "say", lambda *args: waited.append(args) or say_so(*args))

    async def all_at_once():
        async with httpx.AsyncClient(base_url=served.url, timeout=60) as client:
            body = {"answer_id": answer_id, "rating": "up"}
            return await asyncio.gather(*(client.post("/v1/feedback", json=body) for _ in range(20)))

    engine = open_database(database)
    with engine.begin():
        responses = asyncio.run(all_at_once())
    engine.dispose()
    assert {response.status_code for response in responses} == {503}
    assert len(waited) < 5
    assert say(served, answer_id, rating="up").status_code == 200


def test_a_conversation_is_stored_once_for_all_answers_of_a_request(serve, tmp_path, eventually):
    database = tmp_path / "feedback.db"
    served = serve(ScriptedEngine(context_length=10**6), feedback=str(database), keep_conversations=True)
    messages = [{"role": "user", "content": f"{'word ' * 40_000}{number}"} for number in range(2)]
    answer_id = served.chat(messages=messages, n=20).json()["id"]
    eventually(lambda: len(stored(str(database))) == 20)
    assert all(row["messages"] == messages for row in stored(str(database)).values())
    assert say(served, answer_id, choice=7, rating="up").status_code == 200
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 3 * 400_000


def test_a_store_that_is_full_says_so_until_there_is_room(serve, tmp_path, eventually, caplog):
    database = str(tmp_path / "feedback.db")
    settings = {"feedback": database, "keep_conversations": True, "feedback_max_gib": 1 / 2048}
    served = serve(ScriptedEngine(context_length=10**6), **settings)

    def long(number):
        return [{"role": "user", "content": f"{number} {'word ' * 20_000}"}]

    kept = served.chat().json()["id"]
    for number in range(10):
        assert served.chat(messages=long(number)).status_code == 200  # chats go on
    eventually(lambda: "a conversation could not be kept: database or disk is full" in caplog.text)
    assert say(served, kept, comment="x" * 5000).status_code in (200, 503)
    assert (tmp_path / "feedback.db").stat().st_size <= 2**19
    refused = say(served, served.chat(messages=long(11)).json()["id"], rating="up")
    assert error_of(refused) == (503, "feedback_unavailable", None)
    store = Store(open_database(database))
    for answer_id, _ in stored(database):
        if answer_id != kept:
            store.delete_answer(answer_id)
    store.close()
    assert say(served, kept, rating="down").status_code == 200


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"feedback_max_gib": 5}, "--feedback-max-gib is for --feedback"),
        ({"feedback": "x.db", "feedback_max_gib": 0}, "--feedback-max-gib must be"),
        ({"keep_conversations": True}, "--keep-conversations is for --feedback"),
        ({"feedback_retention_days": 30}, "--feedback-retention-days is for --feedback"),
        ({"feedback_redact": False}, "--feedback-redact is for --feedback"),
        ({"trusted_keys": ("web",)}, "--trusted-keys is for --feedback"),
        ({"feedback": "x.db", "feedback_retention_days": 0}, "--feedback-retention-days must be"),
        ({"feedback": "x.db", "feedback_retention_days": float("nan")}, "--feedback-retention-days must be"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        ServerSettings(model="m", **settings)


def test_ratings_are_counted_by_the_version_that_answered(tmp_path):
    store = Store(open_database(str(tmp_path / "feedback.db"), create=True))
    message = {"role": "user", "content": "Hi"}
    now = datetime.now(UTC)
    store.keep(Exchange("chatcmpl-1", 0, now, MODEL, [message], "Hello", "stop", {}, model_version="v2"))
    rated = []

    async def rate_twice():
        collector = feedback.Collector(store)
        handler = feedback.FeedbackHandler(collector, lambda *rating: rated.append(rating))
        async with collector.running():
            for _ in range(2):  # the same again is no new rating
                await handler(FeedbackRequest(answer_id="chatcmpl-1", rating="up"))

    asyncio.run(rate_twice())
    assert rated == [("up", "v2")]
