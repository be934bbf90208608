"""What protects the server and its users: bounded places and bodies, security headers, a check of the `Host`."""

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hfchat.serving.protocol import ApiError


class Slots:
    """Places for requests: some generate, some wait in order of arrival, and more are refused.

    Attributes:
        running: Requests that generate now.
        waiting: Requests that wait for a place.
    """

    def __init__(self, max_running: int, max_waiting: int):
        self.running = 0
        self.waiting = 0
        self._max_waiting = max_waiting
        self._free = asyncio.Semaphore(max_running)

    def check(self) -> None:
        """Raise the 429 that `take` would raise now."""
        if self._free.locked() and self.waiting >= self._max_waiting:
            raise ApiError(
                429,
                "The server is busy: too many requests are waiting. Please try again in a few seconds.",
                type="rate_limit_error",
                code="server_busy",
                headers={"Retry-After": "5"},
            )

    @asynccontextmanager
    async def take(self) -> AsyncIterator[None]:
        """Wait for a place and hold it; a cancelled task gives up its place, waiting or running."""
        self.check()
        self.waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            self._free.release()


class BodyLimit:
    """Refuses bodies of more than `max_bytes` with 413, also when they come in chunks that declare no length."""

    def __init__(self, app: ASGIApp, max_bytes: int):
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        length = Headers(scope=scope).get("content-length", "0")
        if length.isdigit() and int(length) > self._max_bytes:
            return await self._refusal().response()(scope, receive, send)
        received = 0

        async def bounded_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise HTTPException(413, self._refusal().message)
            return message

        await self._app(scope, bounded_receive, send)

    def _refusal(self) -> ApiError:
        return ApiError(413, f"The request is too large: at most {self._max_bytes} bytes.", code="request_too_large")


class ResponseHeaders:
    """Adds the same headers to every response."""

    def __init__(self, app: ASGIApp, headers: Mapping[str, str]):
        self._app = app
        self._headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._headers)
            await send(message)

        await self._app(scope, receive, send_with_headers)


class HostCheck:
    """Answers only requests that were addressed to one of `hosts`.

    A server on loopback asks for no key, but any web page that a person visits can make their browser send requests
    to it once the page's own name resolves to 127.0.0.1 (DNS rebinding). Those carry the page's name as `Host`.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]):
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            host = Headers(scope=scope).get("host", "")
            name = host[: host.find("]") + 1] if host.startswith("[") else host.split(":")[0]
            if name.lower() not in self._hosts:
                error = ApiError(403, f"This server answers only as {', '.join(sorted(self._hosts))}.")
                return await error.response()(scope, receive, send)
        await self._app(scope, receive, send)
