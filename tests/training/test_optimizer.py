import pytest
import torch

from hfchat.training import optimizer as module
from hfchat.training.optimizer import MuonWithAdamW, orthogonalize, split_parameters
from tests.conftest import random_llama, tiny_model
from tests.training.operations import Operations
from tests.training.trainers import trainer_for

RATES = {"lr": 2e-3, "embedding_lr": 3e-2, "weight_decay": 0.1, "betas": (0.7, 0.95)}


def train(model, *optimizers, steps=3):
    """As if with gradients that differ from step to step, and in size between parameters."""
    torch.manual_seed(1)
    for _ in range(steps):
        for number, parameter in enumerate(model.parameters()):
            parameter.grad = torch.randn_like(parameter) * 10.0 ** (number % 5 - 3)
        for optimizer in optimizers:
            optimizer.step()
    return model


def by_pytorch(model):
    """What PyTorch's own two optimizers, with the settings that are meant, make of it."""
    hidden, rest = split_parameters(model)
    muon = torch.optim.Muon(hidden, lr=2e-3, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    return train(model, muon, torch.optim.AdamW(rest, lr=3e-2, weight_decay=0.0, betas=(0.7, 0.95)))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1e-3), (torch.float32, 0.03)])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_steps_are_those_of_pytorch(tokenizer, architecture, dtype, tolerance):
    """Relative to how far the weights moved; in float32 but for the rounding of PyTorch's, which is in bfloat16."""
    before, model, expected = (tiny_model(tokenizer, architecture) for _ in range(3))
    train(model, MuonWithAdamW(model, **RATES, dtype=dtype))
    by_pytorch(expected)
    for (name, old), new, right in zip(
        before.named_parameters(), model.parameters(), expected.parameters(), strict=True
    ):
        assert (new - right).norm() <= tolerance * (right - old).norm(), name


def test_matrices_of_one_shape_are_the_same_one_by_one(tokenizer, monkeypatch):
    model, one_by_one = (tiny_model(tokenizer) for _ in range(2))
    train(model, MuonWithAdamW(model, **RATES, dtype=torch.float32))
    monkeypatch.setattr(module, "_AT_ONCE", 1)
    train(one_by_one, MuonWithAdamW(one_by_one, **RATES, dtype=torch.float32))
    for (name, weight), other in zip(model.named_parameters(), one_by_one.parameters(), strict=True):
        torch.testing.assert_close(weight, other, msg=name)


@pytest.mark.parametrize("shape", [(2, 8, 8), (3, 5, 20), (1, 20, 5)])
def test_singular_values_become_nearly_one(shape):
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    result = orthogonalize(matrices, (3.4445, -4.775, 2.0315), steps=5, eps=1e-7)
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    values = left.mT @ result @ right.mT
    assert (values.diagonal(dim1=1, dim2=2) - 1).abs().max() < 0.35, "the iteration does not converge further"
    assert (values - torch.diag_embed(values.diagonal(dim1=1, dim2=2))).abs().max() < 1e-4
    assert orthogonalize(torch.zeros(shape), (3.4445, -4.775, 2.0315), steps=5, eps=1e-7).abs().max() == 0


def operations_of_a_step(model, dtype=None):
    optimizer = MuonWithAdamW(model, **RATES, dtype=dtype)
    train(model, optimizer, steps=1)
    with Operations() as operations:
        optimizer.step()
    return operations


@pytest.mark.parametrize("faster_in_bf16", [True, False])
def test_a_machine_that_is_slower_in_bfloat16_does_not_compute_in_it(tokenizer, monkeypatch, faster_in_bf16):
    monkeypatch.setattr(module, "trains_faster_in_bf16", lambda: faster_in_bf16)
    dtypes = operations_of_a_step(tiny_model(tokenizer)).dtypes
    assert (torch.bfloat16 in dtypes) == faster_in_bf16


@pytest.mark.parametrize("bf16", [True, False])
def test_a_run_orthogonalizes_in_the_type_that_it_trains_in(packed, tokenizer, tmp_path, bf16):
    trainer = trainer_for(packed, tokenizer, tmp_path, bf16=bf16)
    optimizer = trainer.create_optimizer()
    for parameter in trainer.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    with Operations() as operations:
        optimizer.step()
    assert (torch.bfloat16 in operations.dtypes) == bf16


def test_layers_are_orthogonalized_together(tokenizer):
    """Products of matrices cost a GPU more by their number than by their size."""
    few, many = (
        operations_of_a_step(random_llama(tokenizer, num_hidden_layers=layers), torch.float32).names
        for layers in (2, 8)
    )
    assert few["baddbmm"] == many["baddbmm"] > 0
    assert not many["addmm"]


def test_muon_takes_the_hidden_matrices_and_adamw_the_rest(tokenizer):
    for architecture in ("llama", "gpt2"):
        model = tiny_model(tokenizer, architecture)
        optimizer = MuonWithAdamW(model, lr=1e-2, embedding_lr=1e-2, weight_decay=0.1, betas=(0.9, 0.95))
        muon, adamw = ({id(p) for p in group["params"]} for group in optimizer.param_groups)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        assert muon | adamw == set(names)
        assert {names[i].split(".")[-2] for i in muon} <= {
            "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "c_attn", "c_fc", "c_proj",
        }  # fmt: skip
        assert any("wte" in names[i] or "embed" in names[i] for i in adamw)


def test_a_schedule_reaches_both_parts_after_the_state_is_loaded(tokenizer):
    model = tiny_model(tokenizer)
    optimizer = MuonWithAdamW(model, lr=1.0, embedding_lr=1.0, weight_decay=0.1, betas=(0.9, 0.95))
    optimizer.load_state_dict(optimizer.state_dict())
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    model(input_ids=torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()
    optimizer.step()
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("tied", [True, False])
def test_weight_decay_is_of_the_hidden_matrices_whichever_optimizer(packed, tokenizer, tmp_path, optimizer, tied):
    trainer = trainer_for(packed, tokenizer, tmp_path, optimizer=optimizer, weight_decay=0.25)
    trainer.model = random_llama(tokenizer, tie_word_embeddings=tied)
    decayed = {
        id(parameter)
        for group in trainer.create_optimizer().param_groups
        for parameter in group["params"]
        if group["weight_decay"] == 0.25
    }
    names = {name for name, parameter in trainer.model.named_parameters() if id(parameter) in decayed}
    assert names == {name for name, _ in trainer.model.named_parameters() if "_proj" in name}


def test_a_run_gives_each_part_its_own_rate_and_adamw_its_betas(packed, tokenizer, tmp_path):
    rates = {"learning_rate": 0.02, "embedding_learning_rate": 0.05}
    muon, adamw = trainer_for(packed, tokenizer, tmp_path, **rates).create_optimizer().param_groups
    assert (muon["lr"], muon["weight_decay"], muon["adjust_lr_fn"]) == (0.02, 0.1, "match_rms_adamw")
    assert (adamw["lr"], adamw["weight_decay"], adamw["betas"]) == (0.05, 0.0, (0.9, 0.95))
    trainer = trainer_for(packed, tokenizer, tmp_path, **rates, optimizer="adamw", adam_beta1=0.8, adam_beta2=0.9)
    for group in trainer.create_optimizer().param_groups:
        assert (group["lr"], group["betas"]) == (0.02, (0.8, 0.9))


def rates_of(trainer, steps):
    """The learning rate of both parts at each step, as shares of their peaks."""
    trainer.create_optimizer_and_scheduler(steps)
    shares = []
    for _ in range(steps):
        muon, adamw = trainer.optimizer.param_groups
        assert muon["lr"] / 0.02 == pytest.approx(adamw["lr"] / 0.05)
        shares.append(muon["lr"] / 0.02)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    return shares


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        # A warm-up of 3%, then down to 0 in a straight line.
        ("linear", {0: 0, 1: 1 / 3, 2: 2 / 3, 3: 1, 50: 50 / 97, 99: 1 / 97}),
        # Then nothing until the last fifth, which falls by 1 - sqrt.
        ("warmup_stable_decay", {0: 0, 1: 1 / 3, 3: 1, 80: 1, 85: 0.5, 90: 1 - 0.5**0.5, 99: 1 - 0.95**0.5}),
    ],
)
def test_schedules(packed, tokenizer, tmp_path, schedule, shares):
    trainer = trainer_for(
        packed, tokenizer, tmp_path, lr_scheduler_type=schedule, max_steps=100, learning_rate=0.02,
        embedding_learning_rate=0.05,
    )  # fmt: skip
    found = rates_of(trainer, 100)
    assert {step: found[step] for step in shares} == pytest.approx(shares)
