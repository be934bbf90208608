"""Chat model + conversations -> LoRA adapter, and the model that it makes merged into its base.

    accelerate launch --config_file accelerate_configs/cpu.yaml \
        recipes/finetune.py --config recipes/configs/demo/finetune.yaml

Your own model and conversations (rows with `messages`, and `tools` where they are called), on one GPU; of one file, a
twentieth is held out:

    accelerate launch --config_file accelerate_configs/single_gpu.yaml recipes/finetune.py \
        --model_name_or_path HuggingFaceTB/SmolLM2-360M-Instruct --dataset_name mine/conversations.jsonl \
        --num_train_epochs 3 --output_dir outputs/mine/assistant

Several datasets, each with the epochs in which it is seen or with a weight, take the place of one (see
`hfchat.training.mixture`; in a YAML, a list of mappings):

    --dataset_mixture '{"path": "mine/conversations.jsonl", "epochs": 3}' \
        '{"path": "HuggingFaceTB/smol-smoltalk", "split": "train[:20000]", "weight": 2}'

An adapter on weights in 4 bits: `--load_in_4bit true`. DoRA: `--use_dora true`. All weights: `--use_peft false`. The
learning rate follows. A base without turns, as GPT-2, is taught the project's, with embeddings of their own.

First it shows what is learned, as text; what would go wrong in silence is an error before the first step. Killed in
the middle, the same command continues from the last whole checkpoint. The output holds `adapter/` and `merged/` (or
`model/`) with the certificate that they answer alike, `answers.jsonl` from before and after, and the loss curve.
"""

from collections.abc import Sequence

from transformers import set_seed

from hfchat.chat_template import record_fingerprint
from hfchat.config import parse
from hfchat.doctor.trial import observe
from hfchat.errors import run
from hfchat.export.certificate import export
from hfchat.lineage import CHECKPOINTS
from hfchat.models import resolve
from hfchat.stage import Stage
from hfchat.training.adapters import ModelArguments, describe_trainable, load_trainable
from hfchat.training.answers import HeldOutAnswers
from hfchat.training.checkpoints import last_checkpoint
from hfchat.training.conversations import inputs_of, load_conversations
from hfchat.training.finetuning import FinetuneArguments, FinetuneTrainer
from hfchat.training.loss_curve import save_loss_curve
from hfchat.training.precision import keep_precision
from hfchat.training.run_arguments import for_trainer
from hfchat.training.supervision import load_chat_tokenizer

_PROBE = 8  # held-out conversations that what was saved is compared on

ARGUMENTS = (FinetuneArguments, ModelArguments)  # `hfchat doctor` reads them, too


def main(argv: Sequence[str] | None = None) -> None:
    args, model_args = parse(*ARGUMENTS, argv=argv)
    base, revision = resolve(model_args.model_name_or_path), model_args.model_revision
    stage = Stage.begin(
        "finetune",
        args.output_dir,
        config=[args, model_args],
        inputs={"model": base, **inputs_of(args)},
        overwrite=args.overwrite_output_dir,
    )
    if stage.complete:
        return stage.report_complete()
    checkpoints = stage.work_dir / CHECKPOINTS
    args, model_args = keep_precision(args, checkpoints).derive(model_args)
    set_seed(args.seed)

    tokenizer, new_tokens = load_chat_tokenizer(
        base, revision, allow_mismatch=args.allow_template_mismatch, system_message=args.system_message
    )
    conversations = load_conversations(args, tokenizer)
    if args.process_index == 0:
        print(conversations.describe(tokenizer))
    model = load_trainable(model_args, base, tokenizer, new_tokens)
    if args.process_index == 0:
        print(describe_trainable(model, model_args, args.learning_rate, tokenizer, new_tokens), flush=True)
    record_fingerprint(tokenizer, model)
    answers = HeldOutAnswers(
        tokenizer,
        conversations.held_out,
        args.sample_answers,
        checkpoints,
        args.sample_max_new_tokens,
        conversations.held_out_tools,
    )
    trainer = FinetuneTrainer(
        model=model,
        args=for_trainer(args, checkpoints),
        train_dataset=conversations.train,
        eval_dataset=conversations.test,
        eval_datasets={part.label: part.test for part in conversations.parts},
        processing_class=tokenizer,
        callbacks=[answers],
    )
    observe(trainer)
    trainer.train(resume_from_checkpoint=last_checkpoint(checkpoints))
    metrics = trainer.final_metrics() | conversations.metrics(trainer.state.epoch) | answers.metrics()
    if trainer.is_world_process_zero():
        print(answers)
        answers.save(stage.work_dir / "answers.jsonl")
        save_loss_curve(trainer.state.log_history, stage.work_dir, "eval_loss", "held-out loss (nats per token)")
        trained, source = trainer.accelerator.unwrap_model(trainer.model), model_args.model_name_or_path
        probe = conversations.held_out[:_PROBE]
        certificate = export(trained, tokenizer, stage.work_dir, probe, base=source, revision=revision)
        print(certificate.table())
        metrics |= certificate.metrics
    stage.finish(metrics=metrics, config=[args, model_args])


if __name__ == "__main__":
    run(main)
