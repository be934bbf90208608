import bz2
import gzip
import io
import json
import lzma

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hfchat.data.readers import parse_json_lines, parse_parquet
from hfchat.data.rows import parts
from hfchat.errors import UserError
from tests.data.reading import read_all


def test_each_text_file_is_a_document(tmp_path):
    (tmp_path / "a.txt").write_text("first\n\nfile")
    (tmp_path / "b.md").write_text("# second")
    assert read_all({"path": f"{tmp_path}/*.txt"}, tmp_path / "out").texts == ["first\n\nfile"]
    assert read_all({"path": f"{tmp_path}/b.md"}, tmp_path / "out2").texts == ["# second"]


@pytest.mark.parametrize("chunk", [1, 3, 1 << 20])
def test_documents_stand_between_separators_however_the_file_is_read(tmp_path, monkeypatch, chunk):
    from hfchat.data import readers

    class InChunks:
        def __init__(self, stream):
            self.stream = stream

        def read(self, _):
            return self.stream.read(chunk)

        read1 = read

    monkeypatch.setattr(readers, "parts", lambda stream, *args: parts(InChunks(stream), *args))
    (tmp_path / "a.txt").write_text("one\n===\ntwo\n===\n" + "x" * 50 + "\n===\nlast")
    source = {"path": f"{tmp_path}/a.txt", "separator": "\n===\n"}
    found = read_all(source, tmp_path / "out", max_document_bytes=20)
    assert found.texts == ["one", "two", "last"]
    (large,) = found.removed
    assert large["reason"] == "too_large"
    assert set(large["text"]) == {"x"}


@pytest.mark.parametrize(("suffix", "compress"), [("gz", gzip), ("bz2", bz2), ("xz", lzma)])
def test_compressed_files_are_read_as_the_plain_ones(tmp_path, suffix, compress):
    (tmp_path / f"a.jsonl.{suffix}").write_bytes(compress.compress(b'{"text": "packed"}\n'))
    assert read_all({"path": f"{tmp_path}/*.jsonl.{suffix}"}, tmp_path / "out").texts == ["packed"]


def test_zstandard(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(b'{"text": "packed"}\n'))
    assert read_all({"path": f"{tmp_path}/*.jsonl.zst"}, tmp_path / "out").texts == ["packed"]


def test_a_bad_line_costs_that_line(tmp_path):
    lines = [
        b'{"text": "good"}',
        b"{broken",
        b'{"text": "\xff\xfe"}',
        b'{"body": "no text"}',
        b'{"text": "\\ud800 half"}',
        b"",
        b"[1]",
        b'{"text": "  "}',
        b'{"text": "half", "url": "\\ud800"}',
        b'{"text": null}',
        b'{"text": "good too"}',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    found = read_all({"path": f"{tmp_path}/a.jsonl", "name": "n"}, tmp_path / "out")
    assert found.texts == ["good", "good too"]
    assert found.reasons == ["empty"] * 2 + ["unreadable"] * 6
    details = {row["id"]: row["detail"] for row in found.removed if row["reason"] == "unreadable"}
    assert details["n/a.jsonl#1"].startswith("not JSON: ")
    assert details["n/a.jsonl#2"].startswith("UnicodeDecodeError")
    assert details["n/a.jsonl#3"] == "no text under the key 'text', only ['body']"
    assert "'text' holds half a surrogate pair" in details["n/a.jsonl#4"]
    assert "'url' holds half a surrogate pair" in details["n/a.jsonl#7"]
    assert {row["step"] for row in found.removed} == {"read"}


def test_text_in_another_encoding_is_unreadable_until_the_encoding_is_named(tmp_path):
    (tmp_path / "a.txt").write_bytes("ein schöner Tag".encode("latin-1"))
    (row,) = read_all({"path": f"{tmp_path}/a.txt"}, tmp_path / "out").removed
    assert row["reason"] == "unreadable"
    assert row["detail"].startswith("UnicodeDecodeError")
    found = read_all({"path": f"{tmp_path}/a.txt", "encoding": "latin-1"}, tmp_path / "out2")
    assert found.texts == ["ein schöner Tag"]


def test_a_file_that_is_cut_off_costs_its_rest(tmp_path):
    lines = "".join(json.dumps({"text": f"document {i} {i**9}"}) + "\n" for i in range(5000))
    packed = gzip.compress(lines.encode())
    (tmp_path / "a.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "b.jsonl").write_text('{"text": "after it"}\n')
    found = read_all({"path": f"{tmp_path}/*.jsonl*", "kind": "json-lines"}, tmp_path / "out")
    assert "after it" in found.texts
    assert found.texts[0] == "document 0 0"
    assert 0 < len(found.texts) < 5001
    assert any("EOFError" in row["detail"] for row in found.removed)


def test_parquet_is_read_with_its_own_provenance_and_half_a_file_costs_that_file(tmp_path):
    rows = [{"text": f"row {i}", "id": f"r{i}", "url": None, "number": i} for i in range(200)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=64)
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(content[: len(content) // 2])
    found = read_all({"path": f"{tmp_path}/*.parquet"}, tmp_path / "out", world_size=2)
    assert found.texts == [row["text"] for row in rows]
    assert found.documents[5].id == "r5"
    assert found.reasons == ["unreadable"]
    assert "b.parquet" in found.removed[0]["id"]


def test_a_row_of_parquet_that_is_not_utf_8_costs_itself(tmp_path):
    offsets = pa.array([0, 2, 4, 6], pa.int32()).buffers()[1]
    texts = pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(b"ab\xff\xfecd")])
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    found = read_all({"path": f"{tmp_path}/a.parquet"}, tmp_path / "out")
    assert found.texts == ["ab", "cd"]
    assert found.removed[0]["detail"].startswith("UnicodeDecodeError")


def test_a_column_that_is_not_there_is_an_error(tmp_path):
    pq.write_table(pa.Table.from_pylist([{"content": "x"}]), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"no column 'text', only \['content'\]"):
        read_all({"path": f"{tmp_path}/a.parquet"}, tmp_path / "out")


def test_strict_names_the_record(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n{broken\n')
    with pytest.raises(UserError, match=r"n/a\.jsonl#1 cannot be read: not JSON: "):
        read_all({"path": f"{tmp_path}/a.jsonl", "name": "n"}, tmp_path / "out", strict=True)


def test_a_document_that_is_too_large_is_removed_with_an_excerpt(tmp_path):
    (tmp_path / "a.txt").write_text("ä" * 300_000)
    (row,) = read_all({"path": f"{tmp_path}/a.txt"}, tmp_path / "out", max_document_bytes=500_000).removed
    assert row["reason"] == "too_large"
    assert row["text"] == "ä" * 100_000


def test_no_more_is_read_of_a_file_than_a_document_may_have():
    stream = io.BytesIO(bytes(10_000_000))
    (part,) = parts(stream, None, 1_000_000)
    assert len(part) == 1_000_001
    assert stream.tell() < 1_200_000


def test_a_line_that_is_too_long_is_too_large(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x" * 200_000}) + '\n{"text": "next"}\n')
    found = read_all({"path": f"{tmp_path}/a.jsonl"}, tmp_path / "out", max_document_bytes=1000)
    assert found.texts == ["next"]
    assert found.reasons == ["too_large"]


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    assert read_all({"path": f"{tmp_path}/a.txt"}, tmp_path / "out").texts == ["hello"]


def test_what_a_kept_document_went_through_is_not_said_of_later_removals(tmp_path):
    (tmp_path / "a.txt").write_text("kept")
    (document,) = read_all({"path": f"{tmp_path}/a.txt"}, tmp_path / "out").documents
    assert "step" not in document.metadata


ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_files_are_read_in_any_unicode_encoding_and_with_any_line_end(tmp_path, encoding, end):
    rows = [{"text": "größer €", "id": "1"}, {"text": "Кошка 猫 🐈"}, {"text": "drei"}]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (tmp_path / "a.jsonl").write_bytes(end.join([*lines, ""]).encode(encoding))
    found = read_all({"path": f"{tmp_path}/a.jsonl"}, tmp_path / "out", world_size=2)
    assert sorted(found.texts) == sorted(row["text"] for row in rows)
    (tmp_path / "a.txt").write_bytes(f"a größer €{end}==={end}Кошка{end}猫 🐈{end}==={end}drei".encode(encoding))
    source = {"path": f"{tmp_path}/a.txt", "separator": "\n===\n"}
    assert read_all(source, tmp_path / "out2").texts == ["a größer €", f"Кошка{end}猫 🐈", "drei"]
    (tmp_path / "b.txt").write_bytes(f"a{end}größer".encode(encoding))
    assert read_all({"path": f"{tmp_path}/b.txt"}, tmp_path / "out3").texts == [f"a{end}größer"]


def test_a_separator_of_windows_is_found_in_a_file_of_unix(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo")
    assert read_all({"path": f"{tmp_path}/a.txt", "separator": "\r\n\r\n"}, tmp_path / "out").texts == ["one", "two"]


def test_a_separator_that_is_half_of_a_character_is_not_found_in_it(tmp_path):
    (tmp_path / "a.txt").write_bytes("ポスト|ソ".encode("cp932"))  # the second byte of the last one is "|"'s neighbour
    source = {"path": f"{tmp_path}/a.txt", "encoding": "cp932", "separator": "|"}
    assert read_all(source, tmp_path / "out").texts == ["ポスト", "ソ"]
    (tmp_path / "a.txt").write_bytes("弌弌".encode("cp932"))
    trail = {"path": f"{tmp_path}/a.txt", "encoding": "cp932", "separator": chr("弌".encode("cp932")[1])}
    if trail["separator"].isascii():
        assert read_all(trail, tmp_path / "out2").texts == ["弌弌"]


def test_joined_files_have_marks_between_them(tmp_path):
    row = b'\xef\xbb\xbf{"text": "one"}\n'
    (tmp_path / "a.jsonl").write_bytes(row + row)
    assert read_all({"path": f"{tmp_path}/a.jsonl"}, tmp_path / "out").texts == ["one", "one"]


def test_bytes_that_do_not_fit_cost_their_document(tmp_path):
    (tmp_path / "a.txt").write_bytes("good|b".encode("utf-16") + b"\x00\xdc" + "d|good".encode("utf-16-le"))
    found = read_all({"path": f"{tmp_path}/a.txt", "separator": "|"}, tmp_path / "out")
    assert found.texts == ["good", "good"]
    assert found.removed[0]["detail"] == "UnicodeDecodeError: it is not all utf-16-le"


@pytest.mark.parametrize("ending", ["gz", "bz2", "xz", "zst"])
def test_a_packed_file_may_have_several_parts_and_is_not_whole_where_it_is_cut_off(tmp_path, ending):
    pack = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}.get(ending)
    pack = pack or (lambda content: pa.compress(content, "zstd", asbytes=True))
    lines = [json.dumps({"text": f"text {i} {i**7}"}).encode() + b"\n" for i in range(2000)]
    content = pack(b"".join(lines[:1000])) + pack(b"".join(lines[1000:]))
    (tmp_path / f"a.jsonl.{ending}").write_bytes(content)
    assert len(read_all({"path": f"{tmp_path}/a.jsonl.{ending}"}, tmp_path / "out").texts) == 2000
    (tmp_path / f"b.jsonl.{ending.upper()}").write_bytes(content[:-20])
    cut = read_all({"path": f"{tmp_path}/b.jsonl.{ending.upper()}"}, tmp_path / "out2")
    assert "unreadable" in cut.reasons
    assert len(cut.texts) < 2000


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_what_is_no_text_is_removed_and_named(tmp_path, form):
    values = [{"text": "good"}, {"text": None}]
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(values), tmp_path / "a.parquet")
        pq.write_table(pa.Table.from_pylist([{"text": 7}, {"text": None}]), tmp_path / "b.parquet")
        pq.write_table(pa.table({"text": pa.array([["a"], None])}), tmp_path / "c.parquet")
    else:
        values += [{"text": 7}, {"text": None}, {"text": ["a"]}, {"text": None}]
        (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in values))
    found = read_all({"path": f"{tmp_path}/*.{form}"}, tmp_path / "out")
    assert found.texts == ["good"]
    assert sorted((row["reason"], row["detail"]) for row in found.removed) == [
        *[("empty", "the value of 'text' is null")] * 3,
        ("unreadable", "the value of 'text' is no text, but of the type int"),
        ("unreadable", "the value of 'text' is no text, but of the type list"),
    ]


def test_what_a_line_holds_beside_its_text_is_not_made_when_it_is_too_much(monkeypatch):
    made = []
    loads = json.loads
    monkeypatch.setattr(json, "loads", lambda line: made.append(len(line)) or loads(line))
    many = b"[" + b"[]," * 3_000_000 + b"0]"
    quotes = b'"' + b'\\"' * 5_000_000 + b'"'  # a string, however many quotes it holds
    content = b'{"text": "a", "unused": %s}\n{"text": "b", "unused": %s}\n{"text": "open' % (many, quotes)
    large, good, broken = (make() for make in parse_json_lines(io.BytesIO(content), 50_000_000, text_key="text"))
    assert large.fault == ("too_large", "has more than 4,194,304 bytes beside its strings")
    assert good.text == "b"
    assert broken.fault[0] == "unreadable"
    assert max(made) < 11_000_000


def parquet_of(values, **options) -> io.BytesIO:
    file = io.BytesIO()
    pq.write_table(pa.table(values), file, **options)
    file.seek(0)
    return file


def test_a_value_that_all_rows_of_parquet_share_is_in_memory_once():
    text = "x" * 1_000_000
    values = pa.array([text] * 64)
    file = parquet_of({"text": values, "url": values}, dictionary_pagesize_limit=1 << 27, compression="zstd")
    assert file.getbuffer().nbytes < 2000
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    pa.set_memory_pool(pool)
    try:
        records = sum(make().text == text for make in parse_parquet(file, 50_000_000, text_key="text"))
    finally:
        pa.set_memory_pool(before)
    assert records == 64
    assert pool.max_memory() < 10 * len(text)


def test_a_row_of_parquet_that_is_too_large_is_measured_before_it_is_made():
    file = parquet_of({"text": pa.array(["x" * 3_000_000, "small"] * 2)}, dictionary_pagesize_limit=1 << 27)
    records = [make() for make in parse_parquet(file, 1_000_000, text_key="text")]
    assert [record.fault and record.fault[0] for record in records] == ["too_large", None] * 2
    assert len(records[0].text) == 400_000


def test_a_group_of_rows_that_grows_a_thousandfold_is_not_unpacked(tmp_path):
    file = parquet_of(
        {"text": pa.array(["x" * 1_000_000 + str(i) for i in range(100)])}, use_dictionary=False, compression="zstd"
    )
    (tmp_path / "a.parquet").write_bytes(file.getvalue())
    before = pa.default_memory_pool().bytes_allocated()
    found = read_all({"path": f"{tmp_path}/a.parquet"}, tmp_path / "out", max_document_bytes=2_000_000)
    assert pa.default_memory_pool().bytes_allocated() - before < 1_000_000
    (row,) = found.removed
    assert row["reason"] == "too_large"
    assert row["detail"].startswith("a group of 100 rows unpacks from ")


def test_the_records_of_other_tasks_are_not_made(tmp_path, monkeypatch):
    made = []
    loads = json.loads
    monkeypatch.setattr(json, "loads", lambda line: made.append(line) or loads(line))
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "{i}"}}\n' for i in range(50)))
    assert len(read_all({"path": f"{tmp_path}/a.jsonl"}, tmp_path / "out", world_size=7).texts) == 50
    assert len([line for line in made if line.startswith(b'{"text"')]) == 50
