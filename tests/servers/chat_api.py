"""A server that speaks OpenAI's chat-completions API, and says what a function of the test tells it to.

https://platform.openai.com/docs/api-reference/chat
"""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Raw = tuple[int, Mapping[str, str], Any]
Script = Callable[[dict[str, Any]], str | Raw]


@dataclass
class ChatAPI:
    """What the client of a server sees, and what the server saw.

    Attributes:
        url: `http://127.0.0.1:<port>/v1`
        requests: The JSON of each completion that was asked for, in the order of arrival; of failed ones too.
        headers: Of each, names in lower case.
    """

    url: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)


@contextmanager
def chat_api(script: Script, models: tuple[str, ...] = ("scripted",)) -> Iterator[ChatAPI]:
    """Serve on a free port of loopback while the context lasts.

    Args:
        script: From a request's JSON to the answer's text, of which a word is a token, and which `max_tokens` cuts;
            or to status, headers and body (JSON, or a text as it is) for anything else, such as an error. It is
            called from several threads at a time.
        models: What `/v1/models` lists.
    """

    class Handler(_Handler):
        answer = staticmethod(script)
        names = models

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    host, port = server.server_address
    Handler.seen = ChatAPI(f"http://{host}:{port}/v1")
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield Handler.seen
    finally:
        server.shutdown()
        server.server_close()


def error(status: int, message: str, **headers: str) -> Raw:
    """An error as OpenAI's servers give it; `retry_after="0"` becomes the header `Retry-After`."""
    body = {"error": {"message": message, "type": "error", "param": None, "code": status}}
    return status, {name.replace("_", "-"): value for name, value in headers.items()}, body


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and content in one packet: two would wait for each other's acknowledgement
    answer: Script
    names: tuple[str, ...]
    seen: ChatAPI

    def do_GET(self) -> None:
        if self.path != "/v1/models":
            return self._send(*error(404, f"no {self.path} here"))
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "tests"} for name in self.names]
        return self._send(200, {}, {"object": "list", "data": models})

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/chat/completions":
            return self._send(*error(404, f"no {self.path} here"))
        self.seen.requests.append(request)
        self.seen.headers.append({name.lower(): value for name, value in self.headers.items()})
        if request["model"] not in self.names:
            return self._send(*error(404, f"The model `{request['model']}` does not exist"))
        answer = self.answer(request)
        return self._send(*(answer if isinstance(answer, tuple) else (200, {}, _completion(request, answer))))

    def log_message(self, *args) -> None:
        pass

    def _send(self, status: int, headers: Mapping[str, str], body: Any) -> None:
        content = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _completion(request: Mapping[str, Any], text: str) -> dict[str, Any]:
    words = text.split(" ")
    kept = words[: request.get("max_tokens") or len(words)]
    asked = sum(len(turn["content"].split()) for turn in request["messages"])
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": request["model"],
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": " ".join(kept)},
                "finish_reason": "stop" if kept == words else "length",
            }
        ],
        "usage": {"prompt_tokens": asked, "completion_tokens": len(kept), "total_tokens": asked + len(kept)},
    }
