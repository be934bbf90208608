"""Exports hold all that is stored of what was selected, in files that `datasets` opens."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import datasets
import pyarrow.parquet as pq
import pytest

from hfchat.errors import UserError
from hfchat.feedback.exchange import Opinion
from hfchat.feedback.private_file import private_file
from hfchat.feedback.reading import Selection, export, rows
from tests.feedback.conftest import WITH_TOOLS, called


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


def test_an_export_has_calls_and_tools_as_openai_has_them(open_store, exchange, tmp_path):
    store = open_store()
    other = {"messages": WITH_TOOLS["messages"][:1], "tool_calls": [called("time", zone=None, days=[1, {"a": 2}])]}
    corrected = Opinion("chatcmpl-2", correction="", corrected_calls=(called("weather", city="Rome"),))
    store.keep(exchange("chatcmpl-1", **WITH_TOOLS))
    store.say(corrected, [exchange("chatcmpl-2", **(WITH_TOOLS | other), sampling={"tool_choice": {"type": "f"}})])
    for kind, name in (("json", "with_tools.jsonl"), ("parquet", "with_tools.parquet")):
        export(store.engine, str(tmp_path / name), Selection())
        path = str(tmp_path / name)
        first, second = datasets.load_dataset(kind, data_files=path, cache_dir=str(tmp_path / "cache"))["train"]
        assert json.loads(first["tools"]) == WITH_TOOLS["tools"]
        assert first["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city": "Paris"}'}
        assert first["reasoning"] == "Now Oslo."
        asked, calling, result = first["messages"]
        assert calling["tool_calls"][0]["id"] == result["tool_call_id"] == "call_1"
        assert calling["tool_calls"][0]["function"]["arguments"] == '{"city": "Rome"}'
        assert (asked.get("tool_calls"), calling["reasoning_content"]) == (None, "Rome first.")
        assert second["tool_calls"][0]["function"]["arguments"] == '{"zone": null, "days": [1, {"a": 2}]}'
        [said] = second["feedback"]
        assert said["corrected_calls"][0]["function"] == {"name": "weather", "arguments": '{"city": "Rome"}'}
    assert second["sampling"]["tool_choice"] == '{"type": "f"}'


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
        for row, as_written in zip(found, written, strict=True):
            kept = [{name: value for name, value in turn.items() if value is not None} for turn in row["messages"]]
            assert kept == as_written["messages"]
            assert [row[name] for name in ("tools", "tool_calls", "reasoning")] == [
                as_written[name] for name in ("tools", "tool_calls", "reasoning")
            ]
        assert [row["prompt_hash"] for row in found] == [row["prompt_hash"] for row in written]
        assert [said for row in found for said in row["feedback"]] == [
            said for row in written for said in row["feedback"]
        ]
        assert found[0]["sampling"]["temperature"] == 0.7
    assert sorted(path.name for path in tmp_path.glob("*feedback*")) == [
        "feedback.db", "feedback.db-shm", "feedback.db-wal", "feedback.jsonl", "feedback.parquet",
    ]  # fmt: skip


@pytest.mark.parametrize("sampling", [{"seed": 2**63, "max_tokens": 5}, {"seed": -(2**70)}, {"max_tokens": 10**30}])
def test_a_number_beyond_64_bits_does_not_stop_an_export(open_store, exchange, tmp_path, sampling):
    store = open_store()
    store.keep(replace(exchange("chatcmpl-1"), sampling=sampling))
    store.keep(replace(exchange("chatcmpl-2"), sampling={"seed": 2**63 - 1}))
    export(store.engine, str(tmp_path / "x.parquet"), Selection())
    seeds = pq.read_table(tmp_path / "x.parquet")["sampling"].to_pylist()
    assert [one["seed"] for one in seeds] == [None, 2**63 - 1]
    assert seeds[0]["max_tokens"] == (5 if "max_tokens" in sampling and "seed" in sampling else None)
    export(store.engine, str(tmp_path / "x.jsonl"), Selection())
    assert json.loads((tmp_path / "x.jsonl").read_text().splitlines()[0])["sampling"] == sampling


def test_nobody_else_can_have_a_private_file_in_place_before_it_is_written(tmp_path):
    theirs = tmp_path / "theirs"
    theirs.touch()
    for name in (".x.html.part", "x.html"):
        (tmp_path / name).symlink_to(theirs)
    with private_file(tmp_path / "x.html") as file:
        file.write(b"what people wrote")
    assert theirs.read_bytes() == b""
    assert not (tmp_path / "x.html").is_symlink()
    assert (tmp_path / "x.html").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ZeroDivisionError), private_file(tmp_path / "y.html") as file:
        1 / 0  # noqa: B018
    assert {path.name for path in tmp_path.iterdir()} == {"theirs", ".x.html.part", "x.html"}


def test_standard_output(store, capsys):
    assert export(store.engine, "-", Selection(user="bob")) == 1
    assert json.loads(capsys.readouterr().out)["answer_id"] == "chatcmpl-up"


@pytest.mark.parametrize(("target", "words"), [("feedback.csv", "jsonl"), ("file/feedback.jsonl", "cannot be")])
def test_other_targets_are_refused(store, tmp_path, target, words):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=words):
        export(store.engine, str(tmp_path / target), Selection())
