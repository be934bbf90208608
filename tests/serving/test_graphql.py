"""GraphQL gives what the REST API gives: answers, streams, errors, limits, and places that are free again."""

import json

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from hfchat.feedback.database import open_database
from hfchat.feedback.reading import Selection, rows
from hfchat.serving.engines.engine import Piece
from hfchat.serving.http.auth import ApiKeys, hash_key

CHAT = """mutation ($text: String!, $options: ChatOptions) {
  chat(model: "tiny-chat", messages: [{role: USER, content: $text}], options: $options) {
    id model content finishReason usage { promptTokens completionTokens totalTokens }
  }
}"""
STREAM = """subscription ($options: ChatOptions) {
  chatStream(model: "tiny-chat", messages: [{role: USER, content: "Hi"}], options: $options) {
    text finishReason usage { totalTokens }
  }
}"""


@pytest.fixture
def served(serve, scripted):
    return serve(scripted(), graphql=True)


def ask(served, query, headers=None, **variables):
    response = served.http.post("/graphql", json={"query": query, "variables": variables}, headers=headers)
    assert response.status_code == 200, response.text
    return response.json()


def test_there_are_no_tools_and_the_schema_says_so(served):
    described = ask(served, '{ __type(name: "ChatOptions") { description } }')["data"]["__type"]["description"]
    assert "no tools" in described
    (error,) = ask(served, CHAT, text="Hi", options={"tools": []})["errors"]
    assert "unknown field 'tools'" in error["message"]


def test_reasoning_is_apart_from_the_text(serve, scripted):
    served = serve(scripted(pieces=[Piece("", 1, reasoning="Hm."), "Hello"]), graphql=True)
    answer = ask(served, CHAT.replace("content finish", "content reasoning finish"), text="Hi")["data"]["chat"]
    assert (answer["content"], answer["reasoning"]) == ("Hello", "Hm.")
    with Subscriber(served) as subscriber:
        subscriber.subscribe(STREAM.replace("text finish", "text reasoning finish"))
        pieces = [(piece["text"], piece["reasoning"]) for piece in subscriber.answer()]
    assert pieces == [("", "Hm."), ("Hello", None), ("", None)]


class Subscriber:
    """Speaks `graphql-transport-ws`."""

    def __init__(self, served, **options):
        url = served.url.replace("http", "ws") + "/graphql"
        self._socket = connect(url, subprotocols=["graphql-transport-ws"], **options)

    def __enter__(self):
        self.send(type="connection_init")
        assert self.receive()["type"] == "connection_ack"
        return self

    def __exit__(self, *_):
        self._socket.close()

    def send(self, **message):
        self._socket.send(json.dumps(message))

    def receive(self):
        return json.loads(self._socket.recv(timeout=10))

    def subscribe(self, query=STREAM, id="1", **variables):
        self.send(type="subscribe", id=id, payload={"query": query, "variables": variables})

    def answer(self):
        """The pieces of an answer, or its errors."""
        pieces = []
        while (message := self.receive())["type"] == "next":
            if "errors" in message["payload"]:
                return message["payload"]["errors"]
            pieces.append(message["payload"]["data"]["chatStream"])
        return message["payload"] if message["type"] == "error" else pieces


def test_models(served):
    (model,) = ask(served, "{ models { id created parent version } }")["data"]["models"]
    assert model["id"] == "tiny-chat"
    assert model == {name: served.http.get("/v1/models").json()["data"][0].get(name) for name in model}


def test_chat(served):
    answer = ask(served, CHAT, text="Hi", options={"maxTokens": 9, "temperature": 0.5, "stop": ["wor"], "seed": 4})
    chat = answer["data"]["chat"]
    assert chat["id"].startswith("chatcmpl-")
    assert (chat["content"], chat["finishReason"]) == ("Hello, ", "stop")
    assert chat["usage"]["promptTokens"] == 2
    sampling = served.engine.samplings[0]
    assert (sampling.max_tokens, sampling.temperature, sampling.seed) == (9, 0.5, 4)


@pytest.mark.parametrize(
    ("options", "extensions"),
    [
        ({"temperature": 3.0}, {"code": "invalid_request_error", "status": 400, "param": "temperature"}),
        ({"maxTokens": 1000}, {"code": "context_length_exceeded", "status": 400, "param": "max_tokens"}),
    ],
)
def test_errors_are_those_of_the_rest_api(served, options, extensions):
    (error,) = ask(served, CHAT, text="Hi", options=options)["errors"]
    assert error["extensions"] == extensions
    rest = {{"maxTokens": "max_tokens"}.get(name, name): value for name, value in options.items()}
    assert error["message"] == served.chat(**rest).json()["error"]["message"]


def test_a_field_that_is_not_there_is_refused_by_name(served):
    (error,) = ask(served, CHAT, text="Hi", options={"topK": 5})["errors"]
    assert "topK" in error["message"]
    assert not served.engine.samplings


def test_a_stream_comes_piece_by_piece_and_another_after_it(served):
    with Subscriber(served) as subscriber:
        for _ in range(2):
            subscriber.subscribe()
            *pieces, last = subscriber.answer()
            assert [piece["text"] for piece in pieces] == ["Hello", ", ", "wor", "ld", "!"]
            assert last == {"text": "", "finishReason": "stop", "usage": {"totalTokens": 7}}
        subscriber.subscribe(options={"temperature": 3})
        (error,) = subscriber.answer()
        assert error["extensions"]["param"] == "temperature"


def test_a_stream_that_fails_ends_with_its_error(serve, scripted):
    with Subscriber(serve(scripted(fail_after=2), graphql=True)) as subscriber:
        subscriber.subscribe()
        (error,) = subscriber.answer()
        assert error["extensions"]["code"] == "engine_error"


@pytest.mark.parametrize("how", ["unsubscribe", "disconnect"])
def test_a_client_that_leaves_frees_its_place(serve, scripted, eventually, how):
    served = serve(scripted(held=True), graphql=True)
    with Subscriber(served) as subscriber:
        subscriber.subscribe()
        assert subscriber.receive()["payload"]["data"]["chatStream"]["text"] == "Hello"
        assert served.engine.active == 1
        if how == "unsubscribe":
            subscriber.send(type="complete", id="1")
            eventually(lambda: served.engine.active == 0)
    eventually(lambda: served.engine.active == 0)
    health = served.http.get("/health").json()
    assert (health["running"], health["waiting"]) == (0, 0)


def test_keys_and_their_limits_are_those_of_the_rest_api(serve, scripted):
    keys = ApiKeys({"a": hash_key("key")})
    served = serve(scripted(), graphql=True, keys=keys, requests_per_minute=3)
    assert served.http.post("/graphql", json={"query": "{ models { id } }"}).status_code == 401
    with pytest.raises(InvalidStatus):
        Subscriber(served)
    headers = {"Authorization": "Bearer key"}
    assert "data" in ask(served, "{ models { id } }", headers)
    with Subscriber(served, additional_headers=headers) as subscriber:
        for _ in range(2):
            subscriber.subscribe()
            assert subscriber.answer()[-1]["finishReason"] == "stop"
        subscriber.subscribe()
        (error,) = subscriber.answer()
        assert (error["extensions"]["status"], error["extensions"]["code"]) == (429, "rate_limit_exceeded")
    (error,) = ask(served, CHAT, headers, text="Hi")["errors"]
    assert error["extensions"]["status"] == 429


def test_pages_of_other_sites_may_not_subscribe(served):
    with pytest.raises(InvalidStatus):
        Subscriber(served, origin="https://elsewhere.example")


@pytest.mark.parametrize(
    "query",
    [
        "{ a: models { id } b: models { id } }",
        "{ models { id } " + "__typename " * 1100 + "}",
        "{ " + "x { " * 8 + "y" + " }" * 9,
    ],
)
def test_queries_are_bounded(served, query):
    assert "errors" in ask(served, query)


DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
BROKEN = {
    "variables 100,000 deep": b'{"query": "{ models { id } }", "variables": ' + DEEP + b"}",
    "a list 100,000 deep": b"[" * 100_000,
    "null": b"null",
    "a text": b'"{ models { id } }"',
    "a number of 5,000 digits": b'{"query": "{ models { id } }", "variables": {"a": ' + b"9" * 5000 + b"}}",
    "not UTF-8": b'{"query": "\xff"}',
    "half": b'{"query": ',
    "300,000 values": json.dumps({"query": CHAT, "variables": {"options": {"stop": [1] * 300_000}}}).encode(),
    "80,000 names": json.dumps({"query": CHAT, "variables": {f"a{i}": 1 for i in range(70_000)}}).encode(),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_request_is_refused(served, caplog, name):
    headers = {"content-type": "application/json"}
    response = served.http.post("/graphql", content=BROKEN[name], headers=headers)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"
    with Subscriber(served) as subscriber:
        subscriber._socket.send(BROKEN[name].decode(errors="replace"))
        subscriber._socket.close_timeout = 5
        with pytest.raises(ConnectionClosed) as closed:
            subscriber.receive()
    assert 4400 <= closed.value.rcvd.code < 4500  # the protocol's own codes for a fault of the client
    assert "unexpected error" not in caplog.text


def test_feedback_that_is_not_taken_says_so(served):
    query = 'mutation { feedback(feedback: {answerId: "chatcmpl-1", rating: UP}) { id rating } }'
    (error,) = ask(served, query)["errors"]
    assert error["extensions"] == {"code": "feedback_disabled", "status": 404}


def test_feedback_is_stored(serve, scripted, tmp_path):
    served = serve(scripted(), graphql=True, feedback=str(tmp_path / "feedback.db"))
    answer = ask(served, CHAT, text="Hi")["data"]["chat"]["id"]
    query = """mutation ($answer: String!) {
      feedback(feedback: {answerId: $answer, rating: DOWN, correction: "Hello!"}) { id }
    }"""
    stored = ask(served, query, answer=answer)["data"]["feedback"]
    [row] = rows(open_database(str(tmp_path / "feedback.db")), Selection())
    [said] = row["feedback"]
    assert (said["id"], said["rating"], said["correction"]) == (stored["id"], "down", "Hello!")


def test_an_idle_subscriber_does_not_hold_the_server_up(serve, scripted, eventually):
    served = serve(scripted(), graphql=True, drain_seconds=30)
    with Subscriber(served):
        assert served.server._gate.inside == 0


def test_it_is_there_only_if_asked_for(serve, scripted):
    assert serve(scripted()).http.post("/graphql", json={"query": "{ models { id } }"}).status_code == 404
