"""Chat model + preferences -> LoRA adapter, and the model that it makes merged into its base.

From pairs of answers, one of them chosen (DPO), on one CPU:

    python recipes/prepare_conversations.py --config recipes/configs/conversations/hh-rlhf.yaml
    accelerate launch --config_file accelerate_configs/cpu.yaml \
        recipes/align.py --config recipes/configs/align/dpo.yaml

From thumbs (KTO), your own model and data, on one GPU. Rows have `label`, true for a thumb up, and `messages`; pairs
are taken too, as a thumb up and a thumb down:

    accelerate launch --config_file accelerate_configs/single_gpu.yaml recipes/align.py --method kto \
        --model_name_or_path outputs/mine/assistant/merged --dataset_name outputs/mine/thumbs \
        --output_dir outputs/mine/aligned

First it shows what is scored, as text. The reference is the model that it starts from: with an adapter, the same one
with the adapter off. Killed in the middle, the same command continues from the last whole checkpoint. The output holds
`adapter/` and `merged/` (or `model/`) with the certificate that they answer alike, and the curve of the training.
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
from hfchat.training.align_arguments import AlignArguments
from hfchat.training.alignment import TRAINERS
from hfchat.training.checkpoints import last_checkpoint
from hfchat.training.held_out_pairs import describe_comparison
from hfchat.training.loss_curve import save_loss_curve
from hfchat.training.precision import keep_precision
from hfchat.training.preferences import load_preferences
from hfchat.training.run_arguments import for_trainer
from hfchat.training.supervision import load_chat_tokenizer

ARGUMENTS = (AlignArguments, ModelArguments)  # `hfchat doctor` reads them, too


def main(argv: Sequence[str] | None = None) -> None:
    args, model_args = parse(*ARGUMENTS, argv=argv)
    base, revision = resolve(model_args.model_name_or_path), model_args.model_revision
    stage = Stage.begin(
        "align",
        args.output_dir,
        config=[args, model_args],
        inputs={"model": base, "preferences": args.dataset_name},
        overwrite=args.overwrite_output_dir,
    )
    if stage.complete:
        return stage.report_complete()
    checkpoints = stage.work_dir / CHECKPOINTS
    args = keep_precision(args, checkpoints)
    set_seed(args.seed)

    tokenizer, new_tokens = load_chat_tokenizer(base, revision, allow_mismatch=args.allow_template_mismatch)
    preferences = load_preferences(args, tokenizer)
    args, model_args = args.derive(model_args, preferences.thumbs)
    if args.process_index == 0:
        print(f"{preferences.describe(tokenizer)}\n\n{args.describe()}", flush=True)

    model = load_trainable(model_args, base, tokenizer, new_tokens)
    if args.process_index == 0:
        print(describe_trainable(model, model_args, args.learning_rate, tokenizer, new_tokens), flush=True)
    record_fingerprint(tokenizer, model)
    trainer = TRAINERS[args.method](model, for_trainer(args, checkpoints), preferences, tokenizer)
    observe(trainer)
    trainer.train(resume_from_checkpoint=last_checkpoint(checkpoints))
    metrics = trainer.evaluate() | preferences.counts.as_metrics("train")
    comparison = trainer.outcome.compare(trainer.start)
    if trainer.is_world_process_zero():
        print(describe_comparison(comparison, metrics))
        label = "held-out pairs whose chosen answer has the higher reward"
        save_loss_curve(trainer.state.log_history, stage.work_dir, "eval_rewards/accuracies", label)
        trained, source = trainer.accelerator.unwrap_model(trainer.model), model_args.model_name_or_path
        certificate = export(
            trained, tokenizer, stage.work_dir, preferences.conversations, base=source, revision=revision
        )
        print(certificate.table())
        metrics |= certificate.metrics
    stage.finish(metrics=metrics | {"held_out": comparison}, config=[args, model_args])


if __name__ == "__main__":
    run(main)
