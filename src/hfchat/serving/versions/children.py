"""Models on engines that are child processes: llama.cpp's server and vLLM's."""

from collections.abc import Mapping
from pathlib import Path

from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from hfchat.adapters import check_weights, load_base
from hfchat.chat_template import check_chat_template
from hfchat.engines.choice import Choice
from hfchat.engines.dialect import Dialect
from hfchat.engines.llamacpp import LlamaCpp
from hfchat.errors import UserError
from hfchat.gguf.conversion import cached_gguf, local_folder
from hfchat.models import cache_bytes_per_token, load_config
from hfchat.processes import available_bytes
from hfchat.serving.engines.child_engine import Child, ChildEngine
from hfchat.serving.engines.engine import Served
from hfchat.serving.engines.model_sampling import ModelSampling
from hfchat.serving.engines.prompting import Prompting, ends_of
from hfchat.serving.http.limits import EXTRA_PLACES
from hfchat.serving.settings import ServerSettings

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
    if is_file:
        from hfchat.gguf.opening import config_of
    config = config_of(source) if is_file else load_config(str(source))
    check_chat_template(tokenizers[settings.model_id], config, allow_mismatch=settings.allow_template_mismatch)
    if adapters:  # they know their base by its weights
        base = load_base(str(source))
        for adapter in adapters.values():
            check_weights(adapter, folder, base)
        del base
    # And one place for `ready`.
    slots = settings.max_concurrent_requests + EXTRA_PLACES + 1

    dialect: Dialect
    if choice.engine == "llamacpp":
        file = source if is_file else _certified_file(source, choice.weights, settings)
        context = _context(config, file, slots)
        if adapters:
            from hfchat.gguf.conversion import cached_adapter_gguf
        files = {name: cached_adapter_gguf(adapter, source) for name, adapter in adapters.items()}
        program = LlamaCpp(file, slots, context, files)
        dialect, child = program, Child(program.program)
        served = Served("llamacpp", choice.weights, None if is_file else file)
    else:
        from hfchat.engines.vllm import Vllm

        vllm = Vllm(source, slots, choice.weights, settings.engine_args, dict(adapters))
        context = vllm.context(config)
        dialect, child = vllm, Child(vllm.program)
        served = Served("vllm", choice.weights)

    generation = _generation_config(source, config)
    engines = {}
    for name, tokenizer in tokenizers.items():
        sampling = ModelSampling.of(generation, tokenizer.name_or_path)
        ends = ends_of(generation.eos_token_id, tokenizer)
        prompting = Prompting(tokenizer, sampling, ends, config.get_text_config().vocab_size, context)
        engines[name] = ChildEngine(child, dialect, prompting, served, name if name in adapters else None)
    return engines


def _certified_file(source: Path, weights: str, settings: ServerSettings) -> Path:
    """The model as a GGUF file that says what the model says."""
    file = cached_gguf(source, weights)
    return file


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


def _generation_config(source: Path, config: PreTrainedConfig) -> GenerationConfig:
    if (source / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(str(source))
    return GenerationConfig.from_model_config(config)
