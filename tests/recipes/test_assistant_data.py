"""The conversations that ship with the demo."""

import json
import re

from hfchat.messages import check_messages
from tests.conftest import ROOT

FOLDER = ROOT / "recipes" / "data" / "assistant"


def rows(split):
    return [json.loads(line) for line in (FOLDER / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


def questions(split):
    return {
        " ".join(re.findall(r"\w+", turn["content"].lower()))
        for row in rows(split)
        for turn in row["messages"]
        if turn["role"] == "user"
    }


def test_there_are_enough_and_each_is_a_conversation():
    train, validation = rows("train"), rows("validation")
    assert len(train) >= 300
    assert len(validation) >= 60
    for row in train + validation:
        check_messages(row["messages"], row["id"])
    assert len({row["id"] for row in train + validation}) == len(train) + len(validation)
    assert any(len(row["messages"]) > 3 for row in train)
    assert {row["topic"] for row in train} == {row["topic"] for row in validation}


def test_no_held_out_question_was_trained_on():
    final = {" ".join(re.findall(r"\w+", row["messages"][-2]["content"].lower())) for row in rows("validation")}
    assert not final & questions("train")


def test_no_answer_holds_a_special_token():
    for row in rows("train") + rows("validation"):
        assert not any(re.search(r"<\|\w+\|>", turn["content"]) for turn in row["messages"]), row["id"]


def test_the_card_has_the_right_counts():
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert f"| **all** | **100** | **{len(rows('train'))}** | **{len(rows('validation'))}** |" in card
