"""Codings of HTTP: every spelling is undone, and what cannot be is told by its name."""

import gzip
import zlib

import pyarrow as pa
import pytest

from hfchat.data.codings import CodingError, undo_codings

TEXT = "The ferry leaves at nine, and the café on the pier is open.\n".encode() * 40


def raw_deflate(content: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(content) + packer.flush()


def br(content: bytes) -> bytes:
    return pa.compress(content, "brotli", asbytes=True)


def zstd(content: bytes) -> bytes:
    return pa.compress(content, "zstd", asbytes=True)


def chunked(content: bytes, size: int = 100, extension: bytes = b"", end: bytes = b"0\r\n\r\n") -> bytes:
    parts = [content[i : i + size] for i in range(0, len(content), size)]
    return b"".join(b"%x%s\r\n%s\r\n" % (len(part), extension, part) for part in parts) + end


@pytest.mark.parametrize(
    ("content", "transfer", "encoding"),
    [
        (TEXT, [], []),
        (gzip.compress(TEXT), [], ["gzip"]),
        (gzip.compress(TEXT), [], [" X-GZip "]),
        (gzip.compress(TEXT[:99]) + gzip.compress(TEXT[99:]), [], ["gzip"]),
        (gzip.compress(TEXT) + b"what follows", [], ["gzip"]),
        (zlib.compress(TEXT), [], ["Deflate"]),
        (raw_deflate(TEXT), [], ["deflate"]),
        (br(TEXT), [], ["br"]),
        (br(TEXT), [], ["BR"]),
        (zstd(TEXT), [], ["zstd"]),
        (zstd(TEXT[:99]) + zstd(TEXT[99:]), [], ["zstd"]),
        (TEXT, [], ["identity"]),
        (TEXT, [], ["none", ""]),
        (br(gzip.compress(TEXT)), [], ["gzip, br"]),
        (br(gzip.compress(TEXT)), [], ["gzip", "BR"]),
        (gzip.compress(gzip.compress(TEXT)), [], ["gzip, gzip"]),
        (chunked(TEXT), ["chunked"], []),
        (chunked(TEXT), ["Chunked"], []),
        (chunked(TEXT), ['"chunked"'], []),
        (chunked(gzip.compress(TEXT)), ["gzip, chunked"], []),
        (chunked(gzip.compress(TEXT)), ["gzip", "chunked"], []),
        (chunked(zstd(TEXT)), ["CHUNKED"], ["zstd"]),
        (chunked(TEXT, extension=b' ;name="value"; other'), ["chunked"], []),
        (chunked(TEXT, end=b"0\r\nExpires: never\r\nX: y\r\n\r\n"), ["chunked"], []),
        (chunked(TEXT, end=b"0000;last\r\n\r\n"), ["chunked"], []),
        (chunked(TEXT, end=b"0"), ["chunked"], []),
        (chunked(TEXT, end=b""), ["chunked"], []),
        (chunked(TEXT).replace(b"\r\n", b"\n"), ["chunked"], []),
        (chunked(TEXT), [], []),  # the header was lost
        (TEXT, ["chunked"], []),  # the chunks were joined
        (TEXT, ["gzip, chunked"], ["br"]),  # all was undone by the crawler
        (TEXT, [], ["utf-8"]),  # of a server that means something else
        (b"So it is plain text.", [], ["deflate"]),
        (b"", ["chunked"], ["gzip"]),
    ],
)
def test_every_spelling_of_a_coding_is_undone(content, transfer, encoding):
    expected = content if not content or content.startswith(b"So") else TEXT
    assert undo_codings(content, transfer, encoding, 10**6) == expected


@pytest.mark.parametrize(
    ("content", "transfer", "encoding", "name"),
    [
        (gzip.compress(TEXT)[:60], [], ["gzip"], "gzip"),
        (b"\x1f\x8b\x08broken\x00\x01\x02", [], ["x-gzip"], "gzip"),
        (br(TEXT)[:40], [], ["br"], "br"),
        (zstd(TEXT)[:40], [], ["gzip, zstd"], "zstd"),
        (zlib.compress(TEXT)[:40], [], ["deflate"], "deflate"),
        (b"\x1f\x9d\x90\x00\x01\x02", [], ["compress"], "compress"),
        (b"\x00\x01\x02", [], ["aes128gcm"], "aes128gcm"),
        (chunked(TEXT)[:150], ["chunked"], [], "chunked"),
        (chunked(TEXT, end=b"zzz and more"), ["chunked"], [], "chunked"),
    ],
)
def test_what_cannot_be_undone_is_told_by_name(content, transfer, encoding, name):
    with pytest.raises(CodingError, match=f"coding '{name}'"):
        undo_codings(content, transfer, encoding, 10**6)


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress, raw_deflate, br, zstd])
def test_no_more_is_unpacked_than_a_page_may_have(pack):
    name = {gzip.compress: "gzip", br: "br", zstd: "zstd"}.get(pack, "deflate")
    packed = pack(bytes(20_000_000))
    before = pa.total_allocated_bytes()
    assert undo_codings(packed, [], [name], 1000) == bytes(1001)
    assert pa.total_allocated_bytes() - before < 1_000_000


def test_a_page_that_a_crawler_cut_off_is_what_there_is_of_it():
    for content, transfer, encoding in (
        (gzip.compress(TEXT * 50)[:-20], [], ["gzip"]),
        (chunked(TEXT)[:-40], ["chunked"], []),
    ):
        assert TEXT.startswith(undo_codings(content, transfer, encoding, 10**6, truncated=True)[:1000])


def test_text_that_begins_like_a_chunk_is_text():
    text = b"2024\r\nThe year began with rain.\r\n0\r\n"
    assert undo_codings(text, [], [], 10**6) == text
