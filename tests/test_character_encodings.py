import codecs
import csv
import gzip
import io

import pytest

from hfchat.character_encodings import as_utf8, decode, read_text

TEXT = "Größe 10 €\nКошка и 猫 🐈\n"
FORMS = {
    "utf-8": TEXT.encode(),
    "utf-8 with a mark": codecs.BOM_UTF8 + TEXT.encode(),
    "utf-16-le with a mark": codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"),
    "utf-16-be with a mark": codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
    "utf-16-le": TEXT.encode("utf-16-le"),
    "utf-16-be": TEXT.encode("utf-16-be"),
    "utf-32-le with a mark": codecs.BOM_UTF32_LE + TEXT.encode("utf-32-le"),
    "utf-32-be": TEXT.encode("utf-32-be"),
}


class Drips(io.BytesIO):
    """Gives three bytes at a time, as a socket or a decompressor may."""

    def read1(self, size=-1):
        return super().read1(min(size, 3))


@pytest.mark.parametrize("form", FORMS)
def test_every_unicode_encoding_is_the_same_text(form, tmp_path):
    content = FORMS[form]
    assert decode(content) == TEXT
    assert as_utf8(Drips(content)).read() == TEXT.encode()
    (tmp_path / "a.txt").write_bytes(content)
    assert read_text(tmp_path / "a.txt") == TEXT


def test_line_ends_stay_in_a_stream_and_are_line_feeds_in_a_text(tmp_path):
    (tmp_path / "a.txt").write_bytes("a\r\nb\rc\n".encode("utf-16"))
    assert read_text(tmp_path / "a.txt") == "a\nb\nc\n"
    assert as_utf8((tmp_path / "a.txt").open("rb")).read() == b"a\r\nb\rc\n"


def test_a_named_encoding_counts_where_there_is_no_mark():
    assert decode("größer".encode("cp1252"), "cp1252") == "größer"
    assert decode(codecs.BOM_UTF8 + "größer".encode(), "cp1252") == "größer"
    assert as_utf8(Drips("猫|猫".encode("cp932")), "cp932").read() == "猫|猫".encode()
    with pytest.raises(LookupError):
        as_utf8(io.BytesIO(b"text"), "no-such-encoding")


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        (b"good\nb\xffd\ngood", None),
        ("good\nb".encode("utf-16") + b"\x00\xd8" + "d\ngood".encode("utf-16-le"), None),
        (b"good\nb\x81d\ngood", "cp1252"),
    ],
)
def test_a_bad_byte_costs_its_own_line(content, encoding):
    first, second, third = as_utf8(Drips(content), encoding).read().split(b"\n")
    assert (first, third) == (b"good", b"good")
    with pytest.raises(UnicodeDecodeError):
        second.decode()


def test_a_file_that_ends_within_a_character_is_not_whole():
    with pytest.raises(UnicodeDecodeError):
        as_utf8(io.BytesIO("abc".encode("utf-16")[:-1])).read().decode()
    with pytest.raises(UnicodeDecodeError):
        decode("abc".encode("utf-16")[:-1])


@pytest.mark.parametrize("content", [b"", b"a", b"ab", codecs.BOM_UTF8, codecs.BOM_UTF16_LE])
def test_a_short_file_is_read(content):
    assert (
        as_utf8(io.BytesIO(content)).read().decode()
        == decode(content)
        == content.strip(b"\xef\xbb\xbf\xff\xfe").decode()
    )


def test_a_table_can_be_read_from_a_packed_file():
    packed = gzip.GzipFile(fileobj=io.BytesIO(gzip.compress('name,text\r\na,"two\r\nlines"\r\n'.encode("utf-16"))))
    rows = csv.DictReader(io.TextIOWrapper(as_utf8(packed), "utf-8", newline=""))
    assert list(rows) == [{"name": "a", "text": "two\r\nlines"}]
