import random
import struct

import dill
import numpy as np
import pytest
from benchmarks.dedup import jaccard, plant
from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupSignature
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter

from hfchat.data.near_duplicates import (
    MAX_HASHES,
    RECALL,
    NearDuplicateClusters,
    NearDuplicateFilter,
    NearDuplicateSignatures,
    detection_probability,
    minhash_config,
)
from hfchat.data.words import words
from tests.conftest import SHARED_DATA

WIKITEXT = SHARED_DATA / "pretrain" / "wikitext2-valid.txt"
TASKS = 4


def sentences(count: int, seed: int = 0) -> list[str]:
    generator = random.Random(seed)
    vocabulary = ["".join(generator.choices("abcdefghijklmnop", k=6)) for _ in range(2000)]
    return [" ".join(generator.choices(vocabulary, k=120)) for _ in range(count)]


def deduplicate(documents: list[str], folder, config=None) -> tuple[dict[int, dict], dict[int, dict]]:
    """Metadata of the kept and of the removed, by position, after datatrove's four phases in four tasks."""
    config = config or minhash_config()
    for rank in range(TASKS):
        with JsonlWriter(str(folder / "in"), "${rank}.jsonl", compression=None) as writer:
            for position in range(rank, len(documents), TASKS):
                writer.write(Document(documents[position], str(position)), rank)
    read = JsonlReader(str(folder / "in"))
    removed = JsonlWriter(str(folder / "removed"), compression=None)
    signatures, pairs, clusters = (str(folder / name) for name in ("signatures", "pairs", "clusters"))
    phases = [
        ([read, NearDuplicateSignatures(signatures, config)], TASKS),
        ([MinhashDedupBuckets(signatures, pairs, config=config)], config.num_buckets),
        ([NearDuplicateClusters(pairs, clusters)], 1),
        (
            [
                read,
                NearDuplicateFilter(clusters, exclusion_writer=removed),
                JsonlWriter(str(folder / "kept"), compression=None),
            ],
            TASKS,
        ),
    ]
    for number, (pipeline, tasks) in enumerate(phases):
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=1, logging_dir=str(folder / f"logs{number}")).run()

    def found(name):
        if not (folder / name).exists():
            return {}
        return {int(document.id): document.metadata for document in JsonlReader(str(folder / name)).run()}

    return found("kept"), found("removed")


@pytest.mark.skipif(not WIKITEXT.exists(), reason="needs WikiText-2 in shared/data")
def test_planted_copies_are_found_and_distinct_documents_are_kept(tmp_path):
    planted = plant(WIKITEXT, 600)
    kept, removed = deduplicate(planted.documents, tmp_path)
    assert kept.keys() | removed.keys() == set(range(len(planted.documents)))
    signatures = NearDuplicateSignatures(str(tmp_path / "unused"), minhash_config())
    similarity = {b: jaccard(signatures, planted.documents[a], planted.documents[b]) for a, b in planted.pairs}
    similar = {b for b, value in similarity.items() if value >= 0.8}
    assert len(similar) >= 50
    assert len(similar & removed.keys()) / len(similar) >= 0.95
    copies = {b for _, b in planted.pairs}
    distinct = set(range(len(planted.documents))) - copies
    assert len(distinct & kept.keys()) / len(distinct) >= 0.99
    # Far below the threshold a copy is a document of its own.
    different = {b for b, value in similarity.items() if value < 0.4}
    assert len(different) >= 10
    assert len(different & kept.keys()) / len(different) >= 0.9


def test_the_first_of_a_cluster_is_kept_and_the_others_say_which(tmp_path):
    a, b, c = sentences(3)
    # Read in the order of task and position: task 0 has 0, 4, 8; task 1 has 1, 5, 9; ...
    documents = [c, a, b, "x", a, "y", "z", a]
    kept, removed = deduplicate(documents, tmp_path)
    assert removed.keys() == {1, 7}
    assert {removed[i]["removal"]["reason"] for i in removed} == {"near_duplicate"}
    assert {removed[i]["removal"]["detail"] for i in removed} == {str(kept[4]["cluster"])}
    assert kept[4]["cluster_size"] == 3
    assert [i for i in kept if "cluster" in kept[i]] == [4]


def test_a_corpus_without_duplicates_passes_whole(tmp_path):
    kept, removed = deduplicate(sentences(6), tmp_path)
    assert len(kept) == 6
    assert not removed
    assert not any("cluster" in metadata for metadata in kept.values())


def write_pairs(folder, pairs):
    folder.mkdir(parents=True)
    (folder / "00000_00.dups").write_bytes(b"".join(struct.pack("<4I", *pair) for pair in pairs))


def kept_ids(folder, count, rank=0):
    documents = [Document("text", str(i)) for i in range(count)]
    return [document.id for document in NearDuplicateFilter(str(folder)).run(iter(documents), rank, 1)]


@pytest.mark.parametrize("order", ["forward", "backward", "shuffled"])
def test_a_chain_of_5000_pairs_is_one_cluster(tmp_path, order):
    pairs = [(0, i, 0, i + 1) for i in range(5000)]
    if order == "backward":
        pairs.reverse()
    elif order == "shuffled":
        random.Random(0).shuffle(pairs)
    write_pairs(tmp_path / "pairs", pairs)
    NearDuplicateClusters(str(tmp_path / "pairs"), str(tmp_path / "clusters")).run()
    assert kept_ids(tmp_path / "clusters", 5001) == ["0"]


def test_clusters_do_not_depend_on_the_order_of_pairs(tmp_path):
    pairs = [(0, 1, 1, 2), (1, 2, 3, 0), (0, 5, 2, 2), (2, 2, 2, 3), (1, 9, 0, 5)]
    for name, listed in (("a", pairs), ("b", pairs[::-1])):
        write_pairs(tmp_path / name / "pairs", listed)
        NearDuplicateClusters(str(tmp_path / name / "pairs"), str(tmp_path / name / "clusters")).run()
    files = {path.name: path.read_bytes() for path in (tmp_path / "a/clusters").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "b/clusters").iterdir()}
    assert files
    # A task that has only a first one has nothing to remove, and still knows its cluster.
    (document,) = list(NearDuplicateFilter(str(tmp_path / "a/clusters")).run(iter([Document("t", "0")]), 0, 4))
    assert "cluster" not in document.metadata
    documents = NearDuplicateFilter(str(tmp_path / "a/clusters")).run((Document("t", str(i)) for i in range(6)), 0, 4)
    assert [d.metadata.get("cluster_size") for d in documents] == [None, 3, None, None, None, 4]


def test_a_filter_that_is_used_again_counts_from_the_beginning(tmp_path):
    write_pairs(tmp_path / "pairs", [(0, 0, 0, 1)])
    NearDuplicateClusters(str(tmp_path / "pairs"), str(tmp_path / "clusters")).run()
    step = dill.loads(dill.dumps(NearDuplicateFilter(str(tmp_path / "clusters"))))
    for _ in range(2):
        assert [d.id for d in step.run((Document("t", str(i)) for i in range(3)), 0, 1)] == ["0", "2"]


def test_a_long_document_has_the_signature_that_datatrove_gives_its_shingles(tmp_path):
    config = minhash_config()
    ours = NearDuplicateSignatures(str(tmp_path / "a"), config)
    shingles = ours.get_shingles(" ".join(sentences(60)))
    assert len(shingles) > 4096
    assert ours.get_signature(shingles) == MinhashDedupSignature(str(tmp_path / "b"), config).get_signature(shingles)


def test_the_bands_find_what_was_asked_for():
    for hundredths in range(40, 100):
        similarity = hundredths / 100
        config = minhash_config(similarity)
        bands, rows = config.num_buckets, config.hashes_per_bucket
        assert detection_probability(similarity, bands, rows) >= RECALL
        assert bands * rows <= MAX_HASHES, (similarity, bands, rows)
    config = minhash_config(0.8)
    assert detection_probability(0.6, config.num_buckets, config.hashes_per_bucket) < 0.3
    assert detection_probability(0.8, 14, 8) == pytest.approx(0.924, abs=5e-4)  # datatrove's comment


def test_given_bands_are_taken():
    config = minhash_config(bands=3, rows=2, n_grams=7)
    assert (config.num_buckets, config.hashes_per_bucket, config.n_grams) == (3, 2, 7)


@pytest.mark.parametrize(
    "values",
    [
        {"similarity": 1.0},
        {"similarity": 0.0},
        {"similarity": 0.01},
        {"n_grams": 0},
        {"bands": 3},
        {"bands": 0, "rows": 1},
    ],
)
def test_values_that_make_no_sense_are_refused(values):
    with pytest.raises(ValueError, match="near_dedup: "):
        minhash_config(**values)


def test_words_are_those_of_the_language():
    assert words("Don't PAY 1,234.50 at the Café!") == ["don", "t", "pay", "0", "at", "the", "cafe"]
    assert words("我喜欢机器学习。") == list("我喜欢机器学习")
    assert words("किताबें अच्छी हैं") == ["किताब", "अचछी", "ह"]  # its vowel signs do not end a word
    assert words("half a \ud800 pair") == ["half", "a", "pair"]


def test_ascii_text_has_the_same_words_with_other_text_beside_it():
    text = "It's 3.5 km (2 mi.) from A_b to x86-64, isn't it?"
    assert words(f"{text} 我")[:-1] == words(text)


def test_reordered_text_is_no_duplicate_and_shingles_are_a_set(tmp_path):
    ours = NearDuplicateSignatures(str(tmp_path), minhash_config())
    (text,) = sentences(1)
    assert len(ours.get_shingles(f"{text} {text}")) == len(np.unique(ours.get_shingles(f"{text} {text}")))
    assert jaccard(ours, text, " ".join(reversed(text.split()))) == 0
