"""`hfchat serve`: check, bind, load, and answer until a signal says stop."""

import asyncio
import contextlib
import errno
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from hfchat.errors import UserError
from hfchat.models import resolve

try:
    import uvicorn
    from fastapi import FastAPI

    from hfchat.serving.http.auth import ENVIRONMENT_VARIABLE, ApiKeys, load_keys
    from hfchat.serving.http.connections import Connection
    from hfchat.serving.http.limits import Gate
    from hfchat.serving.http.logs import configure_logs
    from hfchat.serving.settings import ServerSettings, option
    from hfchat.serving.versions.models import ServedModels
except ImportError as error:
    raise UserError(f"{error.name} is not installed; run `pip install 'hfchat[serving]'`") from error


if TYPE_CHECKING:
    from hfchat.serving.collecting.feedback import Collector

_LAST_WORDS_S = 2  # for the error events of the answers that did not end in time
_HOW_TO_MAKE_A_KEY = (
    f"make one with `hfchat api-key NAME`, and name it in {ENVIRONMENT_VARIABLE} or in a file for --api-keys"
)
_MAX_MESSAGE_BYTES = 1024 * 1024  # of a WebSocket
# How long OpenMP's threads spin at the end of a parallel part before they sleep. Who spins longer is woken sooner, and
# takes a core from whoever wants it, such as the browser with the chat page. Measured in tokens/s with 1 and 8 streams
# (SmolLM2-135M-Instruct, 2 cores), and beside one busy process: asleep at once 16.4 and 90, 12.3 and 64; 3,000 rounds
# 19.8 and 104, 9.3 and 45; 20,000 rounds 20.6 and 112, 3.8 and 17; without end 21 and 113, and beside it 0.3.
_SPINNING = {"GOMP_SPINCOUNT": "3000", "KMP_BLOCKTIME": "0"}  # of GNU's and of Intel's and LLVM's OpenMP


def serve(settings: ServerSettings) -> None:
    """Serve a chat model until SIGINT or SIGTERM; running answers then get some time to end, and a second signal ends
    them at once.

    Raises:
        UserError: If the port is taken, other machines could use it without a key, a file of the settings is not as it
            should be, or the model is missing, is no chat model, or has another chat template than it was trained
            with. All but the weights are checked before the weights are loaded.
    """
    limit_spinning(os.environ)  # it is read when torch is loaded, which is later than this
    keys = _keys(settings)
    folder = None if settings.upstreams else _find(settings.folder)
    with bind(settings.host, settings.port) as bound:
        from hfchat.safety.guards_file import load_guards

        guards = load_guards(settings.guards) if settings.guards else None
        from hfchat.serving.http.app import create_app

        if folder is None:
            settings, models = _upstream_models(settings)
        else:
            from hfchat.serving.versions.loading import served_models

            models = served_models(folder, settings)
        collector = open_collector(settings)
        configure_logs(settings.log_content)
        app = create_app(settings, models, guards, keys, collector)
        print(f"loading {settings.source}" if folder else f"asking {', '.join(settings.upstreams)}", flush=True)
        server = Server(app, models, settings, announce=lambda: _announce(models, settings))
        try:
            server.run(sockets=[bound])
        except OSError as error:  # another server has begun to listen since the port was bound
            raise _bind_error(error, settings.host, settings.port) from error


def _find(folder: str) -> str:
    """The folder, the Hub id or the GGUF file of a model."""
    if not folder.endswith(".gguf"):
        return resolve(folder)
    if not Path(folder).is_file():
        raise UserError(f"{folder}: there is no such file")
    return folder


def _announce(models: ServedModels, settings: ServerSettings) -> None:
    """Say that everything is ready, and what answers."""
    print(f"chat at {settings.url}", flush=True)
    if not settings.upstreams:
        info = models.engines[0].info
        print(f"engine {info.engine}, weights {info.weights}", flush=True)


def limit_spinning(environ: MutableMapping[str, str]) -> None:
    """Say how long OpenMP's threads may spin while they wait, where the environment does not."""
    if "OMP_WAIT_POLICY" not in environ:  # these would have the last word over it
        for name, value in _SPINNING.items():
            environ.setdefault(name, value)


def _keys(settings: ServerSettings) -> ApiKeys | None:
    keys = load_keys(settings.api_keys, os.environ)
    names = keys.names if keys else ()
    for name in settings.metrics_keys:
        if name not in names:
            has = ", ".join(names) or "none"
            raise UserError(f"--metrics-key {name}: there is no API key of this name; the keys are: {has}")
    for name in ("requests_per_minute", "tokens_per_minute"):
        if keys is None and getattr(settings, name) is not None:
            raise UserError(f"{option(name)} is for each API key, but there are no keys; {_HOW_TO_MAKE_A_KEY}")
    if keys is None and not settings.is_local and not settings.allow_anyone:
        raise UserError(
            f"--host {settings.host}: other machines could use the model without an API key; {_HOW_TO_MAKE_A_KEY} "
            "(or let in anyone who reaches it, with --allow-anyone)"
        )
    for name in settings.trusted_keys:
        if name not in names:
            raise UserError(f"--trusted-keys {name}: there is no API key of this name")
    return keys


def _upstream_models(settings: ServerSettings) -> tuple[ServerSettings, ServedModels]:
    """The models of the upstreams, and the settings with their name."""
    from hfchat.serving.engines.gateway import open_gateway

    variable = settings.upstream_api_key_env
    if variable is not None and not os.environ.get(variable):
        raise UserError(f"--upstream-api-key-env: the environment has no {variable}")
    name, gateway = open_gateway(settings.upstreams, settings.upstream_model, os.environ.get(variable or ""))
    settings = replace(settings, served_model_name=settings.served_model_name or name)
    return settings, ServedModels.of(settings.model_id, gateway)


def open_collector(settings: ServerSettings) -> "Collector | None":
    """What keeps feedback, over a database that is made if it is an SQLite file that is not there.

    Raises:
        UserError: If the database cannot be opened.
    """
    if settings.feedback is None:
        return None
    from hfchat.feedback.database import open_database
    from hfchat.feedback.redaction import redact
    from hfchat.feedback.store import Store
    from hfchat.serving.collecting.feedback import Collector

    database = open_database(settings.feedback, create=True, max_bytes=int(settings.feedback_max_gib * 2**30))
    return Collector(
        Store(database, redact if settings.feedback_redact else str),
        keep_conversations=settings.keep_conversations,
        retention_days=settings.feedback_retention_days,
        trusted_keys=settings.trusted_keys,
    )


def bind(host: str, port: int) -> socket.socket:
    """Bind before the model is loaded, so that a taken port is known at once; listening begins when it can answer."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        # Without it, a restart would have to wait until the connections of the last run have timed out.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind(address)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        raise _bind_error(error, host, port) from error
    return bound


def _bind_error(error: OSError, host: str, port: int) -> UserError:
    if error.errno == errno.EADDRINUSE:
        return UserError(f"port {port} is already in use; stop what listens there, or choose another with --port")
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return UserError(f"--host {host}: this machine has no such address")
    return UserError(f"cannot listen on {host} port {port}: {error.strerror}; choose another with --port")


class Server(uvicorn.Server):
    """uvicorn, with a word when it really answers, and an end that cuts no answer in silence and is a success.

    After a signal it takes no new requests (503) and lets the running answers end, for `settings.drain_seconds` or
    until a second signal; then the engine ends them with an error.
    """

    def __init__(self, app: FastAPI, models: ServedModels, settings: ServerSettings, announce: Callable[[], None]):
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port,
                http=Connection,
                log_config=None,
                access_log=False,
                server_header=False,
                ws_max_size=_MAX_MESSAGE_BYTES,
                timeout_graceful_shutdown=_LAST_WORDS_S,
            )
        )
        self._app = app
        self._gate: Gate = app.state.gate
        self._models = models
        self._drain_s = settings.drain_seconds
        self._announce = announce
        self._failure: BaseException | None = None
        self._hurry = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        except OSError:
            await self.lifespan.shutdown()
            raise
        if self.started:
            self._app.state.loading.add_done_callback(self._loaded)

    def _loaded(self, loading: asyncio.Task[None]) -> None:
        if loading.cancelled():
            return
        self._failure = loading.exception()
        if self._failure is None:
            self._announce()
        else:
            self.should_exit = True

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal.

        Raises:
            UserError: If the models cannot be loaded; so does whatever else went wrong with that.
        """
        super().run(sockets)
        if self._failure is not None:
            raise self._failure

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._gate.closed = True
        loop = asyncio.get_running_loop()
        end = loop.time() + self._drain_s
        while self._gate.inside and loop.time() < end and not self._hurry:
            await asyncio.sleep(0.1)
        self._models.abort("the server is shutting down")
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._hurry = self.should_exit
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Like uvicorn's, which raises the signal again at the end: a Ctrl-C would then look like a failure."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
