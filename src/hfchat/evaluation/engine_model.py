"""A model on this machine whose answers an engine of its own generates: llama.cpp's server, or vLLM's."""

import http.client
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from hfchat.chat import Chat
from hfchat.engines.child import ChildServer
from hfchat.engines.choice import choose
from hfchat.engines.dialect import Chunk, EngineFailureError, TokenRequest
from hfchat.engines.llamacpp import LlamaCpp
from hfchat.engines.vllm import Vllm
from hfchat.errors import UserError
from hfchat.evaluation.encoding import encode_prompt
from hfchat.evaluation.local_model import LocalModel
from hfchat.evaluation.model import Prompt, Reply
from hfchat.generation import load_generation_config, stop_token_ids
from hfchat.gguf.adapter_check import check_adapter
from hfchat.gguf.conversion import cached_adapter_gguf, cached_gguf, local_folder
from hfchat.gguf.weight_types import TORCH_TYPES
from hfchat.processes import launched
from hfchat.results import COMPUTED_BY, ModelIdentity
from hfchat.token_ids import special_tokens

_TIMEOUT = 600.0  # seconds without a token
_NOTICE_S = 2.0  # until it is known that a process has ended
_ROUNDED = 256  # tokens
_EVENT = b"data:"
_END = b"[DONE]"
_ADAPTER = "adapter"


@dataclass(frozen=True)
class EngineChoice:
    """Which engine generates the answers of a suite, and how.

    Attributes:
        name: Its name.
        weights: Type of its weights; None for the evaluated type.
        arguments: Further ones of its own.
    """

    name: Literal["llamacpp", "vllm"]
    weights: str | None = None
    arguments: str | None = None


class EngineModel(LocalModel):
    """Weights on this machine from which a child process generates the answers. For likelihoods they are loaded here.

    Prompts are encoded here, by the model's own tokenizer and template, and sent as token ids. The child starts with
    the first answer that is asked for, and ends with `free`.

    Args:
        name: See `LocalModel`, as for the others.
        engine: What generates the answers.
    """

    is_served = True

    def __init__(
        self,
        name: str,
        path: str,
        batch_size: int,
        dtype: str,
        engine: EngineChoice,
        allow_template_mismatch: bool = False,
    ):
        super().__init__(name, path, batch_size, dtype, allow_template_mismatch)
        if launched().num_processes > 1:
            raise UserError(f"engine: {engine.name} makes its own batches; start one process, and not several")
        # Whatever it cannot do is said now.
        own = TORCH_TYPES[dtype] if engine.name == "llamacpp" else dtype
        self.weights = choose(engine.name, engine.weights or own, path, has_gpu=False).weights
        if engine.name == "llamacpp":
            if engine.arguments:
                raise UserError("engine_args: are arguments of `vllm serve`, and llamacpp takes none")
            if self.is_adapter:
                check_adapter(Path(self.folder))
        else:
            Vllm(Path(self.folder), batch_size, self.weights, engine.arguments or "")
        self._choice = engine
        self._stops = frozenset(stop_token_ids(load_generation_config(self.base), self.tokenizer))
        self._longest = 0  # prompt with its answer or target, in tokens, of what was checked so far
        self._context = 0  # of the server
        self._server: ChildServer | None = None
        self._engine: LlamaCpp | Vllm | None = None
        self._one_at_a_time = threading.RLock()  # for the tokenizer, and the start of the server

    def describe(self) -> ModelIdentity:
        return replace(super().describe(), engine=self._choice.name, weights=self.weights)

    def computed_by(self, needs_weights: bool) -> str:
        if needs_weights:
            return super().computed_by(needs_weights)
        arguments = f"|engine_args:{self._choice.arguments}" if self._choice.arguments else ""
        return f"{COMPUTED_BY}{self._choice.name}|weights:{self.weights}{arguments}"

    def check(self, prompt: Prompt, targets: Sequence[str], max_new_tokens: int, place: str) -> int:
        length = super().check(prompt, targets, max_new_tokens, place)
        self._longest = max(self._longest, length)
        return length

    def prepare(self) -> None:
        if self._choice.name == "llamacpp":
            self._llamacpp()

    def answer(self, prompts: Sequence[Prompt], max_new_tokens: int, stop: Sequence[str] = ()) -> list[Reply]:
        with self._one_at_a_time:
            rows = [encode_prompt(self.tokenizer, prompt) for prompt in prompts]
        return [self.continue_ids(ids, max_new_tokens, stop) for ids in rows]

    def check_chat(self, chat: Chat, max_new_tokens: int, project_template: bool, place: str) -> int:
        length = super().check_chat(chat, max_new_tokens, project_template, place)
        self._longest = max(self._longest, length)
        return length

    def answer_chats(self, chats: Sequence[Chat], max_new_tokens: int, project_template: bool) -> list[Reply]:
        replies = []
        for chat in chats:
            with self._one_at_a_time:
                reader = self.reader(project_template)
                ids = reader.encode(chat)
                grammar = reader.grammar(chat, ids)
            reply = self.continue_ids(ids, max_new_tokens, grammar=grammar, kept=reader.kept)
            with self._one_at_a_time:
                text, calls = reader.read(chat, ids, reply.text)
            replies.append(replace(reply, text=text, calls=calls))
        return replies

    def continue_ids(
        self,
        ids: Sequence[int],
        max_new_tokens: int,
        stop: Sequence[str] = (),
        grammar: str | None = None,
        kept: frozenset[int] = frozenset(),
    ) -> Reply:
        """Continue a prompt greedily; several threads may at a time.

        Args:
            ids: The prompt.
            max_new_tokens: Length of the answer in tokens.
            stop: Strings before which it is cut.
            grammar: What it may be, see `hfchat.engines.dialect.TokenRequest`.
            kept: Special tokens whose text stays in it.

        Raises:
            UserError: If the engine cannot be started, or does not answer.
        """
        adapter = _ADAPTER if self.is_adapter else None
        request = TokenRequest(ids, max_new_tokens, self._stops, grammar=grammar, kept=kept, adapter=adapter)
        text, tokens, reason = "", 0, None
        with closing(self._chunks(request)) as chunks:
            for chunk in chunks:
                text, tokens, reason = text + chunk.text, tokens + chunk.tokens, chunk.finish_reason
                cuts = [position for part in stop if (position := text.find(part)) >= 0]
                if cuts:
                    return Reply(text[: min(cuts)], tokens, ended=True)
        return Reply(text, tokens, ended=reason == "stop")

    def _chunks(self, request: TokenRequest) -> Generator[Chunk]:
        """The parts of an answer up to its end. To close it early ends the work for it."""
        server, engine = self._started()
        asked = urllib.request.Request(
            server.url + engine.path,
            json.dumps(engine.body(request)).encode(),
            {"Content-Type": "application/json", "Authorization": f"Bearer {server.key}"},
        )
        reader, finished = engine.reader(request), False
        try:
            with urllib.request.urlopen(asked, timeout=_TIMEOUT) as events:
                for event in events:
                    content = event.removeprefix(_EVENT).strip()
                    is_read = event.startswith(_EVENT) and content != _END
                    chunk = reader.read(content) if is_read else None
                    if chunk is not None:
                        finished = chunk.finish_reason is not None
                        yield chunk
                    if finished:
                        return
            raise EngineFailureError("it broke an answer off")
        except urllib.error.HTTPError as error:
            reason = " ".join(error.read(2000).decode(errors="replace").split())
            raise UserError(f"{self.path}: {server.program.name} refuses a prompt: {reason[:300]}") from error
        except (OSError, http.client.HTTPException, EngineFailureError) as error:
            end = time.monotonic() + _NOTICE_S
            while server.is_running and time.monotonic() < end:
                time.sleep(0.05)
            reason = str(error) if server.is_running else server.why_ended()
            raise UserError(f"{self.path}: {server.program.name} does not answer: {reason}") from error

    def expect(self, tokens: int) -> None:
        """Make sure that prompts with their answers may have so many tokens. Nobody may ask meanwhile."""
        self._longest = max(self._longest, tokens)
        if self._context < self._longest:
            self._stop()

    def _started(self) -> tuple[ChildServer, LlamaCpp | Vllm]:
        """The server, which is started when it is needed first."""
        with self._one_at_a_time:
            if self._server is None or self._engine is None:
                self._context = _ROUNDED * (self._longest // _ROUNDED + 1)
                engine = self._llamacpp() if self._choice.name == "llamacpp" else self._vllm()
                server = ChildServer(engine.program)
                try:
                    server.start()
                    server.wait_until_it_listens()
                except BaseException:
                    server.stop()
                    raise
                self._server, self._engine = server, engine
            return self._server, self._engine

    def _llamacpp(self) -> LlamaCpp:
        base = local_folder(self.base)
        adapters = {_ADAPTER: cached_adapter_gguf(Path(self.folder), base)} if self.is_adapter else {}
        file, special = cached_gguf(base, self.weights), special_tokens(self.tokenizer)
        return LlamaCpp(file, self.batch_size, self._context, adapters, special)

    def _vllm(self) -> Vllm:
        adapters = {_ADAPTER: Path(self.folder)} if self.is_adapter else {}
        arguments, special = self._choice.arguments or "", special_tokens(self.tokenizer)
        folder = local_folder(self.base)
        return Vllm(folder, self.batch_size, self.weights, arguments, adapters, special_tokens=special)

    def free(self) -> None:
        self._stop()
        super().free()

    def _stop(self) -> None:
        if self._server is not None:
            self._server.stop()
        self._server = self._engine = None
        self._context = 0
