"""The server of `tests/engines/scripted_llamacpp.py` as a child, and an engine over it whose tokens are characters."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from hfchat.engines.child import Program
from hfchat.engines.llamacpp import KEY_VARIABLE, LlamaCpp
from hfchat.serving.engines.child_engine import Child, ChildEngine
from hfchat.serving.engines.engine import CompleteSampling, EngineError, EngineInfo, PromptError
from hfchat.serving.engines.model_sampling import ModelSampling
from hfchat.serving.engines.prompting import TokenPrompt

SCRIPT = Path(__file__).parents[1] / "engines" / "scripted_llamacpp.py"
DIALECT = LlamaCpp(Path("no.gguf"), slots=1, context=100)
INFO = EngineInfo("llamacpp", "q8_0")


class Scripted:
    """What a scripted llama.cpp does, and what it has seen. `script` changes it, also while it runs."""

    def __init__(self, folder: Path, **fields):
        self.folder = folder
        self._fields = {"pieces": ["Hello", ", ", "wor", "ld", "!"], "stop_type": "eos"}
        self.script(**fields)
        self.program = Program("llama.cpp", [sys.executable, "-S", str(SCRIPT), "{port}", str(folder)], KEY_VARIABLE)

    def script(self, **fields):
        self._fields |= fields
        new = self.folder / "script.new"
        new.write_text(json.dumps(self._fields), encoding="utf-8")
        os.replace(new, self.folder / "script.json")

    @property
    def seen(self):
        file = self.folder / "seen.jsonl"
        return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []

    @property
    def pids(self):
        """Those that it had, the latest last."""
        return [event["pid"] for event in self.seen if event.get("started")]

    @property
    def asked(self):
        """The bodies of the requests that were made for somebody."""
        return [event["body"] for event in self.seen if event.get("is_a_try") is False]

    @property
    def closed(self):
        """How many connections were closed before their answer ended."""
        return sum("closed" in event for event in self.seen)


@dataclass(frozen=True)
class SourcedPrompt(TokenPrompt):
    source: object = None


class Characters:
    """In the place of `Prompting`: a token for each character; grammars need a real tokenizer."""

    context_length = 100
    template_fingerprint = "0123456789abcdef"
    ends = frozenset({2})

    def __init__(self, tokenizer=None, **sampling):
        self.tokenizer, self.vocabulary = tokenizer, len(tokenizer or ())
        self.sampling = ModelSampling(**sampling)
        self.is_closed = False

    async def try_template(self): ...

    async def encode(self, chat):
        text = "".join(message["content"] for message in chat.messages)
        return self._prompt(text, chat.messages)

    async def encode_text(self, text):
        return self._prompt(text, text)

    def _prompt(self, text, source):
        if text in ("refuse me", [999]):
            raise PromptError("there is no such token")
        return SourcedPrompt([ord(c) for c in text] if isinstance(text, str) else text, source=source)

    def shortest(self):
        return TokenPrompt([2])

    def check(self, prompt):
        if prompt.tokens >= self.context_length:
            raise EngineError("too long")

    def complete(self, prompt, sampling):
        room = self.context_length - prompt.tokens
        asked = {name: value for name, value in vars(sampling).items() if value is not None}
        longest = min(asked.pop("max_tokens", room), room)
        return CompleteSampling(**{**vars(self.sampling), **asked, "max_tokens": longest})

    def close(self):
        self.is_closed = True


class ScriptedChildEngine(ChildEngine):
    """Over a scripted llama.cpp; counts its answers as `tests.serving.conftest.ScriptedEngine` does."""

    def __init__(self, scripted: Scripted, child: Child | None = None, adapter=None, dialect=DIALECT, **sampling):
        prompting = Characters(**sampling)
        super().__init__(child or Child(scripted.program), dialect, prompting, INFO, adapter)
        self.scripted, self.prompting = scripted, prompting
        self.active = self.started = 0
        self.answered = []

    async def stream(self, prompt, sampling):
        self.active += 1
        self.started += 1
        self.answered.append(prompt.source)
        try:
            async for piece in super().stream(prompt, sampling):
                yield piece
        finally:
            self.active -= 1
