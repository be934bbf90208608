"""What `hfchat serve http://upstream/v1` adds to a request's time: the same streams straight and through the gateway.

    python -m benchmarks.gateway  # 64 streams at once, 3 minutes
    python -m benchmarks.gateway --streams 8 --pause 0.05
    python -m benchmarks.gateway --serve "--guards default"  # with more in front

A scripted upstream sends 32 small pieces, one each `--pause` seconds after the request, whatever the load, as a GPU
does with a full batch. Each stream is a client on a connection of its own, which sends its next request some random
time after it has its answer. Rounds straight and through the gateway take turns, and a round's requests have the same
pauses as those of the round before, so each has a partner: the table is about the differences.

- first byte: milliseconds from the request to the first text that differ; total: to the end of the stream.
- CPU: milliseconds of the gateway's process for a request; below the table its share of one core meanwhile.

Upstream, gateway and clients are processes of one machine: with fewer than 4 idle cores they disturb each other, and
that counts as the gateway's. The load average is that of the minute before the first round.
"""

import argparse
import asyncio
import json
import os
import random
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import httpx
import numpy as np
from benchmarks.peers import machine, markdown_table
from benchmarks.servers import footprint, free_port, hfchat_serve, started

HEADER = ("added", "streams", "requests", "p50, ms", "p90, ms", "p99, ms", "CPU of a request, ms")
MODEL = "scripted"
PIECES = 32


def _event(fields: dict) -> bytes:
    chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": MODEL, **fields}
    return _http_chunk(b"data: " + json.dumps(chunk).encode() + b"\n\n")


def _http_chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _choice(delta: dict, finish_reason: str | None = None) -> bytes:
    return _event({"choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}]})


async def upstream(port: int, pause: float) -> None:
    """Serve the scripted answer for ever."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    pieces = [_choice({"content": f" word{number}"}) for number in range(PIECES)]
    usage = {"prompt_tokens": 4, "completion_tokens": PIECES, "total_tokens": PIECES + 4}
    end = (
        _choice({}, "stop") + _event({"choices": [], "usage": usage}) + _http_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
    )
    models = json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model"}]}).encode()
    listed = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (
        len(models),
        models,
    )

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        try:
            while head_of_request := await reader.readuntil(b"\r\n\r\n"):
                if head_of_request.startswith(b"GET"):
                    writer.write(listed)
                    continue
                length = head_of_request.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
                await reader.readexactly(int(length))
                begun = loop.time()
                writer.write(head)
                for number, piece in enumerate(pieces, start=1):
                    await asyncio.sleep(begun + number * pause - loop.time())
                    writer.write(piece)
                writer.write(end)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", port, backlog=1024) as server:
        await server.serve_forever()


@dataclass(frozen=True)
class Times:
    """Of one request, in seconds."""

    first: float
    total: float


async def client(port: int, requests: int, spread: float, seed: int) -> list[Times]:
    """Make requests one after the other, on one connection."""
    pauses = random.Random(seed)
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Tell me a story."}], "stream": True}
    content = json.dumps(body).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:%d\r\ncontent-type: application/json\r\n" % port
    request = head + b"content-length: %d\r\n\r\n%s" % (len(content), content)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    times = []
    for _ in range(requests):
        await asyncio.sleep(pauses.uniform(0, spread))
        begun, first, came = time.perf_counter(), None, b""
        writer.write(request)
        while not came.endswith(b"\r\n0\r\n\r\n"):
            came += await reader.read(65536) or _broken_off(came)
            if first is None and b"word0" in came:
                first = time.perf_counter() - begun
        if came.count(b" word") < PIECES:  # pieces that came together are one
            raise SystemExit(f"an answer is not whole: {came.decode()}")
        times.append(Times(first, time.perf_counter() - begun))
    writer.close()
    return times


def _broken_off(came: bytes) -> bytes:
    raise SystemExit(f"an answer broke off: {came.decode()}")


async def one_round(port: int, streams: int, requests: int, spread: float, seed: int) -> list[Times]:
    answered = await asyncio.gather(*(client(port, requests, spread, seed + i) for i in range(streams)))
    return [times for one in answered for times in one]


def row(name: str, streams: int, straight: Sequence[float], through: Sequence[float], cpu: float) -> tuple:
    added = (np.array(through) - np.array(straight)) * 1000
    shares = (float(np.percentile(added, share)) for share in (50, 90, 99))
    return (name, streams, len(added), *shares, cpu / len(added) * 1000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=64, help="at once (%(default)s)")
    parser.add_argument("--pause", type=float, default=0.03, help="seconds between two pieces (%(default)s)")
    parser.add_argument("--requests", type=int, default=10, help="of each stream in a round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="straight, and as many through (%(default)s)")
    parser.add_argument("--serve", default="", metavar="OPTIONS", help="more for `hfchat serve`, in one word")
    parser.add_argument("--upstream", type=int, metavar="PORT", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.upstream:
        return asyncio.run(upstream(args.upstream, args.pause))

    spread = PIECES * args.pause / 2
    load = os.getloadavg()[0]
    straight: list[Times] = []
    through: list[Times] = []
    with ExitStack() as stack:
        port = free_port()
        scripted = [sys.executable, "-m", "benchmarks.gateway", "--upstream", str(port), "--pause", str(args.pause)]
        own = stack.enter_context(started("upstream", scripted, port, MODEL))
        options = ["--max-concurrent-requests", str(args.streams), *shlex.split(args.serve)]
        gateway = stack.enter_context(hfchat_serve(f"{own.url}/v1", *options, served_as=MODEL))
        while httpx.get(f"{gateway.url}/ready").status_code != 200:  # it has not asked its upstream yet
            time.sleep(0.1)
        for server in (own, gateway):  # the first requests are slower
            asyncio.run(one_round(server.port, args.streams, 1, spread, 0))
        cpu = wall = 0.0
        for number in range(args.rounds):
            seed = 1000 * (number + 1)
            straight += asyncio.run(one_round(own.port, args.streams, args.requests, spread, seed))
            before, begun = footprint(gateway.process).cpu_seconds, time.perf_counter()
            through += asyncio.run(one_round(gateway.port, args.streams, args.requests, spread, seed))
            wall += time.perf_counter() - begun
            cpu += footprint(gateway.process).cpu_seconds - before
    rows = [
        row("first byte", args.streams, [one.first for one in straight], [one.first for one in through], cpu),
        row("total", args.streams, [one.total for one in straight], [one.total for one in through], cpu),
    ]
    print(f"{machine()}, load average {load:.1f}\n\n{markdown_table(HEADER, rows)}\n")
    print(f"The gateway took {cpu / wall:.0%} of a core.")


if __name__ == "__main__":
    main()
