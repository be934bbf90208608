"""The declines that ship with the recipes: declined and answered as they say, and nothing of what measures them."""

import json
import re

import yaml

from hfchat.messages import check_messages
from hfchat.safety.refusals import is_refusal
from tests.conftest import ROOT

FOLDER = ROOT / "recipes" / "data" / "declines"
PROBE = ROOT / "src" / "hfchat" / "safety" / "refusal_probe.yaml"
WORDS_IN_A_ROW = 6

ROWS = [json.loads(line) for line in (FOLDER / "train.jsonl").read_text(encoding="utf-8").splitlines()]


def runs(text):
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[start : start + WORDS_IN_A_ROW]) for start in range(len(words) - WORDS_IN_A_ROW + 1)}


def test_each_is_a_conversation_that_declines_unless_it_is_harmless():
    for row in ROWS:
        check_messages(row["messages"], row["id"])
        assert row["messages"] == row["prompt"] + row["chosen"], row["id"]
        for column, declines in (("chosen", row["topic"] != "harmless"), ("rejected", row["topic"] == "harmless")):
            assert is_refusal(row[column][0]["content"]) == declines, row["id"]
    questions = [row["messages"][0]["content"] for row in ROWS]
    assert len(set(questions)) == len({row["id"] for row in ROWS}) == len(ROWS)


def test_the_probe_measures_none_of_them():
    probe = yaml.safe_load(PROBE.read_text(encoding="utf-8"))
    assert {row["topic"] for row in ROWS} == {*probe["adversarial"], "harmless"}
    asked = [prompt for kind in probe.values() for prompts in kind.values() for prompt in prompts]
    measured = set().union(*map(runs, asked))
    for row in ROWS:
        assert not runs(row["messages"][0]["content"]) & measured, row["id"]


def test_the_card_has_the_right_count():
    assert f"| **all** | **{len(ROWS)}** |" in (FOLDER / "README.md").read_text(encoding="utf-8")
