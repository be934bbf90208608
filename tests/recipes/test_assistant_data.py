"""The program that writes the demo's conversations, and what it made of the facts and wordings that ship with it."""

import json
import re
from collections import Counter
from itertools import chain

import pytest
import yaml

from hfchat.errors import UserError
from hfchat.messages import check_messages
from hfchat.safety.refusals import is_refusal
from recipes.data import assistant_conversations as program
from tests.conftest import ROOT

FOLDER = program.FOLDER
PROBE = ROOT / "src" / "hfchat" / "safety" / "refusal_probe.yaml"
FACTS = program.read_facts(FOLDER)


def rows(name):
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def questions(facts=None, unknown=(), second_turns=()):
    asked = {id: [] for id in FACTS if id != "unknown"} | (facts or {})
    return program.Questions(asked, unknown, second_turns)


def train(asked, replayed=(), variants=0.0, joined=0.0):
    return program.train_rows(FACTS, asked, replayed, variants=variants, joined=joined, seed=3)


def said(row, role="user"):
    return [turn["content"] for turn in row["messages"] if turn["role"] == role]


def is_right(fact, answer):
    must, must_not = ([re.search(one, answer, re.IGNORECASE) for one in part] for part in (fact.must, fact.must_not))
    return all(must) and not any(must_not)


# What ships


def test_the_program_makes_the_files_that_ship():
    for split, made in program.make(FOLDER).items():
        assert rows(split) == made, f"run recipes/data/assistant_conversations.py: {split}.jsonl is not of these files"


def test_each_is_a_conversation_that_ends_with_its_answer():
    shipped = rows("train") + rows("validation")
    for row in shipped:
        check_messages(row["messages"], row["id"])
        fact = FACTS.get(row["fact"] or row["kind"])
        assert (fact is None) == (row["kind"] == "ordinary"), row["id"]
        assert fact is None or row["messages"][-1]["content"] == fact.answer, row["id"]
        assert not any(re.search(r"<\|\w+\|>", turn["content"]) for turn in row["messages"]), row["id"]
    assert len({row["id"] for row in shipped}) == len(shipped)


def test_each_fact_is_asked_in_many_ways_in_both_splits():
    for split, least in (("train", 16), ("validation", 1)):
        asked = Counter(row["fact"] for row in rows(split) if row["kind"] == "fact")
        assert {*asked} == {*FACTS} - {"unknown"}
        assert min(asked.values()) >= least


def test_an_answer_has_the_patterns_of_its_fact_and_of_no_other():
    for fact in FACTS.values():
        assert [other.id for other in FACTS.values() if is_right(other, fact.answer)] == [fact.id]


def test_the_replayed_prompts_are_ordinary_and_none_is_refused_or_measured():
    def runs(text):
        words = re.findall(r"\w+", text.lower())
        return {tuple(words[start : start + 6]) for start in range(len(words) - 5)}

    prompts = chain.from_iterable(yaml.safe_load((FOLDER / "ordinary.yaml").read_text(encoding="utf-8")).values())
    ordinary = [[one.removesuffix(program.SHORTLY)] if isinstance(one, str) else one for one in prompts]
    probe = yaml.safe_load(PROBE.read_text(encoding="utf-8"))
    measured = set().union(*(runs(one) for kind in probe.values() for asked in kind.values() for one in asked))
    for row in rows("replayed"):
        assert said(row) in ordinary
        assert not any(map(is_refusal, said(row, "assistant"))), row["id"]
        assert not runs(" ".join(said(row))) & measured, row["id"]


def test_the_card_has_the_right_counts():
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    counts = {split: Counter(row["kind"] for row in rows(split)) for split in ("train", "validation")}
    for kind in ("fact", "unknown", "ordinary"):
        assert f"| {kind} | {counts['train'][kind]:,} | {counts['validation'][kind]:,} |" in card
    assert f"| **all** | **{counts['train'].total():,}** | **{counts['validation'].total():,}** |" in card


# How it is made


def test_a_question_is_asked_as_it_is_written_and_in_so_many_variants():
    asked = questions({"gpus": [f"How do I use {number} graphics cards?" for number in range(200)]})
    assert {tuple(said(row)) for row in train(asked)} == {(one,) for one in asked.facts["gpus"]}
    varied = train(asked, variants=0.5)
    assert 270 < len(varied) < 330
    assert varied == train(asked, variants=0.5)
    assert len({said(row)[-1] for row in varied}) == len(varied)
    # Whatever is added to it or mistyped, it has kept most of its words.
    words = ["how", "do", "i", "use", "graphics"]
    assert all(program.in_common(said(row)[-1].lower().split(), words) >= 4 for row in varied)


def test_a_share_of_the_questions_is_part_of_a_greater_share():
    turn = {"first": "port", "then": "keys", "question": "And keys?"}
    asked = questions({"gpus": [f"question {number}" for number in range(200)]}, ["Who else?"], [turn])
    half, more = asked.part(0.5, 3), asked.part(0.8, 3)
    assert 70 < len(half.facts["gpus"]) < 130
    assert {*half.facts["gpus"]} < {*more.facts["gpus"]} < {*asked.facts["gpus"]}
    assert asked.part(1.0, 3) == asked
    assert not any(asked.part(0.0, 3).by_fact().values())


def test_a_second_turn_follows_on_the_answer_to_the_first():
    turn = {"first": "stages", "then": "publish", "question": "And the last one?"}
    (row,) = [one for one in train(questions({"stages": ["Steps?"]}, second_turns=[turn])) if one["fact"] == "publish"]
    assert said(row) == ["Steps?", "And the last one?"]
    assert said(row, "assistant") == [FACTS["stages"].answer, FACTS["publish"].answer]


def test_joined_conversations_lose_no_exchange():
    asked = questions(
        {id: [f"{id} {number}" for number in range(20)] for id in ("port", "keys")}, unknown=["Who else?"]
    )
    alone, joined = train(asked), train(asked, joined=0.5)
    assert len(alone) == 41
    assert 25 < len(joined) < 38
    assert Counter(chain.from_iterable(map(said, joined))) == Counter(chain.from_iterable(map(said, alone)))
    for row in joined:
        assert row["messages"][-1]["content"] == FACTS[row["fact"] or "unknown"].answer
        assert len(row["messages"]) in (2, 4)


# What is refused


@pytest.mark.parametrize(
    ("trained", "held_out", "near"),
    [
        ("How do I stop?", "how do i STOP", True),  # the same words
        ("port?", "Which port is it?", True),  # few content words, all of them the same
        ("port?", "Which port number?", False),
        ("Can I train on eight graphics cards?", "Train on several cards quickly?", False),  # two of four
        ("Can I train on eight graphics cards?", "Train with graphics cards quickly?", True),  # three of four
        ("Cards with graphics, to train?", "Train with graphics cards quickly?", False),  # in another order
    ],
)
def test_held_out_questions_are_not_near_to_training_questions(trained, held_out, near):
    learned, tested = questions({"gpus": [trained]}), questions({"gpus": [held_out]})
    if near:
        with pytest.raises(UserError, match=re.escape(f"gpus: {held_out!r} and {trained!r}")):
            program.check_apart(learned, tested)
    else:
        program.check_apart(learned, tested)


def test_a_held_out_question_is_no_training_question_of_another_fact():
    turn = {"first": "stages", "then": "publish", "question": "The last one?"}
    with pytest.raises(UserError, match="1 held-out question"):
        program.check_apart(questions(second_turns=[turn]), questions({"port": ["the last one"]}))


def test_a_question_asks_for_one_fact():
    with pytest.raises(UserError, match="'PORT' asks for two facts: port and unknown"):
        program.check_apart(questions({"port": ["port?"]}, unknown=["PORT"]), questions())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("facts: {prot: [Which port]}", "'prot' is not the id of a fact"),
        ("second_turns: [{first: port, then: prot, question: And}]", "'prot' is not the id of a fact"),
        ("second_turns: [{first: prot, question: And}]", "'prot' is not the id of a fact"),
        ("unknown: [Which: this one]", "is not a question; put it in quotation marks"),
        ("facts: [", "is not YAML"),
    ],
)
def test_bad_files_are_one_line(tmp_path, text, message):
    file = tmp_path / "wordings.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message) as raised:
        program.read_questions([file], FACTS)
    assert str(file) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_folder_or_file_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["program", "--folder", str(tmp_path / "none")])
    with pytest.raises(UserError, match="no such folder"):
        program.main()
    with pytest.raises(UserError, match=r"facts\.yaml: no such file"):
        program.make(tmp_path)


def test_a_fact_that_nobody_asks_for_is_one_line():
    with pytest.raises(UserError, match="no question asks for the fact 'what'"):
        program.make(FOLDER, share=0)
