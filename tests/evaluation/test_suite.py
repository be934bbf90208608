"""How a suite goes through tasks and models, with tasks that note what is done to them."""

from dataclasses import asdict, dataclass
from typing import ClassVar

import pytest

from hfchat.errors import UserError
from hfchat.evaluation import suite
from hfchat.evaluation.bootstrap import mean
from hfchat.evaluation.local_model import LocalModel
from hfchat.evaluation.records import read_records, write_records
from hfchat.evaluation.suite import prepare_suite, run_suite
from hfchat.evaluation.task import Measured, Record, Task
from hfchat.results import Bootstrap, Metric


@dataclass
class Noting(Task):
    name: str
    log: list
    without: str = ""
    broken: bool = False
    kind: ClassVar = "noting"
    columns: ClassVar = {"length": Metric("Length", None)}

    def prepare(self):
        self.log.append(("prepare", self.name))

    def refusal(self, model):
        return "gives no likelihoods" if model.name == self.without else None

    def check(self, model):
        self.log.append(("check", self.name, model.name))
        if self.broken:
            raise UserError("row 3: too long")

    def collect(self, model, folder):
        self.log.append(("collect", self.name, model.name))
        _ = model.model  # the weights
        write_records(folder / f"{model.name}.jsonl", [Record(0, "x", answer=model.name)])

    def collect_jointly(self, models, folder):
        self.log.append(("jointly", self.name, *models))

    def measure(self, model, folder):
        answers = [record.answer for record in read_records(folder / f"{model}.jsonl")]
        return Measured({"length": mean([len(answer) for answer in answers], "length")})


def go(tasks, models, folder):
    """The tasks' results as `results.json` has them, and what asking took of each model."""
    prepare_suite(tasks, models)
    results = run_suite(tasks, models, folder, Bootstrap(10, 1))
    return results and (asdict(results)["tasks"], asdict(results)["models"])


@pytest.fixture
def models(chat_model, monkeypatch):
    models = [LocalModel(name, str(chat_model), batch_size=2, dtype="float32") for name in ("a", "bbb")]
    return models


def test_one_model_is_in_memory_at_a_time(models, tmp_path, monkeypatch):
    log = []
    for model in models:
        monkeypatch.setattr(model, "free", lambda model=model: log.append(("free", model.name)))
    scores, usage = go([Noting("t", log), Noting("u", log)], models, tmp_path)
    assert log == [
        ("prepare", "t"), ("prepare", "u"),
        ("check", "t", "a"), ("check", "t", "bbb"), ("check", "u", "a"), ("check", "u", "bbb"),
        ("collect", "t", "a"), ("collect", "u", "a"), ("free", "a"),
        ("collect", "t", "bbb"), ("collect", "u", "bbb"), ("free", "bbb"),
        ("jointly", "t", "a", "bbb"), ("jointly", "u", "a", "bbb"),
    ]  # fmt: skip
    assert scores["t"]["scores"]["bbb"]["length"]["score"] == 3
    assert scores["t"]["comparisons"][0]["metrics"]["length"]["difference"] == 2
    assert usage["a"]["parameters"] == models[1].model.num_parameters()


def test_usage_is_kept_for_a_run_that_loads_nothing_again(models, tmp_path, monkeypatch):
    _, usage = go([Noting("t", [])], models, tmp_path)
    monkeypatch.setattr(Noting, "collect", lambda *args: None)
    scores, again = go([Noting("t", [])], models, tmp_path)
    assert again == usage
    assert set(scores["t"]["scores"]) == {"a", "bbb"}


def test_a_model_that_cannot_take_part_is_left_out_of_that_task(models, tmp_path):
    tasks = [Noting("t", log := [], without="a"), Noting("u", log)]
    scores, _ = go(tasks, models, tmp_path)
    assert ("collect", "t", "a") not in log
    assert ("jointly", "t", "bbb") in log
    assert scores["t"]["left_out"] == {"a": "gives no likelihoods"}
    assert set(scores["t"]["scores"]) == {"bbb"}
    assert set(scores["u"]["scores"]) == {"a", "bbb"}


def test_a_task_without_any_model_is_refused(models, tmp_path):
    with pytest.raises(UserError, match="tasks: t: gives no likelihoods"):
        go([Noting("t", [], without="a")], models[:1], tmp_path)


def test_everything_is_checked_before_a_model_is_loaded(models, tmp_path):
    log = []
    with pytest.raises(UserError, match="row 3: too long"):
        go([Noting("t", log), Noting("u", log, broken=True)], models, tmp_path)
    assert not [entry for entry in log if entry[0] == "collect"]
    assert all(model.parameters is None for model in models)


def test_processes_without_results_return_none(models, tmp_path, monkeypatch):
    class Second:
        is_main_process = False

    monkeypatch.setattr(suite, "launched", Second)
    assert go([Noting("t", [])], models, tmp_path) is None
