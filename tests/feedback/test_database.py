"""The database opens, in the state that this version wants, or says in one line why not."""

import json
import os
import stat

import alembic.command
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext

from hfchat.errors import UserError
from hfchat.feedback.database import open_database
from hfchat.feedback.exchange import Opinion
from hfchat.feedback.reading import rows
from hfchat.feedback.tables import Base
from tests.feedback.conftest import WITH_TOOLS, called

# Of [["user", "Why?"]], as it was made before conversations had tools.
OLD_HASH = "d60ffbcae18616ca0a7c26aa3148e1fa4536be1912242b9069bed89ab5213bcb"


def test_the_migrations_make_the_tables_that_the_code_wants(database):
    engine = open_database(database, create=True)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
        assert connection.exec_driver_sql("SELECT count(*) FROM feedback").scalar() == 0
    engine.dispose()
    open_database(database).dispose()  # once more, with nothing left to do


def test_conversations_of_an_older_database_are_kept_once(tmp_path):
    path = str(tmp_path / "feedback.db")
    engine = open_database(path, create=True)
    config = Config()
    config.set_main_option("script_location", "hfchat.feedback:migrations")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        alembic.command.downgrade(config, "0001")
        for answer_id, choice in (("a", 0), ("a", 1), ("b", 3)):
            connection.exec_driver_sql(
                "INSERT INTO answers (answer_id, choice, created_at, model, prompt_hash, messages, text, sampling, "
                "findings, user_id, api_key) VALUES "
                f"('{answer_id}', {choice}, '2025-01-31 00:00:00', 'm', 'h', "
                f"'[{{\"role\": \"user\", \"content\": \"{answer_id}\"}}]', 'Yes.', '{{}}', '[]', '', '')"
            )
        connection.exec_driver_sql(
            "INSERT INTO feedback (id, answer_key, created_at, tags, user_id, api_key) "
            "VALUES ('f', 2, '2025-01-31 00:00:00', '[]', '', '')"
        )
    engine.dispose()
    engine = open_database(path)
    found = {(row["answer_id"], row["choice"]): row for row in rows(engine)}
    assert {key: row["messages"][0]["content"] for key, row in found.items()} == {
        ("a", 0): "a",
        ("a", 1): "a",
        ("b", 3): "b",
    }
    assert len(found["a", 1]["feedback"]) == 1
    nothing = {"tools": None, "tool_calls": None, "reasoning": None}
    assert all(row.items() >= nothing.items() for row in found.values())
    assert found["a", 1]["feedback"][0]["corrected_calls"] is None
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM conversations").scalar() == 2
    engine.dispose()


def test_a_database_from_before_there_were_tools_goes_on(database, open_store, exchange):
    """Of SQLite and of PostgreSQL; an opinion of an answer in it finds the answer by the same hash as before."""
    engine = open_database(database, create=True)
    config = Config()
    config.set_main_option("script_location", "hfchat.feedback:migrations")
    messages = [{"role": "user", "content": "Why?"}]
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        alembic.command.downgrade(config, "0002")
        connection.exec_driver_sql(
            "INSERT INTO answers (answer_id, choice, created_at, model, prompt_hash, text, sampling, findings, "
            "user_id, api_key) VALUES "
            f"('a', 0, '2025-01-31 00:00:00', 'm', '{OLD_HASH}', 'Yes.', '{{}}', '[]', '', '')"
        )
        connection.exec_driver_sql(f"INSERT INTO conversations VALUES ('a', '{json.dumps(messages)}')")
        connection.exec_driver_sql(
            "INSERT INTO feedback (id, answer_key, created_at, tags, user_id, api_key) "
            "VALUES ('f', 1, '2025-01-31 00:00:00', '[]', 'u', '')"
        )
    engine.dispose()
    store = open_store(database)
    store.say(Opinion("b", preferred_over="a"), [exchange("b", messages=messages)])
    store.say(Opinion("c", correction="", corrected_calls=(called("weather"),)), [exchange("c", **WITH_TOOLS)])
    old, _, new = rows(store.engine)
    assert (old["prompt_hash"], old["tools"], old["tool_calls"], old["reasoning"]) == (OLD_HASH, None, None, None)
    assert [said["corrected_calls"] for said in old["feedback"]] == [None]
    assert json.loads(new["tools"]) == WITH_TOOLS["tools"]


def test_a_newer_database_is_left_alone(database):
    engine = open_database(database, create=True)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    engine.dispose()
    with pytest.raises(UserError, match="newer version of hfchat"):
        open_database(database)


def test_sqlite_is_set_up_to_lose_nothing_and_to_forget_what_is_deleted(tmp_path):
    path = tmp_path / "feedback.db"
    engine = open_database(str(path), create=True)
    with engine.connect() as connection:
        settings = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "secure_delete", "busy_timeout")
        }
    assert settings == {
        "journal_mode": "wal",
        "synchronous": 2,  # FULL
        "foreign_keys": 1,
        "secure_delete": 1,
        "busy_timeout": 5000,
    }
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    engine.dispose()


def test_who_reads_does_not_stop_who_writes(tmp_path):
    engine = open_database(str(tmp_path / "feedback.db"), create=True)
    count = sa.text("SELECT count(*) FROM answers")
    with engine.execution_options(reads=True).connect() as reader:
        assert reader.execute(count).scalar() == 0
        with engine.begin() as writer:
            writer.exec_driver_sql("CREATE TABLE written (id INTEGER)")
    engine.dispose()


@pytest.mark.parametrize(
    ("database", "words"),
    [
        ("missing/feedback.db", "missing/feedback.db: cannot be made"),
        (":memory:", "in a file"),
        ("sqlite://", "in a file"),
        ("mysql://root:secret@localhost/feedback", "SQLite or PostgreSQL, not mysql"),
        ("://", "URL cannot be read"),
        ("postgresql://hfchat:secret@localhost:1/feedback", "postgresql"),
    ],
)
def test_what_cannot_be_opened_is_one_line_without_passwords(database, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words) as raised:
        open_database(database, create=True)
    assert "secret" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_other_files_are_no_databases(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("These are notes. " * 100)
    with pytest.raises(UserError, match=r"notes\.txt: .*not a database"):
        open_database(str(path))
    assert path.read_text() == "These are notes. " * 100
    with pytest.raises(UserError, match="no such database"):
        open_database(str(tmp_path / "feedback.db"))
    assert os.listdir(tmp_path) == ["notes.txt"]
