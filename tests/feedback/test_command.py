"""`hfchat feedback`, as it is typed."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from hfchat.cli import main
from hfchat.feedback.exchange import Opinion


@pytest.fixture
def database(open_store, exchange, tmp_path):
    store = open_store()
    old = datetime.now(UTC) - timedelta(days=100)
    answer = exchange("chatcmpl-1", prompt="I am jane.roe@gmail.com", user="alice")
    store.say(Opinion("chatcmpl-1", rating="up", tags=("clear",), user="alice"), [answer])
    store.keep(exchange("chatcmpl-2", created_at=old))
    return str(tmp_path / "feedback.db")


def feedback(capsys, *arguments):
    main(["feedback", *arguments])
    return capsys.readouterr().out


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(["feedback", *arguments])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def answers(capsys, database):
    return [json.loads(line)["answer_id"] for line in feedback(capsys, "export", database, "-").splitlines()]


def test_statistics_as_a_table_and_as_json(database, capsys):
    table = feedback(capsys, "stats", database)
    assert "100% (21% to 100%)" in table
    assert "tags: clear 1" in table
    found = json.loads(feedback(capsys, "stats", database, "--json"))
    assert found["total"]["answers"] == 2
    assert found["models"]["assistant"]["up"] == 1


def test_export_with_a_selection(database, capsys, tmp_path):
    path = tmp_path / "new" / "up.jsonl"
    feedback(capsys, "export", database, str(path), "--rating", "up", "--since", "2000-01-01")
    assert json.loads(path.read_text())["answer_id"] == "chatcmpl-1"
    assert "--since" in refused(capsys, "export", database, "-", "--since", "yesterday")


def test_deletion_says_what_it_cannot_reach(database, capsys):
    assert "deleted 1 answer, and 0 opinions" in feedback(capsys, "delete", database, "--older-than", "90")
    assert answers(capsys, database) == ["chatcmpl-1"]
    said = feedback(capsys, "delete", database, "--user", "alice")
    assert "deleted 1 answer, and 1 opinion\n" in said
    assert "lineage.json" in said
    assert answers(capsys, database) == []


def test_deletion_of_one_answer(database, capsys):
    feedback(capsys, "delete", database, "--answer", "chatcmpl-2")
    assert answers(capsys, database) == ["chatcmpl-1"]


def test_redaction(database, capsys):
    assert "redacted 1 answer" in feedback(capsys, "redact", database)
    assert "gmail" not in feedback(capsys, "export", database, "-")


def test_report(database, capsys, tmp_path):
    page = tmp_path / "weekly.html"
    said = feedback(capsys, "report", database, "--days", "7", "--output", str(page))
    assert "thumbs up: too few to tell; 1 of 1" in said
    assert "prompts: too few to tell; 1, before 0" in said
    assert page.exists()
    assert page.with_suffix(".md").exists()
    refused(capsys, "report", database, "--days", "7", "--since", "2025-01-01")
    assert "in the past" in refused(capsys, "report", database, "--since", "2999-01-01")
    assert "--since must be between" in refused(capsys, "report", database, "--since", "0001-01-01")
    assert "--days" in refused(capsys, "report", database, "--days", "nan")
    assert "*.html" in refused(capsys, "report", database, "--output", "report.pdf")


def test_what_makes_no_sense_is_refused(database, capsys, tmp_path):
    refused(capsys, "delete", database)
    refused(capsys, "delete", database, "--user", "")
    refused(capsys, "delete", database, "--older-than", "-1")
    refused(capsys, "delete", database, "--older-than", "nan")
    refused(capsys, "delete", database, "--answer", "chatcmpl-1", "--api-key", "app")
    refused(capsys, "export", database, "feedback.csv")
    assert "no such database" in refused(capsys, "stats", str(tmp_path / "missing.db"))
    assert len(answers(capsys, database)) == 2
