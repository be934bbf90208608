import csv
import gzip
import json
import random

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
        list(ConversationSource(source).rows())
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


def test_a_file_that_is_cut_off_costs_its_rest(tmp_path):
    letters = random.Random(0)
    rows = [{"question": f"{i} {letters.random()}?", "answer": str(letters.random())} for i in range(2000)]
    data = gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
    (tmp_path / "a.jsonl.gz").write_bytes(data[: len(data) // 2])
    *read, last = ConversationSource({"path": f"{tmp_path}/a.jsonl.gz"}).rows()
    assert [row.value for row in read] == rows[: len(read)]
    assert 100 < len(read) < 2000
    assert "the rest of the file cannot be read" in last.fault
    assert last.place.endswith(f"a.jsonl.gz (row {len(read) + 1})")


def test_parallel_files_are_read_line_by_line(tmp_path):
    (tmp_path / "a.en").write_text("A dog.\n\nA cat.\n")
    with gzip.open(tmp_path / "a.de.gz", "wt") as file:
        file.write("Ein Hund.\n\nEine Katze.\n")
    source = ConversationSource(
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
        ({"license": "MIT"}, "must be a mapping with a 'path'"),
        ({"path": "a.jsonl", "licence": "MIT"}, "unknown key 'licence'; it takes format"),
        ({"path": "a.jsonl", "revision": "main"}, "unknown key 'revision'"),
        ({"path": "a.jsonl", "format": "chatml"}, "format must be one of messages, sharegpt"),
        ({"path": "a.jsonl", "limit": "5"}, "'limit' must be a int"),
        ({"path": "a.jsonl", "limit": 0}, "'limit' must be at least 1"),
        ({"path": "a.jsonl", "format": "messages", "instruction": "Do."}, "'instruction' is a key of dialogsum"),
        ({"path": "a.jsonl", "format": "messages", "target_path": "b"}, "'target_path' is a key of parallel-text"),
        ({"path": "a.en", "target_path": "a.de"}, "parallel-text needs 'target_path' and 'instruction'"),
    ],
)
def test_a_bad_source_is_named(source, problem):
    with pytest.raises(ValueError, match=problem):
        ConversationSource(source)


def test_what_cannot_be_read_is_named(tmp_path):
    def find_format(path):
        return ConversationSource({"path": str(path)}).find_format()

    with pytest.raises(UserError, match=r"none.jsonl: no such file"):
        find_format(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match=r"no format has the columns text, id; rename"):
        find_format(write_jsonl(tmp_path / "a.jsonl", {"text": "x", "id": 1}))
    with pytest.raises(UserError, match="has no rows"):
        find_format(write_jsonl(tmp_path / "b.jsonl"))
    (tmp_path / "c.json").write_text("[{]")
    with pytest.raises(UserError, match=r"c.json: not JSON"):
        find_format(tmp_path / "c.json")
    with pytest.raises(UserError, match=r"a file must end in .jsonl"):
        find_format(tmp_path / "d.xlsx")
