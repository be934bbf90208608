"""Time limits for waits that follow each other, without a timer for each."""

import asyncio

import pytest

from hfchat.serving.patience import Patience


def test_it_ends_a_wait_and_every_later_one():
    async def run():
        async with Patience(asyncio.get_running_loop().time() + 0.02) as patience:
            assert await patience.wait(asyncio.sleep(0, "in time")) == "in time"
            for _ in range(2):
                with pytest.raises(TimeoutError):
                    await patience.wait(asyncio.sleep(60))
            assert patience.is_over
        return asyncio.current_task().cancelling()

    assert asyncio.run(run()) == 0


def test_what_lies_between_two_waits_is_not_ended():
    async def run():
        async with Patience(asyncio.get_running_loop().time() + 0.01) as patience:
            while not patience.is_over:
                await asyncio.sleep(0.005)
            return "whole"

    assert asyncio.run(run()) == "whole"


def test_it_can_be_put_off():
    async def run():
        clock = asyncio.get_running_loop().time
        async with Patience(clock() + 0.02) as patience:
            patience.until = clock() + 60
            await patience.wait(asyncio.sleep(0.05))
            return patience.is_over

    assert asyncio.run(run()) is False


def test_a_time_limit_of_the_step_itself_is_not_its_own():
    async def late():
        raise TimeoutError

    async def run():
        async with Patience(None) as patience:
            with pytest.raises(TimeoutError):
                await patience.wait(late())
            return patience.is_over

    assert asyncio.run(run()) is False


def test_leaving_takes_the_timer_back():
    async def run():
        async with Patience(asyncio.get_running_loop().time() + 0.01) as patience:
            pass
        await asyncio.sleep(0.03)
        return patience.is_over

    assert asyncio.run(run()) is False
