import json

import pytest

from hfchat.errors import UserError
from hfchat.evaluation import predictions as module
from hfchat.evaluation.conversations import Conversation, encode
from hfchat.evaluation.predictions import predict, read_predictions

SETTINGS = {"dtype": "float32", "max_new_tokens": 6, "batch_size": 2}


@pytest.fixture(scope="module")
def examples(tokenizer):
    rows = [
        Conversation([{"role": "user", "content": f"Question {'?' * i}"}], "An\u2028swer.", f"row {i}")
        for i in range(5)
    ]
    return [encode(row, tokenizer) for row in rows]


@pytest.fixture
def model_path(model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def batches(monkeypatch):
    """Sizes of the batches that are generated."""
    sizes = []
    generate = module.generate_answers

    def count(model, prompts):
        sizes.append(len(prompts))
        return generate(model, prompts)

    monkeypatch.setattr(module, "generate_answers", count)
    return sizes


def _answers(predictions):
    return [(prediction.index, prediction.prediction, prediction.ended) for prediction in predictions]


def test_predictions_are_in_the_datasets_order_and_in_the_file(model_path, tokenizer, examples, batches, tmp_path):
    file = tmp_path / "predictions" / "tiny.jsonl"
    result = predict("tiny", model_path, tokenizer, examples, file, **SETTINGS)
    assert batches == [2, 2, 1]
    assert [prediction.index for prediction in result] == [0, 1, 2, 3, 4]
    assert [prediction.prompt for prediction in result] == [example.conversation.prompt for example in examples]
    assert all(1 <= prediction.prediction_tokens <= 6 for prediction in result)
    assert read_predictions(file) == result


def test_half_written_predictions_are_taken_up(model_path, tokenizer, examples, batches, tmp_path):
    whole = predict("tiny", model_path, tokenizer, examples, tmp_path / "whole.jsonl", **SETTINGS)
    lines = (tmp_path / "whole.jsonl").read_bytes().split(b"\n")
    file = tmp_path / "half.jsonl"
    file.write_bytes(b"\n".join([lines[4], lines[1], lines[2][:-9]]))
    batches.clear()
    resumed = predict("tiny", model_path, tokenizer, examples, file, **SETTINGS)
    assert batches == [2, 1]
    assert _answers(resumed) == _answers(whole)
    losses = [[prediction.reference_loss for prediction in predictions] for predictions in (resumed, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert [json.loads(line)["index"] for line in file.read_bytes().splitlines()] == [0, 1, 2, 3, 4]


def test_a_torn_line_is_cut_off_the_file(model_path, tokenizer, examples, tmp_path):
    file = tmp_path / "torn.jsonl"
    result = predict("tiny", model_path, tokenizer, examples, file, **SETTINGS)
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"index": 5, "prom')
    assert read_predictions(file) == result
    assert file.read_bytes() == whole


def test_nothing_is_loaded_when_nothing_is_left(model_path, tokenizer, examples, monkeypatch, tmp_path):
    file = tmp_path / "done.jsonl"
    result = predict("tiny", model_path, tokenizer, examples, file, **SETTINGS)
    monkeypatch.setattr(module, "load_model", lambda *args, **kwargs: pytest.fail("loaded the model"))
    assert predict("tiny", model_path, tokenizer, examples, file, **SETTINGS) == result


def test_answers_of_a_batch_are_on_disk_before_the_next(model_path, tokenizer, examples, monkeypatch, tmp_path):
    file = tmp_path / "killed.jsonl"
    generate, lines = module.generate_answers, []

    def fail_at_the_second(model, prompts):
        lines.append(file.read_bytes().count(b"\n"))
        if len(lines) == 2:
            raise MemoryError
        return generate(model, prompts)

    monkeypatch.setattr(module, "generate_answers", fail_at_the_second)
    with pytest.raises(MemoryError):
        predict("tiny", model_path, tokenizer, examples, file, **SETTINGS)
    assert lines == [0, 2]
    assert len(read_predictions(file)) == 2


def test_a_prompt_that_the_model_cannot_read_is_an_error(model_path, tokenizer, examples, tmp_path):
    settings = SETTINGS | {"max_new_tokens": 250}
    with pytest.raises(UserError, match=r"row \d: its prompt and answer take 2\d\d tokens, but .* reads 256"):
        predict("tiny", model_path, tokenizer, examples, tmp_path / "long.jsonl", **settings)


def test_a_file_of_something_else_is_an_error(tmp_path):
    (tmp_path / "other.jsonl").write_text('{"index": 0}\n')
    with pytest.raises(UserError, match="delete the file"):
        read_predictions(tmp_path / "other.jsonl")
