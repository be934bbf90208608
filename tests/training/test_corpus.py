"""What is trained on and what is validated on never meet, however many processes and files there are."""

import contextlib
import itertools
import json
import re
from collections import Counter

import pytest
from datasets import Dataset

from hfchat.errors import UserError
from hfchat.training.corpus import load_corpus
from hfchat.training.pretrain_arguments import PretrainArguments

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


@pytest.fixture
def load(tokenizer, tmp_path):
    """Loads a file as the recipe does."""

    def load(file, streaming=False, **settings):
        args = PretrainArguments(
            output_dir=str(tmp_path / "out"), tokenizer_name="that of the test", dataset_name=str(file), use_cpu=True,
            streaming=streaming, validation_documents=3, block_size=16, max_steps=1, bf16=False, **settings,
        )  # fmt: skip
        return load_corpus(args, tokenizer, tmp_path / "tokens")

    return load


ENCODINGS = {"utf-8": b"", "utf-8-sig": b"", "utf-16": b"", "utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}


def written(folder, kind, encoding, newline):
    """A file of `TEXTS` of a kind."""
    file = folder / f"texts.{kind}"
    if kind == "parquet":
        Dataset.from_dict({"text": TEXTS}).to_parquet(file)
        return file
    rows = {
        "txt": newline.join(f"{text}{newline}" for text in TEXTS),  # with an empty line between two
        "jsonl": "".join(json.dumps({"text": text}) + newline for text in TEXTS),
        "csv": "".join(text + newline for text in ["text", *TEXTS]),
    }
    file.write_bytes(ENCODINGS[encoding] + rows[kind].encode(encoding))
    return file


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("kind", "encoding", "newline"),
    [
        ("txt", "utf-8", "\n"), ("txt", "utf-8-sig", "\r\n"), ("txt", "utf-16", "\r\n"), ("txt", "utf-16-be", "\n"),
        ("jsonl", "utf-8", "\n"), ("jsonl", "utf-8-sig", "\r\n"), ("jsonl", "utf-16-le", "\n"),
        ("csv", "utf-8-sig", "\r\n"), ("parquet", "", ""),
    ],
)  # fmt: skip
def test_a_file_of_texts_is_read_and_its_first_documents_are_held_out(
    tokenizer, tmp_path, load, kind, encoding, newline, streaming
):
    corpus = load(written(tmp_path, kind, encoding, newline), streaming)
    separator = tokenizer.bos_token
    assert tokenizer.decode(corpus.validation.tokens) == "".join(f"{separator}{text}{separator}" for text in TEXTS[:3])
    if streaming:
        assert one_pass(tokenizer, corpus.train) == list(range(3, len(TEXTS)))
        ids = next(iter(corpus.train))["input_ids"]
        assert tokenizer.decode(ids).startswith(f"{separator}{TEXTS[3]}{separator}"[:20])
    else:
        assert tokenizer.decode(corpus.train.tokens) == "".join(f"{separator}{text}{separator}" for text in TEXTS[3:])


def test_a_txt_file_without_empty_lines_has_a_document_in_each_line(tokenizer, tmp_path, load):
    file = tmp_path / "lines.txt"
    file.write_text("\n".join(TEXTS))
    corpus = load(file)
    assert len(corpus.validation.starts) == 3
    assert len(corpus.train.starts) == len(TEXTS) - 3


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_without_a_text_are_left_out(tokenizer, tmp_path, load, capsys, streaming):
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in [TEXTS[0], None, *TEXTS[1:], None]))
    corpus = load(file, streaming)
    assert len(corpus.validation.starts) == 3
    if streaming:
        assert one_pass(tokenizer, corpus.train) == list(range(3, len(TEXTS)))
    else:
        assert len(corpus.train.starts) == len(TEXTS) - 3
        assert "2 of 50 rows have nothing in the column 'text' (the first is row 1" in capsys.readouterr().out


@pytest.mark.parametrize("streaming", [False, True])
def test_a_column_without_texts_is_refused(tmp_path, load, streaming):
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text, "id": i}) + "\n" for i, text in enumerate(TEXTS)))
    with pytest.raises(UserError, match=r"texts\.jsonl: the column 'id' must hold texts, not int"):
        load(file, streaming, text_column="id")
