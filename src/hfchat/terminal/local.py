"""A model of this machine, served for one conversation."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import httpx

from hfchat.engines.child import ChildServer, Program
from hfchat.errors import UserError
from hfchat.terminal.screen import Screen

_POLL_S = 0.2
_CHOSEN_HERE = ("--host", "--port", "--drain-seconds")


@contextmanager
def serving(model: str, options: Sequence[str], screen: Screen) -> Iterator[ChildServer]:
    """Run `hfchat serve MODEL` on a free port of loopback, with a random key, until the context ends.

    Args:
        model: What `hfchat serve` takes: a folder, a registry, a Hub id or a .gguf file.
        options: Its other options.
        screen: Where it is shown that the model is being loaded.

    Raises:
        UserError: If it does not start. Says why, in its own words.
    """
    for option in options:
        if option.partition("=")[0] in _CHOSEN_HERE:
            raise UserError(f"{option}: `hfchat chat` chooses it by itself; leave it out, or give a URL as MODEL")
    try:
        from hfchat.serving.http.auth import ENVIRONMENT_VARIABLE, hash_key
    except ImportError as error:
        raise UserError(f"{error.name} is not installed; run `pip install 'hfchat[serving]'`") from error

    program = Program(
        name="hfchat serve",
        command=[
            *(sys.executable, "-c", "from hfchat.cli import main; main()", "serve", model, *options),
            *("--port", "{port}", "--drain-seconds", "0"),
        ],
        key_variable=ENVIRONMENT_VARIABLE,
        key_value=lambda key: f"chat: {hash_key(key)}",
        complaint=_complaint,
    )
    began = time.monotonic()
    child = ChildServer(program)
    try:
        child.start()
        # It listens before the model is loaded, so both are waited for in one loop.
        with httpx.Client(trust_env=False, timeout=5) as http, screen.progress(f"loading {model}") as progress:
            while not _is_ready(http, child.url):
                if not child.is_running:
                    raise UserError(child.why_ended())
                progress(f"{time.monotonic() - began:.0f} s")
                time.sleep(_POLL_S)
        yield child
    finally:
        child.stop()


def _is_ready(http: httpx.Client, url: str) -> bool:
    try:
        return http.get(f"{url}/ready").status_code == 200
    except httpx.HTTPError:
        return False


def _complaint(lines: Sequence[str]) -> str | None:
    """The error that `hfchat serve` ended with, or else its last line."""
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return errors[-1] if errors else (lines[-1] if lines else None)
