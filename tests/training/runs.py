"""Runs of `recipes/pretrain.py` in processes of their own, without the seconds that the imports take each time.

As a program, it is the server that imports once, and forks the processes of each run: a line of its input describes
one, as JSON. It answers with their numbers and, when all have ended, with their exit statuses.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from safetensors.torch import load_file

from hfchat.lineage import CHECKPOINTS, read_lineage
from tests.conftest import ROOT

_HANGS = 120  # seconds after which a run is taken to


class Runs:
    """Starts runs, one after the other.

    Args:
        log: What they print.
    """

    def __init__(self, log: Path):
        self.log = log
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}", "OMP_NUM_THREADS": "1"},
        )

    def start(self, arguments: list, config: str | None = None, processes: int = 1) -> list[int]:
        """Start a run as `accelerate launch` would with `accelerate_configs/<config>.yaml`. Returns its processes."""
        environment = launch_environment(config, processes) if config else {}
        run = {"arguments": [*map(str, arguments)], "processes": processes, "environment": environment}
        self._server.stdin.write(json.dumps(run) + "\n")
        self._server.stdin.flush()
        self._processes = self._answer()
        return self._processes

    def wait(self, seconds: float | None = None) -> list[int] | None:
        """Exit statuses of the run's processes: 0, or less for a signal. None if it has not ended by then."""
        if select.select([self._server.stdout], [], [], _HANGS if seconds is None else seconds)[0]:
            return self._answer()
        if seconds is None:
            self.kill()
            raise AssertionError(f"the run hangs: {self.tail()}")
        return None

    def kill(self) -> list[int]:
        """End the run as `kill -9` does. Returns its exit statuses."""
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                os.kill(process, signal.SIGKILL)
        return self._answer()

    def finish(self, arguments: list, config: str | None = None, processes: int = 1) -> None:
        """A run that must end well."""
        self.start(arguments, config, processes)
        assert self.wait() == [0] * processes, self.tail()

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]

    def close(self) -> None:
        self._server.stdin.close()
        self._server.wait(timeout=60)

    def _answer(self) -> list[int]:
        answer = self._server.stdout.readline()
        assert answer, self.tail()
        return [int(number) for number in answer.split()]


def launch_environment(config: str, processes: int) -> dict[str, str]:
    """The variables that `accelerate launch` sets for `accelerate_configs/<config>.yaml`."""
    file = ROOT / "accelerate_configs" / f"{config}.yaml"
    options = ["--config_file", str(file), "--num_processes", str(processes), "--main_process_port", "0"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args([*options, "recipes/pretrain.py"]))
    changed = {key: value for key, value in prepare_multi_gpu_env(args).items() if os.environ.get(key) != value}
    return {**changed, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(args.main_process_port)}


def checkpoints(output: Path) -> list[Path]:
    """Those of a finished or unfinished output, in the order of their steps."""
    folders = [output, *output.parent.glob(f"{output.name}.partial-*")]
    found = [path for folder in folders for path in (folder / CHECKPOINTS).glob("checkpoint-*")]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def curve(output: Path) -> list[dict]:
    """The log of a finished run, but for what depends on how long it took."""
    timed = ("elapsed_seconds", "tokens_per_second", "mfu", "_runtime", "_per_second")
    entries = json.loads((output / "loss_curve.json").read_text())
    return [{key: value for key, value in entry.items() if not key.endswith(timed)} for entry in entries]


def losses(output: Path) -> list[float]:
    return [entry["loss"] for entry in curve(output) if "loss" in entry]


def outcome(output: Path) -> dict:
    """All that a finished run leaves behind, but for how long it took."""
    last = checkpoints(output)[-1]
    return {
        "weights": load_file(output / "model.safetensors"),
        "checkpoint": last.name,
        "optimizer": torch.load(last / "optimizer.pt"),
        "schedule": torch.load(last / "scheduler.pt"),
        "curve": curve(output),
        "predicted tokens": read_lineage(output)["metrics"]["eval_predicted_tokens"],
    }


def assert_identical(one: object, other: object, place: str = "outcome") -> None:
    """Bit by bit; `place` is named where they differ."""
    assert type(one) is type(other), place
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, place
        assert torch.equal(one, other), place
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one:
            assert_identical(one[key], other[key], f"{place}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), place
        for index, (first, second) in enumerate(zip(one, other, strict=True)):
            assert_identical(first, second, f"{place}[{index}]")
    else:
        assert one == other, place


def _fork(run: dict, rank: int) -> int:
    from recipes.pretrain import main

    process = os.fork()
    if process:
        return process
    status = 1
    try:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        if run["environment"]:
            ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": run["processes"]}
            os.environ.update(run["environment"], **{key: str(value) for key, value in ranks.items()})
        main(run["arguments"])
        status = 0
    except SystemExit as error:
        status = error.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _serve() -> None:
    for line in sys.stdin:
        run = json.loads(line)
        processes = [_fork(run, rank) for rank in range(run["processes"])]
        print(*processes, flush=True)
        print(*(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes), flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _serve()
