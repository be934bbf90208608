"""SIGTERM in the middle of streams: new requests are refused, running answers end as they should, and so does the
process.

That is how service managers, containers and Kubernetes stop a server at every update
(https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#pod-termination).
"""

import asyncio
import contextlib
import re
import time
from dataclasses import dataclass

import httpx

from hfchat.probe.registry import check
from hfchat.probe.target import LONG, Target, summary
from hfchat.probe.verdicts import FailedError, SkippedError

_STREAMS = 3
_NEW_S = 0.3  # until the signal has been heard
_END_S = 60.0


@dataclass(frozen=True)
class _Shutdown:
    """What was seen while the server shut down.

    Attributes:
        streams: Each stream as far as it came.
        new: What a new request got; None if nobody listened any more.
        seconds: From the signal to the end of the process; None if it did not end.
    """

    streams: list[str]
    new: httpx.Response | None
    seconds: float | None


async def _shut_down(target: Target) -> _Shutdown:
    if target.process is None:
        raise SkippedError("needs --pid or --command")

    # The signal comes when all of them are in the middle of their answers.
    begun = [asyncio.Event() for _ in range(_STREAMS)]
    reading = [asyncio.create_task(_read(target, event)) for event in begun]
    await asyncio.gather(*(event.wait() for event in begun))
    began = time.monotonic()
    target.process.terminate()
    await asyncio.sleep(target.limit(_NEW_S))
    new = None
    with contextlib.suppress(httpx.ConnectError, httpx.ReadError, httpx.RemoteProtocolError):
        new = await target.chat(max_tokens=1)

    # The server may take its time to end them, and then itself.
    limit = target.limit(_END_S)
    await asyncio.wait(reading, timeout=limit)
    for task in reading:
        task.cancel()
    streams = await asyncio.gather(*reading)
    while target.process.is_running() and time.monotonic() - began < limit:
        await asyncio.sleep(0.05)
    seconds = None if target.process.is_running() else time.monotonic() - began
    return _Shutdown(streams, new, seconds)


async def _read(target: Target, begun: asyncio.Event) -> str:
    received = b""
    try:
        async with target.streaming(max_tokens=LONG) as response:
            async for part in response.aiter_raw():
                received += part
                if received.count(b"data: ") > 2:
                    begun.set()
    except (httpx.HTTPError, FailedError, asyncio.CancelledError):
        pass  # that it is cut is judged by its text
    begun.set()
    return received.decode(errors="replace")


@check()
async def every_stream_has_an_end(target: Target) -> str:
    """It has a `finish_reason` or an event with an error; half an answer would look whole without them."""
    streams = (await target.once(_shut_down)).streams
    cut = [text for text in streams if not re.search(r'"finish_reason": ?"|"error": ?\{', text)]
    if cut:
        raise FailedError(f"{len(cut)} of {len(streams)} were cut, one after ...{cut[0][-60:]!r}")
    errors = sum('"error"' in text for text in streams)
    return f"{len(streams) - errors} finished, {errors} ended with an error"


@check()
async def new_requests_are_refused(target: Target) -> str:
    """503 (RFC 9110, 15.6.4) or no connection, so that a load balancer takes another server."""
    new = (await target.once(_shut_down)).new
    if new is None:
        return "nobody listens"
    if new.status_code != 503:
        raise FailedError(f"503 expected, not {summary(new)}")
    return summary(new)


@check()
async def the_process_ends(target: Target) -> str:
    """In time, and with status 0 if the probe has started it: a service manager takes any other for a crash."""
    seconds = (await target.once(_shut_down)).seconds
    if seconds is None:
        raise FailedError(f"it still runs {target.limit(_END_S):g} s after SIGTERM")
    status = target.process.exit_status if target.process else None
    if status:
        raise FailedError(f"exit status {status} after {seconds:.1f} s")
    return f"{'exit status 0' if status == 0 else 'ended'} after {seconds:.1f} s"
