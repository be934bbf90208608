"""Adapters are saved with a record of their base, and merged into it in full precision."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hfchat.adapters import BASE_RECORD, BaseRecord, weights_sha256
from hfchat.chat_template import record_fingerprint
from hfchat.generation import stop_token_ids
from hfchat.models import resolve

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_WRAPPERS = (".base_layer", ".token_adapter", ".original_module")  # what PEFT puts between a module and its weight


def save_adapter(
    model: "PeftModel",
    tokenizer: "PreTrainedTokenizerBase",
    folder: Path,
    base: str,
    revision: str | None,
    stored: "PreTrainedModel",
) -> None:
    """Write an adapter that names its base: in adapter_config.json for PEFT, in base.json with its weights' digest.

    Args:
        model: The trained adapter.
        tokenizer: Saved beside it.
        folder: Where to write.
        base: The base as the user named it.
        revision: Its revision, of a Hub id.
        stored: The base, from `load_base`.
    """
    config = model.active_peft_config
    config.base_model_name_or_path = resolve(base)  # PEFT knows folders and Hub ids only
    config.revision = revision
    # The base has the embeddings; of new tokens, the rows are saved as `trainable_token_indices`.
    model.save_pretrained(folder, save_embedding_layers=False)
    tokenizer.save_pretrained(folder)
    record: BaseRecord = {
        "model_name_or_path": base,
        "revision": revision,
        "commit": getattr(stored.config, "_commit_hash", None),
        "weights_sha256": weights_sha256(stored),
    }
    (folder / BASE_RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def changed_base_weights(model: "PeftModel", stored: "PreTrainedModel", known: int) -> list[str]:
    """Names of the weights of `stored` that the base under a trained adapter does not have, or has with other values.

    Args:
        model: The adapter on its base, not quantised, in any dtype.
        stored: The base, from `load_base`.
        known: Tokens that the base knew before the training; only their embeddings are compared.
    """
    inside = {_unwrapped(name): tensor for name, tensor in model.get_base_model().state_dict().items()}
    embeddings = {id(end.weight) for end in (stored.get_input_embeddings(), stored.get_output_embeddings()) if end}
    changed = []
    for name, tensor in stored.state_dict(keep_vars=True).items():
        rows = slice(known if id(tensor) in embeddings else None)
        used = inside.get(name)
        if used is None or not torch.equal(used[rows].cpu(), tensor.detach()[rows].to(used.dtype)):
            changed.append(name)
    return changed


def prepare_to_save(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
    """Record in the configs what the tokenizer says: its special tokens and the fingerprint of its chat template."""
    record_fingerprint(tokenizer, model)
    stop = sorted(stop_token_ids(model.generation_config, tokenizer))
    model.config.use_cache = True
    model.config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.eos_token_id = stop[0] if len(stop) == 1 else stop
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    if tokenizer.bos_token_id is not None:
        model.config.bos_token_id = model.generation_config.bos_token_id = tokenizer.bos_token_id


def _unwrapped(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name
