"""Which weights are trained: a LoRA adapter on a frozen base, on one in 4 or 8 bits, or all of them."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trl import ModelConfig

from hfchat.chat_template import fingerprint, recorded_fingerprint
from hfchat.config import setting
from hfchat.errors import UserError
from hfchat.models import embed_new_tokens, is_tied, load_model, supports_bf16

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class ModelArguments(ModelConfig):
    """TRL's `ModelConfig` with the project's defaults: LoRA on all linear layers."""

    model_name_or_path: str | None = setting(
        "HuggingFaceTB/SmolLM2-135M-Instruct", "Model to start from: folder or Hub id."
    )
    dtype: str | None = setting(
        None,
        "Type of the weights that are not trained; by default bfloat16 where the machine computes in it.",
        choices=["auto", "bfloat16", "float16", "float32"],
    )
    use_peft: bool = setting(True, "Train a LoRA adapter; false trains all weights.")
    lora_dropout: float = setting(0.0, "Dropout of the adapter's input.")
    lora_target_modules: list[str] | None = setting(["all-linear"], "Layers that get an adapter.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.use_peft and (self.load_in_4bit or self.load_in_8bit):
            raise ValueError("use_peft: weights in 4 or 8 bits cannot be trained; train an adapter on them")
        if (self.load_in_4bit or self.load_in_8bit) and importlib.util.find_spec("bitsandbytes") is None:
            raise ValueError("load_in_4bit, load_in_8bit: need bitsandbytes; pip install 'hfchat[quantization]'")
        if self.use_peft and self.lora_r < 1:
            raise ValueError(f"lora_r: must be at least 1, not {self.lora_r}")
        if self.use_dora and not self.use_peft:
            raise ValueError("use_dora: is a kind of adapter, so it needs use_peft")


def load_trainable(
    args: ModelArguments, base: str, tokenizer: "PreTrainedTokenizerBase", new_tokens: Sequence[int] = ()
) -> "PreTrainedModel | PeftModel":
    """The base with what is trained of it: a new adapter, or all weights.

    Weights that are trained are in float32, because a small step on bfloat16 weights would be lost to rounding. The
    rows of new tokens, in the embeddings and in the output layer, are trained with the adapter and saved in it.

    Args:
        args: What to train.
        base: Folder or Hub id, see `hfchat.models.resolve`.
        tokenizer: That of the base, with `new_tokens` added.
        new_tokens: Ids that the base has no embeddings for; they start as the mean of the others.

    Raises:
        UserError: If the base cannot be loaded so, if it is an adapter itself, if it has none of the modules that are
            to be adapted, or if an adapter cannot train the rows of its new tokens.
    """
    from trl import get_peft_config, get_quantization_config

    if (Path(base) / "adapter_config.json").is_file():
        raise UserError(f"model_name_or_path {base}: is an adapter; merge it first, with `hfchat certify {base}`")
    if Path(base).is_dir() and args.model_revision != "main":
        raise UserError(f"model_revision {args.model_revision}: {base} is a folder, which has no revisions")
    # The base, with rows for all tokens.
    dtype = args.dtype or ("bfloat16" if supports_bf16() else "float32")
    quantization = get_quantization_config(args)
    model = load_model(
        base,
        revision=args.model_revision,
        dtype=dtype if args.use_peft else "float32",
        attn_implementation=args.attn_implementation,
        **({"quantization_config": quantization} if quantization else {}),
    )
    embed_new_tokens(model, len(tokenizer) - len(new_tokens), len(tokenizer))
    if not args.use_peft:
        return model
    # The adapter.
    from peft import get_peft_model, prepare_model_for_kbit_training

    if quantization:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    config = get_peft_config(args)
    config.revision = args.model_revision
    if new_tokens:
        config.trainable_token_indices = _rows_to_train(model, new_tokens, config.modules_to_save or ())
    try:
        trained = get_peft_model(model, config)
    except ValueError as error:  # such as `lora_target_modules` that the model does not have
        raise UserError(f"the adapter does not fit {base}: {error}") from error
    if not hasattr(trained.get_output_embeddings(), "bias"):
        # TRL's fused head reads it, and PEFT's layer with trained rows does not pass it on (TRL 1.16, PEFT 0.21).
        trained.get_output_embeddings().register_parameter("bias", None)
    return trained


def _rows_to_train(
    model: "PreTrainedModel", new_tokens: Sequence[int], saved_whole: Sequence[str]
) -> list[int] | dict[str, list[int]]:
    """What PEFT calls `trainable_token_indices`: a list where output layer and embeddings are one, else by module.

    PEFT takes a list for the embeddings alone. The output layer's rows would then stay the mean of the others, and the
    model could never tell the end of a turn from other new tokens: it would not stop.

    Args:
        model: It has rows for the new tokens.
        new_tokens: Their ids.
        saved_whole: PEFT's `modules_to_save`: all rows of these are trained anyway.

    Raises:
        UserError: If PEFT cannot train them.
    """
    # Both ends of the model, but for what is trained in all of its rows.
    head = model.get_output_embeddings()
    names = {module: name for name, module in model.named_modules()}
    ends = {names[end]: list(new_tokens) for end in (model.get_input_embeddings(), head)}
    rows = {name: ids for name, ids in ends.items() if not any(name.endswith(whole) for whole in saved_whole)}
    if names[model.get_input_embeddings()] not in rows:
        raise UserError(
            f"lora_modules_to_save {' '.join(saved_whole)}: holds the embeddings, whose rows for the new tokens "
            "are trained already; leave them out, or train all weights with use_peft false"
        )
    if getattr(head, "bias", None) is not None:  # PEFT's layer with trained rows computes none
        raise UserError(
            f"{model.name_or_path}: its output layer has a bias, and beside one an adapter cannot train the "
            "rows of new tokens; train all weights with use_peft false, or start from a base that knows <|im_start|>, "
            "<|im_end|>"
        )
    return list(new_tokens) if is_tied(model) else rows


def describe_trainable(
    model: "PreTrainedModel | PeftModel",
    args: "ModelArguments",
    learning_rate: float,
    tokenizer: "PreTrainedTokenizerBase",
    new_tokens: Sequence[int] = (),
) -> str:
    """What is trained of which base, and whose chat template it is, in two lines.

    Args:
        model: From `load_trainable`.
        args: What it was made by.
        learning_rate: The one of the run.
        tokenizer: From `hfchat.training.supervision.load_chat_tokenizer`, before a fingerprint is recorded in it.
        new_tokens: Those that were added for the template.
    """
    # The first line: what is trained, and of what.
    method = "all weights"
    if args.use_peft:
        method = f"{'DoRA' if args.use_dora else 'rsLoRA' if args.use_rslora else 'LoRA'} of rank {args.lora_r}"
    bits = next((f" in {bits} bits" for bits in (4, 8) if getattr(args, f"load_in_{bits}bit")), "")
    commit = getattr(model.config, "_commit_hash", None) or args.model_revision
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    # The second line: the template.
    source = "that of the base" if recorded_fingerprint(tokenizer) == fingerprint(tokenizer) else "introduced here"
    added = f", with embeddings for {len(new_tokens)} new tokens" if new_tokens else ""
    return (
        f"{method} on {args.model_name_or_path} (revision {commit}){bits}: {trained:,} weights are trained, "
        f"learning rate {learning_rate:.2g}\nchat template {fingerprint(tokenizer)}: {source}{added}"
    )
