"""Models on engines that are child processes: llama.cpp's server and vLLM's."""

from collections.abc import Mapping
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from hfchat.adapters import check_weights, load_base
from hfchat.chat_template import check_chat_template
from hfchat.engines.choice import Choice
from hfchat.engines.dialect import Dialect
from hfchat.engines.llamacpp import LlamaCpp
from hfchat.engines.vllm import Vllm
from hfchat.errors import UserError
from hfchat.gguf.conversion import cached_adapter_gguf, local_folder
from hfchat.gguf.opening import config_of, weights_of
from hfchat.gguf.price import priced_gguf
from hfchat.models import cache_bytes_per_token, generation_config, load_config, supports_bf16
from hfchat.processes import available_bytes
from hfchat.serving.engines.child_engine import Child, ChildEngine
from hfchat.serving.engines.engine import EngineInfo
from hfchat.serving.engines.model_sampling import ModelSampling
from hfchat.serving.engines.prompting import Prompting, ends_of
from hfchat.serving.engines.text import TokenBytes
from hfchat.serving.http.limits import EXTRA_PLACES
from hfchat.serving.settings import ServerSettings
from hfchat.token_ids import special_tokens

_CACHE_SHARE = 0.25  # the cache's part of the free memory, as of the engine in this process
_CACHE_BYTES = 2  # of a number in llama.cpp's cache: float16
_LEAST_CONTEXT = 256  # llama.cpp's own granularity


def load(
    folder: str,
    settings: ServerSettings,
    choice: Choice,
    adapters: Mapping[str, Path],
    tokenizers: Mapping[str, PreTrainedTokenizerBase],
) -> dict[str, ChildEngine]:
    """The engines of a model and of its adapters by their names, which share a child that has not been started.

    Raises:
        UserError: If the engine cannot serve this model.
    """
    is_file = folder.endswith(".gguf")
    source = Path(folder) if is_file else local_folder(folder)
    config = config_of(source) if is_file else load_config(str(source))
    check_chat_template(tokenizers[settings.model_id], config, allow_mismatch=settings.allow_template_mismatch)
    if adapters:  # they know their base by its weights
        base = load_base(str(source))
        for adapter in adapters.values():
            check_weights(adapter, folder, base)
        del base
    engine: Dialect
    if choice.engine == "llamacpp":
        engine, info, context = _llamacpp(source, config, settings, choice, adapters, tokenizers[settings.model_id])
    else:
        engine, info, context = _vllm(source, config, settings, choice, adapters, tokenizers[settings.model_id])
    child = Child(engine.program)

    generation = generation_config(source, config)
    engines = {}
    for name, tokenizer in tokenizers.items():
        sampling = ModelSampling.of(generation, tokenizer.name_or_path)
        ends = ends_of(generation.eos_token_id, tokenizer)
        prompting = Prompting(tokenizer, sampling, ends, config.get_text_config().vocab_size, context)
        engines[name] = ChildEngine(child, engine, prompting, info, name if name in adapters else None)
    return engines


def _llamacpp(
    source: Path,
    config: PreTrainedConfig,
    settings: ServerSettings,
    choice: Choice,
    adapters: Mapping[str, Path],
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[LlamaCpp, EngineInfo, int]:
    """llama.cpp for a folder or a file, what it is, and its context."""
    if source.is_file():
        file, info = source, EngineInfo("llamacpp", weights_of(source))
    else:
        file, _ = priced_gguf(source, choice.weights, max_drift=settings.max_drift)
        info = EngineInfo("llamacpp", choice.weights, file)
    slots = _slots(settings)
    context = _context(config, file, slots)
    files = {name: cached_adapter_gguf(adapter, source) for name, adapter in adapters.items()}
    return LlamaCpp(file, slots, context, files, special_tokens(tokenizer)), info, context


def _vllm(
    source: Path,
    config: PreTrainedConfig,
    settings: ServerSettings,
    choice: Choice,
    adapters: Mapping[str, Path],
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[Vllm, EngineInfo, int]:
    """vLLM for a folder, what it is, and its context."""
    auto = "bfloat16" if supports_bf16() else "float32"
    weights = auto if choice.weights == "auto" else choice.weights
    # Adapters with tokens of their own are refused, so the tokens of all are those of the base.
    token_bytes, special = TokenBytes(tokenizer.backend_tokenizer), special_tokens(tokenizer)
    vllm = Vllm(source, _slots(settings), weights, settings.engine_args, adapters, token_bytes, special)
    return vllm, EngineInfo("vllm", weights), vllm.context(config)


def _slots(settings: ServerSettings) -> int:
    return settings.max_concurrent_requests + EXTRA_PLACES + 1  # and one for `ready`


def _context(config: PreTrainedConfig, file: Path, slots: int) -> int:
    """Tokens of a prompt and its answer, such that all slots have so many within a share of the free memory.

    Raises:
        UserError: If the memory does not hold the weights, or no context of use beside them.
    """
    weights, free = file.stat().st_size, available_bytes()
    if weights > free:
        raise UserError(
            f"{file}: its {weights / 2**30:.1f} GiB do not fit into the {free / 2**30:.1f} GiB of free memory; free "
            "some, or choose a type of fewer bits with --weights"
        )
    affordable = (free - weights) * _CACHE_SHARE / cache_bytes_per_token(config, _CACHE_BYTES) / slots
    context = min(config.get_text_config().max_position_embeddings, int(affordable))
    if context < _LEAST_CONTEXT and context < config.get_text_config().max_position_embeddings:
        raise UserError(
            f"not enough free memory for {slots} answers at a time beside {file}; free some, or choose less with "
            "--max-concurrent-requests"
        )
    return context
