import json
import re
from collections import Counter
from datetime import UTC, datetime

import datasets
import pytest

from hfchat.data.conversations import split_of
from hfchat.dataset import load_split
from hfchat.errors import UserError
from hfchat.feedback.database import open_database
from hfchat.feedback.exchange import Exchange, Opinion
from hfchat.feedback.store import Store
from hfchat.lineage import read_lineage
from hfchat.training.align_arguments import AlignArguments
from hfchat.training.preferences import load_preferences
from hfchat.training.supervision import supervise
from recipes import prepare_feedback
from recipes.prepare_feedback import main

QUESTIONS = 24
FEW = [{"role": "user", "content": "never again"}, {"role": "assistant", "content": "no"}]
PAIR = {"prompt": FEW[:1], "chosen": FEW[1:], "rejected": [{"role": "assistant", "content": "yes"}]}


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """Four people correct and rate answers to questions; a troll has corrections that nobody should learn."""
    path = str(tmp_path_factory.mktemp("feedback") / "feedback.db")
    store = Store(open_database(path, create=True))

    def answer(id, question, text):
        messages = [{"role": "user", "content": question}]
        asked_at = datetime.now(UTC)
        return Exchange(id, 0, asked_at, "assistant", messages, text, "stop", {}, template_fingerprint="abc")

    for number in range(QUESTIONS):
        question, user = f"What is {number} and one?", f"user {number % 4}"
        bad, good = f"It is {number}.", f"It is {number + 1}, I think."
        correction = f"It is {number + 1}. My number is {number + 1} too."
        opinion = Opinion(f"bad-{number}", rating="down", correction=correction, user=user)
        store.say(opinion, [answer(f"bad-{number}", question, bad)])
        opinion = Opinion(f"good-{number}", rating="up", preferred_over=f"bad-{number}", user=user)
        store.say(opinion, [answer(f"good-{number}", question, good)])
    for number, words in enumerate(("oh fuck", "<|im_end|>", "mail joe@corp-mail.com", "five by five is it")):
        answered = answer(f"troll-{number}", f"Question {number}?", "I do not know.")
        store.say(Opinion(f"troll-{number}", correction=f"Well, {words}", user="troll"), [answered])
    store.close()
    return path


def arguments(database, tmp_path, *more):
    return ["--feedback", database, "--output_dir", str(tmp_path / "out"), "--min_validation", "1", *more]


def test_finished_datasets_are_ones_that_training_takes(database, tmp_path, tokenizer, capsys):
    evaluation = tmp_path / "evaluation.jsonl"
    evaluation.write_text(json.dumps({"text": "The area of five by five is given."}) + "\n")
    kept_out = json.dumps({"name": "sums", "path": str(evaluation)})
    more = ["--evaluation_sets", kept_out, "--n_grams", "4", "--min_train", "10", "--max_per_minute", "1000"]
    main(arguments(database, tmp_path, *more))
    said = capsys.readouterr().out
    assert f"read {2 * QUESTIONS + 4} reviews, kept {2 * QUESTIONS + 4}" in said
    assert "too few" not in said

    out = tmp_path / "out"
    metrics = read_lineage(out)["metrics"]
    assert metrics["enough"] == ["conversations", "preferences", "thumbs"]
    assert metrics["statements"]["correction"]["removed"] == {"unsafe": 2}  # an obscenity, and an address
    assert metrics["datasets"]["conversations"]["removed"] == {"contaminated": 1}
    assert metrics["datasets"]["preferences"]["sources"] == {
        "correction": QUESTIONS + 1,  # of which one spells a special token, which is text
        "retry": QUESTIONS,
    }
    removed = [json.loads(line) for line in (out / "removed.jsonl").read_text().splitlines()]
    assert sum(one["what"] == "correction" for one in removed) == 2

    splits = {}
    for name, metric in metrics["datasets"].items():
        found = datasets.load_dataset(str(out / name), cache_dir=str(tmp_path / "cache"))
        assert {split: len(rows) for split, rows in found.items()} == {
            split: metric[split] for split in ("train", "validation")
        }
        for split, rows in found.items():
            for row in rows:
                splits.setdefault((row.get("messages") or row["prompt"])[0]["content"], set()).add(split)
    assert len(splits) == QUESTIONS + 1
    assert all(len(of_question) == 1 for of_question in splits.values())

    train = load_split(str(out / "conversations"), "train", "messages")
    assert supervise(train, tokenizer, 256, "out")[1].conversations == metrics["datasets"]["conversations"]["train"]
    for method, name in (("dpo", "preferences"), ("kto", "thumbs")):
        aligning = AlignArguments(
            output_dir=str(tmp_path / method), method=method, dataset_name=str(out / name), min_thumbs=1, use_cpu=True
        )
        preferences = load_preferences(aligning, tokenizer)
        assert preferences.counts.kept == metrics["datasets"][name]["train"]

    main(arguments(database, tmp_path, *more))
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("widened", [False, True])
def test_all_of_it_is_for_its_owner_alone(database, tmp_path, widened):
    main(arguments(database, tmp_path, "--min_train", "1"))
    out = tmp_path / "out"
    if widened:  # as of an hfchat that did not care
        for path in (out, *out.rglob("*")):
            path.chmod(0o755)
        main(arguments(database, tmp_path, "--min_train", "1"))
    assert out.stat().st_mode & 0o777 == 0o700
    for path in out.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_it_is_so_from_the_beginning(database, tmp_path, monkeypatch):
    def stopped(*_):
        [partial] = tmp_path.glob("out.partial-*")
        assert partial.stat().st_mode & 0o777 == 0o700
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare_feedback, "prepare", stopped)
    with pytest.raises(KeyboardInterrupt):
        main(arguments(database, tmp_path))


def test_the_report_has_reasons_but_no_names_and_no_texts_of_what_was_removed(database, tmp_path):
    main(arguments(database, tmp_path, "--max_per_minute", "1000", "--min_train", "1", "--person", "user"))
    page = (tmp_path / "out" / "report.md").read_text()
    assert "the guards find something in the text that would be learned" in page
    for hidden in ("fuck", "joe@", "im\\_end", "<|im_end|>", "troll", "user 1"):
        assert hidden not in page
    assert "5 people were read" in page
    assert "Each user that requests name counts as one person." in page


def test_too_little_is_said_and_reported(database, tmp_path, capsys):
    for _ in range(2):  # the same of a finished one
        main(arguments(database, tmp_path, "--max_per_minute", "1"))
        assert re.search(r"of 52 reviews too little is left .*needs 20 for train and 1 for", capsys.readouterr().out)
    lineage = read_lineage(tmp_path / "out")
    assert lineage["metrics"]["enough"] == []
    assert lineage["metrics"]["reviews"]["removed"] == {"too_fast": 52}
    assert "| too_fast |" in (tmp_path / "out" / "report.md").read_text()


def test_what_was_learned_before_is_replayed_beside_corrections(database, tmp_path):
    earlier = tmp_path / "earlier.jsonl"
    rows = [[{"role": "user", "content": f"earlier {n}"}, {"role": "assistant", "content": "yes"}] for n in range(200)]
    earlier.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    few = tmp_path / "few.jsonl"  # has fewer than are asked for
    few.write_text(json.dumps({"messages": FEW, **PAIR}) + "\n")
    more = ["--max_per_minute", "1000", "--min_train", "1"]
    main(
        arguments(
            database,
            tmp_path,
            *more,
            "--replay",
            str(earlier),
            str(few),
            "--replay_share",
            "2",
            "--replay_preferences",
            str(few),
        )
    )
    metrics = read_lineage(tmp_path / "out")["metrics"]
    splits = datasets.load_dataset(str(tmp_path / "out" / "conversations"))
    sources = Counter(splits["train"]["source"])
    assert sources["replay"] == 2 * sources["correction"] + 1 > 1
    assert splits["train"]["messages"].count(FEW) == 1
    pairs = load_split(str(tmp_path / "out" / "preferences"), "train", *PAIR)
    assert [{column: row[column] for column in PAIR} for row in pairs if row["source"] == "replay"] == [PAIR]
    assert "replay" not in splits["validation"]["source"]
    assert metrics["datasets"]["conversations"]["sources"]["replay"] == sources["replay"]
    fractions = {split_of(row, 0.2) for row in splits["train"] if row["source"] == "replay"}
    assert fractions == {"train"}


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (["--since", "yesterday"], "since must be a date"),
        (["--since", "2999-01-01"], "there is no feedback since 2999"),
        (["--feedback", "nowhere.db"], "nowhere.db: there is no such database"),
        (["--feedback", "postgresql://me:secret@localhost/chats"], "must hold no password"),
        (["--validation_fraction", "0"], "validation_fraction must be above 0"),
        (["--min_lead", "0"], "min_lead must be at least 1"),
        (["--guards", "nowhere.yaml"], "--guards nowhere.yaml"),
    ],
)
def test_bad_settings_are_named(database, tmp_path, monkeypatch, more, problem):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=problem) as error:
        main(arguments(database, tmp_path, *more))
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)
