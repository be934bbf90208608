import json
import multiprocessing
import random
import signal
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from hfchat.data.chain import Step
from hfchat.data.corpus import build_corpus, plan
from hfchat.data.execution import Executor
from hfchat.data.shards import SCHEMA
from hfchat.data.sources import Source
from hfchat.errors import UserError
from hfchat.storage import as_path

QUESTION = "How many apples does Mary have if she buys twelve and gives five of them to her three hungry brothers?"
STEPS = [
    "fix_text",
    "clean_text",
    {"quality": {"min_characters": 60}},
    "language",
    "pii",
    "exact_dedup",
    {"near_dedup": {"bands": 4, "rows": 5}},
]
OPTIONS = {
    "validation_fraction": 0.2,
    "tasks": 3,
    "workers": 1,
    "executor": Executor.parse("local"),
    "strict": False,
    "max_document_bytes": 100_000,
    "config": {"tasks": 3},
}


def document(i: int) -> str:
    chance = random.Random(i)
    nouns = ["river", "engine", "teacher", "window", "garden", "market", "letter", "winter", "signal", "copper"]
    verbs = ["carries", "finds", "leaves", "paints", "repairs", "follows", "answers", "measures"]
    return " ".join(
        f"The {chance.choice(nouns)} of the {chance.choice(nouns)} {chance.choice(verbs)} a {chance.choice(nouns)} "
        f"{chance.randrange(1000)} {'before' if chance.random() < 0.5 else 'after'} the {chance.choice(nouns)}."
        for _ in range(8)
    )


@pytest.fixture(scope="module")
def documents(tmp_path_factory) -> Path:
    """40 documents of their own; a copy of one, a near-copy of another, a short, a broken and a contaminated one."""
    folder = tmp_path_factory.mktemp("documents")
    rows = [{"text": document(i), "id": f"d{i}"} for i in range(40)]
    rows[3]["text"] += " Write to jane.doe@company.org."
    rows += [
        {"text": document(7) + "  \n", "id": "copy"},  # a copy once it is cleaned
        {"text": f"{document(8)} So it is.", "id": "near-copy"},
        {"text": "Short.", "id": "short"},
        {"text": f"{document(50)} {QUESTION}", "id": "contaminated"},
    ]
    lines = [json.dumps(row) for row in rows]
    (folder / "a.jsonl").write_text("\n".join(lines[:20]) + "\n{broken\n")
    (folder / "b.jsonl").write_text("\n".join(lines[20:]) + "\n")
    (folder / "evaluation.jsonl").write_text(json.dumps({"question": QUESTION}) + "\n")
    return folder


def sources(documents: Path, pattern: str = "[ab].jsonl") -> list[Source]:
    return [Source.parse({"path": f"{documents}/{pattern}", "name": "made", "license": "CC0-1.0"})]


def steps(documents: Path) -> list[Step]:
    evaluation = {"name": "apples", "path": f"{documents}/evaluation.jsonl"}
    return [Step.parse(step) for step in (*STEPS, {"decontaminate": {"evaluation_sets": [evaluation]}})]


def build(documents: Path, folder, pattern: str = "[ab].jsonl", chain: list[Step] | None = None, **options):
    return build_corpus(sources(documents, pattern), chain or steps(documents), as_path(folder), **OPTIONS | options)


def build_without_evaluation_sets(documents: Path, folder: Path) -> None:
    """The same, but for the library that loads them, which takes longer to import than all the rest to run."""
    build(documents, folder, chain=[Step.parse(step) for step in STEPS])


def files(folder) -> dict[str, bytes]:
    folder = as_path(folder)
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


@pytest.fixture(scope="module")
def whole(documents, tmp_path_factory) -> Path:
    """The corpus of an undisturbed run."""
    folder = tmp_path_factory.mktemp("whole") / "corpus"
    (folder.parent / "counts.json").write_text(json.dumps(build(documents, folder)))
    return folder


def test_every_document_is_kept_or_removed_with_its_reason(whole):
    counts = json.loads((whole.parent / "counts.json").read_text())
    reasons = {"unreadable": 1, "too_short": 1, "exact_duplicate": 1, "near_duplicate": 1, "contaminated": 1}
    assert counts["removed"] == reasons
    assert counts["read"] == 45 == sum(counts["documents"].values()) + sum(reasons.values())
    assert counts["pii"] == {"email": 1}
    assert counts["evaluation_sets"]["apples"]["rows"] == 1
    assert counts["near_duplicate_clusters"] == 1

    corpus = load_dataset(str(whole))
    assert corpus["train"].column_names == SCHEMA.names
    kept = {row["id"]: row["text"] for split in corpus.values() for row in split}
    assert kept.keys() == {f"d{i}" for i in range(40)}
    assert kept["d3"].endswith("Write to email@example.com.")
    assert {row["license"] for split in corpus.values() for row in split} == {"CC0-1.0"}
    assert sum(len(text.encode()) for text in corpus["train"]["text"]) == counts["bytes"]["train"]


def test_removed_documents_say_why(whole):
    rows = {}
    for file in whole.glob("removed/*/*.parquet"):
        for row in pq.read_table(file).to_pylist():
            assert row["reason"] == file.parent.name
            rows[row["reason"]] = row
    assert rows["too_short"]["step"] == "quality"
    assert rows["exact_duplicate"]["id"] == "copy"
    assert rows["near_duplicate"]["id"] == "near-copy"
    assert rows["contaminated"]["detail"].startswith("apples: how many apples does mary")
    assert rows["contaminated"]["score"] > 0
    assert "a.jsonl#20" in rows["unreadable"]["id"]
    assert rows["unreadable"]["detail"].startswith("not JSON: ")


@pytest.mark.parametrize("workers", [2, 3])
def test_the_output_does_not_depend_on_the_number_of_workers(documents, whole, tmp_path, workers):
    build(documents, tmp_path / "out", workers=workers)
    assert files(tmp_path / "out") == files(whole)


def test_the_split_is_stable_when_documents_are_added(documents, whole, tmp_path):
    build(documents, tmp_path / "part", pattern="a.jsonl")

    def splits(folder):
        return {row["text"]: name for name, split in load_dataset(str(folder)).items() for row in split}

    part = splits(tmp_path / "part")
    assert part
    assert part.items() <= splits(whole).items()


def test_strict_makes_input_that_cannot_be_read_an_error(documents, tmp_path):
    with pytest.raises(UserError, match=r"made/a\.jsonl#20 cannot be read: not JSON: "):
        build(documents, tmp_path / "out", strict=True)


def test_a_corpus_without_a_document_is_an_error_that_says_what_to_do(documents, tmp_path):
    with pytest.raises(UserError, match=r"no document is left of 45 .*'too_short': 44"):
        build_corpus(
            sources(documents), [Step.parse({"quality": {"min_characters": 10_000}})], tmp_path / "out", **OPTIONS
        )


def test_a_split_without_documents_is_not_in_the_card(documents, tmp_path):
    counts = build(documents, tmp_path / "out", validation_fraction=1e-9)
    assert counts["documents"] == {"train": 40, "validation": 0}
    assert set(load_dataset(str(tmp_path / "out"))) == {"train"}


def test_a_corpus_that_is_built_again_is_loaded_as_it_is_now(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": document(i)}) for i in range(9)))
    source = [Source.parse({"path": f"{tmp_path}/a.jsonl"})]
    for change in ("river", "fjord"):  # as long, so that no size in characters tells them apart
        text = (tmp_path / "a.jsonl").read_text()
        (tmp_path / "a.jsonl").write_text(text.replace("river", change))
        build_corpus(source, [Step.parse("clean_text")], tmp_path / "out", **OPTIONS)
        assert any(change in row["text"] for split in load_dataset(str(tmp_path / "out")).values() for row in split)


def test_lost_documents_are_noticed(documents, tmp_path, monkeypatch):
    from hfchat.data import cleaning

    def lose_one(self, data, rank=0, world_size=1):
        for position, each in enumerate(data):
            if position != 3:
                yield each

    monkeypatch.setattr(cleaning.CleanText, "run", lose_one)
    with pytest.raises(RuntimeError, match="45 documents were read, but"):
        build(documents, tmp_path / "out")


def test_s3_gets_what_a_disk_gets(documents, whole, bucket, tmp_path):
    for file in documents.iterdir():
        as_path(f"{bucket}/in/{file.name}").write_bytes(file.read_bytes())
    remote = [Source.parse({"path": f"{bucket}/in/[ab].jsonl", "name": "made", "license": "CC0-1.0"})]
    build_corpus(remote, steps(documents), as_path(f"{bucket}/corpus"), **OPTIONS)
    assert files(f"{bucket}/corpus") == files(whole)


def test_webhdfs_gets_what_a_disk_gets(documents, whole, webhdfs):
    for file in documents.iterdir():
        as_path(f"{webhdfs}/in/{file.name}").write_bytes(file.read_bytes())
    remote = [Source.parse({"path": f"{webhdfs}/in/[ab].jsonl", "name": "made", "license": "CC0-1.0"})]
    build_corpus(remote, steps(documents), as_path(f"{webhdfs}/corpus"), **OPTIONS)
    assert files(f"{webhdfs}/corpus") == files(whole)


def test_every_phase_says_what_it_writes(documents, tmp_path):
    """What is not named is neither checked nor cleared, so a damaged or a half-written file would go unseen."""
    from datatrove.io import DataFolder

    from hfchat.data.execution import execute

    folder = DataFolder(str(tmp_path / "out"))
    phases = plan(sources(documents), steps(documents), folder, 0.2, 3, False, 100_000)
    execute(phases, folder, Executor.parse("local"), workers=1)
    named = {
        file
        for phase in phases
        for rank in range(phase.tasks)
        for pattern in phase.outputs
        for file in folder.glob(pattern.format(rank=rank))
    }
    written = {file for file in folder.list_files() if not file.startswith(("scratch/logs", "scratch/workers.lock"))}
    assert written <= named


def test_killed_at_any_moment_it_goes_on_to_the_same_corpus(documents, tmp_path):
    """Twenty runs, each killed at a random moment of its time and started again, as by `kill -9`."""
    context = multiprocessing.get_context("forkserver")
    # What a run imports, so that each is killed at its work.
    context.set_forkserver_preload(["tests.data.test_corpus", "hfchat.data.deduplication", "hfchat.data.language"])

    def run(folder: Path, seconds: float | None = None) -> tuple[bool, float]:
        process = context.Process(target=build_without_evaluation_sets, args=(documents, folder))
        process.start()
        began = time.monotonic()
        process.join(seconds)
        process.kill()  # does nothing to one that has ended
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        return process.exitcode != 0, time.monotonic() - began

    run(tmp_path / "warm-up")
    _, duration = run(tmp_path / "undisturbed")
    undisturbed = files(tmp_path / "undisturbed")
    chance, killed, stages = random.Random(0), 0, set()
    for attempt in range(20):
        folder = tmp_path / str(attempt)
        was_killed, _ = run(folder, chance.uniform(0.05, 1.0) * duration)
        killed += was_killed
        stages.add(len(list(folder.glob("scratch/logs/*"))))
        run(folder)
        assert files(folder) == undisturbed, f"attempt {attempt}"
    assert killed >= 10
    assert len(stages) >= 3, "the moments were not spread over the phases"


def test_a_document_that_cleaning_leaves_empty_is_kept_or_removed_as_any_other(tmp_path):
    texts = ["\x01", document(0), "\x02", document(1), document(1)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    source = Source.parse({"path": f"{tmp_path}/a.jsonl"})
    counts = build_corpus([source], [Step.parse("clean_text"), Step.parse("exact_dedup")], tmp_path / "out", **OPTIONS)
    assert (counts["read"], counts["removed"]) == (5, {"exact_duplicate": 2})


def test_what_is_passed_over_and_a_separator_that_is_nowhere_are_told(tmp_path):
    http = b"HTTP/1.1 404 Not Found\r\n\r\n"
    record = (
        b"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://a.org/\r\nContent-Length: %d\r\n\r\n%s\r\n\r\n"
    )
    (tmp_path / "a.warc").write_bytes(3 * (record % (len(http), http)))
    for name in ("whole", "divided"):
        text = "\n\n".join(document(i) for i in range(5)) if name == "divided" else document(9)
        (tmp_path / f"{name}.txt").write_text(text)
    sources = [Source.parse({"path": str(tmp_path / "a.warc")})]
    sources += [
        Source.parse({"path": f"{tmp_path}/{name}.txt", "name": name, "separator": "\n\n"})
        for name in ("whole", "divided")
    ]
    counts = build_corpus(sources, [], tmp_path / "out", **OPTIONS | {"validation_fraction": 0.01})
    assert (counts["read"], counts["removed"], counts["skipped"]) == (6, {}, 3)
    assert counts["skipped_for"] == {"status 404": 3}
    assert counts["undivided"] == {"whole": "\n\n"}
    for report in ("report.md", "report.html"):
        page = (tmp_path / "out" / report).read_text()
        assert "3 records that are not documents: status 404 3." in page
        assert "The separator of whole, " in page
        assert "The separator of divided" not in page


def test_the_first_that_cannot_be_read_is_named_where_nothing_is_left(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "a"}\n')
    with pytest.raises(UserError, match=r"'unreadable': 1}, of which the first is .*no text under the key 'text'"):
        build_corpus([Source.parse({"path": str(tmp_path / "a.jsonl")})], [], tmp_path / "out", **OPTIONS)


@pytest.mark.parametrize("step", ["clean_text", "exact_dedup", {"near_dedup": {"similarity": 0.99}}])
def test_near_duplicates_are_on_one_side_of_the_split(tmp_path, step):
    texts = [document(i) for i in range(20)]
    copies = [text.replace("before", f"after {i}", 1) for i, text in enumerate(texts)]
    copies += [f"{text} So it was." for text in texts[:10]]
    rows = [json.dumps({"text": text, "id": str(i % 20)}) for i, text in enumerate(texts + copies)]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    options = OPTIONS | {"validation_fraction": 0.4}
    build_corpus([Source.parse({"path": f"{tmp_path}/a.jsonl"})], [Step.parse(step)], tmp_path / "out", **options)
    found = load_dataset(str(tmp_path / "out"))
    assert len(found["train"]) + len(found["validation"]) >= 40
    assert len(found["validation"]) > 5
    assert not set(found["train"]["id"]) & set(found["validation"]["id"])


@pytest.mark.parametrize(("alike", "in_validation"), [(15, False), (40, True)])
def test_many_near_duplicates_leave_something_to_validate_on(tmp_path, alike, in_validation):
    """More of a kind than the validation split has are for training, unless they are most of the corpus."""
    texts = [f"{document(1)} {document(2)} It was number {i}." for i in range(alike)] + [
        document(i) for i in range(3, 53 - alike)
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    build_corpus(
        [Source.parse({"path": f"{tmp_path}/a.jsonl"})], [Step.parse("clean_text")], tmp_path / "out", **OPTIONS
    )
    validation = load_dataset(str(tmp_path / "out"))["validation"]["text"]
    assert any("It was number" in text for text in validation) == in_validation
    assert 2 <= len(validation) <= 20


def test_a_chain_gets_no_more_phases_than_it_needs(tmp_path):
    from datatrove.io import DataFolder

    def names(*steps):
        return [
            phase.name for phase in plan([], [*map(Step.parse, steps)], DataFolder(str(tmp_path)), 0.1, 2, False, 1000)
        ]

    assert names("exact_dedup", "near_dedup").count("find near duplicates") == 1
    assert names("clean_text").count("find near duplicates") == 1
    assert names("exact_dedup", "clean_text") == [
        "read, clean, filter",
        "find exact duplicates",
        "deduplicate, split",
    ]


def test_every_phase_that_looks_for_near_duplicates_says_what_it_writes(documents, tmp_path):
    from datatrove.io import DataFolder

    from hfchat.data.execution import execute

    for number, step in enumerate(("exact_dedup", "clean_text")):
        folder = DataFolder(str(tmp_path / str(number)))
        phases = plan(sources(documents), [Step.parse(step)], folder, 0.2, 3, False, 100_000)
        execute(phases, folder, Executor.parse("local"), workers=1)
        patterns = {
            pattern.format(rank=i) for phase in phases for i in range(phase.tasks) for pattern in phase.outputs
        }
        named = {file for pattern in patterns for file in folder.glob(pattern)}
        written = {
            file for file in folder.list_files() if not file.startswith(("scratch/logs", "scratch/workers.lock"))
        }
        assert written <= named
