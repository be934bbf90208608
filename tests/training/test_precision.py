import json
from pathlib import Path

import pytest

from hfchat.config import parse
from hfchat.training import precision, run_arguments
from hfchat.training.align_arguments import AlignArguments
from hfchat.training.finetuning import FinetuneArguments
from hfchat.training.precision import keep_precision
from hfchat.training.pretrain_arguments import PretrainArguments


@pytest.fixture(params=[FinetuneArguments, AlignArguments, PretrainArguments])
def decide(request, monkeypatch, tmp_path):
    """Arguments of a run in a process that finds bfloat16 faster, or slower."""

    def parsed(faster, *argv):
        monkeypatch.setattr(run_arguments, "trains_faster_in_bf16", lambda: faster)
        needed = ["--output_dir", str(tmp_path), "--report_to", "none"]
        if request.param is PretrainArguments:
            needed += ["--tokenizer_name", "tokenizer"]
        (args,) = parse(request.param, argv=[*needed, *argv])
        return args

    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    return parsed


@pytest.mark.parametrize("first", [True, False])
def test_a_resumed_run_keeps_the_precision_that_it_began_in(decide, first):
    for faster in (first, not first):
        asked = decide(faster)
        args = keep_precision(asked, Path(asked.output_dir))
        assert asked.bf16 is faster, "what was asked stays as it is"
        assert args.bf16 is first
        assert args.mixed_precision == ("bf16" if first else "no")


def test_all_processes_do_as_the_first(decide, monkeypatch):
    def broadcast(decided):
        decided[0] = True

    monkeypatch.setattr(precision, "broadcast_object_list", broadcast)
    args = decide(False)
    args = keep_precision(args, Path(args.output_dir))
    assert (args.bf16, args.mixed_precision) == (True, "bf16")


def test_a_precision_that_is_asked_for_is_taken(decide):
    first = decide(True)
    keep_precision(first, Path(first.output_dir))
    args = decide(True, "--bf16", "false")
    args = keep_precision(args, Path(args.output_dir))
    assert args.bf16 is False
    assert json.loads((Path(args.output_dir) / "precision.json").read_text()) == {"bf16": True}
