"""What the pretraining benchmarks read from other tools' output, and what they make of it. No tool is started."""

import json
import math
import re
import subprocess
import sys

import pytest
import torch
from benchmarks import gpu, peers, shakespeare, throughput, time_to_quality
from benchmarks.peers import (
    Finished,
    Line,
    Outcome,
    ProcessFailedError,
    Rate,
    Step,
    end_tree,
    find,
    last_logged,
    markdown_table,
    measure_ours,
    nanochat_step_seconds,
    nanogpt_evaluations,
    python_of,
    run,
    steady_rate,
    steps,
    steps_within,
    tokens_of_a_step,
)
from transformers import AutoModelForCausalLM

from hfchat.dataset import load_split

NANOCHAT = """\
Scaling LRs by 0.0884 for batch size 4,096 (reference: 524,288)
step 00000/00300 (0.00%) | loss: 8.317766 | lrm: 0.03 | dt: 52000.50ms | tok/sec: 78 | bf16_mfu: 0.00
step 00001/00300 (0.33%) | loss: 8.211001 | lrm: 0.05 | dt: 1000.25ms | tok/sec: 4,095 | bf16_mfu: 0.00
Step 00300 | Validation bpb: 2.380000"""
NANOGPT = """\
number of parameters: 0.80M
step 0: train loss 4.1676, val loss 4.1649
iter 0: loss 4.1828, time 400.00ms, mfu -100.00%
iter 1: loss 4.1373, time 50.00ms, mfu -100.00%
step 250: train loss 2.4325, val loss 2.4411
saving checkpoint to out"""
LITGPT = """\
Verifying settings ...
Epoch 1 | iter 20 step 10 | loss train: 7.912, val: n/a | iter time: 310.11 ms (step) remaining time: 0:01:02
Epoch 1 | iter 40 step 20 | loss train: 6.100, val: n/a | iter time: 300.20 ms (step) remaining time: 0:00:59"""
TRAINER = """\
11/24/2026 12:00:00 - WARNING - __main__ - {'not': a log}
{'loss': '8.317', 'grad_norm': '1.2', 'learning_rate': '5e-05', 'epoch': '0.1'}
{'loss': '7.5', 'grad_norm': '1.1', 'learning_rate': '4e-05', 'epoch': '0.2'}
{'train_runtime': '64.25', 'train_loss': '7.908', 'epoch': '0.2'}
{'eval_loss': '7.2', 'eval_bits_per_byte': '3.1', 'epoch': '0.2'}"""


def finished(text):
    return Finished(100.0, [Line(float(second), line) for second, line in enumerate(text.splitlines())])


@pytest.mark.parametrize(
    ("style", "text", "expected"),
    [
        ("nanochat", NANOCHAT, [Step(1, 1.0, 8.317766), Step(2, 2.0, 8.211001)]),
        ("nanoGPT", NANOGPT, [Step(1, 2.0, 4.1828), Step(2, 3.0, 4.1373)]),
        ("litgpt", LITGPT, [Step(10, 1.0, 7.912), Step(20, 2.0, 6.1)]),
        ("trainer", TRAINER, [Step(10, 1.0, 8.317), Step(20, 2.0, 7.5)]),
    ],
)
def test_progress_is_read_as_optimizer_steps_done(style, text, expected):
    assert steps(finished(text), style, logging_steps=10) == expected


def test_figures_beside_the_progress():
    assert nanochat_step_seconds(finished(NANOCHAT)) == pytest.approx(53.00075)
    assert [(step.number, step.loss) for step in nanogpt_evaluations(finished(NANOGPT))] == [
        (0, 4.1649),
        (250, 2.4411),
    ]
    assert last_logged(finished(TRAINER), "train_runtime") == 64.25
    with pytest.raises(ProcessFailedError, match="eval_accuracy"):
        last_logged(finished(TRAINER), "eval_accuracy")


def test_the_rate_leaves_out_compiling_and_the_start_up_is_what_it_left_out():
    progress = [Step(1, 60.0, 8.0), Step(10, 62.0, 8.0), Step(20, 64.0, 7.0), Step(30, 66.0, 6.0)]
    rate = steady_rate(progress, tokens_per_step=1000, warmup_steps=10)
    assert rate.tokens_per_second == pytest.approx(5000)
    assert rate.startup_seconds == pytest.approx(60.0)
    assert steps_within(70.0, rate, tokens_per_step=1000) == 50
    assert steps_within(10.0, rate, tokens_per_step=1000) == 1
    with pytest.raises(ProcessFailedError, match="after step 30"):
        steady_rate(progress, tokens_per_step=1000, warmup_steps=30)


def test_tokens_of_a_step_go_by_the_last_of_a_name():
    first = ["--block_size", "256", "--per_device_train_batch_size", "4", "--depth", "4"]
    assert tokens_of_a_step(first) == 1024
    assert tokens_of_a_step([*first, "--per_device_train_batch_size=2", "--gradient_accumulation_steps", "3"]) == 1536


def test_a_process_is_timed_line_by_line_and_a_failure_shows_its_end():
    done = run([sys.executable, "-c", "print('first'); print('second')"])
    assert [line.text for line in done.lines] == ["first", "second"]
    assert 0 < done.lines[0].seconds <= done.lines[1].seconds <= done.seconds
    with pytest.raises(ProcessFailedError, match=r"(?s)status 3.*out of memory"):
        run([sys.executable, "-c", "import sys; print('out of memory'); sys.exit(3)"])


def test_a_process_that_takes_too_long_is_ended():
    with pytest.raises(ProcessFailedError, match="status -9"):
        run([sys.executable, "-c", "import time; time.sleep(60)"], timeout=0.2)


def test_a_launcher_is_ended_with_what_it_launched():
    import psutil

    launcher = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid, flush=True)\n"
        "child.wait()"
    )
    process = subprocess.Popen([sys.executable, "-c", launcher], stdout=subprocess.PIPE, text=True)
    child = psutil.Process(int(process.stdout.readline()))
    end_tree(process)
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    process.stdout.close()


def test_a_process_finds_no_compiled_kernels_of_an_earlier_one():
    script = "import os; print(os.environ['TORCHINDUCTOR_CACHE_DIR'])"
    first, second = (run([sys.executable, "-c", script]).lines[0].text for _ in range(2))
    assert first != second


def test_a_checkout_is_found_by_its_training_script(tmp_path):
    assert find(None, "nanoGPT") is None
    assert find(tmp_path, "nanoGPT") is None
    (tmp_path / "nanoGPT").mkdir()
    (tmp_path / "nanoGPT" / "train.py").touch()
    checkout = find(tmp_path, "nanoGPT")
    assert checkout == tmp_path / "nanoGPT"
    assert python_of(checkout) == sys.executable
    own = checkout / "venv" / "bin" / "python"
    own.parent.mkdir(parents=True)
    own.touch()
    assert python_of(checkout) == str(own)


def cells(table, run_name):
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {run_name} ")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_table_aligns_numbers_and_rounds():
    lines = markdown_table(("tool", "tokens/s", "note"), [("a", 12345.6, "1.5 of b"), ("b", "", "")]).splitlines()
    assert lines[1] == "| --- | ---: | --- |"
    assert lines[2:] == ["| a | 12,346 | 1.5 of b |", "| b |  |  |"]


def test_the_time_to_quality_is_a_ratio_to_the_peer():
    nanochat = Outcome(300, 4096, 400.0, 380.0, 2.4)
    ours = [("a quarter", Outcome(500, 1024, 100.0, 80.0, 2.1), 2.3)]
    table = time_to_quality.report((nanochat, 2.5), ours)
    assert cells(table, "nanochat") == ["nanochat", "300", "1,228,800", "400", "380", "2.4", "2.5", ""]
    assert cells(table, "ours,")[-2:] == ["2.3", "0.25 of its time, 0.875 of its bits per byte"]
    assert cells(time_to_quality.report(None, ours), "nanochat")[-1] == "not found"


def test_ours_is_measured_document_by_document(chat_model, corpus, tokenizer):
    texts = load_split(str(corpus), "validation", "text")["text"]
    model, nats = AutoModelForCausalLM.from_pretrained(chat_model), 0.0
    for text in texts:
        ids = [tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False)]
        for start in range(0, len(ids) - 1, 16):
            block = torch.tensor([ids[start : start + 17]])
            log_probs = model(block[:, :-1]).logits.log_softmax(-1)
            nats -= log_probs.gather(-1, block[:, 1:, None]).sum().item()
    expected = nats / math.log(2) / sum(len(text.encode()) for text in texts)
    assert measure_ours(chat_model, corpus, block_size=16) == pytest.approx(expected, rel=1e-5)


def test_the_faster_variant_gets_each_budget():
    class Variant:
        tokens_per_step = 100

        def __init__(self, rate):
            self.rate = rate

        def calibrate(self, max_steps):
            return self.rate

        def train(self, max_steps):
            return max_steps

    variants = {"eager": Variant(Rate(100.0, 10.0)), "compiled": Variant(Rate(200.0, 50.0))}
    runs = dict(time_to_quality.train_ours(variants, seconds=200.0, calibration=10, max_steps=None))
    assert runs == {"a quarter of the time, eager": 37, "the same time, compiled": 280}


def test_pieces_hold_all_of_a_text_and_end_with_lines_or_words():
    text = "A short line.\n" * 3 + "one line much longer than a piece may be, " * 4 + "\n" + "x" * 70 + "\nEnd."
    found = list(time_to_quality.pieces(text, 40))
    assert "".join(found) == text
    assert max(map(len, found)) <= 40
    assert found[0] == "A short line.\n" * 2
    assert all(piece[-1] in "\n x." for piece in found)


def test_shakespeare_is_split_and_tokenized_as_by_nanogpt(tmp_path):
    import pickle

    import numpy as np
    from transformers import AutoTokenizer

    text = "ROMEO:\nO, speak again!\n\n" * 10
    splits, characters = shakespeare.split(text), sorted(set(text))
    assert "".join(splits.values()) == text
    assert len(splits["train"]) == int(0.9 * len(text))
    tokenizer = AutoTokenizer.from_pretrained(shakespeare.character_tokenizer(characters, tmp_path / "tokenizer"))
    ids = tokenizer(splits["validation"], add_special_tokens=False)["input_ids"]
    data = shakespeare.write_nanogpt_data(splits, characters, tmp_path / "data")
    theirs = np.fromfile(data / "val.bin", dtype=np.uint16).tolist()
    assert [number - 1 for number in ids] == theirs  # ours has a token more, the first
    assert tokenizer.decode(ids) == splits["validation"]
    assert len(tokenizer) == len(characters) + 1
    assert pickle.loads((data / "meta.pkl").read_bytes())["itos"][theirs[0]] == splits["validation"][0]


def test_the_loss_on_shakespeare_is_in_nats_per_character():
    class FakeOurs:
        tokens_per_step = 1024

        def calibrate(self, max_steps):
            return Rate(1024.0, 10.0)

        def train(self, max_steps):
            return Outcome(max_steps, 1024, 30.0, 20.0, 2.0)

    ours = shakespeare.train_ours(FakeOurs(), seconds=40.0, calibration=10, max_steps=None)
    assert (ours.steps, ours.loss) == (28, pytest.approx(2 * math.log(2)))
    nanogpt = shakespeare.Result(2000, 768, 120.0, 100.0, 1.9)
    table = shakespeare.report((nanogpt, 1.88), ours)
    assert cells(table, "ours")[-1] == "0.25 of its time, loss -0.514"
    assert cells(shakespeare.report(None, ours), "nanoGPT")[-1] == "not found"


def test_throughput_is_compared_within_a_precision():
    rates = {
        ("ours", "bfloat16"): Rate(3000.0, 40.0),
        ("litgpt", "bfloat16"): Rate(2000.0, 60.0),
        ("ours", "float32"): Rate(900.0, 40.0),
        ("nanoGPT", "float32"): Rate(1000.0, 30.0),
        ("litgpt", "float32"): "not found",
    }
    table = throughput.report(rates)
    assert [line.split("|")[-2].strip() for line in table.splitlines()[2:]] == [
        "1.50", "0.67", "0.90", "1.11", "not found",
    ]  # fmt: skip


def test_each_tool_keeps_its_fastest_run_and_a_failure_does_not_hide_it(monkeypatch, tmp_path, capsys):
    runs = iter([Rate(120.0, 1.0), ProcessFailedError("out of memory"), Rate(100.0, 1.0)])

    def run_ours(*_):
        result = next(runs)
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(throughput, "run_ours", run_ours)
    rates = throughput.measure(None, None, tmp_path, ["float32"], repeats=3, max_steps=30)
    assert rates.pop(("ours", "float32")) == Rate(120.0, 1.0)
    assert rates == {(tool, "float32"): "not found" for tool in ("run_clm.py", "nanoGPT", "litgpt")}
    assert "out of memory" in capsys.readouterr().err


def test_mfu_counts_gpt2s_flops():
    # 124,439,808 parameters with 786,432 for positions; 6 N + 12 * 12 * 768 * 1024.
    assert gpu.model_flops_per_token(50257) == 6 * (124_439_808 - 786_432) + 113_246_208


@pytest.mark.parametrize("module", [time_to_quality, shakespeare, throughput, gpu])
def test_a_missing_input_is_one_line(module, monkeypatch, tmp_path):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    data = [] if module is gpu else ["--data", str(tmp_path / "nothing")]
    monkeypatch.setattr(sys, "argv", ["benchmark", *data])
    with pytest.raises(SystemExit) as stopped:
        module.main()
    assert re.fullmatch(r".*(holds none of|no such file|needs a CUDA GPU).*", stopped.value.code)


def test_a_peers_answer_is_its_last_line(monkeypatch, tmp_path):
    answer = Finished(1.0, [Line(0.5, "loading"), Line(1.0, json.dumps({"nats_per_token": 1.5}))])
    monkeypatch.setattr(peers, "run", lambda *_, **__: answer)
    assert peers.measure_nanogpt(tmp_path / "ckpt.pt", tmp_path, tmp_path / "val.bin") == 1.5


def test_ours_runs_again_where_an_earlier_run_left_its_output(monkeypatch, tmp_path):
    for name in ("15-steps", "5-steps", "5-steps.partial-0123"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(peers, "run", lambda command: command)
    command = peers.Ours(["--block_size", "8", "--per_device_train_batch_size", "1"], tmp_path).launch("5-steps")
    assert command[command.index("--output_dir") + 1] == str(tmp_path / "5-steps")
    assert [folder.name for folder in tmp_path.iterdir()] == ["15-steps"]
