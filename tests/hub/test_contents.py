"""What is in files of all kinds, seen by what `find_leaks` finds in them."""

import bz2
import gzip
import hashlib
import io
import json
import lzma
import sqlite3
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hfchat.hub.contents import UnreadableError, pieces
from hfchat.hub.leaks import find_leaks

SECRET = "hf_" + "s3cReT" * 6
LINES = f'{{"text": "nothing é"}}\n{{"text": "a line\\n{SECRET}"}}\n'
WHAT = "a token of the Hugging Face Hub"


def found(name, content, paths=True):
    """Place and kind of each leak, in a file or in bytes that a file has."""
    if isinstance(content, bytes):
        with tempfile.NamedTemporaryFile() as file:
            file.write(content)
            file.flush()
            return found(name, Path(file.name), paths)
    leaks = set()
    for piece in pieces(name, content):
        leaks |= {
            (piece.inside, piece.line + leak.line - 1, leak.what) for leak in find_leaks(piece.text, paths=paths)
        }
    return leaks


def zipped(name, content, **options):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, **options) as archive:
        archive.writestr(name, content)
    return file.getvalue()


def tarred(name, content):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def parquet(table, **options):
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    return file.getvalue()


def arrow(table, new):
    file = io.BytesIO()
    with new(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=1)
    return file.getvalue()


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "latin-1", "cp1252", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"]
)
def test_a_text_in_any_encoding(encoding):
    assert found("x.jsonl", LINES.encode(encoding)) == {("", 2, WHAT)}


def test_a_text_to_which_something_was_added_in_another_encoding():
    content = b"caf\xe9\n" * 20_000 + SECRET.encode("utf-16-le")
    assert {what for _, _, what in found("x.txt", content)} == {WHAT}


@pytest.mark.parametrize("before", ["\n", "\t", "\r", "é", "\x1b[31m", "\\", "/", '"', "日", "\u200b", "_"])
@pytest.mark.parametrize("again", [0, 1, 2])
def test_what_stands_before_it_in_json_hides_nothing(before, again):
    text = f"token is{before}{SECRET}"
    for _ in range(again + 1):
        text = json.dumps({"a": text})
    assert found("x.json", text.encode()) == {("", 1, WHAT)}


@pytest.mark.parametrize(
    "text",
    [
        f'a: "x\\n{SECRET}"',  # YAML
        f'a: "x\\e[1m{SECRET}\\e[0m"',
        f'1,"{{""text"": ""x\\n{SECRET}""}}"',  # JSON in CSV
        '{"cells": [{"source": ["print()\\n", "x = 1\\r\\n' + SECRET + '\\n"]}]}',  # a notebook
        f"token {SECRET.replace('_', chr(92) + '_')}",  # Markdown
        f"b'\\xe9\\x00{SECRET}'",  # Python
        '{"a": "\\u0068\\u0066' + SECRET[2:] + '"}',
        f"**{SECRET}** and `{SECRET}` and _{SECRET}_",
        f"caché{SECRET}",
    ],
)
def test_no_format_hides_it(text):
    assert found("x", f"first\n{text}\nlast\n".encode()) == {("", 2, WHAT)}


def test_one_in_a_long_text_is_found_wherever_it_lies():
    line = "x" * 99 + "\n"
    for where in (0, (1 << 20) - 20, 1 << 20):
        content = (line * 12_000)[:where] + "\n" + SECRET + "\n" + line * 9_000
        assert found("x.txt", content.encode(), paths=False) == {("", where // 100 + 2, WHAT)}
    in_one_line = "x " * 520_000 + SECRET + " x" * 9_000
    assert found("x.txt", in_one_line.encode(), paths=False) == {("", 1, WHAT)}


@pytest.mark.parametrize(
    ("name", "content", "inside"),
    [
        ("x.jsonl.gz", gzip.compress(b"a first member\n") + gzip.compress(SECRET.encode()), ""),
        ("x.jsonl.bz2", bz2.compress(f"\n{SECRET}".encode()), ""),
        ("x.txt.xz", lzma.compress(f"\n{SECRET}".encode()), ""),
        ("x.zip", zipped("data/x.csv", f"a\n{SECRET}".encode("utf-16")), "data/x.csv"),
        ("x.whl", zipped("inner.zip", zipped("y.txt", f"\n{SECRET}")), "inner.zip!y.txt"),
        ("x.tar", tarred("x.json", LINES.encode()), "x.json"),
        ("x.tar.gz", gzip.compress(tarred("x.jsonl.gz", gzip.compress(LINES.encode()))), "x.jsonl.gz"),
        ("no_suffix", gzip.compress(LINES.encode()), ""),
    ],
)
def test_what_is_packed_is_unpacked(name, content, inside):
    assert found(name, content) == {(inside, 2, WHAT)}


@pytest.mark.parametrize(("codec", "name"), [("zstd", "x.jsonl.zst"), ("lz4", "x.lz4"), ("brotli", "x.jsonl.br")])
def test_what_arrow_unpacks(codec, name, tmp_path):
    with pa.output_stream(tmp_path / name, compression=codec) as stream:
        stream.write(LINES.encode())
    assert found(name, tmp_path / name) == {("", 2, WHAT)}


ROWS = [[], [{"role": "user", "content": f"hello\n{SECRET}"}]]
TABLES = {
    "strings": pa.table({"n": [1, 2], "text": ["", f"a\n{SECRET}"]}),
    "large strings": pa.table({"text": pa.array(["", SECRET], pa.large_string())}),
    "bytes": pa.table({"b": pa.array([b"", b"\xff\xfe" + SECRET.encode()])}),
    "conversations": pa.table({"messages": ROWS}),
    "maps": pa.table({"m": pa.array([[], [("k", SECRET)]], pa.map_(pa.string(), pa.string()))}),
    "dictionary": pa.table({"d": pa.array(["", SECRET]).dictionary_encode()}),
    "a name": pa.table({"settings": [{"password": "x"}, {"password": SECRET}]}),
}


@pytest.mark.parametrize("kind", TABLES)
def test_the_texts_of_a_table_are_found_with_their_rows(kind):
    table = TABLES[kind]
    for name, content in {
        "x.parquet": parquet(table, row_group_size=1),
        "x.arrow": arrow(table, pa.ipc.new_stream),
        "y.arrow": arrow(table, pa.ipc.new_file),
        "x.parquet.gz": gzip.compress(parquet(table)),
    }.items():
        assert ("", 2, WHAT) in found(name, content), name


def test_the_metadata_of_a_table_and_of_weights_are_found():
    table = pa.table({"n": [1]}).replace_schema_metadata({"made by": SECRET})
    assert found("x.parquet", parquet(table)) == {("", 1, WHAT)}
    header = json.dumps({"__metadata__": {"source": "/home/jane/x"}}).encode()
    weights = len(header).to_bytes(8, "little") + header + b"\xff" * 100
    assert {what for _, _, what in found("model.safetensors", weights)} == {"a path of this machine"}


def test_a_vocabulary_is_not_looked_at():
    vocabulary = {
        "model": {"vocab": {"/home/jane": 7}, "merges": [["password", "=a1b2c3d4"]]},
        "added_tokens": [],
    }
    assert not found("tokenizer.json", json.dumps(vocabulary).encode())
    assert found("tokenizer.json", json.dumps(vocabulary | {"added_tokens": [SECRET]}).encode())


def test_the_words_in_a_picture_are_found():
    picture = b"\x89PNG\r\n\x1a\n\0\0\0\rtEXt\0\1\2" + SECRET.encode()
    assert {what for _, _, what in found("x.png", picture)} == {WHAT}


def database(folder):
    with sqlite3.connect(folder / "x.db") as connection:
        connection.execute("CREATE TABLE t (c)")
    return (folder / "x.db").read_bytes()


def test_what_nobody_can_look_at_is_refused(tmp_path):
    noise = b"".join(hashlib.sha256(bytes([number])).digest() for number in range(100))
    encrypted = bytearray(zipped("x.txt", "a"))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the flag of an encrypted file
        encrypted[encrypted.index(signature) + offset] |= 1
    for name, content in {
        "cut.gz": gzip.compress(noise)[:-50],
        "cut.parquet": parquet(TABLES["strings"])[:-20],
        "cut.arrow": arrow(TABLES["strings"], pa.ipc.new_file)[:-20],
        "encrypted.zip": bytes(encrypted),
        "noise.jsonl": noise,
        "x.db": database(tmp_path),
        "x.pdf": b"%PDF-1.7\n",
        "cut.safetensors": b"\xff" * 20,
    }.items():
        with pytest.raises(UnreadableError):
            found(name, content)
    with pytest.raises(UnreadableError):
        found("x", tmp_path / "none")
