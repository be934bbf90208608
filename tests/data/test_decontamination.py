import gzip
import json

import dill
import numpy as np
import pytest
from datatrove.data import Document
from datatrove.io import DataFolder
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter

from hfchat.data.decontamination import ContaminationFilter, EvaluationSet, build_index, check_evaluation_sets
from hfchat.data.removal import Removal
from hfchat.errors import UserError
from tests.conftest import SHARED_DATA

GSM8K = SHARED_DATA / "sft" / "gsm8k.train.jsonl"
QUESTION = "A train leaves the old station at 7.30 with 1,250 people, and at the café it stops to let 48 of them out."
CLEAN = " ".join(f"word{letter} stands alone" for letter in "abcdefghijklmnopqrstuvwxyz")


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"name": path.stem, "path": str(path)}


@pytest.fixture
def index(tmp_path):
    folder = DataFolder(str(tmp_path / "index"))
    found = build_index(
        check_evaluation_sets([write_rows(tmp_path / "exam.jsonl", [{"q": QUESTION}, {"q": "Too short."}])]), folder
    )
    assert found == {"exam": {"rows": 2, "n_grams": len(QUESTION.split()) - 12, "too_short": 1}}
    return folder


@pytest.mark.parametrize(
    "text",
    [
        QUESTION,
        QUESTION.upper().replace(", ", "; ").replace(" ", "\n"),
        QUESTION.replace("7.30", "9").replace("1,250", "3").replace("48", "1000"),
        QUESTION.replace("é", "e\u0301"),
        QUESTION.replace("é", "e"),
    ],
    ids=["verbatim", "case and punctuation", "numbers", "decomposed", "diacritics"],
)
def test_a_quotation_is_found_inside_other_text(index, text):
    document = Document(f"{CLEAN}. {text} {CLEAN}", "1")
    assert ContaminationFilter(index).filter(document) == (False, "contaminated")
    assert Removal.of(document).detail == ("exam: a train leaves the old station at 0 with 0 people and at")
    n_grams = len(document.text.split()) - 12
    assert Removal.of(document).score == pytest.approx((len(QUESTION.split()) - 12) / n_grams)


def test_clean_text_is_kept(index):
    blocker = ContaminationFilter(index)
    twelve_words = " ".join(QUESTION.split()[:12])
    for text in (CLEAN, f"{CLEAN} {twelve_words} {CLEAN}", "Too short.", ""):
        document = Document(text, "1")
        assert blocker.filter(document) is True
        assert not document.metadata


def test_only_indices_are_read_from_the_folder(index):
    with index.open("evaluation_sets.json", "w") as file:  # where the corpus builder keeps the counts
        json.dump({}, file)
    assert ContaminationFilter(index).filter(Document(QUESTION, "1")) == (False, "contaminated")


def test_the_set_that_shares_most_is_named(tmp_path):
    other = "Seven green bottles were hanging on the wall when one of them fell down."
    sets = [
        write_rows(tmp_path / "one.jsonl", [{"q": other}]),
        write_rows(tmp_path / "two.jsonl", [{"q": QUESTION}]),
    ]
    folder = DataFolder(str(tmp_path / "index"))
    build_index(check_evaluation_sets(sets), folder)
    document = Document(f"{other} {CLEAN} {QUESTION}", "1")
    assert ContaminationFilter(folder).filter(document) == (False, "contaminated")
    assert Removal.of(document).detail.startswith("two: ")


def test_hashes_at_both_ends_of_the_index_are_found_and_others_are_not(tmp_path):
    from hfchat.data.words import hashed_n_grams

    folder = DataFolder(str(tmp_path / "index"))
    build_index(check_evaluation_sets([write_rows(tmp_path / "exam.jsonl", [{"q": CLEAN}])]), folder)
    with folder.open("exam.npy", "rb") as file:
        stored = np.load(file)
    parts = CLEAN.split()
    blocker = ContaminationFilter(folder)
    runs = [" ".join(parts[i : i + 13]) for i in range(len(parts) - 12)]
    windows = {next(hashed_n_grams(run, 13)): run for run in runs}
    assert sorted(windows) == stored.tolist()
    for value in (stored[0], stored[-1]):
        assert blocker.filter(Document(windows[int(value)], "1")) == (False, "contaminated")
    assert blocker.filter(Document(" ".join(f"x{i}y" for i in "abcdefghijklmnop"), "1")) is True


def test_the_removed_document_reaches_its_writer_from_another_process(index, tmp_path):
    writer = JsonlWriter(str(tmp_path / "removed"), compression=None)
    blocker = dill.loads(dill.dumps(ContaminationFilter(index, exclusion_writer=writer)))
    kept = list(blocker.run([Document(CLEAN, "clean"), Document(QUESTION, "quoted")], 0, 1))
    assert [document.id for document in kept] == ["clean"]
    (removed,) = JsonlReader(str(tmp_path / "removed")).run()
    assert removed.id == "quoted"
    assert removed.metadata["removal"]["reason"] == "contaminated"
    assert removed.metadata["removal"]["score"] == 1.0


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_files_of_every_kind_and_encoding_and_nested_texts_count(encoding, tmp_path):
    from datasets import Dataset

    turns = {"messages": [{"role": "user", "content": QUESTION}], "n": 3}
    with gzip.open(tmp_path / "packed.jsonl.gz", "wt", encoding=encoding) as file:
        file.write(json.dumps({"q": QUESTION}))
    (tmp_path / "lines.txt").write_text(QUESTION + "\r\n", encoding)
    (tmp_path / "table.csv").write_text(f'number;q\n1;"{QUESTION}"\n', encoding)
    Dataset.from_list([turns]).to_parquet(tmp_path / "turns.parquet")
    (tmp_path / "list.json").write_text(json.dumps([{"choices": ["no", QUESTION]}]), encoding)
    paths = ("packed.jsonl.gz", "lines.txt", "table.csv", "turns.parquet", "list.json")
    sets = [{"name": path, "path": str(tmp_path / path)} for path in paths]
    found = build_index(check_evaluation_sets(sets), DataFolder(str(tmp_path / "index")))
    assert {name: counts["n_grams"] for name, counts in found.items()} == dict.fromkeys(
        paths, len(QUESTION.split()) - 12
    )


def test_columns_narrow_the_search(tmp_path):
    entry = write_rows(tmp_path / "exam.jsonl", [{"q": QUESTION, "a": CLEAN}])
    folder = DataFolder(str(tmp_path / "index"))
    build_index(check_evaluation_sets([entry | {"columns": ["q"]}]), folder)
    assert ContaminationFilter(folder).filter(Document(CLEAN, "1")) is True
    assert ContaminationFilter(folder).filter(Document(QUESTION, "1")) == (False, "contaminated")


def test_the_index_is_the_same_bytes_each_time(tmp_path):
    entry = write_rows(tmp_path / "exam.jsonl", [{"q": QUESTION}, {"q": CLEAN}])
    for name in ("one", "two"):
        build_index(check_evaluation_sets([entry]), DataFolder(str(tmp_path / name)))
    assert (tmp_path / "one/exam.npy").read_bytes() == (tmp_path / "two/exam.npy").read_bytes()


def test_a_set_that_cannot_be_searched_for_is_the_users_to_fix(tmp_path):
    folder = DataFolder(str(tmp_path / "index"))
    entry = write_rows(tmp_path / "exam.jsonl", [{"q": "Too short."}])
    with pytest.raises(UserError, match="exam: none of its 1 rows has 13 words"):
        build_index(check_evaluation_sets([entry]), folder)
    with pytest.raises(UserError, match="exam: no column 'answer', only q"):
        build_index(check_evaluation_sets([entry | {"columns": ["answer"]}]), folder)


def test_bad_entries_are_refused_before_any_work(tmp_path):
    entry = write_rows(tmp_path / "exam.jsonl", [{"q": QUESTION}])
    assert check_evaluation_sets([entry]) == [EvaluationSet(**entry)]
    for entries, problem in (
        ([entry, entry], "'exam' must be a name of its own"),
        ([entry | {"path": str(tmp_path / "none.jsonl")}], "none.jsonl: no such file"),
        ([entry | {"colums": []}], "exam: unknown key 'colums'; did you mean 'columns'"),
        ([entry | {"name": "a/b"}], "'a/b' must be a name of its own, without '/'"),
        ([{"name": "exam"}], "evaluation_sets: exam: needs 'path'"),
        ([{"path": "a.jsonl"}], "each of evaluation_sets: needs 'name'"),
    ):
        with pytest.raises(ValueError, match=problem):
            check_evaluation_sets(entries)


@pytest.mark.skipif(not GSM8K.exists(), reason="needs GSM8K in shared/data")
def test_a_page_that_quotes_gsm8k_is_removed(tmp_path):
    folder = DataFolder(str(tmp_path / "index"))
    found = build_index(check_evaluation_sets([{"name": "gsm8k", "path": str(GSM8K)}]), folder)
    assert found["gsm8k"]["rows"] == 7473
    with GSM8K.open() as file:
        question = json.loads(file.readline())["question"]
    page = Document(f"My homework today was this. {question.lower()} I could not do it.", "1")
    assert ContaminationFilter(folder).filter(page) == (False, "contaminated")
    assert Removal.of(page).detail.startswith("gsm8k: natalia sold clips to 0 of her friends")
    assert ContaminationFilter(folder).filter(Document(CLEAN, "2")) is True


@pytest.mark.parametrize(
    ("row", "name", "copy"),
    [
        (
            "中华人民共和国全国人民代表大会的代表每届任期是多少年，由哪一个机关来召集它的第一次会议呢？",
            "据报道，中华人民共和国全国人民代表大会今天在北京开幕，会议将审议政府的工作报告和其他议案。",
            "代表每届任期是多少年，由哪一个机关来召集它的第一次会议呢",
        ),
        (
            "国際連合教育科学文化機関の本部はどこにあって、そこで働いている人は何人ぐらいいるのでしょうか。",
            "きのう国際連合教育科学文化機関は新しい世界遺産を発表した。",
            "本部はどこにあって、そこで働いている人は何人ぐらいいるのでしょうか",
        ),
        (
            "สาธารณรัฐประชาธิปไตยประชาชนลาวมีประชากรกี่คนและเมืองหลวงชื่ออะไรและตั้งอยู่ริมแม่น้ำสายใด",
            "เมื่อวานนี้สาธารณรัฐประชาธิปไตยประชาชนลาวประกาศนโยบายใหม่",
            "มีประชากรกี่คนและเมืองหลวงชื่ออะไรและตั้งอยู่ริมแม่น้ำสายใด",
        ),
    ],
    ids=["Chinese", "Japanese", "Thai"],
)
def test_in_scripts_without_spaces_a_name_is_kept_and_a_quotation_is_not(tmp_path, row, name, copy):
    folder = DataFolder(str(tmp_path / "index"))
    build_index(check_evaluation_sets([write_rows(tmp_path / "exam.jsonl", [{"q": row}])]), folder)
    blocker = ContaminationFilter(folder)
    assert blocker.filter(Document(name, "1")) is True
    assert blocker.filter(Document(f"{name} {copy}", "1")) == (False, "contaminated")
    assert blocker.filter(Document(row, "1")) == (False, "contaminated")
