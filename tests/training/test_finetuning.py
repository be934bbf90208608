from itertools import pairwise

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from hfchat.dataset import check_messages
from hfchat.errors import UserError
from hfchat.training import adapters
from hfchat.training.adapters import merge_adapter
from hfchat.training.finetuning import FinetuneTrainer
from hfchat.training.supervision import show_supervised, supervise

CONVERSATIONS = [
    [
        {"role": "user", "content": f"Question {i}?"},
        {"role": "assistant", "content": f"The answer is {i}." * (1 + i % 3)},
    ]
    for i in range(12)
]


@pytest.fixture
def rows():
    return Dataset.from_dict({"messages": CONVERSATIONS})


def test_supervised_tokens_are_counted_and_shown(rows, tokenizer):
    dataset, supervision = supervise(rows, tokenizer, 128, "test")
    assert supervision.conversations == 12
    assert supervision.too_long == 0
    assert supervision.supervised_tokens == sum(label != -100 for row in dataset["labels"] for label in row)
    assert 0 < supervision.supervised_tokens < supervision.tokens
    assert show_supervised(dataset[0], tokenizer) == (
        "<|im_start|>user\nQuestion 0?<|im_end|>\n<|im_start|>assistant\n⟦The answer is 0.<|im_end|>⟧\n"
    )


def test_long_conversations_are_left_out_and_reported_not_cut(rows, tokenizer):
    everything, _ = supervise(rows, tokenizer, 128, "test")
    longest = max(map(len, everything["input_ids"]))
    kept, supervision = supervise(rows, tokenizer, longest - 1, "test")
    assert supervision.too_long == 12 - len(kept) > 0
    assert "longer than max_length were left out" in str(supervision)
    assert all(labels[-2] == tokenizer.eos_token_id for labels in kept["labels"])
    with pytest.raises(UserError, match="max_length 3: all 12 conversations of test are longer"):
        supervise(rows, tokenizer, 3, "test")


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", "marks no supervised tokens"),
        (
            "{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}<|im_end|>{% endfor %}",
            "the end-of-turn token <.im_end.> gets no loss",
        ),
    ],
)
def test_a_template_that_teaches_nothing_or_never_to_stop_is_refused(rows, chat_model, template, problem):
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=problem):
        supervise(rows, tokenizer, 128, "test")


def test_padding_with_the_end_of_turn_is_refused(rows, chat_model):
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    tokenizer.pad_token = tokenizer.eos_token
    with pytest.raises(UserError, match="never learn to stop"):
        supervise(rows, tokenizer, 128, "test")


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ("Hello", "must be a list of turns"),
        ([], "must be a list of turns"),
        ([{"role": "human", "content": "Hi"}], "turn 0 has the role 'human'"),
        ([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": " "}], r"turn 1 \(assistant\) has no"),
        ([{"role": "user", "content": "Hi"}], "the last turn must be the assistant's"),
    ],
)
def test_what_is_no_conversation_is_named(messages, problem):
    with pytest.raises(UserError, match=f"row 7: .*{problem}"):
        check_messages(messages, "row 7")


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
    packed = model(**batch).logits[0]
    starts = [*(batch["position_ids"][0] == 0).nonzero().flatten().tolist(), packed.shape[0]]
    assert len(starts) > 3
    for start, end in pairwise(starts):
        expected = alone[tuple(batch["input_ids"][0, start:end].tolist())]
        torch.testing.assert_close(packed[start:end], expected, atol=1e-5, rtol=1e-4)


def test_the_merged_model_is_the_trained_one_and_reloads_in_its_dtype(chat_model, tokenizer, rows, tmp_path):
    trainer = lora_trainer(FinetuneTrainer, chat_model, tokenizer, rows, tmp_path / "run")
    trainer.train()
    drift = merge_adapter(
        trainer.model, str(chat_model), tokenizer, tmp_path, [tokenizer("The answer is")["input_ids"]]
    )
    assert drift < 1e-6
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert merged.generation_config.eos_token_id == tokenizer.eos_token_id
    assert merged.config.use_cache
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template == tokenizer.chat_template
    prompt = torch.tensor([tokenizer("The answer")["input_ids"]])
    base = AutoModelForCausalLM.from_pretrained(chat_model)
    assert not torch.allclose(merged(prompt).logits, base(prompt).logits, atol=1e-3), "the adapter was not merged"
    torch.testing.assert_close(merged(prompt).logits, trainer.model.eval()(prompt).logits, atol=1e-4, rtol=1e-4)


def test_a_merge_that_changed_the_model_is_refused(chat_model, tokenizer, rows, tmp_path, monkeypatch):
    trainer = lora_trainer(FinetuneTrainer, chat_model, tokenizer, rows, tmp_path / "run")
    load = adapters.load_model

    def load_with_one_changed_weight(name, **kwargs):
        model = load(name, **kwargs)
        if name.endswith("merged"):
            model.model.layers[0].mlp.down_proj.weight.data *= 50
        return model

    monkeypatch.setattr(adapters, "load_model", load_with_one_changed_weight)
    with pytest.raises(RuntimeError, match="the merged model is not the trained one"):
        merge_adapter(trainer.model, str(chat_model), tokenizer, tmp_path, [tokenizer("The answer is")["input_ids"]])
