"""Turns in reading prompts: a key that sends long ones takes a third of the time that others' answers have, no more.

A step of the model that reads a part of a long prompt takes many times as long as one that only adds a token to each
answer. transformers' scheduler fills every step with prompts in the order in which they came (seen in 5.24). Here the
prompts of one key at a time are read, in smaller parts while other keys are there; and for twice as long as that took,
the others' answers then go on alone.
"""

import time
from collections import deque
from collections.abc import Callable

from transformers.generation.continuous_batching.requests import FutureRequestState, RequestState, RequestStatus
from transformers.generation.continuous_batching.scheduler import SCHEDULER_MAPPING, FIFOScheduler

FAIR = "hfchat"  # the scheduler's name for `ContinuousBatchingConfig`
_SHARE = 2  # the others' time for each second that a key's prompts took
_PARTS = 8  # into which what one step could read is divided while other keys are there
_LONGEST_STEP_S = 5.0  # more is a time in which there was nothing to do


class FairScheduler(FIFOScheduler):
    """transformers' scheduler, which sees of the prompts only those of the key whose turn it is.

    Attributes:
        clock: Seconds that never go back.
    """

    clock: Callable[[], float] = staticmethod(time.perf_counter)

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._forget()

    def reset(self) -> None:
        super().reset()
        self._forget()

    def _forget(self) -> None:
        self._ahead: dict[str | None, float] = {}  # seconds that the others have still to get for a key's prompts
        self._reader: list[str | None] = []  # whose prompts the step before has read: one key or none
        self._began = self.clock()

    def schedule_batch(
        self, token_budget: int, cache_budget: int
    ) -> tuple[list[FutureRequestState] | None, bool, int, int]:
        self._account()
        active, waiting = list(self.active_requests.values()), list(self.waiting_requests.values())
        readers = {_owner(state) for state in active if state.status == RequestStatus.PREFILLING}
        readers |= {_owner(state) for state in waiting}
        owners = {_owner(state) for state in active} | readers
        if len(owners) < 2:
            self._ahead.clear()
            self._reader = list(readers)
            return super().schedule_batch(token_budget, cache_budget)

        # Of those with prompts, the one that is least ahead has its turn; but if it is ahead at all and somebody else
        # has answers that can go on, these do so alone.
        answering = [_owner(state) for state in active if state.status == RequestStatus.DECODING]
        reader = min(readers, key=lambda owner: self._ahead.get(owner, 0.0), default=None)
        others_answer = any(owner != reader for owner in answering)
        if readers and not (others_answer and self._ahead.get(reader, 0.0) > 0):
            self._reader = [reader]
        token_budget = min(token_budget, max(token_budget // _PARTS, 2 * len(answering) + 1))
        return self._schedule_seen(token_budget, cache_budget)

    def _schedule_seen(
        self, token_budget: int, cache_budget: int
    ) -> tuple[list[FutureRequestState] | None, bool, int, int]:
        """What transformers would schedule if there were only the answers, and the prompts of the reader."""
        unseen = {
            request: state
            for request, state in self.active_requests.items()
            if state.status == RequestStatus.PREFILLING and _owner(state) not in self._reader
        }
        order = self.waiting_requests_order
        self.active_requests = {id: state for id, state in self.active_requests.items() if id not in unseen}
        seen = (request for request in order if _owner(self.waiting_requests[request]) in self._reader)
        self.waiting_requests_order = deque(seen)
        try:
            return super().schedule_batch(token_budget, cache_budget)
        finally:
            self.active_requests |= unseen
            self.waiting_requests_order = deque(request for request in order if request in self.waiting_requests)

    def _account(self) -> None:
        """Charge the time of the step before to whose prompts it has read, or take it off what they are ahead."""
        now = self.clock()
        seconds = min(now - self._began, _LONGEST_STEP_S)
        for owner in self._reader:
            self._ahead[owner] = self._ahead.get(owner, 0.0) + _SHARE * seconds
        if not self._reader:
            self._ahead = {owner: left for owner, ahead in self._ahead.items() if (left := ahead - seconds) > 0}
        self._reader, self._began = [], now


def _owner(state: RequestState) -> str | None:
    """The name of the API key that the request came with."""
    draws = state.logit_processor_kwargs.get("draws")
    return draws.owner if draws is not None else None


SCHEDULER_MAPPING[FAIR] = FairScheduler
