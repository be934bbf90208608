import json

import pytest

from hfchat.dataset import load_split
from hfchat.errors import UserError


def test_a_corpus_opens_by_split(corpus):
    assert len(load_split(str(corpus), "train", "text")) == 54
    assert len(load_split(str(corpus), "validation", "text")) == 6


def test_a_file_opens_whole(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps({"text": str(i)}) for i in range(3)))
    assert len(load_split(str(file), "validation", "text")) == 3


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
    import shutil

    from datasets import Dataset

    folder = shutil.copytree(corpus, tmp_path / "corpus")
    assert len(load_split(str(folder), "validation", "text")) == 6
    Dataset.from_dict({"text": ["changed"]}).to_parquet(folder / "data" / "validation-00000.parquet")
    assert load_split(str(folder), "validation", "text")["text"] == ["changed"]
