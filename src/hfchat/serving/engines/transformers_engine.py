"""The engine in this process: transformers' continuous batching, on the CPU or one GPU.

The manager generates in a thread of its own. Its outputs reach the event loop by one `call_soon_threadsafe` per
step, so nothing polls, and an idle server sleeps.
"""

import asyncio
import gc
import itertools
import math
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import ClassVar

import torch
from transformers import ContinuousBatchingManager, PreTrainedModel, PreTrainedTokenizerBase

from hfchat.chat import Chat
from hfchat.errors import UserError
from hfchat.models import cache_bytes_per_token
from hfchat.processes import available_bytes
from hfchat.serving.engines.continuous_batching import PAGE, Router, new_manager, submit, why_down
from hfchat.serving.engines.engine import (
    EngineError,
    EngineInfo,
    Logprob,
    Piece,
    PromptError,
    Sampling,
    TokenLogprobs,
)
from hfchat.serving.engines.model_sampling import ModelSampling
from hfchat.serving.engines.prompting import Prompting, TokenPrompt, ends_of, parsed
from hfchat.serving.engines.sampler import Draws, ScoredToken
from hfchat.serving.engines.supervising import Supervisor
from hfchat.serving.engines.text import IncrementalDecoder, TokenBytes
from hfchat.serving.http.limits import EXTRA_PLACES
from hfchat.serving.http.record import current_record
from hfchat.structured.masks import GrammarCompiler, Matcher, MatcherError

_CACHE_SHARE = 0.25  # the cache's part of the free memory; on a CPU the rest of the machine lives there too
_LIKELY_TOKENS = 2048  # length of a conversation on a CPU, where a longer one takes minutes
_STOP_TIMEOUT_S = 5


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

    cannot: ClassVar[Mapping[str, str]] = {}

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
        # What a request does not say is as the model's own generation config says.
        config = model.generation_config
        sampling = ModelSampling.of(config, tokenizer.name_or_path)
        self.temperature, self.top_p = sampling.temperature, sampling.top_p
        ends = ends_of(config.eos_token_id, tokenizer)

        # The encoder must know how long a prompt may be, and that depends on the memory.
        self._blocks = _cache_blocks(model, max_concurrent_requests)
        self.context_length = min(model.config.get_text_config().max_position_embeddings, self._blocks * PAGE)
        vocabulary = len(model.get_input_embeddings().weight)
        self._prompting = Prompting(tokenizer, sampling, ends, vocabulary, self.context_length)
        self.template_fingerprint = self._prompting.template_fingerprint
        self.encode_text = self._prompting.encode_text
        self._grammars = GrammarCompiler(tokenizer, vocabulary, ends)

        self.info = EngineInfo("transformers", str(model.dtype).removeprefix("torch."))

        # Its tokens are sampled in the generation's thread, and decoded on the event loop.
        self._model = model
        self._rows = max_concurrent_requests + EXTRA_PLACES + 1  # and one for `ready`
        self._tokenizer = tokenizer
        self._token_bytes = TokenBytes(tokenizer.backend_tokenizer)
        self._ids = itertools.count()
        self._aborted: str | None = None
        self._router = Router(lambda request: self._manager.cancel_request(request), self._on_crash)
        # When it has crashed, the manager fails only those requests that it had taken.
        self._supervisor = Supervisor(self._restart, lambda: why_down(self._manager), self._router.fail_all)
        self._manager = self._new_manager()

    def _new_manager(self) -> ContinuousBatchingManager:
        return new_manager(self._model, self._prompting.ends, self._blocks, self._rows, self._router)

    @property
    def error(self) -> str | None:
        if self._aborted is not None:
            return self._aborted
        return self._supervisor.down if self._supervisor.down is not None else why_down(self._manager)

    @property
    def restarts(self) -> int:
        return self._supervisor.restarts

    async def start(self) -> None:
        self._router.loop = asyncio.get_running_loop()
        await self._prompting.try_template()
        self._start_manager()
        # The first forward pass is the slowest one; nobody should wait for it, and a broken model shows here.
        await self.ready()
        self._supervisor.begin()

    def _start_manager(self) -> None:
        # The generation's thread takes over the mode; it saves what autograd does besides in each operation.
        with torch.inference_mode():
            self._manager.start()

    async def stop(self) -> None:
        self.abort("the engine was stopped")
        await self._supervisor.end()
        self._prompting.close()
        if self._manager.is_running():
            await asyncio.to_thread(self._manager.stop, timeout=_STOP_TIMEOUT_S, hard_stop=True)

    def abort(self, reason: str) -> None:
        self._aborted = reason
        self._router.fail_all(reason)

    async def ready(self) -> None:
        async for _ in self._generate(self._prompting.shortest(), Sampling(max_tokens=1)):
            pass

    async def encode(self, chat: Chat) -> TokenPrompt:
        prompt = await self._prompting.encode(chat)
        if prompt.grammar is not None:  # it is kept from now on, and what cannot be compiled costs no token
            try:
                await self._matcher(prompt.grammar)
            except EngineError as error:
                field = "tools" if chat.answer_schema is None else "response_format"
                raise PromptError(str(error), field) from error
        return prompt

    def _on_crash(self, manager: ContinuousBatchingManager) -> None:
        if manager is self._manager:
            self._supervisor.crashed()

    async def _restart(self) -> None:
        await asyncio.to_thread(self._manager.stop, timeout=_STOP_TIMEOUT_S, hard_stop=True)
        self._manager = await asyncio.to_thread(self._new_manager)
        gc.collect()  # the error of the old one holds its frames, and these the cache, whose memory the new one needs
        self._supervisor.forget()
        self._start_manager()
        await self.ready()

    async def stream(self, prompt: TokenPrompt, sampling: Sampling) -> AsyncGenerator[Piece]:
        if self.error is not None:
            raise EngineError(self.error)
        async with aclosing(parsed(prompt, self._generate(prompt, sampling))) as pieces:
            async for piece in pieces:
                if piece.finish_reason is not None:  # whoever gets it stops listening
                    self._supervisor.succeeded()
                yield piece

    async def _generate(self, prompt: TokenPrompt, sampling: Sampling) -> AsyncGenerator[Piece]:
        self._prompting.check(prompt)
        sampling = self._prompting.complete(prompt, sampling)
        matcher = None if prompt.grammar is None else await self._matcher(prompt.grammar)
        draws = Draws(sampling, current_record().key_name, prompt.tokens, matcher)
        request = f"request-{next(self._ids)}"
        outputs: asyncio.Queue = asyncio.Queue()
        self._router.streams[request] = outputs.put_nowait
        manager = self._manager
        finished = False
        try:
            if self._aborted is not None or not submit(manager, request, prompt.ids, draws):
                raise EngineError(self.error or "generation is not running")
            decoder = IncrementalDecoder(self._tokenizer.backend_tokenizer, prompt.kept)
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
                ended = finished and bool(tokens) and tokens[-1] in self._prompting.ends
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

    async def _matcher(self, grammar: str) -> Matcher:
        """One for a new answer. It is compiled in a thread, which lets go of the GIL: that may take a second."""
        try:
            return await asyncio.to_thread(self._grammars.matcher, grammar)
        except MatcherError as error:
            raise EngineError(f"the grammar of the answer: {error}") from error

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
    bytes_per_token = cache_bytes_per_token(config, model.dtype.itemsize)
    affordable = int(_free_memory(model.device) * _CACHE_SHARE / bytes_per_token / PAGE)
    if affordable < 1:
        raise UserError("not enough free memory for a KV cache; free some, or serve a smaller model")
    return min(wanted, affordable)


def _free_memory(device: torch.device) -> int:
    """Free memory of a device in bytes."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_bytes()
