"""A connection on which bytes are sent as they are, for what a polite client would never send."""

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable

import h11
import httpx

from hfchat.probe.target import Target
from hfchat.probe.verdicts import FailedError

CLOSED = "the connection was closed"
_ANSWER_S = 15.0


class Wire:
    """A connection to a server. `wire` opens one."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, patience: float):
        self._reader = reader
        self._writer = writer
        self._patience = patience
        self._trailing = b""

    async def send(self, data: bytes) -> bool:
        """Send bytes; whether the server still takes more."""
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError:
            return False
        return not self._writer.transport.is_closing()

    async def answer(self, method: str = "POST", seconds: float = _ANSWER_S) -> httpx.Response | None:
        """The next response; None if the server closes the connection without one.

        Raises:
            FailedError: If neither comes in time, or what comes is not a whole response.
        """
        # The parser wants to know the request, because a response to HEAD has no body.
        parser = h11.Connection(h11.CLIENT)
        parser.send(h11.Request(method=method, target="/", headers=[("Host", "-")]))
        parser.send(h11.EndOfMessage())
        response: h11.Response | None = None
        body, received = b"", False
        limit = seconds * self._patience
        try:
            async with asyncio.timeout(limit):
                while not isinstance(event := parser.next_event(), h11.EndOfMessage):
                    if event is h11.NEED_DATA:
                        data = await self._receive()
                        if not (data or received):
                            return None
                        received = True
                        parser.receive_data(data)
                    elif isinstance(event, h11.Response):
                        response = event
                    elif isinstance(event, h11.Data):
                        body += event.data
        except TimeoutError:
            raise FailedError(f"no answer within {limit:g} s") from None
        except h11.RemoteProtocolError as error:
            raise FailedError(f"what it answered is not HTTP, or not whole: {error}") from None
        assert response is not None  # h11 gives no end of a message without its head
        self._trailing = parser.trailing_data[0]
        return httpx.Response(response.status_code, headers=list(response.headers), content=body)

    async def closed(self, seconds: float) -> bool:
        """Whether the server closes the connection within this time; what it sends until then is thrown away."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while await self._receive():
                    pass
                return True
        return False

    async def more(self, seconds: float) -> bytes:
        """What comes after a response within this time."""
        more = self._trailing
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while part := await self._receive():
                    more += part
        return more

    def half_close(self) -> None:
        """Tell the server that no more will be sent."""
        self._writer.write_eof()

    def reset(self) -> None:
        """Leave as a crashed client does, with RST instead of FIN."""
        connection = self._writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def _receive(self) -> bytes:
        try:
            return await self._reader.read(65536)
        except OSError:
            return b""


@contextlib.asynccontextmanager
async def wire(target: Target, receive_buffer: int | None = None) -> AsyncIterator[Wire]:
    """Connect to a server, and leave it at the end.

    Args:
        target: The server.
        receive_buffer: Bytes that the system takes in for a client that does not read.
    """
    # A buffer that is set later would not count, so the socket is made by hand.
    url = target.url
    family, kind, protocol, _, address = (
        await asyncio.get_running_loop().getaddrinfo(url.host, url.port or _port(url), type=socket.SOCK_STREAM)
    )[0]
    connection = socket.socket(family, kind, protocol)
    connection.setblocking(False)
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)  # it counts from the handshake on
    writer = None
    try:
        await asyncio.get_running_loop().sock_connect(connection, address)
        tls = url.scheme == "https"
        reader, writer = await asyncio.open_connection(
            sock=connection,
            limit=receive_buffer or 65536,
            ssl=ssl.create_default_context() if tls else None,
            server_hostname=url.host if tls else None,
        )
        yield Wire(reader, writer, target.patience)
    finally:
        if writer is None:
            connection.close()
        else:
            writer.transport.abort()


async def judged(
    target: Target,
    request: bytes,
    judge: Callable[[httpx.Response], str],
    method: str = "POST",
    half_close: bool = False,
) -> str:
    """What a server does with bytes that come on a connection of their own. It may always close the connection.

    Args:
        target: The server.
        request: The bytes.
        judge: Returns what was seen of a response, or raises a `FailedError`.
        method: The method of the request.
        half_close: Whether to tell the server that no more will be sent.
    """
    async with wire(target) as connection:
        await connection.send(request)
        if half_close:
            connection.half_close()
        response = await connection.answer(method)
    return CLOSED if response is None else judge(response)


def head(target: Target, method: str, path: str, *headers: str, host: str | None = None) -> bytes:
    """The head of a request, with the API key; `path` is the whole path."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {target.url.netloc.decode() if host is None else host}", *headers]
    if target.api_key:
        lines.append(f"Authorization: Bearer {target.api_key}")
    return "\r\n".join([*lines, "", ""]).encode()


def chat_head(target: Target, *headers: str, host: str | None = None) -> bytes:
    """The head of a chat, without the length of its body."""
    path = target.path("chat/completions")
    return head(target, "POST", path, "Content-Type: application/json", *headers, host=host)


def _port(url: httpx.URL) -> int:
    return 443 if url.scheme == "https" else 80
