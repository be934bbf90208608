import json

import pytest

from hfchat.data.sources import Source
from hfchat.errors import UserError


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"license": "MIT"}, "must be a mapping with a 'path'"),
        ("7", "must be a mapping with a 'path'"),
        ({"path": "a.txt", "text_key": "content"}, "source a.txt: unknown key 'text_key'; it takes license, name"),
        ({"path": "installed-docs", "license": "MIT"}, "unknown key 'license'"),
    ],
)
def test_a_source_that_cannot_be_read_is_refused(value, problem):
    with pytest.raises(ValueError, match=problem):
        Source(value)


def test_a_source_may_come_from_the_command_line_as_json():
    assert Source('{"path": "x/*.jsonl", "license": "MIT"}').kind == ".jsonl"


def test_missing_files_are_named(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        Source({"path": str(tmp_path / "*.txt")}).describe()


def test_every_kind_of_file_gives_documents_with_provenance(tmp_path):
    from datasets import Dataset

    (tmp_path / "a.txt").write_text("first\n---\nsecond")
    (tmp_path / "b.jsonl").write_text(json.dumps({"content": "third"}) + "\n")
    Dataset.from_dict({"text": ["fourth"]}).to_parquet(tmp_path / "c.parquet")
    sources = [
        Source({"path": str(tmp_path / "*.txt"), "separator": "\n---\n", "license": "MIT", "name": "mine"}),
        Source({"path": str(tmp_path / "b.jsonl"), "text_key": "content", "license": "MIT", "url": "https://x.org"}),
        Source({"path": str(tmp_path / "c.parquet")}),
    ]
    documents = [document for source in sources for document in source.reader().run()]
    assert [document.text for document in documents] == ["first", "second", "third", "fourth"]
    assert documents[0].metadata["source"] == "mine"
    assert documents[2].metadata["url"] == "https://x.org"
    assert [document.metadata["license"] for document in documents] == ["MIT", "MIT", "MIT", "unknown"]


def test_a_hub_dataset_is_known_by_its_id_and_revision():
    described = Source({"path": "wikimedia/wikipedia", "config": "20231101.en", "revision": "abc"}).describe()
    assert described["sha256"] == "hub:wikimedia/wikipedia@abc"
