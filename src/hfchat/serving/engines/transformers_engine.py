"""The engine in this process: transformers' continuous batching, on the CPU or one GPU.

The manager generates in a thread of its own. Its outputs reach the event loop by one `call_soon_threadsafe` per
step, so nothing polls, and an idle server sleeps.
"""

import asyncio
import gc
import itertools
import logging
import math
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, closing
from dataclasses import dataclass, replace

import torch
from transformers import ContinuousBatchingManager, PreTrainedModel, PreTrainedTokenizerBase

from hfchat.chat_template import fingerprint
from hfchat.errors import UserError
from hfchat.processes import available_bytes
from hfchat.serving.engines.continuous_batching import PAGE, Router, new_manager, submit, why_down
from hfchat.serving.engines.encoding import NOTHING_RENDERED
from hfchat.serving.engines.encoding_process import ModelEncoder
from hfchat.serving.engines.engine import EngineError, Logprob, Piece, PromptError, Sampling, TokenLogprobs
from hfchat.serving.engines.model_sampling import ModelSampling
from hfchat.serving.engines.sampler import Draws, ScoredToken
from hfchat.serving.engines.text import IncrementalDecoder, TokenBytes
from hfchat.serving.http.limits import EXTRA_PLACES, Slots
from hfchat.serving.http.record import current_record

_LOGGER = logging.getLogger("hfchat.serving")
_CACHE_SHARE = 0.25  # the cache's part of the free memory; on a CPU the rest of the machine lives there too
_LIKELY_TOKENS = 2048  # length of a conversation on a CPU, where a longer one takes minutes
_STOP_TIMEOUT_S = 5
_RESTART_PAUSE_S = 0.5  # before the second restart with no whole answer between them; then twice as long each time
_LONGEST_PAUSE_S = 60.0


@dataclass(frozen=True)
class TokenPrompt:
    """A `Prompt` as the ids of its tokens."""

    ids: Sequence[int]

    @property
    def tokens(self) -> int:
        return len(self.ids)


class TransformersEngine:
    """An `Engine` (see `hfchat.serving.engines.engine`) over a loaded chat model.

    Where the client does not say how, answers are sampled as `model.generate` would sample them: by the model's own
    generation config (temperature, top_k, top_p, min_p, repetition_penalty), and greedily where that does not ask for
    sampling. So the server and `pipeline` agree. A model whose config asks for something that this engine cannot do is
    refused, and the message names the field.

    A request that breaks its own step ends alone with an `EngineError`. If the generation crashes, the running answers
    end with an `EngineError`, `error` says so, and it is started again, with an empty cache, as often as it takes,
    after longer and longer pauses.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_concurrent_requests: int = 8):
        """
        Args:
            model: The model, on its device.
            tokenizer: Its tokenizer, with a chat template.
            max_concurrent_requests: Answers generated at a time; the KV cache is sized for it.

        Raises:
            UserError: If the tokenizer cannot decode incrementally or has tokens that the model has no embeddings for,
                the model's generation config asks for more than this engine can do, or there is too little free memory
                for a cache.
        """
        if not tokenizer.is_fast:
            raise UserError(f"{tokenizer.name_or_path}: serving needs a fast tokenizer (tokenizer.json)")

        # What a request does not say is as the model's own generation config says.
        config = model.generation_config
        self._sampling = ModelSampling.of(config, tokenizer.name_or_path)
        self.temperature, self.top_p = self._sampling.temperature, self._sampling.top_p
        self.template_fingerprint = fingerprint(tokenizer)

        # A prompt is encoded, its tokens are sampled in the generation's thread, and decoded on the event loop.
        self._model = model
        self._rows = max_concurrent_requests + EXTRA_PLACES + 1  # and one for `ready`
        self._tokenizer = tokenizer
        self._token_bytes = TokenBytes(tokenizer.backend_tokenizer)
        self._eos = {*_as_list(config.eos_token_id), *_as_list(tokenizer.eos_token_id)}
        self._ids = itertools.count()
        self._aborted: str | None = None
        self._down: str | None = None
        self.restarts = 0
        self._crashes = 0
        self._ended = asyncio.Event()  # set when the generation has crashed
        self._supervisor: asyncio.Task | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encode")  # waits for the encoder
        self._turns = Slots(1, sys.maxsize, extra=0)  # the keys take turns
        self._vocabulary = len(model.get_input_embeddings().weight)
        _check_embedded(tokenizer, self._eos, self._vocabulary)

        # The encoder must know how long a prompt may be, and that depends on the memory.
        self._blocks = _cache_blocks(model, max_concurrent_requests)
        self.context_length = min(model.config.get_text_config().max_position_embeddings, self._blocks * PAGE)
        self._encoder = ModelEncoder(tokenizer, self._vocabulary, self.context_length)
        self._router = Router(lambda request: self._manager.cancel_request(request), self._on_crash)
        self._manager = self._new_manager()

    def _new_manager(self) -> ContinuousBatchingManager:
        penalty = self._sampling.repetition_penalty
        return new_manager(self._model, self._eos, self._blocks, self._rows, penalty, self._router)

    @property
    def error(self) -> str | None:
        if self._aborted is not None:
            return self._aborted
        return self._down if self._down is not None else why_down(self._manager)

    async def start(self) -> None:
        self._router.loop = asyncio.get_running_loop()
        await self._try_template()
        self._start_manager()
        # The first forward pass is the slowest one; nobody should wait for it, and a broken model shows here.
        await self.ready()
        self._supervisor = asyncio.create_task(self._supervise())

    def _start_manager(self) -> None:
        # The generation's thread takes over the mode; it saves what autograd does besides in each operation.
        with torch.inference_mode():
            self._manager.start()

    async def _try_template(self) -> None:
        """Refuse a model whose chat template renders a greeting as nothing, or takes too much time or memory for it.

        Raises:
            UserError: Says what is wrong with it.
        """
        try:
            await self.encode([{"role": "user", "content": "Hi"}])
        except PromptError as error:
            if str(error) == NOTHING_RENDERED:
                raise UserError(f"{self._tokenizer.name_or_path}: {NOTHING_RENDERED}") from error
            # The template may want another conversation, or a longer context; then it says so to those who ask.
        except EngineError as error:
            raise UserError(f"{self._tokenizer.name_or_path}: {error}") from error

    async def stop(self) -> None:
        self.abort("the engine was stopped")
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.wait({self._supervisor})
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._encoder.close()
        if self._manager.is_running():
            await asyncio.to_thread(self._manager.stop, timeout=_STOP_TIMEOUT_S, hard_stop=True)

    def abort(self, reason: str) -> None:
        self._aborted = reason
        self._router.fail_all(reason)

    async def ready(self) -> None:
        prompt = TokenPrompt([next(iter(self._eos), 0)])
        async for _ in self._generate(prompt, Sampling(max_tokens=1)):
            pass

    async def _supervise(self) -> None:
        """Start the generation again when it has crashed."""
        while True:
            if self._down is None:
                await self._ended.wait()
                self._down = why_down(self._manager) or "generation failed"
            self._router.fail_all(self._down)  # the manager fails only those that it had taken
            self._crashes += 1
            _LOGGER.error("%s (crash %d in a row)", self._down, self._crashes)
            if self._crashes > 1:
                doublings = min(self._crashes - 2, 20)
                await asyncio.sleep(min(_RESTART_PAUSE_S * 2**doublings, _LONGEST_PAUSE_S))
            try:
                await self._restart()
            except Exception as error:
                _LOGGER.exception("the generation could not be restarted")
                self._down = f"generation failed: {error}"
            else:
                self._down = None
                self.restarts += 1
                _LOGGER.warning("the generation was restarted")

    def _on_crash(self, manager: ContinuousBatchingManager) -> None:
        if manager is self._manager:
            self._ended.set()

    async def _restart(self) -> None:
        await asyncio.to_thread(self._manager.stop, timeout=_STOP_TIMEOUT_S, hard_stop=True)
        self._manager = await asyncio.to_thread(self._new_manager)
        gc.collect()  # the error of the old one holds its frames, and these the cache, whose memory the new one needs
        self._ended.clear()  # the old one may tell of its crash after that has been dealt with
        self._start_manager()
        await self.ready()

    async def encode(self, messages: Sequence[dict[str, str]]) -> TokenPrompt:
        size = sum(len(message["content"]) for message in messages)
        return await self._encode(self._encoder.conversation, messages, size)

    async def encode_text(self, text: str | Sequence[int]) -> TokenPrompt:
        return await self._encode(self._encoder.text, text, len(text))

    async def _encode(self, encode: Callable, source: Sequence, size: int) -> TokenPrompt:
        with closing(self._turns.reserve(1, current_record().key_name)) as turn:
            async with turn.take():
                turn.charge(size)
                return TokenPrompt(await asyncio.get_running_loop().run_in_executor(self._thread, encode, source))

    async def stream(self, prompt: TokenPrompt, sampling: Sampling) -> AsyncGenerator[Piece]:
        if self.error is not None:
            raise EngineError(self.error)
        async with aclosing(self._generate(prompt, sampling)) as pieces:
            async for piece in pieces:
                yield piece
        self._crashes = 0

    async def _generate(self, prompt: TokenPrompt, sampling: Sampling) -> AsyncGenerator[Piece]:
        self._check(prompt)
        draws = Draws(self._complete(prompt, sampling), self._sampling, current_record().key_name, prompt.tokens)
        request = f"request-{next(self._ids)}"
        outputs: asyncio.Queue = asyncio.Queue()
        self._router.streams[request] = outputs.put_nowait
        manager = self._manager
        finished = False
        try:
            if self._aborted is not None or not submit(manager, request, prompt.ids, draws):
                raise EngineError(self.error or "generation is not running")
            decoder = IncrementalDecoder(self._tokenizer.backend_tokenizer)
            seen = 0
            while not finished:
                output = await outputs.get()
                if output.error is not None:
                    finished = True
                    raise EngineError(output.error)
                if draws.failure is not None:
                    raise EngineError(draws.failure)

                # An output has all tokens so far. The one that ends the answer has no text.
                tokens = output.generated_tokens[seen:]
                finished = output.is_finished()
                ended = finished and bool(tokens) and tokens[-1] in self._eos
                spoken = tokens[:-1] if ended else tokens
                text = "".join(decoder.push(token) for token in spoken)
                logprobs = tuple(self._logprobs(scored) for scored in draws.scored[seen : seen + len(spoken)])
                seen += len(tokens)
                if finished:
                    yield Piece(text + decoder.flush(), len(tokens), "stop" if ended else "length", logprobs)
                else:
                    yield Piece(text, len(tokens), logprobs=logprobs)
        finally:
            del self._router.streams[request]
            if not finished:
                manager.cancel_request(request)

    def _check(self, prompt: TokenPrompt) -> None:
        """Refuse a prompt that no step can be made with, because it would end the generation for all.

        Raises:
            EngineError: If it is empty or too long, or the model has no embedding for one of its tokens.
        """
        if not 0 < prompt.tokens < self.context_length:
            raise EngineError(f"a prompt must have from 1 to {self.context_length - 1} tokens, not {prompt.tokens}")
        unknown = next((id for id in prompt.ids if not 0 <= id < self._vocabulary), None)
        if unknown is not None:
            raise EngineError(f"the model has no token {unknown}, only 0 to {self._vocabulary - 1}")

    def _complete(self, prompt: TokenPrompt, sampling: Sampling) -> Sampling:
        """The sampling with the model's own values where the request has none, no longer than the context holds."""
        room = self.context_length - prompt.tokens
        return replace(
            sampling,
            max_tokens=room if sampling.max_tokens is None else min(sampling.max_tokens, room),
            temperature=self.temperature if sampling.temperature is None else sampling.temperature,
            top_p=self.top_p if sampling.top_p is None else sampling.top_p,
        )

    def _logprobs(self, scored: ScoredToken) -> TokenLogprobs:
        return TokenLogprobs(self._logprob(*scored.chosen), tuple(self._logprob(*likely) for likely in scored.top))

    def _logprob(self, token: int, logprob: float) -> Logprob:
        data = self._token_bytes(token)
        return Logprob(data.decode(errors="replace"), logprob, data)


def _cache_blocks(model: PreTrainedModel, max_concurrent_requests: int) -> int:
    """Blocks of the KV cache: as many as the requests are likely to need, within a share of the free memory.

    Left alone, transformers would take more than half of that memory, and on a CPU commit it at once. When the cache
    is full, the manager sets requests back and reads their prompts again later, so a small cache costs time and not
    answers; but it must hold one whole context.
    """
    config = model.config.get_text_config()
    context = config.max_position_embeddings
    likely = min(context, _LIKELY_TOKENS) if model.device.type == "cpu" else context
    # The scheduler lets no new prompt in while less than 15% of the cache is free.
    wanted = math.ceil(max(context, likely * max_concurrent_requests) / 0.85 / PAGE)
    # A key and a value for each layer and head.
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    bytes_per_token = 2 * config.num_hidden_layers * heads * head_dim * model.dtype.itemsize
    affordable = int(_free_memory(model.device) * _CACHE_SHARE / bytes_per_token / PAGE)
    if affordable < 1:
        raise UserError("not enough free memory for a KV cache; free some, or serve a smaller model")
    return min(wanted, affordable)


def _free_memory(device: torch.device) -> int:
    """Free memory of a device in bytes."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_bytes()


def _check_embedded(tokenizer: PreTrainedTokenizerBase, ends: set[int], vocabulary: int) -> None:
    """Refuse a tokenizer with ids that the model has no embeddings for, because one such prompt would end all answers.

    Raises:
        UserError: Names the first of them.
    """
    beyond = min((id for id in {*tokenizer.get_vocab().values(), *ends} if not 0 <= id < vocabulary), default=None)
    if beyond is not None:
        token = tokenizer.convert_ids_to_tokens(beyond) if beyond >= 0 else None
        raise UserError(
            f"{tokenizer.name_or_path}: its tokenizer, or its generation_config.json (eos_token_id), has the token "
            f"{beyond} ({token!r}), and the model has embeddings for {vocabulary} tokens only; restore the tokenizer "
            "that it was trained with, or give the model embeddings for it (`model.resize_token_embeddings`)"
        )


def _as_list(value: int | list[int] | None) -> list[int]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
