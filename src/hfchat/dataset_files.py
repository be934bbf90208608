"""Local files of rows as `datasets` reads them rightly: in UTF-8 without a byte order mark, CSV with commas.

`datasets` takes a byte order mark for text, and a file in UTF-16 or a CSV with semicolons for rubbish or an error.
"""

import csv
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import IO

import fsspec

from hfchat.character_encodings import as_utf8, detect

# Builder of `datasets` for each kind of file, which may be compressed.
BUILDERS = {
    ".jsonl": "json", ".ndjson": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".tsv": "csv",
    ".txt": "json",
}  # fmt: skip
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
_TEXTS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt")
_DELIMITERS = (",", ";", "\t", "|")


def suffix_of(path: Path) -> str:
    """The suffix that says what is in a file, also in a compressed one."""
    return (path.with_suffix("") if path.suffix in _COMPRESSED else path).suffix


def find_delimiter(header: str) -> str:
    """What separates the columns of a CSV: of the signs that may, the one that gives the most columns."""
    return max(_DELIMITERS, key=lambda sign: len(next(csv.reader([header], delimiter=sign), [])))


def readable(path: Path) -> Path:
    """The path of a file or folder, or that of a copy in the cache that `datasets` can read.

    A `.txt` file becomes JSON lines, see `texts`.
    """
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.is_file()]
        changes = {file: change for file in files if (change := _change_of(file))}
        return _cached(path, files, lambda copy: _copy_folder(path, copy, changes)) if changes else path
    if suffix_of(path) == ".txt":
        return _cached(path, [path], lambda copy: _as_json_lines(path, copy), ".jsonl")
    change = _change_of(path)
    return path if change is None else _cached(path, [path], lambda copy: change(path, copy))


def texts(lines: Iterator[str], *, by_line: bool) -> Iterator[str]:
    """The documents of a `.txt` file: what stands between empty lines, or each line."""
    document: list[str] = []
    for line in lines:
        line = line.rstrip("\r\n")
        if line.strip():
            document.append(line)
        if document and (by_line or not line.strip()):
            yield "\n".join(document)
            document = []
    if document:
        yield "\n".join(document)


def _open(path: Path, mode: str = "rb") -> IO[bytes]:
    return fsspec.open(str(path), mode, compression="infer").open()


def _lines(path: Path) -> Iterator[str]:
    with _open(path) as stream, TextIOWrapper(as_utf8(stream), "utf-8", "surrogateescape", newline="") as text:
        yield from text


def _change_of(file: Path) -> Callable[[Path, Path], None] | None:
    """What must be done to a file so that `datasets` can read it; None for nothing."""
    suffix = suffix_of(file)
    if suffix not in _TEXTS:
        return None
    try:
        with _open(file) as stream:
            beginning = stream.read(4)
        if suffix in (".csv", ".tsv") and find_delimiter(next(_lines(file), "")) != (
            "\t" if suffix == ".tsv" else ","
        ):
            return _as_csv
    except (OSError, EOFError, ValueError):  # of a damaged file; `datasets` says so
        return None
    return _as_text if detect(beginning) != ("utf-8", 0) else None


def _as_text(file: Path, copy: Path) -> None:
    with _open(copy, "wb") as written:
        for line in _lines(file):
            written.write(line.encode("utf-8", "surrogateescape"))


def _as_csv(file: Path, copy: Path) -> None:
    lines = _lines(file)
    header = next(lines)
    with _open(copy, "wb") as stream, TextIOWrapper(stream, "utf-8", "surrogateescape", newline="") as written:
        writer = csv.writer(written, delimiter="\t" if suffix_of(file) == ".tsv" else ",")
        csv.field_size_limit(2**31 - 1)
        delimiter = find_delimiter(header)
        writer.writerows(csv.reader([header], delimiter=delimiter))
        writer.writerows(csv.reader(lines, delimiter=delimiter))


def _as_json_lines(file: Path, copy: Path) -> None:
    has_empty_lines = any(not line.strip() for line in _lines(file))
    with copy.open("w", encoding="utf-8", errors="surrogateescape") as written:
        for text in texts(_lines(file), by_line=not has_empty_lines):
            written.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")


def _copy_folder(folder: Path, copy: Path, changes: dict[Path, Callable[[Path, Path], None]]) -> None:
    for file in folder.rglob("*"):
        target = copy / file.relative_to(folder)
        if file.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            if file in changes:
                changes[file](file, target)
            else:
                target.symlink_to(file.resolve())


def _cached(path: Path, files: Sequence[Path], write: Callable[[Path], None], suffix: str | None = None) -> Path:
    """What `write` makes of the files, whole or not there, also where several processes want it.

    A file that was changed since is known by its size and time.
    """
    from datasets import config

    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    key = hashlib.sha256(repr((str(path.resolve()), stats)).encode()).hexdigest()[:16]
    target = Path(config.HF_DATASETS_CACHE) / "hfchat" / f"readable-{key}" / (path.name if suffix is None else key)
    target = target if suffix is None else target.with_suffix(suffix)
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            made = Path(scratch) / target.name
            write(made)
            with suppress(OSError):  # another process was faster
                made.rename(target)
    return target
