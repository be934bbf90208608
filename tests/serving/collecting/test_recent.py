"""Answers are held within bounds of number, bytes and time."""

from dataclasses import replace
from datetime import UTC, datetime

from hfchat.feedback.exchange import Exchange
from hfchat.serving.collecting.recent import RecentAnswers


def exchange(number, text="Yes."):
    messages = [{"role": "user", "content": "Yes?"}]
    return Exchange(f"chatcmpl-{number}", 0, datetime.now(UTC), "assistant", messages, text, "stop", {})


def test_the_oldest_go_when_there_are_too_many():
    recent = RecentAnswers(max_answers=3)
    for number in range(5):
        recent.add(exchange(number))
    assert [number for number in range(5) if recent.find(f"chatcmpl-{number}", 0)] == [2, 3, 4]
    assert recent.find("chatcmpl-4", 1) is None


def test_the_oldest_go_when_they_are_too_large():
    recent = RecentAnswers(max_bytes=10_000)
    for number in range(5):
        recent.add(exchange(number, "é" * 4_000))
    assert [number for number in range(5) if recent.find(f"chatcmpl-{number}", 0)] == [3, 4]
    recent.add(exchange(5, "é" * 20_000))
    assert len(recent) == 0
    recent.add(exchange(6))
    assert recent.find("chatcmpl-6", 0) is not None


def test_all_that_a_client_sent_is_counted():
    """150 answers with a stop string of 0.9 MB were held as if they were nothing."""
    for field, value in {
        "sampling": {"stop": ["x" * 6_000]},
        "user": "x" * 6_000,
        "findings": [{"guard": "x" * 6_000}],
        "messages": [{"role": "user", "content": "x" * 6_000}],
        "tools": [{"type": "function", "function": {"parameters": {"enum": [[]] * 90}}}],
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"a": {"b": "x" * 6_000}}}}],
        "reasoning": "x" * 6_000,
    }.items():
        recent = RecentAnswers(max_bytes=10_000)
        for number in range(3):
            recent.add(replace(exchange(number), **{field: value}))
        assert len(recent) == 1, field


def test_they_are_held_for_a_while():
    now = 0.0
    recent = RecentAnswers(max_age_s=3600, clock=lambda: now)
    recent.add(exchange(0))
    now = 1800.0
    recent.add(exchange(1))
    now = 3599.0
    assert recent.find("chatcmpl-0", 0) is not None
    now = 3600.0
    assert recent.find("chatcmpl-0", 0) is None
    assert recent.find("chatcmpl-1", 0) is not None
