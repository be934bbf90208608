"""Speed and memory of the data pipeline: what it adds to datatrove, speed-up, peak memory, and the rate of each step.

    python benchmarks/data.py  # about 7 minutes on two cores
    python benchmarks/data.py --data notes.jsonl 'books/*.txt' --megabytes 10 --repeats 6
    python benchmarks/data.py --megabytes 0.2 --repeats 1  # only to see that it runs

The input is made of the documents of `--data`, repeated; in each repetition a word in ten is another one, and a word
in a hundred one that is new, so that no two are near-duplicates and the vocabulary grows with the corpus.
`--megabytes` is the size 1x. Every measurement is in a fresh process. One Markdown table is printed:

- overhead: hfchat's chain, and the same blocks with nothing but datatrove around them, one worker, in turn
  (A B B A ...). Seconds are medians, without start-up: both ran once before. "no steps" only reads and writes, to show
  what is added to a document undiluted by filters.
- start-up: with nothing to read, and with a document a task, for which each worker loads its models.
- speed-up: from one to two workers, start-up included, as it is for a user.
- memory: of filters, which hold a document at a time, and (at a larger 1x) of deduplication, which writes, sorts and
  compares them all. Writers and readers hold up to 16 million characters a task: a smaller 1x has not filled them.
- step: the CPU time that each block takes for itself, in a chain that runs in one task. Where no documents go in, MB
  are those that come out, or of the corpus. datatrove splits a document into words once for the filters in a row that
  need them, which the first of them pays for; the last row is what that takes alone.

MB are 10^6 bytes of text in UTF-8 that go in, documents/s those that go in. RSS is the resident memory, sampled every
quarter of a second, of the process that runs the phases and of its largest worker; with one worker they are the same.
"""

import argparse
import contextlib
import gc
import io
import itertools
import json
import os
import random
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor
from datatrove.io import DataFolder
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import ParquetWriter
from datatrove.utils.text import split_into_parts, split_into_words
from loguru import logger

from hfchat.data.chain import Step
from hfchat.data.corpus import plan
from hfchat.data.execution import Executor, Phase, execute
from hfchat.data.sources import Source

ROOT = Path(__file__).parents[1]
# FineWeb's (arXiv:2406.17557) without C4's, whose rules most articles of an encyclopedia break.
FILTERS: list[Any] = [
    "fix_text",
    "clean_text",
    {"language": {"languages": ["en"]}},
    "gopher_repetition",
    {"gopher_quality": {"max_non_alpha_words_ratio": 0.7}},
    "fineweb_quality",
    "inappropriate",
    "pii",
    {"count_tokens": {"tokenizer_name_or_path": str(ROOT / "tokenizer")}},
]
DEDUPLICATION: list[Any] = ["clean_text", "exact_dedup", "near_dedup"]
TASKS = 2
SHARDS = 4 * TASKS
# Deduplication is so much faster, and its 1x must fill the 16 million characters of each task's writer.
DEDUPLICATION_SIZE = 7
HEADER = (
    "measurement", "case", "MB", "tasks", "workers", "seconds", "documents/s", "MB/s", "driver RSS, MB",
    "worker RSS, MB", "result",
)  # fmt: skip


@dataclass
class Input:
    """A folder of JSON lines, and what it holds."""

    folder: Path
    documents: int
    megabytes: float


@dataclass
class Run:
    """What a run took: seconds of wall-clock and CPU time; how many documents it kept."""

    seconds: float
    cpu_seconds: float
    kept: int


@dataclass
class Memory:
    """Peak resident memory in MB; `worker` is 0 where there was none beside the driver."""

    driver: float = 0.0
    worker: float = 0.0


def read_documents(data: Sequence[str]) -> list[str]:
    """The texts of files as hfchat's sources read them; of a dump of Wikipedia, the articles."""
    with contextlib.redirect_stderr(io.StringIO()):
        logger.remove()
        steps = [Source.parse({"path": path}).step(contextlib.nullcontext, strict=True) for path in data]
        return [document.text for step in steps for document in step.run()]


def repeat(texts: Sequence[str], seed: int = 0) -> Iterator[str]:
    """The texts, then for ever the texts with a tenth of their words replaced, a tenth of those by new ones."""
    yield from texts
    chance = random.Random(seed)
    vocabulary = list(dict.fromkeys(word for text in texts for word in text.split()))
    while True:
        for text in texts:
            words = text.split(" ")
            for place in chance.sample(range(len(words)), len(words) // 10):
                if "\n" not in words[place]:  # the lines stay: filters go by them
                    words[place] = chance.choice(vocabulary)
                    if chance.random() < 0.1:
                        words[place] = words[place][:4] + chance.choice(vocabulary)[-4:]
            yield " ".join(words)


def write_input(folder: Path, texts: Iterator[str], megabytes: float, shards: int = SHARDS) -> Input:
    """JSON lines of so many MB or a document more, in shards of about the same size."""
    folder.mkdir(parents=True)
    sizes, count = [0] * shards, 0
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context((folder / f"{i:05d}.jsonl").open("w", encoding="utf-8")) for i in range(shards)]
        while sum(sizes) < megabytes * 1e6:
            text, shard = next(texts), sizes.index(min(sizes))
            files[shard].write(json.dumps({"text": text, "id": str(count)}, ensure_ascii=False) + "\n")
            sizes[shard] += len(text.encode())
            count += 1
    return Input(folder, count, sum(sizes) / 1e6)


def phases(source: Input, steps: Sequence[Any], output: Path, tasks: int) -> list[Phase]:
    """hfchat's chain, as `hfchat.data.corpus.build_corpus` runs it."""
    sources = [Source.parse({"path": f"{source.folder}/*.jsonl", "name": "articles", "license": "CC-BY-SA-4.0"})]
    return plan(sources, [Step.parse(step) for step in steps], DataFolder(str(output)), 0.05, tasks, False, 50_000_000)


def run_hfchat(source: Input, steps: Sequence[Any], tasks: int, workers: int) -> Run:
    """hfchat's chain with the local executor."""

    def start(output: Path) -> Callable[[], Any]:
        chain = phases(source, steps, output, tasks)
        return lambda: execute(chain, DataFolder(str(output)), Executor.parse("local"), workers)

    return _timed(start)


def run_datatrove(source: Input, steps: Sequence[Any], tasks: int, workers: int) -> Run:
    """The same blocks between datatrove's reader and writers; none that has phases of its own."""

    def start(output: Path) -> Callable[[], Any]:
        chain = [Step.parse(step) for step in steps]
        pipeline = [
            JsonlReader(str(source.folder), default_metadata={"source": "articles", "license": "CC-BY-SA-4.0"}),
            *(step.build(ParquetWriter(f"{output}/removed/{step.name}")) for step in chain),
            ParquetWriter(f"{output}/data"),
        ]
        return LocalPipelineExecutor(pipeline, tasks, workers, logging_dir=f"{output}/logs").run

    return _timed(start)


def _timed(start: Callable[[Path], Callable[[], Any]]) -> Run:
    with tempfile.TemporaryDirectory() as output, contextlib.redirect_stderr(io.StringIO()):
        logger.remove()
        call = start(Path(output))  # imports the blocks
        gc.collect()
        split_into_parts.cache_clear()  # of the last documents of the run before
        started, cpu_started = time.perf_counter(), time.process_time()
        call()
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
        kept = sum(pq.read_metadata(file).num_rows for file in Path(output).glob("data/*.parquet"))
    return Run(seconds, cpu_seconds, kept)


def compare(source: Input, warm_up: Input, steps: Sequence[Any], repeats: int) -> tuple[Run, Run]:
    """Medians of hfchat and of datatrove, in turn in this process: A B B A ...

    Raises:
        RuntimeError: If they did not keep the same number of documents.
    """
    sides = (run_hfchat, run_datatrove)
    for side in sides:
        side(warm_up, steps, TASKS, 1)
    runs: dict[Callable, list[Run]] = {side: [] for side in sides}
    for i in range(repeats):
        for side in sides if i % 2 == 0 else sides[::-1]:
            runs[side].append(side(source, steps, TASKS, 1))
    if len(kept := {run.kept for side in sides for run in runs[side]}) > 1:
        raise RuntimeError(f"the two sides did not do the same: they kept {kept} documents")
    first, second = (
        Run(
            statistics.median(run.seconds for run in runs[side]),
            statistics.median(run.cpu_seconds for run in runs[side]),
            runs[side][0].kept,
        )
        for side in sides
    )
    return first, second


class Metered:
    """What a block passes on; counts it, and the CPU seconds that the block and those before it have taken."""

    def __init__(self, block: PipelineStep, before: "Metered | None", rank: int, tasks: int):
        self.before, self.documents, self.megabytes = before, 0, 0.0
        started = time.process_time()
        self._passed_on = iter(block.run(before and iter(before), rank, tasks) or ())  # some do all of it here
        self.seconds = time.process_time() - started

    def __iter__(self) -> Iterator[Document]:
        while True:
            started = time.process_time()
            document = next(self._passed_on, None)
            self.seconds += time.process_time() - started
            if document is None:
                return
            self.documents += 1
            self.megabytes += len(document.text.encode()) / 1e6
            yield document


def step_rates(source: Input, warm_up: Input, steps: Sequence[Any]) -> dict[str, tuple[Input, float]]:
    """What went into each block of the chain, and its own CPU seconds, by the name of its class.

    The last entry, `split_into_words`, is no block of its own.
    """
    for which in (warm_up, source):
        rates: dict[str, tuple[Input, float]] = {}
        with tempfile.TemporaryDirectory() as output, contextlib.redirect_stderr(io.StringIO()):
            logger.remove()
            for phase in phases(which, steps, Path(output), tasks=1):
                for rank in range(phase.tasks):
                    for name, entered, seconds in _run_metered(phase, rank, which):
                        counted, before = rates.get(name, (Input(which.folder, 0, 0.0), 0.0))
                        if rank == 0:  # tasks of an index share the corpus
                            documents, megabytes = counted.documents + entered[0], counted.megabytes + entered[1]
                            counted = Input(which.folder, documents, megabytes)
                        rates[name] = counted, before + seconds
        texts = [json.loads(line)["text"] for file in which.folder.iterdir() for line in file.open(encoding="utf-8")]
        split_into_parts.cache_clear()
        started = time.process_time()
        for text in texts:
            split_into_words(text)
        rates["split_into_words"] = which, time.process_time() - started
    return rates


def _run_metered(phase: Phase, rank: int, corpus: Input) -> Iterator[tuple[str, tuple[int, float], float]]:
    meters: list[Metered] = []
    for block in phase.pipeline:
        meters.append(Metered(block, meters[-1] if meters else None, rank, phase.tasks))
    deque(meters[-1], maxlen=0)
    for block, meter in zip(phase.pipeline, meters, strict=True):
        counted = meter.before or meter
        entered = (counted.documents, counted.megabytes) if counted.documents else (corpus.documents, corpus.megabytes)
        yield type(block).__name__, entered, meter.seconds - (meter.before.seconds if meter.before else 0.0)


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> tuple[Any, Memory]:
    """What `function` returns in a process of its own, and the peak memory of that and of its workers."""
    memory = Memory()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        driver = psutil.Process(pool.submit(os.getpid).result())
        future = pool.submit(function, *arguments)
        while not wait([future], timeout=0.25).done:
            with contextlib.suppress(psutil.NoSuchProcess):  # a worker that has ended meanwhile
                memory.driver = max(memory.driver, driver.memory_info().rss / 1e6)
                # Its children are the queues' process and the fork server, whose children are the workers.
                for worker in set(driver.children(recursive=True)) - set(driver.children()):
                    memory.worker = max(memory.worker, worker.memory_info().rss / 1e6)
        return future.result(), memory


def print_row(measurement: str, case: str, **cells: Any) -> None:
    """A row of the table; numbers with three significant digits, counts and sizes in memory whole."""

    def shown(name: str) -> str:
        value = cells.get(name.replace(", MB", ""), "")
        if not isinstance(value, float):
            return str(value)
        return f"{value:,.0f}" if value >= 100 or "RSS" in name else f"{value:.3g}"

    print("|", " | ".join([measurement, case, *map(shown, HEADER[2:])]), "|", flush=True)


def _rates(source: Input, seconds: float) -> dict[str, float]:
    return {
        "MB": source.megabytes,
        "seconds": seconds,
        "documents/s": source.documents / seconds,
        "MB/s": source.megabytes / seconds,
    }


def _peaks(memory: Memory) -> dict[str, float]:
    return {"driver RSS": memory.driver, "worker RSS": memory.worker or memory.driver}


def report_overhead(case: str, source: Input, warm_up: Input, steps: Sequence[Any], repeats: int, goal: str) -> None:
    (ours, bare), _ = in_fresh_process(compare, source, warm_up, steps, repeats)
    added = 1e6 * (ours.seconds - bare.seconds) / source.documents
    wall, cpu = ours.seconds / bare.seconds - 1, ours.cpu_seconds / bare.cpu_seconds - 1
    common = {"tasks": TASKS, "workers": 1}
    print_row("overhead", f"{case}, datatrove", **common, **_rates(source, bare.seconds))
    result = f"{wall:+.1%} of time, {cpu:+.1%} of CPU time, {added:+,.0f} µs a document{goal}"
    print_row("overhead", f"{case}, hfchat", **common, **_rates(source, ours.seconds), result=result)


def report_start_up(empty: Input, one_each: Input) -> list[float]:
    """Returns the seconds of one and two workers that load their models."""
    loaded = []
    for workers in (1, 2):
        for case, source in (("nothing to read", empty), ("a document a task", one_each)):
            run, _ = in_fresh_process(run_hfchat, source, FILTERS, TASKS, workers)
            print_row("start-up", case, MB=source.megabytes, tasks=TASKS, workers=workers, seconds=run.seconds)
        loaded.append(run.seconds)
    return loaded


def report_speed_up(large: Input, start_up: Sequence[float]) -> tuple[Run, Memory]:
    """Returns what the run with two workers took."""
    runs = []
    for workers in (1, 2):
        run, memory = in_fresh_process(run_hfchat, large, FILTERS, TASKS, workers)
        runs.append(run.seconds)
        result = ""
        if workers == 2:
            one, two = (seconds - loading for seconds, loading in zip(runs, start_up, strict=True))
            result = f"speed-up {runs[0] / runs[1]:.2f} (goal: at least 1.7); without start-up {one / two:.2f}"
        cells = {"tasks": TASKS, "workers": workers, **_rates(large, run.seconds)}
        print_row("speed-up", "filters, 4x", **cells, result=result)
    return run, memory


def report_memory(
    case: str, small: Input, large: Input, steps: Sequence[Any], of_large: tuple[Run, Memory] | None = None
) -> None:
    """`of_large`, where it is known, is what the run at 4x took."""
    first = 0.0
    for size, source, tasks in (("1x", small, TASKS), ("4x", large, TASKS), ("4x", large, 4 * TASKS)):
        known = of_large if (source, tasks) == (large, TASKS) else None
        run, memory = known or in_fresh_process(run_hfchat, source, steps, tasks, 2)
        result = f"worker {memory.worker / first - 1:+.0%} on 1x" if first else ""
        first = first or memory.worker
        cells = {"tasks": tasks, "workers": 2, **_rates(source, run.seconds), **_peaks(memory)}
        print_row("memory", f"{case}, {size}", **cells, result=result)


def report_steps(source: Input, warm_up: Input) -> None:
    rates, _ = in_fresh_process(step_rates, source, warm_up, [*FILTERS, "exact_dedup", "near_dedup"])
    words, words_seconds = rates.pop("split_into_words")
    total = sum(seconds for _, seconds in rates.values())
    for name, (entered, seconds) in rates.items():
        print_row("step", name, tasks=1, **_rates(entered, seconds), result=f"{seconds / total:.1%} of time")
    print_row("step", "(splitting into words)", tasks=1, **_rates(words, words_seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    dump = ROOT.parent / "shared" / "data" / "pretrain" / "enwiki-excerpt.xml.bz2"
    parser.add_argument("--data", nargs="+", default=[str(dump)], help="files or globs, as in a source's `path`")
    parser.add_argument("--megabytes", type=float, default=4.0, help="of text at size 1x")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side for the overhead")
    arguments = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")

    texts = read_documents(arguments.data)
    with tempfile.TemporaryDirectory() as scratch:

        def sized(name: str, megabytes: float) -> Input:
            return write_input(Path(scratch) / name, repeat(texts), megabytes)

        small, large = sized("small", arguments.megabytes), sized("large", 4 * arguments.megabytes)
        bulk = DEDUPLICATION_SIZE * arguments.megabytes
        small_bulk, large_bulk = sized("small-bulk", bulk), sized("large-bulk", 4 * bulk)
        empty = write_input(Path(scratch) / "empty", iter(()), 0.0)
        typical = min(texts, key=lambda text: abs(len(text) - 5000))
        one_each = write_input(
            Path(scratch) / "one-each", itertools.repeat(typical), TASKS * len(typical.encode()) / 1e6, TASKS
        )

        print("|", " | ".join(HEADER), "|\n|", " | ".join(["---"] * 2 + ["---:"] * 8 + ["---"]), "|")
        goal = " (goal: at most +5% of time)"
        report_overhead("filters", small, one_each, FILTERS, arguments.repeats, goal)
        report_overhead("no steps", small_bulk, one_each, [], arguments.repeats, "")
        start_up = report_start_up(empty, one_each)
        of_large = report_speed_up(large, start_up)
        report_memory("filters", small, large, FILTERS, of_large)
        report_memory("deduplication", small_bulk, large_bulk, DEDUPLICATION)
        report_steps(small, one_each)


if __name__ == "__main__":
    main()
