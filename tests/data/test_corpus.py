import os
from pathlib import Path

import pytest
from datasets import load_dataset

from hfchat.data.corpus import COLUMNS, build_corpus
from hfchat.data.sources import Source
from hfchat.errors import UserError

OPTIONS = {"min_characters": 20, "validation_fraction": 0.2, "tasks": 3, "workers": 1}


def document(i: int) -> str:
    return f"Document {i} has a text of its own, which no other document has: {i * i}."


@pytest.fixture
def texts(tmp_path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(40):
        (folder / f"{i:02d}.txt").write_text(document(i))
    (folder / "copy-a.txt").write_text(document(7))
    (folder / "copy-b.txt").write_text(document(7) + "  \n")  # a copy once it is cleaned
    (folder / "short.txt").write_text("Short.")
    return folder


def build(texts, folder, **options):
    return build_corpus([Source({"path": f"{texts}/*.txt", "license": "CC0-1.0"})], folder, **OPTIONS | options)


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_every_document_is_kept_or_removed_with_its_reason(texts, tmp_path):
    counts = build(texts, tmp_path / "out")
    assert counts["read"] == 43
    assert counts["removed"] == {"exact_duplicate": 2, "too_short": 1}
    assert sum(counts["documents"].values()) == 40
    corpus = load_dataset(str(tmp_path / "out"))
    assert corpus["train"].column_names == COLUMNS
    kept = [*corpus["train"]["text"], *corpus["validation"]["text"]]
    assert sorted(kept) == sorted(document(i) for i in range(40))
    assert len({*corpus["train"]["id"], *corpus["validation"]["id"]}) == 40
    removed = load_dataset("parquet", data_files=f"{tmp_path}/out/removed/*/*.parquet", split="train")
    assert sorted(removed["reason"]) == ["exact_duplicate", "exact_duplicate", "too_short"]
    assert sum(map(len, (text.encode() for text in corpus["train"]["text"]))) == counts["bytes"]["train"]


def test_the_output_does_not_depend_on_the_number_of_workers(texts, tmp_path):
    build(texts, tmp_path / "one")
    build(texts, tmp_path / "two", workers=2)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_the_split_is_stable_when_documents_are_added(texts, tmp_path):
    build(texts, tmp_path / "before")
    for i in range(100, 140):
        (texts / f"{i}.txt").write_text(document(i))
    build(texts, tmp_path / "after")
    before, after = (
        {
            text: split
            for split in ("train", "validation")
            for text in load_dataset(str(tmp_path / name))[split]["text"]
        }
        for name in ("before", "after")
    )
    assert len(after) == 80
    assert {text: after[text] for text in before} == before


def test_an_interrupted_build_goes_on_and_ends_the_same(texts, tmp_path, monkeypatch):
    build(texts, tmp_path / "whole")
    from hfchat.data import corpus

    execute, steps = corpus._execute, []

    def stop_at_the_second(description, *args):
        steps.append(description)
        if len(steps) == 2:
            raise KeyboardInterrupt
        execute(description, *args)

    monkeypatch.setattr(corpus, "_execute", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        build(texts, tmp_path / "out")
    monkeypatch.undo()
    filtered = sorted((tmp_path / "out" / "scratch" / "filtered").iterdir())
    times = [os.stat(file).st_mtime_ns for file in filtered]
    assert filtered
    monkeypatch.setattr(corpus.shutil, "rmtree", lambda path: None)
    build(texts, tmp_path / "out")
    assert [os.stat(file).st_mtime_ns for file in filtered] == times, "finished tasks were done again"
    monkeypatch.undo()
    corpus.shutil.rmtree(tmp_path / "out" / "scratch")
    assert files(tmp_path / "whole") == files(tmp_path / "out")


def test_an_empty_split_is_an_error_that_says_what_to_do(texts, tmp_path):
    with pytest.raises(UserError, match=r"the validation split came out empty \(43 documents read"):
        build(texts, tmp_path / "out", validation_fraction=1e-9)
