"""`lineage.json`: what made a folder, from what, with which settings, and under which licences.

`hfchat.stage` writes it last, so it also says that the folder is complete.
"""

import hashlib
import json
import shutil
import stat
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, TypedDict

import yaml

from hfchat import __version__
from hfchat.errors import UserError
from hfchat.storage import as_path, is_remote

LINEAGE = "lineage.json"
CHECKPOINTS = "checkpoints"  # of the training stages: kept, but no part of the output
CERTIFICATE = "certificate.json"  # `hfchat certify` writes it anew, and the model is the same


class Input(TypedDict):
    """What a stage was given: where it lay, the SHA-256 of its content, and its licences."""

    path: str
    sha256: str
    licenses: list[str]


class OutputFile(TypedDict):
    """One file of an output: its bytes, and their SHA-256."""

    size: int
    sha256: str


class Lineage(TypedDict):
    """What `lineage.json` holds: what made the output, from what, with which settings, and what it measured."""

    stage: str
    fingerprint: str
    identity: Any
    finished: str
    duration_s: float
    resumed: bool
    inputs: dict[str, Input]
    licenses: list[str]
    config: dict[str, Any]
    seed: int | None
    metrics: dict[str, Any]
    versions: dict[str, str]
    command: list[str]
    outputs: dict[str, OutputFile]
    sha256: str


class Ancestor(Lineage):
    """A lineage, and the folder that has it."""

    path: str


def read_lineage(folder: str | Path) -> Lineage | None:
    """The lineage of a finished stage, or None if the folder has no lineage."""
    try:
        return json.loads((as_path(folder) / LINEAGE).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise UserError(f"{folder}/{LINEAGE}: not valid JSON; delete the folder and run its stage again") from error


def metrics_of(folder: str | Path) -> dict[str, Any]:
    """What a finished stage measured.

    Raises:
        UserError: If the folder holds no finished stage.
    """
    lineage = read_lineage(folder)
    if lineage is None:
        raise UserError(f"{folder}: has no {LINEAGE}, so its stage has not finished; run it again")
    return lineage["metrics"]


def ancestry(folder: str | Path) -> list[Ancestor]:
    """The lineages behind a folder, from its own back to the raw data, as far as their folders are on this machine.

    A folder that was made again after it was read is left out, because it is no longer what was read. A stage may
    write several outputs (`adapter`, `merged`) beside its one lineage, which then counts for each of them.

    Returns:
        Each lineage with its folder as `path`, no folder twice.
    """
    found: dict[str, Ancestor] = {}
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


def lineage_of(folder: str | Path) -> Ancestor | None:
    """The lineage of what a folder holds: its own, or that of the stage whose output it is one of.

    Returns:
        The lineage with `outputs` as they are called in the folder, and as `path` the folder that has it; or None.
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
    """Copy a folder to a new place, as what the same stage made; its checkpoints stay behind.

    Raises:
        UserError: If files named in the lineage are missing or cut.
    """
    source = as_path(source)
    lineage = lineage_of(source)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(CHECKPOINTS, LINEAGE))
    if lineage is not None and lineage["outputs"]:
        record = {key: value for key, value in lineage.items() if key != "path"}
        record["sha256"] = digest(lineage["outputs"])
        (target / LINEAGE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        if not is_whole(target):
            raise UserError(f"{source}: files named in its {LINEAGE} are missing or cut; run its stage again")


def content_digest(folder: str | Path) -> str:
    """The SHA-256 of an output's files as they are now, whatever its lineage says about them."""
    return digest(hash_files(as_path(folder)))


def describe(source: str | Path) -> Input:
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
            if not is_whole(path):
                raise UserError(f"{path}: files named in its {LINEAGE} are missing or cut; run its stage again")
            return {"path": str(source), "sha256": lineage["sha256"], "licenses": lineage["licenses"]}
        return {"path": str(source), "sha256": digest(hash_files(path)), "licenses": _licenses(path)}
    if is_remote(path) or path.is_absolute() or str(source).startswith(".") or str(source).count("/") > 1:
        raise UserError(f"{source}: no such file or folder")
    return {"path": str(source), "sha256": f"hub:{source}", "licenses": ["see the Hub"]}


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of hfchat and of those of the packages that are installed."""
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


def hash_files(folder: Path) -> dict[str, OutputFile]:
    """The files of an output by their names, without checkpoints, the lineage itself and the certificate."""
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


def share(folder: Path, mode: int) -> None:
    """Give all files the permissions of an ordinary new one: safetensors 0.8 writes weights for their owner alone."""
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink():
            file.chmod(file.stat().st_mode | stat.S_IMODE(mode))


def make_private(folder: str | Path) -> None:
    """Let nobody but its owner read a folder and what is in it. Remote storages manage their own permissions."""
    path = as_path(folder)
    if is_remote(path):
        return
    path.chmod(0o700)  # first, so that nobody opens a file in the meantime
    for inside in path.rglob("*"):
        if not inside.is_symlink():
            inside.chmod(0o700 if inside.is_dir() else 0o600)


def digest(outputs: Mapping[str, OutputFile]) -> str:
    """One SHA-256 for all files of an output."""
    return hashlib.sha256(json.dumps(outputs, sort_keys=True).encode()).hexdigest()


def is_whole(folder: Path) -> bool:
    """Whether every file named in the lineage has its recorded size; the content is not read again."""
    lineage = read_lineage(folder)
    outputs = lineage["outputs"].items() if lineage else ()
    return all((folder / name).is_file() and (folder / name).stat().st_size == file["size"] for name, file in outputs)


def _licenses(folder: Path) -> list[str]:
    """Licences of a folder that no stage made: those in the lineage one level up, or in its Hub card."""
    lineage = read_lineage(folder.parent)
    if lineage is not None:
        return lineage["licenses"]
    try:
        _, header, _ = (folder / "README.md").read_text(encoding="utf-8").split("---", 2)
        license = yaml.safe_load(header)["license"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return ["unknown"]
    return license if isinstance(license, list) else [license]
