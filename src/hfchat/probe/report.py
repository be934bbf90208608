"""The results, as tables and as JSON."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hfchat.errors import UserError
from hfchat.probe.suite import Result
from hfchat.probe.target import Target

_STYLES = {"pass": "green", "FAIL": "bold red", "skip": "dim"}
_WIDTH = 160  # columns where the output is not a terminal


def console() -> Console:
    """Where the tables go: to standard output, wide enough to be read in a file."""
    terminal = Console(highlight=False)
    return terminal if terminal.is_terminal else Console(highlight=False, width=_WIDTH)


def group_table(results: Sequence[Result]) -> Table:
    """The results of one group: check, verdict, what was seen, and milliseconds."""
    table = Table(title=results[0].check.group, title_justify="left", title_style="bold", expand=True)
    table.add_column("check", ratio=4)
    table.add_column("verdict", width=7)
    table.add_column("seen", ratio=5)
    table.add_column("ms", justify="right", width=6)
    for result in results:
        verdict = Text(result.verdict, _STYLES[result.verdict])
        table.add_row(Text(result.check.name), verdict, Text(_printable(result.seen)), str(result.ms))
    return table


def summary_table(results: Sequence[Result]) -> Table:
    """How many checks of each group passed, failed and were skipped."""
    table = Table(title="summary", title_justify="left", title_style="bold")
    table.add_column("group")
    for verdict, style in _STYLES.items():
        table.add_column(verdict, justify="right", style=style)
    groups: dict[str, Counter[str]] = {result.check.group: Counter() for result in results}
    for result in results:
        groups[result.check.group][result.verdict] += 1
    for group, counts in groups.items():
        table.add_row(group, *(str(counts[verdict]) for verdict in _STYLES))
    table.add_section()
    table.add_row("all", *(str(sum(counts[verdict] for counts in groups.values())) for verdict in _STYLES))
    return table


def write_json(path: Path, target: Target, results: Sequence[Result]) -> None:
    """Write the results with the reason for each check.

    Raises:
        UserError: If the file cannot be written.
    """
    checks = [
        {
            "group": result.check.group,
            "check": result.check.name,
            "why": result.check.why,
            "verdict": result.verdict,
            "seen": result.seen,
            "ms": result.ms,
        }
        for result in results
    ]
    counts = Counter(result.verdict for result in results)
    report = {"url": str(target.url), "model": target.model, "verdicts": counts, "checks": checks}
    try:
        path.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--json {path}: cannot be written ({error.strerror})") from error


def _printable(text: str) -> str:
    """What a server says, without the control characters that would steer the terminal."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
