"""What `hfchat serve` loads: a model, and adapters beside it."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfchat.chat_template import check_chat_template
from hfchat.errors import UserError
from hfchat.hub.merging import check_weights, load_base
from hfchat.models import load_model, load_tokenizer, supports_bf16
from hfchat.serving.adapters import beside, load_adapter_tokenizer, parse_adapters
from hfchat.serving.engine import Engine
from hfchat.serving.models import ServedModels
from hfchat.serving.quantization import quantize_int8
from hfchat.serving.transformers_engine import TransformersEngine

if TYPE_CHECKING:
    from hfchat.serving.server import ServerSettings


def served_models(folder: str, settings: "ServerSettings") -> ServedModels:
    """The model and its adapters, to be loaded when the server runs.

    Raises:
        UserError: If something other than their weights is not as it should be.
    """
    tokenizer = load_tokenizer(folder)
    check_chat_template(tokenizer, allow_mismatch=settings.allow_template_mismatch)
    adapters = parse_adapters(settings.adapters)
    if settings.model_id in adapters:
        raise UserError(f"--adapter {settings.model_id}: is the name of the model; choose another")
    if adapters and settings.weights == "int8":
        raise UserError("--weights int8 is not for a model with adapters; leave one of both out")
    tokenizers = {settings.model_id: tokenizer} | {
        name: load_adapter_tokenizer(adapter, folder, settings.allow_template_mismatch)
        for name, adapter in adapters.items()
    }
    if settings.weights == "int8" and torch.cuda.is_available():
        raise UserError("--weights int8 is for CPUs; leave it out on a GPU")

    def load() -> dict[str, Engine]:
        return {
            name: TransformersEngine(model, tokenizers[name], settings.max_concurrent_requests)
            for name, model in _load_models(folder, settings, adapters, tokenizers).items()
        }

    return ServedModels(list(tokenizers), load)


def _load_models(
    folder: str,
    settings: "ServerSettings",
    adapters: Mapping[str, Path],
    tokenizers: Mapping[str, PreTrainedTokenizerBase],
) -> dict[str, PreTrainedModel]:
    """The model and its adapters by their names."""
    in_float32 = settings.weights == "float32" or (settings.weights == "auto" and not supports_bf16())
    dtype = torch.float32 if in_float32 else torch.bfloat16
    if adapters:
        base = load_base(folder)  # as it is stored, because adapters know their base by its weights
        for adapter in adapters.values():
            check_weights(adapter, folder, base)
        base = base.to(dtype)
    else:
        base = load_model(folder, dtype=dtype)
    check_chat_template(tokenizers[settings.model_id], base, allow_mismatch=settings.allow_template_mismatch)
    if settings.weights == "int8":
        quantize_int8(base)
    base = base.to("cuda" if torch.cuda.is_available() else "cpu")
    beside_base = {name: beside(base, adapter, tokenizers[name]) for name, adapter in adapters.items()}
    return {settings.model_id: base, **beside_base}
