import inspect
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from datatrove.io import DataFolder

from hfchat.data.execution import Executor, Phase, below, execute
from hfchat.data.shards import DocumentWriter, OwnShardReader
from hfchat.errors import UserError
from tests.conftest import ROOT
from tests.data.blocks import Dies, FindsTheDiskFull, Numbers, Refuses

TASKS = 3
# For processes that another program starts to find the blocks.
PYTHONPATH = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def phases(folder: DataFolder, *between, tasks=TASKS, delay=0.0) -> list[Phase]:
    shards = below(folder, "scratch/shards")
    return [
        Phase("make", [Numbers(delay=delay), DocumentWriter(shards)], tasks, ("scratch/shards/{rank:05d}.parquet",)),
        Phase(
            "copy",
            [OwnShardReader(shards), *between, DocumentWriter(below(folder, "data"))],
            tasks,
            ("data/{rank:05d}.parquet",),
        ),
    ]


def outputs(folder: DataFolder) -> dict[str, bytes]:
    folder.invalidate_cache()
    return {file: folder.cat_file(file) for file in folder.list_files("data")}


@pytest.fixture
def folder(tmp_path) -> DataFolder:
    return DataFolder(str(tmp_path / "corpus"))


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> dict[str, bytes]:
    folder = DataFolder(str(tmp_path_factory.mktemp("expected")))
    assert execute(phases(folder), folder, Executor.parse("local"), workers=1)
    assert len(outputs(folder)) == TASKS
    return outputs(folder)


def mark(folder, phase, name="logs") -> dict[str, int]:
    """When each task of a phase last ran."""
    logs = Path(folder.path) / "scratch/logs" / phase / name
    return {file.name: file.stat().st_mtime_ns for file in logs.iterdir()}


def test_two_workers_write_what_one_does(folder, expected):
    execute(phases(folder), folder, Executor.parse("local"), workers=2)
    assert outputs(folder) == expected


def test_a_second_call_runs_only_what_is_not_complete(folder, expected):
    execute(phases(folder), folder, Executor.parse("local"), workers=1)
    before = mark(folder, "02-copy")
    folder.rm_file("scratch/logs/02-copy/completions/00001")
    execute(phases(folder), folder, Executor.parse("local"), workers=1)
    after = mark(folder, "02-copy")
    assert {name for name in after if after[name] != before[name]} == {"task_00001.log"}
    assert outputs(folder) == expected


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_a_damaged_shard_is_made_again(folder, expected, damage, capsys):
    execute(phases(folder), folder, Executor.parse("local"), workers=1)
    shard = Path(folder.path) / "scratch/shards/00002.parquet"
    content = shard.read_bytes()
    shard.unlink()
    if damage != "gone":
        shard.write_bytes(content[:-9] if damage == "cut" else content[:60] + bytes([content[60] ^ 1]) + content[61:])
    folder.rm_file("scratch/logs/02-copy/completions/00002")
    folder.rm_file("data/00002.parquet")
    execute(phases(folder), folder, Executor.parse("local"), workers=1)
    assert "make: 1 of 3 shards are damaged" in capsys.readouterr().out
    assert shard.read_bytes() == content
    assert outputs(folder) == expected


def test_damage_that_shows_only_when_a_shard_is_read_is_repaired(folder, expected, monkeypatch):
    real = OwnShardReader.run
    shard = Path(folder.path) / "scratch/shards/00001.parquet"

    def run(self, data=None, rank=0, world_size=1):
        if rank == 1 and not hasattr(run, "done"):
            run.done = True
            content = shard.read_bytes()
            shard.write_bytes(content[:60] + bytes([content[60] ^ 1]) + content[61:])
        yield from real(self, data, rank, world_size)

    monkeypatch.setattr(OwnShardReader, "run", run)
    execute(phases(folder), folder, Executor.parse("local"), workers=1)
    assert run.done
    assert outputs(folder) == expected


def test_what_an_earlier_attempt_left_is_deleted(folder, expected):
    leftover = Path(folder.path) / "data/00000.parquet"
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"half a file")
    stale = Path(folder.path) / "data/00099.parquet"
    stale.write_bytes(b"of another task")
    execute(phases(folder), folder, Executor.parse("local"), workers=1)
    assert outputs(folder) == {**expected, "data/00099.parquet": b"of another task"}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_user_error_of_a_task_reaches_the_user(folder, expected, workers):
    with pytest.raises(UserError, match="task 1 does not like its input"):
        execute(phases(folder, Refuses(1)), folder, Executor.parse("local"), workers)
    execute(phases(folder), folder, Executor.parse("local"), workers)
    assert outputs(folder) == expected


def test_a_task_that_fails_ends_a_run_whose_blocks_are_large(folder):
    """Such as lists of sites. A pool that sends them with every task waits for itself for ever: its pipe is full."""
    refuses = Refuses(0)
    refuses.weight = "x" * 1_000_000
    with pytest.raises(UserError, match="task 0 does not like its input"):
        execute(phases(folder, refuses, tasks=40), folder, Executor.parse("local"), workers=2)


def test_a_full_disk_is_one_clear_line_and_the_run_can_go_on(folder, expected):
    with pytest.raises(UserError, match=f"copy: no space left for {folder.path}; make room"):
        execute(phases(folder, FindsTheDiskFull()), folder, Executor.parse("local"), workers=2)
    execute(phases(folder), folder, Executor.parse("local"), workers=2)
    assert outputs(folder) == expected


def test_a_worker_that_dies_ends_the_run_which_can_go_on(folder, expected):
    with pytest.raises(UserError, match="copy: a worker process was killed"):
        execute(phases(folder, Dies()), folder, Executor.parse("local"), workers=2)
    execute(phases(folder), folder, Executor.parse("local"), workers=2)
    assert outputs(folder) == expected


def test_workers_do_not_outlive_a_killed_run(folder, tmp_path):
    script = tmp_path / "run.py"
    script.write_text(
        "from datatrove.io import DataFolder\n"
        "from hfchat.data.execution import Executor, execute\n"
        "from tests.data.test_execution import phases\n"
        "if __name__ == '__main__':\n"
        f"    folder = DataFolder({folder.path!r})\n"
        "    execute(phases(folder, delay=30), folder, Executor.parse('local'), workers=2)\n"
    )
    process = subprocess.Popen([sys.executable, script], cwd=ROOT, env={**os.environ, "PYTHONPATH": PYTHONPATH})
    started = Path(folder.path) / "scratch/logs/01-make/logs"
    deadline = time.monotonic() + 60
    while not (started.is_dir() and len(list(started.iterdir())) == 2):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    # The workers hold a lock, so this returns only when they are gone: at once, not after their 90 seconds.
    began = time.monotonic()
    execute(phases(folder), folder, Executor.parse("local"), workers=1)
    assert time.monotonic() - began < 25


def test_ray_writes_what_one_worker_does(folder, expected, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    try:
        execute(phases(folder), folder, Executor.parse({"kind": "ray", "mem_per_cpu_gb": 0.1}), workers=2)
        assert outputs(folder) == expected
        other = DataFolder(folder.path + "-2")
        with pytest.raises(UserError, match="task 1 does not like its input"):
            execute(
                phases(other, Refuses(1)), other, Executor.parse({"kind": "ray", "mem_per_cpu_gb": 0.1}), workers=2
            )
    finally:
        ray.shutdown()


SBATCH = """#!{python}
# Stands in for Slurm: keeps every job file, and runs the tasks of its array one after the other.
import os, re, subprocess, sys
options = dict(re.findall(r"--([\\w-]+)=(.*)", "\\n".join(sys.argv[1:])))
jobs = {jobs!r}
number = len(os.listdir(jobs))
script = open(sys.argv[-1]).read() if not sys.argv[-1].startswith("--") else "#!/bin/bash\\n" + options["wrap"]
open(f"{{jobs}}/{{number:02d}}.sh", "w").write("\\n".join(sys.argv[1:]) + "\\n" + script)
array = re.search(r"#SBATCH --array=0-(\\d+)", script)
ranks = range(int(array[1]) + 1) if array and "launch_pickled_pipeline" in script else []
for rank in ranks:
    environment = os.environ | {{"SLURM_ARRAY_TASK_ID": str(rank), "SLURM_NODELIST": "node1", "RUN_OFFSET": "0"}}
    subprocess.run(["bash"], input=script, text=True, env=environment, check=True, capture_output=True)
print("Submitted batch job", 100 + number)
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Path:
    """Commands of Slurm on the path. Returns the folder of the job files."""
    programs, jobs = tmp_path / "bin", tmp_path / "jobs"
    programs.mkdir()
    jobs.mkdir()
    (programs / "sbatch").write_text(SBATCH.format(python=sys.executable, jobs=str(jobs)))
    (programs / "srun").write_text('#!/bin/bash\nshift 3\nexec "$@"\n')  # -l -n 1
    (programs / "scontrol").write_text("#!/bin/bash\necho node1\n")
    for program in programs.iterdir():
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    return jobs


def test_slurm_gets_a_job_per_phase_in_their_order_and_one_that_finishes(folder, expected, slurm, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["recipes/prepare_data.py", "--config", "my corpus.yaml"])
    executor = Executor.parse(
        {"kind": "slurm", "time": "01:00:00", "partition": "cpu", "sbatch_args": {"account": "me"}}
    )
    assert execute(phases(folder), folder, executor, workers=2) is False
    scripts = [file.read_text() for file in sorted(slurm.iterdir())]
    arrays = [script for script in scripts if "launch_pickled_pipeline" in script]
    assert len(arrays) == 2
    for script, name in zip(arrays, ("01-make", "02-copy"), strict=True):
        for line in (f"job-name={name}", "array=0-2%2", "partition=cpu", "time=01:00:00", "account=me"):
            assert f"#SBATCH --{line}\n" in script
    assert "--dependency" not in arrays[0]
    assert "--dependency=afterok:100" in arrays[1]
    assert scripts[-1].startswith("--dependency=afterok:")
    assert scripts[-1].endswith(f"{sys.executable} recipes/prepare_data.py --config 'my corpus.yaml'")
    assert outputs(folder) == expected  # the stand-in has run them
    # What that last job runs finds all complete, and goes on to the counts and the report.
    assert execute(phases(folder), folder, executor, workers=2) is True


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("spark", "executor: kind must be one of local, ray, slurm, not 'spark'"),
        ({"kind": "slurm", "time": "1:00"}, "executor: needs 'partition'"),
        ({"kind": "slurm", "time": 60, "partition": 7}, "executor: 'partition' must be a valid string, not 7"),
        ({"kind": "ray", "cores": 2}, "executor: unknown key 'cores'; it takes kind, cpus_per_task"),
        ({"kind": "ray", "cpu_per_task": 2}, "unknown key 'cpu_per_task'; did you mean 'cpus_per_task'?"),
        ({"kind": "local", "partition": "x"}, "unknown key 'partition'; it takes kind"),
    ],
)
def test_a_bad_executor_is_refused(value, problem):
    with pytest.raises(ValueError, match=problem):
        Executor.parse(value)


@pytest.mark.parametrize("executor", Executor.alternatives())
def test_an_executor_takes_what_datatrove_takes(executor):
    assert executor.model_fields.keys() - {"kind"} <= inspect.signature(executor.runs).parameters.keys()


def test_s3_gets_what_a_disk_gets(bucket, expected):
    folder = DataFolder(f"{bucket}/corpus")
    execute(phases(folder), folder, Executor.parse("local"), workers=1)
    assert outputs(folder) == expected
    folder.pipe_file("scratch/shards/00001.parquet", b"damaged")
    folder.rm_file("scratch/logs/02-copy/completions/00001")
    execute(phases(folder), folder, Executor.parse("local"), workers=1)
    assert outputs(folder) == expected


def test_webhdfs_gets_what_a_disk_gets(webhdfs, expected):
    folder = DataFolder(f"{webhdfs}/corpus")
    execute(phases(folder), folder, Executor.parse("local"), workers=1)
    assert outputs(folder) == expected
