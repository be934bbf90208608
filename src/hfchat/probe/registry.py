"""What a check is, and the list of all of them."""

import importlib
import itertools
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it needs the extra `probe`, and the command's options are wanted without it
    from hfchat.probe.target import Target

# Each is a module of `checks`. They run in this order, in which what may break a server comes last.
GROUPS = (
    "shapes",
    "streaming",
    "sampling",
    "tools",
    "structured",
    "bodies",
    "headers",
    "disconnects",
    "floods",
    "slow",
    "context",
    "shutdown",
)


@dataclass(frozen=True)
class Check:
    """One question to a server.

    Attributes:
        group: One of `GROUPS`.
        name: What a good server does.
        why: What is asked and why it matters, with its source.
        ask: Asks the server, and returns what was seen. Raises `FailedError` or `SkippedError`.
        waits: Whether it mostly waits, so that it can run beside all others.
    """

    group: str
    name: str
    why: str
    ask: Callable[["Target"], Awaitable[str]]
    waits: bool


_CHECKS: dict[str, list[Check]] = {group: [] for group in GROUPS}


def check(
    cases: Mapping[str, object] | None = None, waits: bool = False, module: str | None = None
) -> Callable[[Callable], Callable]:
    """Register a function as a check of the group that its module is named after.

    The check has the function's name, with spaces for underscores, and the docstring says why it is made.

    Args:
        cases: For a function of a target and a case: the cases by their labels, each of which is a check.
        waits: Whether it mostly waits.
        module: The module, where it is not the function's own.
    """

    def register(function: Callable) -> Callable:
        group = (module or function.__module__).rpartition(".")[2]
        name = function.__name__.replace("_", " ")
        why = " ".join((function.__doc__ or "").split())
        if cases is None:
            _CHECKS[group].append(Check(group, name, why, function, waits))
        for label, case in (cases or {}).items():

            async def ask(target: "Target", case: object = case) -> str:
                return await function(target, case)

            _CHECKS[group].append(Check(group, f"{name}: {label}", why, ask, waits))
        return function

    return register


def checks(groups: tuple[str, ...] = GROUPS) -> list[Check]:
    """The checks of these groups, in the order in which they run."""
    for group in groups:
        importlib.import_module(f"hfchat.probe.checks.{group}")
    return list(itertools.chain.from_iterable(_CHECKS[group] for group in GROUPS if group in groups))
