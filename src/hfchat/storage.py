"""Paths on any storage that fsspec knows: a local path, or a URL such as `s3://bucket/corpus` or `hf://datasets/...`."""

import shutil
import warnings
from pathlib import Path

import fsspec
from upath import UPath

from hfchat.errors import UserError


def as_path(path: str | Path) -> Path:
    """A `pathlib.Path`, or for a URL a `upath.UPath`, which has the same methods."""
    if isinstance(path, UPath) or "://" not in str(path):
        return path if isinstance(path, UPath) else Path(path)
    file_system, _ = fsspec.url_to_fs(str(path))
    with warnings.catch_warnings():  # UPath has no class for WebHDFS, and its general one is good enough
        warnings.filterwarnings("ignore", message="UPath .* not explicitly implemented")
        return UPath(path, **file_system.storage_options)


def is_remote(path: str | Path) -> bool:
    return isinstance(path, UPath) or "://" in str(path)


def write_whole(file: Path, text: str) -> None:
    """Write a local file whole, or leave what was there: a kill or a full disk never leaves half of it."""
    scratch = file.with_name(f".{file.name}.tmp")
    try:
        scratch.write_text(text, encoding="utf-8")
        scratch.replace(file)
    finally:
        scratch.unlink(missing_ok=True)


def belongs_to(folder: Path, path: Path) -> bool:
    """Whether a path in a local folder leads to a regular file or folder inside that folder.

    A link in a folder that somebody else made may lead to any file of this machine, and reading a pipe never ends. The
    snapshots of the Hub's cache are links to the blobs beside them, so these blobs count as inside.
    """
    target, roots = path.resolve(), [folder.resolve()]
    if roots[0].parent.name == "snapshots":
        roots.append(roots[0].parents[1] / "blobs")
    inside = any(target.is_relative_to(root) for root in roots)
    return inside and (target.is_file() or target.is_dir())


def check_own_files(folder: Path) -> None:
    """Refuse a local folder in which a path leads out of it, see `belongs_to`.

    Raises:
        UserError: If there is such a path; the message names it.
    """
    for path in folder.rglob("*"):
        if not belongs_to(folder, path):
            raise UserError(f"{path}: leads to no file of {folder}; put a copy of the file in its place, or delete it")


def remove_tree(folder: Path) -> None:
    """Delete a folder and what is in it, if it is there."""
    if isinstance(folder, UPath):
        folder.fs.invalidate_cache()
        if folder.exists():
            folder.fs.rm(folder.path, recursive=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)


def move_folder(source: Path, target: Path) -> None:
    """Rename a folder; `target` must not exist.

    One step on a local disk and on HDFS. Object stores have no folders: there, every object is copied and deleted.
    """
    if isinstance(source, UPath):
        file_system = source.fs
        file_system.invalidate_cache()
        if type(file_system).mv is not fsspec.AbstractFileSystem.mv:
            file_system.mv(source.path, target.path)
        else:  # the general one stops at what looks like a folder
            files = file_system.find(source.path)
            file_system.copy(files, [target.path + file.removeprefix(source.path) for file in files])
            file_system.rm(source.path, recursive=True)
        file_system.invalidate_cache()
    else:
        source.rename(target)
