"""Settings of pretraining, and what follows from them by the one dial."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import SchedulerType
from transformers.utils import is_flash_attn_2_available

from hfchat.config import setting
from hfchat.training.dial import Schedule
from hfchat.training.run_arguments import RunArguments, replaced, settle_device
from hfchat.training.throughput import flops_per_token

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class PretrainArguments(RunArguments, TrainingArguments):
    """`TrainingArguments` with the defaults of pretraining, and where the model and its data come from.

    What is None is derived: from the depth by `hfchat.training.dial`, or from the machine.
    """

    dataset_name: str = setting("outputs/demo/corpus", "Corpus: a folder, file or Hub id.", identity=False)
    text_column: str = setting("text", "Column of the corpus that holds the text.")
    streaming: bool = setting(False, "Tokenize while training, for a corpus that no disk holds.")
    validation_documents: int = setting(
        1000, "Documents to hold out from the front of a corpus that has no validation split."
    )
    tokenizer_name: str | None = setting(
        None, "Tokenizer; with model_name_or_path, by default the model's own.", identity=False
    )
    add_tokens: list[str] = setting([], "Special tokens to add, e.g. those of the chat template.")
    model_name_or_path: str | None = setting(None, "Start from this model, not from scratch.", identity=False)
    depth: int = setting(4, "From scratch: number of layers. What is not set follows from it.")
    architecture: Literal["llama", "gpt2"] = setting("llama", "From scratch: architecture of the model.")
    tie_word_embeddings: bool = setting(
        True, "From scratch: share one matrix between the embeddings and the output layer."
    )
    dropout: float = setting(0.0, "From scratch: dropout, useful where text is seen many times.")
    block_size: int = setting(512, "Tokens per sequence.")
    optimizer: Literal["muon", "adamw"] | None = setting(
        None, "By default Muon from scratch, AdamW (see optim) from a model."
    )
    embedding_learning_rate: float | None = setting(
        None, "With Muon: AdamW's rate for embeddings and gains; by default from the depth."
    )
    attn_implementation: str | None = setting(
        None, "By default flash_attention_2 where flash-attn is installed, else sdpa."
    )
    chunked_loss: bool = setting(False, "Never hold all logits at once: less memory with a large vocabulary.")
    fp8: bool = setting(False, "Matrix products in 8 bits (torchao); from Hopper GPUs on.")
    sample_prompts: list[str] = setting(
        ["The function returns", "This library"], "Prompts that the model continues after each evaluation."
    )

    torch_compile: bool | None = setting(
        None, "Compile the model; by default on GPUs. What cannot be compiled runs as it is."
    )
    learning_rate: float | None = setting(None, "By default from the depth, or 1e-4.")
    weight_decay: float | None = setting(
        None, "Weight decay of the matrices between embeddings and output layer; by default 0.1."
    )
    adam_beta2: float = setting(0.95, "AdamW's second beta, as in GPT-3 (arXiv:2005.14165).")
    lr_scheduler_type: str = setting("linear", "Schedule of the learning rate.")
    warmup_steps: float = setting(0.03, "Warm-up in steps, or below 1 as a share of them.")
    per_device_train_batch_size: int | None = setting(
        None, "Sequences per device and pass; by default from the depth, if accumulation is not set either."
    )
    per_device_eval_batch_size: int | None = setting(
        None, "Sequences per device and pass of an evaluation; by default as many as in training."
    )
    gradient_accumulation_steps: int | None = setting(
        None, "Passes per step; by default 1 or, if the batch is not set either, from the depth."
    )
    num_train_epochs: float = setting(-1, "By default, the run lasts for 20 tokens per parameter (arXiv:2203.15556).")
    ddp_find_unused_parameters: bool | None = setting(
        False, "Search every step for parameters without a gradient; every parameter has one."
    )
    logging_steps: float = setting(10, "Steps between two logged losses.")
    eval_strategy: str = setting("steps", "When to evaluate.")
    eval_steps: float | None = setting(0.2, "Steps between evaluations, or below 1 their share of all steps.")
    save_steps: float = setting(0.2, "Steps between checkpoints, or below 1 their share of all steps.")

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
        # What follows from the machine.
        settle_device(self)
        if self.torch_compile is None:
            self.torch_compile = not self.use_cpu
        if self.attn_implementation is None:
            flash = not self.use_cpu and is_flash_attn_2_available()
            self.attn_implementation = "flash_attention_2" if flash else "sdpa"
        # The library wants numbers where `derive` is still to find them.
        self._batch_is_set = bool(self.per_device_train_batch_size or self.gradient_accumulation_steps)
        self._eval_batch_is_set = bool(self.per_device_eval_batch_size)
        self.per_device_train_batch_size = self.per_device_train_batch_size or 1
        self.per_device_eval_batch_size = self.per_device_eval_batch_size or self.per_device_train_batch_size
        self.gradient_accumulation_steps = self.gradient_accumulation_steps or 1
        super().__post_init__()

    @property
    def tokens_per_step(self) -> int:
        return self.block_size * self.train_batch_size * self.gradient_accumulation_steps * self.world_size

    def _step_of(self, processes: int) -> int:
        """Tokens of a step of so many processes."""
        return self.tokens_per_step // self.world_size * processes

    def derive(
        self,
        model: "PreTrainedModel",
        blocks: int | None,
        processes: int | None = None,
        gpu_bytes: int | None = None,
    ) -> "PretrainArguments":
        """These settings with what was not set: it follows from the sizes of the model and of the corpus.

        A model that is trained already gets a learning rate of its own, whatever its size.

        Args:
            model: What is to be trained.
            blocks: Sequences of the corpus; None for a stream.
            processes: How many train; by default those of this launch.
            gpu_bytes: Memory of the GPU of each; by default that of this process, if it has one.
        """
        derived = replaced(self)
        processes = processes or self.world_size
        gpu_bytes = gpu_bytes or self._gpu_bytes

        in_an_epoch = None
        if self.max_steps <= 0 and self.num_train_epochs > 0 and blocks is not None:
            in_an_epoch = blocks * self.block_size
        # The size of the run, as far as it is set, decides what the best batch is.
        tokens = None
        if in_an_epoch is not None:
            tokens = round(self.num_train_epochs * in_an_epoch)
        elif self.max_steps > 0 and self._batch_is_set:
            tokens = self.max_steps * self._step_of(processes)
        schedule = Schedule.of(model, tokens)
        # The batch: first what the schedule wants, then in as few passes as the memory allows.
        if not self._batch_is_set:
            sequences = max(1, round(schedule.batch_tokens / self.block_size / processes))
            at_once = max(1, self._tokens_at_once(model, gpu_bytes) // self.block_size)
            derived.gradient_accumulation_steps = -(-sequences // at_once)
            derived.per_device_train_batch_size = -(-sequences // derived.gradient_accumulation_steps)
        if not self._eval_batch_is_set:
            derived.per_device_eval_batch_size = derived.per_device_train_batch_size
        # The length follows from the batch.
        if in_an_epoch is not None:  # each epoch ends with a step, if need be a smaller one
            derived.max_steps = math.ceil(self.num_train_epochs * -(-in_an_epoch // derived._step_of(processes)))
        elif self.max_steps <= 0:
            derived.max_steps = math.ceil(schedule.tokens / derived._step_of(processes))
        # The rates follow from the width and, where the batch is smaller than the schedule's, from the batch.
        trained_already = self.model_name_or_path is not None
        if self.learning_rate is None:
            from_scratch = schedule.learning_rate(str(self.optimizer), derived._step_of(processes))
            derived.learning_rate = 1e-4 if trained_already else from_scratch
        if self.embedding_learning_rate is None:
            from_scratch = schedule.embedding_learning_rate(derived._step_of(processes))
            derived.embedding_learning_rate = derived.learning_rate if trained_already else from_scratch
        if self.weight_decay is None:
            derived.weight_decay = schedule.weight_decay
        if self.lr_scheduler_type == SchedulerType.WARMUP_STABLE_DECAY and not self.lr_scheduler_kwargs:
            # The shortest decay that reaches the loss of a full one, in the form that they found better than a line
            # (Haegele et al., arXiv:2405.18392, figure 5 and section 3).
            decay = math.ceil(0.2 * derived.max_steps)
            derived.lr_scheduler_kwargs = {"num_decay_steps": decay, "decay_type": "1-sqrt"}
        return derived

    def _tokens_at_once(self, model: "PreTrainedModel", gpu_bytes: int | None) -> int:
        """How many tokens fit into a forward and backward pass: on a GPU, their activations take half its memory."""
        if gpu_bytes is None:
            return 4096
        config = model.config.get_text_config()
        # In bytes (Korthikanti et al., arXiv:2205.05198, table 2, without what attention does not keep), and the
        # logits in bfloat16 and float32 with their gradients.
        activations = 34 * config.hidden_size * config.num_hidden_layers
        logits = 0 if self.chunked_loss else 12 * config.vocab_size
        return gpu_bytes // 2 // (activations + logits)

    @property
    def _gpu_bytes(self) -> int | None:
        if self.use_cpu or not torch.cuda.is_available():
            return None
        return int(torch.cuda.get_device_properties(self.device).total_memory)

    def describe(self, model: "PreTrainedModel") -> str:
        """What is going to be trained, and how, in two lines."""
        rates = f"learning rate {self.learning_rate:.2g}"
        if self.optimizer == "muon":
            rates += f" ({self.embedding_learning_rate:.2g} for embeddings)"
        factors = [f"{self.train_batch_size} x {self.block_size}"]
        for count, what in ((self.gradient_accumulation_steps or 1, "accumulated"), (self.world_size, "processes")):
            factors += [f"{count} {what}"] if count > 1 else []
        flops = flops_per_token(model, self.block_size) * self.max_steps * self.tokens_per_step
        return (
            f"{type(model).__name__}: {model.config.num_hidden_layers} layers, {model.config.hidden_size} wide, "
            f"{model.num_parameters():,} parameters\n"
            f"{self.max_steps:,} steps of {self.tokens_per_step:,} tokens ({' x '.join(factors)}), {self.optimizer}, "
            f"{rates}, weight decay {self.weight_decay:g}, {flops:.1e} FLOP"
        )
