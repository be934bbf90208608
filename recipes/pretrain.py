"""Corpus + tokenizer (or a base model such as GPT-2) -> base model.

From scratch, one CPU:

    accelerate launch --config_file accelerate_configs/cpu.yaml \
        recipes/pretrain.py --config recipes/configs/demo/pretrain.yaml

A deeper model on one GPU; shape, batch, length and learning rates follow from the depth:

    accelerate launch --config_file accelerate_configs/single_gpu.yaml recipes/pretrain.py \
        --dataset_name outputs/mine/corpus --tokenizer_name outputs/mine/tokenizer \
        --depth 12 --block_size 1024 --output_dir outputs/mine/base

The shape of GPT-2 on FineWeb-Edu, eight GPUs (expected time, memory and cost: recipes/configs/gpt2-124m/README.md):

    accelerate launch --config_file accelerate_configs/multi_gpu.yaml \
        recipes/pretrain.py --config recipes/configs/gpt2-124m/pretrain.yaml

Continue from GPT-2, with its own tokenizer and the tokens of the chat template:

    accelerate launch --config_file accelerate_configs/single_gpu.yaml recipes/pretrain.py \
        --model_name_or_path openai-community/gpt2 --add_tokens "<|im_start|>" "<|im_end|>" "<|pad|>" \
        --dataset_name outputs/mine/corpus --block_size 1024 --num_train_epochs 1 --output_dir outputs/mine/gpt2

Killed in the middle, the same command continues from the last whole checkpoint.
"""

from collections.abc import Sequence

import torch
from transformers import set_seed

from hfchat.config import parse
from hfchat.doctor.trial import observe
from hfchat.errors import run
from hfchat.lineage import CHECKPOINTS
from hfchat.models import prepare_for_inference, resolve
from hfchat.stage import Stage
from hfchat.training.checkpoints import last_checkpoint
from hfchat.training.chunked_loss import use_chunked_loss
from hfchat.training.corpus import load_corpus
from hfchat.training.fp8 import use_fp8
from hfchat.training.initial_model import load_initial_model
from hfchat.training.loss_curve import save_loss_curve
from hfchat.training.precision import keep_precision
from hfchat.training.pretrain_arguments import PretrainArguments
from hfchat.training.pretraining import PretrainTrainer
from hfchat.training.run_arguments import for_trainer

ARGUMENTS = (PretrainArguments,)  # `hfchat doctor` reads them, too


def main(argv: Sequence[str] | None = None) -> None:
    (args,) = parse(*ARGUMENTS, argv=argv)
    inputs = {"corpus": args.dataset_name}
    if args.model_name_or_path:
        inputs["model"] = resolve(args.model_name_or_path)
    if args.tokenizer_name:
        inputs["tokenizer"] = resolve(args.tokenizer_name)
    stage = Stage.begin("pretrain", args.output_dir, config=[args], inputs=inputs, overwrite=args.overwrite_output_dir)
    if stage.complete:
        return stage.report_complete()
    checkpoints = stage.work_dir / CHECKPOINTS
    args = keep_precision(args, checkpoints)
    set_seed(args.seed)

    model, tokenizer = load_initial_model(args)
    corpus = load_corpus(args, tokenizer, checkpoints)
    args = args.derive(model, corpus.blocks)
    if args.process_index == 0:
        print(f"{args.describe(model)}\n{corpus.describe(args.max_steps * args.tokens_per_step)}")
    if args.chunked_loss:
        use_chunked_loss(model)
    if args.fp8:
        use_fp8(model)
    torch._dynamo.config.suppress_errors = True  # what cannot be compiled runs as it is

    trainer = PretrainTrainer(model, for_trainer(args, checkpoints), corpus, tokenizer)
    observe(trainer)
    trainer.train(resume_from_checkpoint=last_checkpoint(checkpoints))
    prepare_for_inference(model, tokenizer)
    trainer.save_model(str(stage.work_dir))
    metrics = trainer.final_metrics()
    if trainer.is_world_process_zero():
        history, label = trainer.state.log_history, "validation loss (bits per byte)"
        save_loss_curve(history, stage.work_dir, "eval_bits_per_byte", label)
    stage.finish(metrics=metrics, config=[args])


if __name__ == "__main__":
    run(main)
