import json
from types import SimpleNamespace

import pytest
from transformers import AutoModelForCausalLM, TrainerControl, TrainingArguments

from hfchat.training import answers as module
from hfchat.training.answers import HeldOutAnswers

STEPS = 4


@pytest.fixture
def model(chat_model):
    return AutoModelForCausalLM.from_pretrained(chat_model).train()


@pytest.fixture
def at(model, tmp_path):
    """Calls an event of a callback at a step of the training."""
    args = TrainingArguments(str(tmp_path / "trainer"), use_cpu=True, report_to="none")

    def call(event, callback, step):
        state = SimpleNamespace(global_step=step, max_steps=STEPS, is_world_process_zero=True)
        getattr(callback, event)(args, state, TrainerControl(), model=model)

    return call


def callback(tokenizer, rows, folder, number=3, max_new_tokens=8):
    return HeldOutAnswers(tokenizer, rows["messages"][:], number, folder, max_new_tokens)


def test_the_share_of_answers_that_end_is_that_of_the_end_of_turn(at, tokenizer, rows, tmp_path, monkeypatch, model):
    text, end = tokenizer("The answer")["input_ids"], tokenizer.eos_token_id
    said = iter([[text, text, [*text, end]], [[*text, end], [*text, end], text]])
    monkeypatch.setattr(module, "generate_answers", lambda model, prompts: next(said))
    answers = callback(tokenizer, rows, tmp_path)
    at("on_train_begin", answers, 0)
    at("on_train_end", answers, STEPS)
    assert answers.metrics() == {"ended_before": 1 / 3, "ended_after": 2 / 3, "sample_answers": 3}
    answers.save(tmp_path / "answers.jsonl")
    first = json.loads((tmp_path / "answers.jsonl").read_text().splitlines()[0])
    assert first["prompt"] == [{"role": "user", "content": "Question 0?"}]
    assert first["reference"] == "The answer is 0."
    assert first["after"] == {"row": 0, "text": "The answer", "ended": True}
    assert "33% before, 67% after" in str(answers)
    assert "rarely stops" not in str(answers)


@pytest.mark.parametrize("ended_before", [0, 1, 3])
def test_a_model_that_seldom_stops_is_warned_of_whatever_it_did_before(
    at, tokenizer, rows, tmp_path, monkeypatch, ended_before
):
    text, end = tokenizer("The answer")["input_ids"], tokenizer.eos_token_id
    said = iter([[[*text, end]] * ended_before + [text] * (3 - ended_before), [[*text, end], text, text]])
    monkeypatch.setattr(module, "generate_answers", lambda model, prompts: next(said))
    answers = callback(tokenizer, rows, tmp_path)
    at("on_train_begin", answers, 0)
    at("on_train_end", answers, STEPS)
    assert "!!! warning: it rarely stops" in str(answers)


def test_a_resumed_run_keeps_the_answers_of_before(at, tokenizer, rows, tmp_path, model):
    at("on_train_begin", callback(tokenizer, rows, tmp_path), 0)
    before = json.loads((tmp_path / "answers_before.json").read_text())
    for layer in model.model.layers:
        layer.mlp.down_proj.weight.data.normal_()
    resumed = callback(tokenizer, rows, tmp_path)
    at("on_train_begin", resumed, 2)
    at("on_train_end", resumed, STEPS)
    assert [row["before"] for row in resumed.answers] == before
    assert [row["after"] for row in resumed.answers] != before


def test_a_run_that_is_stopped_early_answers_later(at, tokenizer, rows, tmp_path):
    answers = callback(tokenizer, rows, tmp_path)
    at("on_train_begin", answers, 0)
    at("on_train_end", answers, STEPS - 1)
    assert answers.metrics() == {}


def test_the_model_is_left_as_it_was(at, tokenizer, rows, tmp_path, model):
    configured = model.generation_config
    at("on_train_begin", callback(tokenizer, rows, tmp_path), 0)
    assert model.generation_config is configured
    assert model.training


def test_prompts_that_leave_no_room_are_passed_over(at, tokenizer, rows, tmp_path, model):
    conversations = rows["messages"][:]
    conversations[1][0]["content"] *= 5
    short = tokenizer.apply_chat_template(conversations[0][:-1], add_generation_prompt=True, return_dict=False)
    model.config.max_position_embeddings = len(short) + 8 + 2
    answers = HeldOutAnswers(tokenizer, conversations, 2, tmp_path, 8)
    at("on_train_begin", answers, 0)
    assert [row["row"] for row in json.loads(answers.file.read_text())] == [0, 2]


def test_conversations_are_answered_with_their_tools_and_results(at, tokenizer, rows, tmp_path, monkeypatch, model):
    model.config.max_position_embeddings = 4096
    question, text = {"role": "user", "content": "Is it cold?"}, tokenizer("The answer")["input_ids"]
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "weather", "arguments": '{"at": null}'}]}
    answer = {"role": "assistant", "content": "Yes.", "reasoning_content": "4 degrees."}
    conversations = [
        [question, call],
        [question, call, {"role": "tool", "content": "4 degrees"}, answer],
        rows["messages"][0],
    ]
    tools = [json.dumps([{"name": "weather", "description": "Now"}])] * 2 + [None]
    asked = []
    monkeypatch.setattr(module, "generate_answers", lambda model, prompts: asked.extend(prompts) or [text] * 3)
    answers = HeldOutAnswers(tokenizer, conversations, 3, tmp_path, 8, tools)
    at("on_train_begin", answers, 0)
    at("on_train_end", answers, STEPS)
    first, second, third = map(tokenizer.decode, asked[:3])
    assert '"description": "Now"' in first
    assert "4 degrees\n</tool_response>" in second
    assert "# Tools" not in third
    assert [row["reference"] for row in answers.answers] == [
        '<tool_call>\n{"name": "weather", "arguments": {"at": null}}\n</tool_call>',
        "<think>\n4 degrees.\n</think>\n\nYes.",
        "The answer is 0.",
    ]
