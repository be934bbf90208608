import json

import pytest
from benchmarks.evaluate import gap, in_batches, main, one_by_one

from hfchat.evaluation.local_model import LocalModel
from hfchat.evaluation.task import Example


@pytest.fixture
def tiny(chat_model):
    return LocalModel("tiny", str(chat_model), batch_size=2, dtype="float32")


EXAMPLES = [
    Example([{"role": "user", "content": text}]) for text in ("Hi", "How do I train a tokenizer?", "Why? " * 5)
]


def test_both_ways_give_the_same_answers(tiny, tmp_path):
    answers = one_by_one(tiny, EXAMPLES, 6)
    texts = [tiny.tokenizer.decode(ids, skip_special_tokens=True) for ids in answers]
    assert in_batches(tiny, EXAMPLES, 6, tmp_path / "answers.jsonl") == texts
    assert all(texts)


def test_a_gap_is_how_close_the_second_token_was_where_answers_part(tiny):
    prompt, answer = [1, 2, 3], [40, 41, 42]
    other = tiny.tokenizer.decode([40, 99])
    assert 0 <= gap(tiny, prompt, answer, other) < 1  # the weights are random


def test_the_table_has_both_ways(chat_model, tmp_path, capsys):
    rows = [{"messages": [*example.prompt, {"role": "assistant", "content": "Yes."}]} for example in EXAMPLES]
    (tmp_path / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--prompts", "2", "--max_new_tokens", "4", "--batch_size", "2", "--dtypes", "float32"]
    main(["--model", str(chat_model), "--dataset_name", str(tmp_path), *options])
    printed = capsys.readouterr().out
    _, _, single, batched = [line.split("|") for line in printed.splitlines() if line.startswith("| ")]
    assert [cell.strip() for cell in single[1:4]] == ["float32", "one by one", "2"]
    assert [cell.strip() for cell in batched[1:4]] == ["float32", "batches of 2", "2"]
    assert batched[8].strip() == "2 of 2"
