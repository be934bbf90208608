"""The models of a server: each has a name in the API, and an engine that may still be loading while others answer.

While the server runs, another version can take over a name: requests that have begun end with the version that they
began with, and a share of the requests can go to a candidate.
"""

import asyncio
import hashlib
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from hfchat.serving.engines.engine import Engine, EngineError
from hfchat.serving.http.record import RequestRecord
from hfchat.serving.openai.errors import ApiError
from hfchat.serving.openai.protocol import Model
from hfchat.serving.openai.requests import ChatCompletionRequest, CompletionRequest, GenerationRequest

_LOGGER = logging.getLogger("hfchat.serving")
_LOADING = "the model is still loading"
_POLL_S = 0.05
_Result = TypeVar("_Result")


@dataclass(eq=False)
class Version:
    """An engine under a name of the API.

    Attributes:
        engine: Has been started.
        name: The version's name, which its answers carry; None where the model has no versions.
        requests: How many requests have begun with it and not ended.
    """

    engine: Engine
    name: str | None = None
    requests: int = 0

    @contextmanager
    def in_use(self) -> Iterator[None]:
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1


@dataclass(frozen=True)
class _Served:
    """What answers under one name; `share` of the requests go to the candidate."""

    current: Version
    candidate: Version | None = None
    share: float = 0.0

    @property
    def versions(self) -> list[Version]:
        return [self.current] if self.candidate is None else [self.current, self.candidate]

    def choose(self, request: GenerationRequest) -> Version:
        """The same version for all of a user's requests, or at least for all of a conversation."""
        if self.candidate is None or self.candidate.engine.error is not None:
            return self.current
        place = hashlib.sha256(f"{self.candidate.name}\0{_who(request)}".encode(errors="replace")).digest()
        return self.candidate if int.from_bytes(place[:8]) < self.share * 2**64 else self.current


class ServedModels:
    """Finds the engine for a request's `model`.

    Args:
        names: The models' names in the API, the main one first; the others are adapters of it.
        load: Makes a version for each of the names, in a thread of its own: the server answers meanwhile, and says
            that it is loading.
        follow: Runs after that until the server stops, and deploys other versions.
    """

    def __init__(
        self,
        names: Sequence[str],
        load: Callable[[], Mapping[str, Version]],
        follow: Callable[["ServedModels"], Coroutine] | None = None,
    ):
        self._names = tuple(names)
        self._load = load
        self._follow = follow
        self._served: dict[str, _Served] = {}
        self._started: set[Version] = set()
        self._tasks: set[asyncio.Task] = set()
        self._aborted: str | None = None
        self._created = int(time.time())

    @classmethod
    def of(cls, name: str, engine: Engine) -> "ServedModels":
        """One model, whose engine exists already."""
        return cls([name], lambda: {name: Version(engine)})

    async def start(self) -> None:
        """Load and start the engines; each answers as soon as it can. An error while loading is raised here."""
        for name, version in (await in_a_daemon_thread(self._load)).items():
            await self.start_version(version)
            self.deploy(name, version)
        if self._follow is not None:
            self._begin(self._follow(self))

    async def start_version(self, version: Version) -> None:
        """Start the engine of a version that is to answer soon."""
        self._started.add(version)
        try:
            await version.engine.start()
        except BaseException:
            self._started.discard(version)
            raise
        if self._aborted is not None:  # while it was starting
            version.engine.abort(self._aborted)

    def deploy(self, name: str, current: Version, candidate: Version | None = None, share: float = 0.0) -> None:
        """Let versions with started engines answer under a name from now on.

        The versions that answered before finish the requests that they have begun, and are then stopped.
        """
        before = self._served.get(name)
        self._served[name] = now = _Served(current, candidate, share)
        for version in before.versions if before else ():
            if version not in now.versions:
                self._begin(self._retire(version))

    def _begin(self, work: Coroutine) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _retire(self, version: Version) -> None:
        while version.requests:
            await asyncio.sleep(_POLL_S)
        await version.engine.stop()
        self._started.discard(version)
        _LOGGER.info("version %s was stopped", version.name)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for version in self._started:
            await version.engine.stop()

    def abort(self, reason: str) -> None:
        """End all running answers, and any that starts later, with an `EngineError`."""
        self._aborted = reason
        for version in self._started:
            version.engine.abort(reason)

    @property
    def error(self) -> str | None:
        """Why not every model can answer now; None if all can."""
        return next((error for name in self._names if (error := self._error(name)) is not None), None)

    @property
    def engines(self) -> Sequence[Engine]:
        return [version.engine for version in self._started]

    async def ready(self) -> None:
        """Generate one token with each model, really.

        Raises:
            EngineError: If one of them cannot.
        """
        if self.error is not None:
            raise EngineError(self.error)
        await asyncio.gather(*(served.current.engine.ready() for served in self._served.values()))

    def list(self) -> list[Model]:
        """The models as the API describes them."""
        return [self._describe(name) for name in self._names]

    def find(self, name: str) -> Model:
        """The model of this name as the API describes it.

        Raises:
            ApiError: 404 if there is no such model.
        """
        self._check_name(name)
        return self._describe(name)

    def file_of(self, name: str) -> Path | None:
        """The file that was made of a model and answers in its place, with its certificate beside it; None if none."""
        served = self._served.get(name)
        return served.current.engine.info.file if served else None

    def choose(self, request: GenerationRequest, record: RequestRecord) -> Version:
        """The version that answers a request, which its record notes; it is there until the request is over.

        Raises:
            ApiError: 404 if there is no such model, 503 while it cannot answer.
        """
        self._check_name(request.model)
        error = self._error(request.model)
        if error is not None:
            message = f"The server cannot answer now: {error}"
            raise ApiError(503, message, code="engine_unavailable", headers={"Retry-After": "10"})
        version = self._served[request.model].choose(request)
        record.version = version.name
        record.at_end.enter_context(version.in_use())
        return version

    def _check_name(self, name: str) -> None:
        if name not in self._names:
            has = ", ".join(f"'{known}'" for known in self._names)
            message = f"The model '{name}' does not exist; this server has {has}."
            raise ApiError(404, message, param="model", code="model_not_found")

    def _describe(self, name: str) -> Model:
        main, served = self._names[0], self._served.get(name)
        what = served.current.engine.info if served else None
        return Model(
            id=name,
            created=self._created,
            parent=None if name == main else main,
            version=served.current.name if served else None,
            engine=what.engine if what else None,
            weights=what.weights if what else None,
        )

    def _error(self, name: str) -> str | None:
        served = self._served.get(name)
        return (self._aborted or _LOADING) if served is None else served.current.engine.error


def _who(request: GenerationRequest) -> str:
    """Who asks; where the request does not say, how its conversation begins."""
    if isinstance(request, ChatCompletionRequest):
        first = next((message for message in request.messages if message.role == "user"), request.messages[0])
        return request.safety_identifier or request.user or request.prompt_cache_key or first.plain()["content"]
    if isinstance(request, CompletionRequest):
        return request.user or repr(request.prompts[0])
    raise TypeError(f"there is no way to tell who sent a {type(request).__name__}")


async def in_a_daemon_thread(function: Callable[[], _Result]) -> _Result:
    """Like `asyncio.to_thread`, but a process that ends does not wait for it: loading may take minutes."""
    result = Future[_Result]()
    result.set_running_or_notify_cancel()  # so that nobody who stops waiting keeps the thread from setting it

    def run() -> None:
        try:
            result.set_result(function())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, name="load", daemon=True).start()
    return await asyncio.wrap_future(result)
