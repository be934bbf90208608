"""An adapter and its base: which weights it was trained on, found again and checked, and the adapter put on them."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

import torch

from hfchat.errors import UserError
from hfchat.models import embed_new_tokens, load_model, resolve

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BASE_RECORD = "base.json"  # beside an adapter: which weights it was trained on
_DROPPED_BITS = {torch.bfloat16: 16, torch.float16: 13}  # of the 23 that a float32 has after the point


def weight_digests(model: "PreTrainedModel") -> dict[str, str]:
    """SHA-256 of each tensor of the state dict: its dtype, shape and bytes. A tied tensor is read once."""
    digests, seen = {}, {}
    for name, tensor in sorted(model.state_dict().items()):
        key = (tensor.data_ptr(), tensor.shape)
        if key not in seen:
            content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
            digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(content)
            seen[key] = digest.hexdigest()
        digests[name] = seen[key]
    return digests


def weights_sha256(model: "PreTrainedModel") -> str:
    """One digest of all weights, whatever the files that they came from."""
    return hashlib.sha256(json.dumps(weight_digests(model), sort_keys=True).encode()).hexdigest()


def is_quantized(model: "PreTrainedModel | PeftModel") -> bool:
    """Whether its weights are in 4 or 8 bits."""
    return getattr(model, "is_quantized", False) or getattr(model.config, "quantization_config", None) is not None


def load_base(base: str, revision: str | None = None) -> "PreTrainedModel":
    """The base as it is stored, in its own dtype.

    Raises:
        UserError: If it is stored in 4 or 8 bits: merging into those would lose most of the adapter to rounding.
    """
    model = load_model(base, dtype="auto", revision=revision or "main")
    if is_quantized(model):
        raise UserError(f"{base}: is stored quantised, and adapters are merged in full precision; pass the original")
    return model


class BaseRecord(TypedDict):
    """What an adapter says about its base; the digest of the base's weights is there if hfchat made the adapter."""

    model_name_or_path: str
    revision: str | None
    commit: NotRequired[str | None]
    weights_sha256: NotRequired[str]


def read_base(adapter: Path) -> BaseRecord:
    """What an adapter says about its base, in `base.json` or else in PEFT's own `adapter_config.json`."""
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    record: BaseRecord = {
        "model_name_or_path": config.get("base_model_name_or_path"),
        "revision": config.get("revision"),
    }
    if (adapter / BASE_RECORD).is_file():
        record |= json.loads((adapter / BASE_RECORD).read_text(encoding="utf-8"))
    return record


def load_base_of(adapter: Path, base: str | None = None, revision: str | None = None) -> "PreTrainedModel":
    """The base that an adapter was trained on.

    Args:
        adapter: Its folder.
        base: Where to find the base, by default where the adapter says.
        revision: Revision, where the base is a Hub id; by default the one that the adapter names.

    Raises:
        UserError: If the base is another one: its weights differ or, where the adapter records no digest of them, its
            name or revision.
    """
    record = read_base(adapter)
    name = base or record["model_name_or_path"]
    if not name:
        raise UserError(f"{adapter}/adapter_config.json: names no base_model_name_or_path; pass --base")
    if revision is not None and "weights_sha256" not in record and revision != (record["revision"] or "main"):
        raise UserError(
            f"--revision {revision}: the adapter {adapter} was trained on revision {record['revision'] or 'main'} of "
            f"{record['model_name_or_path']}; pass that"
        )
    check_name(adapter, name)
    stored = load_base(name, revision or record["revision"])
    check_weights(adapter, name, stored)
    return stored


def check_name(adapter: Path, base: str) -> None:
    """Refuse a base of another name than the adapter's, where the adapter does not know its base by its weights.

    Raises:
        UserError: If it has another name.
    """
    record = read_base(adapter)
    trained_on = record["model_name_or_path"]
    if "weights_sha256" not in record and resolve(base) != trained_on:
        raise UserError(f"{base}: the adapter {adapter} was trained on {trained_on}; take that as its base")


def check_weights(adapter: Path, base: str, stored: "PreTrainedModel") -> None:
    """Refuse a base with other weights than those that the adapter was trained on, if the adapter records which.

    Args:
        adapter: Its folder.
        base: Where the base is from.
        stored: The base, from `load_base`.

    Raises:
        UserError: If its weights are others.
    """
    record = read_base(adapter)
    if record.get("weights_sha256") not in (None, weights_sha256(stored)):
        at = f" at revision {record['revision']}" if record["revision"] else ""
        raise UserError(
            f"{base}: its weights are not those that the adapter {adapter} was trained on, which are of "
            f"{record['model_name_or_path']}{at}; take the base and the revision of the training"
        )


def put_adapter(stored: "PreTrainedModel", adapter: Path, tokenizer: "PreTrainedTokenizerBase") -> "PeftModel":
    """An adapter on its base, in float32: adding a small update to bfloat16 weights would lose most to rounding.

    Args:
        stored: From `load_base`; becomes part of the result, with embeddings for all tokens.
        adapter: Folder of the adapter.
        tokenizer: Its own.
    """
    from peft import PeftConfig

    model = stored.float()
    embed_new_tokens(model, len(tokenizer) - len(new_tokens(PeftConfig.from_pretrained(adapter))), len(tokenizer))
    return load_adapter(model, adapter)


def load_adapter(model: "PreTrainedModel", adapter: Path) -> "PeftModel":
    """The adapter of a folder on a model that has embeddings for all its tokens.

    Raises:
        UserError: If its weights are not safetensors: PEFT would read a pickle, which can run code.
    """
    from peft import PeftModel

    if not (adapter / "adapter_model.safetensors").is_file():
        raise UserError(f"{adapter}: has no adapter_model.safetensors, and weights in pickles are not read")
    return PeftModel.from_pretrained(model, adapter).eval()


def new_tokens(config: Any) -> list[int]:
    """The ids whose embeddings were trained with an adapter.

    Args:
        config: A PEFT config.
    """
    indices = getattr(config, "trainable_token_indices", None) or []
    return sorted(set().union(*indices.values())) if isinstance(indices, dict) else list(indices)


def round_weights(model: "PreTrainedModel", dtypes: dict[str, torch.dtype], default: torch.dtype) -> None:
    """Round the weights in place to the dtypes that they are stored in, see `round_stochastically`.

    `Module.to` would cast the frequencies of rotary embeddings too, which loading leaves in float32: the model would
    answer otherwise than when it is loaded again.

    Args:
        model: Changed in place.
        dtypes: By name of the weight.
        default: The dtype of the weights that are not in `dtypes`.
    """
    generator = torch.Generator().manual_seed(0)  # the same weights are rounded to the same
    for name, parameter in model.named_parameters():
        parameter.data = round_stochastically(parameter.data, dtypes.get(name, default), generator)
    model.config.dtype = default


def round_stochastically(weight: torch.Tensor, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """Round each number up or down, the likelier the nearer, so that the mean of many is kept.

    Rounded to the nearest, what a short training at a small learning rate adds to a weight is lost where it is less
    than half of the distance to the next number, and with it all that was learned: of SmolLM2-135M in bfloat16 after
    60 steps of DPO, 0.03 nats per token (benchmarks/RESULTS.md). See arXiv:1502.02551, section 3.

    Args:
        weight: In any floating-point dtype. A number that `dtype` has stays as it is.
        dtype: The new one.
        generator: What draws the random numbers, on the CPU.
    """
    if weight.dtype != torch.float32 or dtype not in _DROPPED_BITS:
        return weight.to(dtype)
    dropped = 1 << _DROPPED_BITS[dtype]
    chance = torch.randint(dropped, weight.shape, generator=generator, dtype=torch.int32).to(weight.device)
    rounded = ((weight.view(torch.int32) + chance) & -dropped).view(torch.float32)
    return torch.where(weight.isfinite(), rounded, weight).to(dtype)
