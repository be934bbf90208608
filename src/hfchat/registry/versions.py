"""A model's versions on disk, and which of them answers: plain folders, and nothing is ever overwritten.

    models/assistant/v1/            a model as any stage writes it, with its lineage
    models/assistant/v2/
    models/assistant/current        a link to the version that answers; replaced in one step
    models/assistant/candidate.json a version that answers a share of the requests, if there is one
    models/assistant/history.jsonl  what was added, promoted and rolled back, when and why

Any tool opens a version, or `current`, as the model that it is; `hfchat serve models/assistant` follows `current`.
"""

import errno
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NotRequired, TypedDict, cast

import filelock

from hfchat.errors import UserError
from hfchat.lineage import content_digest, copy_with_lineage
from hfchat.model_code import refuse_code
from hfchat.storage import check_own_files, remove_tree

_VERSION = re.compile(r"v([1-9]\d*)")
_CURRENT = "current"
_CANDIDATE = "candidate.json"
_HISTORY = "history.jsonl"
_MAX_CANDIDATE = 64 * 1024  # characters


class HistoryEntry(TypedDict):
    """A line of the history. A newer version of hfchat may add more keys."""

    time: str
    action: str  # add, promote, try or rollback
    version: str
    reason: str
    source: NotRequired[str]  # add: the folder that was copied
    sha256: NotRequired[str]  # add: the digest of its content
    share: NotRequired[float]  # try


@dataclass(frozen=True)
class Candidate:
    """A version that answers beside the current one, and its share of the requests, in (0, 1)."""

    version: str
    share: float


@dataclass(frozen=True)
class Deployment:
    """Which versions answer.

    Attributes:
        current: None before the first promotion.
        candidate: The version that answers beside it; None without one.
        problem: Why the file that names the candidate cannot be used; None if it can, or is not there.
    """

    current: str | None
    candidate: Candidate | None = None
    problem: str | None = None


def _read_candidate(path: Path) -> Candidate | None:
    """The candidate that a file names, None without the file. What a newer hfchat may have added to it is left out.

    Raises:
        ValueError: If the file cannot be read, or does not name a candidate.
    """
    try:
        if not path.is_file():  # a pipe would keep its reader waiting
            if path.exists():
                raise ValueError("it is not a file")
            return None
        with path.open(encoding="utf-8-sig") as file:
            entry = json.loads(file.read(_MAX_CANDIDATE))
    except (OSError, RecursionError) as error:
        raise ValueError(str(error)) from error
    version, share = (entry.get("version"), entry.get("share")) if isinstance(entry, dict) else (None, None)
    if not isinstance(version, str) or not _VERSION.fullmatch(version):
        raise ValueError("it does not name a version")
    if not isinstance(share, int | float) or not 0 < share < 1:
        raise ValueError("its share must be a number between 0 and 1")
    return Candidate(version, float(share))


class Registry:
    """The versions of one model.

    Args:
        folder: Where they are, e.g. `models/assistant`; its name is the model's.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    @classmethod
    def is_one(cls, folder: str | Path) -> bool:
        """Whether a folder is a registry to which a version was added."""
        return (Path(folder) / _HISTORY).is_file()

    @property
    def current(self) -> Path:
        """The link to the version that answers."""
        return self.folder / _CURRENT

    def versions(self) -> list[str]:
        """All versions, oldest first."""
        names = [path.name for path in self.folder.glob("v*") if _VERSION.fullmatch(path.name)]
        return sorted(names, key=lambda name: int(name[1:]))

    def path(self, version: str) -> Path:
        """The folder of a version.

        Raises:
            UserError: If there is no such version.
        """
        if version not in self.versions():
            known = ", ".join(self.versions()) or "none yet"
            raise UserError(f"{self.folder} has no version {version}; its versions are: {known}")
        return self.folder / version

    def deployment(self) -> Deployment:
        """What answers now.

        Raises:
            UserError: If `current` is not a link.
        """
        try:
            current = os.readlink(self.current)
        except FileNotFoundError:
            current = None
        except OSError as error:
            raise UserError(f"{self.current} must be a link to a version ({error.strerror})") from error

        # A candidate's file that cannot be used must not keep the current version from answering.
        path = self.folder / _CANDIDATE
        try:
            candidate = _read_candidate(path)
        except ValueError as error:
            problem = f"{path} cannot be read: {error}; delete it, or name a candidate with `hfchat models try`"
            return Deployment(current, problem=problem)
        if candidate is not None and candidate.version == current:  # it was promoted a moment ago
            candidate = None
        return Deployment(current, candidate)

    def answering(self) -> str:
        """The version that answers.

        Raises:
            UserError: If no version answers yet.
        """
        current = self.deployment().current
        if current is None:
            fix = f"`hfchat models add {self.folder} MODEL --promote` makes one"
            if versions := self.versions():
                fix = f"`hfchat models promote {self.folder} {versions[-1]}` lets the newest one answer"
            raise UserError(f"{self.folder}: no version answers yet; {fix}")
        return current

    def history(self) -> list[HistoryEntry]:
        """What was done, oldest first.

        A last line without its end was cut off while it was written, so what it tells of has not happened.

        Raises:
            UserError: If a line is not an entry.
        """
        try:
            written = (self.folder / _HISTORY).read_bytes()
        except FileNotFoundError:
            return []
        *lines, _cut = written.split(b"\n")
        return [self._entry(number, line) for number, line in enumerate(lines, 1) if line.strip()]

    def _entry(self, number: int, line: bytes) -> HistoryEntry:
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if not isinstance(entry, dict) or not HistoryEntry.__required_keys__ <= entry.keys():
            raise UserError(
                f"{self.folder / _HISTORY}: line {number} is not an entry of the history; correct or delete it"
            )
        return cast(HistoryEntry, entry)

    def add(self, source: str | Path, reason: str = "") -> str:
        """Copy a model into the registry as its next version; it does not answer yet.

        Returns:
            The version: a new one, or the one that has the same content.

        Raises:
            UserError: If the folder does not hold a whole model, or the model brings code or a link out of its folder.
        """
        source = Path(source)
        if not (source / "config.json").is_file():
            raise UserError(f"{source} has no config.json, so no model is in it; name the folder of a whole model")
        check_own_files(source)
        refuse_code(source)  # servers other than hfchat's may serve the version, and might run its code
        digest = content_digest(source)  # not the one in its lineage: anybody may have written that
        with self._locked():
            versions = self.versions()
            for version, known in self._added().items():
                if known == digest and version in versions:
                    return version

            # The copy is whole before it has its name, and the history has an entry for each name.
            version = f"v{max((int(name[1:]) for name in versions), default=0) + 1}"
            partial = self.folder / f".{version}.partial"
            remove_tree(partial)
            try:
                copy_with_lineage(source, partial)
                with self._noted("add", version, reason, source=str(source), sha256=digest):
                    partial.rename(self.folder / version)
            except (OSError, UserError):
                remove_tree(partial)
                raise
        return version

    def promote(self, version: str, reason: str = "") -> None:
        """Let a version answer.

        Raises:
            UserError: If there is no such version.
        """
        with self._locked():
            self._point_at(self.path(version).name, "promote", reason)

    def roll_back(self, reason: str = "") -> str:
        """Let the version answer that did so before the current one.

        Returns:
            That version.

        Raises:
            UserError: If no other version has answered before.
        """
        with self._locked():
            current = self.deployment().current
            before = self._promoted()
            # A version that was noted after the current one was promoted never came to answer.
            while current in before and before[-1] != current:
                before.pop()
            while before and before[-1] == current:
                before.pop()
            if not before:
                raise UserError(f"{self.folder}: no version answered before {current}, so it cannot be rolled back")
            self._point_at(self.path(before[-1]).name, "rollback", reason)
            return before[-1]

    def try_out(self, version: str, share: float, reason: str = "") -> None:
        """Let a version answer a share of the requests, instead of the candidate that did so; a share of 0 ends it.

        Raises:
            UserError: If there is no such version, it answers all requests already, or the share is not in [0, 1).
        """
        if not 0 <= share < 1:
            raise UserError(f"--share must be at least 0 and less than 1, not {share}; for 1, promote the version")
        with self._locked():
            self.path(version)
            if self.deployment().current in (None, version):
                raise UserError(f"{self.folder}: {version} can be tried only beside another version that answers")
            candidate = self.folder / _CANDIDATE
            partial = self.folder / f".{_CANDIDATE}.new"
            partial.write_text(json.dumps(asdict(Candidate(version, share))) + "\n", encoding="utf-8")
            with self._noted("try", version, reason, share=share):
                if share:
                    partial.replace(candidate)
                else:
                    candidate.unlink(missing_ok=True)
            partial.unlink(missing_ok=True)

    def _added(self) -> dict[str, str]:
        """The digest of each version's content."""
        return {entry["version"]: entry["sha256"] for entry in self.history() if "sha256" in entry}

    def _promoted(self) -> list[str]:
        """The versions that answered, oldest first, without those that were rolled back."""
        promoted: list[str] = []
        for entry in self.history():
            if entry["action"] == "promote":
                promoted.append(entry["version"])
            elif entry["action"] == "rollback":
                while promoted and promoted[-1] != entry["version"]:
                    promoted.pop()
        return promoted

    def _point_at(self, version: str, action: str, reason: str) -> None:
        # What needs room on the disk comes first: renaming and deleting need no room, so they do not fail half way.
        link = self.folder / f".{_CURRENT}.new"
        link.unlink(missing_ok=True)
        link.symlink_to(version)
        with self._noted(action, version, reason):
            link.replace(self.current)
            if (candidate := self.folder / _CANDIDATE).is_file():
                candidate.unlink()  # it was compared with what answered until now

    @contextmanager
    def _noted(self, action: str, version: str, reason: str, **more: str | float) -> Iterator[None]:
        """Write an entry of the history around what it tells of, and take it back if that fails."""
        time = datetime.now(UTC).isoformat(timespec="seconds")
        entry = {"time": time, "action": action, "version": version, "reason": reason, **more}
        line = json.dumps(entry).encode() + b"\n"
        # There is no buffer, because it would be written after all when the file is closed.
        with (self.folder / _HISTORY).open("a+b", buffering=0) as file:
            file.seek(0)
            whole = file.read().rfind(b"\n") + 1  # the rest was cut off while it was written
            file.truncate(whole)
            try:
                if file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder / _HISTORY))
                os.fsync(file.fileno())
                yield
            except BaseException:
                file.truncate(whole)
                raise

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(self.folder / ".lock"):
            yield
