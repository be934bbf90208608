import bz2
import csv
import gzip
import io
import json
import lzma
import random
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hfchat.data.conversation_sources import ConversationSource
from hfchat.errors import UserError
from tests.data.chats import write_jsonl


def test_all_kinds_of_files_are_read(tmp_path):
    rows = [{"question": f"{i}+1?", "answer": str(i + 1)} for i in range(3)]
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "b.json").write_text(
        json.dumps([{**row, "question": f"b{row['question']}"} for row in rows], indent=1)
    )
    with (tmp_path / "c.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("question", "answer"), ("two\nlines?", "yes"), ("short",), ("c?", "d"), ("a", "b", "c")])
    pq.write_table(pa.Table.from_pylist([{"question": "p?", "answer": "q"}]), tmp_path / "d.parquet")
    (tmp_path / "hub").mkdir()
    write_jsonl(tmp_path / "hub" / "train.jsonl", {"question": "h?", "answer": "i"}, {"question": "j?", "answer": "k"})
    found = [
        list(ConversationSource.parse(source).rows())
        for source in (
            {"path": f"{tmp_path}/a*.jsonl.gz"},
            {"path": f"{tmp_path}/b.json"},
            {"path": f"{tmp_path}/c.csv"},
            {"path": f"{tmp_path}/d.parquet"},
            {"path": f"{tmp_path}/hub", "limit": 1},
        )
    ]
    questions = [[row.value["question"] for row in rows if not row.fault] for rows in found]
    assert questions == [["0+1?", "1+1?", "2+1?"], ["b0+1?", "b1+1?", "b2+1?"], ["two\nlines?", "c?"], ["p?"], ["h?"]]
    assert {row.place.rsplit("/", 1)[-1]: (row.value, row.fault) for rows in found for row in rows if row.fault} == {
        "c.csv (row 2)": ('["short"]', "has 1 fields, the header has 2"),
        "c.csv (row 4)": ('["a", "b", "c"]', "has 3 fields, the header has 2"),
    }
    assert [row.place for row in found[0]] == [f"{tmp_path}/a.jsonl.gz (row {i})" for i in (1, 2, 3)]


ROWS = [{"question": "Wie heißt du?\n- ч", "answer": "Jürgen, „Jo“; 你好"}, {"question": "Ü?", "answer": 'A "b"'}]


def as_csv(delimiter):
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ROWS[0], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue()


FILES = {
    "lines.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS),
    "blank.ndjson": "\n \n" + "\r\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS),
    "list.json": json.dumps(ROWS, ensure_ascii=False, indent=1).replace("\n", "\r\n"),
    "line.json": json.dumps(ROWS, ensure_ascii=False),
    "comma.csv": as_csv(","),
    "semicolon.csv": as_csv(";"),
    "excel.csv": "sep=;\r\n" + as_csv(";"),
    "tab.csv": as_csv("\t"),
    "tab.tsv": as_csv("\t"),
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", FILES)
def test_text_is_read_in_each_encoding_and_layout(name, encoding, tmp_path):
    with gzip.open(tmp_path / f"{name}.gz", "wb") as file:
        file.write(FILES[name].encode(encoding))
    source = ConversationSource.parse({"path": f"{tmp_path}/{name}.gz"})
    assert source.find_format() == "question-answer"
    assert [(row.value, row.fault) for row in source.rows()] == [(row, None) for row in ROWS]


PACK = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda content: pa.compress(content, "zstd", asbytes=True),
}


@pytest.mark.parametrize("ending", PACK)
@pytest.mark.parametrize("name", ["lines.jsonl", "list.json", "comma.csv"])
def test_files_may_be_packed_in_any_way(name, ending, tmp_path):
    packed = PACK[ending](FILES[name].encode())
    (tmp_path / f"{name}.{ending}").write_bytes(packed)
    (tmp_path / f"cut.{name}.{ending.upper()}").write_bytes(packed[: len(packed) // 2])
    assert [row.value for row in ConversationSource.parse({"path": f"{tmp_path}/{name}.{ending}"}).rows()] == ROWS
    *_, last = ConversationSource.parse({"path": f"{tmp_path}/cut.{name}.{ending.upper()}"}).rows()
    assert "the rest of the file cannot be read" in last.fault


def test_a_row_costs_itself_where_it_would_fill_the_memory(tmp_path):
    many = '{"question": "a?", "answer": "b", "x": [' + "[]," * 2_000_000 + "0]}"
    path = write_jsonl(tmp_path / "a.jsonl", ROWS[0], many, ROWS[1])
    assert [row.reason if row.fault else row.value for row in ConversationSource.parse({"path": path}).rows()] == [
        ROWS[0],
        "too_large",
        ROWS[1],
    ]
    # A text that all messages share is in the file once.
    said = [{"role": "user", "content": "x" * 1_000_000}] * 64
    for column in ("messages", "a.b"):
        pq.write_table(pa.Table.from_pylist([{column: said}, {column: said[:2]}]), tmp_path / "a.parquet")
        pool, before = pa.proxy_memory_pool(pa.default_memory_pool()), pa.default_memory_pool()
        pa.set_memory_pool(pool)
        try:
            large, small = ConversationSource.parse({"path": f"{tmp_path}/a.parquet"}).rows()
        finally:
            pa.set_memory_pool(before)
        assert (large.reason, large.fault) == ("too_large", "has 64,000,256 bytes, more than 20,000,000")
        assert small.value == {column: said[:2]}
        assert pool.max_memory() < 20_000_000


def test_bytes_that_are_not_utf_8_cost_a_row_only_where_they_are_used(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"question": "a?", "answer": "b", "id": "\xff"}\n{"question": "\xff"}\n')
    first, second = ConversationSource.parse({"path": f"{tmp_path}/a.jsonl"}).rows()
    assert first.value["question"] == "a?"
    assert second.value == {"question": "\udcff"}
    offsets = pa.array([0, 2, 4, 6], pa.int32()).buffers()[1]
    texts = pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(b"ab\xff\xfecd")])
    pq.write_table(pa.table({"question": texts}), tmp_path / "a.parquet")
    rows = list(ConversationSource.parse({"path": f"{tmp_path}/a.parquet"}).rows())
    assert [row.value for row in rows if not row.fault] == [{"question": "ab"}, {"question": "cd"}]
    assert rows[1].fault.startswith("UnicodeDecodeError")


def test_a_list_is_taken_apart_at_its_items(tmp_path):
    def read(text, name="a.json"):
        (tmp_path / name).write_text(text)
        return [row.value for row in ConversationSource.parse({"path": f"{tmp_path}/{name}"}).rows()]

    rows = [{"a": '],{"\\', "b": [1, [], {}]}, {"a": "\\"}, {"a": "\u2028"}, 7, None, "x,y"]
    for indent in (None, 0, 3):
        assert (
            read(json.dumps(rows, indent=indent)) == read(json.dumps(rows, indent=indent, ensure_ascii=False)) == rows
        )
    assert read("[]") == read(" [ \n ] \n") == []
    for broken in ("[1, 2", "[1, 2]]", "[1, 2] 3", "[1,, 2]", "[1, 2,]", '[1, "2]', "[[1, 2]", "[{]"):
        with pytest.raises(UserError, match=r"a\.json: not JSON"):
            read(broken)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz", "a.csv.gz", "a.parquet"])
def test_a_row_that_is_too_large_is_one_that_is_removed(name, tmp_path, monkeypatch):
    """Few bytes of a compressed file may fill any memory: what is read of such a row is bounded."""
    monkeypatch.setattr("hfchat.data.conversation_sources.MAX_ROW_BYTES", 1000)
    rows = [
        {"question": "1?", "answer": "2"},
        {"question": "3?", "answer": "0" * 100_000},
        {"question": "5?", "answer": "6"},
    ]
    if name == "a.parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    else:
        text = {
            "a.jsonl.gz": "".join(json.dumps(row) + "\n" for row in rows),
            "a.json.gz": json.dumps(rows),
            "a.csv.gz": "question,answer\n" + "".join(f"{row['question']},{row['answer']}\n" for row in rows),
        }[name]
        (tmp_path / name).write_bytes(gzip.compress(text.encode()))
    first, large, *more = ConversationSource.parse({"path": f"{tmp_path}/{name}"}).rows()
    assert first.value == rows[0]
    assert "more than 1,000" in large.fault
    assert len(str(large.value)) < 101_000
    # Where the next row of a CSV begins is in what was not read.
    assert [row.value for row in more] == ([] if name == "a.csv.gz" else rows[2:])
    assert large.reason == ("malformed" if name == "a.csv.gz" else "too_large")


@pytest.mark.parametrize("text", ["{}", "question,answer\n{}", "[{}"])
def test_no_line_of_a_bomb_is_whole_in_memory(text, tmp_path, monkeypatch):
    monkeypatch.setattr("hfchat.data.conversation_sources.MAX_ROW_BYTES", 1_000_000)
    path = tmp_path / ("a.csv.gz" if "," in text and "[" not in text else "a.json.gz")
    path.write_bytes(gzip.compress(text.replace("{}", '{"question": "' + "0" * 12_000_000).encode(), 1))
    tracemalloc.start()
    *_, row = ConversationSource.parse({"path": str(path)}).rows()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "more than" in row.fault
    assert peak < 8_000_000


def test_a_csv_whose_header_names_a_column_twice_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("question,answer,answer\n1,2,3\n")
    with pytest.raises(UserError, match=r"a.csv: the header has the column 'answer' more than once"):
        ConversationSource.parse({"path": f"{tmp_path}/a.csv"}).find_format()


def test_a_folder_in_another_encoding_is_read(tmp_path):
    (tmp_path / "train.csv").write_bytes(as_csv(";").encode("utf-16"))
    rows = [row.value for row in ConversationSource.parse({"path": str(tmp_path)}).rows()]
    assert rows == ROWS


def test_a_file_that_is_cut_off_costs_its_rest(tmp_path):
    letters = random.Random(0)
    rows = [{"question": f"{i} {letters.random()}?", "answer": str(letters.random())} for i in range(2000)]
    data = gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
    (tmp_path / "a.jsonl.gz").write_bytes(data[: len(data) // 2])
    *read, last = ConversationSource.parse({"path": f"{tmp_path}/a.jsonl.gz"}).rows()
    assert [row.value for row in read] == rows[: len(read)]
    assert 100 < len(read) < 2000
    assert "the rest of the file cannot be read" in last.fault
    assert last.place.endswith(f"a.jsonl.gz (row {len(read) + 1})")


def test_parallel_files_are_read_line_by_line(tmp_path):
    (tmp_path / "a.en").write_text("A dog.\n\nA cat.\n")
    with gzip.open(tmp_path / "a.de.gz", "wt") as file:
        file.write("Ein Hund.\n\nEine Katze.\n")
    (tmp_path / "a.en").write_bytes("A dog.\r\n\r\nA cat.\r\n".encode("utf-16"))
    source = ConversationSource.parse(
        {"path": f"{tmp_path}/a.en", "target_path": f"{tmp_path}/a.de.gz", "instruction": "Translate to German."}
    )
    assert source.find_format() == "parallel-text"
    pairs = [("A dog.", "Ein Hund."), ("", ""), ("A cat.", "Eine Katze.")]
    assert [row.value for row in source.rows()] == [{"source": english, "target": german} for english, german in pairs]
    (tmp_path / "a.en").write_text("A dog.\n")
    with pytest.raises(UserError, match=r"a.en has 1 lines and .*a.de.gz has 3; each line must have its translation"):
        list(source.rows())


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ({"license": "MIT"}, "each of sources: needs 'path'"),
        ({"path": "a.jsonl", "licence": "MIT"}, "unknown key 'licence'; did you mean 'license'"),
        ({"path": "a.jsonl", "revision": "main"}, "unknown key 'revision'"),
        ({"path": "a.jsonl", "format": "chatml"}, "format must be one of messages, sharegpt"),
        ({"path": "a.jsonl", "limit": "5"}, "'limit' must be a valid integer"),
        ({"path": "a.jsonl", "limit": 0}, "'limit' must be greater than or equal to 1"),
        ({"path": "a.jsonl", "format": "messages", "instruction": "Do."}, "'instruction' is a key of dialogsum"),
        ({"path": "a.jsonl", "format": "messages", "target_path": "b"}, "'target_path' is a key of parallel-text"),
        ({"path": "a.en", "target_path": "a.de"}, "parallel-text needs 'target_path' and 'instruction'"),
    ],
)
def test_a_bad_source_is_named(source, problem):
    with pytest.raises(ValueError, match=problem):
        ConversationSource.parse(source)


def test_what_cannot_be_read_is_named(tmp_path):
    def find_format(path):
        return ConversationSource.parse({"path": str(path)}).find_format()

    with pytest.raises(UserError, match=r"none.jsonl: no such file"):
        find_format(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match=r"no format has the columns text, id; rename"):
        find_format(write_jsonl(tmp_path / "a.jsonl", {"text": "x", "id": 1}))
    rows = ({"question": None, "answer": "b"}, "null", "{", {"question": "a?", "answer": "b"})
    assert find_format(write_jsonl(tmp_path / "nulls.jsonl", *rows)) == "question-answer"
    with pytest.raises(UserError, match=r"c.jsonl \(row 1\): not JSON: .*; no other row can be read either"):
        find_format(write_jsonl(tmp_path / "c.jsonl", "{", "x"))
    with pytest.raises(UserError, match="has no rows"):
        find_format(write_jsonl(tmp_path / "b.jsonl"))
    (tmp_path / "c.json").write_text("[{]")
    with pytest.raises(UserError, match=r"c.json: not JSON"):
        find_format(tmp_path / "c.json")
    with pytest.raises(UserError, match=r"a file must end in .jsonl"):
        find_format(tmp_path / "d.xlsx")
