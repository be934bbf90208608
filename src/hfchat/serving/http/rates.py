"""How much each API key may use in a time: requests, tokens, and the bytes of large bodies.

The library `limits` (read and tried in 5.8) is not used, because it knows no debt: an answer's tokens are charged when
they have been used, and `limits` then refuses to count what is over the limit. Its windows also make a key wait for up
to a minute where a part of it would do, and the exact one, the moving window, keeps a number for each token (1 MB for
60,000). So several replicas of a server have a limit each.
"""

import math
import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from hfchat.serving.openai.errors import ApiError

_Name = TypeVar("_Name", bound=Hashable)


class Meter(Generic[_Name]):
    """Notes for each name until when what it has used is paid for: the generic cell rate algorithm (ITU-T I.371).

    Args:
        per_second: What a name may use in a second on average.
        clock: Seconds that never go back.
    """

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic):
        self._per_second = per_second
        self._clock = clock
        self._paid_until: dict[_Name, float] = {}  # of names that the server knows, so there are not many

    def debt(self, name: _Name) -> float:
        """The seconds until all is paid for that the name has used."""
        return max(self._paid_until.get(name, 0.0) - self._clock(), 0.0)

    def use(self, name: _Name, amount: float, most_s: float = math.inf) -> None:
        """Note what the name uses; its debt is at most `most_s` then."""
        self._paid_until[name] = self._clock() + min(self.debt(name) + amount / self._per_second, most_s)


class RateLimit:
    """`per_minute` requests or tokens of each name in a minute on average, and as many at once.

    Args:
        per_minute: At least 1.
        clock: Seconds that never go back.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic):
        self.per_minute = per_minute
        self._meter: Meter[str] = Meter(per_minute / 60, clock)

    def spend(self, name: str, count: int = 1) -> float:
        """Use so many, or none; 0, or the seconds until there will be as many."""
        wait = self._meter.debt(name) + count * 60 / self.per_minute - 60
        if wait > 1e-9:  # what is left of a sum of fractions of a minute is no reason to refuse
            return wait
        self._meter.use(name, count)
        return 0.0

    def charge(self, name: str, count: int) -> None:
        """Note so many that have been used already, into the red for at most a minute."""
        self._meter.use(name, count, most_s=120)

    def refusal(self, name: str, count: int = 1) -> ApiError | None:
        """Use so many, or the 429 that says when there will be as many."""
        seconds = math.ceil(self.spend(name, count))
        if not seconds:
            return None
        return ApiError(
            429,
            f"This API key makes too many requests; the next one is possible in {seconds} s.",
            type="rate_limit_error",
            code="rate_limit_exceeded",
            headers={"Retry-After": str(seconds)},
        )

    def check(self, name: str, count: int = 1) -> None:
        """Use so many, or raise the 429."""
        if error := self.refusal(name, count):
            raise error
