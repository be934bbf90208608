"""vLLM as a child engine: `vllm serve`, from this environment or another one (read in 0.32)."""

import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hfchat.engines.child import Program
from hfchat.engines.dialect import Chunk, EngineFailureError, ScoredText, TokenRequest
from hfchat.errors import UserError
from hfchat.model_code import refuse_code

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_BASE = "base"
_LENGTH = "--max-model-len"
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # of adapters, that vLLM has kernels for
# Arguments that this server has chosen, or relies on, with what to do instead; `*` stands for any end.
_NOT_ASKED_DIRECTLY = "vLLM is asked by this server alone"
_OWN_TOKENIZER = "prompts are made by the tokenizer of MODEL"
_REFUSED = {
    "--host": _NOT_ASKED_DIRECTLY,
    "--port": _NOT_ASKED_DIRECTLY,
    "--uds": _NOT_ASKED_DIRECTLY,
    "--api-key": _NOT_ASKED_DIRECTLY,
    "--root-path": _NOT_ASKED_DIRECTLY,
    "--ssl-*": _NOT_ASKED_DIRECTLY,
    "--grpc*": _NOT_ASKED_DIRECTLY,
    "--headless": _NOT_ASKED_DIRECTLY,
    "--middleware": _NOT_ASKED_DIRECTLY,
    "--served-model-name": "the option of hfchat does that",
    "--config": "say in --engine-args what the file says",
    "--model": "it is MODEL",
    "--tokenizer*": _OWN_TOKENIZER,
    "--skip-tokenizer-init": _OWN_TOKENIZER,
    "--tokens-only": _OWN_TOKENIZER,
    "--dtype": "use --weights",
    "--max-num-seqs": "use --max-concurrent-requests",
    "--enable-lora": "use --adapter",
    "--lora-modules": "use --adapter",
    "--logprobs-mode": "the API promises those of the model itself",
    "--max-logprobs": "the API promises 20",
    "--structured-outputs-config*": "the answers' grammars are llguidance's",
    "--reasoning-parser*": "the answers' grammars count from the first token on",
}
_LOG_PREFIX = re.compile(r"^\([^)]*pid=\d+\) (?:[A-Z]+ \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*\] ?)?")
_ARGUMENT_ERROR = re.compile(r"vllm(?: serve)?: error: (.+)")
_VALUE_ERROR = re.compile(r"\s*Value error, (.+?)(?: \[type=.*)?")
_ERROR = re.compile(r"[\w.]*(?:Error|Exception): (.+)")
_DEATH = "died unexpectedly"  # of a process that could not say why
_TOKEN = "token_id:"  # before the id of a token that is named by it
_ELSEWHERE = re.compile("root cause|cancelled$|^pydantic_core")  # errors that only say that there is another one


def _executable() -> str | None:
    """The program `vllm`: this environment's, or else the one on the PATH."""
    beside = Path(sys.executable).with_name("vllm")
    return str(beside) if os.access(beside, os.X_OK) else shutil.which("vllm")


def is_installed() -> bool:
    """Whether `vllm` is a program here."""
    return _executable() is not None


def check_installed() -> None:
    """Raise a `UserError` unless vLLM is installed."""
    if not is_installed():
        raise UserError(
            "--engine vllm: there is no program `vllm` on the PATH; run `pip install vllm`, here or in an environment "
            "of its own whose bin folder is on the PATH"
        )


def check_arguments(engine_args: str) -> None:
    """Raise a `UserError` if one of the arguments would break what stands in front of vLLM."""
    for name, _ in _options(engine_args):
        if reason := _why_refused(name):
            raise UserError(f"--engine-args: leave {name} out; {reason}")
    _max_model_len(engine_args)


@dataclass(frozen=True)
class Vllm:
    """How to run `vllm serve`, and its `Dialect` (see `hfchat.engines.dialect`).

    Attributes:
        model: The model's folder.
        slots: Answers at a time.
        weights: Type that it computes in, "float32" or "bfloat16"; "auto" leaves it to vLLM.
        engine_args: Further arguments, as in a shell.
        adapters: Folders of LoRA adapters by their names.
        token_bytes: The bytes that a token stands for, by its id; log probabilities need it.
        special_tokens: Texts of the special tokens by their ids; requests that keep some need them.

    Raises:
        UserError: If the model brings code, an argument would break what stands in front, or an adapter is of a kind
            that vLLM does not know.
    """

    model: Path
    slots: int
    weights: str = "auto"
    engine_args: str = ""
    adapters: Mapping[str, Path] = field(default_factory=dict)
    token_bytes: Callable[[int], bytes] | None = None
    special_tokens: Mapping[int, str] = field(default_factory=dict)

    path: ClassVar[str] = "/v1/completions"
    reads_whole: ClassVar[bool] = False
    masks_logprobs: ClassVar[bool] = True
    unknown_formats: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        refuse_code(self.model)  # older versions of vLLM run what `auto_map` names, whatever they are told
        check_arguments(self.engine_args)
        for name, folder in self.adapters.items():
            if _adapter_config(folder).get("trainable_token_indices"):
                raise UserError(
                    f"--adapter {name}: was trained with tokens of its own, which vLLM does not know; merge it into "
                    "its base, or take another engine"
                )

    @property
    def cannot(self) -> Mapping[str, str]:
        """Fields of the API that it cannot honour with its arguments."""
        if not any(name.startswith("--spec") for name, _ in _options(self.engine_args)):
            return {}
        reason = "vLLM cannot do that with speculative decoding"
        return {"logit_bias": reason, "min_p": reason}

    @property
    def program(self) -> Program:
        command = [_executable() or "vllm", "serve", str(self.model), "--host", "127.0.0.1", "--port", "{port}"]
        command += ["--served-model-name", _BASE, "--dtype", self.weights, "--max-num-seqs", str(self.slots)]
        command += ["--generation-config", "vllm", "--disable-uvicorn-access-log"]
        command += ["--structured-outputs-config.backend", "guidance"]
        if self.adapters:
            largest = max(_rank(_adapter_config(folder)) for folder in self.adapters.values())
            rank = min((known for known in _RANKS if known >= largest), default=_RANKS[-1])
            modules = [
                json.dumps({"name": self._name(adapter), "path": str(folder)})
                for adapter, folder in self.adapters.items()
            ]
            command += ["--enable-lora", "--max-loras", str(len(modules)), "--max-lora-rank", str(rank)]
            command += ["--lora-modules", *modules]
        command += _split(self.engine_args)
        # vLLM tells its makers about each start, unless it is told not to.
        environment = {"VLLM_NO_USAGE_STATS": os.environ.get("VLLM_NO_USAGE_STATS", "1")}
        return Program("vLLM", command, "VLLM_API_KEY", environment, _complaint)

    def context(self, config: "PreTrainedConfig") -> int:
        """Tokens of a prompt and its answer: as many as the model was made for, unless the arguments say fewer."""
        longest: int = config.get_text_config().max_position_embeddings
        return min(longest, _max_model_len(self.engine_args) or longest)

    def body(self, request: TokenRequest) -> Mapping[str, object]:
        """The JSON of a request to `path`."""
        likeliest_only = request.top_p == 0  # which vLLM refuses
        return {
            "model": self._name(request.adapter),
            "prompt": list(request.prompt),
            "stream": True,
            "max_tokens": request.max_tokens,
            "stop_token_ids": sorted(request.ends),
            "temperature": 0.0 if likeliest_only else request.temperature,
            "top_p": 1.0 if likeliest_only else request.top_p,
            "top_k": request.top_k,
            "min_p": request.min_p,
            "repetition_penalty": request.repetition_penalty,
            "presence_penalty": request.presence_penalty,
            "frequency_penalty": request.frequency_penalty,
            "seed": request.seed,
            "logprobs": request.logprobs,
            # Half a character has no text, so tokens are counted and named by their ids.
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            **({"logit_bias": dict(request.logit_bias)} if request.logit_bias else {}),
            **({} if request.grammar is None else {"structured_outputs": {"grammar": request.grammar}}),
            **({"skip_special_tokens": False} if request.kept else {}),  # all, or none
        }

    def reader(self, request: TokenRequest) -> "_Reader":
        """An `AnswerReader` for the answer to a request."""
        dropped = {id: text for id, text in self.special_tokens.items() if id not in request.kept}
        return _Reader(request, self.token_bytes, dropped if request.kept else {})

    def _name(self, adapter: str | None) -> str:
        """The name in vLLM, which must differ from that of the base, whatever it is."""
        return _BASE if adapter is None else f"adapter {adapter}"


class _Reader:
    """An `AnswerReader` (see `hfchat.engines.dialect`)."""

    def __init__(self, request: TokenRequest, token_bytes: Callable[[int], bytes] | None, dropped: Mapping[int, str]):
        self._dropped = dropped  # special tokens whose texts are not kept, where vLLM sends those of all
        self._ends = request.ends
        self._likeliest = request.logprobs
        self._token_bytes = token_bytes

    def read(self, event: bytes) -> Chunk | None:
        try:
            return self._chunk(json.loads(event))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise EngineFailureError("vLLM sent an event that is not a part of an answer") from error

    def _chunk(self, event: Any) -> Chunk | None:
        if "error" in event:
            raise EngineFailureError(str(event["error"]["message"]))
        if not event["choices"]:
            return None
        (choice,) = event["choices"]
        reason = choice["finish_reason"]
        if reason not in (None, "stop", "length"):
            raise EngineFailureError(f"vLLM ended an answer for another reason: {reason}")
        text, tokens = choice["text"], choice["token_ids"]
        # The end of the turn is no part of the text.
        spoken = tokens[:-1] if reason == "stop" and tokens and tokens[-1] in self._ends else tokens
        for special in self._dropped.keys() & spoken:
            text = text.replace(self._dropped[special], "", spoken.count(special))
        if self._likeliest is None:
            return Chunk(text, len(tokens), reason, ids=tokens)
        logprobs = self._logprobs(choice["logprobs"], len(spoken))
        return Chunk(text, len(tokens), reason, logprobs, ids=tokens)

    def _logprobs(self, logprobs: Any, count: int) -> list[tuple[ScoredText, list[ScoredText]]]:
        """Those of the first tokens of a chunk."""
        scored = []
        for name, logprob, named in zip(
            logprobs["tokens"][:count],
            logprobs["token_logprobs"][:count],
            logprobs["top_logprobs"][:count],
            strict=True,
        ):
            # The chosen token is named as well, where it is not one of the likeliest.
            ranked = sorted(named.items(), key=lambda item: -item[1])[: self._likeliest]
            scored.append((self._scored(name, logprob), [self._scored(*likely) for likely in ranked]))
        return scored

    def _scored(self, name: str, logprob: float) -> ScoredText:
        assert self._token_bytes is not None  # no log probabilities are asked for without it
        code = self._token_bytes(int(name.removeprefix(_TOKEN)))
        return ScoredText(code.decode(errors="replace"), float(logprob), code)


def _split(engine_args: str) -> list[str]:
    try:
        return shlex.split(engine_args)
    except ValueError as error:
        raise UserError(f"--engine-args: {error}; write them as in a shell") from None


def _options(engine_args: str) -> Iterator[tuple[str, str | None]]:
    """The arguments that are options, each with its value; underscores are hyphens for vLLM."""
    for argument, following in pairwise([*_split(engine_args), None]):
        if argument is not None and argument.startswith("--"):
            name, equals, value = argument.partition("=")
            yield name.replace("_", "-"), value if equals else following


def _max_model_len(engine_args: str) -> int | None:
    """The context that the arguments ask for, None if they do not."""
    length = None
    for name, value in _options(engine_args):
        if _LENGTH.startswith(name):
            if value is None or not value.isdecimal() or not int(value):
                raise UserError(f"--engine-args: {_LENGTH} must be a number of tokens such as 8192, not {value}")
            length = int(value)
    return length


def _why_refused(name: str) -> str | None:
    """Why an argument cannot be given to vLLM, None if it can. It may be cut short, as in a shell."""
    for refused, reason in _REFUSED.items():
        if refused.startswith(name) or (refused.endswith("*") and name.startswith(refused[:-1])):
            return reason
    return None


def _adapter_config(folder: Path) -> Any:
    return json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))


def _rank(adapter: Any) -> int:
    """The largest rank of an adapter's matrices, by its configuration."""
    return max(adapter.get("r") or 1, *(adapter.get("rank_pattern") or {}).values(), 1)


def _complaint(lines: Sequence[str]) -> str | None:
    """The line of vLLM's log that says why it has ended: what its parser refuses, or else the last error."""
    reason = death = None
    for line in lines:
        text = _LOG_PREFIX.sub("", line)
        if refused := _ARGUMENT_ERROR.fullmatch(text):
            return f"{refused[1]}; correct --engine-args (`vllm serve --help=all` lists what it knows)"
        error = _VALUE_ERROR.fullmatch(text) or _ERROR.fullmatch(text)
        if error and not _ELSEWHERE.search(text):
            reason = error[1]
        elif _DEATH in text:
            death = text
    return reason or death
