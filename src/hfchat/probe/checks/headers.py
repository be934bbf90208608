"""Heads of requests that no polite client sends: what proxies in front understand differently, and what attackers try.

Sources: RFC 9110 (HTTP), RFC 9112 (HTTP/1.1), https://fetch.spec.whatwg.org (CORS).
"""

import ipaddress
import json

from hfchat.probe.registry import check
from hfchat.probe.target import Target, summary, text_of
from hfchat.probe.verdicts import FailedError, SkippedError
from hfchat.probe.wire import chat_head, head, wire

_STRANGER = "hfchat-probe.example"
_KIBIBYTE = 1024


async def _refused(target: Target, request: bytes, method: str = "GET", statuses: tuple[int, ...] = ()) -> str:
    """What a server answers that has to refuse a request, with 4xx or one of `statuses`, or by closing."""
    async with wire(target) as connection:
        await connection.send(request)
        response = await connection.answer(method)
    if response is None:
        return "the connection was closed"
    if not (400 <= response.status_code < 500 or response.status_code in statuses):
        raise FailedError(f"4xx expected, not {summary(response)}")
    return summary(response)


@check(
    {
        "a name": _STRANGER,
        "with a port": f"{_STRANGER}:80",
        "that begins with localhost": f"localhost.{_STRANGER}",
        "that begins with an address": f"127.0.0.1.{_STRANGER}",
        "after an address in brackets": f"[::1]{_STRANGER}",
        "after a user": f"localhost@{_STRANGER}",
        "as a port": f"localhost:{_STRANGER}",
        "empty": "",
    }
)
async def another_host_is_refused_on_loopback(target: Target, host: str) -> str:
    """A page of a site whose name resolves to 127.0.0.1 reaches the server from its visitor's browser, past the
    same-origin policy ("DNS rebinding"); only `Host` tells.
    """
    try:
        local = target.url.host == "localhost" or ipaddress.ip_address(target.url.host).is_loopback
    except ValueError:
        local = False
    if not local or target.api_key:
        raise SkippedError("only for a server on loopback that wants no API key")
    return await _refused(target, head(target, "GET", target.path("models"), host=host))


@check(
    {
        "no Host": lambda path: f"GET {path} HTTP/1.1\r\n\r\n",
        "two Hosts": lambda path: f"GET {path} HTTP/1.1\r\nHost: localhost\r\nHost: {_STRANGER}\r\n\r\n",
        "a space before the colon": lambda path: f"GET {path} HTTP/1.1\r\nHost: localhost\r\nX-A : b\r\n\r\n",
        "NUL in a header": lambda path: f"GET {path} HTTP/1.1\r\nHost: localhost\r\nX-A: a\0b\r\n\r\n",
        "no name of a header": lambda path: f"GET {path} HTTP/1.1\r\nHost: localhost\r\n: b\r\n\r\n",
        "no request line": lambda path: "hello\r\n\r\n",
        "TLS": lambda path: "\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n",
        "no version": lambda path: f"GET {path} HTTP\r\nHost: localhost\r\n\r\n",
        "a space in the path": lambda path: f"GET {path} x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    }
)
async def an_invalid_head_is_refused(target: Target, request) -> str:
    """400 (RFC 9112, 3, 3.2 and 5.1; RFC 9110, 5.5): what two programs read differently lets requests past one of
    them.
    """
    return await _refused(target, request(target.path("models")).encode("latin-1"))


@check()
async def a_folded_header_is_one_header(target: Target) -> str:
    """Refused, or its fold is read as spaces (RFC 9112, 5.2), and never as a header of its own."""
    async with wire(target) as connection:
        folded = f"X-A: a\r\n Host: {_STRANGER}"
        await connection.send(head(target, "GET", target.path("models"), folded))
        response = await connection.answer("GET")
    if response is not None and response.status_code != 200 and not 400 <= response.status_code < 500:
        raise FailedError(f"200 or 4xx expected, not {summary(response)}")
    return "the connection was closed" if response is None else str(response.status_code)


@check({"one of 1 MiB": ["X-A: " + "a" * _KIBIBYTE * _KIBIBYTE], "10,000": [f"X-{i}: a" for i in range(10_000)]})
async def a_huge_head_is_refused(target: Target, headers: list[str]) -> str:
    """431 (RFC 6585, 5) or another 4xx, or the connection is closed: a head is kept in memory as it comes."""
    return await _refused(target, head(target, "GET", target.path("models"), *headers))


@check()
async def a_huge_path_is_refused(target: Target) -> str:
    """414 (RFC 9110, 15.5.15) or another 4xx."""
    return await _refused(target, head(target, "GET", target.path("models?" + "a" * _KIBIBYTE * _KIBIBYTE)))


@check(
    {
        "Content-Length and chunked": "Transfer-Encoding: chunked",
        "an unknown coding": "Transfer-Encoding: identity, gzip-of-mine",
        "chunked, spelled oddly": "Transfer-Encoding: \x0bchunked",
    }
)
async def a_request_is_not_smuggled(target: Target, coding: str) -> str:
    """A body whose length is told in two ways hides a second request from a proxy that counts the other way. It is
    refused, or the connection is closed after one answer (RFC 9112, 6.1 and 6.3).
    """
    hidden = head(target, "GET", target.path("models"))
    body = b"0\r\n\r\n" + hidden
    async with wire(target) as connection:
        await connection.send(chat_head(target, f"Content-Length: {len(body)}", coding) + body)
        response = await connection.answer()
        more = await connection.more(target.limit(0.5)) if response is not None else b""
    if response is None:
        return "the connection was closed"
    if more:
        raise FailedError(f"a second answer came: {more[:60]!r}")
    if not (400 <= response.status_code < 500 or response.status_code == 501):
        raise FailedError(f"4xx expected, not {summary(response)}")
    return summary(response)


@check({"BREW": "BREW", "DELETE": "DELETE", "TRACE": "TRACE", "1,000 letters": "A" * 1000})
async def another_method_is_refused(target: Target, method: str) -> str:
    """405, or 501 for one that is not known (RFC 9110, 9.1); never an answer, and TRACE never an echo (9.3.8)."""
    return await _refused(target, head(target, method, target.path("models")), statuses=(501,))


@check(
    {
        "Basic, a letter that is not ASCII": "Basic \xe9",
        "Basic, UTF-8": "Basic \xc3\xa9",
        "Basic, no Base64": "Basic !!",
        "Basic, no UTF-8": "Basic /////w==",
        "Bearer, a letter that is not ASCII": "Bearer \xe9",
        "no scheme": "\xff",
        "a scheme alone": "Bearer",
        "10,000 letters": "Bearer " + "a" * 10_000,
    }
)
async def a_strange_authorization_breaks_nothing(target: Target, shown: str) -> str:
    """401 where a key is needed (RFC 9110, 11.6.2): header fields may hold any byte above 127 (5.5), and are decoded
    before anybody is known.
    """
    lines = [f"GET {target.path('models')} HTTP/1.1", f"Host: {target.url.netloc.decode()}", f"Authorization: {shown}"]
    async with wire(target) as connection:
        await connection.send("\r\n".join([*lines, "", ""]).encode("latin-1"))
        response = await connection.answer("GET")
    if response is None:
        return "the connection was closed"
    if response.status_code >= 500 or (target.api_key and response.status_code == 200):
        raise FailedError(summary(response))
    return summary(response) if response.status_code != 200 else "200: it needs no key"


@check(
    {
        "../": "/../../../../etc/passwd",
        "coded": "/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "coded twice": "/..%252f..%252f..%252f..%252fetc/passwd",
        "backslashes": "/..\\..\\..\\..\\etc\\passwd",
        "below a folder": "/static/../../../../../../etc/passwd",
        "below a folder, coded": "/page/..%2f..%2f..%2f..%2f..%2f..%2fetc%2fpasswd",
        "absolute": "//etc/passwd",
        "NUL": "/page/%00",
        "of a model": "/v1/models/..%2f..%2f..%2fetc%2fpasswd",
    }
)
async def a_path_leads_nowhere_else(target: Target, path: str) -> str:
    """A file of the machine is not served, and the attempt is no error of the server's."""
    async with wire(target) as connection:
        await connection.send(head(target, "GET", path))
        response = await connection.answer("GET")
    if response is None:
        return "the connection was closed"
    if response.status_code >= 500 or "root:" in response.text:
        raise FailedError(summary(response))
    return summary(response)


@check()
async def HEAD_has_no_body(target: Target) -> str:  # noqa: N802 - the name of the method
    """Else its body would be read as the next response (RFC 9110, 9.3.2)."""
    async with wire(target) as connection:
        await connection.send(head(target, "HEAD", target.path("models"), "Connection: close"))
        response = await connection.answer("HEAD")
        more = await connection.more(target.limit(0.5)) if response is not None else b""
    if response is None or more or not (response.status_code == 200 or 400 <= response.status_code < 500):
        raise FailedError(f"{'closed' if response is None else response.status_code}, and then {more[:60]!r}")
    return f"{response.status_code}, no body"


@check({"GET": "GET", "a preflight": "OPTIONS", "POST": "POST"})
async def pages_of_other_sites_may_not_use_it(target: Target, method: str) -> str:
    """By default no other site is allowed (CORS): with `*`, any page that a person visits could use the server that
    only their machine reaches.
    """
    headers = {"Origin": f"https://{_STRANGER}"}
    if method == "OPTIONS":
        headers |= {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    if method == "POST":
        headers["Content-Type"] = "application/json"
    path = "models" if method == "GET" else "chat/completions"
    content = json.dumps(target.chat_body(max_tokens=1)) if method == "POST" else None
    response = await target.client.request(method, path, headers=headers, content=content)
    allowed = response.headers.get("access-control-allow-origin")
    if allowed in ("*", headers["Origin"]):
        raise FailedError(f"Access-Control-Allow-Origin: {allowed}")
    if response.status_code >= 500:
        raise FailedError(summary(response))
    return f"{response.status_code}, no Access-Control-Allow-Origin"


@check()
async def afterwards_it_answers(target: Target) -> str:
    """What was refused has cost nothing that others need."""
    return repr(text_of(await target.answer())[:40])
