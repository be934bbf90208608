"""Which adapters llama.cpp can take beside their base."""

import json
from pathlib import Path

from hfchat.errors import UserError

_NOT_IN_GGUF = {
    "use_dora": "is trained with DoRA",
    "modules_to_save": "brings whole modules (modules_to_save)",
    "trainable_token_indices": "brings embeddings of new tokens",
    "fan_in_fan_out": "is on transposed weights (fan_in_fan_out)",
    "lora_bias": "brings biases",
    "alora_invocation_tokens": "is an aLoRA",
    "target_parameters": "is on parameters of experts",
}


def check_adapter(adapter: Path) -> None:
    """Refuse an adapter that no GGUF file can hold.

    Raises:
        UserError: Says why, and what to do.
    """
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    reasons = [reason for key, reason in _NOT_IN_GGUF.items() if config.get(key)]
    if config.get("peft_type") != "LORA":
        reasons.insert(0, f"is {config.get('peft_type')} and not LORA")
    if config.get("bias", "none") != "none":
        reasons.append("brings biases")
    if not (adapter / "adapter_model.safetensors").is_file():
        raise UserError(f"{adapter}: has no adapter_model.safetensors, and weights in pickles are not read")
    if reasons:
        raise UserError(
            f"{adapter}: llama.cpp cannot take it beside its base, because it {' and '.join(reasons)}; merge it with "
            f"`hfchat certify {adapter}`, and serve the merged model"
        )
