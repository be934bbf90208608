"""A stage is a function from folders to a folder: its output appears whole, with `lineage.json`, or not at all.

The output is written into `<output_dir>.partial-<fingerprint>` and renamed when `lineage.json`, written last, is in
it. The fingerprint covers the stage, its settings and the content of its inputs: the same command finds the same
partial folder again (so an interrupted run resumes), and a finished output is taken as it is while they agree.
"""

import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any, TypedDict

import filelock
from huggingface_hub.constants import HF_HOME

from hfchat.config import identity_of, settings_of
from hfchat.errors import UserError
from hfchat.lineage import (
    LINEAGE,
    Input,
    Lineage,
    describe,
    digest,
    hash_files,
    is_whole,
    make_private,
    read_lineage,
    share,
    versions,
)
from hfchat.storage import as_path, is_remote, move_folder, remove_tree

_PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "accelerate", "trl", "peft", "datatrove", "evaluate")


class Identity(TypedDict):
    """What makes two runs of a stage the same: they would write the same output."""

    stage: str
    version: int
    config: dict[str, object]
    inputs: dict[str, str]


class Stage:
    """One run of a stage. `Stage.begin` starts it.

    Attributes:
        complete: The output is there, and was made by this stage from these inputs with these settings.
        output_dir: Where the finished output is.
        work_dir: Where to write it; files of an interrupted run of the same command may already be there.
        resumed: Whether files of an interrupted run were there.
    """

    def __init__(
        self,
        output_dir: Path,
        identity: Identity,
        config: dict[str, object],
        inputs: dict[str, Input],
        overwrite: bool = False,
    ):
        """Name the folders and the fingerprint; nothing is written yet. See `begin`."""
        self.output_dir = output_dir
        self.identity = identity
        self.config = config
        self.inputs = inputs
        self.fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self.work_dir = output_dir.with_name(f"{output_dir.name}.partial-{self.fingerprint[:12]}")
        self.resumed = self.work_dir.exists()
        self.complete = False
        self._overwrite = overwrite
        self._started = time.monotonic()
        self._lock: filelock.BaseFileLock | None = None

    @classmethod
    def begin(
        cls,
        name: str,
        output_dir: str | Path,
        *,
        config: Iterable[Any],
        inputs: Mapping[str, str | Path | Input],
        overwrite: bool = False,
        version: int = 1,
    ) -> "Stage":
        """Start or resume a run: keep others out, look whether its output is there already, and make its work folder.

        Args:
            name: Name of the stage, e.g. `"pretrain"`.
            output_dir: Folder that will hold the output: a local path, or a URL of a storage that fsspec knows.
            config: What `hfchat.config.parse` returned.
            inputs: Role (`"corpus"`) to a local file or folder, a Hub id, or what `describe` would return.
            overwrite: Replace an output that was made from other inputs or settings.
            version: Raised when the stage itself changes so that finished outputs must be made again.

        Raises:
            UserError: If an input is missing, if `output_dir` holds something else and `overwrite` is off, or if
                another run is writing there now.
        """
        settings: dict[str, object] = {}
        asked: dict[str, object] = {}
        for part in config:
            settings |= settings_of(part)
            asked |= identity_of(part)
        # The identity decides which work folder is this run's, and whether a finished output is what would come out.
        described = {role: _describe_input(role, source) for role, source in inputs.items()}
        identity: Identity = {
            "stage": name,
            "version": version,
            "config": asked,
            # An input counts by its content; where it lies does not matter.
            "inputs": {role: source["sha256"] for role, source in described.items()},
        }
        stage = cls(as_path(output_dir), identity, settings, described, overwrite)
        # In a launch, one process puts the folders in order; all of them look at what it left.
        if _is_main_process():
            stage._settle_what_was_begun()
        stage.complete = stage._is_complete()
        if stage.complete:
            stage._release()
            return stage
        stage._ask_to_replace()
        stage.work_dir.mkdir(parents=True, exist_ok=True)
        return stage

    def _settle_what_was_begun(self) -> None:
        """Lock out other runs, undo a move that was interrupted, and finish this run if only its move is missing."""
        self.output_dir.parent.mkdir(parents=True, exist_ok=True)
        self._lock = filelock.FileLock(_lock_file(self.output_dir))
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout as error:
            raise UserError(f"output_dir {self.output_dir}: another run is writing there; wait for it") from error
        self._put_back()
        if (self.work_dir / LINEAGE).exists() and not self._is_complete():  # it stopped before the rename
            self._move_into_place()

    def finish(
        self,
        metrics: Mapping[str, object] | None = None,
        licenses: Iterable[str] | None = None,
        config: Iterable[Any] | None = None,
        private: bool = False,
    ) -> None:
        """Write `lineage.json` and move the output into its place. In a distributed run, only the main process does.

        Args:
            metrics: What the stage measured; must be JSON.
            licenses: Licences of the output, by default all those of the inputs.
            config: The settings as they were used, if the recipe derived some after the stage began.
            private: Nobody but its owner may read the output (`make_private`).
        """
        if not _is_main_process():
            return
        for part in config or ():
            self.config |= settings_of(part)
        if licenses is None:
            licenses = chain.from_iterable(source["licenses"] for source in self.inputs.values())
        # What is in the folder now is the output; the lineage names each file with its hash.
        outputs = hash_files(self.work_dir)
        seed = self.config.get("seed")
        record: Lineage = {
            "stage": self.identity["stage"],
            "fingerprint": self.fingerprint,
            "identity": self.identity,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "duration_s": round(time.monotonic() - self._started, 1),
            "resumed": self.resumed,
            "inputs": self.inputs,
            "licenses": sorted(set(licenses)),
            "config": self.config,
            "seed": seed if isinstance(seed, int) else None,
            "metrics": dict(metrics or {}),
            "versions": versions(_PACKAGES) | {"python": platform.python_version()},
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "outputs": outputs,
            "sha256": digest(outputs),
        }
        # The lineage is the sign that the output is complete, so it is written last, and never by halves.
        text = json.dumps(record, indent=2, ensure_ascii=False, default=str)
        if is_remote(self.work_dir):  # an object appears whole
            (self.work_dir / LINEAGE).write_text(text, encoding="utf-8")
        else:
            scratch = self.work_dir / f"{LINEAGE}.tmp"
            with scratch.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            if private:
                make_private(self.work_dir)
            else:
                share(self.work_dir, scratch.stat().st_mode)
            scratch.rename(self.work_dir / LINEAGE)
        self._move_into_place()
        self._release()

    def report_complete(self) -> None:
        """Say, in one line, that there is nothing to do."""
        if _is_main_process():
            lineage = read_lineage(self.output_dir)
            finished = lineage["finished"] if lineage else "now"
            print(
                f"{self.identity['stage']}: {self.output_dir} was finished {finished} by the same run; nothing to do"
            )

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def _is_complete(self) -> bool:
        found = read_lineage(self.output_dir)
        return found is not None and found["fingerprint"] == self.fingerprint and is_whole(self.output_dir)

    @property
    def _replaced(self) -> Path:
        """Where the output that is being replaced waits until its replacement is in its place."""
        return self.output_dir.with_name(f".{self.output_dir.name}.replaced")

    def _move_into_place(self) -> None:
        self._ask_to_replace()
        if self.output_dir.exists():
            move_folder(self.output_dir, self._replaced)
        move_folder(self.work_dir, self.output_dir)
        remove_tree(self._replaced)

    def _put_back(self) -> None:
        """Undo an interrupted move into place of any run, so that no finished output is lost."""
        if not self._replaced.exists():
            return
        # A local rename is one step, but an object store may have copied only a part: its lineage tells.
        moved = read_lineage(self.output_dir) is not None and is_whole(self.output_dir)
        if moved or (self.output_dir.exists() and not is_remote(self.output_dir)):
            remove_tree(self._replaced)
        else:
            remove_tree(self.output_dir)
            move_folder(self._replaced, self.output_dir)

    def _ask_to_replace(self) -> None:
        """Refuse to replace an output unless the user asked for it.

        Raises:
            UserError: If there is an output and `overwrite` is off.
        """
        if self._overwrite or not self.output_dir.exists():
            return
        self._release()
        difference = self._difference(read_lineage(self.output_dir))
        raise UserError(
            f"output_dir {self.output_dir}: {difference}; choose another output_dir, "
            "or pass --overwrite_output_dir true to replace it when this run has finished"
        )

    def _difference(self, found: Lineage | None) -> str:
        """What tells the output that is there from this run's, in words."""
        if found is None:
            return "already exists and was not made by hfchat"
        if found["stage"] != self.identity["stage"]:
            return f"holds the output of another stage ({found['stage']})"
        made_from, asked = found["identity"]["inputs"], self.identity["inputs"]
        for role in sorted(made_from.keys() | asked.keys()):
            if made_from.get(role) != asked.get(role):
                return f"was made from another {role}"
        before, now = found["identity"]["config"], self.identity["config"]
        for key in sorted(before.keys() | now.keys()):
            old, new = before.get(key, "its default"), now.get(key, "its default")
            if old != new:
                return f"was made with {key}={old}, now {new}"
        return "was made by another version of hfchat, or its files are incomplete"


def _describe_input(role: str, source: str | Path | Input) -> Input:
    if isinstance(source, dict):
        return source
    try:
        return describe(source)
    except UserError as error:
        raise UserError(f"{role}: {error}; it is made by an earlier recipe, or name another") from error


def _lock_file(output_dir: Path) -> Path:
    if is_remote(output_dir):  # there are no locks there: only runs of the same user on this machine can be kept apart
        name = hashlib.sha256(str(output_dir).encode()).hexdigest()[:16]
        locks = Path(HF_HOME) / "hfchat" / "locks"  # not the folder for temporary files, where others may write
        locks.mkdir(parents=True, exist_ok=True)
        return locks / f"{name}.lock"
    return output_dir.with_name(f".{output_dir.name}.lock")


def _is_main_process() -> bool:
    return int(os.environ.get("RANK", 0)) == 0
