"""Crawled pages: those of WARC and WET files, their encodings, and the text of HTML."""

import re
from collections.abc import Iterator
from functools import partial
from typing import IO, TYPE_CHECKING

from hfchat.character_encodings import detect
from hfchat.data.codings import CodingError, undo_codings
from hfchat.data.readers import LazyRecord, Record, Skipped
from hfchat.data.rows import EXCERPT_CHARACTERS
from hfchat.data.warc import DamageError, WarcRecord, header_lines, parse_headers, read_records

if TYPE_CHECKING:
    from warcio.statusandheaders import StatusAndHeaders

_MARKUP = {"text/html", "application/xhtml+xml", "application/vnd.wap.xhtml+xml"}
_PLAIN_TEXT = "text/plain"
_TOP_LEVEL_TYPES = {"application", "audio", "font", "image", "message", "model", "multipart", "text", "video"}
_OTHER_RECORDS = {"warcinfo", "request", "metadata", "resource", "revisit", "continuation"}
_UNKNOWN_TYPES = {"", "unknown/unknown", "application/octet-stream", "application/x-unknown-content-type"}
_LOOKS_LIKE_HTML = re.compile(rb"\s*(?:<!--.{0,500}?-->\s*)?<(?:!doctype\s+html|html)[\s>]", re.IGNORECASE | re.DOTALL)
# HTML's own, obsolete tag for what is no HTML up to its end (https://html.spec.whatwg.org/#parsing-main-inbody).
_PLAIN = "<plaintext>"

_META_CHARSET = re.compile(rb"<meta\s[^>]{0,300}?charset\s*=\s*[\"']?\s*([\w.:-]{2,40})", re.IGNORECASE)
_XML_ENCODING = re.compile(rb"\s*<\?xml\s[^>]{0,100}?encoding\s*=\s*[\"']([\w.:-]{2,40})", re.IGNORECASE)
_COMMENT = re.compile(rb"<!--.*?(?:-->|\Z)", re.DOTALL)
_HEADER_CHARSET = re.compile(r"[;\s]charset\s*=\s*[\"']?\s*([\w.:+-]+)", re.IGNORECASE)
_DECLARED_WITHIN = 4096
_NOT_IN_TEXT = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f\ufffd]")
# Labels of https://encoding.spec.whatwg.org/#names-and-labels, of which those of `iso-8859-N` and `windows-N` are left
# to a rule, without their punctuation. Pages that name an encoding of 1990 come in its superset.
_LABELS: dict[str, str] = {}
for _encoding_name, _labels in {
    "utf-8": "utf8 unicode11utf8 unicode20utf8 xunicode20utf8",
    "utf-16-le": "utf16 utf16le ucs2 iso10646ucs2 unicode unicodefeff csunicode",
    "utf-16-be": "utf16be unicodefffe",
    "utf-32-le": "utf32 utf32le",
    "utf-32-be": "utf32be",
    "cp1252": "ascii usascii ansix341968 cp819 ibm819 isoir100 l1 latin1 csisolatin1",
    "iso8859-2": "l2 latin2 csisolatin2 isoir101",
    "iso8859-3": "l3 latin3 csisolatin3 isoir109",
    "iso8859-4": "l4 latin4 csisolatin4 isoir110",
    "iso8859-5": "cyrillic csisolatincyrillic isoir144",
    "iso8859-6": "arabic csisolatinarabic isoir127 asmo708 ecma114",
    "iso8859-7": "greek greek8 suneugreek csisolatingreek isoir126 elot928 ecma118",
    "iso8859-8": "hebrew visual logical csisolatinhebrew csiso88598e csiso88598i isoir138",
    "cp1254": "l5 latin5 csisolatin5 isoir148",
    "iso8859-10": "l6 latin6 csisolatin6 isoir157",
    "iso8859-15": "l9 csisolatin9",
    "cp874": "dos874 tis620 windows874",
    "cp866": "866 cp866 ibm866 csibm866",
    "koi8-r": "koi koi8 koi8r cskoi8r",
    "koi8-u": "koi8u koi8ru",
    "mac-roman": "mac macintosh xmacroman csmacintosh",
    "mac-cyrillic": "xmaccyrillic xmacukrainian",
    "gb18030": "gb18030 gbk xgbk gb2312 gb231280 csgb2312 csiso58gb231280 isoir58 chinese cp936 euccn",
    "big5hkscs": "big5 big5hkscs cnbig5 csbig5 xxbig5",
    "euc-jp": "eucjp xeucjp cseucpkdfmtjapanese",
    "iso2022-jp": "iso2022jp csiso2022jp",
    "cp932": "shiftjis sjis xsjis ms932 mskanji windows31j csshiftjis cp932",
    "cp949": "euckr cseuckr ksc5601 ksc56011987 ksc56011989 csksc56011987 korean isoir149 windows949 cp949",
}.items():
    _LABELS |= dict.fromkeys(_labels.split(), _encoding_name)


def parse_warc(stream: IO[bytes], max_bytes: int) -> Iterator[LazyRecord]:
    """The pages of a WARC file (`response` records, text, status 200) or the texts of a WET file (`conversion`).

    Args:
        stream: Open file; its gzip, of records or as a whole, is unpacked here.
        max_bytes: Largest size of a page. Of a larger one, no more is unpacked or kept; the rest is passed over.
    """
    for found in read_records(stream):
        yield partial(_whole_page, found, max_bytes)


def _whole_page(found: WarcRecord | DamageError, max_bytes: int) -> Record | Skipped:
    if isinstance(found, DamageError):
        return Record("", fault=("unreadable", str(found)))
    page = _page(found, max_bytes)
    if damage := found.damage():
        page = page if isinstance(page, Record) else Record("")
        page.fault = page.fault or ("unreadable", damage)
    return page


def _page(record: WarcRecord, max_bytes: int) -> Record | Skipped:
    headers = record.headers
    metadata = {
        "id": headers.get_header("WARC-Record-ID"),
        "url": (headers.get_header("WARC-Target-URI") or "").strip("<> ").replace(" ", "%20"),
        "date": headers.get_header("WARC-Date"),
    }
    metadata = {name: value for name, value in metadata.items() if value}
    try:
        return _text_of(record, metadata, max_bytes)
    except (CodingError, DamageError) as error:
        return Record("", metadata, ("unreadable", str(error)))


def _text_of(record: WarcRecord, metadata: dict[str, str], max_bytes: int) -> Record | Skipped:
    charset: str | None = "utf-8"
    if record.kind == "conversion":
        kind = _media_type(record.headers) or _PLAIN_TEXT
        if kind != _PLAIN_TEXT:
            return _skipped_type(kind)
        content = record.read(max_bytes + 1)
    elif record.kind == "response":
        begin = record.readline(1 << 12)
        if not begin.upper().startswith(b"HTTP/"):
            return Skipped("response without HTTP")
        http = parse_headers(begin + header_lines(record.readline))
        if (status := http.get_statuscode()) != "200":
            return Skipped(f"status {status}" if re.fullmatch("[1-5][0-9]{2}", status) else "no status")
        # What the crawler made of the content, where it says so, is right more often than what the server says.
        kind = _media_type(record.headers, "WARC-Identified-Payload-Type") or _media_type(http)
        if kind not in _MARKUP and kind != _PLAIN_TEXT and kind not in _UNKNOWN_TYPES:
            return _skipped_type(kind)
        if record.headers.get_header("WARC-Segment-Number"):
            return Record("", metadata, ("unreadable", "it is one of several records of the same page"))
        content = _content(record, http, max_bytes)
        if kind in _UNKNOWN_TYPES:
            if not _LOOKS_LIKE_HTML.match(content[:2048]):
                return _skipped_type(kind)
            kind = "text/html"
        charset = next(filter(None, map(_charset, _values(http, "Content-Type"))), None)
    else:
        return Skipped(f"{record.kind} record" if record.kind in _OTHER_RECORDS else "record of an unknown type")
    # What is left is text, of a size and in an encoding that have to be found out
    if len(content) > max_bytes:
        excerpt = content[: 4 * EXCERPT_CHARACTERS].decode("utf-8", errors="replace")
        return Record(excerpt, metadata, ("too_large", f"more than {max_bytes:,} bytes"))
    text = decode(content, charset, is_markup=kind != _PLAIN_TEXT)
    if text is None:
        return Record(
            "", metadata, ("unreadable", "its bytes are text in no encoding that is known or could be guessed")
        )
    return Record(_PLAIN + text if kind == _PLAIN_TEXT and text.strip() else text, metadata)


def _skipped_type(kind: str) -> Skipped:
    name = kind.split("/")[0]
    return Skipped(f"{name if name in _TOP_LEVEL_TYPES else 'unknown'} content")


def _values(headers: "StatusAndHeaders", name: str) -> list[str]:
    return [value for header, value in headers.headers if header.strip().lower() == name.lower()]


def _media_type(headers: "StatusAndHeaders", name: str = "Content-Type") -> str:
    found = (re.match(r"[\s\"']*([\w.+-]+/[\w.+-]+)", value) for value in _values(headers, name))
    return next((match[1].lower() for match in found if match), "")


def _charset(content_type: str) -> str | None:
    found = _HEADER_CHARSET.search(content_type)
    return found[1] if found else None


def _content(record: WarcRecord, http: "StatusAndHeaders", max_bytes: int) -> bytes:
    """What is read and unpacked of a page: up to `max_bytes + 1`."""
    most = 2 * max_bytes + (1 << 16)  # lengths stand between the chunks
    content = record.read(most)
    truncated = bool(record.headers.get_header("WARC-Truncated")) or len(content) == most
    transfer, encoding = (_values(http, name) for name in ("Transfer-Encoding", "Content-Encoding"))
    return undo_codings(content, transfer, encoding, max_bytes, truncated)


def decode(content: bytes, charset: str | None = None, is_markup: bool = True) -> str | None:
    """The text of a page by the first that fits: byte order mark, HTTP header, `<meta>` or XML, UTF-8, a guess.

    Args:
        content: Bytes of the page.
        charset: What its HTTP header says.
        is_markup: Whether to look for what the page itself says.

    Returns:
        None for what is no text.
    """
    marked, mark = detect(content)
    candidates = [marked] if mark or marked != "utf-8" else []
    for label in (charset, *(_declared(content[:_DECLARED_WITHIN]) if is_markup else ()), "utf-8"):
        encoding = _encoding(label or "")
        # Tags are ASCII: in these encodings every second byte of them would be 0.
        if encoding and not (encoding.startswith(("utf-16", "utf-32")) and b"\0" not in content):
            candidates.append(encoding)
    content = content[mark:]
    for encoding in candidates:
        try:
            return _if_text(content.decode(encoding))
        except UnicodeError:
            continue
    # A page of several sources has some bytes of another encoding, one that was cut off has half a character.
    for encoding in candidates:
        text = content.decode(encoding, errors="replace")
        replaced = text.count("\ufffd")
        if 10 * replaced <= len(text) - len(text.encode("ascii", errors="ignore")) - replaced:
            return _if_text(text)
    return _if_text(_guessed(content))


def _declared(beginning: bytes) -> Iterator[str]:
    if found := _XML_ENCODING.match(beginning):
        yield found[1].decode("ascii", errors="replace")
    for found in _META_CHARSET.finditer(_COMMENT.sub(b"", beginning)):
        yield found[1].decode("ascii", errors="replace")


def _encoding(label: str) -> str | None:
    """Python's name of the encoding that a page means by a label, None for one that no browser knows."""
    name = re.sub("[^a-z0-9]", "", label.lower().split(":")[0])
    if found := re.fullmatch("(?:x?cp|x?windows|win|cswindows)(125[0-8])", name):
        return f"cp{found[1]}"
    if found := re.fullmatch("(?:iso)?8859([1-9]|10|11|13|14|15|16)[ei]?", name):
        return {"1": "cp1252", "9": "cp1254", "11": "cp874"}.get(found[1], f"iso8859-{found[1]}")
    return _LABELS.get(name)


def _guessed(content: bytes) -> str:
    import cchardet

    guess = cchardet.detect(content)["encoding"] or "utf-8"
    try:
        return content.decode(guess, errors="replace")
    except LookupError:
        return content.decode("utf-8", errors="replace")


def _if_text(text: str) -> str | None:
    """The text, or None if a hundredth of it, and more than two characters, are control characters or unknown ones."""
    beginning = text[:EXCERPT_CHARACTERS]
    strange = len(_NOT_IN_TEXT.findall(beginning))
    return text if 100 * (strange - 2) <= len(beginning) else None


def html_to_text(html: str) -> str | None:
    """The main text of a page, by Trafilatura with FineWeb's options (arXiv:2406.17557); None if it has no text.

    What follows the tag `<plaintext>` stays as it is.
    """
    from trafilatura import extract
    from trafilatura.deduplication import LRUCache

    if html.startswith(_PLAIN):
        return html.removeprefix(_PLAIN)
    # Its own memory of repeated segments spans pages: what is kept of a page would depend on those before it.
    return extract(html, favor_precision=True, include_comments=False, deduplicate=LRUCache())
