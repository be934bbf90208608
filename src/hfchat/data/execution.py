"""Run the phases of a corpus, on this machine, on Ray or on Slurm, so that each can be killed and started again.

datatrove's executors run the tasks and remember which are complete. Two blocks of ours stand around each pipeline: the
first deletes what an attempt that was cut off left behind, and the last keeps checksums of what the task wrote. A
shard that no longer agrees with its checksum, as after a power cut, is made again.
"""

import concurrent.futures
import contextlib
import copy
import fcntl
import hashlib
import io
import itertools
import json
import logging
import multiprocessing
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar, Literal

from datatrove.data import DocumentsPipeline
from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.executor.base import PipelineExecutor
from datatrove.io import DataFolder
from datatrove.pipeline.base import PipelineStep
from loguru import logger
from tqdm import tqdm

from hfchat.entries import Entry
from hfchat.errors import UserError, out_of_space

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
    pipeline: list[PipelineStep]
    tasks: int
    outputs: tuple[str, ...]


def execute(phases: Sequence[Phase], folder: DataFolder, executor: "Executor", workers: int) -> bool:
    """Run the phases one after the other. Tasks that an earlier run has completed are not run again.

    Args:
        phases: In their order.
        folder: Where the corpus is being built. Tasks on other machines must see it under the same path.
        executor: Where the tasks run.
        workers: How many run at a time.

    Returns:
        Whether everything is complete. If not, jobs have been submitted, the last of which runs this command again.

    Raises:
        UserError: If a task raised one, lost its process, or found no space left.
    """
    logger.remove()  # datatrove logs to the terminal from its import on
    jobs = [_job(phase, number, folder, executor, workers) for number, phase in enumerate(phases, start=1)]
    # Workers of a run that was killed write the same files: wait until they are gone.
    if lock := _lock(folder, fcntl.LOCK_EX):
        lock.close()
    _forget_damaged(jobs)
    if isinstance(executor, OnSlurm):
        return _submit(jobs)
    _preload(phases)
    try:
        _run_all(jobs)
    except UserError:
        raise
    except Exception:
        # The cause may be a shard that was damaged since: then it is made again, and the phases get a second chance.
        if not _forget_damaged(jobs):
            raise
        _run_all(jobs)
    return True


@dataclass
class _Outputs:
    """What the tasks of a phase write. `clear` and `seal` are the first and the last block of its pipeline.

    Attributes:
        folder: The corpus.
        patterns: Those of the phase.
        records: Gets a file of checksums for each task.
    """

    folder: DataFolder
    patterns: tuple[str, ...]
    records: DataFolder

    def clear(self, data: DocumentsPipeline, rank: int, world_size: int) -> DocumentsPipeline:
        """Delete what an attempt that was cut off left behind, before any other block opens a file."""
        self.folder.invalidate_cache()
        for file in self._files(rank):
            self.folder.rm_file(file)
        return data

    def seal(self, data: DocumentsPipeline, rank: int, world_size: int) -> DocumentsPipeline:
        """Draw all documents through the blocks before this one, then note the checksums of what they wrote."""
        yield from data or ()
        checksums = {file: self._checksum(file) for file in self._files(rank)}
        with self.records.open(f"{rank:05d}.json", "w") as record:
            json.dump(checksums, record)

    def are_intact(self, rank: int) -> bool:
        """Whether the files of a completed task are those that it wrote."""
        try:
            with self.records.open(f"{rank:05d}.json", "r") as record:
                checksums = json.load(record)
        except (OSError, ValueError):
            return False
        return sorted(checksums) == self._files(rank) and all(
            self._checksum(file) == checksum for file, checksum in checksums.items()
        )

    def _files(self, rank: int) -> list[str]:
        patterns = [pattern.format(rank=rank) for pattern in self.patterns]
        return sorted(itertools.chain.from_iterable(map(self.folder.glob, patterns)))

    def _checksum(self, file: str) -> str:
        with self.folder.open(file, "rb") as stream:
            return hashlib.file_digest(stream, "blake2b").hexdigest()


class LocalExecutor(LocalPipelineExecutor):
    """datatrove's, with a pool of workers of its own.

    That of datatrove (read in 0.10.1) waits for ever for a task whose worker the system has killed. It sends the
    whole pipeline with every task, and so waits for ever, too, when a task fails while the pipe is full. It also has a
    process of queues, which goes on when the run is killed.
    """

    folder: DataFolder
    lock: IO[str] | None = None

    def run(self) -> None:
        ranks = self.get_incomplete_ranks()
        if self.workers == 1:
            for rank in ranks:
                self.run_task(rank)
            return
        context = multiprocessing.get_context("forkserver")
        with concurrent.futures.ProcessPoolExecutor(self.workers, context, _begin_worker, (self,)) as pool:
            tasks = [pool.submit(_run_in_worker, rank) for rank in ranks]
            try:
                for task in concurrent.futures.as_completed(tasks):
                    task.result()
            finally:
                pool.shutdown(cancel_futures=True)

    def run_task(self, rank: int) -> None:
        """Run one task in this process. What datatrove logs to the terminal goes to the task's log alone."""
        task = copy.copy(self)
        task.pipeline = copy.deepcopy(self.pipeline)  # blocks keep the statistics of one task
        with contextlib.redirect_stderr(io.StringIO()):
            task._run_for_rank(rank)  # which datatrove means to be called by `run` of an executor


_executor_of_worker: list[LocalExecutor] = []


def _begin_worker(executor: LocalExecutor) -> None:
    threading.Thread(target=_end_with_the_run, daemon=True).start()
    executor.lock = _lock(executor.folder, fcntl.LOCK_SH)  # held until the worker ends
    _executor_of_worker.append(executor)


def _run_in_worker(rank: int) -> None:
    _executor_of_worker[0].run_task(rank)


def _end_with_the_run() -> None:
    """End this worker when the process that runs the phases is gone, however it went."""
    if run := multiprocessing.parent_process():
        run.join()
        os._exit(1)


class Executor(Entry):
    """Where the tasks run: `local`, `ray`, `slurm`, or a mapping such as `{kind: slurm, time: ..., partition: ...}`.

    The other keys are those of datatrove's `RayPipelineExecutor` and `SlurmPipelineExecutor`, and explained there.
    """

    kind: str
    runs: ClassVar[type[PipelineExecutor]]

    @classmethod
    def expand(cls, value: object) -> Mapping[str, object]:
        is_name = isinstance(value, str) and not value.lstrip().startswith("{")
        return {"kind": value} if is_name else super().expand(value)

    @classmethod
    def title(cls, fields: Mapping[str, object]) -> str:
        return "executor"

    @classmethod
    def alternatives(cls) -> tuple[type["Executor"], ...]:
        return OnThisMachine, OnRay, OnSlurm

    def options(self) -> dict[str, Any]:
        """What datatrove's executor is given; its own defaults stand for the rest."""
        return self.model_dump(exclude={"kind"}, exclude_unset=True)


class OnThisMachine(Executor):
    kind: Literal["local"] = "local"
    runs = LocalExecutor


class OnRay(Executor):
    kind: Literal["ray"] = "ray"
    runs = RayPipelineExecutor
    cpus_per_task: int = 1
    mem_per_cpu_gb: float = 2
    tasks_per_job: int = 1
    time: int | None = None
    ray_remote_kwargs: dict[str, object] | None = None


class OnSlurm(Executor):
    kind: Literal["slurm"] = "slurm"
    runs = SlurmPipelineExecutor
    time: str | int
    partition: str
    cpus_per_task: int = 1
    mem_per_cpu_gb: int = 2
    tasks_per_job: int = 1
    qos: str | None = "normal"
    env_command: str | None = None
    condaenv: str | None = None
    venv_path: str | None = None
    sbatch_args: dict[str, object] | None = None
    srun_args: dict[str, object] | None = None
    with_srun: bool = True
    slurm_logs_folder: str | None = None
    max_array_size: int = 1001
    max_array_launch_parallel: bool = False
    stagger_max_array_jobs: int = 0
    job_id_position: int = -1
    run_on_dependency_fail: bool = False
    requeue: bool = True
    requeue_signals: list[str] | None = None
    mail_type: str = "ALL"
    mail_user: str | None = None


@dataclass
class _Job:
    """A phase, and the executor that runs its tasks."""

    phase: Phase
    outputs: _Outputs
    executor: PipelineExecutor

    def incomplete_ranks(self) -> list[int]:
        self.executor.logging_dir.invalidate_cache()
        return self.executor.get_incomplete_ranks()


def _job(phase: Phase, number: int, folder: DataFolder, executor: Executor, workers: int) -> _Job:
    slug = f"{number:02d}-{phase.name.replace(' ', '-').replace(',', '')}"
    logs = f"scratch/logs/{slug}"
    outputs = _Outputs(folder, phase.outputs, below(folder, f"{logs}/checksums"))
    runs = executor.runs(
        [outputs.clear, *phase.pipeline, outputs.seal],
        tasks=phase.tasks,
        workers=min(workers, phase.tasks),
        logging_dir=below(folder, logs),
        **({"job_name": slug} if isinstance(executor, OnSlurm) else {}),
        **executor.options(),
    )
    if isinstance(runs, LocalExecutor):
        runs.folder = folder
    return _Job(phase, outputs, runs)


def below(folder: DataFolder, path: str) -> DataFolder:
    """A folder in a folder, on the same storage."""
    return DataFolder(f"{folder.path}/{path}", fs=folder.fs)


def _forget_damaged(jobs: Sequence[_Job]) -> bool:
    """Unmark the completed tasks whose output is damaged. Returns whether there are any."""
    any_damaged = False
    for job in jobs:
        completed = set(range(job.phase.tasks)).difference(job.incomplete_ranks())
        damaged = [rank for rank in sorted(completed) if not job.outputs.are_intact(rank)]
        for rank in damaged:
            job.executor.logging_dir.rm_file(f"completions/{rank:05d}")
        if damaged:
            any_damaged = True
            tqdm.write(f"{job.phase.name}: {len(damaged)} of {job.phase.tasks} shards are damaged; making them again")
    return any_damaged


def _run_all(jobs: Sequence[_Job]) -> None:
    for number, job in enumerate(jobs, start=1):
        if isinstance(job.executor, RayPipelineExecutor):
            _connect_to_ray(job.executor.workers)
        name = job.phase.name
        with _progress(job, f"{number}/{len(jobs)} {name}"):
            try:
                job.executor.run()
            except concurrent.futures.BrokenExecutor as error:
                raise UserError(
                    f"{name}: a worker process was killed, most likely for lack of memory or disk space; free some, "
                    "or run with fewer workers, and the same command goes on where it was"
                ) from error
            except OSError as error:
                if out_of_space(error):
                    raise UserError(
                        f"{name}: no space left for {job.outputs.folder.path}; make room, and the same command goes "
                        "on where it was"
                    ) from error
                raise
        # Ray's executor raises nothing for a task that failed: what went wrong is in the task's log alone.
        if failed := job.incomplete_ranks():
            logs, log = job.executor.logging_dir, f"logs/task_{failed[0]:05d}.log"
            content = logs.cat_file(log).decode() if logs.isfile(log) else ""
            if found := re.search(r"^hfchat\.errors\.UserError: (.*)", content, re.MULTILINE):
                raise UserError(found[1])
            raise RuntimeError(f"{name}: {len(failed)} tasks failed; of the first, see {logs.resolve_paths(log)}")


@contextlib.contextmanager
def _progress(job: _Job, description: str) -> Iterator[None]:
    """Show how many tasks are complete, wherever they run, by the marks that they leave."""
    finished = threading.Event()
    total = job.phase.tasks

    def follow() -> None:
        while not finished.wait(0.2 if job.outputs.folder.is_local() else 2):
            bar.update(total - len(job.incomplete_ranks()) - bar.n)

    watcher = threading.Thread(target=follow, daemon=True)
    with tqdm(total=total, initial=total - len(job.incomplete_ranks()), desc=f"{description:>34}", unit="task") as bar:
        watcher.start()
        try:
            yield
        finally:
            finished.set()
            watcher.join()
            bar.update(total - len(job.incomplete_ranks()) - bar.n)


def _preload(phases: Sequence[Phase]) -> None:
    """Have the fork server import what the blocks need, once: every phase has new workers."""
    blocks = itertools.chain.from_iterable(phase.pipeline for phase in phases)
    modules = {type(block).__module__ for block in blocks}
    if "hfchat.data.measures" in modules:  # its filters find words with spaCy, and that brings torch
        modules.add("spacy")
    multiprocessing.get_context("forkserver").set_forkserver_preload(["__main__", *sorted(modules)])


def _connect_to_ray(workers: int) -> None:
    import ray

    if ray.is_initialized():
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    else:
        ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)


def _submit(jobs: Sequence[_Job]) -> bool:
    """Submit what is not complete, each phase after the one before; then this command, which finds all complete."""
    pending = [job.executor for job in jobs if job.incomplete_ranks()]
    if not pending:
        return True
    for before, executor in itertools.pairwise(pending):
        executor.depends = before
    last = pending[-1]
    last.launch_job()
    command = shlex.join([sys.executable, *sys.argv])
    finished = subprocess.run(
        ["sbatch", f"--dependency=afterok:{last.job_id}", "--job-name=finish-corpus",
         f"--partition={last.partition}", f"--time={last.time}", f"--wrap={command}"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    print(f"submitted {len(pending)} phases; {finished.stdout.strip()} counts and reports when they are done")
    return False


def _lock(folder: DataFolder, how: int) -> IO[str] | None:
    """The open file that holds the lock. None for a remote folder: objects appear whole, so no worker does harm."""
    if not folder.is_local():
        return None
    path = Path(folder.path) / _WORKERS_LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a")
    fcntl.flock(file, how)
    return file
