import dataclasses
import json

import pytest
from datasets import Dataset
from tokenizers import normalizers

from hfchat.tokenization.bpe import train_bpe
from hfchat.tokenization.report import NAME, describe, visible, write_report
from hfchat.tokenization.sampling import TextSample
from tests.conftest import TEXTS

VALIDATION = Dataset.from_dict({"text": ["The recipe reads.", "Das Rezept liest."], "language": ["en", "de"]})


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    folder = tmp_path_factory.mktemp("other")
    train_bpe(["only bytes"], 320).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def report(tokenizer, other):
    sample = TextSample(Dataset.from_dict({"text": TEXTS}), "text", 10**6, 0)
    return describe(tokenizer, VALIDATION, "text", sample, [other, "nobody/nothing", "pypi:missing"])


def test_texts_are_compared_by_corpus_language_and_code(report, tokenizer, other):
    corpus, languages, code = report.groups.values()
    assert [row.name for row in corpus] == ["validation split", "validation split, de", "validation split, en"]
    assert {"German", "Chinese", "Arabic"} < {row.name for row in languages}
    assert {"Python", "SQL"} < {row.name for row in code}
    english = corpus[2]
    assert english.bytes == 17
    assert english.bytes_per_token[NAME] == 17 / len(
        tokenizer("The recipe reads.", add_special_tokens=False).input_ids
    )
    assert english.bytes_per_token[NAME] > english.bytes_per_token[other] > 0.99


def test_what_is_not_found_is_named(report, other):
    assert report.not_found == ["nobody/nothing", "pypi:missing"]
    assert list(report.tokenizers) == [NAME, other]


def test_use_of_the_vocabulary(report, tokenizer):
    plain = len(tokenizer) - report.special_tokens
    assert report.used_tokens + report.unused_count == plain
    assert "é" not in "".join(TEXTS)
    assert 0 < report.used_tokens < plain - 100  # most bytes do not occur
    assert len(report.longest[0]) >= len(report.longest[-1])
    assert " validation" in report.longest


def test_a_lossless_tokenizer_is_said_to_be_one(report, tmp_path):
    assert report.metrics()["lossless"] is True
    assert "exact round trip" in report.summary()
    write_report(report, tmp_path)
    page = (tmp_path / "tokenizer_report.md").read_text()
    assert f"{report.characters:,} assigned characters" in page
    assert "| German |" in page


def test_a_lossy_one_says_what_it_loses(tokenizer, other, tmp_path):
    lossy = train_bpe(TEXTS, 320)
    lossy.backend_tokenizer.normalizer = normalizers.NFKC()
    sample = TextSample(Dataset.from_dict({"text": TEXTS}), "text", 10**6, 0)
    report = describe(lossy, VALIDATION, "text", sample, [])
    assert report.metrics()["lossless"] is False
    assert report.lost_blocks["Halfwidth and Fullwidth Forms"]["changed"] > 200
    assert "Basic Latin" not in report.lost_blocks
    assert "it changes text" in report.summary()
    write_report(report, tmp_path)
    for ending in ("html", "md"):
        page = (tmp_path / f"tokenizer_report.{ending}").read_text()
        assert "changes text" in page
        assert "Halfwidth and Fullwidth Forms" in page


def test_the_page_needs_no_other_file_and_escapes_tokens(report, tmp_path):
    hostile = dataclasses.replace(report, longest=["<script>`|"], unused=["\x07\u202e\ufeff a", "`"])
    write_report(hostile, tmp_path)
    page = (tmp_path / "tokenizer_report.html").read_text()
    assert "<script>" not in page
    assert 'src="data:image/png;base64,' in page
    assert "http" not in page
    assert "␇[U+202E][U+FEFF]·a" in page
    assert "``<script>`|``" in (tmp_path / "tokenizer_report.md").read_text()
    assert (tmp_path / "tokenizer_report.png").read_bytes().startswith(b"\x89PNG")
    data = json.loads((tmp_path / "tokenizer_report.json").read_text())
    assert data["vocab_size"] == report.vocab_size


def test_a_long_token_is_shortened():
    assert visible(" " * 100) == "·" * 40 + "… (100 characters)"
