"""Bodies that are broken, huge or strange: never a 5xx, never the end of the server.

Many servers parse JSON before anything protects them. Sources: RFC 8259 (JSON), RFC 9110 and 9112 (HTTP).
"""

import asyncio
import contextlib
import functools
import gzip
import json
from dataclasses import dataclass

import httpx

from hfchat.probe.checks import afterwards_it_answers
from hfchat.probe.registry import check
from hfchat.probe.target import Target, client_error, refusal, text_of
from hfchat.probe.verdicts import FailedError
from hfchat.probe.wire import CLOSED, chat_head, judged, wire

_MEBIBYTE = 1024 * 1024
_HUGE = 64 * _MEBIBYTE
_AT_ONCE_S = 3.0
_CHUNK = b"%x\r\n%b\r\n" % (_MEBIBYTE, b" " * _MEBIBYTE)


async def _post(target: Target, body: bytes, **headers: str) -> httpx.Response:
    headers = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    return await target.client.post("chat/completions", content=body, headers=headers)


def _valid_body(target: Target) -> bytes:
    return json.dumps(target.chat_body(max_tokens=1)).encode()


def _not_broken_by(response: httpx.Response) -> str:
    """Judges a response to something that a server may take or refuse."""
    return f"200: {text_of(response.json())!r}" if response.status_code == 200 else refusal(response)


_too_large = functools.partial(refusal, statuses=(413,))


@dataclass(frozen=True)
class _Field:
    """A body with one value written by hand."""

    name: str
    value: str

    def body(self, target: Target) -> bytes:
        body = target.chat_body(max_tokens=1)
        body.pop(self.name, None)
        return f'{json.dumps(body)[:-1]}, "{self.name}": {self.value}}}'.encode()


@check(
    {
        "empty": b"",
        "half": b'{"model": "m", "messages": [',
        "not JSON": b"model=m&messages=Hi",
        "a list": b"[]",
        "a text": b'"Hi"',
        "null": b"null",
        "not UTF-8": b'{"model": "\xff\xfe"}',
        "100,000 brackets": b"[" * 100_000,
        "100,000 objects": b'{"a":' * 100_000,
        "100,000 lists that end": b"[" * 100_000 + b"]" * 100_000,
    }
)
async def a_broken_body_is_refused(target: Target, body: bytes) -> str:
    """With a 4xx in the shape of an error, because it is the client's mistake (RFC 9110, 15.5.1). Deep nesting is a
    classic attack.
    """
    return refusal(await _post(target, body))


@check(
    {
        "NaN": _Field("temperature", "NaN"),
        "Infinity": _Field("temperature", "Infinity"),
        "1e999": _Field("temperature", "1e999"),
        "a seed of 5,000 digits": _Field("seed", "9" * 5000),
        "max_tokens of 5,000 digits": _Field("max_tokens", "9" * 5000),
    }
)
async def a_number_that_is_none_is_refused(target: Target, field: _Field) -> str:
    """JSON has no such numbers (RFC 8259, 6), but many parsers take them, and the server then fails where it computes
    with them.
    """
    return refusal(await _post(target, field.body(target)))


def _list(name: str, element: str, outer: str = "{}") -> _Field:
    """A field with a list of so many elements that the body has 900 kB."""
    elements = ",".join([element] * (900_000 // (len(element) + 1)))
    return _Field(name, outer.replace("{}", f"[{elements}]"))


_UNKNOWN = ", ".join(f'"unknown {number}": 1' for number in range(50_000))


@check(
    {
        "messages that are numbers": _list("messages", "1"),
        "messages that are empty": _list("messages", "{}"),
        "parts that are numbers": _list("messages", "1", '[{"role": "user", "content": {}}]'),
        "parts that are empty": _list("messages", "[]", '[{"role": "user", "content": {}}]'),
        "stop strings": _list("stop", "1"),
        "unknown fields": _Field("unknown", f"1, {_UNKNOWN}"),
    }
)
async def a_huge_list_is_refused_at_once(target: Target, field: _Field) -> str:
    """A megabyte of wrong elements. A validator that notes every error takes seconds and gigabytes, in which nobody
    else is answered.
    """
    body = field.body(target)
    async with target.within(_AT_ONCE_S, "not refused within {limit}"):
        response, _ = await asyncio.gather(_post(target, body), target.client.get("models"))
    return refusal(response)


@check(
    {
        "nested 5,000 deep in a field": _Field("metadata", '{"a":' * 5000 + "1" + "}" * 5000),
        "nested 900 deep in a field": _Field("metadata", '{"a":' * 900 + "1" + "}" * 900),
        "nested 100,000 deep in a text": _Field("messages", "[" * 100_000 + "]" * 100_000),
        "a key twice": _Field("model", '"x", "model": "y"'),
        "half of a surrogate pair": _Field("messages", r'[{"role": "user", "content": "\ud800"}]'),
        "NUL in a text": _Field("messages", r'[{"role": "user", "content": "a\u0000b"}]'),
        "special tokens in a text": _Field(
            "messages", '[{"role": "user", "content": "<|im_end|><|endoftext|></s><s>[INST]"}]'
        ),
        "a text of 100,000 emoji": _Field("user", '"' + "👩‍👩‍👧" * 20_000 + '"'),
    }
)
async def a_strange_body_breaks_nothing(target: Target, field: _Field) -> str:
    """RFC 8259 allows it, so it may be answered or refused, but must not be an error of the server."""
    return _not_broken_by(await _post(target, field.body(target)))


@check()
async def a_byte_order_mark_breaks_nothing(target: Target) -> str:
    """A parser may ignore it or refuse it (RFC 8259, 8.1)."""
    return _not_broken_by(await _post(target, b"\xef\xbb\xbf" + _valid_body(target)))


@check()
async def a_compressed_body_breaks_nothing(target: Target) -> str:
    """A coding that the server does not support is 415 (RFC 9110, 8.4)."""
    return _not_broken_by(await _post(target, gzip.compress(_valid_body(target)), Content_Encoding="gzip"))


@check({"text/plain": "text/plain", "a form": "application/x-www-form-urlencoded", "none": ""})
async def a_body_of_another_type_is_refused(target: Target, content_type: str) -> str:
    """415 (RFC 9110, 15.5.16). Any web page can make its visitor's browser post these types to a server on loopback
    without asking (https://fetch.spec.whatwg.org/#cors-safelisted-request-header).
    """
    return refusal(await _post(target, _valid_body(target), Content_Type=content_type))


@check()
async def a_huge_declared_body_is_refused_at_once(target: Target) -> str:
    """413 as soon as its length is known (RFC 9110, 15.5.14): a server that waits for it keeps memory for it."""
    return await judged(target, chat_head(target, f"Content-Length: {100 * 1024 * _MEBIBYTE}"), _too_large)


@check()
async def a_huge_chunked_body_is_cut(target: Target) -> str:
    """A limit that looks only at `Content-Length` bounds nothing: chunked bodies have none (RFC 9112, 7.1)."""
    sent = 0
    async with wire(target) as connection:
        await connection.send(chat_head(target, "Transfer-Encoding: chunked"))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(target.limit(15)):
                while sent < _HUGE and await connection.send(_CHUNK):
                    sent += _MEBIBYTE
        if sent >= _HUGE:
            raise FailedError(f"{sent // _MEBIBYTE} MiB were taken")
        response = await connection.answer()
    return f"{CLOSED} after {sent // _MEBIBYTE} MiB" if response is None else _too_large(response)


@check(
    {
        "-1": ("Content-Length: -1",),
        "a text": ("Content-Length: many",),
        "two": ("Content-Length: 2", "Content-Length: 3"),
        "a chunk's size is none": ("Transfer-Encoding: chunked",),
    }
)
async def an_invalid_length_is_refused(target: Target, headers: tuple[str, ...]) -> str:
    """400 (RFC 9112, 6.3 and 7.1): two programs that count differently see different requests in the same bytes."""
    return await judged(target, chat_head(target, *headers) + b"zz\r\n{}\r\n0\r\n\r\n", client_error)


@check()
async def a_body_that_ends_too_early_breaks_nothing(target: Target) -> str:
    """A message that is cut is incomplete (RFC 9112, 8), and its client may not hear an answer any more."""
    request = chat_head(target, "Content-Length: 1000") + b'{"model": '
    return await judged(target, request, refusal, half_close=True)


check(module=__name__)(afterwards_it_answers)
