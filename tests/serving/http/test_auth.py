"""API keys: which are known, how they are shown, how often they may be used, and that no route is without them."""

import base64

import pytest
from starlette.routing import Mount

from hfchat.errors import UserError
from hfchat.serving import server
from hfchat.serving.http.auth import OPEN_PATHS, ApiKeys, hash_key, load_keys, new_key
from hfchat.serving.http.rates import RateLimit
from hfchat.serving.settings import ServerSettings

KEYS = ApiKeys({"alice": hash_key("alice-key"), "bob": hash_key("bob-key")})
ALICE = {"authorization": "Bearer alice-key"}


def test_no_route_is_without_a_key(serve, scripted):
    """Also those that others mount, and paths that are none."""
    served = serve(scripted(), keys=KEYS)
    routes = served.server.config.app.routes
    paths = [route.path.replace("{model_id:path}", "m") for route in routes]
    paths += [f"{route.path}/chat.js" for route in routes if isinstance(route, Mount)]
    assert {"/v1/chat/completions", "/v1/completions", "/metrics", "/docs", "/openapi.json", "/"} <= set(paths)
    for path in [*paths, "/nothing", "//health", "/health/", "/ready/../v1/models"]:
        for method in ("GET", "POST", "OPTIONS", "HEAD"):
            response = served.http.request(method, path)
            assert (response.status_code == 401) == (path not in OPEN_PATHS), (method, path)
    assert served.engine.started == 0


def test_openai_client_with_a_key(serve, scripted):
    served = serve(scripted(), keys=KEYS)
    client = served.openai.with_options(api_key="bob-key")
    assert [model.id for model in client.models.list()] == ["tiny-chat"]
    refused = served.chat()
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == "Bearer"
    assert refused.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        ("Bearer alice-key", 200),
        ("bearer  bob-key", 200),
        ("Basic " + base64.b64encode(b"anybody:alice-key").decode(), 200),
        ("Basic " + base64.b64encode(b"alice-key:").decode(), 401),
        ("Basic " + base64.b64encode(b"\xff:alice-key").decode(), 401),
        ("Basic alice-key", 401),
        ("Bearer alice-key2", 401),
        ("Bearer alice", 401),
        (f"Bearer {hash_key('alice-key')}", 401),  # the hash is no key
        ("Bearer", 401),
        ("alice-key", 401),
        ("Token alice-key", 401),
        (b"Bearer \xff\xfe", 401),
    ],
)
def test_ways_to_show_a_key(serve, scripted, authorization, status):
    served = serve(scripted(), keys=KEYS)
    assert served.http.get("/v1/models", headers={"authorization": authorization}).status_code == status


def test_a_browser_is_asked_for_the_key(serve, scripted):
    response = serve(scripted(), keys=KEYS).http.get("/", headers={"accept": "text/html,*/*"})
    assert response.status_code == 401
    assert response.headers["www-authenticate"].startswith("Basic ")


def test_each_key_has_a_rate_of_its_own(serve, scripted):
    served = serve(scripted(), keys=KEYS, requests_per_minute=2)
    statuses = [served.http.get("/v1/models", headers=ALICE).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
    refused = served.http.get("/v1/models", headers=ALICE)
    assert 1 <= int(refused.headers["retry-after"]) <= 30
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert served.http.get("/v1/models", headers={"authorization": "Bearer bob-key"}).status_code == 200
    assert served.http.get("/metrics", headers=ALICE).status_code == 200  # is no use of the model


def test_a_bucket_fills_with_time():
    now = 0.0
    limit = RateLimit(per_minute=6, clock=lambda: now)
    assert [limit.spend("a") for _ in range(6)] == [0] * 6
    assert limit.spend("a") == pytest.approx(10)
    now = 4.0
    assert limit.spend("a") == pytest.approx(6)  # asking in vain costs nothing
    now = 10.0
    assert limit.spend("a") == 0
    assert limit.spend("a") == pytest.approx(10)
    now = 1e6
    assert [limit.spend("a") for _ in range(7)] == [0] * 6 + [pytest.approx(10)]  # it holds no more than a minute's


def test_keys_from_a_file_and_the_environment(tmp_path):
    (alice, alice_entry), (bob, bob_entry), (carol, carol_entry) = (
        new_key(name) for name in ("alice", "bob", "carol")
    )
    assert len({alice, bob, carol}) == 3
    file = tmp_path / "keys"
    file.write_text(f"# who may use it\n{alice_entry}\n\n{bob_entry}  # until May\n")
    keys = load_keys(str(file), {"HFCHAT_API_KEYS": carol_entry})
    assert [keys.name_of(key) for key in (alice, bob, carol, "another")] == ["alice", "bob", "carol", None]
    assert load_keys(None, {"HFCHAT_API_KEYS": f"{alice_entry}, {bob_entry}"}).names == ("alice", "bob")
    assert load_keys(None, {}) is None


@pytest.mark.parametrize(
    "entries", ["", " \n# none", "alice: secret-key", "alice", f"a b: {'0' * 64}", "a: " + "g" * 64]
)
def test_bad_entries_are_refused_and_not_repeated(entries):
    with pytest.raises(UserError, match="HFCHAT_API_KEYS") as refused:
        load_keys(None, {"HFCHAT_API_KEYS": entries})
    assert "secret-key" not in str(refused.value)


def test_a_name_is_there_once(tmp_path):
    entry = new_key("alice")[1]
    with pytest.raises(UserError, match="alice is there twice"):
        load_keys(None, {"HFCHAT_API_KEYS": f"{entry},{new_key('alice')[1]}"})
    with pytest.raises(UserError, match="NAME must be"):
        new_key("a b")


@pytest.mark.parametrize(
    "shown",
    [
        b"Basic \xc3\xa9",
        b"Basic \xff",
        b"Basic " + base64.b64encode(b"\xff:\xff"),
        b"Basic !!",
        b"Basic YQ",
        b"Bearer \xc3\xa9",
        b"B\xe9arer key",
        b"Basic",
        b"\xff",
    ],
)
def test_strange_bytes_are_no_key(serve, scripted, shown):
    served = serve(scripted(), keys=ApiKeys({"alice": hash_key("k")}))
    for path in ("/v1/models", "/", "/metrics"):
        assert served.http.get(path, headers={"authorization": shown}).status_code == 401


def test_metrics_may_be_for_some_keys_only(serve, scripted):
    keys = ApiKeys({"alice": hash_key("a"), "prometheus": hash_key("p")})

    def statuses(served):
        headers = [{"authorization": f"Bearer {key}"} for key in "ap"]
        return [served.http.get("/metrics", headers=one).status_code for one in headers]

    assert statuses(serve(scripted(), keys=keys)) == [200, 200]
    assert statuses(serve(scripted(), keys=keys, metrics_keys=("prometheus",))) == [403, 200]


def test_a_key_for_the_metrics_must_be_there(free_port):
    settings = ServerSettings(model="m", port=free_port, metrics_keys=("grafana",))
    with pytest.raises(UserError, match="--metrics-key grafana: there is no API key of this name"):
        server.serve(settings)
