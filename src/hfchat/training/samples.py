"""What a model writes while it is trained."""

from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerState


class PrintSamples(TrainerCallback):
    """After each evaluation, prints how the model continues some prompts (greedily).

    Args:
        tokenizer: The model's.
        prompts: What to continue.
        max_new_tokens: Length of a continuation.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], max_new_tokens: int = 32):
        self.tokenizer = tokenizer
        self.prompts = prompts
        self.max_new_tokens = max_new_tokens

    def on_evaluate(
        self, args: object, state: TrainerState, control: object, model: Any = None, **kwargs: object
    ) -> None:
        if not state.is_world_process_zero:
            return
        was_training = model.training
        model.eval()
        for prompt in self.prompts:
            inputs = self.tokenizer(prompt, return_tensors="pt", return_token_type_ids=False).to(model.device)
            context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
            room = self.max_new_tokens if context is None else context - inputs["input_ids"].shape[1]
            with torch.no_grad():
                ids = model.generate(
                    **inputs,
                    max_new_tokens=max(1, min(self.max_new_tokens, room)),
                    do_sample=False,
                    pad_token_id=self.tokenizer.pad_token_id,
                )
            text = self.tokenizer.decode(ids[0], skip_special_tokens=True)
            tqdm.write(f"  step {state.global_step:>5} | {' '.join(text.split())}")
        model.train(was_training)
