"""A stage is a function from folders to a folder: its output appears whole, with `lineage.json`, or not at all.

The output is written into `<output_dir>.partial-<fingerprint>` and renamed when `lineage.json`, written last, is in
it. The fingerprint covers the stage, its settings and the content of its inputs: the same command finds the same
partial folder again (so an interrupted run resumes), and a finished output is taken as it is while they agree.
"""

import dataclasses
import hashlib
import json
import os
import platform
import shutil
import stat
import sys
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import filelock
import yaml
from huggingface_hub.constants import HF_HOME

from hfchat import __version__
from hfchat.errors import UserError
from hfchat.storage import as_path, is_remote, move_folder, remove_tree

LINEAGE = "lineage.json"
CHECKPOINTS = "checkpoints"  # of the training stages: kept, but no part of the output
CERTIFICATE = (
    "certificate.json"  # what was found of a model: `hfchat certify` writes it anew, and the model is the same
)

_PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "accelerate", "trl", "peft", "datatrove", "evaluate")
# Settings that say where, how often or how fast, but not what comes out.
_NOT_PART_OF_THE_RESULT = {
    "output_dir", "overwrite_output_dir", "run_name", "project", "trackio_space_id", "report_to", "disable_tqdm",
    "logging_dir", "logging_steps", "logging_strategy", "logging_first_step", "log_level", "log_level_replica",
    "save_steps", "save_strategy", "save_total_limit", "save_on_each_node", "push_to_hub", "hub_model_id",
    "hub_token", "hub_private_repo", "hub_strategy", "hub_always_push", "dataloader_num_workers",
    "dataloader_pin_memory", "dataset_num_proc", "workers",
    "executor", "strict", "local_rank", "deepspeed", "fsdp", "fsdp_config",
    "accelerator_config", "batch_eval_metrics", "resume_from_checkpoint",
}  # fmt: skip


class Stage:
    """One run of a stage.

    Attributes:
        complete: The output is there, and was made by this stage from these inputs with these settings.
        output_dir: Where the finished output is.
        work_dir: Where to write it; files of an interrupted run of the same command may already be there.
        resumed: Whether they are.
    """

    def __init__(
        self,
        name: str,
        output_dir: str | Path,
        *,
        config: Iterable[Any],
        inputs: Mapping[str, str | Path | Mapping[str, Any]],
        overwrite: bool = False,
    ):
        """
        Args:
            name: Name of the stage, e.g. `"pretrain"`.
            output_dir: Folder that will hold the output: a local path, or a URL of a storage that fsspec knows.
            config: What `hfchat.config.parse` returned.
            inputs: Role (`"corpus"`) to a local file or folder, a Hub id, or what `describe` would return.
            overwrite: Replace an output that was made from other inputs or settings.

        Raises:
            UserError: If an input is missing, if `output_dir` holds something else and `overwrite` is off, or if
                another run is writing there now.
        """
        self.name = name
        self.output_dir = as_path(output_dir)
        self.config = {key: value for part in config for key, value in _settings(part).items()}
        asked = {key: _jsonable(value) for part in config for key, value in part.asked.items()}
        self.inputs = {role: _describe_input(role, source) for role, source in inputs.items()}
        # An input counts by its content; where it lies does not matter.
        places = [source["path"] for source in self.inputs.values()]
        identity = {
            "stage": name,
            "hfchat": __version__,
            "config": {
                key: value
                for key, value in asked.items()
                if key not in _NOT_PART_OF_THE_RESULT and value not in places
            },
            "inputs": {role: source["sha256"] for role, source in self.inputs.items()},
        }
        self.identity = identity
        self.fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self.work_dir = self.output_dir.with_name(f"{self.output_dir.name}.partial-{self.fingerprint[:12]}")
        self.resumed = self.work_dir.exists()
        self._started = time.monotonic()
        self._overwrite = overwrite
        self._lock = None

        if _is_main_process():
            self._settle_what_was_begun()
        self.complete = self._is_complete()
        if self.complete:
            self._release()
            return
        self._ask_to_replace()
        self.work_dir.mkdir(parents=True, exist_ok=True)

    def _settle_what_was_begun(self) -> None:
        """Keep other runs out, undo a move that was cut off, and end this run's own if only its move is missing."""
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
        metrics: Mapping[str, Any] | None = None,
        licenses: Iterable[str] | None = None,
        config: Iterable[Any] | None = None,
        private: bool = False,
    ) -> None:
        """Write `lineage.json` and move the output into its place. In a distributed run, only the main process does.

        Args:
            metrics: What the stage measured; must be JSON.
            licenses: Licences of the output, by default all those of the inputs.
            config: The settings as they were used, where the recipe derived some after the stage began.
            private: Nobody but its owner may read the output (`make_private`).
        """
        if not _is_main_process():
            return
        for part in config or ():
            self.config |= _settings(part) | {"output_dir": str(self.output_dir)}
        if licenses is None:
            licenses = (license for source in self.inputs.values() for license in source["licenses"])
        outputs = _hash_files(self.work_dir)
        record = {
            "stage": self.name,
            "fingerprint": self.fingerprint,
            "identity": self.identity,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "duration_s": round(time.monotonic() - self._started, 1),
            "resumed": self.resumed,
            "inputs": self.inputs,
            "licenses": sorted(set(licenses)),
            "config": self.config,
            "seed": self.config.get("seed"),
            "metrics": dict(metrics or {}),
            "versions": versions(_PACKAGES) | {"python": platform.python_version()},
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "outputs": outputs,
            "sha256": digest(outputs),
        }
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
                _let_others_read(self.work_dir, scratch.stat().st_mode)
            scratch.rename(self.work_dir / LINEAGE)
        self._move_into_place()
        self._release()

    def report_complete(self) -> None:
        """Say, in one line, that there is nothing to do."""
        if _is_main_process():
            lineage = read_lineage(self.output_dir)
            print(f"{self.name}: {self.output_dir} was finished {lineage['finished']} by the same run; nothing to do")

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def _is_complete(self) -> bool:
        found = read_lineage(self.output_dir)
        return found is not None and found["fingerprint"] == self.fingerprint and _is_whole(self.output_dir)

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
        """Undo a move into place, of whatever run, that was cut off: nobody's finished output is lost by it."""
        if not self._replaced.exists():
            return
        # A local rename is one step, but an object store may have copied only a part: its lineage tells.
        moved = read_lineage(self.output_dir) is not None and _is_whole(self.output_dir)
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

    def _difference(self, found: Mapping[str, Any] | None) -> str:
        if found is None:
            return "already exists and was not made by hfchat"
        if found["stage"] != self.name:
            return f"holds the output of another stage ({found['stage']})"
        before, now = found["identity"], self.identity
        for part in ("inputs", "config"):
            for key in sorted(before[part].keys() | now[part].keys()):
                old, new = before[part].get(key), now[part].get(key)
                if old != new:
                    return (
                        f"was made from another {key}"
                        if part == "inputs"
                        else f"was made with {key}={'its default' if old is None else old}, "
                        f"now {'its default' if new is None else new}"
                    )
        return "was made by another version of hfchat, or its files are incomplete"


def read_lineage(folder: str | Path) -> dict[str, Any] | None:
    """The lineage of a finished stage, or None where there is none."""
    try:
        return json.loads((as_path(folder) / LINEAGE).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise UserError(f"{folder}/{LINEAGE}: not valid JSON; delete the folder and run its stage again") from error


def ancestry(folder: str | Path) -> list[dict[str, Any]]:
    """The lineages of what made a folder, from its own back to the raw data, as far as their folders are here.

    A folder that was made again since it was read is not what was read, and is left out. A stage may write several
    outputs (`adapter`, `merged`) beside the one lineage, which is theirs too.

    Returns:
        Each lineage with its folder as `path`, no folder twice.
    """
    found: dict[str, dict[str, Any]] = {}
    waiting: list[tuple[str, str | None]] = [(str(folder), None)]
    while waiting:
        source, expected = waiting.pop(0)
        lineage = lineage_of(source)
        if lineage is None or lineage["path"] in found:
            continue
        if lineage["outputs"] and expected in (None, digest(lineage["outputs"])):
            found[lineage["path"]] = lineage
            waiting += [(made_from["path"], made_from["sha256"]) for made_from in lineage["inputs"].values()]
    return list(found.values())


def lineage_of(folder: str | Path) -> dict[str, Any] | None:
    """The lineage of what a folder holds: its own, or that of the stage whose output it is one of.

    Returns:
        The lineage with `outputs` as they are called in the folder, and as `path` the folder that has it; None if
        there is none.
    """
    path = as_path(folder)
    lineage = read_lineage(path)
    if lineage is not None:
        return {**lineage, "path": str(path)}
    lineage = read_lineage(path.parent)
    if lineage is None:
        return None
    prefix = f"{path.name}/"
    outputs = lineage["outputs"].items()
    inside = {name.removeprefix(prefix): made for name, made in outputs if name.startswith(prefix)}
    return {**lineage, "outputs": inside, "path": str(path.parent)}


def copy_with_lineage(source: str | Path, target: Path) -> None:
    """Copy a folder to where there is none yet, as what the same stage made; its checkpoints stay behind.

    Raises:
        UserError: If files named in the lineage are missing or cut.
    """
    source = as_path(source)
    lineage = lineage_of(source)
    if lineage is not None:
        lineage["sha256"] = digest(lineage["outputs"])
        del lineage["path"]
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(CHECKPOINTS, LINEAGE))
    if lineage is not None and lineage["outputs"]:
        (target / LINEAGE).write_text(json.dumps(lineage, indent=2) + "\n", encoding="utf-8")
        if not _is_whole(target):
            raise UserError(f"{source}: files named in its {LINEAGE} are missing or cut; run its stage again")


def content_digest(folder: str | Path) -> str:
    """The SHA-256 of an output's files as they are now, whatever its lineage says of them."""
    return digest(_hash_files(as_path(folder)))


def describe(source: str | Path) -> dict[str, Any]:
    """Identify an input by its content: `{"path", "sha256", "licenses"}`.

    A finished stage is identified by the digest in its lineage; any other file or folder is read. A Hub id is
    identified by itself and, where it is in the local cache, its commit.

    Raises:
        UserError: If a local path does not exist, or if it holds an unfinished stage.
    """
    path = as_path(source)
    if path.is_file():
        return {"path": str(source), "sha256": _sha256(path), "licenses": _licenses(path.parent)}
    if path.is_dir():
        lineage = read_lineage(path)
        if lineage is not None:
            if not _is_whole(path):
                raise UserError(f"{path}: files named in its {LINEAGE} are missing or cut; run its stage again")
            return {"path": str(source), "sha256": lineage["sha256"], "licenses": lineage["licenses"]}
        return {"path": str(source), "sha256": digest(_hash_files(path)), "licenses": _licenses(path)}
    if is_remote(path) or path.is_absolute() or str(source).startswith(".") or str(source).count("/") > 1:
        raise UserError(f"{source}: no such file or folder")
    return {"path": str(source), "sha256": f"hub:{source}", "licenses": ["see the Hub"]}


def _describe_input(role: str, source: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(source, Mapping):
        return dict(source)
    try:
        return describe(source)
    except UserError as error:
        raise UserError(f"{role}: {error}; it is made by an earlier recipe, or name another") from error


def _lock_file(output_dir: Path) -> Path:
    if is_remote(output_dir):  # no locks there: two runs of the same user and machine are all that can be told apart
        name = hashlib.sha256(str(output_dir).encode()).hexdigest()[:16]
        locks = Path(HF_HOME) / "hfchat" / "locks"  # not the folder for temporary files, where others may write
        locks.mkdir(parents=True, exist_ok=True)
        return locks / f"{name}.lock"
    return output_dir.with_name(f".{output_dir.name}.lock")


def _settings(config: Any) -> dict[str, Any]:
    """All settings, but for the keys that open the Hub."""
    names = (field.name for field in dataclasses.fields(config) if field.init)
    return {name: _jsonable(getattr(config, name)) for name in names if "token" not in name.split("_")}


def _jsonable(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _is_main_process() -> bool:
    return int(os.environ.get("RANK", 0)) == 0


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Those of hfchat and of the packages that are installed."""
    found = {"hfchat": __version__}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_files(folder: Path) -> dict[str, dict[str, Any]]:
    names = sorted(
        path.relative_to(folder)
        for path in folder.rglob("*")
        if path.is_file()
        and path.name != CERTIFICATE
        and path.relative_to(folder).parts[0] not in (CHECKPOINTS, LINEAGE, f"{LINEAGE}.tmp")
    )
    return {
        name.as_posix(): {"size": (folder / name).stat().st_size, "sha256": _sha256(folder / name)} for name in names
    }


def _let_others_read(folder: Path, mode: int) -> None:
    """Give all files the permissions of an ordinary new one: safetensors 0.8 writes weights for their owner alone."""
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink():
            file.chmod(file.stat().st_mode | stat.S_IMODE(mode))


def make_private(folder: str | Path) -> None:
    """Let nobody but its owner read a folder, nor anything in it. A storage that is remote has rights of its own."""
    path = as_path(folder)
    if is_remote(path):
        return
    path.chmod(0o700)  # first, so that nobody opens a file meanwhile
    for inside in path.rglob("*"):
        if not inside.is_symlink():
            inside.chmod(0o700 if inside.is_dir() else 0o600)


def digest(outputs: Mapping[str, Mapping[str, Any]]) -> str:
    """One SHA-256 for the files of an output, each `{"size", "sha256"}` by its name."""
    return hashlib.sha256(json.dumps(outputs, sort_keys=True).encode()).hexdigest()


def _is_whole(folder: Path) -> bool:
    """Whether every file named in the lineage has its recorded size; the content is not read again."""
    outputs = read_lineage(folder)["outputs"]
    return all((folder / name).is_file() and (folder / name).stat().st_size == file["size"]
               for name, file in outputs.items())  # fmt: skip


def _licenses(folder: Path) -> list[str]:
    """Licences of a folder that no stage made: of its lineage one level up, or of its Hub card."""
    lineage = read_lineage(folder.parent)
    if lineage is not None:
        return lineage["licenses"]
    try:
        _, header, _ = (folder / "README.md").read_text(encoding="utf-8").split("---", 2)
        license = yaml.safe_load(header)["license"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return ["unknown"]
    return license if isinstance(license, list) else [license]
