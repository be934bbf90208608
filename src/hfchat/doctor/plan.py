"""What a training recipe is going to train, and how, without its weights: from its parsed settings."""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from hfchat.doctor.disk import Disk, checkpoints_held
from hfchat.doctor.duration import occurrences
from hfchat.doctor.machine import Machine, resident_bytes
from hfchat.doctor.memory import (
    Batch,
    Blueprint,
    Memory,
    Numerics,
    evaluation_peaks,
    optimizer_bytes,
    slack_bytes,
    step_peaks,
    trained_bytes,
    weight_bytes,
)
from hfchat.models import VOCABULARY_MULTIPLE, resolve
from hfchat.training.initial_model import new_model

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

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
        tokens: Of the train split; 0 for a stream.
    """

    sequences: int | None
    longest: int
    learned_share: float = 1.0
    tokens: int = 0


@dataclass(frozen=True)
class Plan:
    """A training as the recipe would run it.

    Attributes:
        blueprint: The model.
        batch: Of a forward and backward pass.
        evaluation_batch: Of an evaluation.
        numerics: How both are computed.
        optimizer: `"muon"` or a name of `TrainingArguments.optim`.
        samples: `per_device_train_batch_size`.
        accumulation: Passes per step.
        steps: Of the run; None if the data's size is not known.
        epochs: Of the run.
        evaluations: How many there are.
        saves: How many checkpoints are written.
        save_total_limit: How many of them are kept.
        tokens: That are tokenized to disk.
        merges: Whether an adapter is merged at the end.
    """

    blueprint: Blueprint
    batch: Batch
    evaluation_batch: Batch
    numerics: Numerics
    optimizer: str
    samples: int
    accumulation: int
    steps: int | None
    epochs: float
    evaluations: int
    saves: int
    save_total_limit: int | None
    tokens: int = 0
    merges: bool = False

    def memory(self, libraries: int) -> Memory:
        """Of one process on its own device: nothing is taken to be sharded.

        Args:
            libraries: Bytes of the process before it holds a tensor.
        """
        model = self.blueprint.build()
        gradients = trained_bytes(model)
        step = step_peaks(self.blueprint, self.batch, self.numerics)
        evaluation = evaluation_peaks(self.blueprint, self.evaluation_batch, self.numerics)
        held = gradients if self.accumulation > 1 else 0  # those of the passes before
        # What a step leaves in the allocator serves the small blocks of an evaluation, and not its large ones.
        retained = step.small if self.numerics.device == "cpu" else 0
        return Memory(
            libraries=libraries + _RUNTIME_BYTES[self.numerics.device],
            weights=weight_bytes(model, self.blueprint.quantized_bits),
            gradients=gradients,
            optimizer=optimizer_bytes(model, self.optimizer),
            activations=max(0, step.total + held - gradients),
            slack=slack_bytes(step, self.batch, self.numerics),
            evaluation=max(evaluation.total, retained + evaluation.large),
            export=self._export_bytes(model, libraries) if self.merges else 0,
        )

    def disk(self) -> Disk:
        model = self.blueprint.build()
        trained = trained_bytes(model)
        checkpoint = trained + optimizer_bytes(model, self.optimizer) + _TOKENIZER_BYTES
        outputs = trained + _TOKENIZER_BYTES
        if self.merges:
            outputs += self._parameters(model) * self._stored_bytes + _TOKENIZER_BYTES
        return Disk(
            checkpoint=checkpoint,
            checkpoints=checkpoint * checkpoints_held(self.saves, self.save_total_limit),
            outputs=outputs,
            tokens=self.tokens * (2 if self.blueprint.config.get_text_config().vocab_size <= 2**16 else 4),
        )

    def alternatives(self, libraries: int, available: int) -> list[tuple[str, "Plan"]]:
        """Plans that take less memory, and the settings that make them.

        Args:
            libraries: As of `memory`.
            available: Bytes; of smaller batches, only the largest that fits is named.
        """
        found = []
        if (rows := self._fitting_rows(libraries, available)) < self.batch.rows:
            smaller = self._with_rows(rows)
            per_device = max(1, self.samples * rows // self.batch.rows)
            names = f"per_device_train_batch_size {per_device}, gradient_accumulation_steps {smaller.accumulation}"
            found.append((names, smaller))
        if self.batch.length >= 256:
            half = replace(self.batch, length=self.batch.length // 2)
            found.append((f"{'block_size' if self.batch.predicted is None else 'max_length'} {half.length}",
                          replace(self, batch=half)))  # fmt: skip
        if not self.numerics.checkpointing:
            numerics = replace(self.numerics, checkpointing=True)
            found.append(("gradient_checkpointing true", replace(self, numerics=numerics)))
        return found

    def _with_rows(self, rows: int) -> "Plan":
        batch = replace(self.batch, rows=rows)
        evaluation_batch = replace(self.evaluation_batch, rows=min(rows, self.evaluation_batch.rows))
        accumulation = -(-self.accumulation * self.batch.rows // rows)
        return replace(self, batch=batch, evaluation_batch=evaluation_batch, accumulation=accumulation)

    def _fitting_rows(self, libraries: int, available: int) -> int:
        """The largest half, quarter, ... of the batch that fits; else one row."""
        one, two = (self._with_rows(rows).memory(libraries).peak for rows in (1, 2))
        rows = self.batch.rows
        while rows > 1 and one + (rows - 1) * (two - one) > available:  # nearly so: a first guess
            rows //= 2
        while rows > 1 and self._with_rows(rows).memory(libraries).peak > available:
            rows //= 2
        return rows

    @property
    def _stored_bytes(self) -> int:
        stored = getattr(self.blueprint.config, "dtype", None) or torch.float32
        return stored.itemsize if isinstance(stored, torch.dtype) else 4

    @staticmethod
    def _parameters(model: Any) -> int:
        return sum(weight.numel() for name, weight in model.named_parameters() if "lora_" not in name)

    def _export_bytes(self, model: Any, libraries: int) -> int:
        """Base, adapter on it, merged and rounded model, and in a second process the one that is loaded again."""
        return _EXPORTED_COPIES * 4 * self._parameters(model) + libraries


def libraries_bytes(machine: Machine, use_cpu: bool) -> int:
    """What a process of a recipe holds before its first tensor: as much as this one, which has imported the same."""
    return 0 if torch.cuda.is_available() and not use_cpu else resident_bytes()


def plan_pretraining(args: Any, tokenizer: "PreTrainedTokenizerBase", texts: Texts) -> Plan:
    """
    Args:
        args: `PretrainArguments`, as they were parsed.
        tokenizer: The run's, with the tokens it adds.
        texts: Its corpus.
    """
    if args.model_name_or_path is None:
        with torch.device("meta"):
            config = new_model(args, tokenizer).config
    else:
        config = _base_config(args.model_name_or_path, "main", len(tokenizer))
    blueprint = Blueprint(config, torch.float32, args.attn_implementation)
    args = args.derive(blueprint.build(), texts.sequences)
    masked = "flash" not in args.attn_implementation
    rows = args.per_device_train_batch_size
    return _plan(
        args,
        blueprint,
        Batch(rows, args.block_size, masked=masked, chunked_loss=args.chunked_loss),
        Batch(args.per_device_eval_batch_size, args.block_size, masked=masked, chunked_loss=args.chunked_loss),
        "muon" if args.optimizer == "muon" else str(getattr(args.optim, "value", args.optim)),
        texts,
    )


def plan_tuning(args: Any, model_args: Any, tokenizer: "PreTrainedTokenizerBase", texts: Texts) -> Plan:
    """
    Args:
        args: `FinetuneArguments` or `AlignArguments`.
        model_args: `ModelArguments`.
        tokenizer: The run's, with the tokens it adds.
        texts: Its conversations, or preferences.
    """
    from trl import get_peft_config

    config = _base_config(model_args.model_name_or_path, model_args.model_revision, len(tokenizer))
    name = model_args.dtype or ("bfloat16" if args.bf16 else "float32")
    dtype = getattr(torch, name) if name != "auto" else getattr(config, "dtype", None) or torch.float32
    bits = 8 if model_args.load_in_8bit else None
    if model_args.load_in_4bit:
        bits = 4 if model_args.use_bnb_nested_quant else 4.5
    blueprint = Blueprint(
        config,
        dtype if model_args.use_peft else torch.float32,
        model_args.attn_implementation,
        get_peft_config(model_args),
        bits,
    )
    rows, evaluation_rows = args.per_device_train_batch_size, args.per_device_eval_batch_size
    packed = getattr(args, "packing", False) or getattr(args, "padding_free", False)
    length = args.max_length if packed else min(args.max_length, texts.longest)
    if getattr(args, "method", None) == "dpo":  # chosen and rejected go through the model together
        rows, evaluation_rows = 2 * rows, 2 * evaluation_rows
    predicted = max(1, round(texts.learned_share * length))
    varying = not (packed and getattr(args, "pad_to_multiple_of", None))
    return _plan(
        args,
        blueprint,
        Batch(rows, length, predicted, varying=varying),
        Batch(evaluation_rows, length),
        str(getattr(args.optim, "value", args.optim)),
        texts,
        merges=blueprint.adapter is not None,
    )


def _plan(
    args: Any,
    blueprint: Blueprint,
    batch: Batch,
    evaluation_batch: Batch,
    optimizer: str,
    texts: Texts,
    *,
    merges: bool = False,
) -> Plan:
    steps, epochs = args.max_steps if args.max_steps > 0 else None, float(args.num_train_epochs)
    per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    if texts.sequences is not None:
        in_epoch = max(1, math.ceil(texts.sequences / per_step))
        if steps is None:
            steps = math.ceil(in_epoch * epochs)
        epochs = steps / in_epoch
    device = "cuda" if torch.cuda.is_available() and not args.use_cpu else "cpu"
    autocast = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    counted = steps or 1
    evaluates, saves = (getattr(value, "value", value) for value in (args.eval_strategy, args.save_strategy))
    return Plan(
        blueprint=blueprint,
        batch=batch,
        evaluation_batch=evaluation_batch,
        numerics=Numerics(device, autocast, bool(args.gradient_checkpointing)),
        optimizer=optimizer,
        samples=args.per_device_train_batch_size,
        accumulation=args.gradient_accumulation_steps,
        steps=steps,
        epochs=epochs,
        evaluations=occurrences(evaluates, args.eval_steps or args.logging_steps, counted, epochs, at_the_end=True),
        saves=occurrences(saves, args.save_steps, counted, epochs, at_the_end=True),
        save_total_limit=args.save_total_limit,
        tokens=texts.tokens,
        merges=merges,
    )


def _base_config(name: str, revision: str, tokens: int) -> "PreTrainedConfig":
    """Of a model that gets rows of embeddings for new tokens (`hfchat.models.embed_new_tokens`)."""
    from transformers import AutoConfig

    from hfchat.errors import UserError

    try:
        config = AutoConfig.from_pretrained(resolve(name), revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"model_name_or_path {name}: its config cannot be loaded: {str(error).splitlines()[0]}"
        ) from error
    text = config.get_text_config()
    if tokens > text.vocab_size:
        text.vocab_size = -(-tokens // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    return config
