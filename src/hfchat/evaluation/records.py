"""Records of what models said, as JSON lines that grow while a run goes on."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from hfchat.errors import UserError
from hfchat.evaluation.task import Record
from hfchat.storage import write_whole


def read_records(file: Path) -> list[Record]:
    """Read the records of a file in the order of their indices; a later one replaces an earlier one of its index.

    A last line that was not written to its end is cut off the file.
    """
    if not file.exists():
        return []
    written = file.read_bytes()
    whole = written[: written.rfind(b"\n") + 1]
    if whole != written:
        with file.open("r+b") as torn:
            torn.truncate(len(whole))
    try:
        records = [Record(**json.loads(line)) for line in whole.splitlines()]
    except (ValueError, TypeError) as error:
        raise UserError(f"{file}: holds a line that is not a record; delete the file and run again") from error
    return sorted({record.index: record for record in records}.values(), key=lambda record: record.index)


def by_group(records: Iterable[Record]) -> dict[str, list[Record]]:
    """The records of each group, in the order in which the groups first appear; those without one are left out."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        if record.group is not None:
            groups.setdefault(record.group, []).append(record)
    return groups


def append_records(file: Path, records: Iterable[Record]) -> None:
    """Add lines to a file, all in one write."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as output:
        output.write("".join(map(_line, records)))


def write_records(file: Path, records: Iterable[Record]) -> None:
    """Replace a file whole, or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, "".join(map(_line, records)))


def _line(record: Record) -> str:
    return json.dumps(asdict(record), ensure_ascii=False) + "\n"
