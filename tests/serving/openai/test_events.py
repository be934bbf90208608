"""Events whose constant part is written once are those that their models would write."""

import json

import pytest
from fastapi.sse import format_sse_event

from hfchat.serving.engines.engine import Logprob, TokenLogprobs
from hfchat.serving.openai.chat import ChatFormat
from hfchat.serving.openai.completions import CompletionFormat
from hfchat.serving.openai.events import Events
from hfchat.serving.openai.formats import Identity, Part

IDENTITY = Identity(id="chatcmpl-1", created=1, model='a "model"', system_fingerprint=None)
TEXTS = ["Hi", " there", "", '"\\\n\r\t\0\x1f\x7f', "\u2028 \u0085 é 🙂", "data: x\n\ndata: y", "<b>&"]


@pytest.mark.parametrize("with_usage", [False, True])
@pytest.mark.parametrize("wants_logprobs", [False, True])
@pytest.mark.parametrize("format_type", [ChatFormat, CompletionFormat])
def test_events_are_those_of_the_models(format_type, wants_logprobs, with_usage):
    format = format_type(wants_logprobs)
    events = Events(format, IDENTITY, with_usage)
    logprobs = [(0, TokenLogprobs(Logprob("x", -1.0, b"x")))] if wants_logprobs else []
    parts = [Part(index, text) for text in TEXTS for index in (0, 1)]
    parts += [Part(0, "x", logprobs), Part(0, "more"), Part(1, "end", (), "stop"), Part(0, "", (), "length")]
    parts += [Part(0, "x", reasoning="hm"), Part(1, "more")]
    exclude = None if with_usage else {"usage"}
    for number, part in enumerate(parts):
        chunks = format.chunks(IDENTITY, part, first=number < 2)
        written = [format_sse_event(data_str=chunk.model_dump_json(exclude=exclude)) for chunk in chunks]
        assert list(events.of(part)) == written
        for event in written:
            json.loads(event.decode().removeprefix("data: "))
