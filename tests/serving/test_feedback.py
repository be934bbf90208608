"""Feedback through the real endpoint: what is stored, what is not, and what is refused."""

import asyncio
import re
import time
from datetime import UTC, datetime

import httpx
import pytest

from hfchat.errors import UserError
from hfchat.feedback.database import open_database
from hfchat.feedback.exchange import Exchange
from hfchat.feedback.reading import rows
from hfchat.feedback.store import Store
from hfchat.safety.guards_file import load_guards
from hfchat.serving import feedback
from hfchat.serving.auth import ApiKeys, hash_key
from hfchat.serving.protocol import FeedbackRequest
from hfchat.serving.server import ServerSettings
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


@pytest.mark.parametrize(
    ("settings", "words"),
    [
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
