"""Heads of requests that no polite client sends: some are understood differently by proxies, some are attacks.

Sources: RFC 9110 (HTTP), RFC 9112 (HTTP/1.1), https://fetch.spec.whatwg.org (CORS).
"""

import functools
import ipaddress
import json
from collections.abc import Callable

import httpx

from hfchat.probe.checks import afterwards_it_answers
from hfchat.probe.registry import check
from hfchat.probe.target import Target, client_error, summary
from hfchat.probe.verdicts import FailedError, SkippedError
from hfchat.probe.wire import CLOSED, chat_head, head, judged, wire

_STRANGER = "hfchat-probe.example"
_KIBIBYTE = 1024


_or_501 = functools.partial(client_error, also=(501,))
_or_200 = functools.partial(client_error, also=(200,))


def _unless(is_bad: Callable[[httpx.Response], bool]) -> Callable[[httpx.Response], str]:
    """A judge that lets every response pass but those that are bad."""

    def judge(response: httpx.Response) -> str:
        if is_bad(response):
            raise FailedError(summary(response))
        return summary(response) if response.is_error else f"{response.status_code}"

    return judge


async def _answers(target: Target, request: bytes, method: str) -> tuple[httpx.Response | None, bytes]:
    """The response to a request, and what comes after it; None if the server closes the connection."""
    async with wire(target) as connection:
        await connection.send(request)
        response = await connection.answer(method)
        return response, await connection.more(target.limit(0.5)) if response is not None else b""


def _get(target: Target, path: str, *headers: str, host: str | None = None) -> bytes:
    return head(target, "GET", target.path(path), *headers, host=host)


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
    same-origin policy ("DNS rebinding"); only `Host` shows it.
    """
    try:
        local = target.url.host == "localhost" or ipaddress.ip_address(target.url.host).is_loopback
    except ValueError:
        local = False
    if not local or target.api_key:
        raise SkippedError("only for a server on loopback that wants no API key")
    return await judged(target, _get(target, "models", host=host), client_error, "GET")


@check(
    {
        "no Host": "GET {path} HTTP/1.1\r\n\r\n",
        "two Hosts": f"GET {{path}} HTTP/1.1\r\nHost: localhost\r\nHost: {_STRANGER}\r\n\r\n",
        "a space before the colon": "GET {path} HTTP/1.1\r\nHost: localhost\r\nX-A : b\r\n\r\n",
        "NUL in a header": "GET {path} HTTP/1.1\r\nHost: localhost\r\nX-A: a\0b\r\n\r\n",
        "no name of a header": "GET {path} HTTP/1.1\r\nHost: localhost\r\n: b\r\n\r\n",
        "no request line": "hello\r\n\r\n",
        "TLS": "\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n",
        "no version": "GET {path} HTTP\r\nHost: localhost\r\n\r\n",
        "a space in the path": "GET {path} x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    }
)
async def an_invalid_head_is_refused(target: Target, request: str) -> str:
    """400 (RFC 9112, 3, 3.2 and 5.1; RFC 9110, 5.5): a request that two programs read differently can slip past one of
    them.
    """
    content = request.replace("{path}", target.path("models")).encode("latin-1")
    return await judged(target, content, client_error, "GET")


@check()
async def a_folded_header_is_one_header(target: Target) -> str:
    """It is refused, or its fold is read as spaces (RFC 9112, 5.2), and never as a header of its own."""
    return await judged(target, _get(target, "models", f"X-A: a\r\n Host: {_STRANGER}"), _or_200, "GET")


@check({"one of 1 MiB": ["X-A: " + "a" * _KIBIBYTE * _KIBIBYTE], "10,000": [f"X-{i}: a" for i in range(10_000)]})
async def a_huge_head_is_refused(target: Target, headers: list[str]) -> str:
    """431 (RFC 6585, 5) or another 4xx, or the connection is closed: a server keeps a head in memory as it comes."""
    return await judged(target, _get(target, "models", *headers), client_error, "GET")


@check()
async def a_huge_path_is_refused(target: Target) -> str:
    """414 (RFC 9110, 15.5.15) or another 4xx."""
    return await judged(target, _get(target, "models?" + "a" * _KIBIBYTE * _KIBIBYTE), client_error, "GET")


@check(
    {
        "Content-Length and chunked": "Transfer-Encoding: chunked",
        "an unknown coding": "Transfer-Encoding: identity, gzip-of-mine",
        "chunked, spelled oddly": "Transfer-Encoding: \x0bchunked",
    }
)
async def a_request_is_not_smuggled(target: Target, coding: str) -> str:
    """A body whose length is given in two ways hides a second request from a proxy that counts the other way. It is
    refused, or the connection is closed after one answer (RFC 9112, 6.1 and 6.3).
    """
    body = b"0\r\n\r\n" + _get(target, "models")
    request = chat_head(target, f"Content-Length: {len(body)}", coding) + body
    response, more = await _answers(target, request, "POST")
    if response is None:
        return CLOSED
    if more:
        raise FailedError(f"a second answer came: {more[:60]!r}")
    return _or_501(response)


@check({"BREW": "BREW", "DELETE": "DELETE", "TRACE": "TRACE", "1,000 letters": "A" * 1000})
async def another_method_is_refused(target: Target, method: str) -> str:
    """405, or 501 for one that is not known (RFC 9110, 9.1); never an answer, and TRACE never an echo (9.3.8)."""
    return await judged(target, head(target, method, target.path("models")), _or_501, "GET")


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
    """401 where a key is needed (RFC 9110, 11.6.2): header fields may hold any byte above 127 (5.5), and a server
    decodes them before it knows who asks.
    """
    judge = _unless(lambda response: response.status_code >= 500 or (bool(target.api_key) and response.is_success))
    lines = [f"GET {target.path('models')} HTTP/1.1", f"Host: {target.url.netloc.decode()}", f"Authorization: {shown}"]
    return await judged(target, "\r\n".join([*lines, "", ""]).encode("latin-1"), judge, "GET")


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
    """No file of the machine is served, and the attempt is not an error of the server."""
    judge = _unless(lambda response: response.status_code >= 500 or "root:" in response.text)
    return await judged(target, head(target, "GET", path), judge, "GET")


@check()
async def HEAD_has_no_body(target: Target) -> str:  # noqa: N802 - the name of the method
    """A client would read the body as the next response (RFC 9110, 9.3.2)."""
    response, more = await _answers(target, head(target, "HEAD", target.path("models"), "Connection: close"), "HEAD")
    if response is None or more or not (response.status_code == 200 or 400 <= response.status_code < 500):
        raise FailedError(f"{'closed' if response is None else response.status_code}, and then {more[:60]!r}")
    return f"{response.status_code}, no body"


@check({"GET": "GET", "a preflight": "OPTIONS", "POST": "POST"})
async def pages_of_other_sites_may_not_use_it(target: Target, method: str) -> str:
    """By default no other site is allowed (CORS): with `*`, any page that a person visits could use a server that only
    their machine reaches.
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


check(module=__name__)(afterwards_it_answers)
