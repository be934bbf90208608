import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hfchat.data.sources import Source
from hfchat.errors import UserError
from hfchat.storage import as_path
from tests.data.reading import read_all


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"license": "MIT"}, "each of sources: needs 'path'"),
        ("7", "each of sources: must be a mapping"),
        (
            {"path": "a.txt", "text_key": "content"},
            "source a.txt: unknown key 'text_key'; it takes path, kind, license",
        ),
        ({"path": "a.txt", "seperator": "x"}, "source a.txt: unknown key 'seperator'; did you mean 'separator'"),
        ({"path": "installed-docs", "license": "MIT"}, "unknown key 'license'"),
        ({"path": "crawl/*.gz"}, "its name does not say what it is; give a 'kind': one of installed-docs"),
        ({"path": "s3://bucket/data"}, "its name does not say what it is"),
        ({"path": "a.pdf", "kind": "pdf"}, "kind must be one of installed-docs, text, gutenberg"),
        ({"path": "a.xml", "namespaces": 0}, "'namespaces' must be a valid list, not 0"),
        ({"path": "a.warc", "timeout": "long"}, "'timeout' must be a valid number, not 'long'"),
        ({"path": "a.xml", "namespaces": ["0"]}, "'namespaces.0' must be a valid integer, not '0'"),
        ({"path": "a.txt", "encoding": "utf-99"}, "'encoding': unknown encoding: utf-99"),
    ],
)
def test_a_source_that_cannot_be_read_is_refused(value, problem):
    with pytest.raises(ValueError, match=problem):
        Source.parse(value)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("installed-docs", "installed-docs"),
        ("a/*.txt", "text"),
        ("a.md.gz", "text"),
        ("a.jsonl.zst", "json-lines"),
        ("s3://bucket/*.parquet", "parquet"),
        ("s3://commoncrawl/x/*.warc.gz", "warc"),
        ("x.warc.wet.gz", "wet"),
        ("enwiki-latest-pages-articles.xml.bz2", "mediawiki"),
        ("wikimedia/wikipedia", "hub"),
        ("HuggingFaceFW/fineweb-2.5", "hub"),
    ],
)
def test_the_kind_is_seen_from_the_name(path, kind):
    assert Source.parse({"path": path}).kind == kind
    assert Source.parse(json.dumps({"path": path})).kind == kind


@pytest.mark.parametrize("path", ["{}/*.txt", "{}/none.txt", "{}/none/a.jsonl"])
def test_missing_files_are_named(tmp_path, path):
    path = path.format(tmp_path)
    for method in (Source.parse({"path": path}).describe, lambda: Source.parse({"path": path}).step(None)):
        with pytest.raises(UserError, match="no such file") as error:
            method()
        assert path in str(error.value)


def test_a_source_counts_by_its_content(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_text("two")
    source = Source.parse({"path": f"{tmp_path}/*.txt", "license": "MIT"})
    before = source.describe()
    assert before["licenses"] == ["MIT"]
    assert source.describe() == before
    (tmp_path / "b.txt").write_text("three")
    assert source.describe()["sha256"] != before["sha256"]


def test_a_hub_source_counts_by_its_id_and_revision():
    pinned = Source.parse({"path": "wikimedia/wikipedia", "revision": "abc"}).describe()
    assert pinned["sha256"] == "hub:wikimedia/wikipedia@abc"
    assert Source.parse({"path": "wikimedia/wikipedia"}).describe()["sha256"].endswith("@main")


def test_provenance_is_the_source_s_where_a_record_has_none(tmp_path):
    rows = [
        {"text": "one", "id": "x1", "url": "https://a.org/1", "license": "CC0-1.0", "date": "2024"},
        {"text": "two"},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"path": f"{tmp_path}/a.jsonl", "name": "mine", "license": "MIT", "url": "https://b.org"}
    first, second = read_all(source, tmp_path).documents
    assert first.id == "x1"
    assert first.metadata == {"source": "mine", "license": "CC0-1.0", "url": "https://a.org/1", "date": "2024"}
    assert second.id == "mine/a.jsonl/1"
    assert second.metadata == {"source": "mine", "license": "MIT", "url": "https://b.org"}


def write_shards(folder: Path, files: int, rows: int = 7) -> None:
    for file in range(files):
        lines = [json.dumps({"text": f"document {row} of file {file}"}) for row in range(rows)]
        (folder / f"{file}.jsonl").write_text("\n".join([*lines, "{broken"]))


@pytest.mark.parametrize("files", [1, 2, 3, 5])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
def test_tasks_share_files_or_their_records_and_miss_none(tmp_path, files, world_size):
    write_shards(tmp_path, files)
    found = read_all({"path": f"{tmp_path}/*.jsonl"}, tmp_path / "out", world_size)
    assert sorted(found.texts) == sorted(f"document {row} of file {file}" for row in range(7) for file in range(files))
    assert found.reasons == ["unreadable"] * files


def test_one_large_file_keeps_all_tasks_busy(tmp_path):
    write_shards(tmp_path, 1, rows=40)
    source = Source.parse({"path": f"{tmp_path}/0.jsonl"})
    shares = [len(list(source.reader(1000).run(None, rank, 4))) for rank in range(4)]
    assert min(shares) >= 10


def test_a_folder_of_a_dataset_is_read_like_one_of_the_hub(tmp_path):
    rows = [{"text": f"text {i}", "id": str(i), "url": f"https://a.org/{i}", "title": "T"} for i in range(10)]
    (tmp_path / "dataset").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "dataset" / "train.parquet")
    source = {"path": str(tmp_path / "dataset"), "name": "wiki", "license": "CC-BY-SA-3.0"}
    found = read_all(source, tmp_path / "out", world_size=3)
    assert sorted(found.texts) == sorted(row["text"] for row in rows)
    assert found.documents[0].id == "wiki/0"
    assert found.documents[0].metadata["url"] == "https://a.org/0"
    limited = read_all({**source, "limit": 4}, tmp_path / "limited", world_size=3)
    assert len(limited.documents) == 4


def test_a_row_of_a_dataset_without_text_is_removed(tmp_path):
    rows = [{"text": "one"}, {"text": ""}, {"text": None}, {"text": "two"}]
    (tmp_path / "dataset").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "dataset" / "train.parquet")
    found = read_all({"path": str(tmp_path / "dataset"), "name": "d"}, tmp_path / "out", world_size=2)
    assert sorted(found.texts) == ["one", "two"]
    assert found.reasons == ["empty"] * 2
    assert found.read == 4


@pytest.mark.parametrize(
    ("keys", "problem"),
    [({"text_key": "body"}, r"no column 'body', only \['text'\]"), ({"split": "best"}, "Bad split: best")],
)
def test_what_a_dataset_does_not_have_is_named(tmp_path, keys, problem):
    (tmp_path / "dataset").mkdir()
    pq.write_table(pa.Table.from_pylist([{"text": "one"}]), tmp_path / "dataset" / "train.parquet")
    with pytest.raises(UserError, match=problem):
        read_all({"path": str(tmp_path / "dataset"), **keys}, tmp_path / "out")


def test_a_dataset_that_cannot_be_had_is_named(tmp_path):
    with pytest.raises(UserError, match="sources: nobody/nothing: "):
        read_all({"path": "nobody/nothing"}, tmp_path / "out")


def test_a_storage_that_there_is_not_is_named():
    with pytest.raises(UserError, match=r"sources: s4://a/b\.txt: .*Protocol not known: s4"):
        Source.parse({"path": "s4://a/b.txt"}).describe()


def test_remote_files_are_found_by_their_pattern(bucket, tmp_path):
    for name in ("a.jsonl", "b.jsonl", "c.txt"):
        as_path(f"{bucket}/x/y/{name}").write_text(json.dumps({"text": name}))
    source = {"path": f"{bucket}/x/*/*.jsonl", "name": "s"}
    assert sorted(read_all(source, tmp_path).texts) == ["a.jsonl", "b.jsonl"]
    before = Source.parse(source).describe()["sha256"]
    as_path(f"{bucket}/x/y/b.jsonl").write_text(json.dumps({"text": "changed"}))
    assert Source.parse(source).describe()["sha256"] != before


def test_options_of_the_storage_reach_it(tmp_path, monkeypatch):
    import fsspec

    asked = {}

    class Recording(fsspec.get_filesystem_class("memory")):
        protocol = "recording"

        @classmethod
        def _strip_protocol(cls, path):
            return super()._strip_protocol(path.replace("recording://", "memory://"))

        def __init__(self, **options):
            asked.update(options)
            super().__init__(**options)

    fsspec.register_implementation("recording", Recording, clobber=True)
    as_path("memory://options/b.txt").write_text("in memory")
    source = {"path": "recording://options/*.txt", "name": "m", "storage_options": {"anon": True}}
    assert read_all(source, tmp_path).texts == ["in memory"]
    assert asked == {"anon": True}
    with pytest.raises(ValueError, match="'storage_options' must be a valid dictionary"):
        Source.parse({"path": "s3://a/b.txt", "storage_options": "anon"})
