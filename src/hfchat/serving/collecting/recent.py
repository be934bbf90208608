"""The answers about which somebody may still say something, in memory only."""

import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping

from hfchat.feedback.exchange import Exchange


class RecentAnswers:
    """Holds answers for a while; the oldest go first.

    Args:
        max_answers: At most so many.
        max_bytes: At most so much of this process's memory for what clients can make long: the texts, tools and calls,
            and how they were sampled (stop strings). A conversation is counted for each of its answers.
        max_age_s: Seconds that an answer is held.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        max_answers: int = 10_000,
        max_bytes: int = 64 * 2**20,
        max_age_s: float = 3600,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._max_answers = max_answers
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._clock = clock
        self._bytes = 0
        self._held: OrderedDict[tuple[str, int], tuple[float, int, Exchange]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def add(self, exchange: Exchange) -> None:
        size = _size(exchange)
        self._held[exchange.answer_id, exchange.choice] = self._clock(), size, exchange
        self._bytes += size
        self.drop_old()
        while len(self._held) > self._max_answers or self._bytes > self._max_bytes:
            self._drop_first()

    def find(self, answer_id: str, choice: int) -> Exchange | None:
        self.drop_old()
        _, _, exchange = self._held.get((answer_id, choice), (0, 0, None))
        return exchange

    def drop_old(self) -> None:
        """Drop what was held for long enough."""
        while self._held and next(iter(self._held.values()))[0] <= self._clock() - self._max_age_s:
            self._drop_first()

    def _drop_first(self) -> None:
        _, (_, size, _) = self._held.popitem(last=False)
        self._bytes -= size


def _size(exchange: Exchange) -> int:
    """All that a client can make long. What else it holds is as short as a request's head or a model's name."""
    waiting: list[object] = [exchange.text, exchange.user, exchange.model, exchange.messages, exchange.tools]
    waiting += [exchange.tool_calls, exchange.reasoning, exchange.sampling, exchange.findings]
    size = 0
    while waiting:  # JSON may be nested more deeply than calls
        value = waiting.pop()
        size += sys.getsizeof(value)
        if isinstance(value, Mapping):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple):
            waiting += value
    return size
