"""What `hfchat serve` loads: a model and adapters beside it, or the versions of a registry."""

from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfchat.adapters import check_name, check_weights, load_base
from hfchat.chat_template import check_chat_template
from hfchat.errors import UserError
from hfchat.models import load_model, load_tokenizer, supports_bf16
from hfchat.registry.versions import Registry
from hfchat.serving.engines.adapters import beside, parse_adapters
from hfchat.serving.engines.packing import pack
from hfchat.serving.engines.transformers_engine import TransformersEngine
from hfchat.serving.settings import ServerSettings
from hfchat.serving.versions.following import Follower
from hfchat.serving.versions.models import ServedModels, Version


def served_models(folder: str, settings: ServerSettings) -> ServedModels:
    """The model and its adapters, or the versions of a registry, to be loaded when the server runs.

    Raises:
        UserError: If anything but the weights, which are read later, is wrong.
    """
    if settings.weights == "int8":
        raise UserError("--weights int8: use `--engine llamacpp --weights q8_0` instead, which is faster")

    # Tokenizers load in no time, so what is wrong with them or the options is known before the weights are read.
    tokenizers = {settings.model_id: _load_tokenizer(folder, settings)}
    adapters = parse_adapters(settings.adapters)
    if settings.model_id in adapters:
        raise UserError(f"--adapter {settings.model_id}: this is the name of the model; choose another name")
    for name, adapter in adapters.items():
        check_name(adapter, folder)
        tokenizers[name] = _load_tokenizer(str(adapter), settings)

    # A registry decides itself what is loaded, and when.
    if Registry.is_one(settings.source):
        if adapters:
            raise UserError("--adapter is not for the versions of a registry; add a merged model to it instead")
        return _followed(Registry(settings.source), settings)

    def load() -> dict[str, Version]:
        models = _load_models(folder, settings, adapters, tokenizers)
        return {name: Version(_engine(model, tokenizers[name], settings)) for name, model in models.items()}

    return ServedModels(list(tokenizers), load)


def _followed(registry: Registry, settings: ServerSettings) -> ServedModels:
    def load(folder: Path) -> TransformersEngine:
        tokenizers = {settings.model_id: _load_tokenizer(str(folder), settings)}
        (model,) = _load_models(str(folder), settings, {}, tokenizers).values()
        return _engine(model, tokenizers[settings.model_id], settings)

    follower, name = Follower(registry, load), settings.model_id
    return ServedModels([name], lambda: {name: follower.first()}, lambda models: follower.follow(models, name))


def _load_tokenizer(folder: str, settings: ServerSettings) -> PreTrainedTokenizerBase:
    tokenizer = load_tokenizer(folder)
    check_chat_template(tokenizer, allow_mismatch=settings.allow_template_mismatch)
    return tokenizer


def _engine(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: ServerSettings
) -> TransformersEngine:
    return TransformersEngine(model, tokenizer, settings.max_concurrent_requests)


def _load_models(
    folder: str,
    settings: ServerSettings,
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
    base = base.to("cuda" if torch.cuda.is_available() else "cpu")
    if not adapters:  # they share the base's weights as they are stored
        pack(base)
    beside_base = {name: beside(base, adapter, tokenizers[name]) for name, adapter in adapters.items()}
    return {settings.model_id: base, **beside_base}
