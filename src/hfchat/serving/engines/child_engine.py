"""An engine that is a child process: llama.cpp's server or vLLM's, which gets token ids from here."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing, suppress
from typing import Any, TypeVar

import aiohttp

from hfchat.chat import Chat
from hfchat.engines.child import ChildServer, Program
from hfchat.engines.dialect import Chunk, Dialect, EngineFailureError, ScoredText, TokenRequest
from hfchat.errors import UserError
from hfchat.serving.engines.engine import (
    CompleteSampling,
    EngineError,
    EngineInfo,
    Logprob,
    Piece,
    PromptError,
    Sampling,
    TokenLogprobs,
)
from hfchat.serving.engines.prompting import Prompting, TokenPrompt, parsed
from hfchat.serving.engines.reading import ReadingInParts
from hfchat.serving.engines.sse import EventError, EventReader
from hfchat.serving.engines.supervising import Supervisor
from hfchat.serving.http.record import current_record
from hfchat.structured.masks import GrammarCompiler, Matcher, MatcherError

_CONNECT_S = 5.0
_CHECK_S = 0.05
_HEALTH = aiohttp.ClientTimeout(total=5.0)
_NOTICE_S = 3.0  # until it is known that a process has ended; vLLM takes 2 s to end when its engine has
_RESTART_S = 600.0  # how long an answer waits for a restart before it fails
_DONE = b"[DONE]"
_Result = TypeVar("_Result")


class _NotBegunError(EngineError):
    """The child cannot be asked, or has failed before anything of an answer has come."""


class Child:
    """A child server, shared by the engines of a model and of its adapters: started once, watched, started again.

    Attributes:
        server: The one that runs now.
        supervisor: Starts it again when it has ended.
        reading: Lets long prompts in.
    """

    def __init__(self, program: Program):
        self._program = program
        self.server = ChildServer(program)
        self.supervisor = Supervisor(self._restart, lambda: self.server.why_ended())
        self.reading = ReadingInParts()
        self._users = 0
        self._up = asyncio.Event()
        self._session: aiohttp.ClientSession | None = None
        self._try: Callable[[], Awaitable[None]] | None = None

    async def start(self, try_it: Callable[[], Awaitable[None]]) -> None:
        """Start it for one more engine.

        Args:
            try_it: Has it generate a token.

        Raises:
            UserError: If it ends before it listens.
        """
        self._users += 1
        if self._users > 1:
            return
        self._try = try_it
        # A connection for each answer: to close it is how an answer is given up, and llama.cpp's server sometimes
        # closes one that is kept in the moment in which it is used again.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
            auto_decompress=False,
        )
        try:
            await self._launch()
        except BaseException:
            self._users -= 1
            await self._session.close()
            raise
        self.supervisor.begin()

    async def stop(self) -> None:
        """Stop it, if no other engine uses it."""
        self._users -= 1
        if self._users > 0 or self._session is None:
            return
        await self.supervisor.end()
        self._up.clear()
        await asyncio.to_thread(self.server.stop)
        await self._session.close()

    async def wait_until_up(self) -> None:
        """Return when it can be asked; a restart is waited for.

        Raises:
            EngineError: If it is down for longer.
        """
        try:
            async with asyncio.timeout(_RESTART_S):
                await self._up.wait()
        except TimeoutError:
            raise EngineError(self.supervisor.down or f"{self._program.name} does not answer") from None

    async def wait_until_noticed(self) -> None:
        """Give a child that cannot be asked the time in which its end is noticed."""
        end = asyncio.get_running_loop().time() + _NOTICE_S
        while self._up.is_set() and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(_CHECK_S)

    async def ask(self, path: str, body: object) -> aiohttp.ClientResponse:
        """The response whose body is the stream of an answer.

        Raises:
            EngineError: If the child does not answer.
        """
        if self._session is None:
            raise EngineError("the engine has not been started")
        headers = {"Authorization": f"Bearer {self.server.key}"}
        try:
            response = await self._session.post(self.server.url + path, json=body, headers=headers)
        except (aiohttp.ClientError, OSError) as error:
            raise _NotBegunError(f"there is no connection to {self._program.name}") from error
        if response.status == 200:
            return response
        text = await response.text(errors="replace")
        response.release()
        failure = _NotBegunError if response.status >= 500 else EngineError
        raise failure(f"{self._program.name} answered {response.status}: {text[:500]}")

    async def _launch(self) -> None:
        """Start a server, and return when it has generated a token."""
        loop = asyncio.get_running_loop()
        server = ChildServer(self._program, on_exit=lambda: _call(loop, self._exited, server))
        self.server = server
        try:
            await asyncio.to_thread(server.start)
            while not await self._is_healthy(server):
                if not server.is_running:
                    raise UserError(await asyncio.to_thread(server.why_ended))
                await asyncio.sleep(_CHECK_S)
            assert self._try is not None
            await self._try()
        except BaseException:
            await asyncio.to_thread(server.stop)
            raise
        self._up.set()

    async def _restart(self) -> None:
        await asyncio.to_thread(self.server.stop)
        self.supervisor.forget()
        await self._launch()

    def _exited(self, server: ChildServer) -> None:
        if server is self.server:
            self._up.clear()
            self.supervisor.crashed()

    async def _is_healthy(self, server: ChildServer) -> bool:
        assert self._session is not None
        with suppress(aiohttp.ClientError, OSError, TimeoutError):
            async with self._session.get(f"{server.url}/health", timeout=_HEALTH) as response:
                return response.status == 200
        return False


class ChildEngine:
    """An `Engine` (see `hfchat.serving.engines.engine`) over a child server.

    Prompts are made here, by the model's own tokenizer and template, as for the engine in this process, and every
    setting of the sampling is sent. If the child ends, the running answers end with an `EngineError`, and it is
    started again; answers that are asked for meanwhile wait.
    """

    def __init__(
        self,
        child: Child,
        dialect: Dialect,
        prompting: Prompting,
        info: EngineInfo,
        adapter: str | None = None,
    ):
        """
        Args:
            child: The server, which may be shared.
            dialect: How it is asked.
            prompting: Makes its prompts.
            info: What it is.
            adapter: The adapter that answers; None is the base.
        """
        self._child = child
        self._dialect = dialect
        self._prompting = prompting
        self._adapter = adapter
        self._grammars = GrammarCompiler(prompting.tokenizer, prompting.vocabulary, prompting.ends)
        self._aborted: str | None = None
        self._responses: set[aiohttp.ClientResponse] = set()
        self._waiting: set[asyncio.Task[Any]] = set()  # for a child that is up, or for what it says
        self.info, self.cannot = info, dialect.cannot
        self.context_length = prompting.context_length
        self.template_fingerprint = prompting.template_fingerprint
        self.temperature, self.top_p = prompting.sampling.temperature, prompting.sampling.top_p
        self.encode_text = prompting.encode_text

    @property
    def error(self) -> str | None:
        # The first restart in a row is waited for; a child that ends again and again is down.
        supervisor = self._child.supervisor
        return self._aborted or (supervisor.down if supervisor.crashes > 1 else None)

    @property
    def restarts(self) -> int:
        return self._child.supervisor.restarts if self._adapter is None else 0

    async def start(self) -> None:
        try:
            await self._prompting.try_template()
            await self._child.start(self.ready)
        except BaseException:
            self._prompting.close()
            raise

    async def stop(self) -> None:
        self.abort("the engine was stopped")
        self._prompting.close()
        await self._child.stop()

    def abort(self, reason: str) -> None:
        self._aborted = reason
        for response in self._responses:
            response.close()
        for task in self._waiting:
            task.cancel()

    async def ready(self) -> None:
        async for _ in self._generate(self._prompting.shortest(), Sampling(max_tokens=1)):
            pass

    async def stream(self, prompt: TokenPrompt, sampling: Sampling) -> AsyncGenerator[Piece]:
        """The answer, as from any engine. One that nothing has come of yet is asked for again after a restart."""
        if self.error is not None:
            raise EngineError(self.error)
        for is_second in (False, True):
            await self._unless_aborted(self._child.wait_until_up())
            try:
                async with aclosing(parsed(prompt, self._generate(prompt, sampling))) as pieces:
                    async for piece in pieces:
                        # Told before the last piece, after which nobody may listen any more.
                        if piece.finish_reason is not None:
                            self._child.supervisor.succeeded()
                        yield piece
                return
            except _NotBegunError:
                if is_second:
                    raise
                await self._unless_aborted(self._child.wait_until_noticed())

    async def encode(self, chat: Chat) -> TokenPrompt:
        prompt = await self._prompting.encode(chat)
        # A grammar that the child cannot compile would bind nothing, so it is refused here.
        grammar = prompt.grammar or ""
        unknown = next((name for name in self._dialect.unknown_formats if f'"format": "{name}"' in grammar), None)
        if unknown is not None:
            field = "tools" if chat.answer_schema is None else "response_format"
            raise PromptError(f"{self.info.engine} cannot honour the format '{unknown}'; take it out", field)
        return prompt

    async def _generate(self, prompt: TokenPrompt, sampling: Sampling) -> AsyncGenerator[Piece]:
        self._prompting.check(prompt)
        if prompt.grammar is not None and sampling.logprobs is not None and self._dialect.masks_logprobs:
            reason = f"{self.info.engine} tells only those of the tokens that are left to choose from"
            raise PromptError(f"not where the answer has a form that it must have, because {reason}", "logprobs")
        request = self._request(prompt, self._prompting.complete(prompt, sampling))
        matcher = await self._matcher(prompt)
        owner, reading = current_record().key_name, self._child.reading
        with reading.asked_by(owner):
            if self._dialect.reads_whole:
                await self._unless_aborted(reading.read(request, owner, self._read))
            async with aclosing(self._chunks(request)) as chunks:
                async for chunk in chunks:
                    if matcher is not None:
                        self._follow(chunk, matcher, prompt.kept)
                    yield _piece(chunk)

    async def _matcher(self, prompt: TokenPrompt) -> Matcher | None:
        """What follows the answer to a prompt; None if it may be any text."""
        if prompt.grammar is None:
            return None
        try:
            return await asyncio.to_thread(self._grammars.matcher, prompt.grammar)
        except MatcherError as error:
            raise EngineError(f"the grammar of the answer cannot be compiled: {error}") from error

    def _follow(self, chunk: Chunk, matcher: Matcher, kept: frozenset[int]) -> None:
        """Make sure that an answer stays within its grammar.

        llama.cpp goes on without one in silence where its llguidance, which is another one than ours, cannot compile
        it, or cannot make a mask by it (seen in xllamacpp 2026.10).

        Raises:
            EngineError: If it does not.
        """
        try:
            if chunk.ids is None:
                matcher.accept_text(chunk.text)
            for id in chunk.ids or ():
                is_an_end = id in self._prompting.ends or id in self._dialect.special_tokens  # the engine knows more
                if id in kept or not is_an_end:
                    matcher.accept(id)
        except MatcherError as error:
            raise EngineError(f"{self.info.engine} left the grammar of the answer: {error}") from error
        if chunk.finish_reason == "stop" and not matcher.accepting:
            raise EngineError(f"{self.info.engine} ended the answer before its grammar did")

    async def _read(self, request: TokenRequest) -> None:
        async with aclosing(self._chunks(request)) as chunks:
            async for _ in chunks:
                pass

    async def _chunks(self, request: TokenRequest) -> AsyncGenerator[Chunk]:
        response = await self._unless_aborted(self._child.ask(self._dialect.path, self._dialect.body(request)))
        reader, events, finished = self._dialect.reader(request), EventReader(), False
        failure: type[EngineError] = _NotBegunError
        self._responses.add(response)
        try:
            while not finished:
                if self._aborted is not None:
                    raise EngineError(self._aborted)
                packet = await response.content.readany()
                if not packet:
                    raise failure("the engine broke the answer off")
                for event in events.push(packet):
                    chunk = None if event == _DONE else reader.read(event)
                    if chunk is not None and not finished:
                        finished, failure = chunk.finish_reason is not None, EngineError
                        yield chunk
        except (aiohttp.ClientError, OSError) as error:
            if self._aborted is not None:
                raise EngineError(self._aborted) from error
            raise failure("the engine broke the answer off") from error
        except (EngineFailureError, EventError) as error:
            raise failure(str(error)) from error
        finally:
            self._responses.discard(response)
            response.close()  # which ends the work for it

    async def _unless_aborted(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Wait for something for as long as there is somebody to answer.

        Raises:
            EngineError: If the engine is aborted meanwhile.
        """
        task = asyncio.create_task(work)
        self._waiting.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            if self._aborted is None:
                raise
            raise EngineError(self._aborted) from None
        finally:
            self._waiting.discard(task)

    def _request(self, prompt: TokenPrompt, sampling: CompleteSampling) -> TokenRequest:
        return TokenRequest(
            prompt=prompt.ids,
            max_tokens=sampling.max_tokens,
            ends=frozenset(self._prompting.ends),
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            logit_bias=sampling.logit_bias,
            grammar=prompt.grammar,
            kept=prompt.kept,
            seed=sampling.seed,
            logprobs=sampling.logprobs,
            adapter=self._adapter,
        )


def _piece(chunk: Chunk) -> Piece:
    logprobs = [TokenLogprobs(_logprob(chosen), tuple(map(_logprob, top))) for chosen, top in chunk.logprobs]
    return Piece(chunk.text, chunk.tokens, chunk.finish_reason, tuple(logprobs))


def _logprob(scored: ScoredText) -> Logprob:
    return Logprob(scored.text, scored.logprob, scored.bytes)


def _call(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *arguments: object) -> None:
    if not loop.is_closed():
        with suppress(RuntimeError):  # it was closed since
            loop.call_soon_threadsafe(function, *arguments)
