"""Crawled pages: the records of WARC and WET files, and the text of HTML."""

import re
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING

from hfchat.data.readers import EXCERPT_CHARACTERS, Record

if TYPE_CHECKING:
    from warcio.recordloader import ArcWarcRecord

_TEXT_TYPES = ("text/html", "application/xhtml+xml", "text/plain")
_META_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w.:-]{2,40})", re.IGNORECASE)


def parse_warc(stream: IO[bytes], max_bytes: int) -> Iterator[Record | None]:
    """The pages of a WARC file (`response` records, text, status 200) or the texts of a WET file (`conversion`).

    warcio reads the records; datatrove's own reader on top of it needs libmagic, which is no Python package, and ends
    at the first record that is damaged.

    Args:
        stream: Open file; its compression is warcio's matter, as each record is compressed by itself.
        max_bytes: Of a page; no more is unpacked of one that is larger.
    """
    from warcio.archiveiterator import ArchiveIterator

    for record in ArchiveIterator(stream):
        yield _page(record, max_bytes) if _is_page(record) else None


def _is_page(record: "ArcWarcRecord") -> bool:
    if record.rec_type == "conversion":
        return True
    if record.rec_type != "response" or record.http_headers is None:
        return False
    mime = (record.http_headers.get_header("Content-Type") or "").split(";")[0].strip().lower()
    return record.http_headers.get_statuscode() == "200" and mime in _TEXT_TYPES


def _page(record: "ArcWarcRecord", max_bytes: int) -> Record:
    headers = record.rec_headers
    metadata = {
        "id": headers.get_header("WARC-Record-ID"),
        "url": headers.get_header("WARC-Target-URI"),
        "date": headers.get_header("WARC-Date"),
    }
    metadata = {name: value for name, value in metadata.items() if value}
    try:
        content = record.content_stream().read(max_bytes + 1)
    except Exception as error:  # of zlib, brotli, ...: this page's, not the file's
        return Record("", metadata, ("unreadable", f"{type(error).__name__}: {error}"[:300]))
    if len(content) > max_bytes:
        excerpt = content[: 4 * EXCERPT_CHARACTERS].decode("utf-8", errors="replace")
        return Record(excerpt, metadata, ("too_large", f"more than {max_bytes:,} bytes"))
    missing = getattr(record.raw_stream, "limit", 0)
    text = decode(content, _charset(record))
    if missing > 0:
        return Record(text, metadata, ("unreadable", f"the record is cut off, {missing:,} bytes before its end"))
    return Record(text, metadata)


def _charset(record: "ArcWarcRecord") -> str | None:
    if record.rec_type == "conversion":
        return "utf-8"
    found = re.search(r"charset=[\"']?([\w.:-]+)", record.http_headers.get_header("Content-Type") or "")
    return found[1] if found else None


def decode(content: bytes, charset: str | None = None) -> str:
    """The text of a page, by the first of these that fits: its HTTP header, its `<meta>`, UTF-8, a guess.

    Args:
        content: Bytes of the page.
        charset: What its HTTP header says.
    """
    declared = _META_CHARSET.search(content[:4096])
    for name in (charset, declared and declared[1].decode("ascii", errors="replace"), "utf-8"):
        try:
            return content.decode(name) if name else content.decode("utf-8")
        except (UnicodeDecodeError, LookupError):
            continue
    import cchardet

    guess = cchardet.detect(content)["encoding"] or "utf-8"
    try:
        return content.decode(guess, errors="replace")
    except LookupError:
        return content.decode("utf-8", errors="replace")


def html_to_text(html: str) -> str | None:
    """The main text of a page, by Trafilatura with FineWeb's options (arXiv:2406.17557); None if there is none."""
    from trafilatura import extract
    from trafilatura.deduplication import LRUCache

    # Its own memory of repeated segments spans pages: what is kept of a page would depend on those before it.
    return extract(html, favor_precision=True, include_comments=False, deduplicate=LRUCache()) if html else None
