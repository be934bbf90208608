"""Many clients at once, some of which leave and some of which send nonsense: nothing breaks, and nothing stays.

`benchmarks/soak.py` does the same with a real model, and looks at the memory.
"""

import asyncio
import gc
import itertools

import httpx

from hfchat.serving.http.record import RequestRecord
from hfchat.serving.openai.generation import AnswerResponse

MODEL = "tiny-chat"
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
BAD = ["{", "[]", '{"model": "tiny-chat"}', '{"model": "tiny-chat", "messages": [{"role": "user", "content": 1}]}']


async def one(client: httpx.AsyncClient, index: int) -> int:
    """The status of one request: the tenth leaves in mid-answer, the one after it is nonsense, half of them stream."""
    if index % 10 == 0:
        async with client.stream("POST", "/v1/chat/completions", json=BODY | {"stream": True, "n": 2}) as response:
            async for _ in response.aiter_raw():
                return response.status_code
    if index % 10 == 1:
        headers = {"content-type": "application/json"}
        return (await client.post("/v1/completions", content=BAD[index // 10 % 4], headers=headers)).status_code
    return (await client.post("/v1/chat/completions", json=BODY | {"stream": index % 2 == 0})).status_code


async def soak(url: str, requests: int, parallel: int) -> list[int]:
    indexes = iter(range(requests))

    async def client() -> list[int]:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            return [await one(client, index) for index in indexes]

    return list(itertools.chain(*await asyncio.gather(*(client() for _ in range(parallel)))))


def test_a_thousand_requests_leave_nothing_behind(serve, scripted, eventually):
    engine = scripted()
    loops = []

    async def start():
        loops.append(asyncio.get_running_loop())

    engine.start = start
    served = serve(engine, max_concurrent_requests=8, max_waiting_requests=64)

    def alive():
        gc.collect()
        return sum(isinstance(thing, AnswerResponse | RequestRecord) for thing in gc.get_objects())

    asyncio.run(soak(served.url, 40, 4))  # so that what is made once is there
    served.http.close()
    eventually(lambda: not served.server.server_state.connections)
    tasks, before = len(asyncio.all_tasks(loops[0])), alive()

    statuses = asyncio.run(soak(served.url, 1000, 32))
    assert len(statuses) == 1000
    assert statuses.count(200) == 900
    assert statuses.count(400) == 100
    eventually(lambda: not served.server.server_state.connections)
    assert served.server.config.app.state.gate.inside == 0
    assert engine.active == 0
    health = httpx.get(f"{served.url}/health").json()
    assert (health["running"], health["waiting"]) == (0, 0)
    eventually(lambda: len(asyncio.all_tasks(loops[0])) <= tasks)
    eventually(lambda: alive() <= before, 20)  # the timers of closed connections keep theirs for some seconds
