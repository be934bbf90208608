"""Who may use the server: API keys. The server keeps only their hashes."""

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Collection, Mapping
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Scope

from hfchat.errors import UserError
from hfchat.serving.http.checks import Check
from hfchat.serving.http.rates import RateLimit
from hfchat.serving.http.record import record_of
from hfchat.serving.openai.errors import ApiError

ENVIRONMENT_VARIABLE = "HFCHAT_API_KEYS"
OPEN_PATHS = frozenset({"/health", "/ready"})  # for health checks from outside; they tell nothing about the users

_ENTRY = re.compile(r"([A-Za-z0-9._-]{1,64})\s*:\s*([0-9a-f]{64})")


def new_key(name: str) -> tuple[str, str]:
    """A key of 256 random bits, and its entry for `load_keys`.

    Nobody can guess such a key, so a plain SHA-256 is enough to keep it.

    Raises:
        UserError: If the name is not a valid one for an entry.
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
        UserError: If the file cannot be read, an entry is not of this form, a name is there twice, or no entry is
            there.
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
    # An entry is not repeated in a message: it may be a key.
    hashes: dict[str, str] = {}
    for source, text in sources.items():
        uncommented = ",".join(line.split("#")[0] for line in text.splitlines())
        entries = [entry.strip() for entry in uncommented.split(",")]
        for number, entry in enumerate(filter(None, entries), start=1):
            match = _ENTRY.fullmatch(entry)
            if match is None:
                form = "must be `NAME: HASH`, as `hfchat api-key NAME` prints it"
                raise UserError(f"{source}: entry {number} {form}")
            if match[1] in hashes:
                raise UserError(f"{source}: the name {match[1]} is there twice")
            hashes[match[1]] = match[2]
    if not hashes:
        raise UserError(f"{' and '.join(sources)}: no key in it; `hfchat api-key NAME` makes one")
    return ApiKeys(hashes)


class Auth(Check):
    """Lets in those who show a key, everywhere but at `OPEN_PATHS`.

    A program shows it as OpenAI's clients do, `Authorization: Bearer KEY`. A person's browser asks for it by itself
    (HTTP Basic: any user name, the key as password) and sends it with every request from then on, so pages need
    no login.

    Args:
        limited: Beginnings of the paths whose requests count for `rate_limit`.
    """

    def __init__(
        self, app: ASGIApp, keys: ApiKeys, rate_limit: RateLimit | None = None, limited: Collection[str] = ("/v1/",)
    ):
        super().__init__(app)
        self._keys = keys
        self._rate_limit = rate_limit
        self._limited = tuple(limited)

    def refusal(self, scope: Scope) -> ApiError | None:
        if scope["type"] == "http" and scope["path"] in OPEN_PATHS:
            return None
        headers = Headers(scope=scope)
        key = _shown_key(headers.get("authorization", ""))
        name = self._keys.name_of(key) if key else None
        record_of(scope).key_name = name
        if name is None:
            return self._unknown(headers, key)
        if self._rate_limit is None or not scope["path"].startswith(self._limited):
            return None
        return self._rate_limit.refusal(name)

    def _unknown(self, headers: Headers, key: str | None) -> ApiError:
        person = "text/html" in headers.get("accept", "")
        return ApiError(
            401,
            "This API key is not known." if key else "An API key is needed: `Authorization: Bearer KEY`.",
            code="invalid_api_key",
            headers={"WWW-Authenticate": 'Basic realm="hfchat", charset="UTF-8"' if person else "Bearer"},
        )


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
