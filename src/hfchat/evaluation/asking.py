"""Examples put to a model in batches, by one process or several, and kept as they come."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path

import torch
from accelerate.utils.memory import should_reduce_batch_size
from tqdm.auto import tqdm

from hfchat.evaluation.model import EvaluatedModel, Loss, Reply
from hfchat.evaluation.records import append_records, read_records, write_records
from hfchat.evaluation.task import Example, Record, Task
from hfchat.processes import launched


@dataclass(frozen=True)
class Asked:
    """What is asked of each example.

    Attributes:
        max_new_tokens: Longest answer; 0 for none.
        stop: Texts that end an answer.
        losses: Whether the likelihood of each of its `targets` is measured.
        windows: Window and stride, if its only target is a text of any length, see `EvaluatedModel.text_losses`.
        project_template: See `EvaluatedModel.answer_chats`.
    """

    max_new_tokens: int = 0
    stop: Sequence[str] = ()
    losses: bool = False
    windows: tuple[int, int] | None = None
    project_template: bool = False


class AskingTask(Task):
    """A task whose examples are put to a model as they are."""

    def asked(self, model: EvaluatedModel) -> Asked:
        """What this model is asked of each example."""
        raise NotImplementedError

    def check(self, model: EvaluatedModel) -> None:
        for one in self.examples:
            check(model, one, self.asked(model))

    def collect(self, model: EvaluatedModel, folder: Path) -> None:
        ask(model, self.examples, folder / f"{model.name}.jsonl", self.asked(model), f"{self.name}: {model.name}")


def check(model: EvaluatedModel, example: Example, asked: Asked) -> int:
    """Refuse what a model cannot read, and give its length, see `EvaluatedModel.check`."""
    if example.chat is not None and asked.losses:
        return model.check_answers(example.chat, example.answers, example.place)
    if example.chat is not None:
        return model.check_chat(example.chat, asked.max_new_tokens, asked.project_template, example.place)
    targets = example.targets if asked.losses else ()
    return model.check(example.prompt, targets, asked.max_new_tokens, example.place)


def ask(model: EvaluatedModel, examples: Sequence[Example], file: Path, asked: Asked, description: str) -> None:
    """Put every example to a model that `file` has no record of yet, in batches of similar length.

    Answers in low precision depend a little on what else is in their batch. So what is in a batch depends neither on
    the number of processes nor on where a run was stopped: a batch that is not complete is asked again, whole. An
    out-of-memory halves the batch, and all after it. A server makes its own batches, of what comes at a time.

    Args:
        model: The processes of a launch ask it together, each a share of the batches.
        examples: In the order of their records.
        file: JSON lines, see `Record`; other processes write beside it until all are there.
        asked: What is asked of each.
        description: Shown beside the progress bar.
    """
    lengths = [check(model, one, asked) for one in examples]
    # The longest come first, so that too little memory shows at once.
    order = sorted(range(len(examples)), key=lambda index: (-lengths[index], index))
    if model.is_served and asked.max_new_tokens:
        answers_only = replace(asked, losses=False)
        _ask_all(model, examples, file, answers_only, description, [[index] for index in order], _at_once)
        if not asked.losses:
            return
        asked, description = replace(asked, max_new_tokens=0), f"{description}, likelihoods"
    size = model.batch_size
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    _ask_all(model, examples, file, asked, description, batches, _one_by_one)


def _ask_all(
    model: EvaluatedModel,
    examples: Sequence[Example],
    file: Path,
    asked: Asked,
    description: str,
    batches: Sequence[list[int]],
    compute: "_Way",
) -> None:
    """Have batches of indices computed, each process its share. What lacks likelihoods keeps its answer and gets them.

    Args:
        model: See `ask`, as for what is not said here.
        batches: All of them, whether they are done or not.
        compute: In which way.
    """
    state = launched()
    parts = _parts(file)
    known = {record.index: record for record in chain.from_iterable(map(read_records, [file, *parts]))}
    done = {index for index, record in known.items() if not asked.losses or record.losses or not record.targets}
    state.wait_for_everyone()  # before any of them writes
    todo = [batch for batch in batches if not done.issuperset(batch)]
    mine = todo[state.process_index :: state.num_processes]
    own = file if state.num_processes == 1 else file.with_suffix(f".{state.process_index}.part")
    with tqdm(
        desc=description,
        total=len(examples),
        initial=len(examples) - sum(map(len, todo)),
        unit="example",
        disable=not state.is_main_process,
    ) as progress:
        for records in compute(model, mine, lambda indices: _ask(model, examples, indices, asked, known)):
            append_records(own, records)
            progress.update(len(records) * (len(todo) / max(len(mine), 1) if state.num_processes > 1 else 1))
    state.wait_for_everyone()
    if state.is_main_process and (todo or parts):
        written = chain.from_iterable(map(read_records, [file, *_parts(file)]))
        by_index = {record.index: record for record in written}
        write_records(file, [by_index[index] for index in range(len(examples))])
        for part in _parts(file):
            part.unlink()
    state.wait_for_everyone()


_Compute = Callable[[list[int]], list[Record]]
_Way = Callable[[EvaluatedModel, Sequence[list[int]], _Compute], Iterator[list[Record]]]


def _one_by_one(model: EvaluatedModel, batches: Sequence[list[int]], compute: _Compute) -> Iterator[list[Record]]:
    for batch in batches:
        yield from halving(model, batch, compute)


def _at_once(model: EvaluatedModel, batches: Sequence[list[int]], compute: _Compute) -> Iterator[list[Record]]:
    """Have a server asked for as many batches as it takes at any time."""
    with ThreadPoolExecutor(model.batch_size) as threads:
        asking = [threads.submit(compute, batch) for batch in batches]
        last = time.perf_counter()
        try:
            for future in as_completed(asking):
                records, now = future.result(), time.perf_counter()
                for record in records:  # others are answered meanwhile, so its share is the time since those before
                    record.seconds = (now - last) / len(records)
                last = now
                yield records
        except BaseException:
            for future in asking:
                future.cancel()
            raise


def _parts(file: Path) -> list[Path]:
    return sorted(file.parent.glob(f"{file.stem}.*.part"))


def halving(model: EvaluatedModel, batch: list, compute: Callable[[list], list[Record]]) -> Iterator[list[Record]]:
    """Compute a batch, in halves where it does not fit into memory; `model.batch_size` is then what did."""
    waiting = [batch]
    while waiting:
        indices = waiting.pop(0)
        if len(indices) > model.batch_size:
            waiting[:0] = [indices[: model.batch_size], indices[model.batch_size :]]
            continue
        try:
            records = compute(indices)
        except (RuntimeError, MemoryError) as error:
            if len(indices) == 1 or not is_out_of_memory(error):
                raise
        else:
            yield records
            continue
        halve(model, len(indices))
        waiting.insert(0, indices)


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether a smaller batch may help, on an accelerator or a CPU."""
    return isinstance(error, MemoryError) or should_reduce_batch_size(error)


def halve(model: EvaluatedModel, size: int) -> int:
    """Give back the memory of a batch that was too large, and halve the batches from here on.

    Call it outside the handler of the error, which holds the frames that hold the memory.

    Returns:
        `model.batch_size`, half of `size`.
    """
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
    model.batch_size = size // 2
    tqdm.write(f"{model.name}: out of memory with {size} examples at a time; going on with {model.batch_size}")
    return model.batch_size


def _ask(
    model: EvaluatedModel,
    examples: Sequence[Example],
    indices: Sequence[int],
    asked: Asked,
    known: Mapping[int, Record],
) -> list[Record]:
    """The records of a batch, by index; those that are known are made complete."""
    chosen = [examples[index] for index in indices]
    started = time.perf_counter()
    answers = _answers(model, chosen, asked) if asked.max_new_tokens else None
    seconds = (time.perf_counter() - started) / len(chosen)
    losses = _losses(model, chosen, asked)
    records = []
    for position, (index, one) in enumerate(zip(indices, chosen, strict=True)):
        record = _record(index, one)
        record.seconds = seconds
        if answers is not None:
            answer = answers[position]
            record.calls = [{"name": call.name or "", "arguments": call.arguments} for call in answer.calls]
            record.answer, record.answer_tokens = with_calls(answer.text, record.calls), answer.tokens
            record.ended = answer.ended
        elif index in known:
            record = known[index]
        measured = list(islice(losses, len(one.targets)))
        record.losses = [loss.nats for loss in measured]
        record.target_tokens = [loss.tokens for loss in measured]
        if lost := [loss.lost for loss in measured if loss.lost is not None]:
            record.info["lost"] = lost[0]
        records.append(record)
    return records


def _answers(model: EvaluatedModel, examples: Sequence[Example], asked: Asked) -> list[Reply]:
    """What the model says to each; the examples of a task are all chats, or none is."""
    chats = [one.chat for one in examples if one.chat is not None]
    if chats:
        return model.answer_chats(chats, asked.max_new_tokens, asked.project_template)
    return model.answer([one.prompt for one in examples], asked.max_new_tokens, asked.stop)


def with_calls(text: str, calls: Sequence[Mapping[str, str]]) -> str:
    """A text, and below it a line for each call, `get_weather({"city": "Oslo"})`."""
    return "\n".join([*([text] if text else []), *(f"{call['name']}({call['arguments']})" for call in calls)])


def _record(index: int, one: Example) -> Record:
    """The record of an example that nothing was asked of yet."""
    return Record(
        index=index,
        prompt=one.prompt,
        references=list(one.references),
        targets=list(one.targets),
        group=one.group,
        info=dict(one.info),
    )


def _losses(model: EvaluatedModel, examples: Sequence[Example], asked: Asked) -> Iterator[Loss]:
    """The loss of each target of each example, if it is asked for; either all examples are chats, or none is."""
    by_number: list[list[Loss]] = []
    if asked.windows:
        yield from model.text_losses([one.targets[0] for one in examples], *asked.windows)
    elif asked.losses and examples[0].chat is not None:
        for number in range(len(examples[0].answers)):  # one of each at a time: that is as many texts as examples
            chats = [one.chat for one in examples if one.chat is not None]
            by_number.append(model.answer_losses(chats, [one.answers[number] for one in examples]))
        yield from chain.from_iterable(zip(*by_number, strict=True))
    elif asked.losses:
        targets = list(chain.from_iterable(one.targets for one in examples))
        prompts = list(chain.from_iterable([one.prompt] * len(one.targets) for one in examples))
        # As many texts at a time as there are examples, however many targets each has.
        for start in range(0, len(targets), len(examples)):
            end = start + len(examples)
            yield from model.losses(prompts[start:end], targets[start:end])
