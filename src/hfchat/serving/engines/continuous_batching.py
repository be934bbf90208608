"""The one place that knows transformers' continuous batching from inside; read in transformers 5.24.

The manager is public, and takes a model, prompts and a configuration. What a server needs besides has no public way
in, so four parts of the manager are replaced, each here and for the reason that stands beside it: the sampler, the
router of its outputs, the status of its thread, and the scheduler. `tests/serving/engines/test_continuous_batching.py`
fails when the library changes one of them.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from transformers import ContinuousBatchingConfig, ContinuousBatchingManager, GenerationConfig, PreTrainedModel

# Public names of the library: the package exports them.
from transformers.generation.continuous_batching import FIFOScheduler, RequestState, RequestStatus

# Internal: a manager tells nobody that its thread has crashed, and its router has no hook for the end of a step, keeps
# the handler of a cancelled request for ever, and queues what nobody waits for.
from transformers.generation.continuous_batching.continuous_api import BackgroundThreadStatus, OutputRouter

# Internal: the only way to name a scheduler in a `ContinuousBatchingConfig`.
from transformers.generation.continuous_batching.scheduler import SCHEDULER_MAPPING
from transformers.utils import is_flash_attn_2_available

from hfchat.serving.engines.sampler import SETTINGS, BatchSampler, Draws, Row
from hfchat.serving.engines.scheduling import Owner, ReadingTurns

PAGE = 256  # tokens of one cache block; flash attention's block tables ask for multiples of 256
_BATCH_TOKENS = {"cpu": 512}  # tokens of one step: a longer prompt is read in parts, between which others go on
_BATCH_TOKENS_ACCELERATOR = 2048
_FAIR = "hfchat"  # the name of `FairScheduler` in a configuration

# What `FIFOScheduler.schedule_batch` returns: the requests of the step, whether all of them decode, and two counts.
_Schedule = tuple[list | None, bool, int, int]


class Failure(NamedTuple):
    """Takes the place of the library's `GenerationOutput` where the engine ends a request itself."""

    error: str


class Router(OutputRouter):
    """Hands the manager's outputs to the streams that wait for them, on the event loop.

    Args:
        cancel: Cancels a request of the manager.
        crashed: Called on the event loop with the manager, when its thread has ended because of an error.

    Attributes:
        loop: The event loop; set before the manager starts.
        before_delivery: Called by the generation's thread after each step.
        streams: What takes a request's outputs, which are `GenerationOutput` or `Failure`, by the request's id.
    """

    def __init__(self, cancel: Callable[[str], None], crashed: Callable[[ContinuousBatchingManager], None]):
        super().__init__()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.before_delivery: Callable[[], None] = lambda: None
        self.streams: dict[str, Callable[[Any], None]] = {}
        self.crashed = crashed
        self._cancel = cancel

    def deliver(self, output: Any) -> None:
        self.deliver_batch([output])

    def deliver_batch(self, outputs: list) -> None:
        self.before_delivery()
        self.call(self._dispatch, outputs)

    def call(self, function: Callable[..., None], *arguments: object) -> None:
        """Have the event loop call a function."""
        if self.loop is not None and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(function, *arguments)

    def fail_all(self, reason: str) -> None:
        for put in self.streams.values():
            put(Failure(reason))

    def _dispatch(self, outputs: list) -> None:
        for output in outputs:
            put = self.streams.get(output.request_id)
            if put is not None:
                put(output)
            elif not output.is_finished():
                # A cancellation can overtake its request on the way to the thread; then it is repeated here.
                self._cancel(output.request_id)


class ThreadStatus(BackgroundThreadStatus):
    """Tells when the generation's thread ends because of an error."""

    def __init__(self, crashed: Callable[[], None]):
        super().__init__()
        self._crashed = crashed

    def mark_as_stopped(self) -> None:
        super().mark_as_stopped()
        if self.fatal_error is not None:
            self._crashed()


class PerRequestSampler(BatchSampler):
    """A `BatchSampler` in place of the manager's `ContinuousBatchingLogitsProcessorList`.

    That list hands its processors no more than one number for each request, and its methods are all that a manager
    calls, so it is no base of this class.
    """

    do_processing = True
    tensors_required = SETTINGS

    def check_kwargs(self, kwargs: dict[str, Draws]) -> None:
        """The arguments of `add_request` are right: the engine is the only one that calls it."""

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        int32_tensor.zero_()  # temperature 0: a row without a request is greedy

    def prepare_tensor_args(self, requests_in_batch: Sequence, arg_storage: torch.Tensor) -> torch.Tensor:
        states = [future.state for future in requests_in_batch if future.has_new_token]
        self.begin([Row(_draws(state), state.initial_tokens, state.generated_tokens) for state in states], arg_storage)
        return arg_storage

    def __call__(
        self, input_ids: torch.Tensor | None, scores: torch.Tensor, logits_processor_args: torch.Tensor
    ) -> torch.Tensor:
        return self.sample(scores, logits_processor_args)


class FairScheduler(FIFOScheduler):
    """The library's scheduler, which sees only the prompts of the key whose turn it is (`ReadingTurns`).

    Attributes:
        clock: Seconds that never go back.
    """

    clock: Callable[[], float] = staticmethod(time.perf_counter)
    active_requests: dict[str, RequestState]
    waiting_requests: dict[str, RequestState]
    waiting_requests_order: deque[str]

    def reset(self) -> None:
        super().reset()
        self._turns = ReadingTurns(self.clock)

    def schedule_batch(self, token_budget: int, cache_budget: int) -> _Schedule:
        active, waiting = self.active_requests, self.waiting_requests
        prompts = {_owner(state) for state in active.values() if state.status == RequestStatus.PREFILLING}
        prompts |= {_owner(state) for state in waiting.values()}
        answers = [_owner(state) for state in active.values() if state.status == RequestStatus.DECODING]
        readers = self._turns.next(prompts, answers)
        if readers is None:
            return super().schedule_batch(token_budget, cache_budget)

        # For this step, only the answers are there, and the prompts of those who may be read.
        unseen = {
            request: state
            for request, state in active.items()
            if state.status == RequestStatus.PREFILLING and _owner(state) not in readers
        }
        order = self.waiting_requests_order
        self.active_requests = {id: state for id, state in active.items() if id not in unseen}
        self.waiting_requests_order = deque(id for id in order if _owner(waiting[id]) in readers)
        try:
            return super().schedule_batch(self._turns.shared(token_budget, len(answers)), cache_budget)
        finally:
            self.active_requests |= unseen
            self.waiting_requests_order = deque(id for id in order if id in self.waiting_requests)


SCHEDULER_MAPPING[_FAIR] = FairScheduler


def new_manager(
    model: PreTrainedModel, ends: set[int], blocks: int, rows: int, router: Router
) -> ContinuousBatchingManager:
    """A manager that is not running yet.

    Args:
        model: On its device.
        ends: Tokens that end an answer.
        blocks: Blocks of the KV cache, `PAGE` tokens each.
        rows: Most requests in one step.
        router: Takes the outputs.
    """
    manager = model.init_continuous_batching(
        generation_config=GenerationConfig(do_sample=False, eos_token_id=sorted(ends)),
        continuous_batching_config=ContinuousBatchingConfig(
            page_size=PAGE,
            num_blocks=blocks,
            max_batch_tokens=_BATCH_TOKENS.get(model.device.type, _BATCH_TOKENS_ACCELERATOR),
            max_requests_per_batch=rows,
            # Only an installed package: otherwise a kernel would be sought on the Hub.
            auto_switch_to_flash=is_flash_attn_2_available(),
            scheduler_type=_FAIR,
            use_async_batching=False,  # the sampler needs each token before it prepares the next step
        ),
    )
    vocabulary = model.config.get_text_config().vocab_size
    sampler = PerRequestSampler(rows, vocabulary, model.device)
    manager.logit_processor = sampler
    manager.background_thread_status = ThreadStatus(lambda: router.call(router.crashed, manager))
    manager.output_router = router
    router.before_delivery = sampler.collect
    return manager


def submit(manager: ContinuousBatchingManager, request: str, tokens: Sequence[int], draws: Draws) -> bool:
    """Begin a request. Returns whether the manager has taken it."""
    accepted = manager.add_request(
        tokens, request_id=request, max_new_tokens=draws.sampling.max_tokens, streaming=True, draws=draws
    )
    # A crash between the manager's own check and its queue would leave the request there for ever, so look again.
    return accepted is not None and manager.background_thread_status.can_accept_new_requests() is None


def why_down(manager: ContinuousBatchingManager) -> str | None:
    """Why the manager generates nothing now; None if it does."""
    status = manager.background_thread_status
    if status.fatal_error is not None:
        return f"generation failed: {status.fatal_error}"
    if status.can_accept_new_requests() is not None or not manager.is_running():
        return "generation is not running"
    return None


def _draws(state: RequestState) -> Draws:
    return state.logit_processor_kwargs["draws"]


def _owner(state: RequestState) -> Owner:
    """The name of the API key that a request came with."""
    return _draws(state).owner
