"""Layers that look at the head of a request, and refuse it before any other sees it or add headers to its answer."""

import ipaddress
import itertools
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hfchat.serving.openai.errors import ApiError

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:/@\s]+)(?::\d*)?", re.IGNORECASE)  # RFC 3986, 3.2.2, and a port


async def refuse(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request, or the handshake of a WebSocket, with an error."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": error.message})
    else:
        await error.response()(scope, receive, send)


class Check(ABC):
    """A layer that lets requests and WebSockets pass, or refuses them."""

    def __init__(self, app: ASGIApp):
        self._app = app

    @abstractmethod
    def refusal(self, scope: Scope) -> ApiError | None:
        """Why a request may not pass; None if it may."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = None if scope["type"] == "lifespan" else self.refusal(scope)
        if error is not None:
            return await refuse(error, scope, receive, send)
        await self._app(scope, receive, send)


class HeadLimit(Check):
    """Refuses heads of more than `max_bytes` (431), and bodies whose length is told in two ways (400).

    The parser of a connection bounds only a head that comes in parts, and which of two lengths it takes is not what a
    proxy in front may take: then a body can smuggle another request past it.
    """

    def __init__(self, app: ASGIApp, max_bytes: int):
        super().__init__(app)
        self._max_bytes = max_bytes

    def refusal(self, scope: Scope) -> ApiError | None:
        close = {"Connection": "close"}
        size = len(scope["path"]) + len(scope["query_string"]) + sum(map(len, itertools.chain(*scope["headers"])))
        if size > self._max_bytes:
            return ApiError(431, f"The headers are too large: at most {self._max_bytes} bytes.", headers=close)
        headers = Headers(scope=scope)
        if "content-length" in headers and "transfer-encoding" in headers:
            return ApiError(400, "Content-Length and Transfer-Encoding exclude each other.", headers=close)
        return None


class HostCheck(Check):
    """Answers only requests that were addressed to one of `hosts`, or with `any_address` to an IP address.

    A server without keys is protected by where it is, but any web page that a person visits can make their browser
    send requests to it once the page's own name resolves to the server's address (DNS rebinding). Those carry the
    page's name as `Host`. An address is nobody's name, so it cannot be rebound.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str], any_address: bool = False):
        super().__init__(app)
        self._hosts = {host.lower() for host in hosts}
        self._any_address = any_address

    def refusal(self, scope: Scope) -> ApiError | None:
        parts = _HOST.fullmatch(Headers(scope=scope).get("host", ""))
        name = parts[1].lower() if parts else ""
        if name in self._hosts or (self._any_address and _is_address(name)):
            return None
        message = f"This server answers only as {', '.join(sorted(self._hosts))}; --allow-host names others."
        return ApiError(403, message)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


class WebSocketOrigin(Check):
    """Refuses WebSockets of pages of other sites than `origins` and the server itself.

    CORS does not protect WebSockets: browsers open them to any site and leave it to the server to look at `Origin`.
    """

    def __init__(self, app: ASGIApp, origins: Collection[str]):
        super().__init__(app)
        self._origins = origins

    def refusal(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        own = origin is None or origin.partition("://")[2] == headers.get("host")
        if scope["type"] != "websocket" or own or origin in self._origins:
            return None
        return ApiError(403, "Pages of other sites may not use this server.")


class ResponseHeaders:
    """Adds the same headers to every response that does not set them itself."""

    def __init__(self, app: ASGIApp, headers: Mapping[str, str]):
        self._app = app
        self._headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with_headers)
