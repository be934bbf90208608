"""Settings of pretraining, and what follows from them by the one dial."""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import SchedulerType
from transformers.utils import is_flash_attn_2_available

from hfchat.training.dial import Plan
from hfchat.training.run_arguments import RunArguments, replaced, settle_device
from hfchat.training.throughput import flops_per_token

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class PretrainArguments(RunArguments, TrainingArguments):
    """`TrainingArguments` with the defaults of pretraining, and where the model and its data come from.

    What is None is derived: from the depth by `hfchat.training.dial`, or from the machine.
    """

    dataset_name: str = field(
        default="outputs/demo/corpus", metadata={"help": "Corpus: a folder, file or Hub id.", "identity": False}
    )
    text_column: str = field(default="text", metadata={"help": "Column of the corpus that holds the text."})
    streaming: bool = field(
        default=False, metadata={"help": "Tokenize while training, for a corpus that no disk holds."}
    )
    validation_documents: int = field(
        default=1000,
        metadata={"help": "Documents to hold out from the front of a corpus that has no validation split."},
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
    depth: int = field(
        default=4, metadata={"help": "From scratch: number of layers. What is not set follows from it."}
    )
    architecture: Literal["llama", "gpt2"] = field(
        default="llama", metadata={"help": "From scratch: architecture of the model."}
    )
    tie_word_embeddings: bool = field(
        default=True, metadata={"help": "From scratch: share one matrix between the embeddings and the output layer."}
    )
    dropout: float = field(
        default=0.0, metadata={"help": "From scratch: dropout, useful where text is seen many times."}
    )
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
        metadata={"help": "Prompts that the model continues after each evaluation."},
    )

    torch_compile: bool | None = field(
        default=None,
        metadata={"help": "Compile the model; by default on GPUs. What cannot be compiled runs as it is."},
    )
    learning_rate: float | None = field(default=None, metadata={"help": "By default from the depth, or 1e-4."})
    weight_decay: float | None = field(
        default=None,
        metadata={"help": "Weight decay of the matrices between embeddings and output layer; by default 0.1."},
    )
    adam_beta2: float = field(default=0.95, metadata={"help": "AdamW's second beta, as in GPT-3 (arXiv:2005.14165)."})
    lr_scheduler_type: str = field(default="linear", metadata={"help": "Schedule of the learning rate."})
    warmup_steps: float = field(default=0.03, metadata={"help": "Warm-up in steps, or below 1 as a share of them."})
    per_device_train_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Sequences per device and pass; by default from the depth, if accumulation is not set either."
        },
    )
    per_device_eval_batch_size: int | None = field(
        default=None,
        metadata={"help": "Sequences per device and pass of an evaluation; by default as many as in training."},
    )
    gradient_accumulation_steps: int | None = field(
        default=None,
        metadata={"help": "Passes per step; by default 1 or, if the batch is not set either, from the depth."},
    )
    num_train_epochs: float = field(
        default=-1, metadata={"help": "By default, the run lasts for 20 tokens per parameter (arXiv:2203.15556)."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Search every step for parameters it left out; there are none."}
    )
    logging_steps: float = field(default=10, metadata={"help": "Steps between two logged losses."})
    eval_strategy: str = field(default="steps", metadata={"help": "When to evaluate."})
    eval_steps: float | None = field(
        default=0.2, metadata={"help": "Steps between evaluations, or below 1 their share of all steps."}
    )
    save_steps: float = field(
        default=0.2, metadata={"help": "Steps between checkpoints, or below 1 their share of all steps."}
    )

    def __post_init__(self) -> None:
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
        settle_device(self)
        if self.torch_compile is None:
            self.torch_compile = not self.use_cpu
        if self.attn_implementation is None:
            flash = not self.use_cpu and is_flash_attn_2_available()
            self.attn_implementation = "flash_attention_2" if flash else "sdpa"
        self._batch_is_set = bool(self.per_device_train_batch_size or self.gradient_accumulation_steps)
        self._eval_batch_is_set = bool(self.per_device_eval_batch_size)
        self.per_device_train_batch_size = self.per_device_train_batch_size or 1
        self.per_device_eval_batch_size = self.per_device_eval_batch_size or self.per_device_train_batch_size
        self.gradient_accumulation_steps = self.gradient_accumulation_steps or 1
        super().__post_init__()

    @property
    def tokens_per_step(self) -> int:
        return self.block_size * self.train_batch_size * self.gradient_accumulation_steps * self.world_size

    def derive(self, model: "PreTrainedModel", blocks: int | None) -> "PretrainArguments":
        """These settings with what was not set: it follows from the sizes of the model and of the corpus.

        A model that is trained already gets a learning rate of its own, whatever its size.

        Args:
            model: What is to be trained.
            blocks: Sequences of the corpus; None for a stream.
        """
        derived = replaced(self)
        in_an_epoch = None
        if self.max_steps <= 0 and self.num_train_epochs > 0 and blocks is not None:
            in_an_epoch = blocks * self.block_size
        # The size of the run, as far as it is set, decides what the best batch is.
        tokens = None
        if in_an_epoch is not None:
            tokens = round(self.num_train_epochs * in_an_epoch)
        elif self.max_steps > 0 and self._batch_is_set:
            tokens = self.max_steps * self.tokens_per_step
        plan = Plan.of(model, tokens)
        # The batch: first what the plan wants, then in as few passes as the memory allows.
        if not self._batch_is_set:
            sequences = max(1, round(plan.batch_tokens / self.block_size / self.world_size))
            at_once = max(1, self._tokens_at_once(model) // self.block_size)
            derived.gradient_accumulation_steps = -(-sequences // at_once)
            derived.per_device_train_batch_size = -(-sequences // derived.gradient_accumulation_steps)
        if not self._eval_batch_is_set:
            derived.per_device_eval_batch_size = derived.per_device_train_batch_size
        # The length follows from the batch.
        if in_an_epoch is not None:  # each epoch ends with a step, if need be a smaller one
            derived.max_steps = math.ceil(self.num_train_epochs * -(-in_an_epoch // derived.tokens_per_step))
        elif self.max_steps <= 0:
            derived.max_steps = math.ceil(plan.tokens / derived.tokens_per_step)
        # The rates follow from the width and, where the batch is smaller than the plan's, from the batch.
        trained_already = self.model_name_or_path is not None
        if self.learning_rate is None:
            from_scratch = plan.learning_rate(self.optimizer, derived.tokens_per_step)
            derived.learning_rate = 1e-4 if trained_already else from_scratch
        if self.embedding_learning_rate is None:
            from_scratch = plan.embedding_learning_rate(derived.tokens_per_step)
            derived.embedding_learning_rate = derived.learning_rate if trained_already else from_scratch
        if self.weight_decay is None:
            derived.weight_decay = plan.weight_decay
        if self.lr_scheduler_type == SchedulerType.WARMUP_STABLE_DECAY and not self.lr_scheduler_kwargs:
            # The shortest decay that reaches the loss of a full one, in the form that they found better than a line
            # (Haegele et al., arXiv:2405.18392, figure 5 and section 3).
            decay = math.ceil(0.2 * derived.max_steps)
            derived.lr_scheduler_kwargs = {"num_decay_steps": decay, "decay_type": "1-sqrt"}
        return derived

    def _tokens_at_once(self, model: "PreTrainedModel") -> int:
        """How many tokens fit into a forward and backward pass: on a GPU, their activations take half its memory."""
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
