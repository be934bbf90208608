"""What HTTP packs a page in: the codings of `Transfer-Encoding` and `Content-Encoding`, undone in bounded memory."""

import contextlib
import io
import re
import zlib
from collections.abc import Iterator, Sequence

import pyarrow as pa

from hfchat.character_encodings import detect

_NAMES = {
    "x-gzip": "gzip",
    "x-deflate": "deflate",
    "brotli": "br",
    "x-br": "br",
    "x-zstd": "zstd",
    "zstandard": "zstd",
}
_IS_NO_CODING = {"", "identity", "none"}
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\n]{0,4096})?\r?\n")  # RFC 9112, section 7.1
_NOT_IN_TEXT = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_PIECE = 1 << 16


class CodingError(ValueError):
    """Content that is not in the coding that its headers name, that ends within it, or whose coding is not known."""


def undo_codings(
    content: bytes, transfer: Sequence[str], content_encoding: Sequence[str], max_bytes: int, truncated: bool = False
) -> bytes:
    """What a page's bytes are without the codings that its headers name, at most `max_bytes + 1` of them.

    Crawlers often undo a coding and leave its header. So content that is plain text stays as it is where it cannot be
    what the header says, and chunks without a header are joined where they are so to the last byte.

    Args:
        content: As it was sent.
        transfer: Values of the `Transfer-Encoding` headers, `content_encoding` of the `Content-Encoding` ones.
        max_bytes: Largest size of what comes out.
        truncated: Whether the crawler cut the page off, so that it may end within a coding.

    Raises:
        CodingError: With the name of the coding.
    """
    codings = [*_listed(content_encoding), *_listed(transfer)]  # in the order in which they were applied
    if "chunked" not in codings:
        with contextlib.suppress(CodingError):  # most content is no chunks
            content = _joined_chunks(content, truncated=False, to_the_last_byte=True)
    for coding in reversed(codings):
        try:
            if coding == "chunked":
                content = _joined_chunks(content, truncated)
            elif content:
                content = _unpacked(content, coding, max_bytes, truncated)
        except (CodingError, zlib.error, OSError) as error:
            raise CodingError(f"coding '{coding}': {error}") from error
    return content[: max_bytes + 1]


def _listed(values: Sequence[str]) -> list[str]:
    names = [name.split(";")[0].strip(" \t\"'").lower() for name in ",".join(values).split(",")]
    return [_NAMES.get(name, name) for name in names if name not in _IS_NO_CODING]


def _joined_chunks(content: bytes, truncated: bool, to_the_last_byte: bool = False) -> bytes:
    """The chunks one after the other; without their extensions, and the headers that may follow them.

    Args:
        content: Content that does not begin with a chunk is returned as it is.
        truncated: Take what there is of a last chunk that is not whole.
        to_the_last_byte: There must be an empty chunk at the end, and nothing behind it.
    """
    chunks: list[bytes] = []
    position = 0
    while head := _CHUNK.match(content, position):
        size = int(head[1], 16)
        if not size:
            if to_the_last_byte and content[head.end() :].strip():
                raise CodingError("bytes follow the last chunk")
            return b"".join(chunks)
        chunks.append(content[head.end() : head.end() + size])
        position = head.end() + size
        if position > len(content) and truncated:
            return b"".join(chunks)
        if position > len(content):
            raise CodingError("it ends within a chunk")
        position += 2 if content.startswith(b"\r\n", position) else content.startswith(b"\n", position)
    if not position and not to_the_last_byte:
        return content
    if to_the_last_byte or content[position : position + 2].strip() not in (b"", b"0"):
        raise CodingError("no chunk follows the last one")
    return b"".join(chunks)


def _unpacked(content: bytes, coding: str, max_bytes: int, truncated: bool) -> bytes:
    unpacked = bytearray()
    try:
        for piece in _pieces(content, coding):
            unpacked += piece
            if len(unpacked) > max_bytes:
                break
    except (CodingError, zlib.error, OSError):
        if unpacked and truncated:
            return bytes(unpacked)
        if _is_text(content):
            return content
        raise
    return bytes(unpacked)


def _is_text(content: bytes) -> bool:
    return bool(detect(content)[1]) or not _NOT_IN_TEXT.search(content[:1024])


def _pieces(content: bytes, coding: str) -> Iterator[bytes]:
    if coding == "gzip":
        yield from _inflated(content, 16 + zlib.MAX_WBITS)
    elif coding == "deflate":  # by the standard with zlib's header, which some servers leave out
        has_header = content[0] & 15 == 8 and int.from_bytes(content[:2], "big") % 31 == 0
        yield from _inflated(content, zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS)
    elif coding in ("br", "zstd"):
        name = {"br": "brotli"}.get(coding, coding)
        if not pa.Codec.is_available(name):
            raise CodingError(f"pyarrow is without {name} here")
        with pa.CompressedInputStream(io.BytesIO(content), name) as stream:
            while piece := stream.read(_PIECE):
                yield piece
    else:
        raise CodingError("it is not known")


def _inflated(content: bytes, bits: int) -> Iterator[bytes]:
    """What zlib makes of one member, or of several of gzip. What follows them is ignored, as browsers do.

    Args:
        content: The packed bytes.
        bits: As for `zlib.decompressobj`.
    """
    position, packed, member = 0, b"", zlib.decompressobj(bits)
    while True:
        if not packed:
            packed = content[position : position + _PIECE]
            position += len(packed)
        piece = member.decompress(packed, _PIECE)
        if not (piece or packed or member.eof):
            raise CodingError("it ends too early")
        yield piece
        packed = member.unconsumed_tail
        if member.eof:
            position, packed = position - len(member.unused_data), b""
            if bits < 0 and content[position:].strip():
                raise CodingError("bytes follow its end")  # plain text may look like a short one
            if bits < 16 or not content.startswith(b"\x1f\x8b", position):
                return
            member = zlib.decompressobj(bits)
