"""Versions change under a running server: no stream is cut, and what cannot be loaded changes nothing."""

import json
import os
import threading

import pytest

from hfchat.errors import UserError
from hfchat.registry.versions import Registry
from hfchat.serving.versions import following
from hfchat.serving.versions.following import Follower
from hfchat.serving.versions.models import ServedModels

NAME = "tiny-chat"


@pytest.fixture
def registry(tmp_path):
    registry = Registry(tmp_path / "models" / NAME)
    for content in "abc":
        folder = tmp_path / content
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(content))
        registry.add(folder)
    registry.promote("v1")
    return registry


@pytest.fixture
def engines():
    """The engine of each version that was loaded."""
    return {}


@pytest.fixture
def served(serve, scripted, registry, engines, monkeypatch):
    monkeypatch.setattr(following, "_EVERY_S", 0.02)

    def load(folder):
        if (folder / "broken").exists():
            raise UserError("it is broken")
        engines[folder.name] = scripted([folder.name])
        return engines[folder.name]

    follower = Follower(registry, load)
    return serve(ServedModels([NAME], lambda: {NAME: follower.first()}, lambda models: follower.follow(models, NAME)))


def answering(served, **fields):
    """The version that answers, as it says itself and as the answer is labelled."""
    answer = served.chat(**fields).json()
    assert answer["system_fingerprint"] == answer["choices"][0]["message"]["content"]
    return answer["system_fingerprint"]


def test_what_is_promoted_and_rolled_back_answers(served, registry, engines, eventually):
    assert answering(served) == "v1"
    registry.promote("v2")
    eventually(lambda: answering(served) == "v2")
    assert served.http.get(f"/v1/models/{NAME}").json()["version"] == "v2"
    assert served.complete().json()["system_fingerprint"] == "v2"
    old = engines["v1"]
    eventually(lambda: old.error == "stopped")
    registry.roll_back()
    eventually(lambda: answering(served) == "v1")


def test_a_stream_ends_with_the_version_that_it_began_with(served, registry, engines, eventually):
    first = engines["v1"]
    first.pieces, first.held = ["v1", "…", "!"], True
    lines = []

    def read():
        body = {"model": NAME, "messages": [{"role": "user", "content": "Hi"}], "stream": True}
        with served.http.stream("POST", "/v1/chat/completions", json=body) as response:
            lines.extend(line.removeprefix("data: ") for line in response.iter_lines() if line)

    reader = threading.Thread(target=read)
    reader.start()
    eventually(lambda: first.active == 1)
    registry.promote("v2")
    eventually(lambda: served.http.get(f"/v1/models/{NAME}").json()["version"] == "v2")
    assert answering(served) == "v2"
    assert served.http.get("/ready").status_code == 200
    assert first.error is None
    first.release()
    reader.join(5)
    *chunks, done = lines
    assert done == "[DONE]"
    chunks = [json.loads(chunk) for chunk in chunks]
    assert {chunk["system_fingerprint"] for chunk in chunks} == {"v1"}
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == "v1…!"
    eventually(lambda: first.error == "stopped")


def test_a_candidate_gets_its_share_and_each_user_always_the_same(served, registry, eventually):
    registry.try_out("v2", 0.25)
    users = [f"user {n}" for n in range(100)]
    eventually(lambda: {answering(served, user=user) for user in users[:20]} == {"v1", "v2"})
    chosen = {user: answering(served, user=user) for user in users}
    assert 0.12 < list(chosen.values()).count("v2") / len(users) < 0.4
    assert {user: answering(served, user=user) for user in users[:20]} == {user: chosen[user] for user in users[:20]}
    registry.try_out("v2", 0)
    eventually(lambda: {answering(served, user=user) for user in users[:20]} == {"v1"})


def test_a_conversation_stays_with_its_version(served, registry, eventually):
    registry.try_out("v2", 0.5)
    first = {"role": "user", "content": "Hi"}
    conversations = [[{**first, "content": f"question {n}"}] for n in range(16)]
    eventually(lambda: {answering(served, messages=messages) for messages in conversations} == {"v1", "v2"})
    for messages in conversations:
        longer = [*messages, {"role": "assistant", "content": "Well."}, first]
        assert answering(served, messages=longer) == answering(served, messages=messages)


def test_a_candidate_that_is_down_leaves_its_share_to_the_current_version(served, registry, engines, eventually):
    registry.try_out("v2", 0.999)
    eventually(lambda: answering(served) == "v2")
    engines["v2"].error = "out of memory"
    assert answering(served) == "v1"


def test_a_version_that_cannot_be_loaded_changes_nothing(served, registry, eventually, caplog, monkeypatch):
    broken = registry.folder / "v2" / "broken"
    broken.touch()
    registry.promote("v2")
    eventually(lambda: "version v2 does not answer: it is broken" in caplog.text)
    assert answering(served) == "v1"
    registry.promote("v3")
    eventually(lambda: answering(served) == "v3")
    broken.unlink()
    registry.promote("v2")
    monkeypatch.setattr(following, "_RETRY_S", 0)
    eventually(lambda: answering(served) == "v2")


def test_a_registry_that_cannot_be_read_changes_nothing(served, registry, eventually, caplog):
    (registry.folder / "candidate.json").write_text("{")
    eventually(lambda: "cannot be read" in caplog.text)
    assert answering(served) == "v1"
    (registry.folder / "candidate.json").unlink()
    registry.promote("v2")
    eventually(lambda: answering(served) == "v2")


BAD = {
    "empty": "",
    "half": "{",
    "an object of nothing": "{}",
    "a list": "[]",
    "null": "null",
    "a number": "1",
    "no share": '{"version": "v2"}',
    "a share of text": '{"version": "v2", "share": "0.5"}',
    "a share of all": '{"version": "v2", "share": 1}',
    "a share of NaN": '{"version": "v2", "share": NaN}',
    "a share of null": '{"version": "v2", "share": null}',
    "a version that is a number": '{"version": 2, "share": 0.5}',
    "a version that is a list": '{"version": ["v2"], "share": 0.5}',
    "a path": '{"version": "../v2", "share": 0.5}',
    "too deep": "[" * 100_000,
    "not UTF-8": b"\xff\xfe{",
}


@pytest.mark.parametrize("name", BAD)
def test_whatever_names_the_candidate_the_next_good_state_is_followed(served, registry, eventually, caplog, name):
    content = BAD[name]
    written = registry.folder / "written"
    written.write_bytes(content if isinstance(content, bytes) else content.encode())
    written.replace(registry.folder / "candidate.json")
    eventually(lambda: "candidate.json cannot be read" in caplog.text)
    assert answering(served) == "v1"
    registry.promote("v2")
    eventually(lambda: answering(served) == "v2")
    assert caplog.text.count("cannot be read") == 1


def test_another_version_is_followed_also_while_the_candidates_file_is_bad(served, registry, eventually):
    registry.try_out("v3", 0.999)
    eventually(lambda: answering(served) == "v3")
    (registry.folder / "candidate.json").write_text("{")
    assert answering(served) == "v3"  # a file that is half written changes nothing
    link = registry.folder / "new"
    link.symlink_to("v2")
    link.replace(registry.current)
    eventually(lambda: answering(served) == "v2")


def test_a_candidate_of_a_newer_version_of_hfchat_is_followed(served, registry, eventually):
    (registry.folder / "candidate.json").write_text('{"version": "v2", "share": 0.999, "since": "today", "of": {}}')
    eventually(lambda: answering(served) == "v2")


def test_a_candidates_file_that_is_a_pipe_keeps_nobody_waiting(served, registry, eventually, caplog):
    os.mkfifo(registry.folder / "candidate.json")
    eventually(lambda: "it is not a file" in caplog.text)
    registry.promote("v2")
    eventually(lambda: answering(served) == "v2")


def test_a_current_that_is_no_link_is_said_and_followed_when_it_is_one(served, registry, eventually, caplog):
    registry.current.unlink()
    registry.current.write_text("v2")
    eventually(lambda: "must be a link to a version" in caplog.text)
    assert answering(served) == "v1"
    registry.promote("v2")
    eventually(lambda: answering(served) == "v2")


def test_following_goes_on_whatever_goes_wrong(served, registry, eventually, caplog, monkeypatch):
    def fail():
        raise TypeError("a bug")

    monkeypatch.setattr(registry, "deployment", fail)
    eventually(lambda: "a bug" in caplog.text)
    monkeypatch.undo()
    monkeypatch.setattr(following, "_EVERY_S", 0.02)
    registry.promote("v2")
    eventually(lambda: answering(served) == "v2")


def test_a_request_is_over_for_its_version_however_it_ends(served, registry, engines, eventually):
    old = engines["v1"]
    assert served.chat(messages=[{"role": "user", "content": "refuse me"}]).status_code == 400
    assert served.chat(max_tokens=1000).status_code == 400
    old.fail_after = 0
    assert served.chat().status_code == 500
    registry.promote("v2")
    eventually(lambda: old.error == "stopped")
