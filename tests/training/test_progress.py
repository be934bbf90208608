import math
from collections import deque
from types import SimpleNamespace

import pytest
import torch
from transformers import Trainer, TrainerState, default_data_collator

from hfchat.training.pretrain_arguments import PretrainArguments
from hfchat.training.progress import LossSpikes, PretrainProgress, is_spike
from tests.conftest import tiny_model

STEADY = [3.0, 3.1, 2.9, 3.05, 2.95] * 3


@pytest.mark.parametrize(
    ("loss", "before", "spike"),
    [
        (3.1, STEADY, False),
        (9.0, STEADY, True),
        (0.5, STEADY, False),
        (9.0, STEADY[:9], False),
        (math.nan, [], True),
        (math.inf, STEADY, True),
        (3.05, [3.0] * 20, True),  # after losses that are all the same, not every tremor is one
        (3.005, [3.0] * 20, False),
    ],
)
def test_a_jump_is_told_from_noise(loss, before, spike):
    assert is_spike(loss, deque(before)) == spike


def log(callback, state, loss):
    state.global_step += 1
    state.log_history.append({"loss": loss, "step": state.global_step})
    callback.on_log(None, state, None, logs={"loss": loss})
    return state.log_history[-1].get("loss_spike", False)


def test_spikes_are_marked_and_said_and_do_not_hide_the_next(capsys):
    callback, state = LossSpikes(), TrainerState(is_world_process_zero=True)
    callback.on_train_begin(None, state, None)
    losses = [*STEADY, math.nan, 3.0, 9.0, 3.0]
    assert [log(callback, state, loss) for loss in losses] == [*[False] * 15, True, False, True, False]
    said = capsys.readouterr().out
    assert "step    16 | warning: the loss jumped to nan" in said
    assert "step    18 | warning: the loss jumped to 9.000" in said


def test_evaluations_are_no_spikes():
    callback, state = LossSpikes(), TrainerState()
    callback.on_log(None, state, None, logs={"eval_loss": math.nan})
    assert state.log_history == []


def test_a_resumed_run_knows_the_losses_before():
    callback, state = LossSpikes(), TrainerState()
    state.log_history = [{"loss": loss, "step": 1} for loss in [*STEADY, math.nan]] + [{"eval_loss": 3.0, "step": 1}]
    callback.on_train_begin(None, state, None)
    assert log(callback, state, 9.0)


@pytest.fixture
def bar():
    """What the bar shows beside its progress, and what is written above it."""
    shown, written = {}, []
    callback = PretrainProgress()
    callback.training_bar = SimpleNamespace(set_postfix=shown.update, write=written.append)
    state = TrainerState(global_step=120)
    return SimpleNamespace(
        log=lambda logs: callback.on_log(None, state, None, logs=logs), shown=shown, written=written
    )


def test_the_bar_shows_loss_speed_and_utilisation(bar):
    bar.log({"loss": 3.14159})
    assert bar.shown == {"loss": "3.142"}
    bar.log({"loss": 3.0, "tokens_per_second": 12345.6, "mfu": 0.4567})
    assert bar.shown == {"loss": "3.000", "tok/s": "12,346", "MFU": "46%"}
    bar.log({"loss": math.nan, "tokens_per_second": 999.9})
    assert bar.shown == {"loss": "nan", "tok/s": "1,000", "MFU": "unknown"}
    bar.log({"train_runtime": 3.0})
    assert bar.written == []


def test_a_validation_is_one_line(bar):
    bar.log(
        {"eval_loss": 4.0, "eval_bits_per_byte": 1.23456, "eval_perplexity": 1054.6, "eval_predicted_tokens": 12345}
    )
    assert bar.written == [
        "  step   120 | validation: 1.2346 bits per byte, perplexity 1,054.60 per token (12,345 tokens)"
    ]
    assert bar.shown == {}


def test_without_a_bar_nothing_is_shown():
    PretrainProgress().on_log(None, TrainerState(), None, logs={"loss": 1.0})


def test_a_loss_that_is_not_a_number_is_logged_as_such(packed, tokenizer, tmp_path):
    model = tiny_model(tokenizer)
    with torch.no_grad():
        model.get_input_embeddings().weight[:] = math.nan
    args = PretrainArguments(
        output_dir=str(tmp_path), tokenizer_name="unused", use_cpu=True, bf16=False, max_steps=2, logging_steps=1,
        learning_rate=1e-3, weight_decay=0.0, report_to="none", disable_tqdm=True, eval_strategy="no",
        save_strategy="no", remove_unused_columns=False,
    )  # fmt: skip
    trainer = Trainer(model, args, default_data_collator, train_dataset=packed["train"], callbacks=[LossSpikes()])
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 2
    assert all(math.isnan(entry["loss"]) and entry["loss_spike"] for entry in logged)
