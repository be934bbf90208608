"""Matrix products in 8 bits, on GPUs that have them."""

from typing import TYPE_CHECKING

import torch

from hfchat.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def use_fp8(model: "PreTrainedModel") -> None:
    """Replace the linear layers between embeddings and head by torchao's `Float8Linear`; weights stay as they are.

    Raises:
        UserError: On a device without 8-bit tensor cores (before Ada and Hopper), without torchao, or for a model that
            has no linear layers to replace (GPT-2's are convolutions).
    """
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9):
        raise UserError("fp8: this device has no 8-bit tensor cores (Ada, Hopper and newer GPUs do); leave it out")
    try:
        from torchao.float8 import convert_to_float8_training
    except ImportError as error:
        raise UserError("fp8: torchao is not installed; run `pip install 'hfchat[fp8]'`") from error
    head = model.get_output_embeddings()
    # The products work on tiles of 16; the head is left out, as its loss suffers (arXiv:2310.18313, section 3).
    converted = {
        module
        for module in model.modules()
        if isinstance(module, torch.nn.Linear)
        and module is not head
        and module.in_features % 16 == module.out_features % 16 == 0
    }
    if not converted:
        raise UserError(f"fp8: {type(model).__name__} has no linear layers that torchao could convert; leave it out")
    convert_to_float8_training(model, module_filter_fn=lambda module, _: module in converted)
