"""Adapters beside their base: each answers under a name of its own, and all share the base's weights in memory."""

import copy
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from hfchat.adapters import load_adapter, new_tokens
from hfchat.errors import UserError
from hfchat.models import embed_new_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def parse_adapters(entries: Sequence[str]) -> dict[str, Path]:
    """The adapters' folders by name, from `NAME=FOLDER` each.

    Raises:
        UserError: If an entry is not valid, two have the same name, or a folder has no adapter.
    """
    adapters: dict[str, Path] = {}
    for entry in entries:
        name, _, folder = entry.partition("=")
        if not name or not folder:
            raise UserError(f"--adapter {entry}: must be NAME=FOLDER, e.g. mine=outputs/mine/assistant/adapter")
        if name in adapters:
            raise UserError(f"--adapter {entry}: two adapters have the name {name}; give each a name of its own")
        if not (Path(folder) / "adapter_config.json").is_file():
            raise UserError(f"--adapter {entry}: the folder has no adapter_config.json, so no adapter is in it")
        adapters[name] = Path(folder)
    return adapters


def beside(base: "PreTrainedModel", adapter: Path, tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedModel":
    """The model with an adapter, which leaves the base as it is and shares its weights.

    Args:
        base: A model whose weights are not quantised.
        adapter: Folder of the adapter.
        tokenizer: The adapter's own.
    """
    from peft import PeftConfig

    added = len(new_tokens(PeftConfig.from_pretrained(adapter)))
    shared = {id(tensor): tensor for tensor in chain(base.parameters(), base.buffers())}
    if added:  # the new tokens get rows of their own
        for end in (base.get_input_embeddings(), base.get_output_embeddings()):
            shared.pop(id(end.weight), None)
    model = copy.deepcopy(base, shared)
    embed_new_tokens(model, len(tokenizer) - added, len(tokenizer))
    return load_adapter(model, adapter).get_base_model()
