"""The files that a source names, here or on any storage that fsspec knows: found, identified and unpacked."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
from datatrove.io import DataFolder
from fsspec.core import has_magic

from hfchat.data.rows import one_line
from hfchat.errors import UserError
from hfchat.lineage import describe
from hfchat.storage import is_remote

# Endings of names, to what unpacks them: all bounded in memory, and none takes a file that is cut off for a whole one.
UNPACK: dict[str, Callable[[Any], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": partial(pa.CompressedInputStream, compression="zstd"),
}


def find_files(path: str, storage_options: Mapping[str, object]) -> tuple[DataFolder, list[str]]:
    """The folder above the first part of a path that has a wildcard, and the files that the path names in it.

    Args:
        path: A file or glob, here or as an fsspec URL.
        storage_options: For fsspec.

    Raises:
        UserError: If there is no such file, or the storage cannot be reached.
    """
    parts = path.split("/")
    fixed = next((i for i, part in enumerate(parts) if has_magic(part)), len(parts) - 1)
    above, pattern = "/".join(parts[:fixed]), "/".join(parts[fixed:])
    if not is_remote(path):
        above = str(Path(above or ("/" if path.startswith("/") else ".")).absolute())
    try:
        folder = DataFolder(above, **storage_options)
        files = folder.list_files(glob_pattern=pattern) if has_magic(pattern) else [pattern]
        found = [file for file in files if folder.isfile(file)]
    except Exception as error:  # a protocol without a driver, no credentials, no network: each driver has its own
        raise UserError(f"sources: {path}: {one_line(error)}") from error
    if not found:
        raise UserError(f"sources: {path}: no such file")
    return folder, found


def digest_of_files(path: str, storage_options: Mapping[str, object]) -> str:
    """What tells the files of a path from others: their content here, elsewhere what the storage says of them.

    A storage says an ETag, or size and time. The arguments and errors are those of `find_files`.
    """
    folder, files = find_files(path, storage_options)
    if is_remote(path):
        return json.dumps(sorted(str(folder.ukey(file)) for file in files))
    return json.dumps(sorted(describe(Path(folder.path) / file)["sha256"] for file in files))


@contextmanager
def open_unpacked(folder: DataFolder, file: str, packed: Collection[str] = UNPACK.keys()) -> Iterator[IO[bytes]]:
    """A file of a folder for reading, unpacked if its name has one of the endings."""
    ending = next((ending for ending in packed if file.lower().endswith(ending)), None)
    with folder.open(file, "rb") as stream:
        yield UNPACK[ending](stream) if ending else stream
