"""Greedy answers to a batch of prompts."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from transformers import GenerationConfig, LogitsProcessorList

from hfchat.models import load_config

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase


def load_generation_config(name: str) -> GenerationConfig:
    """How a model, by its resolved name, says that it generates; its weights are not loaded."""
    try:
        return GenerationConfig.from_pretrained(name)
    except OSError:  # as transformers does where a model has no generation_config.json
        return GenerationConfig.from_model_config(load_config(name))


def stop_token_ids(config: GenerationConfig, tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """The tokens that end a turn: the tokenizer's EOS, and those that the model's `generation_config.json` names."""
    configured = config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return {id for id in (*ids, tokenizer.eos_token_id) if id is not None}


def set_greedy(
    model: "PreTrainedModel | PeftModel",
    tokenizer: "PreTrainedTokenizerBase",
    max_new_tokens: int,
    stop: Collection[int] = (),
) -> None:
    """Make `model.generate` take the likeliest token, always.

    The configuration is replaced, not overridden: `generate` would fill what it does not name (a repetition penalty,
    say) from the model's own, and models would be compared under different rules.

    Args:
        model: Its `generation_config` is replaced.
        tokenizer: The one of the model.
        max_new_tokens: Longest answer.
        stop: Ids that end it, by default `stop_token_ids`.
    """
    stop = sorted(stop or stop_token_ids(model.generation_config, tokenizer))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stop[0]
    model.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, use_cache=True, eos_token_id=stop, pad_token_id=pad
    )


@contextmanager
def answering(
    model: "PreTrainedModel | PeftModel", tokenizer: "PreTrainedTokenizerBase", max_new_tokens: int, stop: list[int]
) -> Iterator[None]:
    """Within, `model` answers greedily and without dropout, see `set_greedy`; then it is as it was."""
    training, configured = model.training, model.generation_config
    model.eval()
    try:
        set_greedy(model, tokenizer, max_new_tokens, stop)
        yield
    finally:
        model.train(training)
        model.generation_config = configured
        if hasattr(model, "get_base_model"):  # PEFT hands its own configuration down when it generates
            model.get_base_model().generation_config = configured


@torch.inference_mode()
def generate_answers(
    model: "PreTrainedModel", prompts: list[list[int]], processors: "Sequence[LogitsProcessor]" = ()
) -> list[list[int]]:
    """Continue each prompt up to and including its end-of-turn token, or `max_new_tokens`; see `set_greedy`.

    Args:
        model: A causal language model.
        prompts: Token ids, of any lengths. They are padded on the left, where the mask hides it.
        processors: Change the logits of the next tokens; they see prompts and answers with their padding.

    Returns:
        For each prompt the ids of its answer, without padding.
    """
    config = model.generation_config
    longest = max(map(len, prompts))
    ids = [[config.pad_token_id] * (longest - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    output = model.generate(
        input_ids=torch.tensor(ids, device=model.device),
        attention_mask=torch.tensor(mask, device=model.device),
        logits_processor=LogitsProcessorList(processors),
    )
    return [_until_stop(answer, config.eos_token_id) for answer in output[:, longest:].tolist()]


def _until_stop(ids: list[int], stop: list[int]) -> list[int]:
    end = next((position for position, id in enumerate(ids) if id in stop), len(ids))
    return ids[: end + 1]
