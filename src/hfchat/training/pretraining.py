"""The `Trainer` of pretraining: checkpoints that hold, and what is measured."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, parse_flag_from_env
from torch.utils.data import DataLoader
from transformers import ProgressCallback, TrainerCallback, TrainerState, default_data_collator

from hfchat.errors import UserError
from hfchat.training.bits_per_byte import (
    bits_per_byte,
    negative_log_likelihood,
    sums_of_sequences,
    unknown_tokens,
)
from hfchat.training.checkpoints import CheckpointMixin
from hfchat.training.optimizer import MuonWithAdamW, split_parameters
from hfchat.training.packing import collate_for_flash_attention
from hfchat.training.progress import LossSpikes, PretrainProgress
from hfchat.training.run_arguments import replaced
from hfchat.training.samples import PrintSamples
from hfchat.training.throughput import Throughput

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hfchat.training.corpus import Corpus
    from hfchat.training.pretrain_arguments import PretrainArguments


class PretrainTrainer(CheckpointMixin):
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
        args: "PretrainArguments",
        corpus: "Corpus",
        tokenizer: "PreTrainedTokenizerBase",
    ):
        # Left alone, `Trainer` would drop `shift_labels`, which no model names in its signature, and models would
        # shift the labels once more: they would learn the token after the next.
        # A stream itself goes on where it was.
        args = replaced(args, remove_unused_columns=False, ignore_data_skip=args.streaming)
        # Given a tokenizer, it would collate with the tokenizer's `pad`, which adds an attention mask; with a mask,
        # transformers does not look for packed sequences, and documents would see each other.
        super().__init__(
            model=model,
            args=args,
            data_collator=collate_for_flash_attention
            if "flash" in str(args.attn_implementation)
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
        if args.streaming:
            self.add_callback(_StreamProgress(self))
        if self.pop_callback(ProgressCallback):
            self.add_callback(PretrainProgress())
        unknown, total = unknown_tokens(corpus.validation.tokens, tokenizer), len(corpus.validation.tokens)
        if unknown and self.is_world_process_zero():
            print(
                f"{unknown:,} of the {total:,} validation tokens are {tokenizer.unk_token}, which a model predicts at "
                "almost no cost: the bits per byte below cannot be compared with those of another tokenizer"
            )

    optimizer: torch.optim.Optimizer | None

    def create_accelerator_and_postprocess(self) -> None:
        state = PartialState()
        sharded = self.args.fsdp or parse_flag_from_env("ACCELERATE_USE_FSDP")
        if sharded and state.distributed_type is DistributedType.MULTI_CPU:
            # Asked to shard over CPUs, accelerate silently copies the model to each, although it can shard.
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
    def blocks_trained(self) -> int:
        """Blocks of this process, all runs together."""
        return self.state.global_step * self.args.gradient_accumulation_steps * self.args.train_batch_size

    def pausing(self) -> contextlib.AbstractContextManager[None]:
        return self.throughput.paused()

    def save_beside(self, checkpoint: Path) -> None:
        if self.args.streaming:
            self.train_dataset.save(checkpoint / self._stream_file, self.blocks_trained)

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
        """The matrices between embeddings and head, for any optimizer: `Trainer` would decay both ends too."""
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
        """Two numbers for each sequence instead of a loss, whose mean would depend on the size of batches.

        Returns:
            None; what `negative_log_likelihood` returns; and its column of predicted tokens, shape `(batch, 1)`.
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


class _StreamProgress(TrainerCallback):
    """Says how far a training on a stream is, which `Trainer` counts from where it was resumed."""

    def __init__(self, trainer: PretrainTrainer):
        self.trainer = trainer

    def on_step_end(self, args: object, state: TrainerState, control: object, **kwargs: object) -> None:
        state.epoch = state.global_step / state.max_steps
        self.trainer.train_dataset.forget(self.trainer.blocks_trained)
