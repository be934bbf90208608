import json

import pytest
import torch

from hfchat.errors import UserError
from hfchat.evaluation import asking
from hfchat.evaluation.asking import Asked, ask
from hfchat.evaluation.local_model import LocalModel
from hfchat.evaluation.records import read_records
from hfchat.evaluation.task import Example

EXAMPLES = [
    Example(
        [{"role": "user", "content": f"Question {'?' * i}"}],
        references=["An\u2028swer."],
        targets=["An\u2028swer.", "No."],
        group="odd" if i % 2 else "even",
        info={"line": i},
        place=f"row {i}",
    )
    for i in range(5)
]
ASKED = Asked(max_new_tokens=6, losses=True)


@pytest.fixture
def path(model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def tiny(path):
    return LocalModel("tiny", path, batch_size=2, dtype="float32")


@pytest.fixture
def batches(monkeypatch):
    """Sizes of the batches that are answered."""
    sizes = []
    answer = LocalModel.answer

    def count(self, prompts, *args):
        sizes.append(len(prompts))
        return answer(self, prompts, *args)

    monkeypatch.setattr(LocalModel, "answer", count)
    return sizes


def _said(records):
    return [(record.index, record.answer, record.answer_tokens, record.ended, record.losses) for record in records]


def test_records_are_in_the_order_of_the_examples(tiny, batches, tmp_path):
    file = tmp_path / "records" / "tiny.jsonl"
    ask(tiny, EXAMPLES, file, ASKED, "tiny")
    assert batches == [2, 2, 1]
    records = read_records(file)
    assert [json.loads(line)["index"] for line in file.read_bytes().splitlines()] == [0, 1, 2, 3, 4]
    for record, example in zip(records, EXAMPLES, strict=True):
        assert (record.prompt, record.references) == (example.prompt, example.references)
        assert (record.group, record.info) == (example.group, example.info)
        assert 1 <= record.answer_tokens <= 6
        assert len(record.losses) == len(record.target_tokens) == 2
        assert record.losses[0] > record.losses[1] > 0  # the longer text is the less likely one


def test_a_stopped_run_goes_on_with_the_same_batches(tiny, batches, tmp_path):
    ask(tiny, EXAMPLES, tmp_path / "whole.jsonl", ASKED, "tiny")
    whole = read_records(tmp_path / "whole.jsonl")
    lines = (tmp_path / "whole.jsonl").read_bytes().split(b"\n")
    file = tmp_path / "half.jsonl"
    # Of the batches (4, 3), (2, 1), (0) the first is whole, and the line of 1 is torn.
    file.write_bytes(b"\n".join([lines[4], lines[3], lines[2], lines[1][:-9]]))
    batches.clear()
    ask(tiny, EXAMPLES, file, ASKED, "tiny")
    assert batches == [2, 1]
    assert _said(read_records(file)) == _said(whole)
    batches.clear()
    ask(tiny, EXAMPLES, file, ASKED, "tiny")
    assert batches == []


def test_answers_of_a_batch_are_on_disk_before_the_next(tiny, monkeypatch, tmp_path):
    file = tmp_path / "killed.jsonl"
    answer, lines = LocalModel.answer, []

    def fail_at_the_second(self, prompts, *args):
        lines.append(file.read_bytes().count(b"\n") if file.exists() else 0)
        if len(lines) == 2:
            raise KeyboardInterrupt
        return answer(self, prompts, *args)

    monkeypatch.setattr(LocalModel, "answer", fail_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        ask(tiny, EXAMPLES, file, ASKED, "tiny")
    assert lines == [0, 2]
    assert len(read_records(file)) == 2


def test_out_of_memory_halves_the_batch_and_all_after_it(tiny, monkeypatch, tmp_path, capsys):
    tiny.batch_size = 5
    answer, sizes = LocalModel.answer, []

    def of_two_at_most(self, prompts, *args):
        sizes.append(len(prompts))
        if len(prompts) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate much")
        return answer(self, prompts, *args)

    monkeypatch.setattr(LocalModel, "answer", of_two_at_most)
    ask(tiny, EXAMPLES, tmp_path / "halved.jsonl", ASKED, "tiny")
    assert sizes == [5, 2, 2, 1]
    assert tiny.batch_size == 2
    assert [record.index for record in read_records(tmp_path / "halved.jsonl")] == [0, 1, 2, 3, 4]
    assert "out of memory with 5 examples at a time; going on with 2" in capsys.readouterr().out


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Much"), ValueError("else")])
def test_what_halving_does_not_help_is_raised(tiny, monkeypatch, tmp_path, error):
    tiny.batch_size = 1

    def fail(self, prompts, *args):
        raise error

    monkeypatch.setattr(LocalModel, "answer", fail)
    with pytest.raises(type(error)):
        ask(tiny, EXAMPLES, tmp_path / "failed.jsonl", ASKED, "tiny")


def test_a_prompt_that_the_model_cannot_read_is_an_error(tiny, tmp_path):
    with pytest.raises(UserError, match=r"row \d: its prompt and answer take 2\d\d tokens, but .* reads 256"):
        ask(tiny, EXAMPLES, tmp_path / "long.jsonl", Asked(max_new_tokens=250), "tiny")


@pytest.mark.parametrize("model", ["llama"], indirect=True)
def test_two_processes_say_the_same_as_one(path, tiny, in_two_processes, tmp_path):
    ask(tiny, EXAMPLES, tmp_path / "one.jsonl", ASKED, "tiny")
    in_two_processes(
        "from pathlib import Path",
        "from tests.evaluation.test_asking import ASKED, EXAMPLES, LocalModel, ask",
        f"model = LocalModel('tiny', {path!r}, batch_size=2, dtype='float32')",
        f"ask(model, EXAMPLES, Path({str(tmp_path / 'two.jsonl')!r}), ASKED, 'tiny')",
    )
    one, two = (read_records(tmp_path / name) for name in ("one.jsonl", "two.jsonl"))
    assert [(record.index, record.answer) for record in two] == [(record.index, record.answer) for record in one]
    for before, after in zip(one, two, strict=True):
        assert after.losses == pytest.approx(before.losses, rel=1e-6)
    assert not list(tmp_path.glob("*.part"))


def test_parts_of_another_number_of_processes_are_taken_up(tiny, batches, tmp_path):
    ask(tiny, EXAMPLES, tmp_path / "whole.jsonl", ASKED, "tiny")
    lines = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "tiny.0.part").write_bytes(lines[4] + lines[3])
    (tmp_path / "tiny.1.part").write_bytes(lines[2] + lines[1])
    batches.clear()
    ask(tiny, EXAMPLES, tmp_path / "tiny.jsonl", ASKED, "tiny")
    assert batches == [1]
    assert (tmp_path / "tiny.jsonl").read_bytes().count(b"\n") == 5
    assert not list(tmp_path.glob("*.part"))


def test_asking_needs_no_weights_when_nothing_is_left(tiny, monkeypatch, tmp_path):
    ask(tiny, EXAMPLES, tmp_path / "done.jsonl", ASKED, "tiny")
    again = LocalModel("tiny", tiny.path, batch_size=2, dtype="float32")
    ask(again, EXAMPLES, tmp_path / "done.jsonl", ASKED, "tiny")
    assert again.parameters is None
    assert asking.launched().num_processes == 1
