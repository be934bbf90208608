"""Speed of generation in evaluation: batches, as a suite makes them, beside one `model.generate` per prompt.

    OMP_NUM_THREADS=2 python -m benchmarks.evaluate  # about 15 minutes on two cores
    OMP_NUM_THREADS=2 python -m benchmarks.evaluate --prompts 4 --max_new_tokens 8  # only to see that it runs

Both answer the same held-out prompts greedily, with the same model (SmolLM2-135M-Instruct), template and precision, in
one process, after a warm-up:

- one by one: `model.generate` on a prompt at a time, as in a plain loop.
- batches: `hfchat.evaluation.asking.ask`, as the recipe runs it, with its sorting, decoding and records on disk. It
  runs before and after the other, and its time is the mean: so a machine that becomes slower favours neither.

Tokens are those of the answers, the end of turn included. In float32 the answers must be equal but for ties; in
bfloat16 the order of a sum decides between words that are about as likely, and the share that is equal is shown. Where
the first answers differ, the table says how far apart the two likeliest tokens were there, in nats.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from benchmarks.peers import machine, markdown_table, scratch_folder
from transformers import GenerationConfig

from hfchat.dataset import load_split
from hfchat.evaluation.asking import Asked, ask
from hfchat.evaluation.encoding import encode_prompt
from hfchat.evaluation.local_model import LocalModel
from hfchat.evaluation.records import read_records
from hfchat.evaluation.task import Example
from hfchat.generation import stop_token_ids
from hfchat.models import BUNDLED

HEADER = (
    "precision",
    "way",
    "prompts",
    "tokens",
    "seconds",
    "tokens/s",
    "of one by one",
    "equal answers",
    "gap, nats",
)


@torch.inference_mode()
def one_by_one(model: LocalModel, examples: Sequence[Example], max_new_tokens: int) -> list[list[int]]:
    """The ids of each answer by a plain loop."""
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(stop_token_ids(model.model.generation_config, model.tokenizer)),
        pad_token_id=model.tokenizer.pad_token_id,
    )
    answers = []
    for example in examples:
        prompt = torch.tensor([encode_prompt(model.tokenizer, example.prompt)], device=model.model.device)
        output = model.model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=config)
        answers.append(output[0, prompt.shape[1] :].tolist())
    return answers


def in_batches(model: LocalModel, examples: Sequence[Example], max_new_tokens: int, file: Path) -> list[str]:
    """The text of each answer, as a suite asks for them."""
    file.unlink(missing_ok=True)
    ask(model, examples, file, Asked(max_new_tokens), model.name)
    return [record.answer for record in read_records(file)]


@torch.inference_mode()
def gap(model: LocalModel, prompt: list[int], answer: list[int], other: str) -> float:
    """How much likelier the token of `answer` is, in nats, than the second likeliest, where `other` leaves it."""
    shared = next(
        position
        for position in range(len(answer))
        if not other.startswith(model.tokenizer.decode(answer[: position + 1]))
    )
    ids = torch.tensor([prompt + answer[:shared]], device=model.model.device)
    first, second = model.model(ids, logits_to_keep=1).logits[0, -1].float().log_softmax(-1).topk(2).values.tolist()
    return first - second


def compare(model: LocalModel, examples: Sequence[Example], max_new_tokens: int, folder: Path) -> list[tuple]:
    """Two rows of the table."""
    file = folder / "answers.jsonl"
    one_by_one(model, examples[:1], max_new_tokens)
    in_batches(model, examples[:1], max_new_tokens, file)
    seconds = []
    for run in (
        lambda: in_batches(model, examples, max_new_tokens, file),
        lambda: one_by_one(model, examples, max_new_tokens),
        lambda: in_batches(model, examples, max_new_tokens, file),
    ):
        started = time.perf_counter()
        answers = run()
        seconds.append(time.perf_counter() - started)
        if len(seconds) == 2:
            expected = answers
    texts = [model.tokenizer.decode(ids, skip_special_tokens=True) for ids in expected]
    different = [index for index, text in enumerate(texts) if text != answers[index]]
    gaps = [
        gap(model, encode_prompt(model.tokenizer, examples[index].prompt), expected[index], answers[index])
        for index in different
    ]
    tokens = sum(map(len, expected))
    batched, single = (seconds[0] + seconds[2]) / 2, seconds[1]
    equal = f"{len(examples) - len(different)} of {len(examples)}"
    shown = f"{max(gaps):.4f} at most" if gaps else "none"
    return [
        (model.dtype, "one by one", len(examples), f"{tokens:,}", single, tokens / single, "1.00", "", ""),
        (
            model.dtype, f"batches of {model.batch_size}", len(examples), f"{tokens:,}", batched, tokens / batched,
            f"{single / batched:.2f}", equal, shown,
        ),
    ]  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--model", default=BUNDLED, help="folder or Hub id (%(default)s)")
    parser.add_argument("--dataset_name", default="recipes/data/assistant", help="rows with `messages`")
    parser.add_argument("--prompts", type=int, default=64, help="of its validation split (%(default)s)")
    parser.add_argument("--max_new_tokens", type=int, default=96, help="longest answer (%(default)s)")
    parser.add_argument("--batch_size", type=int, default=32, help="prompts at a time (%(default)s)")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], help="precisions (both)")
    arguments = parser.parse_args(argv)
    rows = load_split(arguments.dataset_name, "validation", "messages")
    examples = [Example(row["messages"][:-1]) for row in rows.select(range(min(arguments.prompts, len(rows))))]
    table = []
    with scratch_folder(None) as scratch:
        for dtype in arguments.dtypes:
            model = LocalModel(dtype, arguments.model, arguments.batch_size, dtype)
            table += compare(model, examples, arguments.max_new_tokens, scratch)
            model.free()
    print(markdown_table(HEADER, table))
    print(f"\ngoal: at least 4 times one by one, with equal answers in float32\n{machine()}")


if __name__ == "__main__":
    main()
