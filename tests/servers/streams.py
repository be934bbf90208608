"""A server that streams, packet by packet, what a test's script says: the upstream of a gateway.

https://platform.openai.com/docs/api-reference/chat/streaming
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

EVENTS = {"content-type": "text/event-stream; charset=utf-8"}
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: Mapping[str, str]
    body: Any


@dataclass
class Sender:
    """Writes one response. `abort` resets the connection."""

    writer: asyncio.StreamWriter

    async def start(self, status: int = 200, **headers: str) -> None:
        named = EVENTS | {name.replace("_", "-"): value for name, value in headers.items()}
        lines = [f"HTTP/1.1 {status} x", *(f"{name}: {value}" for name, value in named.items())]
        self.writer.write("\r\n".join([*lines, "transfer-encoding: chunked", "", ""]).encode())

    async def send(self, data: bytes) -> None:
        """One packet, which the other side reads by itself."""
        self.writer.write(b"%x\r\n%s\r\n" % (len(data), data))
        await self.writer.drain()
        await asyncio.sleep(0.002)

    async def end(self) -> None:
        self.writer.write(b"0\r\n\r\n")

    async def answer(self, status: int, body: Any, **headers: str) -> None:
        """A whole response: a text as it is, anything else as JSON."""
        content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        named = {"content-type": "application/json", "content-length": str(len(content))}
        named |= {name.replace("_", "-"): value for name, value in headers.items()}
        lines = [f"HTTP/1.1 {status} x", *(f"{name}: {value}" for name, value in named.items())]
        self.writer.write("\r\n".join([*lines, "", ""]).encode() + content)

    def abort(self) -> None:
        self.writer.transport.abort()


Script = Callable[[Request, Sender], Awaitable[None]]


@dataclass
class StreamServer:
    """What its client sees, and what it saw of it.

    Attributes:
        url: `http://127.0.0.1:<port>/v1`
        script: Answers all but what is asked for with GET.
        health: Status of `/health`; None has no such path.
        models: What `/v1/models` lists.
        requests: Those of the script, in the order of arrival.
        connections: How many were opened.
        left: Requests whose client went away before the script's end.
    """

    script: Script
    url: str = ""
    health: int | None = 200
    models: tuple[str, ...] = ("upstream-model",)
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    left: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                request = await _read(reader)
                if request.method == "GET":
                    await self._look_up(request.path, Sender(writer))
                    continue
                self.requests.append(request)
                script = asyncio.ensure_future(self.script(request, Sender(writer)))
                gone = asyncio.ensure_future(reader.read(1))  # a client sends nothing before it has its answer
                await asyncio.wait({script, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not script.done():
                    self.left += 1
                    script.cancel()
                    return
                gone.cancel()
                await asyncio.wait({gone})
                script.result()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the last one at the end of the test; asyncio would log it
        finally:
            writer.close()

    async def _look_up(self, path: str, send: Sender) -> None:
        if path == "/v1/models":
            data = [{"id": name, "object": "model", "created": 0, "owned_by": "tests"} for name in self.models]
            return await send.answer(200, {"object": "list", "data": data})
        await send.answer(404 if path != "/health" or self.health is None else self.health, {})


@asynccontextmanager
async def stream_server(script: Script, **fields: Any) -> AsyncIterator[StreamServer]:
    """Serve in this event loop, on a free port of loopback, while the context lasts."""
    server = StreamServer(script, **fields)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1"
    try:
        yield server
    finally:
        listener.close()


def chunk(text: str | None = None, finish_reason: str | None = None, **choice: Any) -> dict[str, Any]:
    """A chunk of a chat's answer; without a text it is the one that ends it."""
    delta = {} if text is None else {"content": text}
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, **choice}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "choices": [choice]}


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    counts = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    counts["total_tokens"] = prompt_tokens + completion_tokens
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "choices": [], "usage": counts}


def event(data: Any) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def says(*texts: str) -> Script:
    """A whole answer of these texts, a token each, to a prompt of 7 tokens."""

    async def script(request: Request, send: Sender) -> None:
        await send.start()
        for text in texts:
            await send.send(event(chunk(text)))
        await send.send(event(chunk(finish_reason="stop")) + event(usage(7, len(texts) + 1)) + DONE)
        await send.end()

    return script


async def _read(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    method, path, _ = head[0].split(" ")
    headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
    content = await reader.readexactly(int(headers.get("content-length", 0)))
    return Request(method, path, headers, json.loads(content) if content else None)
