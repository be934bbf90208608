"""Versions of a model: added whole, promoted in one step, and always a way back."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager

import pytest

from hfchat.errors import UserError
from hfchat.lineage import LINEAGE, ancestry, describe
from hfchat.registry import versions as registry_module
from hfchat.registry.versions import Candidate, Deployment, Registry


@pytest.fixture
def registry(tmp_path):
    return Registry(tmp_path / "models" / "assistant")


@pytest.fixture
def model(tmp_path):
    """Makes model folders: `model("a")`, each with a content of its own."""

    def make(content):
        folder = tmp_path / "made" / content
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"content": content}))
        (folder / "tokenizer").mkdir()
        (folder / "tokenizer" / "tokenizer.json").write_text("{}")
        return folder

    return make


def test_what_is_a_registry(registry, model):
    plain = model("plain")
    (plain / "v1").mkdir()
    assert not Registry.is_one(plain)
    assert not Registry.is_one(registry.folder)
    registry.add(plain)
    assert Registry.is_one(registry.folder)


def test_versions_are_copies_that_nothing_changes(registry, model):
    source = model("a")
    assert registry.add(source) == "v1"
    assert registry.deployment() == Deployment(None)
    (source / "config.json").write_text("changed")
    assert json.loads((registry.folder / "v1" / "config.json").read_text()) == {"content": "a"}
    assert (registry.folder / "v1" / "tokenizer" / "tokenizer.json").is_file()
    assert [registry.add(model(content)) for content in "bcdefghijk"] == [f"v{n}" for n in range(2, 12)]
    assert registry.versions() == [f"v{n}" for n in range(1, 12)]


def test_the_same_model_is_the_same_version(registry, model):
    assert registry.add(model("a")) == "v1"
    assert registry.add(model("b")) == "v2"
    assert registry.add(registry.folder.parents[1] / "made" / "a") == "v1"
    assert registry.versions() == ["v1", "v2"]


def test_promote_and_roll_back_as_far_as_it_goes(registry, model):
    for content in "abc":
        registry.promote(registry.add(model(content)), reason=f"{content} is better")
    assert (registry.folder / "current" / "config.json").read_text() == json.dumps({"content": "c"})
    assert registry.roll_back("it is rude") == "v2"
    assert registry.roll_back() == "v1"
    with pytest.raises(UserError, match="no version answered before v1"):
        registry.roll_back()
    assert registry.deployment() == Deployment("v1")
    registry.promote("v3")
    assert registry.roll_back() == "v1"  # v2 was rolled back itself
    promoted = [(entry["action"], entry["version"], entry["reason"]) for entry in registry.history()]
    assert ("promote", "v3", "c is better") in promoted
    assert ("rollback", "v2", "it is rude") in promoted


def test_promoting_what_answers_already_keeps_the_way_back(registry, model):
    registry.promote(registry.add(model("a")))
    registry.promote(registry.add(model("b")))
    registry.promote("v2")
    assert registry.roll_back() == "v1"


class KilledError(BaseException):
    """Stands for `kill -9`."""


def test_a_kill_between_the_history_and_the_link_keeps_the_way_back(registry, model):
    registry.promote(registry.add(model("a")))
    registry.promote(registry.add(model("b")))
    history = (registry.folder / "history.jsonl").read_text()
    registry.promote(registry.add(model("c")))
    # What a kill leaves: the history has the entry, but the link still names the version before.
    (registry.folder / "current").unlink()
    (registry.folder / "current").symlink_to("v2")
    assert registry.deployment().current == "v2"
    assert registry.roll_back() == "v1"
    # And in the middle of an entry.
    (registry.folder / "history.jsonl").write_text(history + '{"time": "2026-')
    assert [entry["version"] for entry in registry.history()] == ["v1", "v1", "v2", "v2"]
    registry.promote("v3")
    assert [entry["version"] for entry in registry.history()] == ["v1", "v1", "v2", "v2", "v3"]


def test_a_version_that_was_noted_but_never_came_to_be_is_not_taken_for_another(registry, model, monkeypatch):
    registry.add(model("a"))
    with monkeypatch.context() as patch:
        patch.setattr(registry_module.Path, "rename", raise_killed)
        patch.setattr(os, "fsync", lambda descriptor: None)
        patch.setattr(registry_module.Registry, "_noted", noted_and_left)
        with pytest.raises(KilledError):
            registry.add(model("b"))
    assert registry.add(model("c")) == "v2"
    assert registry.add(registry.folder.parents[1] / "made" / "b") == "v3"


def raise_killed(*args):
    raise KilledError


@contextmanager
def noted_and_left(registry, action, version, reason, **more):
    """As `Registry._noted`, but nothing is taken back: the process was killed."""
    entry = {"time": "", "action": action, "version": version, "reason": reason, **more}
    with (registry.folder / "history.jsonl").open("a") as file:
        file.write(json.dumps(entry) + "\n")
    yield


FULL = """
import resource, sys
from pathlib import Path
from hfchat.errors import UserError
from hfchat.registry.versions import Registry
registry = Registry(sys.argv[1])
size = (registry.folder / "history.jsonl").stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + int(sys.argv[2]), resource.RLIM_INFINITY))
for action in (
    lambda: registry.promote("v2"), lambda: registry.try_out("v2", 0.5), lambda: registry.roll_back(),
    lambda: registry.add(sys.argv[3]),
):
    try:
        action()
    except OSError as error:
        print(type(error).__name__)
"""


@pytest.mark.parametrize("room", [0, 40])
def test_a_full_disk_changes_nothing_and_breaks_nothing(registry, model, room):
    registry.promote(registry.add(model("first")))
    registry.promote(registry.add(model("a")))
    registry.promote("v1")
    before, deployment = registry.history(), registry.deployment()
    command = [sys.executable, "-c", FULL, str(registry.folder), str(room), str(model("b"))]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["OSError"] * 4
    assert registry.history() == before
    assert registry.deployment() == deployment
    assert registry.versions() == ["v1", "v2"]
    registry.promote("v2")
    assert registry.roll_back() == "v1"


def test_a_model_that_brings_code_is_not_added(registry, model):
    source = model("a")
    (source / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": "code.Evil"}}')
    with pytest.raises(UserError, match=r"tokenizer_config.json: auto_map asks"):
        registry.add(source)
    (source / "tokenizer_config.json").unlink()
    (source / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"pytorch_model.bin: weights in pickles run code"):
        registry.add(source)
    assert registry.versions() == []


@pytest.mark.parametrize("kind", ["file", "folder", "nowhere", "pipe"])
def test_nothing_comes_in_by_a_link(registry, model, tmp_path, kind):
    source = model("a")
    (tmp_path / "keys.json").write_text("secret")
    strange = source / "generation_config.json"
    if kind == "pipe":
        os.mkfifo(strange)
    else:
        strange.symlink_to({"file": tmp_path / "keys.json", "folder": tmp_path, "nowhere": "missing"}[kind])
    with pytest.raises(UserError, match=r"generation_config.json: leads to no file of .*a; put a copy"):
        registry.add(source)
    assert registry.versions() == []


def test_a_snapshot_of_the_hubs_cache_is_added_whole(registry, tmp_path):
    snapshot = tmp_path / "models--org--name" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "blobs").mkdir()
    (snapshot.parents[1] / "blobs" / "abc").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/abc")
    assert registry.add(snapshot) == "v1"
    assert not (registry.folder / "v1" / "config.json").is_symlink()


def test_a_line_that_is_no_entry_is_named(registry, model):
    registry.promote(registry.add(model("a")))
    with (registry.folder / "history.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(UserError, match=r"history.jsonl: line 3 is not an entry"):
        registry.history()


def test_a_model_cannot_pass_for_another_by_its_lineage(registry, model):
    registry.add(model("good"))
    evil = model("evil")
    good = registry.history()[0]["sha256"]
    claim = {"sha256": good, "licenses": [], "outputs": {}, "inputs": {}, "fingerprint": "x"}
    (evil / LINEAGE).write_text(json.dumps(claim))
    assert registry.add(evil) == "v2"


def test_a_crash_while_it_copies_leaves_no_version(registry, model, monkeypatch):
    registry.add(model("a"))
    source = model("b")

    def cut(source, target):
        target.mkdir()
        (target / "config.json").write_text("{")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(registry_module, "copy_with_lineage", cut)
        with pytest.raises(KeyboardInterrupt):
            registry.add(source)
    assert registry.versions() == ["v1"]
    assert registry.add(source) == "v2"
    assert json.loads((registry.folder / "v2" / "config.json").read_text()) == {"content": "b"}


def test_current_is_there_at_every_moment(registry, model, monkeypatch):
    registry.promote(registry.add(model("a")))
    registry.add(model("b"))
    seen = []
    for name in ("unlink", "symlink_to", "replace"):
        original = getattr(registry_module.Path, name)

        def spy(self, *args, original=original, **kwargs):
            result = original(self, *args, **kwargs)
            seen.append(os.readlink(registry.folder / "current"))
            return result

        monkeypatch.setattr(registry_module.Path, name, spy)
    registry.promote("v2")
    assert seen
    assert set(seen) == {"v1", "v2"}


def test_a_candidate_answers_a_share_until_something_is_promoted(registry, model):
    registry.promote(registry.add(model("a")))
    registry.add(model("b"))
    registry.try_out("v2", 0.1)
    assert registry.deployment() == Deployment("v1", Candidate("v2", 0.1))
    registry.try_out("v2", 0)
    assert registry.deployment() == Deployment("v1")
    registry.try_out("v2", 0.5)
    registry.promote("v2")
    assert registry.deployment() == Deployment("v2")
    registry.try_out("v1", 0.5)
    assert registry.roll_back() == "v1"
    assert registry.deployment() == Deployment("v1")


def test_a_candidate_was_compared_with_what_answered_then(registry, model):
    for content in "abc":
        registry.add(model(content))
    registry.promote("v1")
    registry.try_out("v2", 0.5)
    registry.promote("v3")
    assert registry.deployment() == Deployment("v3")


def test_a_crash_between_promotion_and_the_end_of_the_trial_leaves_no_candidate(registry, model):
    registry.promote(registry.add(model("a")))
    registry.try_out(registry.add(model("b")), 0.5)
    candidate = (registry.folder / "candidate.json").read_text()
    registry.promote("v2")
    (registry.folder / "candidate.json").write_text(candidate)
    assert registry.deployment() == Deployment("v2")


def test_what_cannot_be_is_refused(registry, model, tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        registry.add(tmp_path)
    with pytest.raises(UserError, match="no version v1; its versions are: none yet"):
        registry.promote("v1")
    registry.add(model("a"))
    with pytest.raises(UserError, match="only beside another version"):
        registry.try_out("v1", 0.5)
    registry.promote("v1")
    with pytest.raises(UserError, match="only beside another version"):
        registry.try_out("v1", 0.5)
    registry.add(model("b"))
    for share in (-0.1, 1, float("nan")):
        with pytest.raises(UserError, match="--share"):
            registry.try_out("v2", share)
    with pytest.raises(UserError, match=r"no version \.\./v1"):
        registry.promote("../v1")


def test_a_version_has_the_lineage_of_its_model(registry, model, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text("{}")
    stage = model("stage")
    merged = model("stage/merged")
    files = {"config.json": merged / "config.json", "tokenizer/tokenizer.json": merged / "tokenizer/tokenizer.json"}
    outputs = {f"merged/{name}": {"size": path.stat().st_size, "sha256": "0"} for name, path in files.items()}
    outputs["adapter/adapter_config.json"] = {"size": 2, "sha256": "1"}
    made_from = {"dataset": describe(data)}
    lineage = {"inputs": made_from, "outputs": outputs, "sha256": "of both", "licenses": ["mit"], "stage": "finetune"}
    (stage / LINEAGE).write_text(json.dumps(lineage))
    version = registry.folder / registry.add(merged)
    assert ancestry(version)[0]["inputs"] == made_from
    described = describe(version)
    assert described["licenses"] == ["mit"]
    assert described["sha256"] != "of both"
    (merged / "config.json").write_text("{}")
    with pytest.raises(UserError, match="missing or cut"):
        registry.add(merged)
    assert registry.versions() == ["v1"]
