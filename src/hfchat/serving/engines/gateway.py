"""An engine that is several servers with the same model: each answer comes from the one that has the least to do."""

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import ClassVar

from hfchat.chat import GREETING, Chat
from hfchat.errors import UserError
from hfchat.serving.engines.engine import EngineError, EngineInfo, Piece, Sampling
from hfchat.serving.engines.upstream import Upstream, UpstreamBusyError, UpstreamError, UpstreamPrompt
from hfchat.serving.http.record import current_record
from hfchat.serving.openai.errors import ApiError

_LOGGER = logging.getLogger("hfchat.serving")
_TRIES = 3  # upstreams that are asked for one answer
_RETRY_S = 10.0  # after this time a failure is final: the client has waited long enough to hear of it
_FAILURES = 3  # failures in a row after which an upstream is no longer asked
_CHECK_EVERY_S = 5.0
_FIRST_PAUSE_S = 1.0  # before an upstream that is down is tried again; then twice as long each time
_LONGEST_PAUSE_S = 30.0
_PROBE_S = 30.0  # the longest wait for the one token that shows that an upstream is back


class Gateway:
    """An `Engine` (see `hfchat.serving.engines.engine`) over upstreams.

    Where an upstream fails before the first piece of an answer, another one takes its place; later, none could go on
    where the first one was. An upstream that fails three times in a row, in answers or when it is asked every few
    seconds whether it is alive, gets no more requests (a circuit breaker). After a pause it is asked for one token, at
    no client's expense, and is back if that comes. Pauses grow, and chance varies them, so that several gateways do
    not come back at the same moment.

    Attributes:
        upstreams: Each with what is known of it.
        retries: How often another upstream had to take the place of one that failed.
    """

    info = EngineInfo("upstream")
    cannot: ClassVar[Mapping[str, str]] = {}
    context_length = None
    temperature = None
    template_fingerprint = None
    top_p = None
    restarts = 0

    def __init__(self, upstreams: Sequence[Upstream]):
        self.upstreams = [WatchedUpstream(upstream) for upstream in upstreams]
        self.retries = 0
        self._turn = 0
        self._aborted: str | None = None
        self._watchers: list[asyncio.Task] = []

    @property
    def error(self) -> str | None:
        if self._aborted is None and all(watched.down for watched in self.upstreams):
            return "no upstream answers"
        return self._aborted

    async def start(self) -> None:
        """Begin to watch the upstreams. If none answers, that is not a failure: `error` says so until one does."""
        for watched in self.upstreams:
            watched.upstream.open()
        await asyncio.gather(*(watched.probe() for watched in self.upstreams))
        self._watchers = [asyncio.create_task(watched.watch()) for watched in self.upstreams]

    async def stop(self) -> None:
        self.abort("the server has stopped")
        if self._watchers:
            await asyncio.wait(self._watchers)
        for watched in self.upstreams:
            await watched.upstream.stop()

    def abort(self, reason: str) -> None:
        self._aborted = reason
        for watcher in self._watchers:
            watcher.cancel()
        for watched in self.upstreams:
            watched.upstream.abort(reason)

    async def ready(self) -> None:
        prompt = await self.encode(GREETING)
        try:
            async for _ in self.stream(prompt, Sampling(max_tokens=1)):
                pass
        except ApiError as error:
            raise EngineError(error.message) from error

    async def encode(self, chat: Chat) -> UpstreamPrompt:
        return await self.upstreams[0].upstream.encode(chat)

    async def encode_text(self, text: str | Sequence[int]) -> UpstreamPrompt:
        return await self.upstreams[0].upstream.encode_text(text)

    async def stream(self, prompt: UpstreamPrompt, sampling: Sampling) -> AsyncGenerator[Piece]:
        """The answer, as from any engine.

        Raises:
            EngineError: If it breaks off after it has begun.
            ApiError: If an upstream refuses the request: its own error. 429 if one was busy and no other could answer,
                502 if all that were asked failed, 503 if there is no upstream to ask.
        """
        end = asyncio.get_running_loop().time() + _RETRY_S
        asked: list[WatchedUpstream] = []
        busy: UpstreamBusyError | None = None
        while len(asked) < _TRIES and (watched := self._choose(asked)):
            if asked and asyncio.get_running_loop().time() > end:
                break
            self.retries += bool(asked)
            asked.append(watched)
            begun = False
            watched.in_flight += 1
            try:
                async with aclosing(watched.upstream.stream(prompt, sampling)) as pieces:
                    async for piece in pieces:
                        if piece.finish_reason is not None:
                            watched.succeeded()
                        begun = True
                        yield piece
                return
            except UpstreamBusyError as error:
                busy = error
            except ApiError:  # an upstream that refuses a request is alive
                watched.succeeded()
                raise
            except UpstreamError as error:
                watched.failed(error)
                if begun:
                    raise EngineError("the upstream broke it off") from error
            finally:
                watched.in_flight -= 1

        # No upstream has answered. A busy one says more than those that failed: the client may come back.
        if busy is not None:
            raise busy
        if asked:
            raise ApiError(502, "The upstream could not answer.", code="upstream_error")
        message = "The server cannot answer now: no upstream answers"
        raise ApiError(503, message, code="engine_unavailable", headers={"Retry-After": "10"})

    def _choose(self, asked: Sequence["WatchedUpstream"]) -> "WatchedUpstream | None":
        """The upstream with the fewest answers in flight; of several, the one whose turn it is."""
        self._turn += 1
        count = len(self.upstreams)
        in_turn = (self.upstreams[(self._turn + i) % count] for i in range(count))
        usable = [watched for watched in in_turn if not watched.down and watched not in asked]
        return min(usable, key=lambda watched: watched.in_flight, default=None)


class WatchedUpstream:
    """An upstream and its circuit breaker.

    Attributes:
        in_flight: Answers that it is generating for this server.
        failures: How often it has failed since the start.
    """

    def __init__(self, upstream: Upstream):
        self.upstream = upstream
        self.in_flight = 0
        self.failures = 0
        self._failures_in_a_row = 0
        self._down = asyncio.Event()

    @property
    def down(self) -> bool:
        """Whether it gets no requests."""
        return self._down.is_set()

    def succeeded(self) -> None:
        """Note that it has done what it was asked for."""
        self._failures_in_a_row = 0

    def failed(self, error: EngineError) -> None:
        """Note that it has not done what it was asked for."""
        self.failures += 1
        self._failures_in_a_row += 1
        _LOGGER.warning("upstream %s: %s", self.upstream.url, _for_the_log(error))
        if self._failures_in_a_row >= _FAILURES:
            self._go_down()

    async def probe(self) -> None:
        """Let it generate one token: it is up if that comes, and down if not."""
        try:
            async with asyncio.timeout(_PROBE_S):
                await self.upstream.ready()
        except (EngineError, TimeoutError) as error:
            self.failures += 1
            _LOGGER.warning("upstream %s: no token (%s)", self.upstream.url, error)
            self._go_down()
        else:
            self._failures_in_a_row = 0
            if self.down:
                _LOGGER.info("upstream %s is back", self.upstream.url)
                self._down.clear()

    async def watch(self) -> None:
        """Check it while it is up, and probe it while it is down, until this is cancelled."""
        pause = _FIRST_PAUSE_S
        while True:
            if self.down:
                await asyncio.sleep(pause * random.uniform(0.5, 1.5))
                pause = min(2 * pause, _LONGEST_PAUSE_S)
                await self.probe()
                continue
            pause = _FIRST_PAUSE_S
            try:
                async with asyncio.timeout(_CHECK_EVERY_S):
                    await self._down.wait()
            except TimeoutError:
                await self._check()

    async def _check(self) -> None:
        """Note a failure if it is not alive. That it is alive is not a success: its answers may all fail."""
        try:
            await self.upstream.check()
        except EngineError as error:
            self.failed(error)

    def _go_down(self) -> None:
        if not self.down:
            _LOGGER.error("upstream %s is down", self.upstream.url)
            self._down.set()


def _for_the_log(error: EngineError) -> str:
    """What went wrong. The upstream's own words may quote the request, so only `--log-content` lets them in."""
    if not isinstance(error, UpstreamError) or current_record().with_content:
        return str(error)
    cause = f" ({error.__cause__})" if isinstance(error.__cause__, OSError) else ""
    return error.summary + cause


def open_gateway(urls: Sequence[str], model: str | None = None, api_key: str | None = None) -> tuple[str, Gateway]:
    """A gateway to upstreams, and the name of their model.

    Args:
        urls: The addresses of the upstreams, up to and including `/v1`.
        model: The name; None asks them for the one that all have. A model that is named need not be there yet.
        api_key: Sent to each.

    Raises:
        UserError: If a URL is not valid, or the name is not known because no upstream answers, or they have several.
    """
    for url in urls:
        try:
            Upstream(url)
        except ValueError as error:
            raise UserError(f"{url}: an upstream {error}") from error
    model = model or asyncio.run(_common_model(urls, api_key))
    return model, Gateway([Upstream(url, model, api_key) for url in urls])


async def _common_model(urls: Sequence[str], api_key: str | None) -> str:
    names: list[set[str]] = []
    failure = ""
    for url in urls:
        upstream = Upstream(url, api_key=api_key)
        upstream.open()
        # One that does not answer may be down for a moment; the others know the name.
        try:
            names.append(set(await upstream.models()))
        except EngineError as error:
            failure = f"{url}: {error}"
        finally:
            await upstream.stop()
    if not names:
        raise UserError(f"{failure}; start it first, or name its model with --upstream-model")
    common = set.intersection(*names)
    if len(common) != 1:
        has = f"have {', '.join(sorted(common))}" if common else "have no model in common"
        raise UserError(f"{', '.join(urls)} {has}; choose one with --upstream-model")
    return common.pop()
