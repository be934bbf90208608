"""Who may use the server: API keys, of which it keeps only hashes, and how many requests each may make."""

import base64
import hashlib
import hmac
import math
import re
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from hfchat.errors import UserError
from hfchat.serving.http.record import current_record
from hfchat.serving.openai.protocol import ApiError

ENVIRONMENT_VARIABLE = "HFCHAT_API_KEYS"
OPEN_PATHS = frozenset({"/health", "/ready"})  # for probes of the machinery around; they tell nothing of the users

_ENTRY = re.compile(r"([A-Za-z0-9._-]{1,64})\s*:\s*([0-9a-f]{64})")


def new_key(name: str) -> tuple[str, str]:
    """A key of 256 random bits, and its entry for `load_keys`.

    As nobody can guess such a key, a plain SHA-256 is enough to keep it by.

    Raises:
        UserError: If the name is none for an entry.
    """
    key = f"hfchat-{secrets.token_urlsafe(32)}"
    entry = f"{name}: {hash_key(key)}"
    if not _ENTRY.fullmatch(entry):
        raise UserError(f"NAME must be up to 64 letters, digits, `.`, `_` or `-`, not {name!r}")
    return key, entry


def hash_key(key: str) -> str:
    """The SHA-256 of a key, 64 hexadecimal digits."""
    return hashlib.sha256(key.encode()).hexdigest()


class ApiKeys:
    """The names of those who may come in, by the hashes of their keys."""

    def __init__(self, hashes: Mapping[str, str]):
        self.names = tuple(hashes)
        self._hashes = {name: hash.encode() for name, hash in hashes.items()}

    def name_of(self, key: str) -> str | None:
        """Whose key it is. The time that it takes does not tell how much of a key is right, nor whose it is."""
        hashed = hash_key(key).encode()
        owners = [name for name, known in self._hashes.items() if hmac.compare_digest(hashed, known)]
        return owners[0] if owners else None


def load_keys(file: str | None, environment: Mapping[str, str]) -> ApiKeys | None:
    """The keys of a file and of `HFCHAT_API_KEYS` together; None if neither is there.

    Both hold entries `NAME: HASH`, as `hfchat api-key NAME` prints them: one a line, or with commas between them.

    Raises:
        UserError: If the file cannot be read, an entry is not of this form, a name is there twice, or there is none.
    """
    sources = {}
    if file is not None:
        try:
            sources[file] = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--api-keys {file}: cannot be read ({error})") from error
    if ENVIRONMENT_VARIABLE in environment:
        sources[ENVIRONMENT_VARIABLE] = environment[ENVIRONMENT_VARIABLE]
    if not sources:
        return None
    hashes: dict[str, str] = {}
    for source, text in sources.items():
        entries = [entry.strip() for line in text.splitlines() for entry in line.split("#")[0].split(",")]
        for number, entry in enumerate(filter(None, entries), start=1):
            match = _ENTRY.fullmatch(entry)
            if match is None:  # it is not repeated in the message: it may be a key
                form = "must be `NAME: HASH`, as `hfchat api-key NAME` prints it"
                raise UserError(f"{source}: entry {number} {form}")
            if match[1] in hashes:
                raise UserError(f"{source}: the name {match[1]} is there twice")
            hashes[match[1]] = match[2]
    if not hashes:
        raise UserError(f"{' and '.join(sources)}: no key in it; `hfchat api-key NAME` makes one")
    return ApiKeys(hashes)


class RateLimit:
    """A token bucket for each name: `per_minute` requests in a minute on average, and as many at once.

    A request for several answers counts as many times: it is let in as one, and whoever reads it counts the others.

    Args:
        per_minute: At least 1.
        clock: Seconds that never go back.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic):
        self.per_minute = per_minute
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}  # what is left, and when that was

    def spend(self, name: str, count: int = 1) -> float:
        """Take so many out of the name's bucket, or none; 0, or the seconds until there will be as many."""
        now = self._clock()
        left, since = self._buckets.get(name, (self.per_minute, now))
        left = min(self.per_minute, left + (now - since) * self.per_minute / 60)
        spent = left >= count
        self._buckets[name] = (left - count if spent else left, now)
        return 0.0 if spent else (count - left) * 60 / self.per_minute

    def charge(self, name: str, count: int) -> None:
        """Take so many that have been used already, into the red for at most a minute."""
        self.spend(name, 0)  # what has come since the last time
        left, now = self._buckets[name]
        self._buckets[name] = (max(left - count, -self.per_minute), now)

    def check(self, name: str, count: int = 1) -> None:
        """Take so many, or raise the 429 that says when there will be as many."""
        seconds = math.ceil(self.spend(name, count))
        if seconds:
            raise ApiError(
                429,
                f"This API key makes too many requests; the next one is possible in {seconds} s.",
                type="rate_limit_error",
                code="rate_limit_exceeded",
                headers={"Retry-After": str(seconds)},
            )


class Auth:
    """Lets in who shows a key, everywhere but at `OPEN_PATHS`.

    A program shows it as OpenAI's clients do, `Authorization: Bearer KEY`. A person's browser asks for it by itself
    (HTTP Basic: any user name, the key as password) and sends it along from then on, so pages need no login.

    Args:
        limited: Beginnings of the paths whose requests count for `rate_limit`.
    """

    def __init__(
        self, app: ASGIApp, keys: ApiKeys, rate_limit: RateLimit | None = None, limited: Collection[str] = ("/v1/",)
    ):
        self._app = app
        self._keys = keys
        self._rate_limit = rate_limit
        self._limited = tuple(limited)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or (scope["type"] == "http" and scope["path"] in OPEN_PATHS):
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        key = _shown_key(headers.get("authorization", ""))
        name = self._keys.name_of(key) if key else None
        current_record().key_name = name
        refusal = self._unknown(headers, key) if name is None else self._too_often(scope, name)
        if refusal is None:
            return await self._app(scope, receive, send)
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008, "reason": refusal.message})
        await refusal.response()(scope, receive, send)

    def _unknown(self, headers: Headers, key: str | None) -> ApiError:
        person = "text/html" in headers.get("accept", "")
        return ApiError(
            401,
            "This API key is not known." if key else "An API key is needed: `Authorization: Bearer KEY`.",
            code="invalid_api_key",
            headers={"WWW-Authenticate": 'Basic realm="hfchat", charset="UTF-8"' if person else "Bearer"},
        )

    def _too_often(self, scope: Scope, name: str) -> ApiError | None:
        if self._rate_limit is None or not scope["path"].startswith(self._limited):
            return None
        try:
            self._rate_limit.check(name)
        except ApiError as error:
            return error
        return None


def _shown_key(authorization: str) -> str | None:
    scheme, _, value = authorization.partition(" ")
    value = value.strip()
    if scheme.lower() == "bearer":
        return value or None
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2] or None
        except ValueError:  # it is not Base64, or not of ASCII, or what it codes is not UTF-8
            return None
    return None
