"""What a training recipe is going to train, and how, without its weights: from its parsed settings."""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from hfchat.doctor.disk import Disk, checkpoints_held
from hfchat.doctor.duration import occurrences
from hfchat.doctor.memory import (
    Memory,
    Step,
    evaluation_bytes,
    optimizer_bytes,
    slack_bytes,
    step_bytes,
    trained_bytes,
    weight_bytes,
)
from hfchat.models import VOCABULARY_MULTIPLE, load_config
from hfchat.training.initial_model import new_model
from hfchat.training.run_arguments import steps_per_epoch

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


# What a process comes to hold, beyond its imports and its tensors, by its first step: compiled kernels, buffers of
# its threads. Measured on a CPU, with SmolLM2-135M and torch 2.13; a guess for the context of a GPU.
_RUNTIME_BYTES = {"cpu": 65 * 2**20, "cuda": 550 * 2**20}
# What `hfchat.export.certificate.export` comes to hold, in copies of the base in float32. Measured: the end of the
# demo's fine-tuning, 4.04 GiB with its second process.
_EXPORTED_COPIES = 5
_TOKENIZER_BYTES = 4 * 2**20  # beside a model or a checkpoint


@dataclass(frozen=True)
class Texts:
    """What is known of the data before the run.

    Attributes:
        sequences: To train on: blocks or packed rows; None if unknown.
        longest: Tokens of the longest row.
        learned_share: Share of tokens whose logits are made.
        tokens: Tokens of the train split; 0 for a stream.
    """

    sequences: int | None
    longest: int
    learned_share: float = 1.0
    tokens: int = 0


@dataclass(frozen=True)
class RunPlan:
    """A training as the recipe would run it.

    Attributes:
        model: On the meta device, with its adapter if one is trained.
        quantized_bits: Bits of a weight in the linear layers, see `weight_bytes`; None if they are not quantized.
        device: `"cpu"` or `"cuda"`.
        step: A pass of the training.
        evaluation: A pass of an evaluation.
        optimizer: `"muon"` or a name of `TrainingArguments.optim`.
        samples: `per_device_train_batch_size`, of which a step may make more than one row each.
        length_key: The setting that says how long rows are.
        steps: How many steps the run has; 1 where that follows from data that nobody has counted.
        evaluations: How many evaluations there are.
        saves: How many checkpoints are written.
        save_total_limit: How many of them are kept.
        tokens: How many tokens are written to disk.
    """

    model: "PreTrainedModel"
    quantized_bits: float | None
    device: str
    step: Step
    evaluation: Step
    optimizer: str
    samples: int
    length_key: str
    steps: int
    evaluations: int
    saves: int
    save_total_limit: int | None
    tokens: int = 0

    @property
    def merges(self) -> bool:
        """Whether an adapter is merged at the end."""
        return hasattr(self.model, "peft_config")

    def memory(self, libraries: int) -> Memory:
        """Memory of one process on its own device: nothing is taken to be sharded.

        Args:
            libraries: Bytes of the process before it holds a tensor.
        """
        gradients = trained_bytes(self.model)
        step = step_bytes(self.model, self.step)
        exported = _EXPORTED_COPIES * 4 * self._parameters + libraries if self.merges else 0
        return Memory(
            libraries=libraries + _RUNTIME_BYTES[self.device],
            weights=weight_bytes(self.model, self.quantized_bits),
            gradients=gradients,
            optimizer=optimizer_bytes(self.model, self.optimizer),
            # Activations are freed while gradients are made, except that those of the passes before are there already.
            activations=step if self.step.accumulation > 1 else max(0, step - gradients),
            slack=slack_bytes(step, self.step),
            evaluation=evaluation_bytes(self.model, self.evaluation),
            export=exported,
        )

    def disk(self) -> Disk:
        """What the run writes: checkpoints, the model, for an adapter also the merged model, and tokens."""
        config = self.model.config
        trained = trained_bytes(self.model)
        checkpoint = trained + optimizer_bytes(self.model, self.optimizer) + _TOKENIZER_BYTES
        outputs = trained + _TOKENIZER_BYTES
        if self.merges:
            stored = getattr(config, "dtype", None)
            each = stored.itemsize if isinstance(stored, torch.dtype) else 4
            outputs += self._parameters * each + _TOKENIZER_BYTES
        return Disk(
            checkpoint=checkpoint,
            checkpoints=checkpoint * checkpoints_held(self.saves, self.save_total_limit),
            outputs=outputs,
            tokens=self.tokens * (2 if config.get_text_config().vocab_size <= 2**16 else 4),
        )

    def alternatives(self, libraries: int, available: int) -> "list[tuple[str, RunPlan]]":
        """Plans that take less memory, and the settings that make them.

        Args:
            libraries: As for `memory`.
            available: Bytes; of smaller batches, only the largest that fits is named.
        """
        plans = []
        smaller = self
        while smaller.step.rows > 1 and smaller.memory(libraries).peak > available:
            smaller = self._with_rows(smaller.step.rows // 2)
        if smaller is not self:
            samples, accumulation = self.samples * smaller.step.rows // self.step.rows, smaller.step.accumulation
            names = f"per_device_train_batch_size {max(1, samples)}, gradient_accumulation_steps {accumulation}"
            plans.append((names, smaller))
        if self.step.length >= 256:
            half, logits = self.step.length // 2, self.step.logits // 2
            shorter = replace(self, step=replace(self.step, length=half, logits=logits))
            plans.append((f"{self.length_key} {half}", shorter))
        if not self.step.checkpointing:
            plans.append(("gradient_checkpointing true", replace(self, step=replace(self.step, checkpointing=True))))
        return plans

    def _with_rows(self, rows: int) -> "RunPlan":
        accumulation = -(-self.step.accumulation * self.step.rows // rows)
        evaluation = replace(self.evaluation, rows=min(rows, self.evaluation.rows))
        return replace(self, step=replace(self.step, rows=rows, accumulation=accumulation), evaluation=evaluation)

    @property
    def _parameters(self) -> int:
        return sum(weight.numel() for name, weight in self.model.named_parameters() if "lora_" not in name)


def plan_pretraining(
    args: Any,
    tokenizer: "PreTrainedTokenizerBase",
    texts: Texts,
    processes: int | None = None,
    gpu_bytes: int | None = None,
) -> RunPlan:
    """Plan a pretraining.

    Args:
        args: `PretrainArguments`, as they were parsed.
        tokenizer: The run's, with the tokens it adds.
        texts: Its corpus.
        processes: As for `PretrainArguments.derive`.
        gpu_bytes: The same.
    """
    if args.model_name_or_path is None:
        with torch.device("meta"):
            model = new_model(args, tokenizer)
    else:
        model = _without_weights(_base_config(args.model_name_or_path, "main", len(tokenizer)), torch.float32)
    args = args.derive(model, texts.sequences, processes, gpu_bytes)
    logits = 0 if args.chunked_loss else args.block_size
    value_bytes = 2 if args.bf16 or args.fp16 else 4
    evaluation = Step(args.per_device_eval_batch_size, args.block_size, logits, value_bytes)
    step = replace(
        evaluation,
        rows=args.per_device_train_batch_size,
        checkpointing=bool(args.gradient_checkpointing),
        accumulation=args.gradient_accumulation_steps,
    )
    optimizer = "muon" if args.optimizer == "muon" else _text(args.optim)
    return _plan(args, model, None, step, evaluation, optimizer, "block_size", texts)


def plan_tuning(
    args: Any,
    model_args: Any,
    tokenizer: "PreTrainedTokenizerBase",
    texts: Texts,
    config: "PreTrainedConfig | None" = None,
) -> RunPlan:
    """Plan a fine-tuning or a preference tuning.

    Args:
        args: `FinetuneArguments` or `AlignArguments`.
        model_args: `ModelArguments`.
        tokenizer: The run's, with the tokens it adds.
        texts: Its conversations, or preferences.
        config: That of the model; by default it is read.
    """
    from peft import get_peft_model
    from trl import get_peft_config

    if config is None:
        config = _base_config(model_args.model_name_or_path, model_args.model_revision, len(tokenizer))
    name = model_args.dtype or ("bfloat16" if args.bf16 else "float32")
    dtype = getattr(torch, name) if name != "auto" else getattr(config, "dtype", None) or torch.float32
    bits: float | None = 8 if model_args.load_in_8bit else None
    if model_args.load_in_4bit:
        bits = 4 if model_args.use_bnb_nested_quant else 4.5
    model = _without_weights(config, dtype if model_args.use_peft else torch.float32)
    if (adapter := get_peft_config(model_args)) is not None:
        with torch.device("meta"):
            model = get_peft_model(model, adapter)

    # Packed rows are full; others are as long as the longest of the batch.
    packed = getattr(args, "packing", False) or getattr(args, "padding_free", False)
    length = args.max_length if packed else min(args.max_length, texts.longest)
    rows = 2 if getattr(args, "method", None) == "dpo" else 1  # chosen and rejected go through the model together
    value_bytes = 2 if args.bf16 or args.fp16 or dtype.itemsize == 2 else 4
    step = Step(
        rows * args.per_device_train_batch_size,
        length,
        max(1, round(texts.learned_share * length)),
        value_bytes,
        checkpointing=bool(args.gradient_checkpointing),
        accumulation=args.gradient_accumulation_steps,
        varying=_device(args) == "cpu" and not (packed and getattr(args, "pad_to_multiple_of", None)),
    )
    evaluation = Step(rows * args.per_device_eval_batch_size, length, length, value_bytes)
    return _plan(args, model, bits, step, evaluation, _text(args.optim), "max_length", texts)


def _plan(
    args: Any,
    model: "PreTrainedModel",
    quantized_bits: float | None,
    step: Step,
    evaluation: Step,
    optimizer: str,
    length_key: str,
    texts: Texts,
) -> RunPlan:
    """Add how often the run evaluates and saves."""
    # `Trainer` counts the steps of an epoch only when it has the data.
    steps, epochs = args.max_steps, float(args.num_train_epochs)
    if texts.sequences is not None:
        in_epoch = steps_per_epoch(args, texts.sequences)
        steps = steps if steps > 0 else math.ceil(in_epoch * epochs)
        epochs = steps / in_epoch
    steps = max(1, steps)
    every = args.eval_steps or args.logging_steps
    return RunPlan(
        model,
        quantized_bits,
        _device(args),
        step,
        evaluation,
        optimizer,
        samples=args.per_device_train_batch_size,
        length_key=length_key,
        steps=steps,
        evaluations=occurrences(_text(args.eval_strategy), every, steps, epochs, at_the_end=True),
        saves=occurrences(_text(args.save_strategy), args.save_steps, steps, epochs, at_the_end=True),
        save_total_limit=args.save_total_limit,
        tokens=texts.tokens,
    )


def _text(value: object) -> str:
    """A setting of `TrainingArguments`, some of which become members of an enumeration."""
    return str(getattr(value, "value", value))


def _device(args: Any) -> str:
    return "cuda" if torch.cuda.is_available() and not args.use_cpu else "cpu"


def _without_weights(config: "PreTrainedConfig", dtype: torch.dtype) -> "PreTrainedModel":
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)


def _base_config(name: str, revision: str, tokens: int) -> "PreTrainedConfig":
    """The config of a model that gets rows of embeddings for new tokens (`hfchat.models.embed_new_tokens`)."""
    config = load_config(name, revision=revision)
    text = config.get_text_config()
    if tokens > text.vocab_size:
        text.vocab_size = -(-tokens // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    return config
