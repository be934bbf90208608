import gzip
import json
import shutil

import pytest
from datasets import Dataset, IterableDataset

from hfchat.dataset import has_split, learned_rows, load_split, load_text_splits
from hfchat.errors import UserError


def test_a_corpus_opens_by_split(corpus):
    assert len(load_split(str(corpus), "train", "text")) == 54
    assert len(load_split(str(corpus), "validation", "text")) == 6


def write(file, count=3):
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps({"text": f"{file.stem} {i}"}) + "\n" for i in range(count)))
    return str(file)


@pytest.fixture
def configured(tmp_path):
    """A folder of two configurations, the second of which has a validation split."""
    folder = tmp_path / "configured"
    for name in ("a", "b", "c"):
        write(folder / f"{name}.jsonl")
    (folder / "README.md").write_text(
        "---\nconfigs:\n"
        "- {config_name: one, data_files: [{split: train, path: a.jsonl}]}\n"
        "- {config_name: two, data_files: [{split: train, path: b.jsonl}, {split: validation, path: c.jsonl}]}\n---\n"
    )
    return str(folder)


def test_a_file_opens_whole(tmp_path):
    file = write(tmp_path / "rows.jsonl")
    assert len(load_split(file, "validation", "text")) == 3
    assert not has_split(file, "validation")


LINES = "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in ("Zürich, 你好", "a;b", "c")) + "\n"
CSV = 'text;n\r\nZürich, 你好;1\r\n"a;b";2\r\nc;3\r\n'
PARAGRAPHS = "Zürich, 你好\r\n\r\na;b\r\n \r\n\r\nc"


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", LINES),
        ("a.ndjson", LINES),
        ("a.json", f"[{','.join(LINES.splitlines())}]"),
        ("a.csv", CSV),
        ("a.csv", CSV.replace(";", "\t").replace("a\tb", "a;b")),
        ("a.tsv", CSV.replace(";", "\t").replace("a\tb", "a;b")),
        ("a.csv.gz", CSV),
        ("a.txt", PARAGRAPHS),
        ("a.txt", "Zürich, 你好\na;b\nc\n"),
        ("train.csv", CSV),
        ("train.jsonl", LINES),
    ],
)
def test_text_is_read_in_each_encoding_and_layout(name, content, encoding, streaming, tmp_path):
    path = tmp_path / name
    content = content.encode(encoding)
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    rows = load_split(str(tmp_path if name.startswith("train") else path), "train", "text", streaming=streaming)
    assert [row["text"] for row in rows] == ["Zürich, 你好", "a;b", "c"]
    path.write_bytes(gzip.compress(content * 2) if name.endswith(".gz") else content.replace(b"c", b"d"))
    if not name.endswith(".gz"):
        rows = load_split(str(tmp_path if name.startswith("train") else path), "train", "text", streaming=streaming)
        assert [row["text"] for row in rows][-1] == "d"


def test_rows_without_a_text_are_counted_and_left_out(tmp_path, capsys):
    rows = [*({"text": f"Text {i}."} for i in range(30)), {"text": None}, {"text": "Last."}, {"text": None}]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train, validation = load_text_splits(str(file), "text")
    assert (len(train), len(validation)) == (28, 3)
    assert [*validation["text"], *train["text"]] == [row["text"] for row in rows if row["text"]]
    assert "2 of 33 rows have nothing in the column 'text' (the first is row 30," in capsys.readouterr().out
    file.write_text('{"text": null}\n{"text": null}\n')
    with pytest.raises(UserError, match=r"a.jsonl: the column 'text' has no text in any of 2 rows"):
        load_text_splits(str(file), "text")
    for value in ("7", '["a"]', '{"a": 1}'):
        file.write_text(f'{{"text": {value}}}\n')
        with pytest.raises(UserError, match=r"a.jsonl: the column 'text' must hold texts, not "):
            load_text_splits(str(file), "text")


def test_a_damaged_file_is_one_line(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(b"no gzip")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "c.txt").write_bytes(b"Z\xfcrich\n")
    (tmp_path / "d.csv").write_bytes("text;n\n".encode("utf-16"))
    for name in "a.jsonl.gz", "b.txt", "c.txt", "d.csv":
        with pytest.raises(UserError, match=f"dataset_name .*{name}: ") as raised:
            load_split(str(tmp_path / name), "train", "text")
        assert "\n" not in str(raised.value)


def test_a_stream_has_the_rows_of_the_dataset(corpus):
    stream = load_split(str(corpus), "validation", "text", streaming=True)
    assert isinstance(stream, IterableDataset)
    assert [row["text"] for row in stream] == load_split(str(corpus), "validation", "text")["text"][:]


@pytest.mark.parametrize("streaming", [False, True])
def test_one_configuration_of_several_is_taken(configured, streaming):
    def first(split, config_name):
        return next(iter(load_split(configured, split, "text", config_name=config_name, streaming=streaming)))["text"]

    assert first("train", "one") == "a 0"
    assert first("train", "two") == "b 0"
    assert first("validation", "two") == "c 0"


def test_splits_are_those_of_the_card_or_of_the_files_names(corpus, configured, tmp_path):
    assert has_split(str(corpus), "validation")
    assert not has_split(str(corpus), "test")
    assert has_split(configured, "validation", config_name="two")
    assert not has_split(configured, "validation", config_name="one")
    for name in ("train", "validation"):
        write(tmp_path / "named" / f"{name}.jsonl")
    assert has_split(str(tmp_path / "named"), "validation")
    write(tmp_path / "unnamed" / "rows.jsonl")
    assert has_split(str(tmp_path / "unnamed"), "train")
    assert not has_split(str(tmp_path / "unnamed"), "validation")


def test_a_dataset_whose_splits_are_not_known_is_named(configured, tmp_path):
    with pytest.raises(UserError, match="a/b/corpus: no such file or folder"):
        has_split("a/b/corpus", "train")
    with pytest.raises(
        UserError, match=r"configured: cannot be loaded: .* dataset_config_name is not set.*'one', 'two'"
    ):
        has_split(configured, "train")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match=r"nothing: cannot be loaded: .*any data files"):
        has_split(str(tmp_path / "nothing"), "train")


@pytest.mark.parametrize("streaming", [False, True])
def test_what_cannot_be_read_is_one_line(configured, tmp_path, streaming):
    def fails_with(problem, name, **kwargs):
        with pytest.raises(UserError, match=problem) as raised:
            load_split(str(name), "train", "text", streaming=streaming, **kwargs)
        assert "\n" not in str(raised.value)

    fails_with("cannot load split 'train': .* dataset_config_name is not set.*'one', 'two'", configured)
    fails_with("cannot load split 'train': .*'three' not found.*'one', 'two'", configured, config_name="three")
    (tmp_path / "cut.jsonl").write_text('{"text": "a"}\n{"text": ')
    fails_with("cannot load split 'train': JSON parse error", tmp_path / "cut.jsonl")
    write(tmp_path / "rows" / "train.jsonl", count=0)
    fails_with("cannot load split 'train': its files have no rows", tmp_path / "rows")
    Dataset.from_dict({"text": [], "id": []}).to_parquet(tmp_path / "empty.parquet")
    fails_with("split 'train'(: .* no data| is empty)", tmp_path / "empty.parquet")
    Dataset.from_dict({"content": ["a"]}).to_parquet(tmp_path / "other.parquet")
    fails_with(r"has no column 'text', only \['content'\]", tmp_path / "other.parquet")


def test_what_is_missing_is_named(corpus, tmp_path):
    with pytest.raises(UserError, match=r"a/b/corpus: no such file or folder; a corpus is made by .*prepare_data.py"):
        load_split("a/b/corpus", "train", "text")
    with pytest.raises(UserError, match="cannot load split 'test'"):
        load_split(str(corpus), "test", "text")
    with pytest.raises(UserError, match="has no column 'content', only"):
        load_split(str(corpus), "train", "content")
    file = tmp_path / "rows.docx"
    file.touch()
    with pytest.raises(UserError, match=r"must be one of \.jsonl"):
        load_split(str(file), "train", "text")


def test_rows_changed_in_place_are_seen(corpus, tmp_path):
    folder = shutil.copytree(corpus, tmp_path / "corpus")
    assert len(load_split(str(folder), "validation", "text")) == 6
    Dataset.from_dict({"text": ["changed"]}).to_parquet(folder / "data" / "validation-00000.parquet")
    assert load_split(str(folder), "validation", "text")["text"] == ["changed"]


@pytest.mark.parametrize("column", ["messages", "chosen", "label"])
def test_missing_conversations_are_no_missing_corpus(column):
    with pytest.raises(UserError, match=r"mine/pairs\.jsonl: no such file or folder$"):
        load_split("mine/pairs.jsonl", "train", column)


def test_rows_that_are_learned_and_measured_are_found():
    assert learned_rows([[1, 2], [3]], [[1], [2, 3]]) == []
    assert learned_rows([[1, 2], [3]], [[1], [3], [1, 2]]) == [1, 2]
