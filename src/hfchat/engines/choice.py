"""Which engine answers, and with which weights, where nobody says."""

from dataclasses import dataclass
from typing import Literal

from hfchat.engines import llamacpp, vllm
from hfchat.errors import UserError
from hfchat.gguf.weight_types import WEIGHT_TYPES

EngineName = Literal["transformers", "llamacpp", "vllm"]
# For a small model on two cores, 8 bits are the fastest of all types, and next to what was evaluated.
_GGUF_TYPE = "q8_0"
_TORCH_TYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Choice:
    """An engine.

    Attributes:
        engine: Its name.
        weights: The type of its weights; "auto" leaves it to the engine, or to the file.
        asked_for: Whether somebody asked for this engine; otherwise another one may take its place.
    """

    engine: EngineName
    weights: str
    asked_for: bool


def choose(engine: Literal["auto"] | EngineName, weights: str, model: str, has_gpu: bool) -> Choice:
    """The engine for a model.

    vLLM on a machine with a GPU where it is installed, llama.cpp where only CPUs are and it is installed, else
    transformers; a type of weights that only one of them has decides, and so does a GGUF file.

    Args:
        engine: As asked for.
        weights: As asked for.
        model: A folder, a Hub id or a `.gguf` file.
        has_gpu: Whether this machine has a GPU that PyTorch knows.

    Raises:
        UserError: If what is asked for does not go together, or is not installed.
    """
    is_file = model.endswith(".gguf")
    if is_file and engine in ("transformers", "vllm"):
        raise UserError(f"--engine {engine}: {model} is a file for llama.cpp; leave --engine out")
    if is_file and weights != "auto":
        raise UserError(f"--weights {weights}: {model} has its weights in a type already; leave --weights out")

    # What was asked for, or what only one engine has, is that or an error.
    if engine == "auto" and (is_file or weights in WEIGHT_TYPES):
        engine = "llamacpp"
    if engine != "auto":
        known = WEIGHT_TYPES if engine == "llamacpp" else _TORCH_TYPES
        if weights not in ("auto", *known):
            raise UserError(f"--weights {weights}: --engine {engine} has {', '.join(known)}; choose one of them")
        if engine == "llamacpp":
            llamacpp.check_installed()
        elif engine == "vllm":
            vllm.check_installed()
        return Choice(engine, _weights(engine, weights, is_file), asked_for=True)

    # Otherwise the fastest that is installed.
    if has_gpu and vllm.is_installed():
        return Choice("vllm", weights, asked_for=False)
    if not has_gpu and weights == "auto" and llamacpp.runs_here():
        return Choice("llamacpp", _GGUF_TYPE, asked_for=False)
    return Choice("transformers", weights, asked_for=False)


def _weights(engine: EngineName, weights: str, is_file: bool) -> str:
    return _GGUF_TYPE if engine == "llamacpp" and weights == "auto" and not is_file else weights
