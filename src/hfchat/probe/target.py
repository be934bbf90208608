"""The server that is probed: how to reach it, what to ask it, and how to judge what it answers.

Nobody has checked the JSON of its answers, so here `Any` is what it is; `suite.run` takes what cannot be read for a
failure.
"""

import asyncio
import contextlib
import itertools
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from hfchat.errors import UserError
from hfchat.probe.process import ServerProcess
from hfchat.probe.sse import parse_events
from hfchat.probe.verdicts import FailedError, SkippedError

QUESTION = "Count from 1 to 500, one number per line."
LONG = 400  # tokens of an answer that must not end before something happens to it
_ANSWER_S = 60.0
_LOAD_S = 300.0
# How servers call what they are working on: hfchat, vLLM, TGI, llama.cpp.
_IN_FLIGHT = re.compile(
    r"^(?:hfchat_answers_(?:running|waiting)|vllm:num_requests_(?:running|waiting)"
    r"|tgi_(?:batch_current_size|queue_size)|llamacpp:requests_(?:processing|deferred))(?:\{.*\})? (\S+)$",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Stream:
    """A streamed answer.

    Attributes:
        content_type: The media type of the response, in lower case.
        data: The data of each event.
        chunks: The events that are JSON: all but `[DONE]`.
        first_text_s: Seconds from the request to the first text; None if there was none.
        seconds: Until the end.
    """

    content_type: str
    data: list[str]
    chunks: list[dict]
    first_text_s: float | None
    seconds: float

    def choices(self, index: int = 0) -> list[dict]:
        """The choices that belong to one of the answers, in order."""
        choices = itertools.chain.from_iterable(chunk["choices"] for chunk in self.chunks)
        return [choice for choice in choices if choice["index"] == index]

    def text(self, index: int = 0) -> str:
        return "".join(choice["delta"].get("content") or "" for choice in self.choices(index))

    def finish_reasons(self, index: int = 0) -> list[str]:
        return [choice["finish_reason"] for choice in self.choices(index) if choice.get("finish_reason")]


@dataclass
class Target:
    """A server that speaks OpenAI's API.

    Attributes:
        url: The API's, without a slash at its end.
        client: Sends well-formed requests, with the API key, each on a connection of its own.
        model: The model that is asked.
        api_key: None where none is needed.
        patience: What the time limits are multiplied by, for slow machines.
        process: The server's process, if that is known.
    """

    url: httpx.URL
    client: httpx.AsyncClient
    model: str
    api_key: str | None = None
    patience: float = 1.0
    process: ServerProcess | None = None
    _kept: dict[Callable, Any] = field(default_factory=dict)

    def path(self, path: str) -> str:
        """The path of a route of the API, for a request that is written by hand."""
        return f"{self.url.path.rstrip('/')}/{path}"

    def limit(self, seconds: float) -> float:
        """A time limit in seconds, on this machine."""
        return seconds * self.patience

    @contextlib.asynccontextmanager
    async def within(self, seconds: float, failure: str) -> AsyncIterator[None]:
        """Fail the check if what is done within this context takes longer.

        Args:
            seconds: The time limit, before `patience`.
            failure: What is then wrong; `{limit}` in it stands for the time.
        """
        limit = self.limit(seconds)
        try:
            async with asyncio.timeout(limit):
                yield
        except TimeoutError:
            raise FailedError(failure.replace("{limit}", f"{limit:g} s")) from None

    def chat_body(self, **fields: object) -> dict[str, object]:
        """A request that any server answers in a moment, changed by `fields`; a field that is None is left out."""
        messages = [{"role": "user", "content": QUESTION}]
        body = {"model": self.model, "messages": messages, "max_tokens": 16, "temperature": 0} | fields
        return {name: value for name, value in body.items() if value is not None}

    async def chat(self, **fields: object) -> httpx.Response:
        return await self.client.post("chat/completions", json=self.chat_body(**fields))

    async def answer(self, **fields: object) -> Any:
        """The body of a response that has to be an answer."""
        return body_of(await self.chat(**fields))

    async def complete(self, **fields: object) -> httpx.Response:
        """The response to a prompt without a template. Skips the check if the server has no such route."""
        body = {"model": self.model, "prompt": "1, 2, 3,", "max_tokens": 8, "temperature": 0} | fields
        response = await self.client.post("completions", json=body)
        if response.status_code == 404:
            raise SkippedError("there is no /completions")
        return response

    @contextlib.asynccontextmanager
    async def streaming(self, **fields: object) -> AsyncIterator[httpx.Response]:
        """A stream that has begun."""
        body = self.chat_body(stream=True, **fields)
        async with self.client.stream("POST", "chat/completions", json=body) as response:
            if response.status_code != 200:
                await response.aread()
                raise FailedError(summary(response))
            yield response

    async def stream(self, **fields: object) -> Stream:
        """The whole of a stream, which has to be well-formed."""
        began = time.monotonic()
        received, first_text_s = b"", None
        async with self.streaming(**fields) as response:
            async for part in response.aiter_bytes():
                received += part
                if first_text_s is None and re.search(rb'"content": ?"[^"]', part):
                    first_text_s = time.monotonic() - began

        # An error in the middle is an event, because the status has been sent already.
        data = parse_events(received)
        try:
            chunks = [json.loads(event) for event in data if event != "[DONE]"]
        except ValueError as error:
            raise FailedError(f"an event is not JSON: {error}") from None
        for chunk in chunks:
            if "error" in chunk:
                raise FailedError(f"the stream ended with an error: {chunk['error']}")
        return Stream(media_type(response), data, chunks, first_text_s, time.monotonic() - began)

    async def root(self, path: str) -> httpx.Response:
        """The response to a path beside the API."""
        return await self.client.get(self.url.copy_with(path=re.sub(r"/v1$", "", self.url.path.rstrip("/")) + path))

    async def in_flight(self) -> float | None:
        """How many requests the server says it is working on or keeps waiting; None if it does not tell."""
        counts = _IN_FLIGHT.findall((await self.root("/metrics")).text)
        if counts:
            return sum(map(float, counts))
        try:
            health = (await self.root("/health")).json()
            return health["running"] + health["waiting"]
        except (ValueError, KeyError, TypeError):
            return None

    async def once(self, ask: Callable[["Target"], Awaitable[Any]]) -> Any:
        """What `ask` returns; it is called only the first time."""
        if ask not in self._kept:
            self._kept[ask] = await ask(self)
        return self._kept[ask]


@contextlib.asynccontextmanager
async def reach(
    url: str, model: str | None, api_key: str | None, patience: float, process: ServerProcess | None
) -> AsyncIterator[Target]:
    """Find the server, and a model to ask.

    Raises:
        UserError: If there is no server, no model to ask, or the model does not get loaded.
    """
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    client = httpx.AsyncClient(
        base_url=url,
        headers=headers,
        timeout=_ANSWER_S * patience,
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        verify=url.startswith("https:"),  # else the system's certificates are read for nothing
        trust_env=False,  # a proxy would answer in the server's place
    )
    async with client:
        # Whether it is there, lets us in, and has a model.
        try:
            response = await client.get("models")
        except httpx.HTTPError as error:
            raise UserError(f"{url}: no server answers there ({error or type(error).__name__})") from error
        if response.status_code in (401, 403):
            raise UserError(f"{url}: the server wants an API key; name its environment variable with --api-key-env")
        if model is None:
            try:
                model = response.json()["data"][0]["id"]
            except (ValueError, LookupError, TypeError):
                raise UserError(f"{url}/models lists no model; name one with --model, or correct the URL") from None

        target = Target(httpx.URL(url), client, model, api_key, patience, process)
        await _loaded(target)
        yield target


async def _loaded(target: Target) -> None:
    """Wait until the model is loaded; many servers load it when it is first asked. Other faults are for the checks."""
    end = time.monotonic() + target.limit(_LOAD_S)
    while time.monotonic() < end:
        with contextlib.suppress(httpx.HTTPError):
            if (await target.chat(max_tokens=1)).status_code != 503:
                return
        await asyncio.sleep(0.2)
    raise UserError(
        f"{target.url}: {target.model} cannot answer; after {target.limit(_LOAD_S):g} s it is still loading"
    )


def body_of(response: httpx.Response) -> Any:
    """The JSON object of a response that has to be 200."""
    if response.status_code != 200:
        raise FailedError(summary(response))
    try:
        body = response.json()
    except ValueError as error:
        raise FailedError(f"200, but its body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise FailedError(f"200, but its body is not a JSON object: {response.text[:80]}")
    return body


def text_of(answer: Any) -> str:
    """The text of the first answer of a chat."""
    return answer["choices"][0]["message"]["content"]


def finish_reason_of(answer: Any) -> str:
    """Why the first answer of a chat ended."""
    return answer["choices"][0]["finish_reason"]


def media_type(response: httpx.Response) -> str:
    """The media type of a response without its parameters; "missing" where it has none."""
    return response.headers.get("content-type", "").split(";")[0].strip().lower() or "missing"


def summary(response: httpx.Response) -> str:
    """A response in one line."""
    try:
        message = response.json()["error"]["message"]
    except (ValueError, LookupError, TypeError):
        message = response.text
    message = " ".join(str(message).split())
    return f"{response.status_code}: {message[:117] + '...' if len(message) > 120 else message}".rstrip(": ")


def refusal(response: httpx.Response, field: str | None = None, statuses: tuple[int, ...] | None = None) -> str:
    """What was seen of a response that has to refuse the request in the shape of OpenAI's errors.

    https://platform.openai.com/docs/guides/error-codes, and `Error` of https://github.com/openai/openai-openapi.

    Args:
        response: The server's.
        field: What the error has to name.
        statuses: The statuses that it may have; None is any 4xx.

    Raises:
        FailedError: If the response is anything else.
    """
    seen = summary(response)
    status = response.status_code
    if not (status in statuses if statuses else 400 <= status < 500):
        expected = " or ".join(map(str, statuses)) if statuses else "4xx"
        raise FailedError(f"{expected} expected, not {seen}")
    try:
        error = response.json()["error"]
        shaped = error["message"] and isinstance(error["message"], str) and isinstance(error["type"], str)
    except (ValueError, LookupError, TypeError):
        shaped = False
    if not shaped:
        raise FailedError(f"{seen}, which is not in the shape of OpenAI's errors")
    if field and field not in error["message"] and field not in str(error.get("param")):
        raise FailedError(f"{seen}, which does not name {field}")
    return seen


def refused_by_choice(response: httpx.Response, field: str) -> None:
    """Skip the check if the server says that it does not support the field; other errors are failures."""
    if response.status_code != 200:
        raise SkippedError(f"not supported, and it says so: {refusal(response, field)}")


def client_error(response: httpx.Response, also: tuple[int, ...] = ()) -> str:
    """What was seen of a response that has to be a 4xx in any shape, or to have one of a few other statuses."""
    if not 400 <= response.status_code < 500 and response.status_code not in also:
        raise FailedError(f"{' or '.join(map(str, ['4xx', *also]))} expected, not {summary(response)}")
    return summary(response) if response.is_error else f"{response.status_code}"
