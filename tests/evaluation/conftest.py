"""Many small models are computed here; more threads than one only slow them down."""

import os
import subprocess
import sys

import pytest
import torch

from tests.conftest import ROOT


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def in_two_processes(tmp_path):
    """Runs lines of Python as `accelerate launch` would on two processes of the CPU."""

    def run(*lines: str) -> None:
        script = tmp_path / "two.py"
        counted = ["from hfchat.processes import launched", "assert launched().num_processes == 2"]
        script.write_text("\n".join([*counted, *lines]))
        config = ROOT / "accelerate_configs" / "cpu_two_processes.yaml"
        command = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--config_file", config, script]
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}", "OMP_NUM_THREADS": "1"}
        finished = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
        assert finished.returncode == 0, finished.stderr[-3000:]

    return run
