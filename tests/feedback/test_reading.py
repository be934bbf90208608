"""Exports hold all that is stored of what was selected, in files that `datasets` opens."""

import json
from datetime import UTC, datetime, timedelta

import datasets
import pytest

from hfchat.errors import UserError
from hfchat.feedback.exchange import Opinion
from hfchat.feedback.reading import Selection, export, rows


@pytest.fixture
def store(open_store, exchange):
    store = open_store()
    old = datetime.now(UTC) - timedelta(days=10)
    store.keep(exchange("chatcmpl-old", user="alice", created_at=old))
    store.say(Opinion("chatcmpl-up", rating="up", user="bob"), [exchange("chatcmpl-up", user="alice")])
    store.say(Opinion("chatcmpl-changed", rating="up"), [exchange("chatcmpl-changed", created_at=old)])
    store.say(Opinion("chatcmpl-changed", rating="down", correction="No.", preferred_over="chatcmpl-up"))
    store.keep(exchange("chatcmpl-app", api_key="app"))
    return store


@pytest.mark.parametrize(
    ("selection", "found"),
    [
        (Selection(), ["old", "up", "changed", "app"]),
        (Selection(user="alice"), ["old", "up"]),
        (Selection(user="bob"), ["up"]),
        (Selection(api_key="app"), ["app"]),
        (Selection(rating="up"), ["up"]),
        (Selection(rating="down"), ["changed"]),
        (Selection(rated=True), ["up", "changed"]),
        (Selection(since=datetime.now(UTC) - timedelta(days=1)), ["up", "changed", "app"]),
        (Selection(user="alice", rating="up", since=datetime.now(UTC) + timedelta(days=1)), []),
    ],
)
def test_selection(store, selection, found):
    assert [row["answer_id"].removeprefix("chatcmpl-") for row in rows(store.engine, selection)] == found


def test_both_files_open_with_datasets_and_say_the_same(store, tmp_path):
    written = list(rows(store.engine))
    for kind, name in (("json", "feedback.jsonl"), ("parquet", "feedback.parquet")):
        path = tmp_path / name
        assert export(store.engine, str(path), Selection()) == 4
        assert path.stat().st_mode & 0o077 == 0
        found = datasets.load_dataset(kind, data_files=str(path), cache_dir=str(tmp_path / "cache"))["train"].to_list()
        assert [row["messages"] for row in found] == [row["messages"] for row in written]
        assert [row["prompt_hash"] for row in found] == [row["prompt_hash"] for row in written]
        assert [said for row in found for said in row["feedback"]] == [
            said for row in written for said in row["feedback"]
        ]
        assert found[0]["sampling"]["temperature"] == 0.7
    assert sorted(path.name for path in tmp_path.glob("*feedback*")) == [
        "feedback.db", "feedback.db-shm", "feedback.db-wal", "feedback.jsonl", "feedback.parquet",
    ]  # fmt: skip


def test_standard_output(store, capsys):
    assert export(store.engine, "-", Selection(user="bob")) == 1
    assert json.loads(capsys.readouterr().out)["answer_id"] == "chatcmpl-up"


@pytest.mark.parametrize(("target", "words"), [("feedback.csv", "jsonl"), ("file/feedback.jsonl", "cannot be")])
def test_other_targets_are_refused(store, tmp_path, target, words):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=words):
        export(store.engine, str(tmp_path / target), Selection())
