"""What was said is stored with its conversation, once, and can be taken out again."""

import json
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from hfchat.feedback.database import open_database
from hfchat.feedback.exchange import Opinion
from hfchat.feedback.reading import Selection, read_answers, rows
from hfchat.feedback.redaction import redact
from hfchat.feedback.store import (
    Counts,
    NothingSaidError,
    OtherPromptError,
    StoreError,
    UnknownAnswerError,
    prompt_hash,
)
from tests.feedback.conftest import WITH_TOOLS, called, tool


def all_rows(store):
    return list(rows(store.engine))


def test_an_opinion_is_stored_with_all_that_led_to_the_answer(database, open_store, exchange):
    store = open_store(database)
    answer = exchange("chatcmpl-1", 1, text="Lyon.\0", user="alice", api_key="app", template_fingerprint="abc")
    opinion = Opinion("chatcmpl-1", 1, "down", "Paris.", "wrong", ("wrong", "rude"), user="alice", api_key="app")
    stored = store.say(opinion, [answer])
    assert stored.opinion == opinion
    assert stored.replaces is None
    [row] = all_rows(store)
    assert row["messages"] == answer.messages
    assert row["answer"] == "Lyon.\ufffd"  # PostgreSQL holds no NUL
    assert (row["model"], row["template_fingerprint"], row["finish_reason"]) == ("assistant", "abc", "stop")
    assert row["sampling"] == answer.sampling
    assert row["findings"] == [{"guard": "lexicon", "place": "prompt", "action": "flag", "categories": ["obscene"]}]
    assert (row["user"], row["api_key"], row["created_at"]) == ("alice", "app", answer.created_at.isoformat())
    [said] = row["feedback"]
    assert (said["id"], said["rating"], said["correction"], said["comment"]) == (stored.id, "down", "Paris.", "wrong")
    assert (said["tags"], said["user"], said["replaced_at"]) == (["wrong", "rude"], "alice", None)


def test_tools_calls_and_reasoning_are_stored_and_the_same_prompt_is_known(database, open_store, exchange):
    store = open_store(database)
    answer = exchange("chatcmpl-1", **WITH_TOOLS)
    right = (called("weather", city="Oslo"),)
    said = Opinion("chatcmpl-1", correction="", corrected_calls=right)
    assert store.say(said, [answer]).opinion == said
    assert not store.say(said).is_new
    assert store.say(Opinion("chatcmpl-1", correction="")).is_new
    [row] = read_answers(store.engine)
    assert (row.messages, row.tools) == (WITH_TOOLS["messages"], WITH_TOOLS["tools"])
    assert (row.text, row.tool_calls, row.reasoning) == ("", WITH_TOOLS["tool_calls"], "Now Oslo.")
    assert [opinion.corrected_calls for opinion in row.feedback] == [list(right), []]
    # The id of a call is another one each time; what was called, and what could be, makes the prompt.
    turns, tools = WITH_TOOLS["messages"], WITH_TOOLS["tools"]
    other_id = [turns[0], turns[1] | {"tool_calls": [called("weather", "call_2", city="Rome")]}, turns[2]]
    other_call = [turns[0], turns[1] | {"tool_calls": [called("weather", "call_1", city="Bonn")]}, turns[2]]
    assert prompt_hash(other_id, tools) == prompt_hash(turns, tools) == row.prompt_hash
    assert len({prompt_hash(turns, tools), prompt_hash(turns), prompt_hash(other_call, tools)}) == 3


def test_personal_data_in_calls_is_taken_out_and_what_is_left_is_json(open_store, exchange):
    store = open_store(redact=redact)
    card = 4111111111111111
    arguments = {"to": "jane.roe@gmail.com", "jane.roe@gmail.com": [card, True, None, 7, 0.5], "more": {"": "+1 é"}}
    mail = called("mail", **arguments)
    fields = {
        "messages": [
            {"role": "user", "content": "Write."},
            {"role": "assistant", "content": "", "tool_calls": [mail]},
        ],
        "tools": [tool("mail", to={"type": "string", "examples": ["jane.roe@gmail.com"]})],
        "tool_calls": [mail],
        "reasoning": "It is jane.roe@gmail.com.",
    }
    store.say(Opinion("chatcmpl-1", correction="", corrected_calls=(mail,)), [exchange("chatcmpl-1", **fields)])
    [row] = read_answers(store.engine)
    kept = arguments | {"to": "email@example.com", "email@example.com": [0, True, None, 7, 0.5]}
    del kept["jane.roe@gmail.com"]
    for call in (row.messages[1]["tool_calls"][0], row.tool_calls[0], row.feedback[0].corrected_calls[0]):
        assert call == called("mail", **kept)
    assert "gmail" not in json.dumps([row.tools, row.reasoning])
    assert store.redact() == Counts(0, 0)


def test_who_changes_their_mind_replaces_what_they_said(database, open_store, exchange):
    store = open_store(database)
    answer = exchange("chatcmpl-1")
    first = store.say(Opinion("chatcmpl-1", rating="up", user="alice"), [answer])
    other = store.say(Opinion("chatcmpl-1", rating="up", user="bob"))
    second = store.say(Opinion("chatcmpl-1", rating="down", user="alice"), [answer])
    assert second.replaces == first.id
    again = store.say(Opinion("chatcmpl-1", rating="down", user="alice"))  # as from a client that got no reply
    assert (again.id, again.is_new) == (second.id, False)
    [row] = all_rows(store)
    assert {said["id"]: said["replaced_at"] is None for said in row["feedback"]} == {
        first.id: False,
        other.id: True,
        second.id: True,
    }
    withdrawn = store.say(Opinion("chatcmpl-1", user="alice"))
    assert withdrawn.replaces == second.id
    with pytest.raises(NothingSaidError):
        store.say(Opinion("chatcmpl-1", user="carol"))


def test_of_opinions_at_the_same_time_one_holds(database, open_store, exchange):
    store = open_store(database)
    store.keep(exchange("chatcmpl-1"))
    store.keep(exchange("chatcmpl-1"))
    errors = []

    def say(number):
        try:
            store.say(Opinion("chatcmpl-1", comment=str(number)), [exchange("chatcmpl-1")])
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=say, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    [row] = all_rows(store)
    assert len(row["feedback"]) == 8
    assert sum(said["replaced_at"] is None for said in row["feedback"]) == 1


def test_an_answer_is_preferred_over_another_one_to_the_same_prompt(database, open_store, exchange):
    store = open_store(database)
    store.keep(exchange("chatcmpl-1"))
    other, kept = exchange("chatcmpl-2", prompt="And of Spain?"), exchange("chatcmpl-3", text="It is Paris.")
    store.say(Opinion("chatcmpl-3", preferred_over="chatcmpl-1"), [kept])
    assert [row["feedback"][0]["preferred_over"] for row in all_rows(store) if row["feedback"]] == ["chatcmpl-1"]
    for discarded in ("chatcmpl-2", "chatcmpl-3"):
        with pytest.raises(OtherPromptError):
            store.say(Opinion("chatcmpl-3", preferred_over=discarded), [kept, other])
    with pytest.raises(UnknownAnswerError) as raised:
        store.say(Opinion("chatcmpl-3", preferred_over="chatcmpl-4"), [kept])
    assert raised.value.field == "preferred_over"
    assert len(all_rows(store)) == 2  # what came with a refused opinion is not stored


def test_only_who_got_an_answer_can_say_something_of_it(open_store, exchange):
    store = open_store()
    store.keep(exchange("chatcmpl-1", api_key="app"))
    for opinion in (
        Opinion("chatcmpl-1", rating="up"),
        Opinion("chatcmpl-1", rating="up", api_key="other"),
        Opinion("chatcmpl-1", choice=1, rating="up", api_key="app"),
        Opinion("chatcmpl-2", rating="up", api_key="app"),
    ):
        with pytest.raises(UnknownAnswerError):
            store.say(opinion)
    store.say(Opinion("chatcmpl-1", rating="up", api_key="app"))


def test_of_one_key_one_opinion_of_an_answer_holds_whomever_it_names(open_store, exchange):
    store = open_store()
    store.keep(exchange("chatcmpl-1", api_key="app"))
    for user in ("sock-0", "sock-1"):  # as of before, when each user had one
        store.say(Opinion("chatcmpl-1", rating="down", user=user, api_key="app"))
    for user in ("sock-2", "sock-3", "sock-3"):
        again = store.say(Opinion("chatcmpl-1", rating="down", user=user, api_key="app"), one_of_key=True)
    assert not again.is_new
    store.say(Opinion("chatcmpl-1", rating="up", user="sock-4", api_key="app"), one_of_key=True)
    [row] = all_rows(store)
    assert [said["user"] for said in row["feedback"] if said["replaced_at"] is None] == ["sock-4"]
    store.say(Opinion("chatcmpl-1", user="sock-5", api_key="app"), one_of_key=True)  # takes it back
    [row] = all_rows(store)
    assert [said["rating"] for said in row["feedback"] if said["replaced_at"] is None] == [None]


def test_personal_data_is_taken_out_on_the_way_in(open_store, exchange):
    store = open_store(redact=redact)
    found = exchange("chatcmpl-1", prompt="Write to jane.roe@gmail.com", text="I wrote to jane.roe@gmail.com.")
    same = exchange("chatcmpl-2", prompt="Write to john.doe@gmail.com")
    words = "jane.roe@gmail.com"
    opinion = Opinion("chatcmpl-1", 0, None, f"To {words}!", f"by {words}", (words,), "chatcmpl-2")
    assert store.say(opinion, [found, same]).opinion.comment == "by email@example.com"
    assert "gmail" not in str(all_rows(store))
    assert "I wrote to email@example.com." in str(all_rows(store))


PERSONAL = [
    "bob\u200b@corp-mail.com",
    "ｂｏｂ@corp-mail.com",
    "+1 (212) 736\u200b-5000",
    "４１１１ １１１１ １１１１ １１１１",
]


@pytest.mark.parametrize("found", PERSONAL)
@pytest.mark.parametrize("later", [False, True])
def test_nothing_that_the_guards_see_is_left_in_any_field(database, open_store, exchange, found, later):
    store = open_store(database, str if later else redact)
    answer = exchange("chatcmpl-1", prompt=f"I am {found}.", text=f"You are {found}.", user=found)
    answer = replace(answer, sampling={"stop": [found, "END"], "temperature": 0.5})
    store.say(Opinion("chatcmpl-1", 0, "up", f"Not {found}", f"as {found} said", (found,), user=found), [answer])
    if later:
        store = open_store(database, redact)
        assert store.redact() == Counts(1, 1)
    assert store.redact() == Counts(0, 0)
    [row] = all_rows(store)
    kept = json.dumps(row, ensure_ascii=False)
    assert not any(part in kept for part in ("bob", "ｂ", "corp-mail", "(212)", "-5000", "4111 1111", "４"))
    assert row["sampling"] == {"stop": [row["feedback"][0]["tags"][0], "END"], "temperature": 0.5}
    assert row["user"] == row["feedback"][0]["user"] != ""
    assert list(rows(store.engine, Selection(user=found))) == [row]
    assert store.delete_user(found) == Counts(1, 1)


def test_users_with_addresses_for_names_are_still_told_apart(database, open_store, exchange):
    store = open_store(database, redact)
    store.keep(exchange("chatcmpl-1", api_key="web"))
    for user in ("jane.roe@gmail.com", "john.doe@gmail.com", "jane.roe@gmail.com"):
        store.say(Opinion("chatcmpl-1", rating="up", user=user, api_key="web"))
    assert len(all_rows(store)[0]["feedback"]) == 2
    careless = open_store(database)
    careless.say(Opinion("chatcmpl-1", rating="down", user="jane.roe@gmail.com", api_key="web"))
    store.redact()  # of the two opinions of Jane, one holds
    holding = [said for said in all_rows(store)[0]["feedback"] if said["replaced_at"] is None]
    assert [said["rating"] for said in holding] == ["up", "up"]


def test_what_is_stored_is_redacted_later(database, open_store, exchange):
    careless = open_store(database)
    for number in range(25):
        answer = exchange(f"chatcmpl-{number}", prompt="Write to jane.roe@gmail.com")
        careless.say(Opinion(f"chatcmpl-{number}", comment="jane.roe@gmail.com"), [answer])
    careless.keep(exchange("chatcmpl-25", prompt="Write to email@example.com"))
    store = open_store(database, redact)
    assert store.redact() == Counts(25, 25)
    assert store.redact() == Counts(0, 0)
    found = all_rows(store)
    assert "gmail" not in str(found)
    assert len({row["prompt_hash"] for row in found}) == 1  # of the prompt as it is now


def test_a_user_is_deleted_with_all_they_asked_and_said(database, open_store, exchange):
    store = open_store(database)
    store.say(Opinion("chatcmpl-alices", rating="up", user="bob"), [exchange("chatcmpl-alices", user="alice")])
    store.say(Opinion("chatcmpl-bobs", rating="up", user="alice"), [exchange("chatcmpl-bobs", user="bob")])
    nobodys = [exchange("chatcmpl-kept"), exchange("chatcmpl-discarded")]
    store.say(Opinion("chatcmpl-kept", preferred_over="chatcmpl-discarded", user="alice"), nobodys)
    store.keep(exchange("chatcmpl-other-alice", user="alice", api_key="other"))
    assert store.delete_user("alice", api_key="other") == Counts(1, 0)
    assert store.delete_user("alice") == Counts(3, 3)
    assert [(row["answer_id"], row["feedback"]) for row in all_rows(store)] == [("chatcmpl-bobs", [])]


def test_answers_are_deleted_one_by_one_and_by_age(database, open_store, exchange):
    store = open_store(database)
    now = datetime.now(UTC)
    old = exchange("chatcmpl-old", created_at=now - timedelta(days=2))
    store.say(Opinion("chatcmpl-new", preferred_over="chatcmpl-old"), [old, exchange("chatcmpl-new")])
    store.say(Opinion("chatcmpl-old", rating="down"))
    assert store.delete_before(now - timedelta(days=1)) == Counts(1, 1)
    [row] = all_rows(store)
    assert row["feedback"][0]["preferred_over"] is None
    assert store.delete_answer("chatcmpl-new") == Counts(1, 1)
    assert store.forget_deleted()
    assert all_rows(store) == []


def test_what_is_deleted_is_in_no_file(open_store, exchange, tmp_path):
    store = open_store()
    secret = "a secret that nobody may find again "
    for number in range(50):  # so many that some are in pages of their own
        answer = exchange(f"chatcmpl-{number}", prompt=secret * 200, user="alice")
        store.say(Opinion(f"chatcmpl-{number}", comment=secret, user="alice"), [answer])

    def found():
        return [path.name for path in tmp_path.iterdir() if secret.encode() in path.read_bytes()]

    assert found()
    store.delete_user("alice")
    assert store.forget_deleted()
    assert found() == []


def test_a_locked_database_refuses(open_store, exchange, monkeypatch, tmp_path):
    monkeypatch.setattr("hfchat.feedback.database._WAIT_S", 0.05)
    store, other = open_store(), open_store()
    with other.engine.begin(), pytest.raises(StoreError, match="locked"):
        store.keep(exchange("chatcmpl-1"))
    store.keep(exchange("chatcmpl-1"))


def test_a_full_disk_refuses(open_store, exchange):
    store = open_store()
    store.keep(exchange("chatcmpl-1"))
    with store.engine.connect() as connection:  # SQLite's own limit: one connection, which the pool gives out again
        connection.exec_driver_sql("PRAGMA max_page_count=1")
    with pytest.raises(StoreError, match="full"):
        store.say(Opinion("chatcmpl-1", comment="x" * 100_000))
    with store.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count=1000000")
    store.say(Opinion("chatcmpl-1", comment="x" * 100_000))


_WRITER = """
import sys
from datetime import UTC, datetime
from hfchat.feedback.database import open_database
from hfchat.feedback.exchange import Exchange, Opinion
from hfchat.feedback.store import Store

database, name = sys.argv[1:]
store = Store(open_database(database, create=True))
for number in range(1_000_000):
    answer_id = f"chatcmpl-{name}-{number}"
    messages = [{"role": "user", "content": f"{name} {number} " * 50}]
    store.say(
        Opinion(answer_id, rating="up"),
        [Exchange(answer_id, 0, datetime.now(UTC), "assistant", messages, "Yes.", "stop", {})],
    )
    print(answer_id, flush=True)
"""


def test_what_was_acknowledged_survives_kill_9(tmp_path):
    """Processes write at once, from the database's making on; each is killed at some moment, and its next one goes
    on."""
    database = str(tmp_path / "feedback.db")
    logs = [tmp_path / f"{number}.log" for number in range(4)]

    def start(log):
        with log.open("wb") as file:
            return subprocess.Popen([sys.executable, "-c", _WRITER, database, log.stem], stdout=file)

    writers = [start(log) for log in logs[:2]]
    try:
        for number, writer in enumerate(writers[:2]):
            _wait_for_lines(logs[number], 10 + 7 * number)
            writer.send_signal(signal.SIGKILL)
            writer.wait()
            writers.append(start(logs[2 + number]))
        _wait_for_lines(logs[2], 10)
        _wait_for_lines(logs[3], 10)
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
    acknowledged = [line for log in logs for line in log.read_text().split("\n")[:-1]]
    assert len(acknowledged) > 30
    engine = open_database(database)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
    found = list(rows(engine))
    assert set(acknowledged) <= {row["answer_id"] for row in found}
    assert all(len(row["feedback"]) == 1 for row in found)
    assert len(found) <= len(acknowledged) + len(writers)  # of each, the last may have got no reply
    engine.dispose()


def _wait_for_lines(log: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while log.read_text().count("\n") < count:
        assert time.monotonic() < deadline, "the writer does not write"
        time.sleep(0.003)
