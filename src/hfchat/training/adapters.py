"""Save a LoRA adapter, and the model that it makes when merged into its base."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hfchat.chat_template import record_fingerprint
from hfchat.models import load_model

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Mean KL divergence (nats per token) between adapter and merged model beyond which they are not the same model.
# Rounding the merged weights to bfloat16 alone costs about 1e-3 on SmolLM2-135M.
MAX_DRIFT = 0.02


def merge_adapter(
    model: "PeftModel", base_name: str, tokenizer: "PreTrainedTokenizerBase", folder: Path, probe: list[list[int]]
) -> float:
    """Write `adapter/` and `merged/`, both with the tokenizer, and compare what was saved with what was trained.

    The merge is done in float32, as adding a small update to bfloat16 weights would lose most of it to rounding;
    the result is stored in the dtype of the base.

    Args:
        model: The trained adapter on its base.
        base_name: Folder or Hub id of the base.
        tokenizer: Saved beside each.
        folder: Where to write.
        probe: Token ids of some real sequences to compare on.

    Returns:
        Mean KL divergence in nats per token, from adapter on base to the merged model as reloaded.

    Raises:
        RuntimeError: If it is more than `MAX_DRIFT`.
    """
    from peft import PeftModel

    model.save_pretrained(folder / "adapter")
    tokenizer.save_pretrained(folder / "adapter")
    stored_dtype = load_model(base_name, dtype="auto").dtype
    base = load_model(base_name, dtype=torch.float32)
    record_fingerprint(tokenizer, base)
    base.config.eos_token_id = base.generation_config.eos_token_id = tokenizer.eos_token_id
    base.config.pad_token_id = base.generation_config.pad_token_id = tokenizer.pad_token_id
    trained = PeftModel.from_pretrained(base, folder / "adapter").eval()
    expected = [_log_probs(trained, ids) for ids in probe]

    merged = trained.merge_and_unload().to(stored_dtype)
    merged.save_pretrained(folder / "merged")
    tokenizer.save_pretrained(folder / "merged")

    reloaded = load_model(str(folder / "merged"), dtype=torch.float32).eval()
    divergences = [
        torch.nn.functional.kl_div(_log_probs(reloaded, ids), before, log_target=True, reduction="none").sum(-1)
        for ids, before in zip(probe, expected, strict=True)
    ]
    drift = torch.cat(divergences).mean().item()
    if drift > MAX_DRIFT:
        raise RuntimeError(f"the merged model is not the trained one: they differ by {drift:.3f} nats per token")
    return drift


@torch.no_grad()
def _log_probs(model: "PreTrainedModel", ids: list[int]) -> torch.Tensor:
    """Shape `(sequence, vocabulary)`."""
    return model(input_ids=torch.tensor([ids], device=model.device)).logits[0].float().log_softmax(-1)
