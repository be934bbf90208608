"""What a server that speaks OpenAI's API is asked, and what it answers as it comes."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx

from hfchat.chat import Json
from hfchat.errors import UserError

_CONNECT_S = 10.0
_ANSWER_S = 600.0  # between two parts of an answer
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class RefusedError(Exception):
    """The server did not answer a request. The message is one line, with the server's own words."""


@dataclass
class Call:
    """A function that the model wants called; `arguments` is JSON."""

    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass
class Answer:
    """What has come of an answer until now.

    Attributes:
        text: What is said.
        reasoning: What was thought before it.
        calls: What is to be called, by index.
        finish_reason: Why it ended; None while it goes on, and if it was stopped.
    """

    text: str = ""
    reasoning: str = ""
    calls: dict[int, Call] = field(default_factory=dict)
    finish_reason: str | None = None

    def add(self, delta: Json) -> tuple[str, str]:
        """Put in what a chunk adds. Returns the text and the reasoning in it."""
        text = delta.get("content") or ""
        reasoning = delta.get("reasoning_content") or delta.get("reasoning") or ""  # the newer name, of vLLM
        self.text, self.reasoning = self.text + text, self.reasoning + reasoning
        # Servers that send whole calls leave out the index.
        for position, part in enumerate(delta.get("tool_calls") or ()):
            call, function = self.calls.setdefault(part.get("index", position), Call()), part.get("function") or {}
            call.id = call.id or part.get("id") or ""
            call.name = call.name or function.get("name") or ""
            call.arguments += function.get("arguments") or ""
        return text, reasoning

    def message(self) -> Json:
        """The answer as a message of the conversation."""
        message: dict[str, object] = {"role": "assistant", "content": self.text}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        if self.calls:
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in self.calls.values()
            ]
        return message


class ChatClient:
    """Asks one model of a server.

    Args:
        url: The API's address, such as `http://127.0.0.1:8000/v1`.
        key: Its API key; None where it wants none.
        model: The model's name; None for the only one that the server has.
        fields: What every request says beside its messages, such as `temperature`.

    Raises:
        UserError: If the server cannot be reached, wants another key, or does not have that one model.
    """

    def __init__(self, url: str, key: str | None, model: str | None, fields: Mapping[str, object]):
        self.url = url
        try:
            host = httpx.URL(url).host
        except httpx.InvalidURL:
            host = ""
        if not host:
            raise UserError(f"{url}: is not a valid URL; it must be like http://127.0.0.1:8000/v1")
        self._http = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(_ANSWER_S, connect=_CONNECT_S),
            trust_env=host not in _LOOPBACK,  # a proxy of the environment is not for loopback
        )
        # Whatever is wrong with address, key or name is said before the first question.
        names = self._models(with_key=key is not None)
        if model is None and len(names) != 1:
            listed = f": {', '.join(names[:10])}" if names else ""
            raise UserError(f"{url}: has {len(names)} models{listed}; name one with --model")
        self.model = names[0] if model is None else model
        self._fields = fields

    def close(self) -> None:
        self._http.close()

    @contextmanager
    def answer(
        self, messages: Sequence[Json], tools: Sequence[Json], more: Mapping[str, object]
    ) -> Iterator[Iterator[Json]]:
        """Ask for an answer. Gives the deltas and finish reasons of its chunks; it is stopped when the context ends.

        Args:
            messages: The conversation.
            tools: What the model may call.
            more: Further fields of the request.

        Raises:
            RefusedError: If the server does not answer, or breaks off.
        """
        body = {"model": self.model, "messages": messages, "stream": True, **self._fields, **more}
        if tools:
            body["tools"] = tools
        try:
            with self._http.stream("POST", "chat/completions", json=body) as response:
                if response.status_code != 200:
                    response.read()
                    raise RefusedError(f"{response.status_code}: {_message(response)}")
                yield _choices(response.iter_lines())
        except httpx.HTTPError as error:
            raise RefusedError(f"{self.url}: the connection broke ({error or type(error).__name__})") from error

    def _models(self, with_key: bool) -> list[str]:
        try:
            response = self._http.get("models", timeout=_CONNECT_S)
        except httpx.HTTPError as error:
            raise UserError(f"{self.url}: no server answers there ({error or type(error).__name__})") from error
        if response.status_code in (401, 403):
            problem = "the server does not know the API key of" if with_key else "the server wants an API key; name"
            variable = "--api-key-env" if with_key else "its environment variable with --api-key-env"
            raise UserError(f"{self.url}: {problem} {variable} ({response.status_code})")
        try:
            return [model["id"] for model in response.json()["data"]]
        except (ValueError, LookupError, TypeError):
            raise UserError(
                f"{self.url}/models lists no models ({response.status_code}); correct the URL, which often ends in /v1"
            ) from None


def _choices(lines: Iterator[str]) -> Iterator[Json]:
    """The first choice of each event of a stream.

    Raises:
        RefusedError: If the stream ends with an error, or is not in the shape of OpenAI's.
    """
    for line in lines:
        name, _, value = line.partition(":")
        if name != "data" or value.strip() == "[DONE]":
            continue
        try:
            chunk = json.loads(value)
            error, choices = chunk.get("error"), chunk.get("choices")
        except (ValueError, AttributeError):
            raise RefusedError(f"the server sent what is no chunk of an answer: {value.strip()[:80]}") from None
        if error:
            raise RefusedError(_line(error.get("message") if isinstance(error, dict) else error))
        if choices:
            yield choices[0]


def _message(response: httpx.Response) -> str:
    try:
        return _line(response.json()["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return _line(response.text or response.reason_phrase)


def _line(text: object) -> str:
    return " ".join(str(text).split())[:1000]


Show = Callable[[str, str], None]


def read_answer(answer: Answer, choices: Iterator[Json], show: Show) -> None:
    """Put an answer together as it comes, and show the text and the reasoning of each chunk."""
    for choice in choices:
        show(*answer.add(choice.get("delta") or {}))
        answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
