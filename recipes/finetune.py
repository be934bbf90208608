"""Chat model + conversations -> LoRA adapter, and the model that it makes merged into its base.

    accelerate launch --config_file accelerate_configs/cpu.yaml \
        recipes/finetune.py --config recipes/configs/demo/finetune.yaml

Your own model and conversations (rows with `messages`), on one GPU:

    accelerate launch --config_file accelerate_configs/single_gpu.yaml recipes/finetune.py \
        --model_name_or_path HuggingFaceTB/SmolLM2-360M-Instruct --dataset_name mine/conversations.jsonl \
        --num_train_epochs 3 --output_dir outputs/mine/assistant

Killed in the middle, the same command continues from the last whole checkpoint.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from peft import LoraConfig, get_peft_model
from transformers import set_seed
from trl import SFTConfig

from hfchat.chat_template import record_fingerprint, set_chat_template
from hfchat.config import parse
from hfchat.dataset import load_split
from hfchat.errors import run
from hfchat.lineage import CHECKPOINTS, Stage
from hfchat.models import load_model, load_tokenizer, resolve, supports_bf16
from hfchat.training.adapters import merge_adapter
from hfchat.training.checkpoints import last_checkpoint
from hfchat.training.finetuning import FinetuneTrainer
from hfchat.training.loss_curve import save_loss_curve
from hfchat.training.supervision import show_supervised, supervise


@dataclass
class FinetuneConfig(SFTConfig):
    """`SFTConfig` with the defaults of LoRA, and where the model and its data come from."""

    model_name_or_path: str = field(
        default="HuggingFaceTB/SmolLM2-135M-Instruct", metadata={"help": "Chat model to start from: folder or Hub id."}
    )
    dataset_name: str = field(
        default="recipes/data/assistant", metadata={"help": "Rows with `messages`: a folder, file or Hub id."}
    )
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_test_split: str = field(default="validation", metadata={"help": "Split to measure the loss on."})
    lora_r: int = field(default=16, metadata={"help": "Rank of the adapter."})
    lora_alpha: int = field(default=32, metadata={"help": "The update is scaled by lora_alpha / lora_r."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout of the adapter's input."})
    lora_target_modules: list[str] = field(
        default_factory=lambda: ["all-linear"], metadata={"help": "Layers that get an adapter."}
    )
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Replace an output made otherwise."})

    bf16: bool | None = field(default=None, metadata={"help": "By default where the machine computes in bf16."})
    learning_rate: float = field(
        default=2e-4, metadata={"help": "Ten times that of full fine-tuning, as LoRA wants (arXiv:2405.09673)."}
    )
    max_length: int = field(
        default=512, metadata={"help": "Tokens per packed sequence; longer conversations are out."}
    )
    packing: bool = field(
        default=True, metadata={"help": "Several conversations per sequence, apart from each other."}
    )
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Less memory for about a third more time."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule of the learning rate."})
    warmup_steps: float = field(default=0.05, metadata={"help": "Steps, or below 1 a share of them."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to measure the loss on the test split."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to write a checkpoint."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept."})

    def __post_init__(self):
        if self.output_dir is None:
            raise ValueError("output_dir: say where the model goes, e.g. --output_dir outputs/mine/assistant")
        if self.bf16 is None:
            self.bf16 = not self.fp16 and supports_bf16()
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        super().__post_init__()


def main(argv: Sequence[str] | None = None) -> None:
    (config,) = parse(FinetuneConfig, argv=argv)
    base = resolve(config.model_name_or_path)
    stage = Stage(
        "finetune",
        config.output_dir,
        config=[config],
        inputs={"model": base, "conversations": config.dataset_name},
        overwrite=config.overwrite_output_dir,
    )
    if stage.complete:
        return stage.report_complete()
    config.output_dir = str(stage.work_dir / CHECKPOINTS)
    set_seed(config.seed)

    tokenizer = load_tokenizer(base)
    set_chat_template(tokenizer)
    with config.main_process_first():
        rows = load_split(config.dataset_name, config.dataset_train_split, "messages")
        train, supervision = supervise(rows, tokenizer, config.max_length, config.dataset_name)
        rows = load_split(config.dataset_name, config.dataset_test_split, "messages")
        test, _ = supervise(rows, tokenizer, config.max_length, config.dataset_name)
    if config.process_index == 0:
        print(f"{supervision}\nthe first, with what is supervised marked:\n{show_supervised(train[0], tokenizer)}")

    model = load_model(base, dtype="bfloat16" if config.bf16 else "float32")
    record_fingerprint(tokenizer, model)
    targets = config.lora_target_modules
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets[0] if targets == ["all-linear"] else targets,
    )
    trainer = FinetuneTrainer(
        model=get_peft_model(model, lora),
        args=config,
        train_dataset=train,
        eval_dataset=test,
        processing_class=tokenizer,
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(config.output_dir))
    metrics = trainer.evaluate() | supervision.as_metrics("train")
    if trainer.is_world_process_zero():
        unwrapped = trainer.accelerator.unwrap_model(trainer.model)
        probe = test[:8]["input_ids"]
        metrics["merge_drift_nats"] = merge_adapter(unwrapped, base, tokenizer, stage.work_dir, probe)
        save_loss_curve(trainer.state.log_history, stage.work_dir, "eval_loss", "held-out loss (nats per token)")
        print(f"merged model and adapter agree to {metrics['merge_drift_nats']:.1e} nats per token")
    stage.finish(metrics=metrics)


if __name__ == "__main__":
    run(main)
