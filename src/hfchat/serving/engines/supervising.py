"""Starting an engine again when it has crashed, as often as it takes, after longer and longer pauses."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

_LOGGER = logging.getLogger("hfchat.serving")
_RESTART_PAUSE_S = 0.5  # before the second restart with no whole answer between them; then twice as long each time
_LONGEST_PAUSE_S = 60.0


class Supervisor:
    """Watches over the generation of one engine.

    Attributes:
        down: Why nothing can be generated now; None while it can.
        restarts: How often it was started again after a crash.
        crashes: How many crashes there were since there was a whole answer.
    """

    def __init__(
        self,
        restart: Callable[[], Awaitable[None]],
        why: Callable[[], str | None],
        fail_all: Callable[[str], None] = lambda reason: None,
    ):
        """
        Args:
            restart: Starts the generation again, and returns when there was a token.
            why: Says after a crash what has happened.
            fail_all: Ends the answers that are running, with a reason.
        """
        self.down: str | None = None
        self.restarts = 0
        self._restart = restart
        self._why = why
        self._fail_all = fail_all
        self.crashes = 0
        self._ended = asyncio.Event()  # set when the generation has crashed
        self._task: asyncio.Task | None = None
        self._is_over = False

    def begin(self) -> None:
        self._task = asyncio.create_task(self._supervise())

    async def end(self) -> None:
        self._is_over = True  # a restart that is given up may fail instead of being cancelled
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def crashed(self) -> None:
        """Say that the generation has crashed. Not safe to be called by another thread."""
        self._ended.set()

    def forget(self) -> None:
        """Say that the generation that has crashed is gone: it may have told so once more, late."""
        self._ended.clear()

    def succeeded(self) -> None:
        """Say that there was a whole answer."""
        self.crashes = 0

    async def _supervise(self) -> None:
        while not self._is_over:
            if self.down is None:
                await self._ended.wait()
                self.down = self._why() or "generation failed"
            self._fail_all(self.down)
            self.crashes += 1
            _LOGGER.error("%s (crash %d in a row)", self.down, self.crashes)
            if self.crashes > 1:
                doublings = min(self.crashes - 2, 20)
                await asyncio.sleep(min(_RESTART_PAUSE_S * 2**doublings, _LONGEST_PAUSE_S))
            try:
                await self._restart()
            except Exception as error:
                _LOGGER.exception("the generation could not be restarted")
                self.down = f"generation failed: {error}"
            else:
                self.down = None
                self.restarts += 1
                _LOGGER.warning("the generation was restarted")
