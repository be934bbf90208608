"""Whether feedback that a server has acknowledged is ever lost: `hfchat serve` is killed (SIGKILL) at random moments.

    python -m benchmarks.feedback_kills  # 20 kills; some minutes, most of them the starts of the server
    python -m benchmarks.feedback_kills --kills 3 --database postgresql://hfchat@localhost/feedback

Clients chat with a tiny model of random weights and say something of each answer: a thumb, and to every third answer
then a correction in its place. What got a 200 must be in the database afterwards, and of each answer one opinion may
hold. SIGKILL takes the process and leaves the system its caches; a loss of power would need another machine to show.
"""

import argparse
import asyncio
import os
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

import httpx
from benchmarks.peers import machine, markdown_table
from benchmarks.servers import Server, hfchat_serve, random_model

from hfchat.feedback.database import open_database
from hfchat.feedback.reading import rows

HEADER = (
    "kills",
    "acknowledged",
    "lost",
    "held twice",
    "cut off while sending",
    "not acknowledged but stored",
    "file",
)
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}


async def clients(server: Server, parallel: int, acknowledged: set[str], outcomes: Counter[str]) -> None:
    """Chat and give feedback until the server is gone."""

    async def say(client: httpx.AsyncClient, answer_id: str, **said: str) -> None:
        outcomes["cut off"] += 1
        response = await client.post("/v1/feedback", json={"answer_id": answer_id} | said)
        outcomes["cut off"] -= 1
        response.raise_for_status()
        acknowledged.add(response.json()["id"])

    async def client(number: int) -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            for turn in range(1_000_000):
                messages = [{"role": "user", "content": f"Client {number}, question {turn}."}]
                body = {"model": server.model, "messages": messages, "max_tokens": 2}
                answer = (await client.post("/v1/chat/completions", json=body)).raise_for_status().json()
                await say(client, answer["id"], rating="up" if turn % 2 else "down")
                if turn % 3 == 0:
                    await say(client, answer["id"], rating="down", correction="It is so. " * 20)

    async def until_it_is_gone(number: int) -> None:
        try:
            await client(number)
        except httpx.TransportError:
            return

    await asyncio.gather(*map(until_it_is_gone, range(parallel)))


def kill_once(model: Path, database: str, parallel: int, moment: float, acknowledged: set[str]) -> int:
    """Kill a server that is being used; how many opinions were on their way to it."""
    outcomes: Counter[str] = Counter()

    async def use(server: Server) -> None:
        using = asyncio.create_task(clients(server, parallel, acknowledged, outcomes))
        await asyncio.sleep(moment)
        server.process.kill()
        await using

    with hfchat_serve(str(model), "--feedback", database) as server:
        asyncio.run(use(server))
    return outcomes["cut off"]


def check(database: str, acknowledged: set[str]) -> tuple[int, int, int, str]:
    """How many opinions are lost, how many answers have two that hold, how many were stored without a reply, and what
    the database says of its own state."""
    engine = open_database(database)
    state = "not checked"
    if engine.dialect.name == "sqlite":
        with engine.connect() as connection:
            state = connection.exec_driver_sql("PRAGMA integrity_check").scalar()
    stored: set[str] = set()
    twice = 0
    for row in rows(engine):
        stored |= {said["id"] for said in row["feedback"]}
        twice += sum(said["replaced_at"] is None for said in row["feedback"]) > 1
    engine.dispose()
    return len(acknowledged - stored), twice, len(stored - acknowledged), state


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="how many (%(default)s)")
    parser.add_argument("--parallel", type=int, default=4, help="clients at a time (%(default)s)")
    parser.add_argument("--database", help="an empty one (an SQLite file)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (%(default)s)")
    args = parser.parse_args(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    moments = random.Random(args.seed)
    acknowledged: set[str] = set()
    cut_off = 0
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "tiny")
        random_model(model, **SHAPE)
        database = args.database or str(Path(folder, "feedback.db"))
        for number in range(args.kills):
            cut_off += kill_once(model, database, args.parallel, moments.uniform(0.2, 3), acknowledged)
            print(f"{number + 1} of {args.kills} kills: {len(acknowledged)} acknowledged", file=sys.stderr)
        lost, twice, unknown, state = check(database, acknowledged)
    print(machine())
    print(markdown_table(HEADER, [(args.kills, len(acknowledged), lost, twice, cut_off, unknown, state)]))
    sys.exit(1 if lost or twice else 0)


if __name__ == "__main__":
    main()
