"""Speed of training byte-level BPE: `tokenizers`, rustbpe, and both through our recipe's function.

    python benchmarks/tokenizer.py  # about 2 minutes on two cores
    python benchmarks/tokenizer.py --data notes.txt --megabytes 1 --vocab_size 4096 --repeats 1

The texts of `--data` (text files, an empty line between documents) are repeated up to `--megabytes`. Each measurement
trains on all of them, in turn (A B C D D C B A ...). Seconds are medians, by the clock and of all cores together; the
latter other programs disturb less. The ratios are the speed against bare `tokenizers`. The last line says whether both
trainers gave the same ids.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import rustbpe
from tokenizers import Tokenizer, models, trainers

from hfchat.tokenization.bpe import SPLIT_PATTERNS, byte_level_splitter, train_bpe

DATA = ["../shared/data/pretrain/wikitext2-valid.txt", "../shared/data/pretrain/tinyshakespeare.txt"]


def read_documents(files: Sequence[Path], megabytes: float) -> list[str]:
    """Documents of the files, from the first again until they have `megabytes` (10^6 bytes of UTF-8)."""
    documents = [part for file in files for part in file.read_text(encoding="utf-8").split("\n\n") if part.strip()]
    taken, remaining = [], megabytes * 1e6
    for document in itertools.cycle(documents):
        if remaining <= 0:
            return taken
        taken.append(document)
        remaining -= len(document.encode())


def train_with_tokenizers(documents: list[str], vocab_size: int, split_pattern: str) -> None:
    """Bare `tokenizers`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = byte_level_splitter(split_pattern)
    tokenizer.train_from_iterator(documents, trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False))


def train_with_rustbpe(documents: list[str], vocab_size: int, split_pattern: str) -> None:
    """Bare rustbpe."""
    rustbpe.Tokenizer().train_from_iterator(iter(documents), vocab_size, pattern=SPLIT_PATTERNS[split_pattern])


def contestants(documents: list[str], vocab_size: int, split_pattern: str) -> dict[str, Callable[[], object]]:
    """What is measured, by name."""

    def ours(trainer: str) -> Callable[[], object]:
        return lambda: train_bpe(documents, vocab_size, split_pattern=split_pattern, trainer=trainer)

    return {
        "tokenizers": lambda: train_with_tokenizers(documents, vocab_size, split_pattern),
        "hfchat, trainer tokenizers": ours("tokenizers"),
        "rustbpe": lambda: train_with_rustbpe(documents, vocab_size, split_pattern),
        "hfchat, trainer rustbpe": ours("rustbpe"),
    }


@dataclass(frozen=True)
class Measurement:
    """Median seconds by the clock and of the processor, and the last result."""

    seconds: float
    cpu_seconds: float
    result: object


def measure(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, Measurement]:
    """Call each `repeats` times, in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in functions}
    results = {}
    for repeat in range(repeats):
        for name in list(functions)[:: -1 if repeat % 2 else 1]:
            started, cpu_started = time.perf_counter(), time.process_time()
            results[name] = functions[name]()
            seconds[name].append(time.perf_counter() - started)
            cpu_seconds[name].append(time.process_time() - cpu_started)
    return {
        name: Measurement(statistics.median(seconds[name]), statistics.median(cpu_seconds[name]), results[name])
        for name in functions
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, nargs="+", default=[Path(file) for file in DATA])
    parser.add_argument("--megabytes", type=float, default=21)
    parser.add_argument("--vocab_size", type=int, default=16384)
    parser.add_argument("--split_pattern", choices=list(SPLIT_PATTERNS), default="gpt2")
    parser.add_argument("--repeats", type=int, default=4)
    arguments = parser.parse_args(argv)
    documents = read_documents(arguments.data, arguments.megabytes)
    megabytes = sum(len(document.encode()) for document in documents) / 1e6
    measured = measure(contestants(documents, arguments.vocab_size, arguments.split_pattern), arguments.repeats)

    print(f"{megabytes:.1f} MB, vocabulary {arguments.vocab_size:,}, split pattern {arguments.split_pattern}\n")
    print("| trainer | seconds | MB/s | ratio | CPU seconds | ratio |\n| --- | ---: | ---: | ---: | ---: | ---: |")
    base = measured["tokenizers"]
    for name, one in measured.items():
        print(
            f"| {name} | {one.seconds:.2f} | {megabytes / one.seconds:.1f} | {base.seconds / one.seconds:.2f} "
            f"| {one.cpu_seconds:.2f} | {base.cpu_seconds / one.cpu_seconds:.2f} |"
        )
    ours = [measured[f"hfchat, trainer {trainer}"].result for trainer in ("tokenizers", "rustbpe")]
    same = len({tokenizer.backend_tokenizer.to_str() for tokenizer in ours}) == 1
    print(f"\nboth trainers of hfchat: {'identical' if same else 'DIFFERENT'} tokenizers")


if __name__ == "__main__":
    main()
