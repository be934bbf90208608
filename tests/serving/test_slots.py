"""Places and turns: whatever one key asks for, the next one's small request is served next. No clock in it."""

import asyncio
import json
import socket
import threading
from contextlib import AsyncExitStack, closing

import pytest

from hfchat.serving.http.auth import ApiKeys, hash_key
from hfchat.serving.http.limits import Slots
from hfchat.serving.http.rates import RateLimit
from hfchat.serving.openai.errors import ApiError

KEYS = ApiKeys({"flood": hash_key("flood"), "small": hash_key("small")})
HI = [{"role": "user", "content": "Hi"}]


async def settle():
    for _ in range(20):
        await asyncio.sleep(0)


class Clients:
    """Answers that hold their places until they are told to end; notes who was served, in order."""

    def __init__(self, slots):
        self.slots = slots
        self.served = []
        self.tasks = []
        self._running = []

    def ask(self, key, answers=1, tokens=10):
        reservation = self.slots.reserve(answers, key)
        self.tasks += [asyncio.create_task(self._answer(reservation, key, tokens)) for _ in range(answers)]

    async def _answer(self, reservation, key, tokens):
        async with reservation.take():
            self.served.append(key)
            reservation.charge(tokens)
            end = asyncio.Event()
            self._running.append(end)
            await end.wait()

    async def end_one(self):
        self._running.pop(0).set()
        await settle()

    async def end_all(self):
        while self._running:
            await self.end_one()
        await asyncio.gather(*self.tasks)


@pytest.mark.parametrize(("answers", "requests"), [(1, 40), (40, 1), (8, 5)])
@pytest.mark.parametrize("running", [1, 2, 8])
def test_a_flood_does_not_keep_anothers_request_waiting(running, answers, requests):
    async def work():
        clients = Clients(Slots(running, 40 - running))
        for _ in range(requests):
            clients.ask("flood", answers)
        await settle()
        assert clients.served == ["flood"] * running
        with pytest.raises(ApiError) as refused:
            clients.ask("flood")
        assert refused.value.status == 429
        clients.ask("small")  # it has places of its own, and need not wait for the end of any long answer
        await settle()
        assert clients.served[running:] == ["small"]
        for _ in range(3):  # and its next ones come as soon as there is a place, not after the 32 that came before
            clients.ask("small")
        await settle()
        for _ in range(3):
            await clients.end_one()
        assert "small" in clients.served[running + 1 :][:2]
        await clients.end_all()
        assert len(clients.served) == 44
        assert (clients.slots.running, clients.slots.waiting) == (0, 0)

    asyncio.run(work())


def test_a_place_that_is_given_counts_once():
    async def work():
        slots = Slots(2, 1)

        async def answer():
            async with slots.take():
                await asyncio.sleep(0)

        tasks = [asyncio.create_task(answer()) for _ in range(2)]
        await asyncio.sleep(0)  # both have been given their places, and not gone on yet
        assert (slots.running, slots.waiting) == (2, 0)
        slots.reserve().close()
        await asyncio.gather(*tasks)
        assert (slots.running, slots.waiting) == (0, 0)

    asyncio.run(work())


def test_keys_that_have_as_many_places_come_in_turn_by_their_tokens():
    async def work():
        clients = Clients(Slots(1, 40, extra=0))
        for _ in range(6):
            clients.ask("long", tokens=300)
            clients.ask("short", tokens=100)
        await settle()
        await clients.end_all()
        assert [clients.served[:9].count(key) for key in ("long", "short")] == [3, 6]
        assert len(clients.served) == 12

    asyncio.run(work())


def test_a_key_that_comes_late_has_no_claim_to_the_past():
    async def work():
        clients = Clients(Slots(1, 40, extra=0))
        for _ in range(12):
            clients.ask("old", tokens=100)
        await settle()
        for _ in range(4):
            await clients.end_one()
        for _ in range(6):
            clients.ask("new", tokens=100)
        await settle()
        await clients.end_all()
        assert clients.served[5:].count("old") == 7
        assert 2 <= clients.served[5:11].count("old") <= 4, "both go on"

    asyncio.run(work())


def test_an_answer_of_a_request_that_was_begun_waits_without_an_end():
    async def work():
        slots = Slots(1, 3, max_wait_s=0.05)
        with closing(slots.reserve(2, "a")) as mine:
            async with mine.take():
                second = asyncio.create_task(run(mine))
                await asyncio.sleep(0.15)
                assert not second.done()
                with pytest.raises(ApiError) as refused:  # another request of the same key waits no longer than that
                    async with slots.take("a"):
                        pass
                assert refused.value.status == 503
            await second
        assert (slots.running, slots.waiting) == (0, 0)

    async def run(reservation):
        async with reservation.take():
            pass

    asyncio.run(work())


def test_who_goes_away_leaves_nothing_behind():
    async def work():
        slots = Slots(2, 10)
        async with AsyncExitStack() as held:
            for _ in range(2):
                await held.enter_async_context(slots.take("a"))
            waiting = [asyncio.create_task(hold(slots, "a")) for _ in range(3)]
            await settle()
            assert (slots.running, slots.waiting) == (2, 3)
            waiting[0].cancel()
            await settle()
            assert (slots.running, slots.waiting) == (2, 2)
        # now both places are given to the others; one of them is cancelled at that very moment
        waiting[1].cancel()
        await settle()
        assert slots.waiting == 0
        waiting[2].cancel()
        await settle()
        assert (slots.running, slots.waiting) == (0, 0)

    async def hold(slots, key):
        async with slots.take(key):
            await asyncio.sleep(3600)

    asyncio.run(work())


def test_an_answer_counts_as_many_times_as_it_is_asked_for():
    now = 0.0
    limit = RateLimit(per_minute=60, clock=lambda: now)
    assert limit.spend("a", 60) == 0
    assert limit.spend("a", 40) == pytest.approx(40)
    assert limit.spend("a", 1) == pytest.approx(1)  # what was refused took nothing
    assert limit.spend("b", 60) == 0
    now = 40.0
    assert limit.spend("a", 40) == 0


def test_tokens_are_paid_afterwards():
    now = 0.0
    limit = RateLimit(per_minute=60, clock=lambda: now)
    assert limit.spend("a", 0) == 0
    limit.charge("a", 90)
    assert limit.spend("a", 0) == pytest.approx(30)
    now = 29.0
    limit.charge("a", 0)
    assert limit.spend("a", 0) == pytest.approx(1)
    limit.charge("a", 10**9)  # a minute, and no more
    assert limit.spend("a", 0) == pytest.approx(60)
    assert limit.spend("b", 0) == 0
    now = 1e6
    assert limit.spend("a", 60) == 0


# --------------------------------------------------------------------------------------------------- over the server


@pytest.mark.parametrize("stream", [False, True])
def test_rates_count_tokens(serve, scripted, stream):
    served = serve(scripted(), keys=KEYS, tokens_per_minute=20)  # an answer is 5, its prompt 2
    for _ in range(2):
        assert ask(served, "flood", stream=stream).status_code == 200
    assert ask(served, "flood", n=2, stream=stream).status_code == 200
    refused = ask(served, "flood", stream=stream)
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert ask(served, "small", stream=stream).status_code == 200


def ask(served, key, path="/v1/chat/completions", **fields):
    body = (
        {"model": "tiny-chat"} | ({"prompt": "Hi"} if path.endswith("/v1/completions") else {"messages": HI}) | fields
    )
    return served.http.post(path, json=body, headers={"Authorization": f"Bearer {key}"})


@pytest.mark.parametrize("stream", [False, True])
def test_rates_count_answers(serve, scripted, stream):
    served = serve(scripted(), keys=KEYS, requests_per_minute=10)
    too_many = ask(served, "flood", n=11, stream=stream)
    assert too_many.status_code == 400
    assert too_many.json()["error"]["param"] == "n"
    assert ask(served, "flood", n=8, stream=stream).status_code == 200
    refused = ask(served, "flood", n=8, stream=stream)
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert ask(served, "small", path="/v1/completions", prompt=["a", "b", "c"], n=3, stream=stream).status_code == 200
    assert ask(served, "small", path="/v1/completions", prompt=["a", "b"], stream=stream).status_code == 429


def test_one_keys_flood_leaves_anothers_places_alone(serve, scripted, eventually):
    served = serve(scripted(held=True), keys=KEYS, max_concurrent_requests=2, max_waiting_requests=6)
    answers = []
    flood = threading.Thread(target=lambda: answers.append(ask(served, "flood", n=8)))
    flood.start()
    eventually(lambda: served.http.get("/health").json()["waiting"] == 6)
    assert ask(served, "flood").status_code == 429
    small = threading.Thread(target=lambda: answers.append(ask(served, "small")))
    small.start()
    eventually(lambda: served.engine.active == 3)  # it was begun beside those of the flood
    served.engine.release()
    small.join(10)
    flood.join(10)
    assert sorted(len(answer.json()["choices"]) for answer in answers) == [1, 8]


def test_a_client_that_does_not_read_keeps_no_place(serve, scripted, eventually):
    served = serve(scripted(pieces=["x" * 30_000] * 250), max_concurrent_requests=1)
    body = json.dumps({"model": "tiny-chat", "messages": HI, "stream": True}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        eventually(lambda: served.engine.started == 1)
        eventually(lambda: served.http.get("/health").json()["running"] == 0, 20)
        connection.settimeout(5)
        assert connection.recv(12) == b"HTTP/1.1 200"  # it is still there


@pytest.mark.parametrize("stop", ["x" * 513, ["a", "x" * 900_000], ["a"] * 5])
def test_stop_strings_are_bounded(serve, scripted, stop):
    served = serve(scripted())
    refused = served.chat(stop=stop)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"].startswith("stop")
    assert served.chat(stop=["x" * 512] * 4).status_code == 200


@pytest.mark.parametrize(("seed", "seeds"), [(2**63 - 1, [2**63 - 1, -(2**63), 1 - 2**63]), (-2, [-2, -1, 0])])
def test_the_seeds_of_several_answers_stay_within_64_bits(serve, scripted, seed, seeds):
    served = serve(scripted())
    assert served.chat(seed=seed, n=3).status_code == 200
    assert sorted(sampling.seed for sampling in served.engine.samplings) == sorted(seeds)


def test_extremes_of_sampling_are_bounded_for_every_engine(serve, scripted):
    served = serve(scripted(context_length=None))  # as where only an upstream knows it
    assert served.chat(temperature=1e-39, max_tokens=2**31 - 1).status_code == 200
    assert served.engine.samplings[0].temperature == 0.01
    assert served.chat(temperature=0).status_code == 200
    assert served.engine.samplings[1].temperature == 0
    refused = served.chat(max_tokens=10**30)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "max_tokens"


def test_prompts_that_are_being_read_are_counted_and_have_a_limit_of_time(serve, scripted, eventually):
    engine = scripted()

    async def never(messages):
        await asyncio.sleep(3600)

    engine.encode = never
    served = serve(engine, max_wait_seconds=0.3)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(served.chat()))
    thread.start()
    eventually(lambda: served.http.get("/health").json()["waiting"] == 1)
    assert "hfchat_answers_waiting 1.0" in served.http.get("/metrics").text
    thread.join(10)
    assert answers[0].status_code == 503
    assert answers[0].json()["error"]["code"] == "queue_timeout"
    assert served.http.get("/health").json()["waiting"] == 0
