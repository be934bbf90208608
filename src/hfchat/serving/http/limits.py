"""Bounded places, times, bodies and connections: what one client takes, others still get."""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hfchat.serving.http.checks import refuse
from hfchat.serving.http.rates import Meter
from hfchat.serving.http.record import record_of
from hfchat.serving.openai.errors import ApiError

_LARGE_BODY_BYTES = 2**16  # the smaller ones take less time than a step of a model
EXTRA_PLACES = 1  # to generate in, for keys that have none


@dataclass
class _Share:
    """What one API key has of the places.

    Attributes:
        waiting: Places reserved and not taken.
        running: Places taken.
        served: Tokens so far, by which keys that have as many places come in turn.
        queue: Who waits for a place, in order of arrival, and what they reserved.
    """

    waiting: int = 0
    running: int = 0
    served: float = 0.0
    queue: deque[tuple[asyncio.Future[None], "Reservation"]] = field(default_factory=deque)

    @property
    def held(self) -> int:
        return self.waiting + self.running


class Slots:
    """Places for answers: some generate, some wait for their turn, and more are refused.

    Each API key has the places to wait in for itself, so no key can fill them for another. A place that becomes free
    goes to the key that has the fewest, and of those to the one that was served the fewest tokens. A key that has none
    does not wait for one that has them all: there are extra places for such.

    Attributes:
        running: Answers that are generated now.
        waiting: Answers that wait for a place, those included whose prompts are still being read.
        capacity: Places to generate and to wait in together, for one key.
        max_wait_s: Seconds that a request may wait; without an end if None.
        max_hold_s: Seconds that an answer may take; without an end if None.

    Args:
        max_running: Places to generate in.
        max_waiting: Places to wait in, for each key.
        extra: Places beyond `max_running`, for keys that have none.
    """

    def __init__(
        self,
        max_running: int,
        max_waiting: int,
        max_wait_s: float | None = None,
        max_hold_s: float | None = None,
        extra: int = EXTRA_PLACES,
    ):
        self.running = 0
        self.waiting = 0
        self.capacity = max_running + max_waiting
        self.max_wait_s = max_wait_s
        self.max_hold_s = max_hold_s
        self._max_running = max_running
        self._extra = extra
        self._shares: dict[str | None, _Share] = {}  # of keys, which are as many as the server was given

    def reserve(self, places: int = 1, key: str | None = None) -> "Reservation":
        """Let a request in. Close what comes back when the request is over.

        Args:
            places: One for each of its answers.
            key: The name of the API key that asks; None where there are no keys.

        Raises:
            ApiError: 429 if the key has not so many places left.
        """
        share = self._shares.setdefault(key, _Share())
        if share.held + places > self.capacity:
            raise ApiError(
                429,
                "The server is busy: too many requests are waiting. Please try again in a few seconds.",
                type="rate_limit_error",
                code="server_busy",
                headers={"Retry-After": "5"},
            )
        if not share.held:  # a key that did nothing for a while has no claim to what the others had meanwhile
            others = [other.served for other in self._shares.values() if other.held]
            share.served = max(share.served, min(others, default=0.0))
        return Reservation(self, share, places)

    @asynccontextmanager
    async def take(self, key: str | None = None) -> AsyncIterator[float | None]:
        """Reserve one place, and take it: see `Reservation.take`."""
        with closing(self.reserve(1, key)) as reservation:
            async with reservation.take() as deadline:
                yield deadline

    def serve_next(self) -> None:
        """Give free places to those whose turn it is."""
        while True:
            in_turn = [share for share in self._shares.values() if share.queue and self._may_run(share)]
            if not in_turn:
                return
            share = min(in_turn, key=lambda share: (share.running, share.served))
            turn, reservation = share.queue.popleft()
            # At once, and not when the task goes on: a place that counted twice would keep a request out.
            reservation.change(-1)
            share.running += 1
            self.running += 1
            turn.set_result(None)

    def _may_run(self, share: _Share) -> bool:
        return self.running < self._max_running + (0 if share.running else self._extra)


class Reservation:
    """The places of one request: it was let in, so each of its answers will have one.

    Attributes:
        begun: Whether one of its answers has had a place. From then on the others wait without an end, because what
            has been computed would be lost with them.
        on_charge: Called with the tokens that are charged.
    """

    def __init__(self, slots: Slots, share: _Share, places: int):
        self.begun = False
        self.on_charge: Callable[[int], None] = lambda tokens: None
        self._slots = slots
        self._share = share
        self._places = 0
        self.change(places)

    def charge(self, tokens: int) -> None:
        """Count tokens that were read or generated for it."""
        self._share.served += tokens
        self.on_charge(tokens)

    @asynccontextmanager
    async def take(self) -> AsyncIterator[float | None]:
        """Wait for the turn, and hold one of the places; a cancelled task gives it up, waiting or running.

        Yields:
            The time of the event loop at which the place should be given back, None if there is no such time.

        Raises:
            ApiError: 503 if the wait was too long and no answer of the request has begun.
        """
        await self._wait()
        self.begun = True
        hold = self._slots.max_hold_s
        try:
            yield None if hold is None else asyncio.get_running_loop().time() + hold
        finally:
            self._free()

    async def _wait(self) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        place = turn, self
        self._share.queue.append(place)
        self._slots.serve_next()
        try:
            await asyncio.wait({turn}, timeout=self._slots.max_wait_s)
            if not turn.done() and not self.begun:
                seconds = f"{self._slots.max_wait_s:g}"
                message = f"The server is busy: no place became free in {seconds} s. Please try again later."
                raise ApiError(503, message, code="queue_timeout", headers={"Retry-After": "10"})
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                self._free()
            elif place in self._share.queue:
                self._share.queue.remove(place)
            raise

    def _free(self) -> None:
        self._share.running -= 1
        self._slots.running -= 1
        self._slots.serve_next()

    def close(self) -> None:
        """Give back the places that have not been taken."""
        self.change(-self._places)

    def change(self, places: int) -> None:
        """Have so many more places that have not been taken."""
        self._places += places
        self._share.waiting += places
        self._slots.waiting += places


class Gate:
    """Counts the requests inside, and once it is closed lets no other in.

    Attributes:
        inside: Requests that are being answered.
        closed: Whether the server is about to stop.
    """

    def __init__(self) -> None:
        self.inside = 0
        self.closed = False

    def check(self) -> None:
        """Raise the 503 for a request that comes after it was closed."""
        if self.closed:
            headers = {"Retry-After": "10", "Connection": "close"}
            raise ApiError(503, "The server is shutting down.", code="shutting_down", headers=headers)


class GateKeeper:
    """Sends all requests but those to `open_paths` through a gate, at most `max_inside` at a time (503)."""

    def __init__(self, app: ASGIApp, gate: Gate, open_paths: Collection[str], max_inside: int):
        self._app = app
        self._gate = gate
        self._open_paths = open_paths
        self._max_inside = max_inside

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] in self._open_paths:
            return await self._app(scope, receive, send)
        try:
            self._gate.check()
        except ApiError as closed:
            return await refuse(closed, scope, receive, send)
        if scope["type"] == "websocket":  # a connection may last; what is asked over it comes through here by itself
            return await self._app(scope, receive, send)
        if self._gate.inside >= self._max_inside:
            headers = {"Retry-After": "10", "Connection": "close"}
            error = ApiError(503, "The server has too many requests.", code="server_busy", headers=headers)
            return await refuse(error, scope, receive, send)
        self._gate.inside += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._gate.inside -= 1


class BodyLimit:
    """Takes only JSON, at most `max_bytes` of it, and waits at most `max_s` seconds for the whole.

    Large bodies are read no faster than `bytes_per_s` from one API key, and from all clients without one: reading and
    checking them takes the time of everybody's answers, also where they are refused then.

    The size is bounded also where the body comes in chunks that declare no length. A browser sends JSON to another
    site only after it has asked whether it may (CORS), so no page can make its visitor's browser post here.

    Answers with 413, 408 and 415.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, max_s: float, bytes_per_s: float):
        self._app = app
        self._max_bytes = max_bytes
        self._max_s = max_s
        self._read: Meter[str | None] = Meter(bytes_per_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        # What the head says is enough to refuse most of what is not for this server.
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > self._max_bytes:
            return await self._too_large().response()(scope, receive, send)
        has_body = length != "0" or "transfer-encoding" in headers
        if has_body and headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
            error = ApiError(415, "The body must be JSON, sent as application/json.", code="unsupported_media_type")
            return await error.response()(scope, receive, send)
        # The rest shows while the body comes.
        deadline = asyncio.get_running_loop().time() + self._max_s
        received = 0
        complete = not has_body

        async def bounded_receive() -> Message:
            nonlocal received, complete
            if complete:
                return await receive()  # waits for the client to go away
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                late = f"The request's body did not come within {self._max_s:g} s."
                raise HTTPException(408, late, headers={"Connection": "close"}) from None
            # A body that declares no length must not grow for ever either.
            complete = not message.get("more_body", False)
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise HTTPException(413, self._too_large().message, headers={"Connection": "close"})
            if complete and received > _LARGE_BODY_BYTES:
                await self._take_turn(record_of(scope).key_name, received)
            return message

        await self._app(scope, bounded_receive, send)

    async def _take_turn(self, key: str | None, size: int) -> None:
        """Wait until what the key sent before has had its time."""
        wait = self._read.debt(key)
        self._read.use(key, size)
        if wait:
            await asyncio.sleep(wait)

    def _too_large(self) -> ApiError:
        message = f"The request is too large: at most {self._max_bytes} bytes."
        return ApiError(413, message, code="request_too_large", headers={"Connection": "close"})


class WebSocketLimit:
    """Bounds how many WebSockets a client may hold, and for how long one may be idle.

    A client is a key, or an address where there are no keys.

    Args:
        max_each: Most connections of one client; more are refused.
        max_all: Most connections of all clients.
        idle_s: Seconds without a message in either direction, after which a connection is closed.
    """

    def __init__(self, app: ASGIApp, max_each: int, max_all: int, idle_s: float):
        self._app = app
        self._max_each = max_each
        self._max_all = max_all
        self._idle_s = idle_s
        self._held: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            return await self._app(scope, receive, send)
        client = record_of(scope).key_name or f"address {(scope.get('client') or [''])[0]}"
        if self._held[client] >= self._max_each or self._held.total() >= self._max_all:
            return await refuse(ApiError(429, "Too many WebSockets are open."), scope, receive, send)
        self._held[client] += 1
        try:
            await self._until_idle(scope, receive, send)
        finally:
            self._held[client] -= 1
            self._held += Counter()  # forgets clients that hold no connection

    async def _until_idle(self, scope: Scope, receive: Receive, send: Send) -> None:
        clock = asyncio.get_running_loop().time
        last = clock()
        waiting: asyncio.Timeout | None = None

        async def noted_send(message: Message) -> None:
            nonlocal last
            last = clock()
            if waiting is not None and not waiting.expired():
                waiting.reschedule(last + self._idle_s)
            await send(message)

        async def patient_receive() -> Message:
            nonlocal last, waiting
            try:
                async with asyncio.timeout_at(last + self._idle_s) as waiting:
                    message = await receive()
            except TimeoutError:
                await send({"type": "websocket.close", "code": 1001, "reason": "Nothing came for too long."})
                return {"type": "websocket.disconnect", "code": 1001}
            finally:
                waiting = None
            last = clock()
            return message

        await self._app(scope, patient_receive, noted_send)
