"""Records of WARC files, also of damaged ones, and what reading them costs."""

import gzip
import io

import pytest

from hfchat.data import warc
from hfchat.data.warc import DamageError, read_records


def record(body: bytes, kind: str = "response", version: str = "WARC/1.0", end: str = "\r\n", length=None) -> bytes:
    headers = [
        version,
        f"WARC-Type: {kind}",
        "WARC-Target-URI: http://a.org/",
        f"Content-Length: {length or len(body)}",
    ]
    return end.join([*headers, "", ""]).encode() + body + 2 * end.encode()


def bodies(content: bytes) -> list[bytes | str]:
    """What each record holds; what is wrong with it, or with what stands in the place of one."""
    found = []
    for entry in read_records(io.BytesIO(content)):
        if isinstance(entry, DamageError):
            found.append(str(entry))
        else:
            body = entry.read(10**6)
            found.append(entry.damage() or body)
    return found


THREE = [record(b"one" * 100), record(b"two" * 100), record(b"three" * 100)]
READ = [b"one" * 100, b"two" * 100, b"three" * 100]


@pytest.mark.parametrize(
    "content",
    [
        b"".join(THREE),
        b"".join(map(gzip.compress, THREE)),
        gzip.compress(b"".join(THREE)),  # packed as a whole
        gzip.compress(b"".join(THREE)[:150]) + gzip.compress(b"".join(THREE)[150:]),  # in blocks, as by bgzip
        b"".join(map(gzip.compress, THREE)) + bytes(512),  # filled up
        b"\r\n\r\n" + b"".join(THREE) + b"\r\n\r\n\r\n",
        b"".join(record(body, version=v) for body, v in zip(READ, ("WARC/0.18", "WARC/1.1", "warc/1.0"), strict=True)),
        b"".join(record(body, end="\n") for body in READ),
        b"".join(record(body).replace(b"Content-Length:", b"content-length :") for body in READ),
    ],
)
def test_records_are_read_however_they_are_written(content):
    assert bodies(content) == READ


def test_records_of_arc_files_are_read():
    head = b"filedesc://a.arc 0.0.0.0 20020304050607 text/plain 23\n1 0 Test\nURL IP-address\n\n"
    page = b"http://a.org/x y 1.2.3.4 20020304050607 text/html 25\nHTTP/1.0 200 OK\n\nA page.\n\n"
    for content in (head + page, gzip.compress(head) + gzip.compress(page)):
        _, found = ((entry.headers, entry.read(99)) for entry in read_records(io.BytesIO(content)))
        assert found[0].get_header("WARC-Target-URI") == "http://a.org/x y"
        assert found[0].get_header("WARC-Date") == "2002-03-04T05:06:07Z"
        assert found[1].startswith(b"HTTP/1.0 200 OK\n\nA page.")


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize(
    ("length", "problem"),
    [
        (100, "the record is longer than its Content-Length"),
        (310, "the record is longer than its Content-Length"),
        (10**6, "the record is cut off"),
    ],
)
def test_a_wrong_length_costs_its_record_only(pack, length, problem):
    content = b"".join(map(pack, [THREE[0], record(READ[1], length=length), THREE[2]]))
    if pack is gzip.compress and length == 310:
        problem = "the record is cut off"  # no further than what it was packed in
    first, second, third = bodies(content)
    assert (first, third) == (READ[0], READ[2])
    assert second.startswith(problem)


@pytest.mark.parametrize(
    "junk", [b"junk", b"\n" + bytes(200_000), b"WARC/1.0\r\nno headers\r\n\r\n", b"WARC/1.0\r\n" + b"x" * 300_000]
)
def test_what_is_no_record_is_told_once_and_passed_over(junk):
    for content in (THREE[0] + junk + b"\r\n\r\n" + THREE[1], gzip.compress(THREE[0] + junk + b"\r\n\r\n" + THREE[1])):
        found = bodies(content)
        assert [entry for entry in found if isinstance(entry, bytes)] in ([READ[0], READ[1]], [READ[1]])
        assert sum(isinstance(entry, str) for entry in found) == 1


def test_a_broken_member_costs_its_record_only():
    members = [gzip.compress(entry) for entry in THREE]
    for place in (15, -3):  # in what is packed, and in its checksum
        broken = bytearray(members[1])
        broken[place] ^= 0x55
        first, second, third = bodies(members[0] + bytes(broken) + members[2])
        assert (first, third) == (READ[0], READ[2])
        assert "its compression is broken" in second


class Counted(io.BytesIO):
    """Counts the bytes that are read."""

    total = 0

    def read(self, size=-1):
        content = super().read(size)
        self.total += len(content)
        return content

    read1 = read


@pytest.mark.parametrize(
    "piece",
    [
        b"\nWARC/",
        b"\nWARC/1.0\r\n",
        b"WARC/1.0\r\nContent-Length: 99999999\r\n\r\n",
        b"WARC/1.0\r\nContent-Length: 0\r\n\r\nx\r\n",
        b"\x1f\x8b\x08\x00",
        b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03",
    ],
)
def test_rubbish_is_read_in_linear_time(piece):
    """As a rule once; never more than a few times, where a damaged record might hide others."""
    stream = Counted(piece * (1_000_000 // len(piece)))
    found = sum(isinstance(entry, DamageError) or bool(entry.damage()) for entry in read_records(stream))
    assert stream.total <= 8_000_000
    assert 0 < found <= (1_000_000 / len(piece) if b"Length: 0" in piece else 10)


def test_no_line_is_longer_than_a_window(monkeypatch):
    lengths = []
    readline = warc._Reader.readline
    monkeypatch.setattr(warc._Reader, "readline", lambda self, size: lengths.append(len(readline(self, size))) or b"")
    list(read_records(io.BytesIO(gzip.compress(bytes(30_000_000)))))
    assert max(lengths) <= 1 << 18
