"""An engine that is another server: anything that speaks OpenAI's API, such as vLLM, TGI, llama.cpp or hfchat."""

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar
from urllib.parse import urlsplit

import aiohttp

from hfchat.chat import GREETING, Chat, Json
from hfchat.messages import arguments_as_text, with_arguments
from hfchat.serving.engines.engine import EngineError, EngineInfo, Piece, Sampling
from hfchat.serving.engines.sse import EventError
from hfchat.serving.engines.upstream_answer import AnswerError, ErrorEvent, StreamedAnswer, parsed
from hfchat.serving.http.record import current_record
from hfchat.serving.openai.errors import ApiError
from hfchat.serving.patience import Patience

_CONNECT_S = 5.0
_CHECK_S = 5.0  # until an answer that takes no computation
_SILENCE_S = 120.0  # a long prompt in a full queue takes its time to the first byte
_USAGE_S = 2.0  # from the end of the text to the usage
_END_S = 0.1  # from the last event to the end of the stream
_IDLE_S = 4.0  # uvicorn closes idle connections after 5 s, and a request that is sent at that moment is lost
_MAX_BODY_BYTES = 256 * 1024  # as much is read of a response that is not a stream
_MAX_MESSAGE = 1000  # characters of an upstream's message that are passed on
_CODE = re.compile(r"[\w.-]{1,64}")  # it is logged
# Statuses that are not the client's fault: it has not chosen the address, the key, or the model's name there.
_NOT_THE_CLIENTS = frozenset({401, 403, 404, 405, 407, 408})

_T = TypeVar("_T")


class UpstreamError(EngineError):
    """An upstream failed. Another one may do better.

    Attributes:
        summary: What went wrong, without the upstream's own words, because some of them quote the request.
    """

    def __init__(self, summary: str, message: str = ""):
        super().__init__(f"{summary}: {message}" if message else summary)
        self.summary = summary


class UpstreamBusyError(ApiError):
    """An upstream has no place for a request (429). Another one may have."""


class _DisconnectedError(UpstreamError):
    """The upstream closed the connection before it sent anything."""


@dataclass(frozen=True)
class UpstreamPrompt:
    """A `Prompt` that only the upstream can count.

    Attributes:
        path: Where to ask.
        fields: Those of the request that say what is asked.
        offered: Names of the functions that the answer may call.
    """

    path: str
    fields: Mapping[str, object]
    offered: frozenset[str] = frozenset()
    tokens: None = None


class Upstream:
    """An `Engine` (see `hfchat.serving.engines.engine`) over one server.

    It asks for streams with usage, and sends what a request has set and nothing else, so the upstream's defaults are
    its own. Where no usage comes, because the answer was cut before its end, the prompt counts no tokens.

    Attributes:
        url: The server's, up to and including `/v1`.
    """

    info = EngineInfo("upstream")
    cannot: ClassVar[Mapping[str, str]] = {}
    context_length = None
    temperature = None
    top_p = None
    restarts = 0
    template_fingerprint = None

    def __init__(self, url: str, model: str | None = None, api_key: str | None = None):
        """
        Args:
            url: For example `http://host:8000/v1`; `http://host:8000` means the same.
            model: The model's name there; None takes the one that the server lists.
            api_key: Sent as a bearer token.

        Raises:
            ValueError: If the URL is not the address of a server. Says why.
        """
        self.url = _checked(url)
        self._model = model
        self._headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {api_key}"} if api_key else {})
        self._session: aiohttp.ClientSession | None = None
        self._aborted: str | None = None
        self._waits: set[Patience] = set()

    @property
    def error(self) -> str | None:
        return self._aborted

    async def start(self) -> None:
        self.open()
        await self.ready()

    def open(self) -> None:
        """Get ready to ask, without finding out whether the server answers."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
            auto_decompress=False,
        )

    async def stop(self) -> None:
        self.abort("the server has stopped")
        if self._session is not None:
            await self._session.close()

    def abort(self, reason: str) -> None:
        self._aborted = reason
        for wait in self._waits:
            wait.end()

    async def check(self) -> None:
        """Ask whether it is alive: at `/health`, or for its models where that does not exist.

        Raises:
            UpstreamError: If it is not.
        """
        status, _ = await self._get(self.url.removesuffix("/v1") + "/health")
        if status in (404, 405, 501):
            status, _ = await self._get(f"{self.url}/models")
        if status != 200:
            raise UpstreamError(f"it answered {status} when it was asked whether it is alive")

    async def models(self) -> list[str]:
        """The names of the models that it lists.

        Raises:
            UpstreamError: If it lists no model.
        """
        status, body = await self._get(f"{self.url}/models")
        names = []
        with suppress(ValueError, LookupError, TypeError):
            names = [model["id"] for model in parsed(body)["data"] if isinstance(model["id"], str)]
        if status != 200 or not names:
            raise UpstreamError(f"it answered {status}, and without names, when it was asked for its models")
        return names

    async def ready(self) -> None:
        prompt = await self.encode(GREETING)
        try:
            async for _ in self.stream(prompt, Sampling(max_tokens=1)):
                pass
        except ApiError as error:
            raise UpstreamError("it refuses to say anything", error.message) from error

    async def encode(self, chat: Chat) -> UpstreamPrompt:
        offered = frozenset(function.name for function in chat.functions)
        return UpstreamPrompt("/chat/completions", _chat_fields(chat), offered)

    async def encode_text(self, text: str | Sequence[int]) -> UpstreamPrompt:
        return UpstreamPrompt("/completions", {"prompt": text if isinstance(text, str) else list(text)})

    async def stream(self, prompt: UpstreamPrompt, sampling: Sampling) -> AsyncGenerator[Piece]:
        """The answer, as from any engine; text that has come together is one piece.

        Raises:
            UpstreamError: If the server cannot be reached or fails, or its answer is not a stream of OpenAI's API or
                breaks off.
            UpstreamBusyError: If it has no place for the request.
            ApiError: If it refuses the request.
        """
        response = await self._ask(prompt, sampling)
        answer = StreamedAnswer(sampling.max_tokens, prompt.offered)
        try:
            # Until it says why it ends, every packet can be the last one of a server that fails.
            clock = asyncio.get_running_loop().time
            async with self._patience(_SILENCE_S) as patience:
                while answer.finish_reason is None:
                    patience.until = clock() + _SILENCE_S
                    packet = await patience.wait(response.content.readany())
                    if not packet or answer.done:
                        raise UpstreamError("it broke an answer off")
                    for piece in answer.push(packet):
                        yield piece
            if not answer.is_cut:
                await self._read_to_the_end(answer, response)
            yield answer.last()
        except ErrorEvent as event:
            raise _failure(event.body) from event
        except (EventError, AnswerError) as error:
            raise UpstreamError(f"it sent {error}") from error
        finally:
            response.release()  # closes the connection, which ends the work for it, unless the end has been read

    async def _read_to_the_end(self, answer: StreamedAnswer, response: aiohttp.ClientResponse) -> None:
        """Read the usage, which comes after the text, and the end, so that the connection can be used again.

        The text is whole by now, so whatever goes wrong here is no failure.
        """
        with suppress(UpstreamError, EventError, AnswerError, ErrorEvent):
            end = asyncio.get_running_loop().time() + _USAGE_S
            while not answer.done:
                left = end - asyncio.get_running_loop().time()
                packet = await self._within(left, response.content.readany())
                if not packet:
                    return
                answer.push(packet)
            await self._within(_END_S, response.content.readany())

    async def _ask(self, prompt: UpstreamPrompt, sampling: Sampling) -> aiohttp.ClientResponse:
        """The response whose body is the stream."""
        if self._model is None:
            models = await self.models()
            if len(models) > 1:
                raise UpstreamError("it has several models, and none was chosen")
            self._model = models[0]
        body = {"model": self._model, **prompt.fields, **_fields(prompt, sampling)}
        url = self.url + prompt.path
        try:
            response = await self._request("POST", url, _SILENCE_S, body)
        except _DisconnectedError:  # perhaps an idle connection whose time was over: a new one will tell
            response = await self._request("POST", url, _SILENCE_S, body)
        if response.status == 200 and response.content_type == "text/event-stream":
            return response

        # Anything else is a failure, which the body explains.
        content = await self._body(response)
        if response.status == 200:
            raise UpstreamError(f"it answered with {response.content_type} instead of a stream")
        try:
            refusal = parsed(content)
        except ValueError:
            refusal = content.decode(errors="replace")
        raise _failure(refusal, response.status, response.headers.get("Retry-After"))

    async def _get(self, url: str) -> tuple[int, bytes]:
        response = await self._request("GET", url, _CHECK_S)
        return response.status, await self._body(response)

    async def _request(self, method: str, url: str, seconds: float, body: Any = None) -> aiohttp.ClientResponse:
        if self._session is None:
            raise EngineError("it has not been started")
        request_id = current_record().request_id
        headers = {"X-Request-ID": request_id} if request_id else None
        request = self._session.request(method, url, json=body, headers=headers, allow_redirects=False)
        return await self._within(seconds, request)

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        """The body of a response that is not a stream, as much of it as a sane one has."""
        body = b""
        try:
            while len(body) < _MAX_BODY_BYTES and (packet := await self._within(_CHECK_S, response.content.readany())):
                body += packet
        finally:
            response.release()
        return body

    async def _within(self, seconds: float, step: Awaitable[_T]) -> _T:
        """Take one step of a conversation with the server; raises what `_patience` raises."""
        async with self._patience(seconds) as patience:
            return await patience.wait(step)

    @asynccontextmanager
    async def _patience(self, seconds: float) -> AsyncGenerator[Patience]:
        """Take steps of a conversation with the server, within so many seconds.

        Raises:
            UpstreamError: Says why one cannot be taken.
            EngineError: If the engine was aborted meanwhile.
        """
        try:
            async with Patience(asyncio.get_running_loop().time() + seconds) as patience:
                if self._aborted is not None:
                    patience.end()
                self._waits.add(patience)
                try:
                    yield patience
                finally:
                    self._waits.discard(patience)
        except aiohttp.ServerDisconnectedError as error:
            raise _DisconnectedError("it closed the connection") from error
        except TimeoutError as error:
            if self._aborted is not None:
                raise EngineError(self._aborted) from None
            raise UpstreamError(f"it said nothing for {seconds:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise UpstreamError(f"there is no connection to it ({type(error).__name__})") from error


def _checked(url: str) -> str:
    parts = urlsplit(url)
    try:
        port_is_valid = parts.port != 0
    except ValueError:
        port_is_valid = False
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_valid:
        raise ValueError("must be like http://host:8000/v1")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError("must not have a user, a query or a fragment")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/') or '/v1'}"


def _chat_fields(chat: Chat) -> dict[str, object]:
    """A conversation and what its answer may be, as OpenAI's API has it; vLLM has added `chat_template_kwargs`."""
    chosen: dict[str, object] = {
        "response_format": chat.response_format,
        "reasoning_effort": chat.reasoning_effort,
        "chat_template_kwargs": chat.template_options or None,
    }
    if chat.tools:  # without them, the others are refused
        chosen["tools"] = list(chat.tools)
        chosen["tool_choice"] = None if chat.tool_choice == "auto" else chat.tool_choice
        chosen["parallel_tool_calls"] = None if chat.parallel_tool_calls else False
    asked = {name: value for name, value in chosen.items() if value is not None}
    return {"messages": [_message(message) for message in chat.messages], **asked}


def _message(message: Json) -> Json:
    """A message of the history, in which the arguments of calls are JSON in strings again."""
    if not message.get("tool_calls"):
        return message
    return {**with_arguments(message, arguments_as_text), "content": message["content"] or None}


def _fields(prompt: UpstreamPrompt, sampling: Sampling) -> dict[str, object]:
    """The request's fields beside the model and the prompt."""
    is_chat = prompt.path == "/chat/completions"
    logprobs: dict[str, object] = {"logprobs": sampling.logprobs}
    if is_chat and sampling.logprobs is not None:
        logprobs = {"logprobs": True, "top_logprobs": sampling.logprobs}
    chosen = {
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "logit_bias": {str(id): bias for id, bias in sampling.logit_bias.items()} or None,
        "seed": sampling.seed,
        "presence_penalty": sampling.presence_penalty or None,
        "frequency_penalty": sampling.frequency_penalty or None,
        "stop": list(sampling.stop) or None,
        **logprobs,
    }
    asked = {name: value for name, value in chosen.items() if value is not None}
    return {"stream": True, "stream_options": {"include_usage": True}, **asked}


def _failure(body: Any, status: int | None = None, retry_after: str | None = None) -> Exception:
    """What an error means for the request.

    Args:
        body: Its JSON, or its text; OpenAI's, TGI's, FastAPI's and vLLM's older shapes are known.
        status: None if it came in the middle of a stream; some put it into the body.
        retry_after: The header.
    """
    error = (body.get("error") or body) if isinstance(body, dict) else body
    if not isinstance(error, dict):
        error = {"message": error}
    message = _in_words(error.get("message") or error.get("detail"))[:_MAX_MESSAGE]
    code = error.get("code")
    if status is None:
        status = code if isinstance(code, int) else 500

    # Whose fault it is decides who hears of it: another upstream may have a place, or do better.
    if status == 429:
        seconds = retry_after if retry_after and retry_after.isascii() and retry_after.isdigit() else "5"
        message = "The server is busy. Please try again in a few seconds."
        headers = {"Retry-After": seconds}
        return UpstreamBusyError(429, message, type="rate_limit_error", code="server_busy", headers=headers)
    if 400 <= status < 500 and status not in _NOT_THE_CLIENTS:
        param, code = error.get("param"), code if isinstance(code, str) and _CODE.fullmatch(code) else None
        param = param[:_MAX_MESSAGE] if isinstance(param, str) else None
        return ApiError(status, message or "The upstream refuses this request.", param=param, code=code)
    return UpstreamError(f"it answered {status}", message)


def _in_words(message: Any) -> str:
    """A message as a text; FastAPI's is a list of faults."""
    if isinstance(message, list):
        return "; ".join(_in_words(fault.get("msg")) for fault in message if isinstance(fault, dict))
    return str(message) if isinstance(message, str | int | float) else ""
