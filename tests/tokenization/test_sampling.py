import itertools
import random
import re

import pytest
from datasets import Dataset

from hfchat.errors import UserError
from hfchat.tokenization.bpe import byte_level_splitter, train_bpe
from hfchat.tokenization.sampling import CountLimit, TextSample, break_long_runs, estimate, first_bytes
from tests.conftest import TEXTS


@pytest.fixture(scope="module")
def dataset():
    return Dataset.from_dict({"text": [f"é{i:03d}" for i in range(100)]})  # 5 bytes each


def test_a_sample_keeps_to_its_bytes_and_its_seed(dataset):
    sample = TextSample(dataset, "text", sample_bytes=52, seed=1)
    texts = list(sample)
    assert [len(text.encode()) for text in texts] == [5] * 10 + [2]
    assert texts == list(sample) == list(TextSample(dataset, "text", sample_bytes=52, seed=1))
    assert texts != list(TextSample(dataset, "text", sample_bytes=52, seed=2))
    assert sample.total_bytes == 52


def test_a_cut_does_not_halve_a_character(dataset):
    assert len(list(TextSample(dataset, "text", sample_bytes=51, seed=1))) == 10


def test_a_corpus_that_fits_is_read_whole_and_mixed(dataset):
    texts = list(TextSample(dataset, "text", sample_bytes=10**9, seed=1))
    assert sorted(texts) == dataset["text"][:]
    assert texts != dataset["text"][:]  # or the first ones would not be like the rest


def test_first_bytes_takes_no_more_of_an_iterator():
    texts = iter(["ab", "cd", "ef"])
    assert first_bytes(texts, 3) == ["ab", "cd"]
    assert list(texts) == ["ef"]


def test_only_long_runs_are_broken():
    text = " ".join(["word"] * 1000) + "\n" * 900 + "x" * 900
    assert break_long_runs(text) == text
    broken = break_long_runs(f"{text}\n{' ' * 3000}end{'ab' * 2000}.")
    assert max(len(run) for run in re.findall(r"\s+|\S+", broken)) <= 1001
    assert broken.replace("\n", "").endswith("end" + "ab" * 2000 + ".")


def test_an_estimate_follows_the_growth_of_the_vocabulary():
    generator = random.Random(0)
    alphabet = "abcdefghijklmnopqrst"
    new = Dataset.from_dict({"text": ["".join(generator.choices(alphabet, k=9)) + " word" * 20 for _ in range(4000)]})
    old = Dataset.from_dict({"text": ["the same words again"] * 4000})
    splitter = byte_level_splitter("gpt2")
    found = {}
    for name, dataset in (("new", new), ("old", old)):
        sample = TextSample(dataset, "text", 10**9, 0)
        found[name] = estimate(sample, splitter, lambda texts: None, lambda texts: None, bytes_per_word=100)
        assert found[name].total_bytes == sample.total_bytes
        assert found[name].memory_bytes == found[name].distinct_words * 100
    assert found["new"].distinct_words == pytest.approx(4001, rel=0.1)
    assert found["old"].distinct_words == 4


def test_an_estimate_of_next_to_nothing_is_one():
    sample = TextSample(Dataset.from_dict({"text": ["a"]}), "text", 10, 0)
    assert "0.0 MB to read" in str(
        estimate(sample, byte_level_splitter("gpt2"), lambda texts: None, lambda texts: None, 100)
    )


def test_texts_that_are_all_empty_are_refused():
    sample = TextSample(Dataset.from_dict({"text": ["", ""]}), "text", 10, 0)
    with pytest.raises(UserError, match="all of its texts are empty"):
        estimate(sample, byte_level_splitter("gpt2"), lambda texts: None, lambda texts: None, 100)


def test_what_would_overflow_is_refused_before_it_is_read(dataset):
    sample = TextSample(Dataset.from_dict({"text": ["the thin thing " * 20] * 50}), "text", 10**9, 0)
    pairs = 50 * 20 * 3  # "th"
    CountLimit(pairs + 100, adjacent=True).check_pilot(sample)
    with pytest.raises(
        UserError, match=r"pair of bytes would occur about 3,\d+ times.*use at most --sample_bytes \d+"
    ):
        CountLimit(pairs - 1, adjacent=True).check_pilot(sample)
    # "t" occurs as often as "th", "h" too; the space as well.
    with pytest.raises(UserError, match="the most frequent byte would"):
        CountLimit(pairs - 1, adjacent=False).check_pilot(sample)


def test_what_the_pilot_did_not_show_is_refused_while_it_is_read():
    texts = ["abcdefghijklmnop" * 10] * 100 + ["zz" * 1000]
    limit = CountLimit(1500, adjacent=True)
    assert list(limit.guard(texts[:-1], 16_000)) == texts[:-1]
    for texts_given in (texts, iter(texts)):
        with pytest.raises(UserError, match="sample_bytes: within 18,000 bytes the most frequent pair of bytes"):
            list(limit.guard(texts_given, 18_000))


def test_no_pair_of_tokens_is_more_frequent_than_a_pair_of_bytes():
    tokenizer = train_bpe(TEXTS, 512)
    greatest = int(CountLimit(0, adjacent=True)._count(TEXTS).max())
    counts = {}
    for ids in tokenizer(TEXTS, add_special_tokens=False)["input_ids"]:
        for pair in itertools.pairwise(ids):
            counts[pair] = counts.get(pair, 0) + 1
    assert max(counts.values()) <= greatest
