"""What of an evaluation is in the training data, as a lineage names it."""

import json
from dataclasses import asdict

import pytest

from hfchat.evaluation.contamination import find_contamination
from hfchat.evaluation.task import Example
from hfchat.lineage import describe
from tests.conftest import TEXTS

NUMBERS = [f"{letter}word" for letter in "abcdefghijklmnop"]
ANSWER = "It cuts text."


def chat(question, answer=ANSWER):
    return Example([{"role": "system", "content": "Be kind."}, {"role": "user", "content": question}], [answer])


def conversation(question, answer=ANSWER):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def lineage(stage, role, path, **config):
    return {
        "stage": stage,
        "path": f"/runs/{stage}",
        "config": config,
        "inputs": {role: describe(path)} if role else {},
    }


def pretrained_on(tmp_path, texts):
    return [lineage("pretrain", "corpus", write(tmp_path / "corpus.jsonl", [{"text": text} for text in texts]))]


def check(examples, ancestry):
    return asdict(find_contamination({"task": examples}, ancestry)["task"])


def test_a_question_that_was_learned_is_found_whatever_its_case_and_white_space(tmp_path):
    rows = [conversation("What is a\n\nTOKENIZER?", "No idea."), conversation("What is a dial?"), conversation("Why?")]
    file = write(tmp_path / "chats.jsonl", rows)
    examples = [chat("What is a tokenizer?"), chat("What is a dial?"), chat("What is a template?", "It says.")]
    found = check(examples, [lineage("finetune", "conversations", file)])
    assert found["status"] == "checked"
    assert found["found"] == found["equal"] == [0, 1]
    assert found["equal_with_answer"] == [1]
    assert found["sources"] == [{"stage": "finetune", "path": file, "split": "train", "rows": 3, "found": 2}]
    assert found["sentence"] == (
        "2 of the 3 examples are in what it was trained on (66.7%; 1 with the question and the answer word by word): "
        "3 rows were compared, by whole questions and by runs of 8 words."
    )


def test_a_run_of_thirteen_words_is_found_in_a_document(tmp_path):
    question = " ".join(NUMBERS)
    ancestry = pretrained_on(tmp_path, [f"Before, {', '.join(NUMBERS[2:15]).upper()}! After."])
    found = check([chat(question, "x"), chat("unrelated " * 14, "y")], ancestry)
    assert found["words"] == 13
    assert found["found"] == found["overlapping"] == [0]
    assert found["equal"] == []


def test_twelve_words_are_not_enough_and_no_run_goes_over_the_end_of_a_text(tmp_path):
    first, second = " ".join(NUMBERS[:8]), " ".join(NUMBERS[8:])
    file = write(tmp_path / "chats.jsonl", [conversation(first, second), conversation(" ".join(NUMBERS[:12]))])
    found = check([chat(" ".join(NUMBERS), "x")], [lineage("finetune", "conversations", file)])
    assert found["found"] == []
    assert found["sentence"].startswith("None of the 1 examples is in what it was trained on: 2 rows were compared")


def test_runs_are_as_long_as_the_shorter_examples_but_eight_words_at_least(tmp_path):
    ancestry = pretrained_on(tmp_path, [f"so {' '.join(NUMBERS[:9])} it is", f"so {' '.join(NUMBERS[:7])} it is"])
    nine, seven = Example(" ".join(NUMBERS[:9])), Example(" ".join(NUMBERS[:7]))
    assert check([nine], ancestry)["words"] == 9
    assert check([nine], ancestry)["found"] == [0]
    found = check([seven], ancestry)
    assert (found["words"], found["too_short"], found["found"]) == (8, 1, [])


OTHERS = [f"{letter}other" for letter in "abcdefghijklmnopqrstuvwxyz"]


@pytest.mark.parametrize(("documents", "found", "common"), [(10, [0], []), (11, [], [])])
def test_what_many_documents_share_is_a_common_phrase(tmp_path, documents, found, common):
    ancestry = pretrained_on(tmp_path, [f"{i} {' '.join(NUMBERS)} {' '.join(NUMBERS)}" for i in range(documents)])
    result = check([Example(" ".join(NUMBERS + OTHERS))], ancestry)
    assert (result["found"], result["common"]) == (found, common)


@pytest.mark.parametrize("documents", [1, 10, 11, 50])
@pytest.mark.parametrize("answer", ["It is so.", " ".join(OTHERS * 3)])
def test_a_question_that_many_documents_quote_is_no_phrase(tmp_path, documents, answer):
    question = " ".join(NUMBERS[:14])
    ancestry = pretrained_on(tmp_path, [f"Quiz {i}: {question}? Who knows." for i in range(documents)] + ["Other."])
    result = check([chat(question, answer), chat(" ".join(OTHERS), answer)], ancestry)
    assert result["found"] == result["overlapping"] == [0]
    assert result["sources"][0]["found"] == 1
    assert result["sentence"].startswith("1 of the 2 examples is in what it was trained on")


def test_what_is_whole_in_no_document_but_common_throughout_is_said(tmp_path):
    first, second = " ".join(NUMBERS[:13]), " ".join(NUMBERS[1:14])
    ancestry = pretrained_on(tmp_path, [f"{i} {first}" for i in range(11)] + [f"{i} {second}" for i in range(11)])
    result = check([Example(" ".join(NUMBERS[:14]))], ancestry)
    assert (result["found"], result["common"]) == ([], [0])
    assert " 1 example consists of common runs only, each in more than 10 rows" in result["sentence"]


def test_the_wording_of_a_task_is_no_example(tmp_path):
    """Every question has it, and so have some documents: nothing else of the questions is in them."""
    wording = " ".join(NUMBERS[:14])
    examples = [Example(f"{wording} {letter} {letter}{letter}") for letter in "abcdefghijkl"]
    ancestry = pretrained_on(tmp_path, [f"{i} {wording}." for i in range(11)])
    assert check(examples, ancestry)["found"] == []


CONGRESS = "中华人民共和国全国人民代表大会"


def test_a_name_in_a_script_without_spaces_is_no_quotation(tmp_path):
    question = f"{CONGRESS}的代表每届任期是多少年，由哪一个机关来召集它的第一次会议呢"
    examples = [Example(question), Example("泰国的首都在哪里，那里有多少人口，为什么有那么多人去那里旅行")]
    for text, found in (
        (f"据新华社报道，{CONGRESS}今天在北京开幕，会议将审议政府工作报告。", []),
        (f"测验题：{question}？请回答。", [0]),
    ):
        assert check(examples, pretrained_on(tmp_path, [text, "别的。"]))["found"] == found


def test_targets_are_looked_for_where_nothing_is_asked(tmp_path):
    ancestry = pretrained_on(tmp_path, ["They are kind.", "Other."])
    found = check([Example("", targets=["They are kind.", "They are not."]), Example("", targets=["No."])], ancestry)
    assert found["equal"] == [0]


def test_both_sides_of_a_preference_count(tmp_path):
    turn = {"role": "assistant", "content": "Never."}
    row = {
        "prompt": [{"role": "user", "content": "May I?"}],
        "chosen": [turn],
        "rejected": [{**turn, "content": "Do!"}],
    }
    ancestry = [lineage("align", "preferences", write(tmp_path / "pairs.jsonl", [row]))]
    assert check([chat("May I?", "Do!"), chat("Must I?")], ancestry)["equal_with_answer"] == [0]


def test_only_the_split_that_was_learned_is_read(corpus):
    examples = [Example(TEXTS[0]), Example(TEXTS[30])]  # of validation, and of train
    found = check(examples, [lineage("pretrain", "corpus", str(corpus), text_column="text")])
    assert found["equal"] == [1]
    assert found["sources"][0]["rows"] == 54


def test_several_tasks_are_compared_in_one_pass(tmp_path):
    ancestry = pretrained_on(tmp_path, ["Why?", "How?"])
    found = find_contamination({"a": [chat("Why?")], "b": [chat("Where?"), chat("How?")], "none": []}, ancestry)
    assert {name: one.found for name, one in found.items()} == {"a": [0], "b": [1]}


def test_without_a_lineage_nothing_is_known():
    found = check([chat("Why?")], [])
    assert found["status"] == "unknown"
    assert found["sentence"] == "What the model was trained on is not known here."


def test_a_base_without_a_lineage_is_named(tmp_path):
    ancestry = [lineage("finetune", "conversations", write(tmp_path / "chats.jsonl", [conversation("Why?")]))]
    ancestry[0]["inputs"]["model"] = {"path": "some/base", "sha256": "hub:some/base"}
    found = check([chat("Why?")], ancestry)
    assert (found["status"], found["found"]) == ("partly", [0])
    assert found["unknown"] == ["What some/base was trained on is not known here."]
    assert "1 of the 1 examples is in what is known of its training" in found["sentence"]


def test_a_base_with_a_lineage_is_followed(tmp_path):
    base = pretrained_on(tmp_path, ["Why?"])[0] | {"path": "/runs/base"}
    tuned = lineage("finetune", "conversations", write(tmp_path / "chats.jsonl", [conversation("How?")]))
    tuned["inputs"]["model"] = {"path": "/runs/base/merged", "sha256": "0"}
    found = check([chat("Why?"), chat("How?")], [tuned, base])
    assert found["status"] == "checked"
    assert [(source["stage"], source["found"]) for source in found["sources"]] == [("finetune", 1), ("pretrain", 1)]


@pytest.mark.parametrize("spoil", ["change", "remove", "cut"])
def test_data_that_is_not_what_it_was_is_not_compared(tmp_path, spoil):
    ancestry = pretrained_on(tmp_path, ["Why?"])
    file = tmp_path / "corpus.jsonl"
    if spoil == "change":
        file.write_text('{"text": "How?"}\n')
    elif spoil == "remove":
        file.unlink()
    else:
        file.write_text('{"text": "Why?"}\n{"text": ')
        ancestry[0]["inputs"]["corpus"] = describe(str(file))
    found = check([chat("Why?")], ancestry)
    assert (found["status"], found["found"], found["sources"]) == ("unknown", [], [])
    assert found["sentence"].startswith("What pretrain learned from cannot be read here: ")
