"""What is counted as a conversation, an answer and an opinion of a period."""

from datetime import UTC, datetime, timedelta

import pytest

from hfchat.feedback import history
from hfchat.feedback.exchange import Opinion
from hfchat.feedback.history import UNCLEAR, Periods, read_history

NOW = datetime.now(UTC)
PERIODS = Periods.since(NOW - timedelta(days=10), NOW + timedelta(days=1))
BEFORE = NOW - timedelta(days=15)


def a_conversation(exchange, number, turns, **fields):
    """Its answers, each with all the turns before it."""
    messages = []
    for turn in range(turns):
        messages = [*messages, {"role": "user", "content": f"Question {number} of {turn}"}]
        yield exchange(f"chatcmpl-{number}-{turn}", messages=messages, text=f"Answer {number}", **fields)
        messages = [*messages, {"role": "assistant", "content": f"Answer {number}"}]


def test_a_conversation_of_several_turns_counts_once(open_store, exchange):
    store = open_store()
    for number in range(2):
        for one in a_conversation(exchange, number, turns=3):
            store.keep(one)
    store.keep(exchange("chatcmpl-n", choice=0, text="One"))
    store.keep(exchange("chatcmpl-n", choice=1, text="Two"))
    found = read_history(store.engine, PERIODS)
    assert len(found.conversations) == 3
    assert len(found.answers) == 8
    assert sorted(found.conversations["characters"]) == [15, 15, 30]
    assert len(found.openings[1]) == 3
    assert found.openings[0] == []


def test_answers_and_opinions_have_their_own_times(open_store, exchange):
    store = open_store()
    old = exchange("chatcmpl-old", created_at=BEFORE, model_version="v1")
    store.say(Opinion("chatcmpl-old", rating="down", comment="Late", user="alice"), [old])
    store.keep(exchange("chatcmpl-older", created_at=NOW - timedelta(days=30)))
    found = read_history(store.engine, PERIODS)
    assert found.answers[["now", "model"]].to_numpy().tolist() == [[False, "assistant@v1"]]
    assert found.feedback[["now", "model", "rating"]].to_numpy().tolist() == [[True, "assistant@v1", "down"]]
    assert [comment.text for comment in found.comments] == ["Late"]
    assert found.begin == BEFORE


def test_only_the_last_word_of_a_person_counts(open_store, exchange):
    store = open_store()
    answer = exchange("chatcmpl-1")
    store.say(Opinion("chatcmpl-1", rating="up", tags=("clear",), user="alice"), [answer])
    store.say(Opinion("chatcmpl-1", rating="down", user="alice"))
    store.say(Opinion("chatcmpl-1", rating="up", user="bob"))
    store.say(Opinion("chatcmpl-1", user="bob"))  # taken back
    store.say(Opinion("chatcmpl-1", tags=("rude",)))
    found = read_history(store.engine, PERIODS)
    assert found.feedback["rating"].dropna().tolist() == ["down"]
    assert found.feedback["author"].notna().tolist() == [True, False]
    assert found.tags["tag"].tolist() == ["rude"]


def test_answers_are_described(open_store, exchange):
    store = open_store()
    refusal = "I'm sorry, but I can't help with that."
    store.keep(exchange("chatcmpl-1", text=refusal))
    store.keep(exchange("chatcmpl-2", text=refusal, finish_reason="content_filter", findings=[]))
    store.keep(exchange("chatcmpl-3", text="Yes", finish_reason=None, findings=[]))
    answers = read_history(store.engine, PERIODS).answers
    assert answers["refused"].tolist() == [True, False, False]
    assert answers["finish_reason"].tolist() == ["stop", "content_filter", "not sent to its end"]
    findings = read_history(store.engine, PERIODS).findings
    assert findings[["guard", "place", "action", "category"]].to_numpy().tolist() == [
        ["lexicon", "prompt", "flag", "obscene"]
    ]


@pytest.mark.parametrize(
    ("prompt", "language"),
    [("Wie komme ich am besten zum Bahnhof?", "de"), ("asdf", UNCLEAR), ("12 + 7 = ?", UNCLEAR)],
)
def test_languages_of_openings(open_store, exchange, prompt, language):
    store = open_store()
    store.keep(exchange("chatcmpl-1", prompt=prompt))
    assert read_history(store.engine, PERIODS).conversations["language"].tolist() == [language]


def test_of_many_openings_a_random_sample_is_kept(open_store, exchange, monkeypatch):
    monkeypatch.setattr(history, "_OPENINGS", 5)
    store = open_store()
    for number in range(20):
        store.keep(exchange(f"chatcmpl-{number}", prompt="a" * (number + 1)))
    found = read_history(store.engine, PERIODS)
    lengths = [opening.characters for opening in found.openings[1]]
    assert len(found.conversations) == 20
    assert len({*lengths}) == 5
    assert not {*lengths} <= {*range(1, 6)}  # not only the first ones
    assert not {*lengths} <= {*range(16, 21)}  # nor the last
    assert lengths == [opening.characters for opening in read_history(store.engine, PERIODS).openings[1]]
