import math
from copy import copy

import pytest
import torch
from transformers import TrainingArguments

from hfchat.dataset import load_split
from hfchat.training.bits_per_byte import bits_per_byte, negative_log_likelihood
from hfchat.training.dial import Dial
from hfchat.training.optimizer import MuonWithAdamW
from recipes.pretrain import PretrainTrainer
from tests.conftest import tiny_model


def trainer_for(packed, tokenizer, output_dir, optimizer="muon", **arguments):
    settings = {
        "max_steps": 3, "learning_rate": 1e-2, "report_to": "none", "use_cpu": True, "disable_tqdm": True,
        "logging_steps": 1, "save_strategy": "no", "seed": 3,
    }  # fmt: skip
    model = tiny_model(tokenizer)
    muon = MuonWithAdamW(model, lr=settings["learning_rate"], weight_decay=0.1, betas=(0.9, 0.95))
    return PretrainTrainer(
        model=model,
        optimizers=(muon if optimizer == "muon" else None, None),
        processing_class=tokenizer,
        args=TrainingArguments(output_dir=str(output_dir), **settings | arguments),
        train_dataset=packed["train"],
        eval_dataset=packed["validation"],
        compute_metrics=bits_per_byte(packed["validation"].num_bytes),
        preprocess_logits_for_metrics=negative_log_likelihood,
    )


def test_bits_per_byte_are_those_of_the_documents_one_by_one(packed, tokenizer, corpus, tmp_path):
    """In one block that holds all documents: what they cost must not depend on their neighbours."""
    whole = copy(packed["validation"])
    whole.block_size = len(whole.tokens)
    trainer = trainer_for({"train": packed["train"], "validation": whole}, tokenizer, tmp_path)
    metrics = trainer.evaluate()
    nats, count = 0.0, 0
    for text in load_split(str(corpus), "validation", "text")["text"]:
        ids = [tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False), tokenizer.bos_token_id]
        ids = torch.tensor([ids])
        log_probs = trainer.model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        nats -= log_probs.gather(-1, ids[0, 1:, None]).sum().item()
        count += ids.shape[1] - 1
    assert metrics["eval_predicted_tokens"] == count
    assert metrics["eval_bits_per_byte"] == pytest.approx(nats / math.log(2) / whole.num_bytes, 1e-5)
    assert metrics["eval_perplexity"] == pytest.approx(math.exp(nats / count), 1e-5)
    # The loss that is trained on is the one that is reported: of the next token, not of the one after it.
    assert metrics["eval_loss"] == pytest.approx(nats / count, 1e-5)


def test_bits_per_byte_do_not_depend_on_the_batch(packed, tokenizer, tmp_path):
    first, second = (
        trainer_for(packed, tokenizer, tmp_path, per_device_eval_batch_size=size).evaluate() for size in (1, 7)
    )
    assert first["eval_bits_per_byte"] == pytest.approx(second["eval_bits_per_byte"], 1e-6)


def test_the_loss_does_not_change_when_a_batch_of_8_becomes_8_steps_of_1(packed, tokenizer, tmp_path):
    def losses(batch, accumulation):
        # Muon's orthogonalisation, in bfloat16, would blow rounding up.
        trainer = trainer_for(
            packed,
            tokenizer,
            tmp_path,
            optimizer="adamw",
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
        )
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    assert losses(8, 1) == pytest.approx(losses(1, 8), rel=1e-5)


def test_a_checkpoint_cut_while_it_is_written_is_not_resumed_from(packed, tokenizer, tmp_path, monkeypatch):
    from hfchat.training.checkpoints import last_checkpoint

    assert last_checkpoint(tmp_path / "nothing") is None
    trainer = trainer_for(packed, tokenizer, tmp_path, save_strategy="steps", save_steps=1)
    save_rng_state = trainer._save_rng_state

    def die_in_the_second(output_dir):
        if output_dir.endswith("checkpoint-2"):
            raise KeyboardInterrupt
        save_rng_state(output_dir)

    monkeypatch.setattr(trainer, "_save_rng_state", die_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert last_checkpoint(tmp_path).endswith("checkpoint-1")
    resumed = trainer_for(packed, tokenizer, tmp_path, save_strategy="steps", save_steps=1, save_total_limit=2)
    resumed.train(resume_from_checkpoint=last_checkpoint(tmp_path))
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]
    undisturbed = trainer_for(packed, tokenizer, tmp_path / "undisturbed")
    undisturbed.train()
    for name, weight in undisturbed.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_dial_makes_plain_models_that_reload(tokenizer, tmp_path, architecture):
    from transformers import AutoModelForCausalLM

    dial = Dial.from_depth(3)
    config = dial.model_config(architecture, tokenizer, block_size=64)
    model = AutoModelForCausalLM.from_config(config)
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (3, 192, 3)
    assert config.max_position_embeddings == 64
    model.save_pretrained(tmp_path)
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path)) is type(model)


def test_a_wider_model_learns_more_slowly():
    assert Dial.from_depth(8).learning_rate == Dial.from_depth(4).learning_rate / 2
    assert Dial.from_depth(12).intermediate_size == 2048


def test_muon_takes_the_hidden_matrices_and_adamw_the_rest(tokenizer):
    for architecture in ("llama", "gpt2"):
        model = tiny_model(tokenizer, architecture)
        optimizer = MuonWithAdamW(model, lr=1e-2, weight_decay=0.1, betas=(0.9, 0.95))
        muon, adamw = ({id(p) for p in group["params"]} for group in optimizer.param_groups)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        assert muon | adamw == set(names)
        assert {names[i].split(".")[-2] for i in muon} <= {
            "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "c_attn", "c_fc", "c_proj",
        }  # fmt: skip
        assert any("wte" in names[i] or "embed" in names[i] for i in adamw)


def test_a_schedule_reaches_both_parts_after_the_state_is_loaded(tokenizer):
    model = tiny_model(tokenizer)
    optimizer = MuonWithAdamW(model, lr=1.0, weight_decay=0.1, betas=(0.9, 0.95))
    optimizer.load_state_dict(optimizer.state_dict())
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    model(input_ids=torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()
    optimizer.step()
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
