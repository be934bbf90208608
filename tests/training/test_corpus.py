"""What is trained on and what is validated on never meet, however many processes and files there are."""

import contextlib
import itertools
import json
import re
from collections import Counter

import pytest
from datasets import Dataset

from hfchat.training.corpus import load_corpus
from hfchat.training.pretraining import PretrainArguments

TEXTS = [f"document {i} ends here" for i in range(48)]


@pytest.fixture
def share_of(tokenizer, tmp_path, monkeypatch):
    """The corpus that one of several processes streams from so many files of equal length, the first held out."""

    def share(world: int, process: int, files: int, held_out: int):
        documents = Dataset.from_dict({"text": TEXTS}).to_iterable_dataset(num_shards=files)
        monkeypatch.setattr("hfchat.training.corpus.load_split", lambda *_, **__: documents)
        monkeypatch.setattr("hfchat.training.corpus.has_split", lambda *_, **__: False)
        return opened(tmp_path, world, process, monkeypatch, tokenizer, held_out)

    return share


def opened(folder, world, process, monkeypatch, tokenizer, held_out, name="in memory"):
    args = PretrainArguments(
        output_dir=str(folder / "out"), tokenizer_name="that of the test", dataset_name=str(name), streaming=True,
        validation_documents=held_out, block_size=16, max_steps=1, use_cpu=True, bf16=False,
    )  # fmt: skip
    with monkeypatch.context() as patch:  # only `accelerate launch` starts several
        patch.setattr(PretrainArguments, "process_index", process)
        patch.setattr(PretrainArguments, "world_size", world)
        patch.setattr(PretrainArguments, "main_process_first", lambda *_, **__: contextlib.nullcontext())
        return load_corpus(args, tokenizer, folder / f"tokens-{held_out}").train


def numbers(tokenizer, blocks):
    """Those of the documents that the blocks hold, one after the other."""
    ids = [token for block in blocks for token in block["input_ids"].tolist()]
    return [int(number) for number in re.findall(r"document (\d+) ends here", tokenizer.decode(ids))]


def one_pass(tokenizer, stream):
    """The numbers of the documents that are read until one comes again; the last waits for a block to be full."""
    found = numbers(tokenizer, itertools.islice(stream, 60))
    return found[: next(i for i in range(1, len(found)) if found[i] in found[:i])]


@pytest.mark.parametrize("held_out", [5, 13])
@pytest.mark.parametrize("files", [1, 3, 8])
@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
def test_each_document_is_trained_on_once_or_held_out(tokenizer, share_of, world, files, held_out):
    """13 are more than the first two of 8 files hold: of 8 processes, one would be left without a document."""
    seen = Counter()
    for process in range(world):
        seen.update(one_pass(tokenizer, share_of(world, process, files, held_out)))
    assert seen == Counter(range(held_out, len(TEXTS)))


@pytest.mark.parametrize(("world", "files", "held_out"), [(1, 1, 5), (2, 8, 5), (3, 8, 5), (8, 8, 13)])
def test_a_share_is_resumed_where_it_was_saved(tmp_path, share_of, world, files, held_out):
    def blocks(stream, count):
        return [block["input_ids"].tolist() for block in itertools.islice(stream, count)]

    for process in {0, world - 1}:
        undisturbed = blocks(share_of(world, process, files, held_out), 30)
        for trained in (1, 2, 17):
            first = share_of(world, process, files, held_out)
            blocks(first, trained + 2)
            first.save(tmp_path / "place.json", trained)
            resumed = share_of(world, process, files, held_out)
            resumed.resume(tmp_path / "place.json")
            assert blocks(resumed, 30 - trained) == undisturbed[trained:]


def test_files_are_shared_out_too(tokenizer, tmp_path, monkeypatch):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for file in range(4):
        rows = [json.dumps({"text": text}) + "\n" for text in TEXTS[file * 12 : (file + 1) * 12]]
        (folder / f"train-{file}.jsonl").write_text("".join(rows))
    shares = [opened(tmp_path, 2, process, monkeypatch, tokenizer, 5, folder) for process in range(2)]
    assert [share.documents.num_shards for share in shares] == [2, 2], "each reads its own files"
    seen = Counter(number for share in shares for number in one_pass(tokenizer, share))
    assert seen == Counter(range(5, 48))


def test_what_is_held_out_is_not_trained_on_where_it_is_repeated(tokenizer, share_of, monkeypatch):
    monkeypatch.setattr("tests.training.test_corpus.TEXTS", [*TEXTS, *TEXTS[:3]])
    assert min(numbers(tokenizer, itertools.islice(share_of(1, 0, 1, 5), 200))) == 5
