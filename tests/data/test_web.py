import gzip
import io
import time

import pytest
from datatrove.executor import LocalPipelineExecutor
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from hfchat.data.removal import Removal
from hfchat.data.web import decode, html_to_text, parse_warc
from tests.conftest import SHARED_DATA
from tests.data.reading import read_all

WARC = SHARED_DATA / "warc"
needs_shared_data = pytest.mark.skipif(not WARC.exists(), reason="the shared data is not here")
ARTICLE = "A ferry crosses the river every hour, and the people on the bank wave to those on board. " * 6


def page(body: str = ARTICLE) -> bytes:
    return f"<html><body><nav>Menu Home</nav><article><p>{body}</p></article></body></html>".encode()


def write_warc(path, *pages, compress=True, kind="text/html; charset=utf-8"):
    """Pages are (url, content) or (url, content, headers) or (url, content, headers, status)."""
    with path.open("wb") as file:
        writer = WARCWriter(file, gzip=compress)
        writer.write_record(writer.create_warcinfo_record("test", {"software": "test"}))
        for url, content, *rest in pages:
            headers = [*([("Content-Type", kind)] if kind else []), *(rest[0] if rest else [])]
            status = rest[1] if len(rest) > 1 else "200 OK"
            http = StatusAndHeaders(status, dict(headers).items(), protocol="HTTP/1.1")
            writer.write_record(
                writer.create_warc_record(url, "response", payload=io.BytesIO(content), http_headers=http)
            )


def test_pages_become_text_with_their_address_and_date(tmp_path):
    write_warc(tmp_path / "a.warc.gz", ("https://a.org/1", page()), ("https://a.org/2", page(ARTICLE.upper())))
    found = read_all({"path": f"{tmp_path}/*.warc.gz", "name": "crawl"}, tmp_path / "out", world_size=2)
    assert sorted(found.texts) == sorted([ARTICLE.strip(), ARTICLE.upper().strip()])
    about = {document.metadata["url"]: document for document in found.documents}["https://a.org/1"]
    assert about.id.startswith("<urn:uuid:")
    assert about.metadata["date"].endswith("Z")
    assert about.metadata["source"] == "crawl"
    assert Removal.of(about) is None


def test_what_is_no_page_is_skipped(tmp_path):
    write_warc(
        tmp_path / "a.warc",
        ("https://a.org/image", b"\x89PNG", [("Content-Type", "image/png")]),
        ("https://a.org/gone", page(), [], "404 Not Found"),
        ("https://a.org/page", page()),
        compress=False,
    )
    found = read_all({"path": f"{tmp_path}/a.warc"}, tmp_path / "out")
    assert (found.read, found.skipped) == (1, 3)


def test_what_a_page_does_not_give_is_removed_with_its_reason(tmp_path):
    bomb = gzip.compress(b"<p>" + b" " * 3_000_000 + b"</p>")
    write_warc(
        tmp_path / "a.warc.gz",
        ("https://a.org/bomb", bomb, [("Content-Encoding", "gzip")]),
        ("https://a.org/broken", b"\x1f\x8b\x08garbage", [("Content-Encoding", "gzip")]),
        ("https://a.org/empty", b"<html><body><div></div></body></html>"),
        ("https://a.org/nothing", b""),
        ("https://a.org/page", page()),
    )
    found = read_all({"path": f"{tmp_path}/a.warc.gz"}, tmp_path / "out", max_document_bytes=1_000_000)
    assert found.texts == [ARTICLE.strip()]
    reasons = {row["url"].rsplit("/", 1)[1]: (row["step"], row["reason"]) for row in found.removed}
    assert reasons["bomb"] == ("read", "too_large")
    assert reasons["empty"] == ("extract", "extraction_empty")
    assert reasons["nothing"] == ("read", "empty")
    assert reasons["broken"][1] in ("unreadable", "extraction_empty")
    assert all(len(row["text"]) <= 100_000 for row in found.removed)


def hang_or_fail(html: str) -> str | None:
    """An extractor for which some pages are too much."""
    if "hang" in html:
        time.sleep(60)
    if "crash" in html:
        import os

        os._exit(1)
    if "fail" in html:
        raise ValueError("what a page")
    return html_to_text(html)


def test_a_page_that_hangs_fails_or_kills_the_extractor_costs_itself(tmp_path, monkeypatch):
    from hfchat.data import sources

    monkeypatch.setattr(sources, "html_to_text", hang_or_fail)
    bodies = ["hang", "one", "fail", "two", "crash", "three"]
    write_warc(tmp_path / "a.warc.gz", *((f"https://a.org/{body}", page(f"{body} {ARTICLE}")) for body in bodies))
    began = time.monotonic()
    found = read_all({"path": f"{tmp_path}/a.warc.gz", "timeout": 2.0}, tmp_path / "out")
    assert time.monotonic() - began < 30
    assert [text.split()[0] for text in found.texts] == ["one", "two", "three"]
    removed = {row["reason"]: row for row in found.removed if row["reason"] != "extraction_failed"}
    assert removed["extraction_timeout"]["score"] == 2.0
    details = sorted(row["detail"] for row in found.removed if row["reason"] == "extraction_failed")
    assert details == ["ValueError: what a page", "the extractor's process died"]
    assert all("<article>" in row["text"] for row in found.removed)


def test_pages_are_extracted_in_the_workers_of_a_pool(tmp_path):
    from functools import partial

    from datatrove.io import DataFolder
    from datatrove.pipeline.writers import JsonlWriter

    from hfchat.data.shards import RemovedWriter
    from hfchat.data.sources import Source

    write_warc(tmp_path / "a.warc.gz", *((f"https://a.org/{i}", page(f"{i} {ARTICLE}")) for i in range(6)))
    writer = partial(RemovedWriter, DataFolder(str(tmp_path / "out")), "00", "source0")
    step = Source.parse({"path": f"{tmp_path}/a.warc.gz"}).step(writer)
    pipeline = [step, JsonlWriter(str(tmp_path / "written"), compression=None)]
    LocalPipelineExecutor(pipeline, tasks=2, workers=2, logging_dir=str(tmp_path / "logs")).run()
    lines = [line for file in (tmp_path / "written").iterdir() for line in file.read_text().splitlines()]
    assert len(lines) == 6


def test_what_is_kept_of_a_page_does_not_depend_on_the_pages_before_it():
    html = page("<p>The same paragraph stands on every page of this site, again and again, in full.</p>" * 2).decode()
    assert len({html_to_text(html) for _ in range(5)}) == 1


@pytest.mark.parametrize(
    ("content", "charset", "text"),
    [
        ("größer".encode(), None, "größer"),
        ("größer".encode("latin-1"), "iso-8859-1", "größer"),
        ("größer".encode(), "no-such-charset", "größer"),
        ("größer".encode(), "undefined", "größer"),
        ("größer".encode(), "unicode_escape", "größer"),
        ("<p>größte".encode() + b"!", "utf-16", "<p>größte!"),
        ("“größer”".encode("cp1252"), "iso-8859-1", "“größer”"),
        ('<meta charset="windows-1251">Привет'.encode("cp1251"), None, '<meta charset="windows-1251">Привет'),
        ("Привет, как дела? Это длинный текст на русском языке.".encode("koi8-r"), "utf-8", None),
    ],
)
def test_the_encoding_of_a_page_is_found(content, charset, text):
    found = decode(content, charset)
    assert found == text if text else "Привет" in found or "\ufffd" not in found


RUSSIAN = "Паром пересекает реку каждый час, и люди на берегу машут тем, кто на борту."
CYRILLIC_META = '<meta http-equiv=content-type content="text/html; charset=WINDOWS-1251">'


@pytest.mark.parametrize(
    ("content", "charset", "text"),
    [
        # A byte order mark counts more than the header.
        (b"\xef\xbb\xbf" + RUSSIAN.encode(), "windows-1251", RUSSIAN),
        (RUSSIAN.encode("utf-16"), "iso-8859-1", RUSSIAN),
        (b"\xfe\xff" + RUSSIAN.encode("utf-16-be"), None, RUSSIAN),
        (RUSSIAN.encode("utf-32"), None, RUSSIAN),
        # Pages in UTF-16 without one.
        (f"<p>{RUSSIAN}".encode("utf-16-le"), None, f"<p>{RUSSIAN}"),
        (f"<p>{RUSSIAN}".encode("utf-16-be"), "utf-16", f"<p>{RUSSIAN}"),
        # The header counts more than the page, and what nobody knows is passed over.
        ((CYRILLIC_META + RUSSIAN).encode("koi8-r"), "KOI8-R", CYRILLIC_META + RUSSIAN),
        ((CYRILLIC_META + RUSSIAN).encode("cp1251"), "x-unknown", CYRILLIC_META + RUSSIAN),
        ((CYRILLIC_META + RUSSIAN).encode("cp1251"), "cp037", CYRILLIC_META + RUSSIAN),
        ((CYRILLIC_META + RUSSIAN).encode("cp1251"), "", CYRILLIC_META + RUSSIAN),
        (
            f'<?xml version="1.0" encoding="Windows-1251"?><p>{RUSSIAN}'.encode("cp1251"),
            None,
            f'<?xml version="1.0" encoding="Windows-1251"?><p>{RUSSIAN}',
        ),
        (
            f"<!-- <meta charset=koi8-r> --><META CHARSET='cp1251'>{RUSSIAN}".encode("cp1251"),
            None,
            f"<!-- <meta charset=koi8-r> --><META CHARSET='cp1251'>{RUSSIAN}",
        ),
        # Labels of browsers.
        ("“Ja” – 10 €".encode("cp1252"), "ISO_8859-1:1987", "“Ja” – 10 €"),
        ("“Ja” – 10 €".encode("cp1252"), "latin-1", "“Ja” – 10 €"),
        ("ığşİ “x”".encode("cp1254"), "iso-8859-9", "ığşİ “x”"),
        ("中文網頁和鎔字".encode("gbk"), "GB_2312-80", "中文網頁和鎔字"),
        ("中文网页𠀀".encode("gb18030"), "x-gbk", "中文网页𠀀"),
        ("日本語①髙".encode("cp932"), "x-sjis", "日本語①髙"),
        ("日本語".encode("euc-jp"), "x-euc-jp", "日本語"),
        ("日本語".encode("iso-2022-jp"), "ISO-2022-JP", "日本語"),
        ("한국어 똠방각하".encode("cp949"), "ks_c_5601-1987", "한국어 똠방각하"),
        ("香港嘅".encode("big5hkscs"), "Big5", "香港嘅"),
        ("ภาษาไทย “x”".encode("cp874"), "TIS-620", "ภาษาไทย “x”"),
        ("Łódź".encode("iso8859-2"), "latin2", "Łódź"),
        ("Łódź".encode("cp1250"), "x-cp1250", "Łódź"),
        (RUSSIAN.encode("mac-cyrillic"), "x-mac-cyrillic", RUSSIAN),
        # A byte that does not fit, among many that do.
        (RUSSIAN.encode() + b"\xff", "utf-8", RUSSIAN + "\ufffd"),
        ("It’s a page of words, and they’re all in English.".encode("cp1252"), "utf-8", "It’s a page of words, and "),
        # What is no text.
        (bytes(range(256)) * 20, None, None),
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(500), "utf-8", None),
    ],
)
def test_the_encoding_of_a_page_is_what_browsers_take_it_for(content, charset, text):
    found = decode(content, charset)
    assert found == text or (text and found.startswith(text))


def test_a_text_that_speaks_of_encodings_is_not_in_them(tmp_path):
    text = f"{CYRILLIC_META} says größer."
    assert decode(text.encode("cp1252"), "cp1252", is_markup=False) == text
    assert decode(text.encode(), None, is_markup=False) == text


@pytest.mark.parametrize(
    "header", ["text/html; Charset=KOI8-R", 'Text/HTML;CHARSET="koi8-r" ; x=y', "text/html;charset='koi8-r'"]
)
def test_the_charset_of_a_header_is_found_in_any_spelling(tmp_path, header):
    content = f"<html><body><article><p>{RUSSIAN * 4}</p></article></body></html>".encode("koi8-r")
    write_warc(tmp_path / "a.warc.gz", ("https://a.org/1", content, [("content-type", header)]), kind=None)
    assert read_all({"path": f"{tmp_path}/a.warc.gz"}, tmp_path / "out").texts == [RUSSIAN * 4]


def response(url: str, http: bytes, kind: str = "response", **headers: str) -> bytes:
    lines = ["WARC/1.0", f"WARC-Type: {kind}", f"WARC-Target-URI: {url}", f"Content-Length: {len(http)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + http + b"\r\n\r\n"


def test_every_record_is_a_document_or_counted_with_what_it_is(tmp_path):
    http = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + page()
    moved = b"HTTP/1.1 301 Moved\r\n\r\n"
    (tmp_path / "a.warc").write_bytes(
        response("http://a.org/1", http)
        + response("HTTPS://a.org/2", http.replace(b"HTTP/1.1 200 OK", b"HTTP/2 200"))
        + response("<http://a.org/3>", http.replace(b"\r\n", b"\n").replace(b"1.1", b"1.0"))
        + response("http://a.org/4", http.replace(b"text/html", b"Application/XHTML+XML; charset=UTF-8"))
        + response("http://a.org/5", http.replace(b"Content-Type: text/html\r\n", b""))
        + response("http://a.org/6", http.replace(b"text/html", b"image/x"), WARC_Identified_Payload_Type="TEXT/HTML")
        + response("http://a.org/moved", moved)
        + response("http://a.org/odd", b"HTTP/1.1 OK\r\n\r\n")
        + response("http://a.org/pdf", http.replace(b"text/html", b"application/pdf"))
        + response("http://a.org/none", b"HTTP/1.1 200 OK\r\n\r\n{}")
        + response("dns:a.org", b"20260102 a.org. 1 IN A 127.0.0.1")
        + response("http://a.org/1", b"HTTP/1.1 200 OK\r\n\r\n", "revisit")
        + response("http://a.org/1", b"the rest of it", "continuation", WARC_Segment_Number="2")
        + response("http://a.org/1", b"GET / HTTP/1.1\r\n\r\n", "request")
        + response("http://a.org/1", b"x: y", "metadata")
        + response("http://a.org/1", b"x", "something")
        + response("http://a.org/begun", http, WARC_Segment_Number="1")
        + response(
            "http://a.org/packed", http.replace(b"\r\n\r\n", b"\r\nContent-Encoding: compress\r\n\r\n\x1f\x9d\x00")
        )
        + response("http://a.org/long", b"HTTP/1.1 200 OK\r\nX: " + b"y" * 300_000 + b"\r\n\r\n")
    )
    found = read_all({"path": f"{tmp_path}/a.warc"}, tmp_path / "out")
    assert found.texts == [ARTICLE.strip()] * 6
    assert found.documents[2].metadata["url"] == "http://a.org/3"
    assert found.skipped_for == {
        "status 301": 1, "no status": 1, "application content": 1, "unknown content": 1, "response without HTTP": 1,
        "revisit record": 1, "continuation record": 1, "request record": 1, "metadata record": 1,
        "record of an unknown type": 1,
    }  # fmt: skip
    assert {row["url"].rsplit("/", 1)[1]: row["detail"] for row in found.removed} == {
        "begun": "it is one of several records of the same page",
        "packed": "coding 'compress': it is not known",
        "long": "headers of more than 262,144 bytes",
    }


def test_a_page_whose_record_has_a_wrong_length_is_not_taken_for_whole(tmp_path):
    http = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + page()
    wrong = response("http://a.org/wrong", http).replace(b"Length: %d" % len(http), b"Length: %d" % (len(http) - 200))
    (tmp_path / "a.warc").write_bytes(response("http://a.org/1", http) + wrong + response("http://a.org/2", http))
    found = read_all({"path": f"{tmp_path}/a.warc"}, tmp_path / "out", world_size=2)
    assert [document.metadata["url"] for document in found.documents] == ["http://a.org/1", "http://a.org/2"]
    (row,) = found.removed
    assert (row["url"], row["detail"]) == ("http://a.org/wrong", "the record is longer than its Content-Length")


@pytest.mark.parametrize("ending", ["wet", "warc"])
def test_texts_and_pages_may_be_in_one_file(tmp_path, ending):
    http = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + page()
    texts = response("http://a.org/text", b"A text < b.", "conversion", Content_Type="text/plain")
    (tmp_path / f"a.{ending}").write_bytes(texts + response("http://a.org/1", http))
    found = read_all({"path": f"{tmp_path}/a.{ending}"}, tmp_path / "out")
    assert found.texts == ["A text < b.", ARTICLE.strip()]


def test_the_records_of_other_tasks_are_not_unpacked(tmp_path, monkeypatch):
    from hfchat.data import web

    write_warc(tmp_path / "a.warc.gz", *((f"https://a.org/{i}", page(f"{i} {ARTICLE}")) for i in range(11)))
    decoded, undo = [], web.undo_codings
    monkeypatch.setattr(web, "undo_codings", lambda content, *args: decoded.append(content) or undo(content, *args))
    found = read_all({"path": f"{tmp_path}/a.warc.gz"}, tmp_path / "out", world_size=4)
    assert len(found.texts) == len(decoded) == 11


@needs_shared_data
def test_real_pages_of_common_crawl():
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        crawled = read_all({"path": str(WARC / "warcfile.warc.gz")}, Path(folder) / "1", world_size=2)
        assert len(crawled.documents) == 15
        russian = next(document.text for document in crawled.documents if "01spb.ru" in document.metadata["url"])
        assert sum("а" <= letter <= "я" for letter in russian.lower()) > len(russian) / 2  # from windows-1251
        wet = read_all({"path": str(WARC / "whirlwind.warc.wet.gz")}, Path(folder) / "2")
        assert [document.metadata["url"] for document in wet.documents] == ["https://an.wikipedia.org/wiki/Escopete"]
        warc = read_all({"path": str(WARC / "whirlwind.warc.gz")}, Path(folder) / "3")
        assert "Escopete" in warc.texts[0]
        assert len(warc.texts[0]) < len(wet.texts[0])  # without menus


@needs_shared_data
def test_a_real_file_that_is_cut_off_costs_its_last_record(tmp_path):
    found = read_all({"path": str(WARC / "clipped.warc.gz"), "name": "c"}, tmp_path / "out")
    (row,) = found.removed
    assert row["reason"] == "unreadable"
    assert row["detail"] == "the record is cut off, 13,068 bytes before its end"
    assert row["url"].startswith("http://www.houstonpress.com/")


def damage(path):
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 60] = b"\x1f\x8b\x08" + bytes(57)  # what looks like a record but is none
    path.write_bytes(bytes(content))


def drop_length(path):
    path.write_bytes(path.read_bytes().replace(b"Content-Length:", b"Content-Lungth:", 1))


@pytest.mark.parametrize(("harm", "compress", "kept"), [(damage, True, 7), (drop_length, False, 8)])
def test_a_damaged_record_costs_itself(tmp_path, harm, compress, kept):
    pages = [f"{i} {ARTICLE}".strip() for i in range(8)]
    write_warc(
        tmp_path / "a.warc", *((f"https://a.org/{i}", page(text)) for i, text in enumerate(pages)), compress=compress
    )
    harm(tmp_path / "a.warc")
    found = read_all({"path": f"{tmp_path}/a.warc", "name": "n"}, tmp_path / "out", world_size=2)
    assert len(found.texts) == kept
    assert set(found.texts) <= set(pages)
    assert found.reasons == ["unreadable"]
    assert found.removed[0]["id"].startswith("n/a.warc#")


@pytest.mark.parametrize("compress", [True, False])
def test_a_file_that_is_cut_off_in_any_record_says_so(tmp_path, compress):
    image = [("Content-Type", "image/png")]
    write_warc(
        tmp_path / "a.warc",
        ("https://a.org/1", page("one")),
        ("https://a.org/2", page("two"), image),
        compress=compress,
    )
    content = (tmp_path / "a.warc").read_bytes()
    whole = [make() for make in parse_warc(io.BytesIO(content), 10**6)]
    assert [record and record.fault for record in whole] == [None, None, None]
    silent = 0
    for end in range(len(content)):
        found = [make() for make in parse_warc(io.BytesIO(content[:end]), 10**6)]
        silent += not any(record and record.fault for record in found)
    # Between two records there is nothing to see; the last bytes of each (newlines, checksum) hold no text.
    assert silent <= 3 * 12 + 1


def test_bytes_after_compressed_content_are_not_missed(tmp_path):
    content = gzip.compress(page()) + b"trailing" * 10_000
    write_warc(tmp_path / "a.warc.gz", ("https://a.org/1", content, [("Content-Encoding", "gzip")]))
    assert read_all({"path": f"{tmp_path}/a.warc.gz"}, tmp_path / "out").texts == [ARTICLE.strip()]


@pytest.mark.parametrize("suffix", ["bz2", "zst"])
def test_a_file_may_be_compressed_as_a_whole(tmp_path, suffix):
    compress = pytest.importorskip({"bz2": "bz2", "zst": "zstandard"}[suffix]).compress
    write_warc(tmp_path / "a.warc", ("https://a.org/1", page()), compress=False)
    (tmp_path / f"a.warc.{suffix}").write_bytes(compress((tmp_path / "a.warc").read_bytes()))
    assert read_all({"path": f"{tmp_path}/a.warc.{suffix}"}, tmp_path / "out").texts == [ARTICLE.strip()]


def test_plain_text_stays_as_it_is(tmp_path):
    text = "Kept < as > it\n\n    is & was"
    write_warc(tmp_path / "a.warc.gz", ("https://a.org/1", text.encode(), [("Content-Type", "text/plain")]))
    assert read_all({"path": f"{tmp_path}/a.warc.gz"}, tmp_path / "out").texts == [text]


def half_a_pair(html: str) -> str:
    return f"\ud800 {html_to_text(html)}"


def test_what_parquet_cannot_hold_is_replaced(tmp_path, monkeypatch):
    from hfchat.data import sources

    monkeypatch.setattr(sources, "html_to_text", half_a_pair)
    write_warc(tmp_path / "a.warc.gz", ("https://a.org/1", page()))
    assert read_all({"path": f"{tmp_path}/a.warc.gz"}, tmp_path / "out").texts == [f"\ufffd {ARTICLE.strip()}"]
