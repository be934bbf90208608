"""Whether the server can really answer: one token generated, and the outcome kept for a while."""

import asyncio
import time

from hfchat.serving.engines.engine import EngineError
from hfchat.serving.http.limits import Gate
from hfchat.serving.openai.errors import ApiError
from hfchat.serving.versions.models import ServedModels

_KEPT_S = 5.0  # probes come every few seconds from several sides, and should cost nothing
_PATIENCE_S = 10.0  # a token takes a while beside a full batch


class Readiness:
    """Tells whether the models can answer now."""

    def __init__(self, models: ServedModels, gate: Gate):
        self._models = models
        self._gate = gate
        self._one_at_a_time = asyncio.Lock()
        self._error: str | None = None
        self._until = 0.0

    async def check(self) -> None:
        """Return if a token could be generated within the last seconds.

        Raises:
            ApiError: 503 if not, while the server shuts down, and while a model is loading or down.
        """
        self._gate.check()
        if self._models.error is not None:
            raise _not_ready(self._models.error)
        async with self._one_at_a_time:
            if time.monotonic() >= self._until:
                self._error = await self._generate()
                self._until = time.monotonic() + _KEPT_S
        if self._error is not None:
            raise _not_ready(self._error)

    async def _generate(self) -> str | None:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await self._models.ready()
        except TimeoutError:
            return f"there was no token within {_PATIENCE_S:g} s"
        except EngineError as error:
            return str(error)
        return None


def _not_ready(reason: str) -> ApiError:
    headers = {"Retry-After": "5"}
    return ApiError(503, f"The server cannot answer now: {reason}", code="not_ready", headers=headers)
