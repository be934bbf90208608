"""What is read of a database for those who learn from it."""

from datetime import UTC, datetime, timedelta

from hfchat.feedback.exchange import Opinion
from hfchat.feedback.reviews import digest_of_answers, read_reviewed, reviews_of


def test_reviews_come_with_what_they_are_about(open_store, exchange):
    store = open_store()
    for number in range(3):
        store.keep(exchange(f"chatcmpl-{number}", text=f"Answer {number}.", model_version="v2"))
    store.say(Opinion("chatcmpl-1", rating="up", user="alice", api_key=""))
    store.say(Opinion("chatcmpl-1", correction="No.", preferred_over="chatcmpl-0", user="alice"))
    answers = read_reviewed(store.engine)
    assert [answer.answer_id for answer in answers] == ["chatcmpl-1"]  # and not the one nobody spoke of
    [review], replaced = reviews_of(answers)
    assert len(replaced) == 1
    assert (review.answer.text, review.answer.full_model, review.over.text) == (
        "Answer 1.",
        "assistant@v2",
        "Answer 0.",
    )
    assert review.statements == ["correction", "preference"]
    assert review.answer.prompt_hash == review.over.prompt_hash
    assert review.answer.key != review.over.key


def test_since_is_when_it_was_asked_or_reviewed(open_store, exchange):
    store = open_store()
    now = datetime.now(UTC)
    for number, days in enumerate((30, 20, 0)):
        store.keep(exchange(f"chatcmpl-{number}", created_at=now - timedelta(days=days)))
    store.say(Opinion("chatcmpl-1", rating="up", preferred_over="chatcmpl-0"))
    [answer] = read_reviewed(store.engine, now - timedelta(days=1))
    assert answer.feedback[0].preferred_over.messages == answer.messages
    assert read_reviewed(store.engine, now + timedelta(days=1)) == []


def test_the_digest_tells_whether_something_else_was_said(open_store, exchange):
    store = open_store()
    store.say(Opinion("chatcmpl-1", rating="up"), [exchange("chatcmpl-1")])
    first = digest_of_answers(read_reviewed(store.engine))
    store.keep(exchange("chatcmpl-2"))
    assert digest_of_answers(read_reviewed(store.engine)) == first
    store.say(Opinion("chatcmpl-1", rating="down"))
    assert digest_of_answers(read_reviewed(store.engine)) != first


def test_a_person_is_a_user_of_a_key_or_the_key(open_store, exchange):
    store = open_store()
    for number, user in enumerate(("alice", "bob")):
        store.keep(exchange(f"chatcmpl-{number}", api_key="app"))
        store.say(Opinion(f"chatcmpl-{number}", rating="up", user=user, api_key="app"))
    answers = read_reviewed(store.engine)
    assert len({review.person for review in reviews_of(answers, "user")[0]}) == 2
    assert len({review.person for review in reviews_of(answers, "api_key", ["app"])[0]}) == 2
    for who in ({}, {"who": "api_key"}, {"trusted_keys": ["other"]}):
        assert len({review.person for review in reviews_of(answers, **who)[0]}) == 1
