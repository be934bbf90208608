"""Servers of a few lines that do nothing right, and the checks that have to find that out."""

import asyncio
import contextlib
import json

import httpx

from hfchat.probe.target import Target

CHAT = {
    "id": "1",
    "object": "chat.completion",
    "created": 0,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "root:"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}


@contextlib.asynccontextmanager
async def raw_server(reply: bytes, patience: float):
    """A server that reads, and sends the same for whatever looks like a request."""

    async def handle(reader, writer):
        with contextlib.suppress(OSError, asyncio.CancelledError):
            while data := await reader.read(2**20):
                writer.write(reply * max(1, data.count(b" HTTP/1.1")))
                await writer.drain()
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        timeout, limits = 60 * patience, httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=url, timeout=timeout, limits=limits, verify=False) as client:
            yield Target(httpx.URL(url), client, "m", patience=patience)


def reply(status: str, body: dict) -> bytes:
    content = json.dumps(body)
    headers = ["Content-Type: application/json", "Access-Control-Allow-Origin: *", f"Content-Length: {len(content)}"]
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "", content]).encode()


RAW = {
    "says yes to everything": (
        reply("200 OK", CHAT),
        0.2,
        [
            "another host is refused on loopback",
            "an invalid head is refused",
            "a huge head is refused",
            "a huge path is refused",
            "a request is not smuggled",
            "another method is refused",
            "a path leads nowhere else",
            "HEAD has no body",
            "pages of other sites may not use it",
            "a broken body is refused",
            "a number that is none is refused",
            "a huge list is refused at once",
            "a body of another type is refused",
            "an invalid length is refused",
            "a huge declared body is refused at once",
            "a body that ends too early breaks nothing",
            "many broken requests",
        ],
    ),
    "crashes at everything": (
        reply("500 Internal Server Error", {"error": {"message": "crashed", "type": "server_error"}}),
        0.2,
        [
            "a folded header is one header",
            "a broken body is refused",
            "a number that is none is refused",
            "a strange body breaks nothing",
            "a byte order mark breaks nothing",
            "a huge list is refused at once",
            "a strange authorization breaks nothing",
            "a compressed body breaks nothing",
            "an invalid length is refused",
            "another method is refused",
            "a path leads nowhere else",
            "a client leaves before its body is whole",
            "afterwards it answers",
        ],
    ),
    "refuses everything, and what was hidden in it too": (
        reply("400 Bad Request", {"error": {"message": "refused", "type": "invalid_request_error"}}),
        0.2,
        ["a request is not smuggled", "HEAD has no body"],
    ),
    "answers nobody": (
        b"",
        0.02,
        [
            "a prompt beyond the context is refused",
            "an answer beyond the context is refused",
            "a huge chunked body is cut",
            "a huge list is refused at once",
            "a huge declared body is refused at once",
            "more requests than places: streamed",
            "many idle connections",
            "readers that never read block nobody",
            "a head that never ends is cut",
            "a body that never ends is cut",
            "a silent connection is cut",
        ],
    ),
}
