from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, TrainerState

from hfchat.training import throughput
from hfchat.training.dial import Shape
from hfchat.training.throughput import Throughput, flops_per_token, peak_flops

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def build(tokenizer, architecture, *, tied=True):
    config = Shape.from_depth(3).model_config(architecture, tokenizer, block_size=64, tie_word_embeddings=tied)
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("architecture", "per_layer", "last"),
    [
        # Attention, gated MLP and two gains; a gain at the end.
        ("llama", 4 * 192 * 192 + 3 * 192 * 512 + 2 * 192, 192),
        # Attention and MLP with their biases, and two norms; a norm at the end.
        ("gpt2", 4 * 192 * 192 + 4 * 192 + 8 * 192 * 192 + 5 * 192 + 4 * 192, 2 * 192),
    ],
)
def test_arithmetic_is_that_of_a_count_by_hand(tokenizer, architecture, per_layer, last, tied):
    model = build(tokenizer, architecture, tied=tied)
    head = model.config.vocab_size * 192
    expected = 6 * (3 * per_layer + last + head) + 12 * 3 * 192 * 64
    assert flops_per_token(model, 64) == expected


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA GB200", 2.5e15),
        ("NVIDIA B200", 2.25e15),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L40", 181e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA A10G", 70e12),
        ("Tesla T4", 65e12),
        ("Tesla V100-SXM2-32GB", 125e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("AMD Instinct MI250X", 191.5e12),
        # Namesakes that are slower, slices, and what the table does not have.
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA RTX A1000", None),
        ("NVIDIA T400 4GB", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA H20", None),
    ],
)
def test_a_device_is_known_by_its_whole_name(name, peak, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(GPU) == peak
    assert peak_flops(CPU) is None


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes when it is told to."""
    time = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: time.now)
    return time


@pytest.fixture
def meter(tokenizer):
    meter = Throughput(build(tokenizer, "llama"), 64, tokens_per_step=100, device=CPU, world_size=2)
    meter.on_train_begin(None, TrainerState(), None)
    return meter


def test_speed_is_that_since_the_last_log(clock, meter):
    clock.now += 10
    assert meter.measure(TrainerState(global_step=4)) == {"elapsed_seconds": 10, "tokens_per_second": 40}
    clock.now += 5
    assert meter.measure(TrainerState(global_step=5)) == {"elapsed_seconds": 15, "tokens_per_second": 20}
    clock.now += 5
    assert meter.measure(TrainerState(global_step=5)) == {"elapsed_seconds": 20}


def test_pauses_are_no_time_of_training(clock, meter):
    clock.now += 1
    with meter.paused():
        clock.now += 100
    clock.now += 1
    assert meter.measure(TrainerState(global_step=1))["tokens_per_second"] == 50
    clock.now += 4
    assert meter.measure(TrainerState(global_step=2)) == {"elapsed_seconds": 106, "tokens_per_second": 25}


def test_an_evaluation_between_two_logs_changes_no_speed(clock, meter):
    """It logs while it runs, at a step that no loss has been logged for."""
    clock.now += 2
    with meter.paused():
        clock.now += 100
        assert meter.measure(TrainerState(global_step=1)) == {"elapsed_seconds": 102}
    clock.now += 2
    assert meter.measure(TrainerState(global_step=2))["tokens_per_second"] == 50


def test_a_pause_ends_with_an_error(clock, meter):
    with pytest.raises(RuntimeError), meter.paused():
        raise RuntimeError("out of memory")
    clock.now += 2
    assert meter.measure(TrainerState(global_step=1))["tokens_per_second"] == 50


def test_utilisation_is_a_share_of_all_devices(tokenizer, clock, monkeypatch):
    model = build(tokenizer, "llama")
    monkeypatch.setattr(throughput, "peak_flops", lambda device: 100 * flops_per_token(model, 64))
    meter = Throughput(model, 64, tokens_per_step=100, device=GPU, world_size=2)
    meter.on_train_begin(None, TrainerState(), None)
    clock.now += 1
    assert meter.measure(TrainerState(global_step=1))["mfu"] == 0.5


def test_time_goes_on_after_a_resume(clock, meter):
    state = TrainerState(global_step=7)
    state.log_history = [{"loss": 3.0, "elapsed_seconds": 50.0}, {"eval_loss": 3.0, "elapsed_seconds": 60.0}]
    meter.on_train_begin(None, state, None)
    clock.now += 2
    assert meter.measure(TrainerState(global_step=8)) == {"elapsed_seconds": 62, "tokens_per_second": 50}


def test_before_a_training_there_is_nothing_to_measure(tokenizer):
    meter = Throughput(build(tokenizer, "llama"), 64, tokens_per_step=100, device=CPU, world_size=1)
    assert meter.measure(TrainerState()) == {}
