"""What a run would take on GPUs that are not here."""

import dataclasses
import re

import pytest
import yaml

from hfchat.doctor.elsewhere import MEMORY, Gpus, examine_elsewhere
from hfchat.errors import UserError
from hfchat.training.throughput import PEAK_FLOPS
from tests.conftest import ROOT

RUN = "recipes/configs/own-gpu"
H100 = Gpus("H100")
# Depth 20: 1,280 wide, an MLP of 3,456, a vocabulary of 32,768 that embeddings and output layer share.
PARAMETERS = 20 * (4 * 1280**2 + 3 * 1280 * 3456 + 2 * 1280) + 1280 + 32768 * 1280


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def reports():
    return {count: examine_elsewhere(str(ROOT / RUN), Gpus("H100", count, 0.4, 2.5)) for count in (1, 8)}


@pytest.mark.parametrize("count", [1, 8])
def test_the_figures_are_those_of_the_formulas(reports, count):
    found = reports[count].figures["pretrain"]
    assert found["parameters"] == PARAMETERS
    assert found["tokens"] == pytest.approx(20 * PARAMETERS, rel=1e-4)
    # 6 for each weight and token, 12 for each layer, width and position; an H100 has a peak of 989 TFLOP/s.
    assert found["flops"] == pytest.approx(found["tokens"] * (6 * PARAMETERS + 12 * 20 * 1280 * 2048))
    assert found["seconds"] == pytest.approx(found["flops"] / (count * 0.4 * 989e12))
    assert found["price"] == pytest.approx(found["seconds"] / 3600 * count * 2.5)
    assert found["memory"] <= 80e9


def test_eight_share_the_steps_of_one(reports):
    steps = [reports[count].figures["pretrain"]["tokens_per_step"] for count in (1, 8)]
    assert steps[0] == pytest.approx(steps[1], rel=0.05)


def test_a_length_that_follows_from_the_data_is_given_for_a_billion_tokens(reports):
    found = reports[1].figures["align"]
    assert (found["steps"], found["tokens"]) == (None, 1e9)
    # DPO reads each answer with the model that it starts from, too: 8 for each weight instead of 6.
    assert found["seconds"] == pytest.approx(reports[1].figures["finetune"]["seconds"] * 8 / 6, rel=0.1)
    assert "tokens" in str(reports[1])
    assert reports[1].verdict.startswith("pretrain: about ")


def test_the_readme_has_what_the_doctor_says(reports):
    readme = (ROOT / RUN / "README.md").read_text(encoding="utf-8")
    for report in reports.values():
        assert str(report).strip() in readme


def test_what_does_not_fit_is_said(tmp_path):
    for name in ("pretrain", "train_tokenizer"):
        settings = yaml.safe_load((ROOT / RUN / f"{name}.yaml").read_text())
        settings |= {"per_device_train_batch_size": 512} if name == "pretrain" else {}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(settings))
    report = examine_elsewhere(str(tmp_path), dataclasses.replace(H100, name="RTX 4090"))
    assert not report.ok
    assert report.verdict.startswith("will not fit: ")
    assert "price" not in str(report)


def test_a_single_yaml_takes_what_it_needs_from_those_beside_it():
    report = examine_elsewhere(f"{RUN}/finetune.yaml", H100)
    assert report.figures["finetune"]["parameters"] == PARAMETERS
    assert report.verdict == "how long it takes follows from its data"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("recipes/configs/none", "no such file or folder"),
        ("recipes/configs/publish", "nothing in it trains a model"),
        ("recipes/configs/demo/evaluate.yaml", "nothing in it trains a model"),
    ],
)
def test_what_trains_nothing_is_refused(config, message):
    with pytest.raises(UserError, match=message):
        examine_elsewhere(config, H100)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("h1000", 1, 0.4, None), "--gpu h1000: must be one of h200, "),
        (("h100", 0, 0.4, None), "--gpus 0"),
        (("h100", 1, 40, None), "--mfu 40"),
        (("h100", 1, 0.4, -1), "--price-per-hour -1"),
    ],
)
def test_numbers_out_of_range_are_refused(given, message):
    with pytest.raises(UserError, match=re.escape(message)):
        Gpus.parse(*given)


def test_each_gpu_has_a_peak():
    patterns = {pattern.rstrip("$") for pattern in PEAK_FLOPS}
    assert patterns >= MEMORY.keys()
    assert Gpus.parse("rtx-4090", 2, 0.5, None).flops == 165.2e12
