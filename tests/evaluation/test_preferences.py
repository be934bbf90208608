"""Held-out pairs: which a model wins against the baseline."""

import json
from dataclasses import asdict

import pytest

from hfchat.chat_template import record_fingerprint
from hfchat.errors import UserError
from hfchat.evaluation.local_model import LocalModel
from hfchat.evaluation.model import EvaluatedModel
from hfchat.evaluation.perplexity import continuation_losses
from hfchat.evaluation.records import read_records, write_records
from hfchat.evaluation.suite import TaskEntry
from hfchat.evaluation.task import Record, result
from hfchat.results import Bootstrap
from hfchat.token_ids import encode_conversation
from tests.conftest import random_llama


def row(question, chosen, rejected, **more):
    return {
        "prompt": [{"role": "user", "content": question}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        **more,
    }


ROWS = [row("hi", "hello", "what"), row("who", "me", "you, of course"), row("when", "now", "later", source="retry")]


@pytest.fixture
def make_task(tmp_path):
    def make(rows=ROWS, **settings):
        file = tmp_path / "pairs.jsonl"
        file.write_text("\n".join(map(json.dumps, rows)))
        task = TaskEntry.parse({"kind": "preferences", "dataset_name": str(file), **settings}).build()
        task.prepare()
        return task

    return make


def test_a_pair_is_won_by_the_greater_margin(make_task, tmp_path):
    task = make_task()
    losses = {
        "current": [[5.0, 1.0], [2.0, 2.0], [1.0, 3.0]],
        "candidate": [[4.0, 1.0], [2.0, 2.0], [1.0, 2.0]],  # margins -3 > -4, 0 = 0, 1 < 2
    }
    for model, pairs in losses.items():
        records = [Record(i, "", targets=["a", "b"], losses=pair) for i, pair in enumerate(pairs)]
        write_records(tmp_path / f"{model}.jsonl", records)
    task.collect_jointly(list(losses), tmp_path)
    measured = asdict(result(task, list(losses), tmp_path, Bootstrap(100, 0)))
    scores = {metric: one["score"] for metric, one in measured["scores"]["candidate"].items()}
    assert scores == {"win_rate": 0.5, "accuracy": pytest.approx(1 / 3), "margin": pytest.approx(-2 / 3)}
    assert [record.scores["win_rate"] for record in read_records(tmp_path / "candidate.jsonl")] == [1.0, 0.5, 0.0]
    assert measured["scores"]["current"]["win_rate"]["score"] == 0.5
    assert measured["headline"] == "win_rate"


def test_a_model_against_itself_is_even(make_task, chat_model, tmp_path):
    task = make_task()
    for name in ("one", "two"):
        model = LocalModel(name, str(chat_model), batch_size=2, dtype="float32")
        task.check(model)
        task.collect(model, tmp_path / "records")
    task.collect_jointly(["one", "two"], tmp_path / "records")
    assert [record.scores["win_rate"] for record in read_records(tmp_path / "records" / "two.jsonl")] == [0.5] * 3
    assert all(record.losses[0] > 0 for record in read_records(tmp_path / "records" / "two.jsonl"))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"chosen": [{"role": "assistant", "content": "a"}]}], "no column 'prompt'"),
        ([row("hi", "a", "b") | {"rejected": []}], "row 1: rejected must be messages"),
        ([*ROWS, row("hi", None, "b")], "row 4: chosen: message 0 has no content"),
        ([row(None, "a", "b"), *ROWS], "row 1: prompt: message 0 has no content"),
        ([row("hi", "a", "b") | {"chosen": [{"role": "user", "content": "a"}]}], "one message of the assistant"),
    ],
)
def test_what_are_no_pairs_is_refused(make_task, rows, words):
    with pytest.raises(UserError, match=words):
        make_task(rows)


def test_a_server_is_left_out(make_task):
    class Server(EvaluatedModel):
        gives_losses = False

    assert "no likelihoods" in make_task().refusal(Server("server", "http://there/v1", 1))


def call(city):
    return [
        {"type": "function", "function": {"name": "weather", "arguments": json.dumps({"city": city, "day": None})}}
    ]


def test_pairs_of_calls_are_read_with_their_tools(make_task, tokenizer, tmp_path):
    """Beside pairs of texts; a null that only Arrow has put there is none, and one in the arguments stays."""
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    asked = [
        {"role": "user", "content": "Rome or Oslo?", "tool_calls": None, "tool_call_id": None},
        {"role": "assistant", "content": "", "tool_calls": call("Rome"), "tool_call_id": None},
        {"role": "tool", "content": "18", "tool_calls": None, "tool_call_id": "a"},
    ]
    answers = [{"role": "assistant", "content": "", "tool_calls": call(city)} for city in ("Oslo", "Paris")]
    pair = {"prompt": asked, "chosen": answers[:1], "rejected": answers[1:], "tools": json.dumps(tools)}
    task = make_task([row("hi", "hello", "what"), pair])
    llama = random_llama(tokenizer, max_position_embeddings=1024, initializer_range=0.5)
    record_fingerprint(tokenizer, llama)
    for part in (llama, tokenizer):
        part.save_pretrained(tmp_path / "model")
    model = LocalModel("m", str(tmp_path / "model"), 2, "float32")
    task.check(model)
    task.collect(model, tmp_path)
    _, record = read_records(tmp_path / "m.jsonl")
    assert record.targets == ['weather({"city": "Oslo", "day": null})', 'weather({"city": "Paris", "day": null})']
    # What the chat template adds for the answer, up to its end of turn.
    messages = [{name: value for name, value in turn.items() if value is not None} for turn in asked]
    context = encode_conversation(model.tokenizer, messages, tools, add_generation_prompt=True)
    for answer, loss, length in zip(answers, record.losses, record.target_tokens, strict=True):
        ids = encode_conversation(model.tokenizer, [*messages, answer], tools)[len(context) :]
        ids = ids[: ids.index(model.tokenizer.eos_token_id) + 1]
        assert '"day": null' in model.tokenizer.decode(ids)
        [expected] = continuation_losses(model.model, [(context, ids)])
        assert (loss, length) == (pytest.approx(expected, rel=1e-4), len(ids))
