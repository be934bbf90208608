import json
from pathlib import Path

import pytest

from hfchat.config import parse
from hfchat.training import alignment, finetuning, precision, pretraining
from hfchat.training.precision import keep_precision

ARGUMENTS = {
    finetuning: finetuning.FinetuneArguments,
    alignment: alignment.AlignArguments,
    pretraining: pretraining.PretrainArguments,
}


@pytest.fixture(params=ARGUMENTS, ids=lambda module: module.__name__)
def decide(request, monkeypatch, tmp_path):
    """Arguments of a run in a process that finds bfloat16 faster, or slower."""

    def parsed(faster, *argv):
        monkeypatch.setattr(request.param, "trains_faster_in_bf16", lambda: faster)
        needed = ["--output_dir", str(tmp_path), "--report_to", "none"]
        if request.param is pretraining:
            needed += ["--tokenizer_name", "tokenizer"]
        (args,) = parse(ARGUMENTS[request.param], argv=[*needed, *argv])
        return args

    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    return parsed


@pytest.mark.parametrize("first", [True, False])
def test_a_resumed_run_keeps_the_precision_that_it_began_in(decide, first):
    for faster in (first, not first):
        args = decide(faster)
        keep_precision(args)
        assert args.bf16 is first
        assert args.mixed_precision == ("bf16" if first else "no")


def test_all_processes_do_as_the_first(decide, monkeypatch):
    def broadcast(decided):
        decided[0] = True

    monkeypatch.setattr(precision, "broadcast_object_list", broadcast)
    args = decide(False)
    keep_precision(args)
    assert (args.bf16, args.mixed_precision) == (True, "bf16")


def test_a_precision_that_is_asked_for_is_taken(decide):
    keep_precision(decide(True))
    args = decide(True, "--bf16", "false")
    keep_precision(args)
    assert args.bf16 is False
    assert json.loads((Path(args.output_dir) / "precision.json").read_text()) == {"bf16": True}
