"""Time limits for waits that follow each other closely, such as those for the tokens of an answer."""

import asyncio
from collections.abc import Awaitable
from typing import Self, TypeVar

_T = TypeVar("_T")


class Patience:
    """Ends a wait with a `TimeoutError` at a set time, as `asyncio.timeout_at` does.

    That makes a timer for each wait and takes it back, which for the tokens of an answer is a good part of their cost.
    Here one timer, set again when it has come too early, is enough for all of them.

    Attributes:
        until: The time of the event loop at which it ends, None for never. It may be moved, but not forward.
        is_over: Whether that time has come, so that a `TimeoutError` can be told from the wait's own.
    """

    def __init__(self, until: float | None):
        self.until = until
        self.is_over = False
        self._loop = asyncio.get_running_loop()
        self._wait: asyncio.Timeout | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        self._look()
        return self

    async def __aexit__(self, *exception: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    async def wait(self, step: Awaitable[_T]) -> _T:
        """Take a step; the time between two steps is nobody's.

        Raises:
            TimeoutError: If it has not been taken at the set time.
        """
        async with asyncio.timeout(0 if self.is_over else None) as self._wait:
            try:
                return await step
            finally:
                self._wait = None

    def end(self) -> None:
        """Have no more patience."""
        self.is_over = True
        if self._wait is not None:
            self._wait.reschedule(self._loop.time())

    def _look(self) -> None:
        if self.until is None:
            return
        if self.until <= self._loop.time():
            self.end()
        else:
            self._timer = self._loop.call_at(self.until, self._look)
