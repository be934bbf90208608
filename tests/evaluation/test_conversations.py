import json

import pytest

from hfchat.errors import UserError
from hfchat.evaluation.conversations import Conversation, encode, load_conversations

USER, ASSISTANT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}


@pytest.fixture
def write(tmp_path):
    def write(*rows, name="rows.jsonl"):
        file = tmp_path / name
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(file)

    return write


def test_the_last_answer_is_the_reference(write):
    turns = [{"role": "system", "content": "Be brief."}, USER, ASSISTANT, {"role": "user", "content": "Why?"}]
    file = write(
        {"messages": [*turns, {"role": "assistant", "content": "So."}], "topic": "x"}, {"messages": [USER, ASSISTANT]}
    )
    first, second = load_conversations(file, "validation")
    assert (first.prompt, first.reference) == (turns, "So.")
    assert (second.prompt, second.reference) == ([USER], "Hello.")
    assert len(load_conversations(file, "test", max_samples=1)) == 1


def test_a_folder_is_read_by_its_split(write, tmp_path):
    write({"messages": [USER, ASSISTANT]}, {"messages": [USER, ASSISTANT]}, name="train.jsonl")
    write({"messages": [USER, ASSISTANT]}, name="validation.jsonl")
    assert len(load_conversations(str(tmp_path), "validation")) == 1
    with pytest.raises(UserError, match=r"cannot load split 'test'"):
        load_conversations(str(tmp_path), "test")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": None}, "row 2: has no messages"),
        ({"text": "x"}, "row 2: has no messages"),
        ({"messages": []}, "row 2: has no messages"),
        ({"messages": [USER]}, "row 2: the last turn must be the assistant's, not the user's"),
        ({"messages": [ASSISTANT]}, "row 2: has no turn before the answer"),
        ({"messages": [USER, {"role": "assistant", "content": " "}]}, r"row 2: turn 1 \(assistant\) has no content"),
        ({"messages": [USER, {"role": "assistant"}]}, r"row 2: turn 1 \(assistant\) has no content"),
        ({"messages": [{"content": "Hi"}, ASSISTANT]}, "row 2: turn 0 has the role None"),
        ({"messages": "Hi"}, "row 2: has no messages"),
    ],
)
def test_bad_rows_are_named(write, row, message):
    file = write({"messages": [USER, ASSISTANT]}, row)
    with pytest.raises(UserError, match=message) as error:
        load_conversations(file, "validation")
    assert "\n" not in str(error.value)


def test_a_dataset_without_messages_or_rows_is_an_error(write):
    with pytest.raises(UserError, match=r"no column 'messages', only \['text'\]"):
        load_conversations(write({"text": "x"}), "validation")
    with pytest.raises(UserError, match=r"empty.jsonl"):
        load_conversations(write(name="empty.jsonl"), "validation")


def test_the_answer_ends_with_its_end_of_turn(tokenizer):
    example = encode(Conversation([USER], "Hello.", "row 1"), tokenizer)
    assert tokenizer.decode(example.prompt_ids) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(example.answer_ids) == "Hello.<|im_end|>"


def test_a_template_that_rewrites_the_prompt_is_an_error(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", "{{ messages | length }}{{ messages[-1].content }}")
    with pytest.raises(UserError, match=r"row 7: the chat template of .* does not continue the prompt"):
        encode(Conversation([USER], "Hello.", "row 7"), tokenizer)
