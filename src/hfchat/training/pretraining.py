"""Settings and `Trainer` of pretraining: what one dial derives, checkpoints that hold, and what is measured."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, parse_flag_from_env
from torch.utils.data import DataLoader
from transformers import ProgressCallback, Trainer, TrainingArguments, default_data_collator
from transformers.trainer_utils import SchedulerType
from transformers.utils import is_flash_attn_2_available

from hfchat.errors import UserError
from hfchat.models import trains_faster_in_bf16
from hfchat.training.bits_per_byte import (
    bits_per_byte,
    negative_log_likelihood,
    sums_of_sequences,
    unknown_tokens,
)
from hfchat.training.checkpoints import CheckpointMixin
from hfchat.training.dial import Plan
from hfchat.training.optimizer import MuonWithAdamW, split_parameters
from hfchat.training.packing import collate_for_flash_attention
from hfchat.training.progress import LossSpikes, PretrainProgress
from hfchat.training.samples import PrintSamples
from hfchat.training.throughput import Throughput, flops_per_token

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hfchat.training.corpus import Corpus


@dataclass
class PretrainArguments(TrainingArguments):
    """`TrainingArguments` with the defaults of pretraining, and where the model and its data come from.

    What is None is derived: from the depth by `hfchat.training.dial`, or from the machine.
    """

    dataset_name: str = field(
        default="outputs/demo/corpus", metadata={"help": "Corpus: a folder, file or Hub id.", "identity": False}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration, for a Hub id."})
    text_column: str = field(default="text", metadata={"help": "Its column of text."})
    streaming: bool = field(default=False, metadata={"help": "Tokenize while training, for what no disk holds."})
    validation_documents: int = field(
        default=1000, metadata={"help": "Held out from the front of a corpus that has no validation split."}
    )
    tokenizer_name: str | None = field(
        default=None,
        metadata={"help": "Tokenizer; with model_name_or_path, by default the model's own.", "identity": False},
    )
    add_tokens: list[str] = field(
        default_factory=list, metadata={"help": "Special tokens to add, e.g. those of the chat template."}
    )
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Start from this model, not from scratch.", "identity": False}
    )
    depth: int = field(default=4, metadata={"help": "From scratch: layers. All that is not set follows from it."})
    architecture: Literal["llama", "gpt2"] = field(default="llama", metadata={"help": "From scratch: which."})
    tie_word_embeddings: bool = field(default=True, metadata={"help": "From scratch: one matrix for both ends."})
    dropout: float = field(default=0.0, metadata={"help": "From scratch: useful where text is seen many times."})
    block_size: int = field(default=512, metadata={"help": "Tokens per sequence."})
    optimizer: Literal["muon", "adamw"] | None = field(
        default=None, metadata={"help": "By default Muon from scratch, AdamW (see optim) from a model."}
    )
    embedding_learning_rate: float | None = field(
        default=None, metadata={"help": "With Muon: AdamW's rate for embeddings and gains; by default from the depth."}
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "By default flash_attention_2 where flash-attn is installed, else sdpa."}
    )
    chunked_loss: bool = field(
        default=False, metadata={"help": "Never hold all logits at once: less memory with a large vocabulary."}
    )
    fp8: bool = field(default=False, metadata={"help": "Matrix products in 8 bits (torchao); from Hopper GPUs on."})
    sample_prompts: list[str] = field(
        default_factory=lambda: ["The function returns", "This library"],
        metadata={"help": "Continued at evaluations."},
    )
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Replace an output made otherwise."})

    bf16: bool | None = field(default=None, metadata={"help": "By default where the machine is faster with it."})
    torch_compile: bool | None = field(
        default=None, metadata={"help": "By default on GPUs; what cannot be compiled runs as it is."}
    )
    learning_rate: float | None = field(default=None, metadata={"help": "By default from the depth, or 1e-4."})
    weight_decay: float | None = field(
        default=None, metadata={"help": "Of the matrices between embeddings and head; by default 0.1."}
    )
    adam_beta2: float = field(default=0.95, metadata={"help": "As in GPT-3 (arXiv:2005.14165)."})
    lr_scheduler_type: str = field(default="linear", metadata={"help": "Schedule of the learning rate."})
    warmup_steps: float = field(default=0.03, metadata={"help": "Steps, or below 1 a share of them."})
    per_device_train_batch_size: int | None = field(
        default=None, metadata={"help": "By default, if accumulation is not set either, what the depth asks for."}
    )
    per_device_eval_batch_size: int | None = field(
        default=None, metadata={"help": "By default that of the training, than which it needs less memory."}
    )
    gradient_accumulation_steps: int | None = field(
        default=None, metadata={"help": "By default 1, or if the batch is not set either, what the depth asks for."}
    )
    num_train_epochs: float = field(
        default=-1, metadata={"help": "By default as long as 20 tokens per parameter take (arXiv:2203.15556)."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Look, after every step, for parameters that it left out: there are none."}
    )
    logging_steps: float = field(default=10, metadata={"help": "Steps between losses."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Hide losses that are not numbers."})
    eval_strategy: str = field(default="steps", metadata={"help": "When to evaluate."})
    eval_steps: float | None = field(default=0.2, metadata={"help": "Steps, or below 1 a share of them."})
    save_steps: float = field(default=0.2, metadata={"help": "Steps, or below 1 a share of them."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept."})

    def __post_init__(self):
        if self.output_dir is None:
            raise ValueError("output_dir: say where the model goes, e.g. --output_dir outputs/mine/base")
        if self.model_name_or_path is None and self.tokenizer_name is None:
            raise ValueError("tokenizer_name: needed to train from scratch, e.g. --tokenizer_name tokenizer")
        if self.block_size < 8:
            raise ValueError(f"block_size must be at least 8, not {self.block_size}")
        if self.fp8 and self.block_size % 16:
            raise ValueError(
                f"fp8: works on tiles of 16, so block_size must be a multiple of that, not {self.block_size}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, not {self.dropout}")
        if self.validation_documents < 1:
            raise ValueError(f"validation_documents must be at least 1, not {self.validation_documents}")
        if self.streaming and self.max_steps <= 0 and self.num_train_epochs > 0:
            raise ValueError("num_train_epochs: the length of a stream is not known; set max_steps")
        if self.optimizer is None:
            self.optimizer = "adamw" if self.model_name_or_path else "muon"
        accelerated = torch.accelerator.is_available() and not self.use_cpu
        self.use_cpu = not accelerated
        if self.bf16 is None:
            self.bf16 = not self.fp16 and trains_faster_in_bf16()
        if self.torch_compile is None:
            self.torch_compile = accelerated
        if self.attn_implementation is None:
            self.attn_implementation = "flash_attention_2" if accelerated and is_flash_attn_2_available() else "sdpa"
        self._batch_is_set = self.per_device_train_batch_size or self.gradient_accumulation_steps
        self._eval_batch_is_set = self.per_device_eval_batch_size
        self.per_device_train_batch_size = self.per_device_train_batch_size or 1
        self.per_device_eval_batch_size = self.per_device_eval_batch_size or self.per_device_train_batch_size
        self.gradient_accumulation_steps = self.gradient_accumulation_steps or 1
        super().__post_init__()

    @property
    def tokens_per_step(self) -> int:
        return self.block_size * self.train_batch_size * self.gradient_accumulation_steps * self.world_size

    def derive(self, model: "PreTrainedModel", blocks: int | None) -> None:
        """Fill what is not set: from the size of the model; for one that is trained already, not the learning rate.

        Args:
            model: That is to be trained.
            blocks: Sequences of the corpus; None for a stream.
        """
        by_epochs = self.max_steps <= 0 and self.num_train_epochs > 0
        if by_epochs:
            tokens = round(self.num_train_epochs * blocks * self.block_size)
        else:
            tokens = self.max_steps * self.tokens_per_step if self.max_steps > 0 and self._batch_is_set else None
        plan = Plan.of(model, tokens)
        if not self._batch_is_set:
            sequences = max(1, round(plan.batch_tokens / self.block_size / self.world_size))
            at_once = max(1, self._tokens_at_once(model) // self.block_size)
            self.gradient_accumulation_steps = -(-sequences // at_once)
            self.per_device_train_batch_size = -(-sequences // self.gradient_accumulation_steps)
        if not self._eval_batch_is_set:
            self.per_device_eval_batch_size = self.per_device_train_batch_size
        if by_epochs:  # each ends with a step, if need be a smaller one
            self.max_steps = math.ceil(self.num_train_epochs * -(-blocks * self.block_size // self.tokens_per_step))
        elif self.max_steps <= 0:
            self.max_steps = math.ceil(plan.tokens / self.tokens_per_step)
        if self.learning_rate is None:
            from_scratch = plan.learning_rate(self.optimizer, self.tokens_per_step)
            self.learning_rate = 1e-4 if self.model_name_or_path else from_scratch
        if self.embedding_learning_rate is None:
            from_scratch = plan.embedding_learning_rate(self.tokens_per_step)
            self.embedding_learning_rate = self.learning_rate if self.model_name_or_path else from_scratch
        if self.weight_decay is None:
            self.weight_decay = plan.weight_decay
        if self.lr_scheduler_type == SchedulerType.WARMUP_STABLE_DECAY and not self.lr_scheduler_kwargs:
            # The shortest decay that reaches the loss of a full one, in the form that they found better than a line
            # (Haegele et al., arXiv:2405.18392, figure 5 and section 3).
            self.lr_scheduler_kwargs = {"num_decay_steps": math.ceil(0.2 * self.max_steps), "decay_type": "1-sqrt"}

    def _tokens_at_once(self, model: "PreTrainedModel") -> int:
        """What fits into a forward and backward pass: on a GPU, the activations of half its memory."""
        if self.use_cpu or not torch.cuda.is_available():
            return 4096
        config = model.config.get_text_config()
        # In bytes (Korthikanti et al., arXiv:2205.05198, table 2, without what attention does not keep), and the
        # logits in bfloat16 and float32 with their gradients.
        activations = 34 * config.hidden_size * config.num_hidden_layers
        logits = 0 if self.chunked_loss else 12 * config.vocab_size
        return torch.cuda.get_device_properties(self.device).total_memory // 2 // (activations + logits)

    def describe(self, model: "PreTrainedModel") -> str:
        """What is going to be trained, and how, in two lines."""
        rates = f"learning rate {self.learning_rate:.2g}"
        if self.optimizer == "muon":
            rates += f" ({self.embedding_learning_rate:.2g} for embeddings)"
        factors = [f"{self.train_batch_size} x {self.block_size}"]
        factors += [f"{self.gradient_accumulation_steps} accumulated"] if self.gradient_accumulation_steps > 1 else []
        factors += [f"{self.world_size} processes"] if self.world_size > 1 else []
        flops = flops_per_token(model, self.block_size) * self.max_steps * self.tokens_per_step
        return (
            f"{type(model).__name__}: {model.config.num_hidden_layers} layers, {model.config.hidden_size} wide, "
            f"{model.num_parameters():,} parameters\n"
            f"{self.max_steps:,} steps of {self.tokens_per_step:,} tokens ({' x '.join(factors)}), {self.optimizer}, "
            f"{rates}, weight decay {self.weight_decay:g}, {flops:.1e} FLOP"
        )


class PretrainTrainer(CheckpointMixin, Trainer):
    """`Trainer` for the packed sequences of a corpus.

    Args:
        model: What to train.
        args: Its settings, complete.
        corpus: What to train and validate on.
        tokenizer: Saved beside the model.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        args: PretrainArguments,
        corpus: "Corpus",
        tokenizer: "PreTrainedTokenizerBase",
    ):
        # Left alone, `Trainer` would drop `shift_labels`, which no model names in its signature, and models would
        # shift the labels once more: they would learn the token after the next.
        args.remove_unused_columns = False
        args.ignore_data_skip = args.streaming  # the stream itself goes on where it was
        # Given a tokenizer, it would collate with the tokenizer's `pad`, which adds an attention mask; with a mask,
        # transformers does not look for packed sequences, and documents would see each other.
        super().__init__(
            model=model,
            args=args,
            data_collator=collate_for_flash_attention
            if "flash" in args.attn_implementation
            else default_data_collator,
            train_dataset=corpus.train,
            eval_dataset=corpus.validation,
            processing_class=tokenizer,
            compute_metrics=bits_per_byte(corpus.validation.num_bytes),
            callbacks=[LossSpikes()],
        )
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):  # else no process has all the weights
            self.add_callback(PrintSamples(tokenizer, args.sample_prompts))
        self.throughput = Throughput(model, args.block_size, args.tokens_per_step, args.device, args.world_size)
        self.add_callback(self.throughput)
        if self.pop_callback(ProgressCallback):
            self.add_callback(PretrainProgress())
        unknown, total = unknown_tokens(corpus.validation.tokens, tokenizer), len(corpus.validation.tokens)
        if unknown and self.is_world_process_zero():
            print(
                f"{unknown:,} of the {total:,} validation tokens are {tokenizer.unk_token}, which costs next to "
                "nothing: the bits per byte below do not compare with those of another tokenizer"
            )

    def create_accelerator_and_postprocess(self) -> None:
        state = PartialState()
        sharded = self.args.fsdp or parse_flag_from_env("ACCELERATE_USE_FSDP")
        if sharded and state.distributed_type is DistributedType.MULTI_CPU:
            # Asked to shard over CPUs, accelerate silently copies the model to each, though it can do as it is asked.
            state.distributed_type = DistributedType.MULTI_GPU
        super().create_accelerator_and_postprocess()

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> Any:
        if resume_from_checkpoint and self.args.streaming:
            self.train_dataset.resume(Path(resume_from_checkpoint) / self._stream_file)
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def get_train_dataloader(self) -> DataLoader:
        if not self.args.streaming:
            return super().get_train_dataloader()
        # Each process has its share of the stream; accelerate would share it out once more.
        return DataLoader(self.train_dataset, self.args.train_batch_size, collate_fn=self.data_collator)

    @property
    def _stream_file(self) -> str:
        return f"stream-{self.args.process_index}-of-{self.args.world_size}.json"

    @property
    def _blocks_trained(self) -> int:
        return self.state.global_step * self.args.gradient_accumulation_steps * self.args.train_batch_size

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self.args.streaming:
            self.train_dataset.save(Path(output_dir) / self._stream_file, self._blocks_trained)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with self.throughput.paused():
            super()._save_checkpoint(*args, **kwargs)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        if self.args.streaming:  # `Trainer` counts from where it was resumed
            self.state.epoch = self.state.global_step / self.state.max_steps
            self.train_dataset.forget(self._blocks_trained)
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def create_optimizer(self, model: "PreTrainedModel | None" = None) -> torch.optim.Optimizer:
        if self.optimizer is None and self.args.optimizer == "muon":
            if self.is_deepspeed_enabled:
                raise UserError(
                    "optimizer muon: DeepSpeed splits the matrices that it needs whole; use adamw, or FSDP"
                )
            self.optimizer = MuonWithAdamW(
                self.model if model is None else model,
                lr=self.args.learning_rate,
                embedding_lr=self.args.embedding_learning_rate,
                weight_decay=self.args.weight_decay,
                betas=(self.args.adam_beta1, self.args.adam_beta2),
                # What the run decided once, so that a resumed one does the same: machines can be near the line.
                dtype=torch.bfloat16 if self.args.bf16 else torch.float32,
            )
        return super().create_optimizer(model)

    def get_decay_parameter_names(self, model: "PreTrainedModel") -> list[str]:
        """The matrices between embeddings and head, whichever optimizer it is: `Trainer`'s choice has the ends too."""
        hidden = {id(parameter) for parameter in split_parameters(model)[0]}
        return [name for name, parameter in model.named_parameters() if id(parameter) in hidden]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs or "eval_loss" in logs:
            logs = {**logs, **self.throughput.measure(self.state)}
        logs.pop("train_loss", None)  # the mean of the steps since the run was resumed
        super().log(logs, start_time)

    def prediction_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[None, torch.Tensor, torch.Tensor]:
        """No loss, whose mean over batches would depend on their size, but two numbers of each sequence.

        Returns:
            None; what `negative_log_likelihood` returns; of that the number of predicted tokens, shape `(batch, 1)`.
        """
        labels = inputs["shift_labels"]
        inputs = {name: value for name, value in inputs.items() if name not in ("labels", "shift_labels")}
        with torch.no_grad(), self.compute_loss_context_manager():
            if self.args.chunked_loss:  # all logits at once could need more than the whole training
                nats = model(**inputs, shift_labels=labels, token_losses=True).token_losses
                sums = sums_of_sequences(nats, labels)
            else:
                sums = negative_log_likelihood(model(**inputs).logits, labels)
        return None, sums, sums[:, 1:]

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As in `CheckpointMixin`; its time is not the training's."""
        with self.throughput.paused():
            return super().evaluate(*args, **kwargs)
