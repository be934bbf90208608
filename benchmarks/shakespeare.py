"""Time to nanoGPT's loss on Shakespeare: its recipe for one CPU machine, and ours, at character level.

    python -m benchmarks.shakespeare --peers ../peers  # about 4 minutes on two cores
    python -m benchmarks.shakespeare --peers ../peers --recipe_arguments "--depth 3 --block_size 96"
    python -m benchmarks.shakespeare --peers ../peers --quick  # only to see that it runs

nanoGPT trains as its README says for a CPU: 2,000 steps of 12 x 64 characters, 4 layers of width 128, not compiled.
Ours trains for a third of the time that nanoGPT's process took. The split is nanoGPT's: the first 90% of the
characters are one document for training, the rest one for validation. Ours has another model (the defaults are
below), and is optimized otherwise: what counts is the loss that a user gets, and when.

- process: seconds from the start of the process to its end: imports, tokenizing, evaluations.
- training: for nanoGPT from its first evaluation to its last line, the other evaluations included, for ours
  `train_runtime`.
- validation loss: nats per character, each character once, in blocks of the size that the model was trained on.
- own count: nanoGPT's last `val loss`, a mean over 20 random batches.
"""

import argparse
import math
import pickle
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers import (
    ROOT,
    Ours,
    ProcessFailedError,
    find,
    machine,
    markdown_table,
    measure_nanogpt,
    nanogpt_evaluations,
    python_of,
    run,
    scratch_folder,
    steps_within,
)

DATA = ROOT.parent / "shared" / "data" / "pretrain" / "tinyshakespeare.txt"
OURS = "--depth 2 --block_size 128 --per_device_train_batch_size 8 --per_device_eval_batch_size 32"
MARGIN = 0.95  # of the time that is given: the rate of the calibration is not exactly that of a longer run
HEADER = ("run", "steps", "characters", "process, s", "training, s", "validation loss", "result")


@dataclass(frozen=True)
class Result:
    """What a run took in seconds, and its validation loss in nats per character."""

    steps: int
    characters_per_step: int
    process_seconds: float
    training_seconds: float
    loss: float


def split(text: str) -> dict[str, str]:
    """nanoGPT's splits of a text, by its `data/shakespeare_char/prepare.py`."""
    boundary = int(0.9 * len(text))
    return {"train": text[:boundary], "validation": text[boundary:]}


def character_tokenizer(characters: Sequence[str], folder: Path) -> Path:
    """Save a tokenizer of one token per character, and one more that opens and closes documents; `folder` itself."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    separator = "<|bos|>"
    vocabulary = {token: number for number, token in enumerate([separator, *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=separator))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=separator).save_pretrained(folder)
    return folder


def write_corpus(splits: Mapping[str, str], folder: Path) -> Path:
    """A corpus of one document per split; `folder` itself."""
    from datasets import Dataset

    for name, text in splits.items():
        Dataset.from_dict({"text": [text]}).to_parquet(folder / "data" / f"{name}-00000.parquet")
    return folder


def write_nanogpt_data(splits: Mapping[str, str], characters: Sequence[str], folder: Path) -> Path:
    """What nanoGPT's `train.py` reads, as its `prepare.py` writes it; `folder` itself."""
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    ids = {character: number for number, character in enumerate(characters)}
    for name, text in (("train", splits["train"]), ("val", splits["validation"])):
        np.array([ids[character] for character in text], dtype=np.uint16).tofile(folder / f"{name}.bin")
    meta = {
        "vocab_size": len(characters),
        "stoi": ids,
        "itos": {number: character for character, number in ids.items()},
    }
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
    return folder


def train_nanogpt(checkout: Path, data: Path, folder: Path, iterations: int) -> tuple[Result, float]:
    """nanoGPT's recipe for a CPU. The second value is its own count of the loss."""
    batch, block_size = 12, 64
    arguments = [
        "config/train_shakespeare_char.py", "--device=cpu", "--compile=False", "--eval_iters=20", "--log_interval=1",
        f"--block_size={block_size}", f"--batch_size={batch}", "--n_layer=4", "--n_head=4", "--n_embd=128",
        f"--max_iters={iterations}", f"--lr_decay_iters={iterations}", "--dropout=0.0", f"--dataset={data}",
        f"--out_dir={folder}", f"--eval_interval={min(250, iterations)}", "--always_save_checkpoint=True",
    ]  # fmt: skip
    finished = run([python_of(checkout), "train.py", *arguments], cwd=checkout)
    evaluations = nanogpt_evaluations(finished)
    loss = measure_nanogpt(folder / "ckpt.pt", checkout, data / "val.bin")
    training = finished.lines[-1].seconds - evaluations[0].seconds
    return Result(iterations, batch * block_size, finished.seconds, training, loss), evaluations[-1].loss


def train_ours(ours: Ours, seconds: float, calibration: int, max_steps: int | None) -> Result:
    """Ours in so many seconds, or for `max_steps` where they are given."""
    fitting = steps_within(MARGIN * seconds, ours.calibrate(calibration), ours.tokens_per_step)
    outcome = ours.train(max_steps or fitting)
    # The text is ASCII, a byte a character. The document's end is one more token that is predicted, of 111,541.
    loss = outcome.bits_per_byte * math.log(2)
    return Result(outcome.steps, outcome.tokens_per_step, outcome.process_seconds, outcome.training_seconds, loss)


def report(peer: tuple[Result, float] | None, ours: Result) -> str:
    """The table: nanoGPT's run, if there was one, and ours with its ratios to it."""

    def row(name: str, result: Result, note: str) -> tuple:
        seconds = result.process_seconds, result.training_seconds
        return name, result.steps, f"{result.steps * result.characters_per_step:,}", *seconds, result.loss, note

    if peer is None:
        return markdown_table(HEADER, [("nanoGPT", "", "", "", "", "", "not found"), row("ours", ours, "")])
    nanogpt, own = peer
    time = ours.process_seconds / nanogpt.process_seconds
    note = f"{time:.2f} of its time, loss {ours.loss - nanogpt.loss:+.3f}"
    return markdown_table(HEADER, [row("nanoGPT", nanogpt, f"own count {own:.3g}"), row("ours", ours, note)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--peers", type=Path, help="folder of the checkouts")
    parser.add_argument("--data", type=Path, default=DATA, help="the text")
    parser.add_argument("--work_dir", type=Path, help="kept; by default a temporary folder")
    parser.add_argument("--recipe_arguments", default="", help=f"of ours, after: {OURS}")
    parser.add_argument("--seconds", type=float, default=40.0, help="given to ours where nanoGPT is not found")
    parser.add_argument("--quick", action="store_true", help="a few steps of each")
    arguments = parser.parse_args()
    if not arguments.data.is_file():
        sys.exit(f"--data {arguments.data}: no such file; name a text, e.g. nanoGPT's tinyshakespeare")
    iterations, calibration = (10, 15) if arguments.quick else (2000, 60)

    with scratch_folder(arguments.work_dir) as scratch:
        text = arguments.data.read_text(encoding="utf-8")
        splits, characters = split(text), sorted(set(text))
        corpus = write_corpus(splits, scratch / "corpus")
        tokenizer = character_tokenizer(characters, scratch / "tokenizer")
        checkout, peer = find(arguments.peers, "nanoGPT"), None
        if checkout:
            data = write_nanogpt_data(splits, characters, scratch / "nanoGPT-data")
            try:
                peer = train_nanogpt(checkout, data, scratch / "nanoGPT", iterations)
            except ProcessFailedError as error:
                print(f"nanoGPT: {error}", file=sys.stderr)
        recipe_arguments = [
            "--dataset_name", str(corpus), "--tokenizer_name", str(tokenizer), *shlex.split(OURS),
            *shlex.split(arguments.recipe_arguments),
        ]  # fmt: skip
        seconds = peer[0].process_seconds / 3 if peer else arguments.seconds
        max_steps = 5 if arguments.quick else None
        ours = train_ours(Ours(recipe_arguments, scratch / "ours"), seconds, calibration, max_steps)
        print(report(peer, ours))
        print(f"\ngoal: in a third of the time no higher a loss\n{machine()}")


if __name__ == "__main__":
    main()
