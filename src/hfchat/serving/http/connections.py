"""uvicorn's HTTP/1.1 connections, with an end to the patience for clients that hold one and do nothing.

This builds on an internal of uvicorn (read in 0.54), whose options bound none of this: `timeout_keep_alive` ends only
before the first byte of the next request, `limit_concurrency` refuses whoever comes last, and nothing looks at a
client that does not read. tests/serving/http/test_limits.py fails if uvicorn changes it.
"""

import asyncio
from collections import Counter
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from hfchat.serving.openai.protocol import ApiError

_HEADERS_S = 10.0  # for the whole head of a request
_STALLED_S = 30.0  # for a client that does not read what it is sent
_MAX_CONNECTIONS = 900  # idle ones included; one costs a file descriptor, of which 1,024 is a usual limit
MAX_REQUESTS = 800  # at a time, so that some of the connections always wait, and can make room for another


class Connection(H11Protocol):
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

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast("asyncio.Transport", transport))
        self._since = self.loop.time()
        self._wait_for("head", _HEADERS_S)
        if len(self.connections) > _MAX_CONNECTIONS:
            self._make_room()

    def on_response_complete(self) -> None:
        self._since = self.loop.time()
        super().on_response_complete()

    def _make_room(self) -> None:
        without_request = [
            other
            for other in self.connections
            if isinstance(other, Connection) and other is not self and other.conn.their_state is h11.IDLE
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
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._got("head")
        else:  # the first bytes of another request on a connection that was kept alive
            self._wait_for("head", _HEADERS_S)

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        self._got("head", "reader")
        super().handle_websocket_upgrade(event)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait_for("reader", _STALLED_S)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._got("reader")

    def send_400_response(self, msg: str) -> None:
        """In the shape of all other errors; uvicorn's is plain text."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # in the middle of an answer
            return self._abort()
        error = ApiError(400, msg).response()
        headers = [*error.raw_headers, (b"connection", b"close")]
        body = h11.Data(data=bytes(error.body))
        for part in (h11.Response(status_code=400, headers=headers), body, h11.EndOfMessage()):
            self.transport.write(self.conn.send(part))
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
