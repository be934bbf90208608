"""Time to quality on one CPU machine: ours and nanochat's at the same depth, on the same documents.

    python -m benchmarks.time_to_quality --peers ../peers  # about 16 minutes on two cores
    python -m benchmarks.time_to_quality --peers ../peers --recipe_arguments "--per_device_train_batch_size 8"
    python -m benchmarks.time_to_quality --peers ../peers --quick  # only to see that it runs

The documents are an excerpt of Wikipedia, WikiText and Shakespeare. Our recipe prepares and splits them; then they are
cut at line ends into pieces of at most `--piece_characters`: nanochat's loader keeps only the beginning of a document
that does not fit into what is left of a row, and would throw away most of a longer one. Both sides read the same
pieces, and both train a tokenizer of 4,096 tokens on them, which is not counted.

In order: nanochat (depth 4, 300 steps of 16 x 256 tokens, the settings of its `runs/runcpu.sh` otherwise, without
evaluations); ours for a few steps, eager and compiled, to know how many fit; ours for a quarter of nanochat's time,
and for all of it, each time as whichever of the two fits more steps in.

- process: seconds from the start of the process to its end, for both: imports, tokenizing and compiling, and for ours
  the evaluation at the end as well.
- training: for nanochat the sum of its steps by its own clock, for ours `train_runtime`. Compiling is in both.
- bits per byte: every token of the validation text once, the bytes those of its UTF-8, for both in blocks of 256
  tokens, the first of which begins with the document.
- own count: nanochat's `evaluate_bpb` with its own loader, which crops documents and starts over at their end; our
  recipe's, over packed blocks, some of which cut a document, and with the ends of documents.
"""

import argparse
import dataclasses
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml
from benchmarks.peers import (
    ROOT,
    Finished,
    Ours,
    Outcome,
    ProcessFailedError,
    find,
    machine,
    markdown_table,
    measure_nanochat,
    measure_ours,
    nanochat_step_seconds,
    python_of,
    recipe,
    run,
    scratch_folder,
    steps_within,
)

DATA = ROOT.parent / "shared" / "data" / "pretrain"
SOURCES = {
    "enwiki-excerpt.xml.bz2": {"license": "CC-BY-SA-3.0"},
    "wikitext2-valid.txt": {"license": "CC-BY-SA-3.0", "separator": "\n\n"},
    "tinyshakespeare.txt": {"license": "public-domain", "separator": "\n\n"},
}
VOCABULARY = 4096
DEPTH, BLOCK_SIZE, BATCH = 4, 256, 16  # nanochat's batch; ours is below
# Small steps: so few tokens go further in many of them.
OURS = "--per_device_train_batch_size 8 --per_device_eval_batch_size 16"
MARGIN = 0.95  # of the time that is given: the rate of the calibration is not exactly that of a longer run
HEADER = ("run", "steps", "tokens", "process, s", "training, s", "bits per byte", "own count", "result")


def pieces(text: str, characters: int) -> Iterator[str]:
    """The text cut after line ends into pieces of at most so many characters; a longer line, after spaces."""
    rest = text
    while len(rest) > characters:
        cut = rest.rfind("\n", 0, characters) + 1 or rest.rfind(" ", 0, characters) + 1 or characters
        yield rest[:cut]
        rest = rest[cut:]
    if rest:
        yield rest


def prepare(data: Path, folder: Path, piece_characters: int) -> Path:
    """The corpus, each split in one Parquet file, by our recipe; documents cut unless `piece_characters` is 0."""
    from datasets import Dataset, load_dataset

    target = folder / f"corpus-{piece_characters}"
    if target.exists():
        return target
    config = {
        "sources": [{"path": str(data / name), **keys} for name, keys in SOURCES.items() if (data / name).is_file()],
        "steps": ["fix_text", "clean_text", "exact_dedup"],
        "validation_fraction": 0.05,
        "tasks": 2,
        "output_dir": str(folder / "documents"),
    }
    file = folder / "prepare_data.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    run(recipe("prepare_data", "--config", str(file)))
    writing = folder / "corpus.writing"
    shutil.rmtree(writing, ignore_errors=True)
    for split in ("train", "validation"):
        texts = load_dataset(str(folder / "documents"), split=split, cache_dir=str(folder / "cache"))["text"]
        if piece_characters:
            texts = [piece for text in texts for piece in pieces(text, piece_characters)]
        dataset = Dataset.from_dict({"text": list(texts)}).shuffle(seed=0)
        dataset.to_parquet(writing / "data" / f"{split}-00000.parquet")
    writing.rename(target)
    return target


def train_tokenizer(corpus: Path, folder: Path, vocab_size: int = VOCABULARY) -> Path:
    """Our tokenizer for the corpus; `folder` itself."""
    sizes = ["--vocab_size", str(vocab_size), "--overwrite_output_dir", "true"]
    run(recipe("train_tokenizer", "--dataset_name", str(corpus), "--output_dir", str(folder), *sizes))
    return folder


def check_data(data: Path) -> None:
    """End the program where a folder has none of the sources."""
    if not any((data / name).is_file() for name in SOURCES):
        sys.exit(f"--data {data}: holds none of {', '.join(SOURCES)}")


def prepare_nanochat(checkout: Path, corpus: Path, folder: Path, vocab_size: int = VOCABULARY) -> None:
    """Fill a `NANOCHAT_BASE_DIR` with the corpus and with nanochat's own tokenizer."""
    from hfchat.dataset import load_split

    shards = folder / "base_data_climbmix"
    shutil.rmtree(folder, ignore_errors=True)
    for number, split in enumerate(("train", "validation")):  # its last shard is its validation
        load_split(str(corpus), split, "text").to_parquet(shards / f"shard_{number:05d}.parquet")
    command = [python_of(checkout), "-m", "scripts.tok_train", f"--vocab-size={vocab_size}"]
    run(command, cwd=checkout, environment={"NANOCHAT_BASE_DIR": str(folder)})


def launch_nanochat(
    checkout: Path, folder: Path, iterations: int, depth: int = DEPTH, block_size: int = BLOCK_SIZE, batch: int = BATCH
) -> Finished:
    """nanochat's base model, without evaluations; its checkpoint is `d<depth>` at step `iterations`."""
    arguments = [
        f"--depth={depth}", "--head-dim=64", "--window-pattern=L", f"--max-seq-len={block_size}",
        f"--device-batch-size={batch}", f"--total-batch-size={batch * block_size}",
        f"--num-iterations={iterations}", "--eval-every=-1", "--core-metric-every=-1", "--sample-every=-1",
    ]  # fmt: skip
    command = [python_of(checkout), "-m", "scripts.base_train", *arguments]
    return run(command, cwd=checkout, environment={"NANOCHAT_BASE_DIR": str(folder)})


def train_nanochat(checkout: Path, corpus: Path, folder: Path, iterations: int) -> tuple[Outcome, float]:
    """Train and measure nanochat. The second value is its own count of bits per byte."""
    prepare_nanochat(checkout, corpus, folder)
    finished = launch_nanochat(checkout, folder, iterations)
    measured = measure_nanochat(folder, checkout, f"d{DEPTH}", iterations, BLOCK_SIZE)
    seconds = finished.seconds, nanochat_step_seconds(finished)
    return Outcome(iterations, BATCH * BLOCK_SIZE, *seconds, measured["bits_per_byte"]), measured["own_bits_per_byte"]


def report(peer: tuple[Outcome, float] | None, ours: Sequence[tuple[str, Outcome, float]]) -> str:
    """The table: nanochat's run, if there was one, and each of ours with its ratios to it.

    The last of each tuple is its own count of bits per byte.
    """

    def row(name: str, outcome: Outcome, own: float, ratios: str = "") -> tuple:
        tokens = f"{outcome.steps * outcome.tokens_per_step:,}"
        seconds = outcome.process_seconds, outcome.training_seconds
        return name, outcome.steps, tokens, *seconds, outcome.bits_per_byte, own, ratios

    if peer is None:
        missing = ("nanochat", *[""] * (len(HEADER) - 2), "not found")
        return markdown_table(HEADER, [missing, *(row(f"ours, {name}", *rest) for name, *rest in ours)])
    nanochat, own = peer
    rows = [row("nanochat", nanochat, own)]
    for name, outcome, own in ours:
        time = outcome.process_seconds / nanochat.process_seconds
        quality = outcome.bits_per_byte / nanochat.bits_per_byte
        rows.append(row(f"ours, {name}", outcome, own, f"{time:.2f} of its time, {quality:.3f} of its bits per byte"))
    return markdown_table(HEADER, rows)


def by_document(outcome: Outcome, corpus: Path) -> Outcome:
    """Ours, measured as nanochat's is."""
    return dataclasses.replace(outcome, bits_per_byte=measure_ours(outcome.checkpoint, corpus, BLOCK_SIZE))


def train_ours(
    variants: dict[str, Ours], seconds: float, calibration: int, max_steps: int | None
) -> Iterator[tuple[str, Outcome]]:
    """Ours in a quarter of the seconds and in all of them, each as the variant that fits more steps in.

    Args:
        variants: By name; they differ in speed only.
        seconds: What the peer took.
        calibration: Steps that show the speed of a variant.
        max_steps: Train so many steps instead.
    """
    rates = {name: ours.calibrate(calibration) for name, ours in variants.items()}
    for budget, share in (("a quarter of the time", 0.25), ("the same time", 1.0)):
        fitting = {
            name: steps_within(MARGIN * share * seconds, rates[name], ours.tokens_per_step)
            for name, ours in variants.items()
        }
        fastest = max(fitting, key=fitting.__getitem__)
        yield f"{budget}, {fastest}", variants[fastest].train(max_steps or fitting[fastest])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--peers", type=Path, help="folder of the checkouts")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the sources")
    parser.add_argument("--work_dir", type=Path, help="kept, with the prepared corpus; by default a temporary folder")
    parser.add_argument("--piece_characters", type=int, default=600, help="0 leaves documents whole")
    parser.add_argument("--iterations", type=int, default=300, help="nanochat's steps")
    parser.add_argument("--recipe_arguments", default="", help=f"of ours, after: {OURS}")
    parser.add_argument("--seconds", type=float, default=300.0, help="given to ours where nanochat is not found")
    parser.add_argument("--quick", action="store_true", help="a few steps of each")
    arguments = parser.parse_args()
    check_data(arguments.data)
    iterations, calibration = (3, 15) if arguments.quick else (arguments.iterations, 60)

    with scratch_folder(arguments.work_dir) as scratch:
        corpus = prepare(arguments.data, scratch, arguments.piece_characters)
        tokenizer = train_tokenizer(corpus, scratch / f"tokenizer-{arguments.piece_characters}")
        checkout, peer = find(arguments.peers, "nanochat"), None
        if checkout:
            try:
                peer = train_nanochat(checkout, corpus, scratch / "nanochat", iterations)
            except ProcessFailedError as error:
                print(f"nanochat: {error}", file=sys.stderr)
        recipe_arguments = [
            "--dataset_name", str(corpus), "--tokenizer_name", str(tokenizer), "--depth", str(DEPTH),
            "--block_size", str(BLOCK_SIZE), *shlex.split(OURS), *shlex.split(arguments.recipe_arguments),
        ]  # fmt: skip
        variants = {
            name: Ours([*recipe_arguments, "--torch_compile", compiled], scratch / f"ours-{name}")
            for name, compiled in (("eager", "false"), ("compiled", "true"))
        }
        seconds = peer[0].process_seconds if peer else arguments.seconds
        outcomes = list(train_ours(variants, seconds, calibration, max_steps=5 if arguments.quick else None))
        ours = [(name, by_document(outcome, corpus), outcome.bits_per_byte) for name, outcome in outcomes]
        print(report(peer, ours))
        print(f"\ngoals: in a quarter of the time at most 1 of its bits per byte; at the same time 0.75\n{machine()}")


if __name__ == "__main__":
    main()
