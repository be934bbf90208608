"""Events come out whole, wherever the packets of their stream begin and end."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfchat.serving.engines.sse import EventError, EventReader

STREAM = (
    b": a comment\n\ndata: one\n\n"
    b'data:{"no": "space"}\r\n\r\n'
    b"event: message\nid: 7\nretry: 10\ndata: first line\ndata: second line\n\n"
    b"data: third line\r\ndata: fourth line\r\n\ndata: fifth line\n\n"
    b"\r\rdata: by carriage returns\r\r"
    b"data\n\n"  # a field without a value
    b"data:  two spaces \xc3\xa9\n\n"
    b"data: not ended"
)
EVENTS = [
    b"one",
    b'{"no": "space"}',
    b"first line\nsecond line",
    b"third line\nfourth line",
    b"fifth line",
    b"by carriage returns",
    b"",
    b" two spaces \xc3\xa9",
]


@given(st.lists(st.integers(0, len(STREAM)), max_size=40))
def test_events_do_not_depend_on_packets(cuts):
    reader = EventReader()
    places = [0, *sorted(cuts), len(STREAM)]
    events = [event for start, end in itertools.pairwise(places) for event in reader.push(STREAM[start:end])]
    assert events == EVENTS


def test_every_byte_by_itself():
    reader = EventReader()
    assert [event for byte in STREAM for event in reader.push(bytes([byte]))] == EVENTS


@pytest.mark.parametrize("packet", [b"data: x", b": x", b"x", b"data: x\n"])
def test_an_event_without_an_end_is_refused(packet):
    reader = EventReader()

    def push_for_ever():
        while True:
            reader.push(packet.replace(b"x", b"x" * 65536))

    with pytest.raises(EventError):
        push_for_ever()


def test_a_long_stream_of_small_events_is_not():
    reader = EventReader()
    assert sum(len(reader.push(b"data: " + b"x" * 4096 + b"\n\n")) for _ in range(400)) == 400
