"""The engine in this process: transformers' continuous batching, on the CPU or one GPU.

The manager generates in a thread of its own. Its outputs reach the event loop by one `call_soon_threadsafe` per
step, so nothing polls, and an idle server sleeps.
"""

import asyncio
import itertools
import math
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from jinja2 import TemplateError
from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.continuous_batching.continuous_api import OutputRouter
from transformers.generation.continuous_batching.requests import GenerationOutput, RequestStatus
from transformers.generation.continuous_batching.utils import find_head_dim, find_num_key_value_heads
from transformers.utils import is_flash_attn_2_available

from hfchat.errors import UserError
from hfchat.serving.engine import EngineError, Piece, PromptError, Sampling
from hfchat.serving.sampler import Draws, PerRequestSampler
from hfchat.serving.text import IncrementalDecoder

_PAGE = 256  # tokens of one cache block; flash attention's block tables ask for multiples of 256
_CACHE_SHARE = 0.25  # of the free memory; on a CPU the rest of the machine lives there too
_LIKELY_TOKENS = 2048  # of a conversation on a CPU, where a longer one takes minutes
_BATCH_TOKENS = {"cpu": 512}  # tokens of one step: a longer prompt is read in parts, between which others go on
_BATCH_TOKENS_ACCELERATOR = 2048
_STOP_TIMEOUT_S = 5


class TransformersEngine:
    """An `Engine` (see `hfchat.serving.engine`) over a loaded chat model.

    Without a word from the client, answers are sampled as `model.generate` would: by the model's own generation
    config, and greedily where that does not ask for sampling. So the server, `pipeline` and the evaluation agree.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_concurrent_requests: int = 8):
        """
        Args:
            model: The model, on its device.
            tokenizer: Its tokenizer, with a chat template.
            max_concurrent_requests: Answers generated at a time; the KV cache is sized for it.

        Raises:
            UserError: If the tokenizer cannot decode incrementally, or the free memory holds no cache.
        """
        if not tokenizer.is_fast:
            raise UserError(f"{tokenizer.name_or_path}: serving needs a fast tokenizer (tokenizer.json)")
        config = model.generation_config
        sample = bool(config.do_sample)
        self.temperature = (1.0 if config.temperature is None else config.temperature) if sample else 0.0
        self.top_p = (1.0 if config.top_p is None else config.top_p) if sample else 1.0
        self._top_k = (config.top_k or 0) if sample else 0
        self._tokenizer = tokenizer
        self._eos = {token for token in [*_as_list(config.eos_token_id), tokenizer.eos_token_id] if token is not None}
        self._ids = itertools.count()
        self._aborted: str | None = None
        # One thread: a fast tokenizer must not be used by two at a time.
        self._encoder = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encode")

        blocks = _cache_blocks(model, max_concurrent_requests)
        self.context_length = min(model.config.get_text_config().max_position_embeddings, blocks * _PAGE)
        self._manager = model.init_continuous_batching(
            generation_config=GenerationConfig(do_sample=False, eos_token_id=sorted(self._eos)),
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=_PAGE,
                num_blocks=blocks,
                max_batch_tokens=_BATCH_TOKENS.get(model.device.type, _BATCH_TOKENS_ACCELERATOR),
                max_requests_per_batch=max_concurrent_requests,
                # Only an installed package: otherwise a kernel would be sought on the Hub.
                auto_switch_to_flash=is_flash_attn_2_available(),
            ),
        )
        self._manager.logit_processor = PerRequestSampler()
        self._router = _Router(self._manager.cancel_request)
        self._manager.output_router = self._router

    @property
    def error(self) -> str | None:
        if self._aborted is not None:
            return self._aborted
        status = self._manager.background_thread_status
        if status.fatal_error is not None:
            return f"generation failed: {status.fatal_error}"
        if status.can_accept_new_requests() is not None or not self._manager.is_running():
            return "generation is not running"
        return None

    async def start(self) -> None:
        self._router.loop = asyncio.get_running_loop()
        self._manager.start()
        # The first forward pass is the slowest one; nobody should wait for it, and a broken model shows here.
        async for _ in self.stream([next(iter(self._eos), 0)], Sampling(max_tokens=1)):
            pass

    async def stop(self) -> None:
        self.abort("the engine was stopped")
        self._encoder.shutdown(cancel_futures=True)
        if self._manager.is_running():
            await asyncio.to_thread(self._manager.stop, timeout=_STOP_TIMEOUT_S, hard_stop=True)

    def abort(self, reason: str) -> None:
        self._aborted = reason
        self._router.fail_all(reason)

    async def encode(self, messages: Sequence[dict[str, str]]) -> list[int]:
        return await asyncio.get_running_loop().run_in_executor(self._encoder, self._encode, messages)

    def _encode(self, messages: Sequence[dict[str, str]]) -> list[int]:
        try:
            return self._tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        except (TemplateError, ValueError) as error:
            raise PromptError(" ".join(str(error).split())) from error

    async def stream(self, prompt: list[int], sampling: Sampling) -> AsyncGenerator[Piece]:
        request = f"request-{next(self._ids)}"
        outputs: asyncio.Queue[GenerationOutput] = asyncio.Queue()
        self._router.streams[request] = outputs.put_nowait
        finished = False
        try:
            self._submit(request, prompt, sampling)
            decoder = IncrementalDecoder(self._tokenizer.backend_tokenizer)
            seen = 0
            while not finished:
                output = await outputs.get()
                if output.error is not None:
                    finished = True
                    raise EngineError(output.error)
                tokens = output.generated_tokens[seen:]
                seen += len(tokens)
                finished = output.is_finished()
                ended = finished and bool(tokens) and tokens[-1] in self._eos
                text = "".join(decoder.push(token) for token in (tokens[:-1] if ended else tokens))
                if finished:
                    yield Piece(text + decoder.flush(), len(tokens), "stop" if ended else "length")
                else:
                    yield Piece(text, len(tokens))
        finally:
            del self._router.streams[request]
            if not finished:
                self._manager.cancel_request(request)

    def _submit(self, request: str, prompt: list[int], sampling: Sampling) -> None:
        if self._aborted is not None:
            raise EngineError(self._aborted)
        accepted = self._manager.add_request(
            prompt,
            request_id=request,
            max_new_tokens=sampling.max_tokens,
            streaming=True,
            draws=Draws(sampling, self._top_k),
        )
        # A crash between the manager's own check and its queue would leave the request there for ever, so look again.
        if accepted is None or self.error is not None:
            raise EngineError(self.error or "generation is not running")


class _Router(OutputRouter):
    """Hands the manager's outputs to the streams that wait for them, on the event loop.

    transformers' own router keeps the handler of a cancelled request for ever, and queues what nobody waits for.
    """

    def __init__(self, cancel: Callable[[str], None]):
        super().__init__()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.streams: dict[str, Callable[[GenerationOutput], None]] = {}
        self._cancel = cancel

    def deliver(self, output: GenerationOutput) -> None:
        self.deliver_batch([output])

    def deliver_batch(self, outputs: list[GenerationOutput]) -> None:
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._dispatch, outputs)

    def fail_all(self, reason: str) -> None:
        for request, put in self.streams.items():
            put(GenerationOutput(request, error=reason, status=RequestStatus.FAILED))

    def _dispatch(self, outputs: list[GenerationOutput]) -> None:
        for output in outputs:
            put = self.streams.get(output.request_id)
            if put is not None:
                put(output)
            elif not output.is_finished():
                # A cancellation can overtake its request on the way to the thread; then it is repeated here.
                self._cancel(output.request_id)


def _cache_blocks(model: PreTrainedModel, max_concurrent_requests: int) -> int:
    """Blocks of the KV cache: as much as the requests are likely to need, within a share of the free memory.

    Left alone, transformers would take more than half of it, and on a CPU commit it at once. When the cache is full,
    the manager sets requests back and reads their prompts again later, so a small one costs time, not answers; but it
    must hold one whole context.
    """
    config = model.config.get_text_config()
    context = config.max_position_embeddings
    likely = min(context, _LIKELY_TOKENS) if model.device.type == "cpu" else context
    # The scheduler lets no new prompt in while less than 15% of the cache is free.
    wanted = math.ceil(max(context, likely * max_concurrent_requests) / 0.85 / _PAGE)
    bytes_per_token = 2 * config.num_hidden_layers * find_num_key_value_heads(config) * find_head_dim(config)
    bytes_per_token *= model.dtype.itemsize
    affordable = int(_free_memory(model.device) * _CACHE_SHARE / bytes_per_token / _PAGE)
    if affordable < 1:
        raise UserError("not enough free memory for a KV cache; free some, or serve a smaller model")
    return min(wanted, affordable)


def _free_memory(device: torch.device) -> int:
    """Free memory of a device in bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available


def _as_list(value: int | list[int] | None) -> list[int]:
    return value if isinstance(value, list) else [value]
