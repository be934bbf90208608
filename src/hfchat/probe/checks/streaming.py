"""Streams of server-sent events.

https://platform.openai.com/docs/api-reference/chat-streaming and
https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import itertools
import json

from openai.types.chat import ChatCompletionChunk

from hfchat.probe.checks.shapes import check_shape
from hfchat.probe.registry import check
from hfchat.probe.sse import parse_events
from hfchat.probe.target import (
    Stream,
    Target,
    body_of,
    finish_reason_of,
    refusal,
    refused_by_choice,
    summary,
    text_of,
)
from hfchat.probe.verdicts import FailedError, SkippedError

_MULTIBYTE = "Repeat: 👩‍👩‍👧 naïve Straße 日本語 שלום 🏳️‍🌈 €"
_LATE_S = 1.0  # shorter streams do not show whether they come as they are made
_LATE_SHARE = 0.8


async def _stream(target: Target) -> Stream:
    return await target.stream(max_tokens=32)


@check()
async def a_stream_is_well_formed(target: Target) -> str:
    """`text/event-stream`: each event is a chunk in OpenAI's shape with the same id, and `[DONE]` is the last."""
    stream = await target.once(_stream)
    if stream.content_type != "text/event-stream":
        raise FailedError(f"its Content-Type is {stream.content_type}, not text/event-stream")
    for chunk in stream.chunks:
        check_shape(ChatCompletionChunk, chunk)
    if stream.data[-1:] != ["[DONE]"] or "[DONE]" in stream.data[:-1]:
        raise FailedError(f"[DONE] is not its last event, but {stream.data[-1:]}")
    if len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in stream.chunks}) != 1:
        raise FailedError("its chunks differ in id, created or model")
    return f"{len(stream.chunks)} chunks, [DONE]"


@check()
async def the_role_comes_first(target: Target) -> str:
    """The first delta of an answer says whose turn it is; clients build the message from that."""
    first = (await target.once(_stream)).choices()[0]
    if first["delta"].get("role") != "assistant":
        raise FailedError(f"the first delta is {first['delta']}")
    return str(first["delta"])


@check()
async def an_answer_finishes_once(target: Target) -> str:
    """The last chunk of an answer has its `finish_reason`, and no other has one."""
    choices = (await target.once(_stream)).choices()
    reasons = [choice.get("finish_reason") for choice in choices]
    if not reasons or reasons[-1] is None or any(reasons[:-1]):
        raise FailedError(f"finish reasons {list(filter(None, reasons))}, the last chunk's {reasons[-1:]}")
    return reasons[-1]


@check()
async def a_streamed_answer_is_the_unstreamed_one(target: Target) -> str:
    """At temperature 0 the deltas join to the same text, and end for the same reason."""
    stream = await target.once(_stream)
    whole = await target.answer(max_tokens=32)
    if stream.text() != text_of(whole):
        raise FailedError(f"{stream.text()!r}, but unstreamed {text_of(whole)!r}")
    if stream.finish_reasons() != [finish_reason_of(whole)]:
        raise FailedError(f"{stream.finish_reasons()}, but unstreamed {finish_reason_of(whole)}")
    return f"{len(stream.text())} characters"


@check()
async def characters_are_never_cut(target: Target) -> str:
    """A token may be a part of a character: it waits for the rest, so that no delta has a replacement for a half."""
    messages = [{"role": "user", "content": _MULTIBYTE}]
    stream = await target.stream(messages=messages, max_tokens=48)
    whole = text_of(await target.answer(messages=messages, max_tokens=48))
    if stream.text() != whole:
        raise FailedError(f"{stream.text()!r}, but unstreamed {whole!r}")
    wide = sum(ord(char) > 127 for char in whole)
    return f"{wide} of {len(whole)} characters of more than a byte"


@check()
async def the_usage_comes_last(target: Target) -> str:
    """`stream_options.include_usage`: a last chunk before `[DONE]` has it, and no choices; all others have null."""
    stream = await target.stream(max_tokens=8, stream_options={"include_usage": True})
    last = stream.chunks[-1]
    if last.get("choices") != [] or not last.get("usage"):
        raise FailedError(f"the last chunk is {json.dumps(last)[:120]}")
    if any(chunk.get("usage") for chunk in stream.chunks[:-1]):
        raise FailedError("other chunks have a usage, too")
    usage = last["usage"]
    if usage["prompt_tokens"] + usage["completion_tokens"] != usage["total_tokens"] or usage["completion_tokens"] < 1:
        raise FailedError(f"the usage does not add up: {usage}")
    return f"{usage['prompt_tokens']} + {usage['completion_tokens']} tokens"


@check()
async def no_usage_comes_unasked(target: Target) -> str:
    """A client that did not ask for it takes the first choice of every chunk, and that chunk has none."""
    chunks = (await target.once(_stream)).chunks
    if any(chunk.get("usage") or not chunk.get("choices") for chunk in chunks):
        raise FailedError("a chunk has a usage, or no choices")
    return "none"


@check()
async def text_comes_as_it_is_made(target: Target) -> str:
    """A stream must not be held back until the whole answer is there."""
    stream = await target.stream(max_tokens=64)
    if stream.first_text_s is None:
        raise SkippedError("the answer has no text")
    seen = f"the first text after {stream.first_text_s:.2f} of {stream.seconds:.2f} s"
    if stream.seconds > _LATE_S and stream.first_text_s > _LATE_SHARE * stream.seconds:
        raise FailedError(seen)
    return seen


@check()
async def two_streamed_answers_are_told_apart(target: Target) -> str:
    """`n`: each chunk has the index of its answer, and each answer has a role and an end. Or it is refused by name."""
    body = target.chat_body(n=2, max_tokens=8, temperature=1, stream=True)
    response = await target.client.post("chat/completions", json=body)
    refused_by_choice(response, "n")
    chunks = [json.loads(data) for data in parse_events(response.content) if data != "[DONE]"]
    stream = Stream("", [], chunks, None, 0)
    for index in (0, 1):
        if len(stream.finish_reasons(index)) != 1 or stream.choices(index)[0]["delta"].get("role") != "assistant":
            raise FailedError(f"answer {index} has the finish reasons {stream.finish_reasons(index)}")
    return f"{stream.text(0)!r}, {stream.text(1)!r}"


@check()
async def an_error_before_the_stream_is_a_status(target: Target) -> str:
    """A request that is refused gets a 4xx with JSON, not a stream with status 200."""
    return refusal(await target.chat(stream=True, messages=[]), "messages")


@check()
async def a_completion_is_streamed(target: Target) -> str:
    """`POST /completions`, where there is one: the texts join to the unstreamed one, and `[DONE]` comes last."""
    whole = await target.complete()
    streamed = await target.complete(stream=True)
    if streamed.status_code != 200:
        raise FailedError(summary(streamed))
    *events, last = parse_events(streamed.content)
    choices = itertools.chain.from_iterable(json.loads(event)["choices"] for event in events)
    text = "".join(choice["text"] for choice in choices)
    expected = body_of(whole)["choices"][0]["text"]
    if text != expected or last != "[DONE]":
        raise FailedError(f"{text!r} and then {last}, but unstreamed {expected!r}")
    return repr(text)
