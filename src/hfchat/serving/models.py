"""The models of a server: each has a name in the API, and an engine that may still be loading while others answer."""

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from hfchat.serving.engine import Engine, EngineError
from hfchat.serving.protocol import ApiError, Model

_LOADING = "the model is still loading"


class ServedModels:
    """Finds the engine for a request's `model`.

    Args:
        names: Of the models in the API, the main one first; the others are adapters of it.
        load: Makes an engine for each of the names, in a thread of its own: the server answers meanwhile, and says
            that it is loading.
    """

    def __init__(self, names: Sequence[str], load: Callable[[], Mapping[str, Engine]]):
        self._names = tuple(names)
        self._load = load
        self._engines: dict[str, Engine] = {}
        self._aborted: str | None = None
        self._created = int(time.time())

    @classmethod
    def of(cls, name: str, engine: Engine) -> "ServedModels":
        """One model whose engine is there already."""
        return cls([name], lambda: {name: engine})

    async def start(self) -> None:
        """Load and start the engines; each answers as soon as it can. Whatever loading raises comes out here."""
        for name, engine in (await _in_a_daemon_thread(self._load)).items():
            await engine.start()
            self._engines[name] = engine
        if self._aborted is not None:  # while it was loading
            self.abort(self._aborted)

    async def stop(self) -> None:
        for engine in self._engines.values():
            await engine.stop()

    def abort(self, reason: str) -> None:
        """End all running answers, and any that starts later, with an `EngineError`."""
        self._aborted = reason
        for engine in self._engines.values():
            engine.abort(reason)

    @property
    def error(self) -> str | None:
        """Why not every model can answer now; None if all can."""
        return next((error for name in self._names if (error := self._error(name)) is not None), None)

    @property
    def restarts(self) -> int:
        return sum(engine.restarts for engine in self._engines.values())

    async def ready(self) -> None:
        """Generate one token with each model, really.

        Raises:
            EngineError: If one of them cannot.
        """
        if self.error is not None:
            raise EngineError(self.error)
        await asyncio.gather(*(engine.ready() for engine in self._engines.values()))

    def list(self) -> list[Model]:
        """The models as the API describes them."""
        main = self._names[0]
        return [Model(id=name, created=self._created, parent=None if name == main else main) for name in self._names]

    def find(self, name: str) -> Model:
        """The model of this name as the API describes it.

        Raises:
            ApiError: 404 if there is none.
        """
        found = next((model for model in self.list() if model.id == name), None)
        if found is None:
            has = ", ".join(f"'{known}'" for known in self._names)
            message = f"The model '{name}' does not exist; this server has {has}."
            raise ApiError(404, message, param="model", code="model_not_found")
        return found

    def engine(self, name: str) -> Engine:
        """The engine that answers for the model of this name.

        Raises:
            ApiError: 404 if there is no such model, 503 while it cannot answer.
        """
        self.find(name)
        error = self._error(name)
        if error is not None:
            message = f"The server cannot answer now: {error}"
            raise ApiError(503, message, code="engine_unavailable", headers={"Retry-After": "10"})
        return self._engines[name]

    def _error(self, name: str) -> str | None:
        engine = self._engines.get(name)
        return (self._aborted or _LOADING) if engine is None else engine.error


async def _in_a_daemon_thread(function: Callable[[], Mapping[str, Engine]]) -> Mapping[str, Engine]:
    """Like `asyncio.to_thread`, but a process that ends does not wait for it: loading may take minutes."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[Mapping[str, Engine]] = loop.create_future()

    def settle(set_: Callable, value: object) -> None:
        if not result.done():
            set_(value)

    def run() -> None:
        try:
            outcome = result.set_result, function()
        except BaseException as error:
            outcome = result.set_exception, error
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=run, name="load", daemon=True).start()
    return await result
