"""Limits of time and place, driven over real sockets: waiting, generating, slow and broken clients, other sites."""

import asyncio
import contextlib
import json
import socket
import threading

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from hfchat.errors import UserError
from hfchat.serving.http import app, connections, limits
from hfchat.serving.http.auth import ApiKeys, hash_key
from hfchat.serving.http.checks import WebSocketOrigin
from hfchat.serving.http.record import RequestRecord
from hfchat.serving.openai import generation
from hfchat.serving.settings import ServerSettings

MODEL = "tiny-chat"
BODY = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}).encode()


def state(served):
    health = served.http.get("/health").json()
    return health["running"], health["waiting"]


def exchange(served, *sent: bytes) -> bytes:
    """Send bytes as they are, and return what comes until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as connection:
        for part in sent:
            connection.sendall(part)
        received = b""
        while part := connection.recv(65536):
            received += part
        return received


def head(length: int | str, *headers: str) -> bytes:
    lines = ["POST /v1/chat/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, f"Content-Length: {length}", "", ""]).encode()


# ------------------------------------------------------------------------------------------------ waiting, generating


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_does_not_wait_for_ever(serve, scripted, eventually, stream):
    served = serve(scripted(held=True), max_concurrent_requests=1, max_wait_seconds=0.2)
    blocker = threading.Thread(target=served.chat)
    blocker.start()
    eventually(lambda: state(served) == (1, 0))
    refused = served.chat(stream=stream)
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) > 0
    assert refused.json()["error"]["code"] == "queue_timeout"
    assert state(served) == (1, 0)
    served.engine.release()
    blocker.join(10)
    assert state(served) == (0, 0)
    assert served.chat().status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_takes_too_long_ends_as_it_is(serve, scripted, stream):
    served = serve(scripted(held=True), max_generation_seconds=0.2)
    response = served.chat(stream=stream, stop="lo!")  # the stop string's beginning was held back
    assert response.status_code == 200
    if stream:
        chunks = [json.loads(line[6:])["choices"][0] for line in response.text.split("\n\n")[:-2]]
        text, reason = "".join(c["delta"].get("content", "") for c in chunks), chunks[-1]["finish_reason"]
    else:
        choice = response.json()["choices"][0]
        text, reason = choice["message"]["content"], choice["finish_reason"]
    assert (text, reason) == ("Hello", "length")
    assert served.engine.active == 0
    assert state(served) == (0, 0)


def test_an_answer_that_is_not_begun_in_time_is_an_error(serve, scripted):
    engine = scripted()

    async def never(prompt, sampling):
        await asyncio.sleep(3600)
        yield

    engine.stream = never
    served = serve(engine, max_generation_seconds=0.2)
    response = served.chat()
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "generation_timeout"
    assert state(served) == (0, 0)


def test_a_quiet_stream_is_kept_alive(serve, scripted, monkeypatch):
    monkeypatch.setattr(generation, "_KEEP_ALIVE_S", 0.05)
    served = serve(scripted(held=True), max_concurrent_requests=1)
    lines = {"running": [], "waiting": []}

    def read(name):
        body = json.loads(BODY) | {"stream": True}
        with served.http.stream("POST", "/v1/chat/completions", json=body) as response:
            for line in response.iter_lines():
                lines[name].append(line)
                if all(entry.count(": keep-alive") > 1 for entry in lines.values()):
                    served.engine.release()

    threads = [threading.Thread(target=read, args=[name]) for name in lines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    for received in lines.values():
        assert received.count(": keep-alive") > 1
        data = [line for line in received if line.startswith("data: ")]
        assert data[-1] == "data: [DONE]"
        texts = [json.loads(line[6:])["choices"][0]["delta"].get("content", "") for line in data[:-1]]
        assert "".join(texts) == "Hello, world!"


def test_an_error_after_a_keep_alive_is_an_event(serve, scripted, eventually, monkeypatch):
    monkeypatch.setattr(generation, "_KEEP_ALIVE_S", 0.05)
    served = serve(scripted(held=True), max_concurrent_requests=1, max_wait_seconds=0.4)
    blocker = threading.Thread(target=served.chat)
    blocker.start()
    eventually(lambda: state(served) == (1, 0))
    response = served.chat(stream=True)
    assert response.status_code == 200
    *comments, error, done, _ = response.text.split("\n\n")
    assert set(comments) == {": keep-alive"}
    assert json.loads(error[6:])["error"]["code"] == "queue_timeout"
    assert done == "data: [DONE]"
    served.engine.release()
    blocker.join(10)


def test_a_bug_in_a_stream_ends_it_with_an_error_event(serve, scripted):
    served = serve(scripted(pieces=["a", None]))  # not even a text
    *_, error, done, _ = served.chat(stream=True).text.split("\n\n")
    assert json.loads(error[6:])["error"]["type"] == "server_error"
    assert done == "data: [DONE]"
    assert state(served) == (0, 0)


# ------------------------------------------------------------------------------------------- slow and broken clients


def test_a_body_that_does_not_come_is_given_up(serve, scripted, monkeypatch):
    monkeypatch.setattr(app, "_MAX_BODY_S", 0.2)
    served = serve(scripted())
    answer = exchange(served, head(len(BODY)), BODY[:10])
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"error"' in answer


@pytest.mark.parametrize(
    ("sent", "kept_alive"),
    [(b"", False), (b"GET / HT", False), (b"GET / HTTP/1.1\r\nX: y\r\n", False), (b"GET / HT", True)],
)
def test_a_head_that_does_not_come_is_given_up(serve, scripted, monkeypatch, sent, kept_alive):
    monkeypatch.setattr(connections, "_HEADERS_S", 0.2)
    served = serve(scripted())
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as connection:
        if kept_alive:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.sendall(sent)
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(65536):  # until the server closes the connection
                received += part
        assert b"HTTP/1.1" not in received


def test_a_client_that_does_not_read_loses_its_place(serve, scripted, eventually, monkeypatch):
    monkeypatch.setattr(connections, "_STALLED_S", 0.2)
    served = serve(scripted(pieces=["x" * 50_000] * 400))
    body = json.dumps(json.loads(BODY) | {"stream": True}).encode()
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.sendall(head(len(body)) + body)
        eventually(lambda: served.engine.started == 1)
        eventually(lambda: state(served) == (0, 0))
        assert served.engine.active == 0


@pytest.mark.parametrize(
    "sent", [b"", b"GET / HTTP/1.1\r\nX: y\r\n", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"]
)
def test_a_crowd_of_connections_keeps_nobody_out(serve, scripted, monkeypatch, sent):
    """Silent ones, half heads, and those that are kept alive after an answer."""
    monkeypatch.setattr(connections, "_MAX_CONNECTIONS", 10)
    served = serve(scripted())
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            for _ in range(15):
                crowd = stack.enter_context(socket.create_connection(("127.0.0.1", served.port)))
                with contextlib.suppress(OSError):
                    crowd.sendall(sent)
            assert exchange(served, PROBE).startswith(b"HTTP/1.1 200")
            body = json.loads(BODY)
            assert httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=20).status_code == 200


PROBE = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def test_a_connection_with_a_request_does_not_make_room(serve, scripted, monkeypatch, eventually):
    monkeypatch.setattr(connections, "_MAX_CONNECTIONS", 3)
    served = serve(scripted(held=True))
    answers = []
    asking = threading.Thread(target=lambda: answers.append(served.chat()))
    asking.start()
    eventually(lambda: served.engine.active == 1)
    with contextlib.ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(socket.create_connection(("127.0.0.1", served.port)))
        assert exchange(served, PROBE).startswith(b"HTTP/1.1 200")
        served.engine.release()
        asking.join(10)
    assert answers[0].status_code == 200


def test_probes_are_answered_beside_many_slow_bodies(serve, scripted, monkeypatch, eventually):
    monkeypatch.setattr(app, "MAX_REQUESTS", 4)
    served = serve(scripted())
    with contextlib.ExitStack() as stack:
        for _ in range(6):
            slow = stack.enter_context(socket.create_connection(("127.0.0.1", served.port)))
            slow.sendall(head(len(BODY)) + BODY[:5])
        eventually(lambda: served.chat().json()["error"]["code"] == "server_busy")
        assert exchange(served, PROBE).startswith(b"HTTP/1.1 200")
    eventually(lambda: served.chat().status_code == 200)


def websocket(served, **options):
    return connect(f"ws://127.0.0.1:{served.port}/graphql", subprotocols=["graphql-transport-ws"], **options)


def test_websockets_are_bounded_for_each_key(serve, scripted, monkeypatch):
    monkeypatch.setattr(app, "_MAX_WEBSOCKETS", 2)
    keys = ApiKeys({name: hash_key(name) for name in ("alice", "bob")})
    served = serve(scripted(), graphql=True, keys=keys)
    alice, bob = ({"Authorization": f"Bearer {name}"} for name in ("alice", "bob"))
    first = websocket(served, additional_headers=alice)
    with websocket(served, additional_headers=alice), pytest.raises(InvalidStatus):
        websocket(served, additional_headers=alice)
    websocket(served, additional_headers=bob).close()
    first.close()
    websocket(served, additional_headers=alice).close()


def test_an_idle_websocket_is_closed(serve, scripted, monkeypatch):
    monkeypatch.setattr(app, "_IDLE_WEBSOCKET_S", 0.3)
    served = serve(scripted(), graphql=True)
    with websocket(served) as connection:
        connection.send('{"type": "connection_init"}')
        assert "connection_ack" in connection.recv(timeout=10)
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(timeout=10)
    assert closed.value.rcvd.code == 1001


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",  # TLS
        b"GET / HTTP/1.1\r\n\r\n",  # no host
        b"GET /" + b"y" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        head("-1"),
        head("4", "Transfer-Encoding: chunked"),
        head("4", "Content-Length: 5"),
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: localhost\r\n\r\n",
        b"GET http://localhost/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\nHost: localhost\n\n",
    ],
)
def test_broken_heads(serve, scripted, sent):
    served = serve(scripted())
    try:
        answer = exchange(served, sent)
        assert b'{"error":' in answer
    except (ConnectionResetError, BrokenPipeError):  # it has answered and closed before all was sent
        answer = b"HTTP/1.1 4"
    assert answer.startswith(b"HTTP/1.1 4"), answer
    assert served.chat().status_code == 200


CHUNKED = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
CHUNK = b"%x\r\n%s\r\n" % (len(BODY), BODY)


@pytest.mark.parametrize(
    "sent",
    [
        b"Transfer-Encoding: gzip, chunked\r\n\r\n" + CHUNK + b"0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNK + b"0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n" + CHUNK[:-2] + b"XX0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n" + CHUNK + b"0\r\nX: " + b"y" * 300_000,
        b"Transfer-Encoding: chunked\r\n\r\n4;" + b"y" * 300_000,
    ],
    ids=["encoding", "encodings", "end of a chunk", "trailer", "extension"],
)
def test_broken_bodies(serve, scripted, sent):
    served = serve(scripted())
    try:
        answer = exchange(served, CHUNKED + sent)
        assert b'{"error":' in answer
    except (ConnectionResetError, BrokenPipeError):  # it has answered and closed before all was sent
        answer = b"HTTP/1.1 4"
    assert answer.startswith(b"HTTP/1.1 400"[: len(answer)]), answer
    assert served.engine.started == 0
    assert served.chat().status_code == 200


def test_a_head_without_an_end_behind_a_request_is_refused(serve, scripted, eventually):
    """While the request before it is answered, so that it must not fill the memory."""
    served = serve(scripted(held=True))
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as connection:
        connection.sendall(head(len(BODY)) + BODY)
        eventually(lambda: served.engine.active == 1)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            connection.sendall(b"GET /" + b"y" * 64 * 2**20)
    eventually(lambda: served.engine.active == 0)


def test_a_trailer_is_no_header(serve, scripted):
    served = serve(scripted())
    sent = CHUNKED + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n" + CHUNK
    answer = exchange(served, sent + b"0\r\nX-Request-ID: of-the-trailer\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"of-the-trailer" not in answer


@pytest.mark.parametrize("parts", [1, 2, 1000])
def test_an_offer_of_another_protocol_is_declined(serve, scripted, parts):
    """Java's client offers HTTP/2 with its first request."""
    served = serve(scripted())
    offer = ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA"]
    sent = head(len(BODY), *offer) + BODY + PROBE
    size = -(-len(sent) // parts)
    answer = exchange(served, *(sent[start : start + size] for start in range(0, len(sent), size)))
    assert answer.count(b"HTTP/1.1 200") == 2
    assert served.engine.answered == [[{"role": "user", "content": "Hi"}]]


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
)
def test_only_json_is_read(serve, scripted, content_type):
    served = serve(scripted())
    for path in ("/v1/chat/completions", "/v1/completions", "/nothing"):
        response = served.http.post(path, content=BODY, headers={"content-type": content_type})
        assert response.status_code == 415
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    assert served.http.post("/v1/chat/completions", content=BODY, headers=headers).status_code == 200


# ----------------------------------------------------------------------------------------------------- other sites

STRANGE_HOSTS = [
    "evil.example",
    "[::1]evil.example",
    "[::1].evil.example",
    "[::1]evil.example:8000",
    "[::1]@evil.example",
    "localhost.evil.example",
    "localhost@evil.example",
    "localhost:80@evil.example",
    "localhost:evil.example",
    "localhost/evil.example",
    "127.0.0.1.evil.example",
    "evil.example:127.0.0.1",
    "[evil.example]",
    "[::1",
    "",
    ":8000",
]


@pytest.mark.parametrize("host", STRANGE_HOSTS)
@pytest.mark.parametrize("settings", [{}, {"host": "0.0.0.0", "allow_anyone": True}], ids=["loopback", "anyone"])
def test_only_its_own_names_reach_a_server_without_keys(serve, scripted, settings, host):
    """Else a page whose name resolves to the server's address could use it (DNS rebinding)."""
    served = serve(scripted(), **settings)
    assert served.http.get("/v1/models", headers={"host": host}).status_code == 403


def test_names_that_reach_a_server_for_anyone(serve, scripted, monkeypatch):
    monkeypatch.setenv("SPACE_HOST", "alice-chat.hf.space")
    served = serve(scripted(), host="0.0.0.0", allow_anyone=True, allow_hosts=("Chat.example.org",))
    names = ["192.168.0.7:8000", "[fe80::1]:8000", "localhost", socket.gethostname(), "chat.example.org:443"]
    for host in [*names, "alice-chat.hf.space"]:
        assert served.http.get("/v1/models", headers={"host": host}).status_code == 200, host


def test_with_keys_the_name_is_nobodys_business(serve, scripted):
    """A page has no key, and a proxy may pass on any name."""
    keys = ApiKeys({"alice": hash_key("k")})
    headers = {"host": "chat.example.org", "authorization": "Bearer k"}
    served = serve(scripted(), keys=keys, host="0.0.0.0")
    assert served.http.get("/v1/models", headers=headers).status_code == 200
    served = serve(scripted(), keys=keys, host="0.0.0.0", allow_hosts=("api.example.org",))
    assert served.http.get("/v1/models", headers=headers).status_code == 403


@pytest.mark.parametrize("host", ["*", "a:80", "https://a", "a/b", "", "-a", "a b"])
def test_a_name_must_be_one(host):
    with pytest.raises(UserError, match="--allow-host"):
        ServerSettings(model="m", allow_hosts=(host,))


SITE = "https://chat.example.org"


def preflight(served, origin):
    headers = {"origin": origin, "access-control-request-method": "POST"}
    headers["access-control-request-headers"] = "authorization,content-type,x-stainless-os"
    return served.http.options("/v1/chat/completions", headers=headers)


def test_no_other_site_may_use_it(serve, scripted):
    served = serve(scripted())
    for response in (preflight(served, SITE), served.http.get("/v1/models", headers={"origin": SITE})):
        assert not [name for name in response.headers if name.startswith("access-control")]


def test_named_sites_may_use_it(serve, scripted):
    served = serve(scripted(), allow_origins=(SITE,))
    allowed = preflight(served, SITE)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == SITE
    assert served.http.get("/v1/models", headers={"origin": SITE}).headers["access-control-allow-origin"] == SITE
    for other in ("https://evil.example", "http://chat.example.org", SITE + ".evil.example", "null"):
        assert "access-control-allow-origin" not in preflight(served, other).headers


@pytest.mark.parametrize(
    ("sites", "ancestors"), [((), "'none'"), ((SITE, "https://b.example"), f"{SITE} https://b.example")]
)
def test_only_named_sites_may_frame_the_page(serve, scripted, sites, ancestors):
    served = serve(scripted(), allow_frames=sites)
    assert served.http.get("/").headers["content-security-policy"].endswith(f"; frame-ancestors {ancestors}")


@pytest.mark.parametrize(
    ("origin", "passes"),
    [(None, True), ("http://localhost:8000", True), (SITE, True), ("https://evil.example", False), ("null", False)],
)
def test_websockets_of_other_sites_are_refused(origin, passes):
    reached, sent = [], []

    async def inner(scope, receive, send):
        reached.append(scope)

    async def send(message):
        sent.append(message["type"])

    headers = [(b"host", b"localhost:8000")] + ([(b"origin", origin.encode())] if origin else [])
    scope = {"type": "websocket", "path": "/graphql", "headers": headers}
    asyncio.run(WebSocketOrigin(inner, [SITE])(scope, None, send))
    assert bool(reached) == passes
    assert sent == ([] if passes else ["websocket.close"])


def test_large_bodies_of_a_key_take_turns_and_those_of_another_do_not_wait(monkeypatch):
    waits = []

    async def sleep(seconds):
        waits.append(seconds)

    async def read(scope, receive, send):
        assert (await receive())["body"]

    async def post(limit, key, size):
        state = {"record": RequestRecord(key_name=key)}
        headers = [(b"content-type", b"application/json"), (b"content-length", str(size).encode())]

        async def receive():
            return {"type": "http.request", "body": b" " * size, "more_body": False}

        await limit({"type": "http", "headers": headers, "state": state}, receive, None)

    async def flood():
        limit = limits.BodyLimit(read, max_bytes=2**20, max_s=60, bytes_per_s=1000)
        for key, size in (
            ("mine", 300_000),
            ("mine", 300_000),
            ("mine", 300_000),
            ("yours", 300_000),
            ("mine", 30_000),
        ):
            await post(limit, key, size)

    monkeypatch.setattr(limits.asyncio, "sleep", sleep)
    asyncio.run(flood())
    assert waits == [pytest.approx(300, abs=5), pytest.approx(600, abs=5)]
