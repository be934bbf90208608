"""uvicorn's HTTP/1.1 connections, with an end to the patience for clients that hold one and do nothing.

This builds on an internal of uvicorn (read in 0.54), whose options bound none of this: `timeout_keep_alive` ends only
before the first byte of the next request, `limit_concurrency` refuses whoever comes last, and nothing looks at a
client that does not read. tests/serving/http/test_limits.py fails if uvicorn changes it.

The parser is httptools, which is llhttp, Node's. h11 takes 3.3 us where it takes 0.6 for a piece of an answer, but
refuses some heads that llhttp lets through; those are refused here.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from hfchat.serving.openai.errors import ApiError

_HEADERS_S = 10.0  # for the whole head of a request
_MAX_UNREAD_BYTES = 64 * 1024  # of a head, a trailer or the size of a chunk that is not whole; uvicorn's for h11
_STALLED_S = 30.0  # for a client that does not read what it is sent
_MAX_CONNECTIONS = 900  # idle ones included; one costs a file descriptor, of which 1,024 is a usual limit
MAX_REQUESTS = 800  # at a time, so that some of the connections always wait, and can make room for another


class Connection(HttpToolsProtocol):
    """Closes a connection whose next request's head is not whole after `_HEADERS_S`, or whose client takes nothing of
    its answer for `_STALLED_S`.

    Until then uvicorn itself waits for ever in both: a few hundred connections that send a byte now and then would
    use up its file descriptors ("slowloris"), and a client that does not read would keep its place in the engine.

    Where there are too many connections, one of those that have no request makes room for each new one: the oldest of
    the address that has most of them. So a client that holds a thousand keeps out neither other clients nor
    health checks.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._patience: dict[str, asyncio.TimerHandle] = {}
        self._since = 0.0  # when the connection was made, or its last answer ended
        self._has_request = False  # from the end of a head until there is nothing to be answered
        self._in_head = self._declines = False
        self._unread = 0  # bytes since something was whole
        self.parser = _Parser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast("asyncio.Transport", transport))
        self._since = self.loop.time()
        self._wait_for("head", _HEADERS_S)
        if len(self.connections) > _MAX_CONNECTIONS:
            self._make_room()

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # after a body, it would be taken for one of the head
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head, self._unread = False, 0
        _check_head(self.parser.get_http_version(), self.url, self.headers)
        offered = {value.lower() for name, value in self.headers if name == b"upgrade"}
        self._declines = self.parser.should_upgrade() and offered != {b"websocket"}
        if not self._declines:
            self._has_request = True
            super().on_headers_complete()

    def declined(self) -> bytes | None:
        """The head of the last request without its offer of another protocol; None if that was accepted.

        httptools leaves the body of such a request to the other protocol. Java's client offers HTTP/2 with each first
        request, so the request is read again.
        """
        if not self._declines:
            return None
        first = b"%s %s HTTP/%s\r\n" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        kept = [b"%s: %s\r\n" % (name, value) for name, value in self.headers if name != b"upgrade"]
        self.parser = _Parser(self)
        return first + b"".join(kept) + b"\r\n"

    def on_body(self, body: bytes) -> None:
        self._unread = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._declines:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        self._since = self.loop.time()
        super().on_response_complete()
        self._has_request = not self.cycle.response_complete  # it is that of the last request that came

    def _make_room(self) -> None:
        without_request = [
            other
            for other in self.connections
            if isinstance(other, Connection) and other is not self and not other._has_request
        ]
        if not without_request:
            return
        (crowd, _) = Counter(other.address for other in without_request).most_common(1)[0]
        oldest = min((other for other in without_request if other.address == crowd), key=lambda other: other._since)
        self.connections.discard(oldest)  # `connection_lost` comes later
        oldest._abort()

    @property
    def address(self) -> str:
        """The client's, without its port."""
        return self.client[0] if self.client else ""

    def connection_lost(self, exc: Exception | None) -> None:
        self._got("head", "reader")
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unread += len(data)
        super().data_received(data)
        if self._unread > _MAX_UNREAD_BYTES and not self.transport.is_closing():
            self.send_400_response("Invalid HTTP request received.")
        if self._has_request:
            self._got("head")
        else:  # the first bytes of another request on a connection that was kept alive
            self._wait_for("head", _HEADERS_S)

    def handle_websocket_upgrade(self) -> None:
        self._got("head", "reader")
        super().handle_websocket_upgrade()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait_for("reader", _STALLED_S)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._got("reader")

    def send_400_response(self, msg: str) -> None:
        """In the shape of all other errors; uvicorn's is plain text."""
        in_an_answer = self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete
        if in_an_answer or self.pipeline:
            return self._abort()
        error = ApiError(400, msg).response()
        headers = b"".join(b"%s: %s\r\n" % header for header in error.raw_headers)
        self.transport.write(b"HTTP/1.1 400 Bad Request\r\n%sconnection: close\r\n\r\n%s" % (headers, error.body))
        self.transport.close()

    def _abort(self) -> None:
        # `close` would wait until what is still to be written has been read.
        self.transport.abort()

    def _wait_for(self, what: str, seconds: float) -> None:
        if what not in self._patience:
            self._patience[what] = self.loop.call_later(seconds, self._abort)

    def _got(self, *what: str) -> None:
        for timer in filter(None, (self._patience.pop(name, None) for name in what)):
            timer.cancel()


class _Parser(httptools.HttpRequestParser):
    """Reads a request again whose offer of another protocol was declined."""

    def __init__(self, connection: Connection):
        super().__init__(connection)
        self.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's; it is dropped with the connection
        self._connection = connection

    def feed_data(self, data: Any) -> None:
        try:
            super().feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            head = self._connection.declined()
            if head is None:
                raise
            self._connection.parser.feed_data(head + data[offer.args[0] :])


def _check_head(version: str, target: bytes, headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Refuse what the parser lets through, and a proxy in front may read in another way.

    Raises:
        ValueError: httptools makes its own error of it, for which uvicorn sends a 400.
    """
    values = defaultdict(list)
    for name, value in headers:
        values[name].append(value)
    hosts, encodings, lengths = values[b"host"], values[b"transfer-encoding"], values[b"content-length"]
    if version not in ("1.0", "1.1"):
        raise ValueError("another version of HTTP")
    if not target.startswith((b"/", b"*")):
        raise ValueError("a target that names a host")
    if len(hosts) > 1 or (version == "1.1" and not hosts):
        raise ValueError("not one host")
    if len(encodings) > 1 or (encodings and encodings[0].lower() != b"chunked"):
        raise ValueError("an encoding that nobody here decodes")
    if len(lengths) > 1:
        raise ValueError("several lengths")
