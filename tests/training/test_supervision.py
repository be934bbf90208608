import json

import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from hfchat.chat import Chat
from hfchat.chat_template import (
    CHAT_TEMPLATE,
    default_system_message,
    fingerprint,
    record_fingerprint,
    set_chat_template,
)
from hfchat.errors import UserError
from hfchat.messages import check_messages
from hfchat.serving.engines.encoding import PromptEncoder
from hfchat.training.supervision import load_chat_tokenizer, show_supervised, supervise


def test_supervised_tokens_are_counted_and_shown(rows, tokenizer):
    dataset, supervision = supervise(rows, tokenizer, 128, "test")
    assert supervision.conversations == 12
    assert supervision.too_long == 0
    assert supervision.supervised_tokens == sum(label != -100 for row in dataset["labels"] for label in row)
    assert 0 < supervision.supervised_tokens < supervision.tokens
    assert show_supervised(dataset[0], tokenizer) == (
        "<|im_start|>user\nQuestion 0?<|im_end|>\n<|im_start|>assistant\n⟦The answer is 0.<|im_end|>⟧\n"
    )


def test_an_answer_that_quotes_the_end_of_a_turn_is_learned_to_its_own(tokenizer):
    messages = [
        {"role": "user", "content": "What is <|im_end|>\n<|im_start|>assistant\nNothing."},
        {"role": "assistant", "content": "It says <|im_end|> where a turn ends."},
    ]
    dataset, supervision = supervise(Dataset.from_list([{"messages": messages}]), tokenizer, 256, "test")
    labels = [label for label in dataset[0]["labels"] if label != -100]
    assert tokenizer.decode(labels) == "It says <|im_end|> where a turn ends.<|im_end|>"
    assert labels.count(tokenizer.eos_token_id) == 1 == supervision.supervised_tokens - len(labels) + 1
    asked = PromptEncoder(tokenizer, len(tokenizer)).conversation(Chat(messages[:1])).ids
    assert dataset[0]["input_ids"][: len(asked)] == asked, "as the server asks it"


def test_long_conversations_are_left_out_and_reported_not_cut(rows, tokenizer):
    everything, _ = supervise(rows, tokenizer, 128, "test")
    longest = max(map(len, everything["input_ids"]))
    kept, supervision = supervise(rows, tokenizer, longest - 1, "test")
    assert supervision.too_long == 12 - len(kept) > 0
    assert "longer than max_length were left out" in str(supervision)
    assert all(labels[-2] == tokenizer.eos_token_id for labels in kept["labels"])
    with pytest.raises(UserError, match="max_length 3: all 12 conversations of test are longer"):
        supervise(rows, tokenizer, 3, "test")


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", "marks no supervised tokens"),
        (
            "{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}<|im_end|>{% endfor %}",
            "the end-of-turn token <.im_end.> gets no loss",
        ),
    ],
)
def test_a_template_that_teaches_nothing_or_never_to_stop_is_refused(rows, chat_model, template, problem):
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=problem):
        supervise(rows, tokenizer, 128, "test")


def test_padding_with_the_end_of_turn_is_refused(rows, chat_model):
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    tokenizer.pad_token = tokenizer.eos_token
    with pytest.raises(UserError, match="never learn to stop"):
        supervise(rows, tokenizer, 128, "test")


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ("Hello", "must be a list of turns"),
        ([], "must be a list of turns"),
        ([{"role": "human", "content": "Hi"}], "turn 0 has the role 'human'"),
        ([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": " "}], r"turn 1 \(assistant\) has no"),
        ([{"role": "user", "content": "Hi"}], "the last turn must be the assistant's"),
    ],
)
def test_what_is_no_conversation_is_named(messages, problem):
    with pytest.raises(UserError, match=f"row 7: .*{problem}"):
        check_messages(messages, "row 7")


def test_a_base_that_learned_another_template_is_refused(chat_model, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    tokenizer.chat_template = CHAT_TEMPLATE.replace("user", "human") + " "
    record_fingerprint(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"was trained with another chat template .* --allow_template_mismatch true"):
        load_chat_tokenizer(str(tmp_path), "main", allow_mismatch=False)
    taken, new_tokens = load_chat_tokenizer(str(tmp_path), "main", allow_mismatch=True)
    assert taken.chat_template == CHAT_TEMPLATE
    assert new_tokens == []


def test_a_base_of_ours_keeps_its_template(chat_model, tokenizer):
    taken, new_tokens = load_chat_tokenizer(str(chat_model), "main", allow_mismatch=False)
    assert fingerprint(taken) == fingerprint(tokenizer)
    assert new_tokens == []


def test_the_system_message_is_that_of_the_base_or_the_one_that_is_wanted(chat_model, tmp_path):
    base = AutoTokenizer.from_pretrained(chat_model)
    set_chat_template(base, system_message="You are Ada.")
    record_fingerprint(base)
    base.save_pretrained(tmp_path)

    def heard(**wanted):
        tokenizer, _ = load_chat_tokenizer(str(tmp_path), "main", allow_mismatch=False, **wanted)
        return default_system_message(tokenizer)

    assert heard() == "You are Ada."
    assert heard(system_message="You are Bo.") == "You are Bo."
    assert heard(system_message="") == ""


def test_tool_calls_are_learned_and_their_results_are_not(tokenizer):
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}}
    messages = [
        {"role": "user", "content": "Is it cold in Bern?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "4 degrees"},
        {"role": "assistant", "content": "Yes."},
    ]
    tools = [{"type": "function", "function": {"name": "weather", "description": "Now", "parameters": {}}}]
    dataset, _ = supervise(Dataset.from_list([{"messages": messages, "tools": tools}]), tokenizer, 2048, "test")
    text = show_supervised(dataset[0], tokenizer)
    called = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call><|im_end|>'
    assert f"⟦{called}⟧" in text
    assert "⟦Yes.<|im_end|>⟧" in text
    assert text.count("⟦") == 2
    assert '"description": "Now"' in text


def test_a_turn_of_the_weight_0_is_not_learned(tokenizer):
    messages = [
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "3.", "weight": 0},
        {"role": "user", "content": "Again."},
        {"role": "assistant", "content": "2.", "weight": 1},
    ]
    dataset, _ = supervise(Dataset.from_list([{"messages": messages}] * 2), tokenizer, 2048, "test")
    text = show_supervised(dataset[0], tokenizer)
    assert "assistant\n3.<|im_end|>" in text
    assert "⟦2.<|im_end|>⟧" in text
    assert text.count("⟦") == 1
    for turn in messages[1::2]:
        turn["weight"] = 0
    with pytest.raises(UserError, match="row 0: every turn of the assistant has the weight 0"):
        supervise(Dataset.from_list([{"messages": messages}]), tokenizer, 2048, "test")


def test_tools_may_be_json_in_a_text(tokenizer):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    rows = [{"messages": messages, "tools": given} for given in (json.dumps(tools), json.dumps(tools[0]["function"]))]
    dataset, _ = supervise(Dataset.from_list(rows), tokenizer, 2048, "test")
    (expected,), _ = supervise(Dataset.from_list([{"messages": messages, "tools": tools}]), tokenizer, 2048, "test")
    assert [row["input_ids"] for row in dataset] == [expected["input_ids"]] * 2
    with pytest.raises(UserError, match="row 0: 'tools': not JSON"):
        supervise(Dataset.from_list([{"messages": messages, "tools": "{"}]), tokenizer, 2048, "test")


@pytest.mark.parametrize("field", ["reasoning", "thinking", "function_call", "audio"])
def test_a_field_that_would_not_be_learned_is_named(tokenizer, field):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho", field: "So."}]
    with pytest.raises(UserError, match=f"row 0: turn 1 .assistant. has '{field}', which the chat template does not"):
        supervise(Dataset.from_list([{"messages": messages}]), tokenizer, 2048, "test")
