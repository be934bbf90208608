"""What `hfchat serve` loads, on the engine of choice: a model and its adapters, or the versions of a registry."""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from hfchat.adapters import check_name
from hfchat.chat_template import check_chat_template
from hfchat.engines.choice import Choice, choose
from hfchat.engines.vllm import check_arguments
from hfchat.errors import UserError
from hfchat.gguf.opening import tokenizer_of
from hfchat.models import load_tokenizer
from hfchat.registry.versions import Registry
from hfchat.serving.engines.adapters import parse_adapters
from hfchat.serving.engines.engine import Engine
from hfchat.serving.settings import ServerSettings
from hfchat.serving.versions import children, here
from hfchat.serving.versions.following import Follower
from hfchat.serving.versions.models import ServedModels, Version

_LOGGER = logging.getLogger("hfchat.serving")


def served_models(folder: str, settings: ServerSettings) -> ServedModels:
    """The model and its adapters, or the versions of a registry, to be loaded when the server runs.

    Args:
        folder: Where the model is: a folder, a Hub id or a GGUF file.
        settings: How to serve it.

    Raises:
        UserError: If anything but the weights, which are read later, is wrong.
    """
    choice = choose(settings.engine, settings.weights, folder, has_gpu=torch.cuda.is_available())
    # Tokenizers load in no time, so what is wrong with them or the options is known before the weights are read.
    check_arguments(settings.engine_args)
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
        return _followed(Registry(settings.source), settings, choice)

    def load() -> dict[str, Version]:
        engines = _load(folder, settings, choice, adapters, tokenizers)
        return {name: Version(engine) for name, engine in engines.items()}

    return ServedModels(list(tokenizers), load)


def _followed(registry: Registry, settings: ServerSettings, choice: Choice) -> ServedModels:
    def load(folder: Path) -> Engine:
        tokenizers = {settings.model_id: _load_tokenizer(str(folder), settings)}
        (engine,) = _load(str(folder), settings, choice, {}, tokenizers).values()
        return engine

    follower, name = Follower(registry, load), settings.model_id
    return ServedModels([name], lambda: {name: follower.first()}, lambda models: follower.follow(models, name))


def _load_tokenizer(folder: str, settings: ServerSettings) -> PreTrainedTokenizerBase:
    if folder.endswith(".gguf"):
        return tokenizer_of(Path(folder), allow_mismatch=settings.allow_template_mismatch)
    tokenizer = load_tokenizer(folder)
    check_chat_template(tokenizer, allow_mismatch=settings.allow_template_mismatch)
    return tokenizer


def _load(
    folder: str,
    settings: ServerSettings,
    choice: Choice,
    adapters: Mapping[str, Path],
    tokenizers: Mapping[str, PreTrainedTokenizerBase],
) -> Mapping[str, Engine]:
    """The engines of a model and of its adapters by their names.

    Raises:
        UserError: If they cannot be loaded. An engine that nobody has asked for gives way to transformers.
    """
    if choice.engine != "transformers":
        try:
            return children.load(folder, settings, choice, adapters, tokenizers)
        except UserError as error:
            if choice.asked_for:
                raise
            _LOGGER.warning("the engine is transformers, because %s cannot serve this model: %s", choice.engine, error)
    return here.load(folder, settings, choice, adapters, tokenizers)
