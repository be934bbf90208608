"""A LoRA adapter as a GGUF file beside that of its base: `python -m hfchat.gguf.lora ADAPTER BASE FILE`.

The wheel of llama.cpp's converter lacks its `convert_lora_to_gguf.py`; here the converter's own class for the
architecture names and turns the two matrices of each weight, as it does the weight itself.
"""

import json
import logging
import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hfchat.errors import UserError
from hfchat.gguf.converter import register_architecture
from hfchat.gguf.process import as_process

if TYPE_CHECKING:
    from conversion.base import ModelBase
    from peft import LoraConfig

_MATRIX = re.compile(r"base_model\.model\.(.+)\.lora_(A|B)\.weight")
_BLOCK = re.compile(r"\.(\d+)\.")


def write_adapter(adapter: Path, base: Path, file: Path) -> None:
    """Write a PEFT adapter as a GGUF file.

    Args:
        adapter: Its folder.
        base: The folder of the model that it was trained on.
        file: To write.

    Raises:
        UserError: If llama.cpp does not know the architecture, or if one of its weights is not as in the base.
    """
    from conversion import get_model_class
    from gguf import GGUFWriter, LlamaFileType
    from peft import LoraConfig

    register_architecture(str(base))
    (architecture,) = json.loads((base / "config.json").read_text(encoding="utf-8"))["architectures"]
    model = get_model_class(architecture)(base, LlamaFileType.ALL_F32, file)
    config = LoraConfig.from_pretrained(adapter)

    writer = GGUFWriter(file, model.gguf_writer.arch)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(config.lora_alpha))
    for name, (a, b) in _matrices(adapter).items():
        b = b * _correction(config, name, rank=len(a))
        converted = _converted(model, f"{name}.weight", a, b)
        for matrix, tensor in (("a", a), ("b", converted[1])):
            writer.add_tensor(f"{converted[0]}.lora_{matrix}", tensor.float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _matrices(adapter: Path) -> Mapping[str, tuple[torch.Tensor, torch.Tensor]]:
    """The two matrices of each module by its name: `(rank, in)` and `(out, rank)`."""
    from safetensors.torch import load_file

    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in load_file(adapter / "adapter_model.safetensors").items():
        match = _MATRIX.fullmatch(key)
        if match is None:
            raise UserError(f"its weight {key} is not a matrix of LoRA; merge the adapter with `hfchat certify`")
        found.setdefault(match[1], {})[match[2]] = tensor.float()
    return {name: (pair["A"], pair["B"]) for name, pair in found.items()}


def _correction(config: "LoraConfig", name: str, rank: int) -> float:
    """What B is multiplied by so that llama.cpp's scale (alpha / rank, with one alpha for all) becomes PEFT's."""
    alpha = next((own for key, own in (config.alpha_pattern or {}).items() if _names(key, name)), config.lora_alpha)
    scale = alpha / math.sqrt(rank) if config.use_rslora else alpha / rank
    return scale * rank / config.lora_alpha


def _names(key: str, name: str) -> bool:
    return re.fullmatch(rf"(.*\.)?({key})", name) is not None


def _converted(model: "ModelBase", name: str, a: torch.Tensor, b: torch.Tensor) -> tuple[str, torch.Tensor]:
    """llama.cpp's name of a weight, and B as the converter would turn the rows of the weight."""
    block = _BLOCK.search(name)
    number = int(block[1]) if block else None
    turned_b = list(model.modify_tensors(b, name, number))
    turned = list(model.modify_tensors(b @ a, name, number))
    # The converter may split a weight or turn its columns too, which B alone cannot follow.
    same = len(turned) == len(turned_b) == 1 and torch.allclose(turned[0][1], turned_b[0][1] @ a, atol=1e-5)
    if not same:
        raise UserError(f"llama.cpp keeps {name} in another form; merge the adapter with `hfchat certify`")
    gguf_name, matrix = turned_b[0]
    return gguf_name, matrix


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)  # the converter's lines
    as_process(lambda: write_adapter(*map(Path, sys.argv[1:])))
