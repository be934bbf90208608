"""A server that does everything right, with an engine that costs nothing, and a place to plant a fault in it."""

import asyncio
import contextlib
import random

import pytest

from hfchat.probe.suite import run
from hfchat.probe.target import reach
from hfchat.serving.engines.engine import EngineError, Logprob, Piece, TokenLogprobs
from tests.serving.conftest import MODEL, ScriptedEngine, running

WORDS = ["one ", "two ", "trois ", "vier ", "fünf ", "六 ", "семь ", "👩‍👩‍👧 "]


class Talker(ScriptedEngine):
    """Says words by chance, as many as it may; the same ones for the same seed, and for temperature 0."""

    async def stream(self, prompt, sampling):
        chance = random.Random(sampling.seed if sampling.temperature else 0)
        for left in reversed(range(sampling.max_tokens)):
            if self.error:
                raise EngineError(self.error)
            word = chance.choice(WORDS)
            logprobs = () if sampling.logprobs is None else (self._of(word, sampling.logprobs),)
            yield Piece(word, 1, None if left else "length", logprobs)
            await asyncio.sleep(0.002)

    def _of(self, word, count):
        return TokenLogprobs(*[Logprob(word, -1.0, word.encode())], (Logprob(word, -1.0, word.encode()),) * count)


class Faults:
    """The application, with a fault in front of it: a function of the application and of what ASGI calls it with."""

    def __init__(self, app):
        self.app = app
        self.fault = None

    async def __call__(self, scope, receive, send):
        if self.fault is None or scope["type"] != "http":
            return await self.app(scope, receive, send)
        await self.fault(self.app, scope, receive, send)


class Probed:
    """A server, and what the checks see of it."""

    def __init__(self, served):
        self.url = f"{served.url}/v1"
        self.served = served
        config = served.server.config
        self.faults = config.loaded_app = Faults(config.loaded_app)  # uvicorn looks it up for every connection

    def see(self, chosen, fault=None, patience=1.0, process=None, api_key=None):
        """The results of these checks, one after another, by the checks' names."""

        async def see():
            async with reach(self.url, MODEL, api_key, patience, process) as target:
                self.faults.fault = fault
                return {check.name: await run(target, check) for check in chosen}

        try:
            return asyncio.run(see())
        finally:
            self.faults.fault = None


@contextlib.contextmanager
def probed(**settings):
    with running(Talker(context_length=2000), **settings) as served:
        yield Probed(served)


@pytest.fixture(scope="module")
def server():
    with probed() as server:
        yield server
