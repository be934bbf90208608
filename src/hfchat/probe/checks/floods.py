"""More at once than the server has room for: each is answered or told to come back, and nobody waits for ever."""

import asyncio
import contextlib
from collections import Counter

import httpx

from hfchat.probe.checks.disconnects import forgotten
from hfchat.probe.registry import check
from hfchat.probe.target import Target, refusal, text_of
from hfchat.probe.verdicts import FailedError
from hfchat.probe.wire import wire

_REQUESTS = 120
_BROKEN = 200
_CONNECTIONS = 300
_HANG_S = 150.0


@check({"unstreamed": False, "streamed": True})
async def more_requests_than_places(target: Target, stream: bool) -> str:
    """200, 429 or 503 for each, the latter two with `Retry-After` and as errors (RFC 6585, 4; RFC 9110, 15.6.4).

    A queue without an end answers all of them when nobody waits any more.
    """
    body, limit = target.chat_body(max_tokens=4, stream=stream), target.limit(_HANG_S)
    posts = [target.client.post("chat/completions", json=body, timeout=limit) for _ in range(_REQUESTS)]
    async with target.within(_HANG_S, f"not all {_REQUESTS} are answered after {{limit}}"):
        responses = await asyncio.gather(*posts)
    for response in responses:
        if response.status_code != 200:
            seen = refusal(response, statuses=(429, 503))
            if "retry-after" not in response.headers:
                raise FailedError(f"{seen}, but no `Retry-After`")
        elif stream and b"[DONE]" not in response.content:
            raise FailedError(f"a stream without an end: ...{response.text[-80:]!r}")
    counts = Counter(response.status_code for response in responses)
    seen = ", ".join(f"{count} x {status}" for status, count in sorted(counts.items()))
    return f"{seen}; {await forgotten(target, None if await target.in_flight() is None else True)}"


@check()
async def many_broken_requests(target: Target) -> str:
    """They are cheap to make, and all are refused."""
    post = target.client.post
    json = {"Content-Type": "application/json"}
    responses = await asyncio.gather(*(post("chat/completions", content="{", headers=json) for _ in range(_BROKEN)))
    for response in responses:
        refusal(response)
    return f"{_BROKEN} x {responses[0].status_code}"


@check({"silent": b"", "with half a head": b"GET / HTTP/1.1\r\nX-Half: "})
async def many_idle_connections(target: Target, sent: bytes) -> str:
    """They keep nobody else out."""
    limit = target.limit(15)
    async with contextlib.AsyncExitStack() as stack:
        with contextlib.suppress(OSError):
            for _ in range(_CONNECTIONS):
                connection = await stack.enter_async_context(wire(target))
                await connection.send(sent)
        try:
            async with asyncio.timeout(limit):
                answer = text_of(await target.answer(max_tokens=1))
        except (TimeoutError, httpx.HTTPError) as error:
            raise FailedError(f"beside {_CONNECTIONS} of them: {type(error).__name__}") from None
    return f"beside {_CONNECTIONS} of them: {answer!r}"
