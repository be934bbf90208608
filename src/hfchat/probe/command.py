"""The command `hfchat probe`."""

import argparse
import asyncio
import contextlib
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from hfchat.errors import UserError
from hfchat.probe.registry import GROUPS, Check, checks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `hfchat probe`."""
    parser.add_argument("url", metavar="URL", help="address of the API, e.g. http://127.0.0.1:8000/v1")
    parser.add_argument("--model", metavar="ID", help="the model to ask (the first one that the server lists)")
    parser.add_argument("--api-key-env", metavar="NAME", help="environment variable with the API key (none)")
    process = parser.add_mutually_exclusive_group()
    process.add_argument("--pid", type=int, metavar="PID", help="the server's process, which is shut down at the end")
    process.add_argument("--command", metavar="COMMAND", help="start the server, and shut it down at the end")
    parser.add_argument(
        "--only",
        action="append",
        choices=GROUPS,
        metavar="GROUP",
        help=f"a group of checks: {', '.join(GROUPS)}; repeatable (all)",
    )
    parser.add_argument(
        "--patience", type=float, default=1.0, metavar="X", help="multiplies all time limits, for slow machines (1)"
    )
    parser.add_argument("--json", metavar="FILE", help="file to which the results are written as well")


def handler(args: argparse.Namespace) -> None:
    """Probe a server and print what was seen. Ends with status 0 if no check failed, and with 1 if one did."""
    url = args.url.rstrip("/")
    try:
        valid = urlsplit(url).scheme in ("http", "https") and urlsplit(url).hostname and urlsplit(url).port != 0
    except ValueError:
        valid = False
    if not valid:
        raise UserError(f"URL must be like http://127.0.0.1:8000/v1, not {args.url!r}")
    if not 0 < args.patience < math.inf:
        raise UserError(f"--patience must be a number above 0, not {args.patience}")
    if args.api_key_env is not None and not os.environ.get(args.api_key_env):
        raise UserError(f"--api-key-env {args.api_key_env}: the environment has no such variable")
    if args.json is not None and not Path(args.json).resolve().parent.is_dir():
        raise UserError(f"--json {args.json}: there is no such folder; make it first")
    try:
        import h11  # noqa: F401
        import httpx  # noqa: F401
        import openai  # noqa: F401
        import rich  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name} is not installed; run `pip install 'hfchat[probe]'`") from error
    api_key = os.environ[args.api_key_env] if args.api_key_env else None
    sys.exit(1 if asyncio.run(_probe(url, api_key, args)) else 0)


async def _probe(url: str, api_key: str | None, args: argparse.Namespace) -> int:
    """The number of checks that failed."""
    from hfchat.probe import process, report, suite
    from hfchat.probe.target import reach

    # The server is started before anything is shown, and ended after all.
    chosen = checks(tuple(args.only or GROUPS))
    console = report.console()
    async with contextlib.AsyncExitStack() as stack:
        status = stack.enter_context(
            console.status("starting the server" if args.command else "looking for the server")
        )
        server = process.running(args.pid) if args.pid is not None else None
        if args.command is not None:
            server = await stack.enter_async_context(process.start(args.command, url))
        target = await stack.enter_async_context(reach(url, args.model, api_key, args.patience, server))
        console.print(f"{target.model} at {url}: {len(chosen)} checks")

        def show_last_group(results: Sequence[suite.Result]) -> None:
            group = results[-1].check.group
            console.print(report.group_table([result for result in results if result.check.group == group]))

        def on_begin(check: Check, results: Sequence[suite.Result]) -> None:
            if results and results[-1].check.group != check.group:
                show_last_group(results)
            status.update(f"{check.group}: {check.name}")

        results = await suite.probe(target, chosen, on_begin)
        show_last_group(results)
        console.print(report.summary_table(results))
        if args.json is not None:
            report.write_json(Path(args.json), target, results)
    return sum(result.verdict == "FAIL" for result in results)
