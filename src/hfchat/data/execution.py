"""Run the phases of a corpus, on this machine, on Ray or on Slurm, so that each can be killed and started again.

datatrove's executors run the tasks and remember which are complete. Added here, around each task: what an attempt that
was cut off left behind is deleted first, checksums of what the task wrote are kept, and on this machine a worker does
not outlive the process that started it. A shard that no longer agrees with its checksum is made again.
"""

import concurrent.futures
import contextlib
import fcntl
import functools
import hashlib
import inspect
import io
import itertools
import json
import multiprocessing
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dill
from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.io import DataFolder
from loguru import logger
from tqdm import tqdm

from hfchat.errors import UserError, out_of_space
from hfchat.processes import end_with_parent

_WORKERS_LOCK = "scratch/workers.lock"


@dataclass
class Phase:
    """A part of the work in which every task can run without waiting for another.

    Attributes:
        name: For progress bars, folders of logs and names of jobs.
        pipeline: Blocks of datatrove.
        tasks: How many pieces it is cut into.
        outputs: Glob patterns, below the corpus's folder, of what one task writes: `{rank:05d}` stands for the task.
    """

    name: str
    pipeline: list
    tasks: int
    outputs: tuple[str, ...]


class Executor(dict):
    """Where the tasks run: `local`, `ray`, `slurm`, or a mapping `{kind: slurm, time: ..., partition: ...}`.

    The other keys go to datatrove's `RayPipelineExecutor` (`cpus_per_task`, `mem_per_cpu_gb`, ...) and
    `SlurmPipelineExecutor` (`time`, `partition`, `qos`, `env_command`, `sbatch_args`, ...).

    Raises:
        ValueError: For a kind or a key that there is not.
    """

    def __init__(self, value: dict[str, Any] | str = "local"):
        if isinstance(value, str):
            value = json.loads(value) if value.lstrip().startswith("{") else {"kind": value}
        if not isinstance(value, dict) or value.get("kind") not in _EXECUTORS:
            raise ValueError(f"executor: kind must be one of {', '.join(_EXECUTORS)}, not {value!r}")
        super().__init__(value)
        known = inspect.signature(_EXECUTORS[self["kind"]].__init__).parameters
        known = {name: known[name] for name in known if name not in _OURS}
        if unknown := self.keys() - known.keys() - {"kind"}:
            takes = ", ".join(known) or "no other key"
            raise ValueError(f"executor: unknown key '{min(unknown)}'; {self['kind']} takes {takes}")
        needed = {name for name, parameter in known.items() if parameter.default is parameter.empty}
        if missing := needed - self.keys():
            raise ValueError(f"executor: {self['kind']} needs '{min(missing)}'")


def execute(phases: Sequence[Phase], folder: DataFolder, executor: Executor, workers: int) -> bool:
    """Run the phases one after the other; what an earlier run has finished, and is intact, is not run again.

    Args:
        phases: In their order.
        folder: Of the corpus that is being built. Tasks on other machines must see it under the same path.
        executor: Where the tasks run.
        workers: How many run at a time.

    Returns:
        Whether all is done. False: jobs have been submitted, the last of which runs this command again.

    Raises:
        UserError: What a task raised.
    """
    logger.remove()
    jobs = [_job(phase, number, folder, executor, workers) for number, phase in enumerate(phases, start=1)]
    with _locked(folder, fcntl.LOCK_EX):  # until workers of a killed run are gone, they write the same files
        _repair(jobs)
    _preload(phases)
    if executor["kind"] == "slurm":
        return _submit(jobs)
    for number, job in enumerate(jobs):
        try:
            _run(job, f"{number + 1}/{len(jobs)} {job.phase.name}")
        except Exception:
            # Perhaps because of what it read: then that is made again, and the phase gets a second chance.
            if not (broken := _repair(jobs[:number])):
                raise
            for earlier in broken:
                _run(earlier, f"{earlier.phase.name}, damaged shards")
            _run(job, f"{number + 1}/{len(jobs)} {job.phase.name}")
    return True


class _Job:
    """What every executor of ours does around a task. Mixed in before a datatrove executor."""

    phase: Phase
    folder: DataFolder
    started_by: int

    def _run_for_rank(self, rank: int, *args: Any, **kwargs: Any) -> Any:
        self.folder.invalidate_cache()
        with self._as_worker(), contextlib.redirect_stderr(io.StringIO()):
            if not self.is_rank_completed(rank):
                for file in self.files(rank):
                    self.folder.rm_file(file)
                if self.logging_dir.exists(f"errors/{rank:05d}"):
                    self.logging_dir.rm_file(f"errors/{rank:05d}")
            try:
                return super()._run_for_rank(rank, *args, **kwargs)
            except UserError as error:
                with self.logging_dir.open(f"errors/{rank:05d}", "w") as file:
                    file.write(str(error))
                raise
            except OSError as error:
                if out_of_space(error):
                    raise UserError(
                        f"{self.phase.name}: no space left for {self.folder.path}; make room, and the same command "
                        "goes on where it was"
                    ) from error
                raise

    def mark_rank_as_completed(self, rank: int) -> None:
        checksums = {file: self._checksum(file) for file in self.files(rank)}
        with self.logging_dir.open(f"checksums/{rank:05d}.json", "w") as file:
            json.dump(checksums, file)
        super().mark_rank_as_completed(rank)

    def get_incomplete_ranks(self, *args: Any, **kwargs: Any) -> list[int]:
        self.logging_dir.invalidate_cache()
        return super().get_incomplete_ranks(*args, **kwargs)

    def files(self, rank: int) -> list[str]:
        return sorted(file for pattern in self.phase.outputs for file in self.folder.glob(pattern.format(rank=rank)))

    def damaged_ranks(self) -> list[int]:
        """Completed tasks whose output is not what it was."""
        completed = set(range(self.world_size)) - set(self.get_incomplete_ranks())
        return sorted(rank for rank in completed if not self._is_intact(rank))

    def _is_intact(self, rank: int) -> bool:
        try:
            with self.logging_dir.open(f"checksums/{rank:05d}.json", "r") as file:
                checksums = json.load(file)
        except (OSError, ValueError):
            return False
        return sorted(checksums) == self.files(rank) and all(
            self._checksum(file) == checksum for file, checksum in checksums.items()
        )

    def _checksum(self, file: str) -> str:
        with self.folder.open(file, "rb") as stream:
            return hashlib.file_digest(stream, "blake2b").hexdigest()

    @contextlib.contextmanager
    def _as_worker(self) -> Iterator[None]:
        yield


class _LocalJob(_Job, LocalPipelineExecutor):
    stored = False

    def run(self) -> Any:
        """In this process with one worker; with several, in processes whose death is noticed.

        datatrove's own pool would wait for ever for a task whose worker the system has killed.
        """
        _have_forks_end_with_this_process()
        if self.workers == 1:
            return super().run()
        with self.logging_dir.open("job.pik", "wb") as file:
            dill.dump(self, file)
        self.stored = True
        context = multiprocessing.get_context("forkserver")
        with concurrent.futures.ProcessPoolExecutor(self.workers, mp_context=context) as pool:
            tasks = [pool.submit(self._run_for_rank, rank, rank) for rank in self.get_incomplete_ranks()]
            try:
                for task in concurrent.futures.as_completed(tasks):
                    task.result()
            except concurrent.futures.BrokenExecutor as error:
                raise UserError(
                    f"{self.phase.name}: a worker died at once, as by want of memory or a full disk; make room, or "
                    "run with fewer workers, and the same command goes on where it was"
                ) from error
            finally:
                pool.shutdown(cancel_futures=True)
        return None

    def __reduce_ex__(self, protocol: int) -> Any:
        # Every task would send the job to its worker, lists of sites and all; so workers are sent where it is.
        return (_load, (self.logging_dir,)) if self.stored else super().__reduce_ex__(protocol)

    @contextlib.contextmanager
    def _as_worker(self) -> Iterator[None]:
        if os.getpid() != self.started_by:
            _end_with_the_run()
        with _locked(self.folder, fcntl.LOCK_SH):
            yield


def _load(logging_dir: DataFolder) -> _LocalJob:
    with logging_dir.open("job.pik", "rb") as file:
        return dill.load(file)


class _RayJob(_Job, RayPipelineExecutor):
    pass


class _SlurmJob(_Job, SlurmPipelineExecutor):
    pass


_EXECUTORS = {"local": _LocalJob, "ray": _RayJob, "slurm": _SlurmJob}
# What is not for the YAML: ours to set, or of no use for one chain.
_OURS = {
    "self", "pipeline", "tasks", "workers", "logging_dir", "depends", "depends_job_id", "skip_completed", "job_name",
    "start_method", "local_tasks", "local_rank_offset", "log_first", "nodes_per_task", "randomize_start_duration",
    "job_id_retriever", "gpus_per_task",
}  # fmt: skip


@functools.cache
def _end_with_the_run() -> None:
    """End this worker when the process that runs the phases is gone, however it went."""

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@functools.cache
def _have_forks_end_with_this_process() -> None:
    # The process of datatrove's queues: it would wait for ever. A fork of a fork has another parent than this one.
    os.register_at_fork(after_in_child=lambda: end_with_parent(os.getppid()))


def _job(phase: Phase, number: int, folder: DataFolder, executor: Executor, workers: int) -> _Job:
    options = {key: value for key, value in executor.items() if key != "kind"}
    slug = f"{number:02d}-{phase.name.replace(' ', '-').replace(',', '')}"
    if executor["kind"] == "slurm":
        options["job_name"] = slug
    job = _EXECUTORS[executor["kind"]](
        phase.pipeline,
        tasks=phase.tasks,
        workers=min(workers, phase.tasks),
        logging_dir=below(folder, f"scratch/logs/{slug}"),
        **options,
    )
    job.phase, job.folder, job.started_by = phase, folder, os.getpid()
    return job


def below(folder: DataFolder, path: str) -> DataFolder:
    """A folder in a folder, on the same storage."""
    return DataFolder(f"{folder.path}/{path}", fs=folder.fs)


def _repair(jobs: Sequence[_Job]) -> list[_Job]:
    """Forget the completion of tasks whose output is damaged. Returns the jobs that have any."""
    broken = []
    for job in jobs:
        if ranks := job.damaged_ranks():
            for rank in ranks:
                job.logging_dir.rm_file(f"completions/{rank:05d}")
            tqdm.write(f"{job.phase.name}: {len(ranks)} of {job.world_size} shards are damaged; making them again")
            broken.append(job)
    return broken


def _run(job: _Job, description: str) -> None:
    if isinstance(job, _RayJob):
        _connect_to_ray(job.workers)
    finished = threading.Event()
    with tqdm(total=job.world_size, desc=f"{description:>34}", unit="task") as bar:
        bar.update(job.world_size - len(job.get_incomplete_ranks()))

        def follow() -> None:
            while True:
                last = finished.wait(0.2 if job.folder.is_local() else 2)
                if new := job.world_size - len(job.get_incomplete_ranks()) - bar.n:
                    bar.update(new)
                if last:
                    return

        watcher = threading.Thread(target=follow, daemon=True)
        watcher.start()
        try:
            job.run()
        finally:
            finished.set()
            watcher.join()
    for file in job.logging_dir.list_files("errors"):
        with job.logging_dir.open(file, "r") as stream:
            message = stream.read()
        job.logging_dir.rm_file(file)
        raise UserError(message)
    if failed := job.get_incomplete_ranks():
        logs = job.logging_dir.resolve_paths(f"logs/task_{failed[0]:05d}.log")
        raise RuntimeError(f"{job.phase.name}: {len(failed)} tasks failed; of the first, see {logs}")


def _preload(phases: Sequence[Phase]) -> None:
    """Have the fork server import what the blocks need, once: every phase has new workers."""
    modules = {type(block).__module__ for phase in phases for block in phase.pipeline}
    if "hfchat.data.measures" in modules:  # its filters find words with spaCy, and that brings torch
        modules.add("spacy")
    multiprocessing.get_context("forkserver").set_forkserver_preload(["__main__", *sorted(modules)])


def _connect_to_ray(workers: int) -> None:
    import ray

    if not ray.is_initialized():
        local = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": workers, "include_dashboard": False}
        ray.init(log_to_driver=False, logging_level="error", **local)


def _submit(jobs: Sequence[_SlurmJob]) -> bool:
    """Submit what is not complete, each phase after the one before; then this command, which finds all complete."""
    pending = [job for job in jobs if job.get_incomplete_ranks()]
    if not pending:
        return True
    for before, job in itertools.pairwise(pending):
        job.depends = before
    pending[-1].launch_job()
    command = shlex.join([sys.executable, *sys.argv])
    finished = subprocess.run(
        ["sbatch", f"--dependency=afterok:{pending[-1].job_id}", "--job-name=finish-corpus",
         f"--partition={pending[-1].partition}", f"--time={pending[-1].time}", f"--wrap={command}"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    print(f"submitted {len(pending)} phases; {finished.stdout.strip()} counts and reports when they are done")
    return False


@contextlib.contextmanager
def _locked(folder: DataFolder, how: int) -> Iterator[None]:
    if not folder.is_local():  # objects appear whole, so a leftover worker does no harm there
        yield
        return
    path = Path(folder.path) / _WORKERS_LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, how)
        yield
