"""What the doctor found, as text and as JSON."""

import itertools
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Verdict = Literal["ok", "warning", "fails", ""]
_MARKS = {"ok": "ok", "warning": "warning", "fails": "FAILS", "": ""}


@dataclass(frozen=True)
class Line:
    """One finding.

    Attributes:
        name: What was looked at.
        value: What it is.
        verdict: Whether that is well; empty where there is nothing to judge.
        advice: What to do about it.
    """

    name: str
    value: str
    verdict: Verdict = ""
    advice: str = ""


@dataclass
class Section:
    """Findings of one kind.

    Attributes:
        title: Its heading.
        lines: Its findings.
        text: Shown below them as it is: a sample, a histogram.
    """

    title: str
    lines: list[Line] = field(default_factory=list)
    text: str = ""

    def add(self, name: str, value: str, verdict: Verdict = "", advice: str = "") -> None:
        self.lines.append(Line(name, value, verdict, advice))

    def judge(self, name: str, value: str, is_well: bool, advice: str, fault: Verdict = "warning") -> None:
        """Add a line that is well, or has the verdict of a fault and the advice for it."""
        if is_well:
            self.add(name, value, "ok")
        else:
            self.add(name, value, fault, advice)


@dataclass
class Report:
    """All that the doctor found.

    Attributes:
        recipe: Name of the recipe.
        machine: In words.
        sections: In the order of the text.
        figures: Numbers behind the text, for programs, by what they are about: bytes and seconds.
        verdict: One line.
    """

    recipe: str
    machine: str
    sections: list[Section] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    verdict: str = ""

    def section(self, title: str) -> Section:
        self.sections.append(Section(title))
        return self.sections[-1]

    def faults(self) -> list[Line]:
        lines = itertools.chain.from_iterable(section.lines for section in self.sections)
        return [line for line in lines if line.verdict == "fails"]

    @property
    def ok(self) -> bool:
        return not self.faults()

    def as_json(self) -> str:
        return json.dumps(asdict(self) | {"ok": self.ok}, indent=2, ensure_ascii=False, default=str)

    def __str__(self) -> str:
        parts = [f"{self.recipe} on {self.machine}"]
        for section in self.sections:
            parts += ["", section.title, *_table(section.lines)]
            parts += [f"  {line}" for line in section.text.splitlines()]
        return "\n".join([*parts, "", self.verdict])


def _table(lines: Iterable[Line]) -> list[str]:
    lines = list(lines)
    names = max((len(line.name) for line in lines), default=0)
    values = max((len(line.value) for line in lines if len(line.value) < 40), default=0)
    rows = []
    for line in lines:
        rows.append(f"  {line.name:<{names}}  {line.value:<{values}}  {_MARKS[line.verdict]}".rstrip())
        if line.advice:
            rows.append(f"  {'':<{names}}  -> {line.advice}")
    return rows


def size(number: float) -> str:
    """Bytes in binary units."""
    for unit, length in (("GiB", 2**30), ("MiB", 2**20)):
        if number >= length:
            return f"{number / length:.{0 if unit == 'MiB' else 2}f} {unit}"
    return f"{number / 1024:.0f} KiB"


def time(seconds: float) -> str:
    """Seconds in the largest unit that is needed at least twice."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"
