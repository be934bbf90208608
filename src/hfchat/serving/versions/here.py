"""Models on the engine in this process: transformers' continuous batching."""

from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfchat.adapters import check_weights, load_base
from hfchat.chat_template import check_chat_template
from hfchat.engines.choice import Choice
from hfchat.models import load_model, supports_bf16
from hfchat.serving.engines.adapters import beside
from hfchat.serving.engines.packing import pack
from hfchat.serving.engines.transformers_engine import TransformersEngine
from hfchat.serving.settings import ServerSettings


def load(
    folder: str,
    settings: ServerSettings,
    choice: Choice,
    adapters: Mapping[str, Path],
    tokenizers: Mapping[str, PreTrainedTokenizerBase],
) -> dict[str, TransformersEngine]:
    """The engines of a model and of its adapters by their names, which have not been started.

    Raises:
        UserError: If they cannot be loaded.
    """
    in_float32 = choice.weights == "float32" or (choice.weights == "auto" and not supports_bf16())
    dtype = torch.float32 if in_float32 else torch.bfloat16
    models = _load_models(folder, settings, dtype, adapters, tokenizers)
    return {
        name: TransformersEngine(model, tokenizers[name], settings.max_concurrent_requests)
        for name, model in models.items()
    }


def _load_models(
    folder: str,
    settings: ServerSettings,
    dtype: torch.dtype,
    adapters: Mapping[str, Path],
    tokenizers: Mapping[str, PreTrainedTokenizerBase],
) -> dict[str, PreTrainedModel]:
    if adapters:
        base = load_base(folder)  # as it is stored, because adapters know their base by its weights
        for adapter in adapters.values():
            check_weights(adapter, folder, base)
        base = base.to(dtype)
    else:
        base = load_model(folder, dtype=dtype)
    tokenizer, allowed = tokenizers[settings.model_id], settings.allow_template_mismatch
    check_chat_template(tokenizer, base.config, allow_mismatch=allowed)
    base = base.to("cuda" if torch.cuda.is_available() else "cpu")
    if not adapters:  # they share the base's weights as they are stored
        pack(base)
    beside_base = {name: beside(base, adapter, tokenizers[name]) for name, adapter in adapters.items()}
    return {settings.model_id: base, **beside_base}
