import itertools
import json
import time

import pytest
from benchmarks.data import DEDUPLICATION, Metered, compare, repeat, step_rates, write_input
from datatrove.data import Document

WORDS = ["river", "engine", "teacher", "window", "garden", "market", "letter", "winter", "signal", "copper"]
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
    ours, bare = compare(source, source, ["clean_text", {"quality": {"min_characters": 3000}}], repeats=1)
    assert 0 < ours.kept == bare.kept < source.documents


def test_every_block_gets_a_rate(source):
    rates = step_rates(source, source, DEDUPLICATION)
    assert list(rates)[:2] == ["SourceStep", "CleanText"]
    assert {"ExactDedupFilter", "NearDuplicateSignatures", "NearDuplicateFilter", "DocumentWriter"} <= rates.keys()
    assert rates["CleanText"][0].documents == source.documents
    assert all(entered.megabytes > 0 for entered, _ in rates.values())
    assert rates["split_into_words"][1] > 0


def test_the_time_of_a_block_is_its_own():
    class Busy:
        def __init__(self, seconds):
            self.seconds = seconds

        def run(self, data, rank, world_size):
            for document in data or [Document("text", str(i)) for i in range(3)]:
                until = time.process_time() + self.seconds
                while time.process_time() < until:
                    pass
                yield document

    first = Metered(Busy(0.03), None, 0, 1)
    second = Metered(Busy(0.001), first, 0, 1)
    assert len(list(second)) == first.documents == 3
    assert 0 < second.seconds - first.seconds < first.seconds
