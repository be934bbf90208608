import itertools
import json

import pytest
from benchmarks.data import DEDUPLICATION, block_rates, compare, repeat, write_input

WORDS = "river engine teacher window garden market letter winter signal copper".split()
TEXTS = [
    "\n".join(f"The {a} of the {b} is number {n} of them." for a, b in itertools.permutations(WORDS[n:], 2))
    for n in range(3)
]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_input(tmp_path_factory.mktemp("data") / "input", repeat(TEXTS), megabytes=0.05)


def test_the_input_has_the_size_asked_for_and_no_document_twice(source):
    lines = [line for file in sorted(source.folder.iterdir()) for line in file.read_text().splitlines()]
    documents = [json.loads(line)["text"] for line in lines]
    assert len(set(documents)) == len(documents) == source.documents
    assert source.megabytes == pytest.approx(0.05, rel=0.1)
    assert sum(len(text.encode()) for text in documents) == pytest.approx(source.megabytes * 1e6)


def test_both_sides_keep_the_same_documents(source):
    ours, bare = compare(source, source, ["clean_text", {"quality": {"min_characters": 2500}}], repeats=1)
    assert 0 < ours.kept == bare.kept < source.documents


def test_every_block_gets_a_rate(source):
    rates = block_rates(source, DEDUPLICATION)
    assert list(rates)[:2] == ["SourceStep", "CleanText"]
    assert {"ExactDedupFilter", "NearDuplicateSignatures", "NearDuplicateFilter", "DocumentWriter"} <= rates.keys()
    assert all(megabytes > 0 and seconds >= 0 for megabytes, seconds, _ in rates.values())
    assert rates["CleanText"][2] == source.documents
