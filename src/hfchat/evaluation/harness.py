"""Models as lm-eval asks them: in its own batches, which are shared among processes and kept.

What is in a batch is what lm-eval would put there. So a figure is that of its command line to the last digit, in
bfloat16 too, however many processes there are and wherever a run was stopped.
"""

import copy
import json
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import lm_eval.api.task
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import Collator, handle_stop_sequences, normalize_gen_kwargs
from tqdm.auto import tqdm

from hfchat.evaluation.asking import halving
from hfchat.evaluation.local_model import LocalModel
from hfchat.evaluation.model import EvaluatedModel
from hfchat.evaluation.openai_model import RemoteModel
from hfchat.evaluation.records import append_records, read_records
from hfchat.evaluation.task import Record
from hfchat.processes import launched

MAX_NEW_TOKENS = 256  # of a task that names none, `HFLM.max_gen_toks`
_SERVER_STOPS = 4  # the OpenAI API takes no more, so lm-eval's `LocalChatCompletion` sends no more

_KINDS = ("loglikelihood", "generate_until")

# Positions of requests that are computed together: texts that differ in their last token alone, in lm-eval.
Unit = list[int]


class Requests:
    """What lm-eval asks of one model, batch by batch, each process of a launch a share of them.

    Answers are kept as records in `<model>.<kind>.<process>.part` until all are there. An out-of-memory halves a
    batch, and all after it.

    Args:
        model: Which is asked.
        folder: Of the files.
        description: Of the progress bar.
    """

    def __init__(self, model: EvaluatedModel, folder: Path, description: str):
        self.model = model
        self._folder = folder
        self._before = Counter()  # requests of a kind in earlier calls
        self._progress = tqdm(
            desc=description, total=0, unit="request", delay=1e-3, disable=not launched().is_main_process
        )

    def answer(
        self, kind: str, batches: Sequence[Sequence[Unit]], compute: Callable[[list[int]], list[Record]]
    ) -> list[Record]:
        """Ask what is not kept yet. A batch that is not complete is asked again, whole.

        Args:
            kind: Of the requests: `"loglikelihood"`.
            batches: Each of the call's requests, by position, in exactly one of them.
            compute: From positions to what is said to each, with the position as `index`.

        Returns:
            The record of each request, in the order of their positions.
        """
        state = launched()
        offset = self._before[kind]
        positions = [position for batch in batches for unit in batch for position in unit]
        self._before[kind] += len(positions)

        def timed(units: list[Unit]) -> list[Record]:
            started = time.perf_counter()
            records = compute([position for unit in units for position in unit])
            seconds = (time.perf_counter() - started) / len(records)
            return [replace(record, index=record.index + offset, seconds=seconds) for record in records]

        done = self._read(kind)
        state.wait_for_everyone()  # before any of them writes
        todo = [batch for batch in batches if any(offset + at not in done for unit in batch for at in unit)]
        mine = todo[state.process_index :: state.num_processes]
        waiting = sum(len(unit) for batch in todo for unit in batch)
        self._progress.total += len(positions)
        self._progress.update(len(positions) - waiting)
        for batch in mine:
            for records in halving(self.model, list(batch), timed):
                append_records(self._folder / f"{self.model.name}.{kind}.{state.process_index}.part", records)
                left = self._progress.total - self._progress.n
                self._progress.update(min(len(records) * state.num_processes, left))
        state.wait_for_everyone()
        done = self._read(kind)
        return [done[offset + position] for position in range(len(positions))]

    def records(self) -> dict[tuple[str, ...], Record]:
        """Prompt, and what should follow it if that was given, to what is kept of it."""
        return {(record.prompt, *record.targets): record for kind in _KINDS for record in self._read(kind).values()}

    def finish(self) -> None:
        """Remove what was kept."""
        self._progress.close()
        for kind in _KINDS:
            for file in self._parts(kind):
                file.unlink()

    def _read(self, kind: str) -> dict[int, Record]:
        return {record.index: record for file in self._parts(kind) for record in read_records(file)}

    def _parts(self, kind: str) -> list[Path]:
        return sorted(self._folder.glob(f"{self.model.name}.{kind}.*.part"))


class LocalHarness(HFLM):
    """lm-eval's model of transformers, on weights that are loaded already."""

    def __init__(self, requests: Requests):
        model = requests.model
        assert isinstance(model, LocalModel)
        weights = model.model
        weights.generation_config = model.generation_config
        # lm-eval may give the tokenizer a pad token; others go on with theirs.
        super().__init__(pretrained=weights, tokenizer=copy.deepcopy(model.tokenizer), batch_size=model.batch_size)
        self._requests = requests

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        return super().loglikelihood_rolling(requests, disable_tqdm=True)

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = True,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        ask = super()._loglikelihood_tokens
        # As `HFLM._loglikelihood_tokens` has them: texts that differ in the last token alone are one row of a batch,
        # that of the longest continuation, and rows are sorted by length.
        units: dict[tuple[int, ...], Unit] = defaultdict(list)
        for position, (_, context, continuation) in enumerate(requests):
            units[(*context, *continuation[:-1])].append(position)

        def order(unit: Unit) -> tuple[int, list[int]]:
            _, context, continuation = max((requests[position] for position in unit), key=lambda one: len(one[2]))
            return -len(context) - len(continuation), context + continuation

        def compute(positions: list[int]) -> list[Record]:
            said = ask([requests[position] for position in positions], disable_tqdm=True)
            return [
                self._record(position, requests[position], *one) for position, one in zip(positions, said, strict=True)
            ]

        batches = _batches(sorted(units.values(), key=order), self.batch_size)
        records = self._requests.answer("loglikelihood", batches, compute)
        return [(-record.losses[0], record.info["greedy"]) for record in records]

    def _record(
        self, position: int, request: tuple[tuple[str, str] | None, list[int], list[int]], value: float, greedy: bool
    ) -> Record:
        text, context, continuation = request
        prompt, target = text or ("", "")  # windows of a long text have none
        cut = len(context) + len(continuation) > self.max_length + 1
        info = {"greedy": greedy, "cut": cut}
        return Record(
            position, prompt, targets=[target], losses=[-value], target_tokens=[len(continuation)], info=info
        )

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        ask = super().generate_until
        lengths = [len(self.tok_encode(request.args[0])) for request in requests]
        # As `HFLM.generate_until` has them.
        order = Collator(
            range(len(requests)),
            sort_fn=lambda position: (-lengths[position], requests[position].args[0]),
            group_by="gen_kwargs",
            group_fn=lambda position: requests[position].args[1],
        )

        def compute(positions: list[int]) -> list[Record]:
            said = ask([requests[position] for position in positions], disable_tqdm=True)
            return [
                Record(
                    position,
                    requests[position].args[0],
                    answer=answer,
                    answer_tokens=len(self.tok_encode(answer, add_special_tokens=False)),
                    info={"cut": lengths[position] > self.max_length - max_new_tokens(requests[position].args[1])},
                )
                for position, answer in zip(positions, said, strict=True)
            ]

        batches = [[[position] for position in batch] for batch in order.get_batched(n=self.batch_size)]
        return [record.answer for record in self._requests.answer("generate_until", batches, compute)]


class RemoteHarness(LM):
    """A server, asked as by lm-eval's `LocalChatCompletion` at temperature 0: messages, and at most four stops."""

    def __init__(self, requests: Requests):
        super().__init__()
        assert isinstance(requests.model, RemoteModel)
        self._requests = requests

    @property
    def tokenizer_name(self) -> str:
        return ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return json.dumps(chat_history, ensure_ascii=False)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        model = self._requests.model
        alike = defaultdict(list)
        for position, request in enumerate(requests):
            alike[json.dumps(request.args[1], sort_keys=True)].append([position])

        def compute(positions: list[int]) -> list[Record]:
            settings = requests[positions[0]].args[1]
            prompts = [json.loads(requests[position].args[0]) for position in positions]
            stops = handle_stop_sequences(settings.get("until"), eos=None)[:_SERVER_STOPS]
            answers = model.answer(prompts, max_new_tokens(settings), stops)
            return [
                Record(
                    position,
                    requests[position].args[0],
                    answer=answer.text,
                    answer_tokens=answer.tokens,
                    ended=answer.ended,
                    info={"cut": False},
                )
                for position, answer in zip(positions, answers, strict=True)
            ]

        batches = [batch for units in alike.values() for batch in _batches(units, model.batch_size)]
        return [record.answer for record in self._requests.answer("generate_until", batches, compute)]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError("the OpenAI API gives no likelihoods of given texts")

    loglikelihood_rolling = loglikelihood


def max_new_tokens(settings: dict[str, Any]) -> int:
    """The longest answer that a task's `generation_kwargs` ask for."""
    return normalize_gen_kwargs(dict(settings), MAX_NEW_TOKENS)["max_gen_toks"]


@contextmanager
def quiet() -> Iterator[None]:
    """Within, lm-eval logs errors alone and draws no progress bars: `Requests` draws the only one."""
    logger = logging.getLogger("lm_eval")
    level, bar = logger.level, lm_eval.api.task.tqdm
    bars = datasets.utils.are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    lm_eval.api.task.tqdm = lambda rows, **_: rows
    datasets.utils.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        lm_eval.api.task.tqdm = bar
        if not bars:
            datasets.utils.enable_progress_bars()


def _batches(units: Sequence[Unit], size: int) -> list[Sequence[Unit]]:
    return [units[start : start + size] for start in range(0, len(units), size)]
