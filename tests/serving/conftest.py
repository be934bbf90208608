"""A scripted engine, a tiny real model, and a real uvicorn server in a thread for either."""

import asyncio
import contextlib
import socket
import threading
import time
from dataclasses import dataclass, field, replace

import httpx
import openai
import pytest

from hfchat.serving.engines.engine import EngineError, EngineInfo, Logprob, Piece, PromptError, TokenLogprobs
from hfchat.serving.http.app import create_app
from hfchat.serving.server import Server, open_collector
from hfchat.serving.settings import ServerSettings
from hfchat.serving.versions.models import ServedModels
from tests.conftest import random_llama

MODEL = "tiny-chat"


@dataclass(frozen=True)
class ScriptedPrompt:
    tokens: int | None
    source: object = None


@dataclass
class ScriptedEngine:
    """Answers every prompt with the same pieces, one token each; `gate` holds it back after the first piece.

    A piece is a text, or a `Piece` with reasoning or calls in it.
    """

    pieces: list[str | Piece] = field(default_factory=lambda: ["Hello", ", ", "wor", "ld", "!"])
    finish_reason: str = "stop"
    context_length: int = 100
    temperature: float = 0.0
    top_p: float = 1.0
    template_fingerprint: str | None = "0123456789abcdef"
    error: str | None = None
    restarts: int = 0
    info: EngineInfo = field(default_factory=lambda: EngineInfo("scripted", "none"))
    cannot: dict = field(default_factory=dict)
    fail_after: int | None = None  # pieces before an EngineError
    held: bool = False  # whether to wait for `release` after the first piece

    def __post_init__(self):
        self.active = 0
        self.started = 0
        self.samplings = []
        self.prompts = []
        self.chats = []
        self.answered = []
        self._gate = threading.Event()

    def release(self):
        self._gate.set()

    async def start(self): ...

    async def stop(self):
        self.abort("stopped")

    def abort(self, reason):
        self.error = reason

    async def ready(self):
        if self.error:
            raise EngineError(self.error)

    async def encode(self, chat):
        """A token for each character."""
        messages = chat.messages
        self.chats.append(chat)
        if messages[0]["content"] == "refuse me":
            raise PromptError("the template wants something else")
        self.prompts.append(messages)
        return ScriptedPrompt(sum(len(message["content"]) for message in messages), messages)

    async def encode_text(self, text):
        if text in ("refuse me", [999]):
            raise PromptError("there is no such token")
        self.prompts.append(text)
        return ScriptedPrompt(len(text), text)

    async def stream(self, prompt, sampling):
        self.samplings.append(sampling)
        self.answered.append(prompt.source)
        self.active += 1
        self.started += 1
        try:
            for index, piece in enumerate(self.pieces):
                if index == self.fail_after:
                    raise EngineError("scripted failure")
                while index and self.held and not self._gate.is_set():
                    if self.error:
                        raise EngineError(self.error)
                    await asyncio.sleep(0.005)
                finish_reason = self.finish_reason if index == len(self.pieces) - 1 else None
                logprobs = () if sampling.logprobs is None else (self._logprobs(piece, sampling.logprobs),)
                whole = Piece(piece, 1) if isinstance(piece, str) else piece
                yield replace(whole, finish_reason=finish_reason, logprobs=logprobs)
                await asyncio.sleep(0)
        finally:
            self.active -= 1

    def _logprobs(self, piece, count):
        top = [Logprob(text, -float(i + 1), text.encode()) for i, text in enumerate([piece, "é", "x"][:count])]
        return TokenLogprobs(Logprob(piece, -1.0, piece.encode()), tuple(top))


class Served:
    """A running server: its address and clients for it."""

    def __init__(self, port: int, engine, server: Server):
        self.engine = engine
        self.server = server
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(base_url=self.url, timeout=30)
        self.openai = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)

    def async_openai(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)

    def chat(self, **fields) -> httpx.Response:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]} | fields
        return self.http.post("/v1/chat/completions", json=body)

    def complete(self, **fields) -> httpx.Response:
        return self.http.post("/v1/completions", json={"model": MODEL, "prompt": "Hi"} | fields)


@contextlib.contextmanager
def running(engine, guards=None, keys=None, loaded=True, **settings):
    settings = ServerSettings(**{"model": MODEL, "served_model_name": MODEL, "drain_seconds": 1} | settings)
    models = engine if isinstance(engine, ServedModels) else ServedModels.of(MODEL, engine)
    answers = threading.Event()
    collector = open_collector(settings)
    app = create_app(settings, models, guards, keys, collector)
    server = Server(app, models, settings, announce=answers.set)
    with socket.create_server(("127.0.0.1", 0)) as bound:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            wait_until(lambda: (answers.is_set() if loaded else server.started) or not thread.is_alive(), 30)
            yield Served(bound.getsockname()[1], engine, server)
        finally:
            server.should_exit = True
            thread.join(20)


def wait_until(condition, seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


@pytest.fixture
def scripted():
    """Makes engines: `scripted(pieces=[...], held=True)`."""
    return ScriptedEngine


@pytest.fixture
def eventually():
    """Waits for a condition, and fails if it does not come."""
    return wait_until


@pytest.fixture
def serve():
    """Start servers: `serve(engine, **settings)`; with `loaded=False` they may still be loading."""
    with contextlib.ExitStack() as stack:
        yield lambda engine, **settings: stack.enter_context(running(engine, **settings))


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """Byte-level BPE that has hardly any merges, so that every emoji is split over several tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from hfchat.chat_template import END_OF_TEXT, SPECIAL_TOKENS, record_fingerprint, set_chat_template

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["the quick brown fox jumps over the lazy dog"] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT)
    set_chat_template(tokenizer)
    record_fingerprint(tokenizer)
    return tokenizer


@pytest.fixture(scope="session")
def tiny_model(tiny_tokenizer):
    return random_llama(
        tiny_tokenizer,
        num_key_value_heads=2,
        max_position_embeddings=512,
        eos_token_id=tiny_tokenizer.eos_token_id,
        pad_token_id=tiny_tokenizer.pad_token_id,
        initializer_range=0.3,  # logits far enough apart that no rounding decides between two tokens
    )


@pytest.fixture(scope="session")
def tiny_server(tiny_model, tiny_tokenizer):
    """The real engine over the tiny model, behind a real server."""
    from hfchat.serving.engines.transformers_engine import TransformersEngine

    with running(TransformersEngine(tiny_model, tiny_tokenizer, max_concurrent_requests=4)) as served:
        yield served
