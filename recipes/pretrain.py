"""Corpus + tokenizer (or a base model such as GPT-2) -> base model.

From scratch, one CPU:

    accelerate launch --config_file accelerate_configs/cpu.yaml \
        recipes/pretrain.py --config recipes/configs/demo/pretrain.yaml

A deeper model on one GPU; the depth gives the width, the heads and the learning rate:

    accelerate launch --config_file accelerate_configs/single_gpu.yaml recipes/pretrain.py \
        --dataset_name outputs/mine/corpus --tokenizer_name outputs/mine/tokenizer \
        --depth 12 --block_size 1024 --output_dir outputs/mine/base

Continue from GPT-2, with its own tokenizer:

    accelerate launch --config_file accelerate_configs/single_gpu.yaml recipes/pretrain.py \
        --model_name_or_path openai-community/gpt2 --dataset_name outputs/mine/corpus \
        --block_size 1024 --num_train_epochs 1 --output_dir outputs/mine/gpt2

Killed in the middle, the same command continues from the last whole checkpoint.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments, default_data_collator, set_seed

from hfchat.config import parse
from hfchat.dataset import load_split
from hfchat.errors import run
from hfchat.lineage import CHECKPOINTS, Stage
from hfchat.models import check_fits, load_model, load_tokenizer, prepare_for_inference, resolve, supports_bf16
from hfchat.training.bits_per_byte import bits_per_byte, negative_log_likelihood
from hfchat.training.checkpoints import AtomicCheckpointMixin, last_checkpoint
from hfchat.training.dial import TOKENS_PER_PARAMETER, Dial
from hfchat.training.loss_curve import save_loss_curve
from hfchat.training.optimizer import MuonWithAdamW
from hfchat.training.packing import PackedDataset, tokenize_corpus
from hfchat.training.samples import PrintSamples


@dataclass
class PretrainConfig(TrainingArguments):
    """`TrainingArguments` with the defaults of pretraining, and where the model and its data come from."""

    dataset_name: str = field(default="outputs/demo/corpus", metadata={"help": "Corpus: a folder, file or Hub id."})
    text_column: str = field(default="text", metadata={"help": "Its column of text."})
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "Tokenizer; with model_name_or_path, by default the model's own."}
    )
    model_name_or_path: str | None = field(default=None, metadata={"help": "Start from this model, not from scratch."})
    depth: int = field(default=4, metadata={"help": "From scratch: layers. Width, heads, learning rate follow."})
    architecture: Literal["llama", "gpt2"] = field(default="llama", metadata={"help": "From scratch: which."})
    block_size: int = field(default=512, metadata={"help": "Tokens per sequence."})
    optimizer: Literal["muon", "adamw"] | None = field(
        default=None, metadata={"help": "By default Muon from scratch, AdamW (see optim) from a model."}
    )
    sample_prompts: list[str] = field(
        default_factory=lambda: ["The function returns", "This library"],
        metadata={"help": "Continued at evaluations."},
    )
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Replace an output made otherwise."})

    bf16: bool | None = field(default=None, metadata={"help": "By default where the machine computes in bf16."})
    learning_rate: float | None = field(default=None, metadata={"help": "By default from the depth, or 1e-4."})
    weight_decay: float = field(default=0.1, metadata={"help": "As in GPT-3 (arXiv:2005.14165)."})
    adam_beta2: float = field(default=0.95, metadata={"help": "As in GPT-3 (arXiv:2005.14165)."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule of the learning rate."})
    warmup_steps: float = field(default=0.03, metadata={"help": "Steps, or below 1 a share of them."})
    num_train_epochs: float = field(
        default=-1, metadata={"help": "By default as long as 20 tokens per parameter take (arXiv:2203.15556)."}
    )
    logging_steps: float = field(default=10, metadata={"help": "Steps between losses."})
    eval_strategy: str = field(default="steps", metadata={"help": "When to evaluate."})
    eval_steps: float | None = field(default=0.2, metadata={"help": "Steps, or below 1 a share of them."})
    save_steps: float = field(default=0.2, metadata={"help": "Steps, or below 1 a share of them."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept."})

    def __post_init__(self):
        if self.output_dir is None:
            raise ValueError("output_dir: say where the model goes, e.g. --output_dir outputs/mine/base")
        if self.model_name_or_path is None and self.tokenizer_name is None:
            raise ValueError("tokenizer_name: needed to train from scratch, e.g. --tokenizer_name tokenizer")
        if self.optimizer is None:
            self.optimizer = "adamw" if self.model_name_or_path else "muon"
        if self.block_size < 8:
            raise ValueError(f"block_size must be at least 8, not {self.block_size}")
        if self.bf16 is None:
            self.bf16 = not self.fp16 and supports_bf16()
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        super().__post_init__()


class PretrainTrainer(AtomicCheckpointMixin, Trainer):
    """`Trainer` for packed sequences, whose checkpoints are whole or not there."""

    def __init__(self, args: TrainingArguments, **kwargs):
        # Left alone, `Trainer` would drop `shift_labels`, which no model names in its signature, and models would
        # shift the labels once more: they would learn the token after the next.
        args.remove_unused_columns = False
        # Given a tokenizer, it would collate with the tokenizer's `pad`, which adds an attention mask; with a mask,
        # transformers does not look for packed sequences, and documents would see each other.
        super().__init__(args=args, data_collator=default_data_collator, **kwargs)


def main(argv: Sequence[str] | None = None) -> None:
    (config,) = parse(PretrainConfig, argv=argv)
    inputs = {"corpus": config.dataset_name}
    if config.model_name_or_path:
        inputs["model"] = resolve(config.model_name_or_path)
    if config.tokenizer_name:
        inputs["tokenizer"] = resolve(config.tokenizer_name)
    stage = Stage("pretrain", config.output_dir, config=[config], inputs=inputs, overwrite=config.overwrite_output_dir)
    if stage.complete:
        return stage.report_complete()
    config.output_dir = str(stage.work_dir / CHECKPOINTS)
    set_seed(config.seed)

    tokenizer = load_tokenizer(config.tokenizer_name or config.model_name_or_path)
    if config.model_name_or_path:
        model = load_model(config.model_name_or_path, dtype="float32")
        check_fits(model, tokenizer, config.block_size)
        config.learning_rate = config.learning_rate or 1e-4
    else:
        dial = Dial.from_depth(config.depth)
        model = AutoModelForCausalLM.from_config(dial.model_config(config.architecture, tokenizer, config.block_size))
        config.learning_rate = config.learning_rate or dial.learning_rate * (1 if config.optimizer == "muon" else 0.2)

    splits = {}
    for split in ("train", "validation"):
        folder = stage.work_dir / CHECKPOINTS / f"tokens-{split}"
        with config.main_process_first(desc=f"tokenizing {split}"):
            documents = load_split(config.dataset_name, split, config.text_column)
            tokenize_corpus(documents, config.text_column, tokenizer, folder, f"tokenizing {split}")
        splits[split] = PackedDataset(folder, config.block_size, tokenizer)

    if config.max_steps <= 0 and config.num_train_epochs <= 0:
        tokens_per_step = config.block_size * config.train_batch_size * config.gradient_accumulation_steps
        tokens_per_step *= config.world_size
        config.max_steps = -(-TOKENS_PER_PARAMETER * model.num_parameters() // tokens_per_step)
    muon = MuonWithAdamW(model, config.learning_rate, config.weight_decay, (config.adam_beta1, config.adam_beta2))
    trainer = PretrainTrainer(
        model=model,
        args=config,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        processing_class=tokenizer,
        compute_metrics=bits_per_byte(splits["validation"].num_bytes),
        preprocess_logits_for_metrics=negative_log_likelihood,
        callbacks=[PrintSamples(tokenizer, config.sample_prompts)],
        optimizers=(muon if config.optimizer == "muon" else None, None),
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(config.output_dir))
    metrics = trainer.evaluate()
    prepare_for_inference(trainer.model, tokenizer)
    trainer.save_model(str(stage.work_dir))
    if trainer.is_world_process_zero():
        save_loss_curve(
            trainer.state.log_history, stage.work_dir, "eval_bits_per_byte", "validation loss (bits per byte)"
        )
    stage.finish(metrics=metrics)


if __name__ == "__main__":
    run(main)
