"""Clients that go away: nothing is computed for them any more, and their places are free.

A server that does not notice it computes answers that nobody reads, and a few impatient users who reload are enough to
fill it. Where the server tells how much it is working on, at `/metrics` or `/health`, that must be 0 within a second.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator

from hfchat.probe.registry import check
from hfchat.probe.target import LONG, Target, text_of
from hfchat.probe.verdicts import FailedError, SkippedError
from hfchat.probe.wire import Wire, chat_head, wire

_FREE_S = 1.0
_ANSWER_S = 15.0
_MANY = 24


async def forgotten(target: Target, working: bool | None) -> str:
    """Wait until the server has forgotten clients that left, and answers another one.

    Args:
        target: The server.
        working: Whether it said before that it was working for them; None if it does not tell.
    """
    seen = "it does not tell whether it still works for them"
    if working is not None:
        limit = target.limit(_FREE_S)
        began = time.monotonic()
        while in_flight := await target.in_flight():
            if time.monotonic() - began > limit:
                raise FailedError(f"{in_flight:g} are still in flight {limit:g} s later")
            await asyncio.sleep(0.02)
        seen = f"none in flight {time.monotonic() - began:.2f} s later"
    async with target.within(_ANSWER_S, f"{seen}; another client has no answer after {{limit}}"):
        text_of(await target.answer(max_tokens=1))
    return seen


@contextlib.asynccontextmanager
async def asking(target: Target, stream: bool, receive_buffer: int | None = None) -> AsyncIterator[Wire]:
    """A connection on which a long answer has been asked for."""
    body = json.dumps(target.chat_body(max_tokens=LONG, stream=stream)).encode()
    async with wire(target, receive_buffer) as connection:
        await connection.send(chat_head(target, f"Content-Length: {len(body)}") + body)
        yield connection


async def _working(target: Target, at_least: int = 1) -> bool | None:
    """Whether the server works for the clients that are there now; None if it does not tell."""
    if await target.in_flight() is None:
        await asyncio.sleep(0.3)
        return None
    for _ in range(100):
        if (await target.in_flight() or 0) >= at_least:
            return True
        await asyncio.sleep(0.01)
    raise SkippedError("the answer was over before the client could leave")


@check()
async def a_client_leaves_in_the_middle_of_a_stream(target: Target) -> str:
    """A person presses stop."""
    async with target.streaming(max_tokens=LONG) as response:
        parts = response.aiter_bytes()
        await anext(parts)
        working = await _working(target)
    return await forgotten(target, working)


@check()
async def a_client_leaves_while_it_waits_for_a_whole_answer(target: Target) -> str:
    """Its own time limit is over, and it will try again."""
    async with asking(target, stream=False):
        working = await _working(target)
    return await forgotten(target, working)


@check()
async def a_client_crashes(target: Target) -> str:
    """Its system resets the connection (RST, RFC 9293, 3.5.2)."""
    async with asking(target, stream=True) as connection:
        working = await _working(target)
        connection.reset()
    return await forgotten(target, working)


@check({"streamed": True, "unstreamed": False})
async def many_clients_leave_while_they_wait(target: Target, stream: bool) -> str:
    """They are more than the server answers at a time, so some of them are still in the queue."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(_MANY):
            await stack.enter_async_context(asking(target, stream))
        working = await _working(target, at_least=_MANY // 2)
    return await forgotten(target, working)


@check()
async def a_client_leaves_before_its_body_is_whole(target: Target) -> str:
    """It loses its network."""
    async with wire(target) as connection:
        await connection.send(chat_head(target, "Content-Length: 1000") + b'{"model": ')
        await asyncio.sleep(0.1)
    return await forgotten(target, None if await target.in_flight() is None else False)
