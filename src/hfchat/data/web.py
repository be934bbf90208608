"""Crawled pages: the records of WARC and WET files, and the text of HTML."""

import re
import zlib
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING

from hfchat.data.readers import EXCERPT_CHARACTERS, Record, one_line

if TYPE_CHECKING:
    from warcio.recordloader import ArcWarcRecord

_TEXT_TYPES = ("text/html", "application/xhtml+xml", "text/plain")
# Names under which pages come in a superset: https://encoding.spec.whatwg.org/#names-and-labels
_SUPERSETS = {
    **dict.fromkeys(("ascii", "us-ascii", "latin1", "latin-1", "iso-8859-1", "iso8859-1"), "cp1252"),
    **dict.fromkeys(("gb2312", "gbk"), "gb18030"),
    **dict.fromkeys(("shift_jis", "shift-jis", "sjis"), "cp932"),
    "iso-8859-9": "cp1254",
    "euc-kr": "cp949",
}
# Codecs of Python that are no encodings of pages, and decode most of what they are given to something else.
_NOT_OF_PAGES = re.compile(r"(raw.)?unicode.escape|utf.?7|idna|punycode", re.IGNORECASE)
# HTML's own, obsolete tag for what is no HTML up to its end (https://html.spec.whatwg.org/#parsing-main-inbody).
_PLAIN = "<plaintext>"
_META_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w.:-]{2,40})", re.IGNORECASE)


def parse_warc(stream: IO[bytes], max_bytes: int) -> Iterator[Record | None]:
    """The pages of a WARC file (`response` records, text, status 200) or the texts of a WET file (`conversion`).

    warcio reads the records. datatrove's own reader on top of it needs libmagic, which is no Python package, and ends
    at the first record that is damaged; here reading goes on at the next one whose beginning can be found.

    Args:
        stream: Open file that can be sought in; its compression by records is warcio's matter.
        max_bytes: Of a page; no more is unpacked of one that is larger.
    """
    from warcio.archiveiterator import ArchiveIterator

    start: int | None = 0
    while start is not None:
        stream.seek(start)
        archive = ArchiveIterator(stream)
        begun = start
        try:
            for record in archive:
                if archive.err_count:  # it was not found where the one before it ends
                    yield Record("", fault=("unreadable", "a record is longer than its Content-Length"))
                    break
                begun = archive.offset
                page = _page(record, max_bytes) if _is_page(record) else None
                damage = _damage(record)
                if damage:
                    page = page or Record("")
                    page.fault = page.fault or ("unreadable", damage)
                yield page
                if damage:
                    break
            else:
                if not archive.err_count and stream.tell() == archive.offset:
                    return
                yield Record("", fault=("unreadable", "what follows the last record is no record"))
        except Exception as error:
            yield Record("", fault=("unreadable", one_line(error)))
        start = _next_record(stream, (begun if archive.err_count else archive.offset) + 1)


def _damage(record: "ArcWarcRecord") -> str | None:
    """Reads to the end of the record. Says what is wrong with its length."""
    headers = record.rec_headers
    length = headers.get_header("Content-Length") or headers.get_header("length") or ""  # the latter in ARC files
    if not length.strip().isdecimal():
        return "the record has no Content-Length"
    while record.raw_stream.read(1 << 16):
        pass
    missing = record.raw_stream.limit
    return f"the record is cut off, {missing:,} bytes before its end" if missing > 0 else None


def _next_record(stream: IO[bytes], position: int) -> int | None:
    """Where the first record that begins at `position` or after it does."""
    stream.seek(0)
    packed = stream.read(2) == b"\x1f\x8b"
    mark, ahead = (b"\x1f\x8b\x08", 0) if packed else (b"\nWARC/", 1)
    while True:
        stream.seek(position)
        window = stream.read(1 << 20)
        found = window.find(mark)
        if found >= 0:
            position += found + ahead
            stream.seek(position)
            if not packed or _begins_record(stream.read(1 << 12)):
                return position
            position += 1
        elif len(window) < len(mark):
            return None
        else:
            position += len(window) - len(mark) + 1


def _begins_record(packed: bytes) -> bool:
    try:
        return zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(packed, 5) == b"WARC/"
    except zlib.error:
        return False


def _is_page(record: "ArcWarcRecord") -> bool:
    if record.rec_type == "conversion":
        return True
    if record.rec_type != "response" or record.http_headers is None:
        return False
    return record.http_headers.get_statuscode() == "200" and _mime(record) in _TEXT_TYPES


def _mime(record: "ArcWarcRecord") -> str:
    # What the crawler made of the content, where it says so, is right more often than what the server says.
    identified = record.rec_headers.get_header("WARC-Identified-Payload-Type")
    return identified or (record.http_headers.get_header("Content-Type") or "").split(";")[0].strip().lower()


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
        return Record("", metadata, ("unreadable", one_line(error)))
    if len(content) > max_bytes:
        excerpt = content[: 4 * EXCERPT_CHARACTERS].decode("utf-8", errors="replace")
        return Record(excerpt, metadata, ("too_large", f"more than {max_bytes:,} bytes"))
    text = decode(content, _charset(record))
    if record.rec_type == "response" and text and _mime(record) == "text/plain":
        text = _PLAIN + text
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
        if not name or _NOT_OF_PAGES.fullmatch(name):
            continue
        if name.lower().startswith(("utf-16", "utf-32")) and b"\0" not in content:
            continue  # tags are ASCII: in these encodings every second byte of them would be 0
        try:
            return content.decode(_SUPERSETS.get(name.lower(), name))
        except (UnicodeError, LookupError):
            continue
    import cchardet

    guess = cchardet.detect(content)["encoding"] or "utf-8"
    try:
        return content.decode(guess, errors="replace")
    except LookupError:
        return content.decode("utf-8", errors="replace")


def html_to_text(html: str) -> str | None:
    """The main text of a page, by Trafilatura with FineWeb's options (arXiv:2406.17557); None if there is none.

    What follows the tag `<plaintext>` stays as it is.
    """
    from trafilatura import extract
    from trafilatura.deduplication import LRUCache

    if html.startswith(_PLAIN):
        return html.removeprefix(_PLAIN)
    # Its own memory of repeated segments spans pages: what is kept of a page would depend on those before it.
    return extract(html, favor_precision=True, include_comments=False, deduplicate=LRUCache())
