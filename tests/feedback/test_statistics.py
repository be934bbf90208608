"""Counts of what holds."""

from datetime import UTC, datetime, timedelta

from hfchat.feedback.exchange import Opinion
from hfchat.feedback.statistics import statistics


def test_what_holds_is_counted(database, open_store, exchange):
    store = open_store(database)
    yesterday = datetime.now(UTC) - timedelta(days=1)
    store.keep(exchange("chatcmpl-0", model_version="v1", created_at=yesterday))
    for number in range(4):
        rating = "up" if number else "down"
        opinion = Opinion(f"chatcmpl-{number}", rating=rating, tags=("clear",), comment="!" if number else None)
        store.say(opinion, [exchange(f"chatcmpl-{number}")])
    store.say(Opinion("chatcmpl-3", correction="No.", preferred_over="chatcmpl-2"))
    store.say(Opinion("chatcmpl-2"))  # taken back
    found = statistics(store.engine)
    total = found.total
    assert (total.answers, total.feedback, total.up, total.down) == (4, 3, 1, 1)
    assert (total.corrections, total.comments, total.preferences) == (1, 1, 1)
    assert found.tags == {"clear": 2}
    assert found.replaced == 2
    assert {name: (tally.answers, tally.down) for name, tally in found.models.items()} == {
        "assistant@v1": (1, 1),
        "assistant": (3, 0),
    }
    days = list(found.days)
    assert days == sorted(days)
    assert found.days[yesterday.date().isoformat()].answers == 1
    assert sum(tally.feedback for tally in found.days.values()) == 3


def test_nothing_is_counted_as_nothing(open_store):
    assert statistics(open_store().engine).total.share_up is None
