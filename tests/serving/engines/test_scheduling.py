"""How many steps a small answer takes beside a flood of long prompts: counted, with a step for the clock's second."""

import asyncio
import itertools

import pytest

from hfchat.serving.engines import continuous_batching
from hfchat.serving.engines.continuous_batching import FairScheduler
from hfchat.serving.engines.engine import Sampling
from hfchat.serving.engines.transformers_engine import TokenPrompt, TransformersEngine
from hfchat.serving.http import record

TOKENS = 12
LONG = TokenPrompt([7] * 400)
SMALL = TokenPrompt([5, 6, 7])


@pytest.fixture
def steps(monkeypatch):
    """The number of the step, which is also the time."""
    count, now = itertools.count(), [0]

    def tick():
        now[0] = next(count)
        return now[0]

    monkeypatch.setattr(FairScheduler, "clock", staticmethod(tick))
    return now


@pytest.fixture
def engine(tiny_model, tiny_tokenizer, monkeypatch, steps):
    monkeypatch.setattr(continuous_batching, "_BATCH_TOKENS", {"cpu": 64})
    engine = TransformersEngine(tiny_model, tiny_tokenizer, 12)
    engine._prompting.ends = set()  # so that each answer has all of its tokens
    engine._manager = engine._new_manager()
    return engine


async def ask(engine, key, prompt, tokens):
    record._current.set(record.RequestRecord(key_name=key))
    return [piece async for piece in engine.stream(prompt, Sampling(max_tokens=tokens, temperature=0.0))]


def during(engine, work):
    async def body():
        await engine.start()
        assert isinstance(engine._manager.batch_processor.scheduler, FairScheduler)
        try:
            return await work()
        finally:
            await engine.stop()

    return asyncio.run(body())


@pytest.mark.parametrize("flood", [(LONG, 1), (LONG, 100), (SMALL, 300)], ids=["long prompts", "both", "long answers"])
def test_a_small_answer_takes_at_most_twice_its_steps_beside_a_flood(engine, steps, flood):
    async def work():
        floods = [asyncio.create_task(ask(engine, "flood", *flood)) for _ in range(10)]
        await until(lambda: len(engine._manager.batch_processor.scheduler.active_requests) > 0)
        began = steps[0]
        await ask(engine, "small", SMALL, TOKENS)
        taken = steps[0] - began
        answers = await asyncio.gather(*floods)
        assert [sum(piece.tokens for piece in pieces) for pieces in answers] == [flood[1]] * 10
        return taken

    # one step reads the prompt and makes the first token, and one before it was begun already
    assert TOKENS <= during(engine, work) <= 1.5 * TOKENS + 3


def test_the_answers_are_those_without_turns(engine, tiny_model, tiny_tokenizer):
    """Greedy answers of several keys, whose prompts are read in parts and in turn."""
    prompts = [
        TokenPrompt([start, *range(10, 10 + length)]) for start, length in ((5, 3), (6, 200), (7, 90), (8, 250))
    ]
    keys = ["a", "b", "c", "b"]

    async def together():
        return await asyncio.gather(*(ask(engine, *one, 20) for one in zip(keys, prompts, strict=True)))

    async def alone():
        return [await ask(engine, "a", prompt, 20) for prompt in prompts]

    async def both():
        return await together(), await alone()

    crowded, expected = during(engine, both)
    texts = [["".join(piece.text for piece in pieces) for pieces in answers] for answers in (crowded, expected)]
    assert texts[0] == texts[1]


def test_a_key_alone_reads_as_much_as_a_step_can(engine, steps):
    async def work():
        began = steps[0]
        await asyncio.gather(*(ask(engine, "only", LONG, 1) for _ in range(4)))
        return steps[0] - began

    assert during(engine, work) <= 4 * 400 / 64 + 8


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)
