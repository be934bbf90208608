"""`recipes/prepare_data.py` as a user runs it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from datasets import load_dataset

from hfchat.lineage import read_lineage
from hfchat.storage import as_path
from tests.conftest import ROOT, SHARED_DATA, TEXTS

CHAIN = ["clean_text", "quality", "exact_dedup"]


@pytest.fixture
def texts(tmp_path) -> Path:
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*TEXTS, TEXTS[0], "Short."]))
    return file


def arguments(source, output, *more: object) -> list[object]:
    source = {"path": str(source), "license": "CC0-1.0", "name": "texts"}
    return [
        "--sources", json.dumps(source), "--output_dir", output, "--steps", *CHAIN,
        "--validation_fraction", 0.1, "--tasks", 4, "--workers", 2, *more,
    ]  # fmt: skip


def data(folder) -> dict[str, bytes]:
    folder = as_path(folder)
    return {file.name: file.read_bytes() for file in folder.glob("data/*.parquet")}


def test_texts_become_a_corpus_with_its_report(run_recipe, texts, tmp_path):
    output = tmp_path / "corpus"
    finished = run_recipe("prepare_data", *arguments(texts, output))
    assert "read 62 documents, removed {'exact_duplicate': 1, 'too_short': 1}" in finished.stdout
    assert "1/3 read, clean, filter: 100%" in finished.stderr
    lineage = read_lineage(output)
    assert lineage["licenses"] == ["CC0-1.0"]
    assert lineage["metrics"]["read"] == 62
    assert not (output / "scratch").exists()
    report = (output / "report.html").read_text()
    assert "exact_duplicate" in report
    corpus = load_dataset(str(output))
    assert corpus["train"].num_rows + corpus["validation"].num_rows == 60
    assert "nothing to do" in run_recipe("prepare_data", *arguments(texts, output, "--workers", 1)).stdout


def test_killed_with_its_workers_it_goes_on(run_recipe, texts, tmp_path):
    run_recipe("prepare_data", *arguments(texts, tmp_path / "undisturbed"))
    output = tmp_path / "killed"
    command = [sys.executable, ROOT / "recipes/prepare_data.py", *arguments(texts, output)]
    process = subprocess.Popen(list(map(str, command)), cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("killed.partial-*/scratch/logs/01-*/completions/*")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not output.exists()
    finished = run_recipe("prepare_data", *arguments(texts, output))
    assert "read 62 documents" in finished.stdout
    assert data(output) == data(tmp_path / "undisturbed")
    assert read_lineage(output)["resumed"]
    assert not list(tmp_path.glob("killed.partial-*"))


def test_s3_to_s3(run_recipe, texts, tmp_path, bucket):
    run_recipe("prepare_data", *arguments(texts, tmp_path / "local"))
    as_path(f"{bucket}/in/texts.jsonl").write_bytes(texts.read_bytes())
    finished = run_recipe("prepare_data", *arguments(f"{bucket}/in/*.jsonl", f"{bucket}/corpus"))
    assert "read 62 documents" in finished.stdout
    assert data(f"{bucket}/corpus") == data(tmp_path / "local")
    assert read_lineage(f"{bucket}/corpus")["stage"] == "prepare_data"
    again = run_recipe("prepare_data", *arguments(f"{bucket}/in/*.jsonl", f"{bucket}/corpus"))
    assert "nothing to do" in again.stdout


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (["--steps", "qualty"], "there is no step 'qualty'; did you mean 'quality'?"),
        (["--steps", '{"quality": {"min_chars": 1}}'], "quality: unknown key 'min_chars'"),
        (["--steps", '{"near_dedup": {"similarity": 3}}'], "near_dedup: similarity must be between 0 and 1"),
        (["--steps", '{"pii": {"kinds": ["name"]}}'], "pii: there is no kind 'name'"),
        (["--steps", '{"inappropriate": {"lexicon": "none.txt"}}'], "lexicon none.txt: "),
        (["--steps", '{"decontaminate": {"evaluation_sets": [{"name": "x"}]}}'], "x: needs 'path'"),
        (["--sources", '{"path": "none/*.txt"}'], "sources: none/*.txt: no such file"),
        (["--sources", '{"path": "a.txt", "text_key": "x"}'], "source a.txt: unknown key 'text_key'"),
        (["--executor", "spark"], "executor: kind must be one of local, ray, slurm"),
        (["--tasks", "0"], "tasks must be at least 1"),
    ],
)
def test_bad_input_is_one_line_and_status_2_before_any_work(run_recipe, texts, tmp_path, more, problem):
    finished = run_recipe("prepare_data", *arguments(texts, tmp_path / "out"), *more, check=False)
    assert finished.returncode == 2, finished.stderr
    (line,) = finished.stderr.splitlines()
    assert line.startswith("error: ")
    assert problem in line
    assert not list(tmp_path.glob("out*"))


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="the shared data is not here")
@pytest.mark.parametrize(("config", "read"), [("wikipedia-dump", 106), ("common-crawl", 19), ("books", 1)])
def test_the_shipped_settings_run_on_the_shared_data(run_recipe, tmp_path, config, read):
    output = tmp_path / config
    finished = run_recipe("prepare_data", "--config", f"recipes/configs/data/{config}.yaml", "--output_dir", output)
    metrics = read_lineage(output)["metrics"]
    assert metrics["read"] == read
    assert metrics["documents"]["train"] > 0
    assert ("no document fell to validation" in finished.stdout) == (metrics["documents"]["validation"] == 0)
    assert sum(metrics["documents"].values()) + sum(metrics["removed"].values()) == read
    assert load_dataset(str(output), split="train").num_rows == metrics["documents"]["train"]
