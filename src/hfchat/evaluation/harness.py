"""Models as lm-eval asks them, by its public interface: `HFLM` on weights that are loaded already, `LM` for a server.

lm-eval makes the prompts and the batches, and keeps each answer in its cache, from which a run that was stopped goes
on. So a figure of one process is that of its command line, to the last digit. The processes of a launch share the
documents, each in batches of its own; unlike those of lm-eval, they ask with the same worked examples as one would.
"""

import copy
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
from accelerate.utils import gather_object
from jinja2 import TemplateError
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, has_bos_prefix, normalize_gen_kwargs
from sqlitedict import SqliteDict
from tqdm.auto import tqdm

from hfchat.errors import UserError
from hfchat.evaluation.asking import halve, is_out_of_memory
from hfchat.evaluation.engine_model import EngineModel
from hfchat.evaluation.local_model import LocalModel
from hfchat.evaluation.model import EvaluatedModel, Reply
from hfchat.processes import launched

MAX_NEW_TOKENS = 256  # of a task that names none, `HFLM.max_gen_toks`
_CONTEXT = 2048  # of a model that names none, `HFLM._DEFAULT_MAX_LENGTH`
_PLAIN = {"do_sample", "max_gen_toks", "temperature", "until"}
_SERVER_STOPS = 4  # the OpenAI API takes no more, so lm-eval's `LocalChatCompletion` sends no more


class Harness(LM):
    """What both kinds of models have in common: the processes that share the work, and what asking took.

    Attributes:
        evaluated: The model that is asked.
        seconds: Mean time of a request, by its kind; what comes from the cache counts for nothing.
    """

    evaluated: EvaluatedModel
    seconds: dict[str, float]

    def shared(self, kind: str, ask: Callable[[list[Instance]], list[Any]], requests: list[Instance]) -> list[Any]:
        """Answer the requests of a share of the documents, and take the other answers from the other processes.

        A document is not split: lm-eval computes its answers together where they differ in the last token alone.
        """
        state = launched()
        owners = [request.doc_id % state.num_processes for request in requests]
        mine = [request for request, owner in zip(requests, owners, strict=True) if owner == state.process_index]
        started = time.perf_counter()
        answers = ask(mine) if mine else []
        self.seconds[kind] = (time.perf_counter() - started) / max(len(mine), 1)
        parts = list(map(iter, gather_object([answers]) if state.num_processes > 1 else [answers]))
        return [next(parts[owner]) for owner in owners]

    def sizes(self, context: str, continuation: str) -> tuple[int, bool]:
        """Tell how many tokens a continuation has, and whether the context was cut for it."""
        raise NotImplementedError

    def reply(self, prompt: str, answer: str, max_new_tokens: int) -> tuple[Reply, bool]:
        """Tell how long an answer was, and whether the prompt was cut for it."""
        raise NotImplementedError


class LocalHarness(Harness, HFLM):
    """lm-eval's model of transformers, on weights that are loaded already. An out-of-memory halves its batches."""

    def __init__(self, model: LocalModel):
        self.evaluated, self.seconds = model, {}
        weights = model.model
        weights.generation_config = model.generation_config
        # lm-eval may give the tokenizer a pad token; others go on with theirs.
        HFLM.__init__(self, weights, tokenizer=copy.deepcopy(model.tokenizer), batch_size=model.batch_size)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return self.shared("loglikelihood", self._fitting(super().loglikelihood), requests)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        return self.shared("loglikelihood_rolling", self._fitting(super().loglikelihood_rolling), requests)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        return self.shared("generate_until", self._fitting(super().generate_until), requests)

    def _fitting(self, ask: Callable[..., list[Any]]) -> Callable[[list[Instance]], list[Any]]:
        """The same in batches that fit into memory. The longest requests come first, so little is asked twice."""

        def fitted(requests: list[Instance]) -> list[Any]:
            while True:
                try:
                    return ask(requests, disable_tqdm=not launched().is_main_process)
                except (RuntimeError, MemoryError) as error:
                    if self.batch_size == 1 or not is_out_of_memory(error):
                        raise
                self.batch_size_per_gpu = halve(self.evaluated, self.batch_size)

        return fitted

    def sizes(self, context: str, continuation: str) -> tuple[int, bool]:
        # As `TemplateLM.loglikelihood` encodes them (lm-eval 0.4.13).
        if context:
            whole = len(self.tok_encode(context + continuation))
            before = len(self.tok_encode(context.rstrip()))
        else:
            ids = self.tok_encode(continuation, add_special_tokens=False)
            whole, before = len(ids) + (ids[:1] != [self.prefix_token_id]), 1
        return whole - before, whole > self.max_length + 1

    def reply(self, prompt: str, answer: str, max_new_tokens: int) -> tuple[Reply, bool]:
        tokens = len(self.tok_encode(answer, add_special_tokens=False))
        return Reply(answer, tokens, None), len(self.tok_encode(prompt)) > self.max_length - max_new_tokens


class RemoteHarness(Harness):
    """A server, asked as by lm-eval's `LocalChatCompletion` at temperature 0: messages, and at most four stops."""

    def __init__(self, model: EvaluatedModel):
        super().__init__()
        self.evaluated, self.seconds = model, {}
        self._replies: dict[tuple[str, str], Reply] = {}

    @property
    def tokenizer_name(self) -> str:
        return ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return json.dumps(chat_history, ensure_ascii=False)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        return self.shared("generate_until", self.generate_all, requests)

    def generate_all(self, requests: list[Instance]) -> list[str]:
        answers = []
        with (
            tqdm(desc="generate_until", total=len(requests), disable=not launched().is_main_process) as progress,
            ThreadPoolExecutor(self.evaluated.batch_size) as threads,
        ):
            replies = threads.map(lambda request: self._ask(*request.args), requests)
            for request, reply in zip(requests, replies, strict=True):
                self._replies[request.args[0], reply.text] = reply
                self.cache_hook.add_partial("generate_until", request.args, reply.text)
                answers.append(reply.text)
                progress.update()
        return answers

    def _ask(self, prompt: str, settings: Mapping[str, Any]) -> Reply:
        stops = handle_stop_sequences(settings.get("until"), eos=None)[:_SERVER_STOPS]
        (reply,) = self.evaluated.answer([json.loads(prompt)], max_new_tokens(settings), stops)
        return reply

    def reply(self, prompt: str, answer: str, max_new_tokens: int) -> tuple[Reply, bool]:
        # The cache of a run that was stopped has no lengths.
        return self._replies.get((prompt, answer), Reply(answer, 0, None)), False

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError("the OpenAI API gives no likelihoods of given texts")

    loglikelihood_rolling = loglikelihood


class EngineHarness(RemoteHarness):
    """A model whose answers an engine generates, from the prompts and up to the ends of `HFLM` (lm-eval 0.4.13)."""

    evaluated: EngineModel

    def __init__(self, model: EngineModel):
        super().__init__(model)
        self._tokenizer = model.tokenizer
        self._one_at_a_time = threading.Lock()  # for the tokenizer

    @property
    def tokenizer_name(self) -> str:
        return self._tokenizer.name_or_path.replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        try:
            return self._tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        except TemplateError as error:
            raise UserError(f"{self.evaluated.path}: its chat template refuses the turns: {error}") from error

    def generate_all(self, requests: list[Instance]) -> list[str]:
        lengths = [len(self._encode(request.args[0])) + max_new_tokens(request.args[1]) for request in requests]
        self.evaluated.expect(min(max(lengths), self._max_length))
        return super().generate_all(requests)

    def _ask(self, prompt: str, settings: Mapping[str, Any]) -> Reply:
        stops = list(filter(None, handle_stop_sequences(settings.get("until"), eos=None)))
        longest = max_new_tokens(settings)
        return self.evaluated.continue_ids(self._encode(prompt)[longest - self._max_length :], longest, stops)

    def reply(self, prompt: str, answer: str, max_new_tokens: int) -> tuple[Reply, bool]:
        reply, _ = super().reply(prompt, answer, max_new_tokens)
        return reply, len(self._encode(prompt)) > self._max_length - max_new_tokens

    @property
    def _max_length(self) -> int:
        return self.evaluated.context or _CONTEXT

    def _encode(self, text: str) -> list[int]:
        options = {"add_special_tokens": False} if has_bos_prefix(text, self._tokenizer.bos_token) else {}
        with self._one_at_a_time:
            return self._tokenizer(text, **options)["input_ids"]


def is_plainly_greedy(settings: Mapping[str, Any]) -> bool:
    """Whether a task's `generation_kwargs` ask for the likeliest tokens and nothing else, which any engine can."""
    asked = normalize_gen_kwargs(dict(settings), MAX_NEW_TOKENS)
    return not asked.get("do_sample") and asked.keys() <= _PLAIN


def max_new_tokens(settings: Mapping[str, Any]) -> int:
    """The longest answer that a task's `generation_kwargs` ask for."""
    return normalize_gen_kwargs(dict(settings), MAX_NEW_TOKENS)["max_gen_toks"]


def pool_caches(folder: Path, name: str) -> str:
    """Give this process what all processes of a run that was stopped have kept.

    So all of them have the same left to ask, however many they were and are.

    Args:
        folder: Where the caches are.
        name: The model's name.

    Returns:
        `use_cache` of `lm_eval.simple_evaluate`.
    """
    known: dict[str, Any] = {}
    for file in find_caches(folder, name):
        with SqliteDict(str(file), flag="r") as cache:
            known |= dict(cache)
    launched().wait_for_everyone()  # none of them writes while another one reads
    own = f"{folder}/{name}.{launched().process_index}.cache"
    if known:
        # `simple_evaluate` puts this behind the name (lm-eval 0.4.13).
        with SqliteDict(f"{own}_rank{os.environ.get('LOCAL_RANK', 0)}.db") as cache:
            cache.update(known)
            cache.commit()
    return own


def find_caches(folder: Path, name: str) -> list[Path]:
    """The caches of all processes, see `pool_caches`."""
    return sorted(folder.glob(f"{name}.*.cache_rank*.db"))


@contextmanager
def quiet() -> Iterator[None]:
    """Within, lm-eval logs nothing but errors, and datasets draws no progress bars."""
    logger = logging.getLogger("lm_eval")
    level, are_disabled = logger.level, datasets.utils.are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    datasets.utils.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if not are_disabled:
            datasets.utils.enable_progress_bars()
