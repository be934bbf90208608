"""Clients that are slow, by nature or on purpose: they keep nobody else out, and are cut in the end."""

import contextlib
import time

from hfchat.probe.checks.disconnects import asking
from hfchat.probe.registry import check
from hfchat.probe.target import Target, text_of
from hfchat.probe.verdicts import FailedError
from hfchat.probe.wire import Wire, chat_head, wire

_READERS = 4
_ANSWER_S = 30.0
_CUT_S = 75.0  # nginx gives a head, and each part of a body, 60 s
_DRIP_S = 0.5


@check()
async def readers_that_never_read_block_nobody(target: Target) -> str:
    """They ask for streams and read none of them; a server that waits for one of them answers nobody."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(_READERS):
            await stack.enter_async_context(asking(target, stream=True, receive_buffer=1024))
        began = time.monotonic()
        async with target.within(_ANSWER_S, "another client has no answer after {limit}"):
            text_of(await target.answer())
    return f"another client was answered in {time.monotonic() - began:.2f} s beside {_READERS} of them"


async def _cut(target: Target, connection: Wire, drip: bytes) -> str:
    """How long the server keeps a client that sends a byte now and then, or nothing."""
    began = time.monotonic()
    limit = target.limit(_CUT_S)
    while not await connection.closed(target.limit(_DRIP_S)):
        if time.monotonic() - began > limit:
            raise FailedError(f"still connected after {limit:g} s")
        if drip:
            await connection.send(drip)
    return f"cut after {time.monotonic() - began:.1f} s"


@check(waits=True)
async def a_head_that_never_ends_is_cut(target: Target) -> str:
    """A letter comes every half a second ("slowloris"): a few hundred such clients use up a server's connections."""
    async with wire(target) as connection:
        await connection.send(chat_head(target).removesuffix(b"\r\n") + b"X-Slow: ")
        return await _cut(target, connection, b"a")


@check(waits=True)
async def a_body_that_never_ends_is_cut(target: Target) -> str:
    """A space comes every half a second; it must not be enough that the client is not silent."""
    async with wire(target) as connection:
        await connection.send(chat_head(target, "Content-Length: 100000") + b"{")
        return await _cut(target, connection, b" ")


@check(waits=True)
async def a_silent_connection_is_cut(target: Target) -> str:
    """It is opened and never used."""
    async with wire(target) as connection:
        return await _cut(target, connection, b"")
