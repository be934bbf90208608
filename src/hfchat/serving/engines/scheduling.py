"""Turns in reading prompts: a key that sends long ones takes a third of the time that others' answers have, no more.

A step of the model that reads a part of a long prompt takes many times as long as one that only adds a token to each
answer. transformers' scheduler fills every step with prompts in the order in which they came (seen in 5.24). Here the
prompts of one key at a time are read, in smaller parts while other keys are there; and for twice as long as that took,
the others' answers then go on alone.
"""

from collections.abc import Callable, Sequence, Set

Owner = str | None  # the name of an API key; None where none is needed
_SHARE = 2  # the others' time for each second that a key's prompts took
_PARTS = 8  # into which what one step could read is divided while other keys are there
_LONGEST_STEP_S = 5.0  # more is a time in which there was nothing to do


class ReadingTurns:
    """Says before each step whose prompts may be read in it.

    Args:
        clock: Seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float]):
        self._clock = clock
        self._ahead: dict[Owner, float] = {}  # seconds that the others have still to get for a key's prompts
        self._readers: set[Owner] = set()  # whose prompts the step before has read: one key or none
        self._began = clock()

    def next(self, prompts: Set[Owner], answers: Sequence[Owner]) -> set[Owner] | None:
        """Whose prompts the step that begins may read; None where there is one key only, which needs no turns.

        Args:
            prompts: The keys that have prompts to be read.
            answers: The key of each answer that can go on.
        """
        self._account()
        if len(prompts | set(answers)) < 2:
            self._ahead.clear()
            self._readers = set(prompts)
            return None

        # Of those with prompts, the one that is least ahead has its turn; but if it is ahead at all and somebody else
        # has answers that can go on, these do so alone.
        reader = min(prompts, key=lambda owner: self._ahead.get(owner, 0.0), default=None)
        others_answer = any(owner != reader for owner in answers)
        if prompts and not (others_answer and self._ahead.get(reader, 0.0) > 0):
            self._readers = {reader}
        return self._readers

    @staticmethod
    def shared(token_budget: int, answers: int) -> int:
        """How many tokens a step may have beside other keys, of those that it could have."""
        return min(token_budget, max(token_budget // _PARTS, 2 * answers + 1))

    def _account(self) -> None:
        """Charge the last step's time to those whose prompts it has read, or take it off what all are ahead."""
        now = self._clock()
        seconds = min(now - self._began, _LONGEST_STEP_S)
        for owner in self._readers:
            self._ahead[owner] = self._ahead.get(owner, 0.0) + _SHARE * seconds
        if not self._readers:
            self._ahead = {owner: left for owner, ahead in self._ahead.items() if (left := ahead - seconds) > 0}
        self._readers, self._began = set(), now
