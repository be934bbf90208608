"""The command `hfchat chat`."""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from hfchat.chat import Json
from hfchat.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `hfchat chat`."""
    parser.add_argument(
        "model",
        metavar="MODEL_OR_URL",
        help="what `hfchat serve` takes: a folder, a registry, a Hub id or a .gguf file, which is served for this "
        "conversation, with options of `hfchat serve` that come after it; or an OpenAI-compatible server, e.g. "
        "http://host:8000/v1",
    )
    parser.add_argument("--model", dest="name", metavar="NAME", help="the model's name there (the only one)")
    parser.add_argument("--api-key-env", metavar="NAME", help="environment variable with the API key of a URL (none)")
    parser.add_argument("--system", metavar="TEXT", help="what the model is told before the conversation")
    parser.add_argument("--tools", metavar="FILE.json", help="tools that it may call, as OpenAI's API has them")
    parser.add_argument("--temperature", type=float, metavar="T", help="0 for the likeliest answer (the server's)")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="length of an answer (the server's)")
    parser.add_argument("--seed", type=int, metavar="N", help="for answers that can be repeated (none)")


def handler(args: argparse.Namespace, options: Sequence[str]) -> None:
    """Chat until the person leaves. Ends with status 1 if something that was piped in could not be done.

    Args:
        args: The parsed options.
        options: Those of `hfchat serve`, for a model of this machine.

    Raises:
        UserError: If there is no such model or server, or an option is not as it should be.
    """
    is_url = args.model.startswith(("http://", "https://"))
    if is_url and options:
        raise UserError(f"unrecognized arguments: {' '.join(options)} (see `hfchat chat --help`)")
    if args.api_key_env is not None and not is_url:
        raise UserError(f"--api-key-env is for a URL, which {args.model} is not")
    if args.api_key_env is not None and not os.environ.get(args.api_key_env):
        raise UserError(f"--api-key-env {args.api_key_env}: the environment has no such variable")
    tools = _tools(args.tools) if args.tools is not None else []
    try:
        import httpx  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name} is not installed; run `pip install 'hfchat[serving]'`") from error
    try:
        failures = _chat(args, options, tools)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the answers has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter would try again at its end
        failures = 1
    if failures:
        sys.exit(1)


def _chat(args: argparse.Namespace, options: Sequence[str], tools: Sequence[Json]) -> int:
    """The number of lines that were piped in and could not be done."""
    from hfchat.terminal.client import ChatClient
    from hfchat.terminal.local import serving
    from hfchat.terminal.screen import Screen
    from hfchat.terminal.session import Session

    screen = Screen()
    wanted = {"temperature": args.temperature, "max_tokens": args.max_tokens}
    fields = {name: value for name, value in wanted.items() if value is not None}
    with contextlib.ExitStack() as stack:
        url, key = args.model.rstrip("/"), os.environ[args.api_key_env] if args.api_key_env else None
        if not args.model.startswith(("http://", "https://")):
            child = stack.enter_context(serving(args.model, options, screen))
            url, key = f"{child.url}/v1", child.key
        client = ChatClient(url, key, args.name, fields)
        stack.callback(client.close)
        if screen.is_interactive:
            screen.note(f"{client.model}; /help lists the commands, Ctrl-D leaves")
        session = Session(client, screen, args.system, tools, args.seed)
        session.run()
        if screen.is_interactive:
            screen.end_line()
    return 0 if screen.is_interactive else session.failures


def _tools(file: str) -> list[Json]:
    """The tools in a JSON file.

    Raises:
        UserError: If there is no list of tools in it.
    """
    try:
        tools = json.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--tools {file}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"--tools {file}: is not JSON ({error})") from error
    is_list = isinstance(tools, list) and all(isinstance(tool, dict) and "function" in tool for tool in tools)
    if not is_list or not tools:
        form = '[{"type": "function", "function": {"name": ..., "parameters": ...}}]'
        raise UserError(f"--tools {file}: must be a list of tools: {form}")
    return tools
