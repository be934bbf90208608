"""Runs the checks against a server and says what came of each."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import httpx

from hfchat.probe.registry import Check
from hfchat.probe.target import Target
from hfchat.probe.verdicts import FailedError, SkippedError, Verdict

_CHECK_S = 180.0  # the limits inside of the checks are shorter, and say more


@dataclass(frozen=True)
class Result:
    """What came of a check.

    Attributes:
        check: The check.
        verdict: Whether the server did what it must.
        seen: What it did, or why the check does not apply to it.
        ms: How long the check took.
    """

    check: Check
    verdict: Verdict
    seen: str
    ms: int


async def probe(
    target: Target, checks: Sequence[Check], on_begin: Callable[[Check, Sequence[Result]], None]
) -> list[Result]:
    """Run the checks one after another, and those that wait beside them.

    Args:
        target: The server.
        checks: In the order in which they run.
        on_begin: Called with each check when its turn comes, and with the results until then.

    Returns:
        The results, in the order of the checks. Once the server is gone, the rest is skipped.
    """
    beside = {check.name: asyncio.create_task(run(target, check)) for check in checks if check.waits}
    results: list[Result] = []
    try:
        for check in checks:
            on_begin(check, results)
            if (gone_at := await _gone_at(target, results)) is not None:
                results.append(Result(check, "skip", f"the server is gone since: {gone_at.name}", 0))
                continue
            results.append(await (beside.get(check.name) or run(target, check)))
    finally:
        for task in beside.values():
            task.cancel()
        await asyncio.gather(*beside.values(), return_exceptions=True)
    return results


async def run(target: Target, check: Check) -> Result:
    """Run one check."""
    began = time.monotonic()
    verdict: Verdict = "FAIL"
    try:
        async with target.within(_CHECK_S, "not over after {limit}"):
            verdict, seen = "pass", await check.ask(target)
    except FailedError as error:
        seen = str(error)
    except SkippedError as error:
        verdict, seen = "skip", str(error)
    except (httpx.HTTPError, OSError) as error:
        seen = f"no whole answer: {type(error).__name__} {error}".rstrip()
    except (LookupError, TypeError, AttributeError, ValueError) as error:  # where an answer of another shape is read
        seen = f"an answer of another shape: {type(error).__name__} {error}"
    return Result(check, verdict, " ".join(seen.split()), round((time.monotonic() - began) * 1000))


async def _gone_at(target: Target, results: Sequence[Result]) -> Check | None:
    """The check after which nobody listens any more; the checks of the shutdown see that themselves."""
    last = next((result for result in reversed(results) if result.verdict != "skip"), None)
    if last is None or last.verdict == "pass" or last.check.group == "shutdown":
        return None
    with contextlib.suppress(httpx.HTTPError):
        try:
            await target.client.get("models")
        except httpx.ConnectError:
            return last.check
    return None
