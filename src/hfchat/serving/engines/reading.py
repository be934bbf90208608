"""Long prompts of API keys read in parts, for an engine that would read them whole.

llama.cpp's server fills each step with prompts in the order of its slots (seen in 2026.10): a key whose long prompts
follow each other would keep the prompts of all others waiting, and each token of their answers would take as long as a
step that is full. Here the prompts of one key at a time are read, part by part, and after each part the others go on
alone for twice as long as it took, as in `hfchat.serving.engines.scheduling`. What has been read stays in the engine's
cache, where it finds it again by the beginning of the prompt.
"""

import asyncio
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace

from hfchat.engines.dialect import TokenRequest
from hfchat.serving.http.limits import Slots

_PART = 64  # tokens; on a CPU, a longer part is read no faster
_SHARE = 2  # the others' time for each second that a part took

Owner = str | None  # the name of an API key; None where none is needed


class ReadingInParts:
    """Lets prompts into an engine."""

    def __init__(self) -> None:
        self._turns = Slots(1, sys.maxsize, extra=0)  # the keys take turns
        self._asking: Counter[Owner] = Counter()  # requests of each key

    @contextmanager
    def asked_by(self, owner: Owner) -> Iterator[None]:
        """A request of this key is there as long as the block is not left."""
        self._asking[owner] += 1
        try:
            yield
        finally:
            self._asking[owner] -= 1
            if not self._asking[owner]:
                del self._asking[owner]

    async def read(self, request: TokenRequest, owner: Owner, read: Callable[[TokenRequest], Awaitable[None]]) -> None:
        """Read a prompt but for its last part; where there are no keys, all are one, and nothing is read in parts.

        A key that is alone does so too: what has been handed over whole cannot be taken back when another comes.

        Args:
            request: The whole request.
            owner: The key that asks.
            read: Has the engine read a prompt, and returns when it has done so.
        """
        loop = asyncio.get_running_loop()
        for end in range(_PART, len(request.prompt), _PART):
            if owner is None:
                return
            with closing(self._turns.reserve(1, owner)) as turn:
                async with turn.take():
                    turn.charge(_PART)
                    began = loop.time()
                    await read(replace(request, prompt=request.prompt[:end], max_tokens=0, grammar=None))
                    if len(self._asking) > 1:
                        await asyncio.sleep(_SHARE * (loop.time() - began))
