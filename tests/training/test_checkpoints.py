import contextlib
import resource
import shutil
import signal

import pytest
from transformers import TrainerState

from hfchat.errors import UserError
from hfchat.training.checkpoints import find_damage, last_checkpoint
from tests.training.trainers import trainer_for

SAVING = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3, "save_total_limit": None}


@pytest.fixture(scope="module")
def saved(packed, tokenizer, tmp_path_factory):
    """An output with three checkpoints."""
    folder = tmp_path_factory.mktemp("saved")
    trainer_for(packed, tokenizer, folder, **SAVING).train()
    return folder


def cut(file):
    file.write_bytes(file.read_bytes()[:-100])


DAMAGE = {
    "no trainer_state.json": lambda folder: (folder / "trainer_state.json").unlink(),
    "trainer_state.json is cut": lambda folder: cut(folder / "trainer_state.json"),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "model.safetensors is cut": lambda folder: cut(folder / "model.safetensors"),
    "no state of the optimizer": lambda folder: (folder / "optimizer.pt").unlink(),
    "optimizer.pt is cut": lambda folder: cut(folder / "optimizer.pt"),
    "no scheduler.pt": lambda folder: (folder / "scheduler.pt").unlink(),
    "rng_state.pth is cut": lambda folder: cut(folder / "rng_state.pth"),
}


@pytest.mark.parametrize("fault", DAMAGE)
def test_a_checkpoint_that_is_not_whole_is_passed_over_with_a_warning(saved, tmp_path, capsys, fault):
    folder = tmp_path / "run"
    shutil.copytree(saved, folder)
    assert last_checkpoint(folder) == str(folder / "checkpoint-3")
    assert capsys.readouterr().out == ""
    DAMAGE[fault](folder / "checkpoint-3")
    assert last_checkpoint(folder) == str(folder / "checkpoint-2")
    assert f"checkpoint-3 is not whole ({fault}); passing it over" in capsys.readouterr().out


def test_a_checkpoint_is_written_aside(packed, tokenizer, tmp_path, monkeypatch):
    """What `CheckpointMixin` relies on, of the private methods of `Trainer` that it overrides."""
    trainer = trainer_for(packed, tokenizer, tmp_path, **SAVING)
    written = []

    def look(checkpoint):
        assert find_damage(checkpoint) is None, "it is whole but for what is saved beside it"
        assert not (tmp_path / checkpoint.name).exists()
        written.append(checkpoint.name)

    monkeypatch.setattr(trainer, "save_beside", look)
    trainer.train()
    assert written == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    assert sorted(path.name for path in tmp_path.iterdir()) == written


def test_the_best_checkpoint_is_kept_and_loaded(packed, tokenizer, tmp_path):
    settings = {**SAVING, "eval_strategy": "steps", "eval_steps": 1, "save_total_limit": 1}
    # As if a loss were the better, the larger it is: the first of them is.
    settings |= {"metric_for_best_model": "loss", "greater_is_better": True, "load_best_model_at_end": True}
    trainer = trainer_for(packed, tokenizer, tmp_path, **settings)
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    best = tmp_path / "checkpoint-1"
    assert max(losses) == losses[0] > losses[-1]
    assert trainer.state.best_model_checkpoint == str(best)
    assert find_damage(best) is None
    assert trainer.evaluate()["eval_loss"] == pytest.approx(losses[0])
    assert TrainerState.load_from_json(str(best / "trainer_state.json")).best_model_checkpoint == str(best)


def test_where_nothing_was_saved_there_is_no_checkpoint(tmp_path):
    assert last_checkpoint(tmp_path) is None
    assert last_checkpoint(tmp_path / "nowhere") is None


def test_one_passed_over_does_not_push_out_those_that_are_whole(saved, packed, tokenizer, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(saved, folder)
    for step in (2, 3):
        cut(folder / f"checkpoint-{step}" / "optimizer.pt")
    trainer = trainer_for(packed, tokenizer, folder, **{**SAVING, "max_steps": 2, "save_total_limit": 1})
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-2"]
    assert find_damage(folder / "checkpoint-2") is None


def test_a_finished_training_that_is_resumed_makes_no_step(saved, packed, tokenizer):
    trainer = trainer_for(packed, tokenizer, saved, **{**SAVING, "save_strategy": "no"})
    trainer.train(resume_from_checkpoint=str(saved / "checkpoint-3"))
    assert trainer.state.global_step == 3


@contextlib.contextmanager
def file_size_limit(size):
    """Writing a byte more fails, as on a full disk: "File too large".

    No longer than the body, as pytest itself may write to a file: where its output goes.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("fits", ["nothing", "weights"])
def test_a_full_disk_is_one_clear_line_and_the_last_checkpoint_is_kept(packed, tokenizer, saved, tmp_path, fits):
    folder = tmp_path / "run"
    shutil.copytree(saved / "checkpoint-1", folder / "checkpoint-1")
    weights = (folder / "checkpoint-1" / "model.safetensors").stat().st_size
    assert weights < (folder / "checkpoint-1" / "optimizer.pt").stat().st_size
    trainer = trainer_for(packed, tokenizer, folder, **SAVING)
    message = r"checkpoint-2 cannot be written .*(too large|in full); checkpoint-1 is whole"
    with file_size_limit(1000 if fits == "nothing" else weights), pytest.raises(UserError, match=message):
        trainer.train(resume_from_checkpoint=str(folder / "checkpoint-1"))
    assert [path.name for path in folder.iterdir()] == ["checkpoint-1"]
    assert find_damage(folder / "checkpoint-1") is None


def test_no_room_for_the_model_is_one_clear_line_too(packed, tokenizer, tmp_path):
    trainer = trainer_for(packed, tokenizer, tmp_path, **SAVING)
    trainer.train()
    message = r"the model cannot be written .*File too large; checkpoint-3 is whole"
    with file_size_limit(1000), pytest.raises(UserError, match=message):
        trainer.save_model(str(tmp_path / "model"))


def test_an_error_while_saving_that_is_no_full_disk_is_not_called_one(packed, tokenizer, tmp_path, monkeypatch):
    trainer = trainer_for(packed, tokenizer, tmp_path, **SAVING)
    monkeypatch.setattr(trainer, "_save_rng_state", lambda folder: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    assert last_checkpoint(tmp_path) is None


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory"), IndexError("index out of range")])
def test_an_evaluation_that_fails_does_not_end_the_training(packed, tokenizer, tmp_path, monkeypatch, capsys, error):
    trainer = trainer_for(
        packed, tokenizer, tmp_path, **SAVING, eval_strategy="steps", eval_steps=1, metric_for_best_model="loss"
    )

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(trainer, "prediction_step", fail)
    trainer.train()
    assert trainer.state.global_step == 3
    assert last_checkpoint(tmp_path).endswith("checkpoint-3")
    assert f"the evaluation failed, training goes on: {type(error).__name__}: {error}" in capsys.readouterr().out
    with pytest.raises(type(error)):  # asked for alone, it fails
        trainer.evaluate()


def test_an_evaluation_that_fails_at_the_end_does_not_lose_the_model(packed, tokenizer, tmp_path, monkeypatch, capsys):
    trainer = trainer_for(packed, tokenizer, tmp_path)
    trainer.train()
    monkeypatch.setattr(trainer, "prediction_step", lambda *_, **__: 1 / 0)
    assert trainer.final_metrics() == {}
    assert "the model is kept without its metrics: ZeroDivisionError" in capsys.readouterr().out
