"""How long a small request of one API key waits while another key floods the server.

    python -m benchmarks.fairness  # a random model of 4 layers x 256, about 5 minutes on two cores
    python -m benchmarks.fairness --model outputs/mine/assistant/merged --rounds 10
    python -m benchmarks.fairness --serve "--engine llamacpp"  # more options for `hfchat serve`

Its turn is what the request takes beside an ordinary one of the other key: the other key asks for the same, one answer
after the other. A flood may cost it at most twice that.

- alone: nobody else is there.
- turn: as above.
- answers: `n` is 8, five such requests at a time.
- requests: 40 at a time.
- long answers: 8 at a time, each as long as the context.
- long prompts: 8 at a time, each as long as the context.
- encoding: 8 bodies at a time of nearly 1 MB, which no context holds.

Server and clients are processes of one machine: read the ratios, not the seconds.
"""

import argparse
import asyncio
import random
import shlex
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
from benchmarks.peers import machine, markdown_table
from benchmarks.servers import hfchat_serve, random_model

from hfchat.serving.http.auth import new_key

HEADER = ("beside", "p50, s", "p90, s", "of its turn")
CONTEXT = 2048
SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "eos_token_id": None,  # its answers are as long as they may be
}
TOKENS = 24
SMALL = {"prompt": "the quick brown fox", "max_tokens": TOKENS}


def _long_prompt() -> dict:
    """Another one each time: the engine knows the beginnings that it has read."""
    return {"prompt": [random.randrange(5, 500) for _ in range(CONTEXT - 2)], "max_tokens": 1}


# How many at a time, and what makes a body.
FLOODS: dict[str, tuple[int, Callable[[], dict]]] = {
    "turn": (1, lambda: SMALL),
    "answers": (5, lambda: SMALL | {"n": 8}),
    "requests": (40, lambda: SMALL),
    "long answers": (8, lambda: {"prompt": "the", "max_tokens": CONTEXT - 100}),
    "long prompts": (8, _long_prompt),
    "encoding": (8, lambda: {"prompt": "<|im_end|>" * 95_000, "max_tokens": 1}),
}


def two_keys() -> tuple[dict[str, str], dict[str, str]]:
    """The key of each of two names, and the environment of a server that knows them."""
    keys = {name: new_key(name) for name in ("small", "flood")}
    entries = ",".join(entry for _, entry in keys.values())
    return {name: key for name, (key, _) in keys.items()}, {"HFCHAT_API_KEYS": entries}


async def ask(client: httpx.AsyncClient, key: str, body: dict) -> int:
    headers = {"Authorization": f"Bearer {key}"}
    response = await client.post("/v1/completions", json={"model": "model", "temperature": 0} | body, headers=headers)
    return response.status_code


async def flood(client: httpx.AsyncClient, key: str, at_a_time: int, body: Callable[[], dict]) -> None:
    """Ask without an end."""

    async def one() -> None:
        while True:
            if await ask(client, key, body()) == 429:
                await asyncio.sleep(0.05)

    await asyncio.gather(*(one() for _ in range(at_a_time)))


async def measure(url: str, keys: dict[str, str], requests: int, beside: tuple[int, Callable] | None) -> list[float]:
    """Seconds of each of some small requests, one after the other."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=None, limits=limits) as client:
        task = asyncio.create_task(flood(client, keys["flood"], *beside)) if beside else None
        await asyncio.sleep(2 if beside else 0)  # until it is at work
        seconds = []
        for _ in range(requests):
            begun = time.perf_counter()
            status = await ask(client, keys["small"], SMALL)
            if status != 200:
                raise SystemExit(f"a small request was answered {status}")
            seconds.append(time.perf_counter() - begun)
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
    return seconds


def table(measured: Callable[[tuple[int, Callable] | None], list[float]], rounds: int) -> list[tuple]:
    """A row for each kind of flood.

    Args:
        measured: Seconds of the small requests beside what it is given.
        rounds: How often; all kinds take turns, so that what else the machine does is in all of them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ("alone", *FLOODS)}
    for _ in range(rounds):
        for name, of_one in seconds.items():
            of_one += measured(FLOODS.get(name))
    turn = float(np.median(seconds["turn"]))
    rows = []
    for name, one in seconds.items():
        p50, p90 = (float(np.percentile(one, share)) for share in (50, 90))
        rows.append((name, p50, p90, p50 / turn))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder or a Hub id (a random model)")
    parser.add_argument("--requests", type=int, default=4, help="small ones beside each flood (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of all floods (%(default)s)")
    parser.add_argument("--serve", default="", metavar="OPTIONS", help="more for `hfchat serve`, in one word")
    args = parser.parse_args()
    keys, environment = two_keys()
    with tempfile.TemporaryDirectory() as folder:
        if args.model is None:
            random_model(Path(folder), **SHAPE)
        options = shlex.split(args.serve)
        with hfchat_serve(args.model or folder, *options, environment=environment) as server:
            asyncio.run(measure(server.url, keys, 2, None))  # the first ones are slower
            rows = table(lambda beside: asyncio.run(measure(server.url, keys, args.requests, beside)), args.rounds)
    print(f"{machine()}\n\n{markdown_table(HEADER, rows)}")


if __name__ == "__main__":
    main()
