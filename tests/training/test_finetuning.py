import shutil
from itertools import pairwise

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

from hfchat.errors import UserError
from hfchat.training.adapters import ModelArguments, load_trainable
from hfchat.training.checkpoints import last_checkpoint
from hfchat.training.finetuning import SUPERVISED_MULTIPLE, FinetuneArguments, FinetuneTrainer
from hfchat.training.supervision import load_chat_tokenizer, supervise


def lora_trainer(cls, model_folder, tokenizer, rows, output_dir, **arguments):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    dataset, _ = supervise(rows, tokenizer, 64, "test")
    settings = {
        "max_steps": 3, "learning_rate": 1e-2, "report_to": "none", "use_cpu": True, "bf16": False, "packing": True,
        "max_length": 64, "disable_tqdm": True, "logging_steps": 1, "save_strategy": "no",
        "gradient_checkpointing": False, "per_device_train_batch_size": 2,
    }  # fmt: skip
    return cls(
        model=get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")),
        args=SFTConfig(output_dir=str(output_dir), **settings | arguments),
        train_dataset=dataset,
        eval_dataset=dataset,
        processing_class=tokenizer,
    )


def losses(trainer):
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_scoring_only_the_supervised_tokens_gives_the_loss_of_trl(chat_model, tokenizer, rows, tmp_path):
    ours = losses(lora_trainer(FinetuneTrainer, chat_model, tokenizer, rows, tmp_path))
    assert ours == pytest.approx(losses(lora_trainer(SFTTrainer, chat_model, tokenizer, rows, tmp_path)), rel=1e-4)
    split = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    assert ours == pytest.approx(
        losses(lora_trainer(FinetuneTrainer, chat_model, tokenizer, rows, tmp_path, **split)), rel=1e-4
    )


def test_packed_conversations_do_not_see_each_other(chat_model, tokenizer, rows, tmp_path):
    trainer = lora_trainer(FinetuneTrainer, chat_model, tokenizer, rows, tmp_path, max_length=128)
    dataset, _ = supervise(rows, tokenizer, 64, "test")
    model = trainer.model.eval()
    alone = {tuple(row["input_ids"]): model(input_ids=torch.tensor([row["input_ids"]])).logits[0] for row in dataset}
    batch = next(iter(trainer.get_train_dataloader()))
    batch.pop("labels")
    packed, seen = model(**batch).logits, 0
    for row, (ids, positions) in enumerate(zip(batch["input_ids"], batch["position_ids"], strict=True)):
        starts = [*(positions == 0).nonzero().flatten().tolist(), len(ids)]
        for start, end in pairwise(starts):
            if ids[start] != tokenizer.pad_token_id:
                expected = alone[tuple(ids[start:end].tolist())]
                torch.testing.assert_close(packed[row, start:end], expected, atol=1e-5, rtol=1e-4)
                seen += 1
    assert seen > 3


def test_packed_batches_are_rows_of_one_shape_with_the_same_loss(chat_model, tokenizer, rows, tmp_path):
    arguments = FinetuneArguments(output_dir=str(tmp_path), max_length=64)
    assert arguments.pad_to_multiple_of == 64
    plain = losses(lora_trainer(FinetuneTrainer, chat_model, tokenizer, rows, tmp_path))
    trainer = lora_trainer(FinetuneTrainer, chat_model, tokenizer, rows, tmp_path, pad_to_multiple_of=64)
    shapes = {batch["input_ids"].shape for batch in trainer.get_train_dataloader()}
    assert len(rows) > 4
    assert shapes <= {(2, 64), (1, 64)}  # the last batch of an epoch may have one sequence
    head, attention = trainer.model.get_output_embeddings(), trainer.model.get_base_model().model.layers[0].self_attn
    supervised, masks = [], []
    head.register_forward_hook(lambda head, given, logits: supervised.append(logits.shape[1]))
    attention.register_forward_pre_hook(
        lambda attention, given, named: masks.append(tuple(named["attention_mask"].shape)), with_kwargs=True
    )
    assert losses(trainer) == pytest.approx(plain, rel=1e-4)
    assert {count % SUPERVISED_MULTIPLE for count in supervised} == {0}
    assert max(supervised) < 64 * 2, "not of every position"
    assert set(masks) <= {(2, 1, 64, 64), (1, 1, 64, 64)}, "no sequence attends to another one's tokens"


@pytest.mark.parametrize("settings", [{"packing": False}, {"pad_to_multiple_of": "none"}])
def test_batches_are_padded_to_a_shape_only_where_it_costs_nothing(settings, tmp_path):
    assert FinetuneArguments(output_dir=str(tmp_path), **settings).pad_to_multiple_of is None


@pytest.mark.parametrize("packing", [True, False])
def test_losses_are_those_of_each_conversation_alone_whatever_the_batches(
    chat_model, tokenizer, rows, tmp_path, packing
):
    dataset, supervision = supervise(rows, tokenizer, 64, "test")
    model = AutoModelForCausalLM.from_pretrained(chat_model)
    alone = sum(
        model(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss.item()
        * sum(label != -100 for label in row["labels"])
        for row in dataset
    )
    expected = alone / supervision.supervised_tokens
    for size in (1, 2, 5):
        settings = {"packing": packing, "per_device_eval_batch_size": size, "per_device_train_batch_size": 12}
        trainer = lora_trainer(FinetuneTrainer, chat_model, tokenizer, rows, tmp_path, **settings)
        assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)
    batch = next(iter(trainer.get_train_dataloader()))
    assert trainer.compute_loss(trainer.model.eval(), batch).item() == pytest.approx(expected, rel=1e-5)


def adapter_of(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items() if "lora_" in name}


def test_a_resumed_run_ends_with_the_weights_of_an_undisturbed_one(chat_model, tokenizer, rows, tmp_path):
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 3}

    def trainer():
        return lora_trainer(FinetuneTrainer, chat_model, tokenizer, rows, tmp_path / "run", **settings)

    whole = trainer()
    whole.train()
    shutil.rmtree(tmp_path / "run" / "checkpoint-6")
    resumed = trainer()
    resumed.train(resume_from_checkpoint=last_checkpoint(tmp_path / "run"))
    expected = adapter_of(whole)
    assert adapter_of(resumed).keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in adapter_of(resumed).items())
    assert resumed.final_metrics()["eval_loss"] == whole.final_metrics()["eval_loss"]


@pytest.mark.parametrize("packing", [True, False])
def test_rows_of_new_tokens_are_in_the_checkpoints(untied_base, rows, tmp_path, packing):
    def trainer():
        torch.manual_seed(0)
        tokenizer, new_tokens = load_chat_tokenizer(str(untied_base), "main", allow_mismatch=False)
        dataset, _ = supervise(rows, tokenizer, 128, "test")
        args = FinetuneArguments(
            output_dir=str(tmp_path / "run"), max_steps=4, learning_rate=1e-2, report_to="none", bf16=False,
            packing=packing, max_length=128, disable_tqdm=True, save_strategy="steps", save_steps=2,
            eval_strategy="no", per_device_train_batch_size=2,
        )  # fmt: skip
        return FinetuneTrainer(
            model=load_trainable(ModelArguments(lora_r=4, dtype="float32"), str(untied_base), tokenizer, new_tokens),
            args=args, train_dataset=dataset, eval_dataset=dataset, processing_class=tokenizer,
        )  # fmt: skip

    whole = trainer()
    whole.train()
    assert whole.evaluate()["eval_loss"] > 0
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    trained = {name: value for name, value in whole.model.named_parameters() if value.requires_grad}
    assert sum("trainable_tokens_delta" in name for name in trained) == 2
    assert all(torch.equal(resumed.model.get_parameter(name), value) for name, value in trained.items())


def test_an_evaluation_that_fails_does_not_end_the_training(chat_model, tokenizer, rows, tmp_path, capsys):
    settings = {"eval_strategy": "steps", "eval_steps": 1}
    trainer = lora_trainer(FinetuneTrainer, chat_model, tokenizer, rows, tmp_path, **settings)

    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("no memory left")

    trainer.prediction_step = fail
    trainer.train()
    assert trainer.state.global_step == 3
    assert "the evaluation failed, training goes on: OutOfMemoryError: no memory left" in capsys.readouterr().out


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("split", ["train_dataset", "eval_dataset"])
def test_what_trl_would_cut_is_refused(chat_model, tokenizer, rows, tmp_path, packing, split):
    whole, _ = supervise(rows, tokenizer, 64, "test")
    short = whole.map(lambda row: {name: row[name][-16:] for name in ("input_ids", "labels")})
    datasets = {"train_dataset": short, "eval_dataset": short} | {split: whole}
    args = SFTConfig(str(tmp_path), max_length=16, packing=packing, use_cpu=True, bf16=False, report_to="none")
    model = AutoModelForCausalLM.from_pretrained(chat_model)
    with pytest.raises(UserError, match=r"max_length: .* tokens would be cut off"):
        FinetuneTrainer(model=model, args=args, processing_class=tokenizer, **datasets)


@pytest.mark.parametrize(
    ("settings", "rate"),
    [
        ({}, 2e-4),
        ({"use_peft": False}, 2e-5),
        ({"use_dora": True}, 2e-4),
        ({"use_rslora": True, "lora_r": 64}, 2.5e-5),
    ],
)
def test_the_learning_rate_follows_from_what_is_trained(settings, rate, tmp_path):
    args, model_args = FinetuneArguments(output_dir=str(tmp_path)), ModelArguments(**settings)
    args, _ = args.derive(model_args)
    assert args.learning_rate == pytest.approx(rate)
    asked = FinetuneArguments(output_dir=str(tmp_path), learning_rate=3e-3)
    asked, _ = asked.derive(model_args)
    assert asked.learning_rate == 3e-3


def test_other_losses_are_those_of_trl(chat_model, tokenizer, rows, tmp_path):
    settings = {"loss_type": "dft"}
    ours = losses(lora_trainer(FinetuneTrainer, chat_model, tokenizer, rows, tmp_path, **settings))
    assert ours == pytest.approx(losses(lora_trainer(SFTTrainer, chat_model, tokenizer, rows, tmp_path, **settings)))
    assert ours != pytest.approx(losses(lora_trainer(FinetuneTrainer, chat_model, tokenizer, rows, tmp_path)))
