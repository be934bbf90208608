"""`/ready`: a token was really generated, and probes do not make the engine do it again and again."""

import asyncio
import time

import pytest

from hfchat.serving.engines.engine import EngineError
from hfchat.serving.http.limits import Gate
from hfchat.serving.openai.errors import ApiError
from hfchat.serving.versions import readiness
from hfchat.serving.versions.readiness import Readiness


class Engine:
    def __init__(self, *outcomes):
        self.error = None
        self.outcomes = list(outcomes)
        self.asked = 0

    async def ready(self):
        self.asked += 1
        outcome = self.outcomes.pop(0)
        if outcome == "hang":
            await asyncio.sleep(3600)
        if outcome is not None:
            raise EngineError(outcome)


def status(check) -> int:
    try:
        asyncio.run(check())
    except ApiError as error:
        return error.status
    return 200


def test_many_probes_are_one_token():
    engine = Engine(None)
    check = Readiness(engine, Gate())

    async def probes():
        await asyncio.gather(*(check.check() for _ in range(20)))
        await check.check()

    asyncio.run(probes())
    assert engine.asked == 1


@pytest.mark.parametrize("outcome", ["out of memory", "hang"])
def test_a_failure_is_told_and_forgotten(monkeypatch, outcome):
    monkeypatch.setattr(readiness, "_PATIENCE_S", 0.05)
    engine = Engine(outcome, None)
    check = Readiness(engine, Gate()).check
    assert status(check) == 503
    assert status(check) == 503
    assert engine.asked == 1
    later = time.monotonic() + 60
    monkeypatch.setattr(readiness.time, "monotonic", lambda: later)
    assert status(check) == 200


def test_a_crash_and_a_shutdown_show_at_once():
    engine, gate = Engine(None), Gate()
    check = Readiness(engine, gate).check
    assert status(check) == 200
    engine.error = "crashed"
    assert status(check) == 503
    engine.error = None
    assert status(check) == 200
    gate.closed = True
    assert status(check) == 503
