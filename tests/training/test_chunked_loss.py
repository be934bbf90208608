import pytest
import torch
from transformers import AutoModelForCausalLM, GraniteConfig, Trainer, TrainingArguments, default_data_collator

from hfchat.errors import UserError
from hfchat.training.chunked_loss import use_chunked_loss
from hfchat.training.dial import Shape
from tests.conftest import needs_chunked_loss, tiny_model

LOSS_KEYS = {"labels", "shift_labels"}


@pytest.fixture
def batch(packed):
    return default_data_collator([packed["train"][index] for index in range(4)])


def build(tokenizer, architecture, *, tied, depth=2):
    torch.manual_seed(0)
    shape = Shape.from_depth(depth)
    return AutoModelForCausalLM.from_config(
        shape.model_config(architecture, tokenizer, block_size=128, tie_word_embeddings=tied)
    )


def loss_and_gradients(model, batch, autocast=False, **kwargs):
    model.train().zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = model(**batch, use_cache=False, **kwargs)
    output.loss.backward()
    return output, {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@needs_chunked_loss
@pytest.mark.parametrize("num_items", [None, 200])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_loss_and_its_gradients_are_the_ordinary_ones(tokenizer, batch, architecture, tied, num_items):
    model = build(tokenizer, architecture, tied=tied)
    kwargs = {} if num_items is None else {"num_items_in_batch": torch.tensor(num_items)}
    expected, gradients = loss_and_gradients(model, batch, **kwargs)
    use_chunked_loss(model)
    output, chunked = loss_and_gradients(model, batch, **kwargs)
    assert output.logits is None
    torch.testing.assert_close(output.loss, expected.loss, atol=1e-5, rtol=1e-5)
    assert chunked.keys() == gradients.keys()
    for name in gradients:
        torch.testing.assert_close(chunked[name], gradients[name], atol=1e-5, rtol=1e-4, msg=name)


@needs_chunked_loss
def test_the_loss_keeps_its_digits_in_bfloat16(tokenizer, batch):
    """Three of them: summed in bfloat16, a loss of 6.25 would be some 0.1 off."""
    model = build(tokenizer, "llama", tied=True)
    expected, gradients = loss_and_gradients(model, batch)
    use_chunked_loss(model)
    output, chunked = loss_and_gradients(model, batch, autocast=True)
    assert output.loss.dtype == torch.float32
    torch.testing.assert_close(output.loss, expected.loss, atol=0, rtol=5e-4)
    for name in gradients:
        difference = (chunked[name] - gradients[name]).norm() / gradients[name].norm()
        assert difference < 0.03, name


@needs_chunked_loss
def test_what_an_evaluation_sees_does_not_change(tokenizer, batch):
    model = build(tokenizer, "llama", tied=True).eval()
    expected = model(**batch)
    use_chunked_loss(model)
    output = model(**batch)
    assert torch.equal(output.logits, expected.logits)
    assert torch.equal(output.loss, expected.loss)
    model.train()
    inputs = {key: value for key, value in batch.items() if key not in LOSS_KEYS}
    torch.testing.assert_close(model(**inputs).logits, expected.logits)


@needs_chunked_loss
def test_it_can_be_compiled(tokenizer, batch):
    model = build(tokenizer, "llama", tied=True, depth=1)
    expected, gradients = loss_and_gradients(model, batch)
    use_chunked_loss(model)
    compiled = torch.compile(model, backend="eager")
    output = compiled(**batch, use_cache=False)
    model.zero_grad()
    output.loss.backward()
    torch.testing.assert_close(output.loss, expected.loss, atol=1e-5, rtol=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-5, rtol=1e-4, msg=name)


def losses(model, packed, output_dir, **arguments):
    settings = {
        "max_steps": 3, "learning_rate": 1e-2, "report_to": "none", "use_cpu": True, "disable_tqdm": True,
        "logging_steps": 1, "save_strategy": "no", "remove_unused_columns": False,
    }  # fmt: skip
    trainer = Trainer(
        model=model,
        args=TrainingArguments(output_dir=str(output_dir), **settings | arguments),
        train_dataset=packed["train"],
        eval_dataset=packed["validation"],
        data_collator=default_data_collator,
    )
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return [*logged, trainer.evaluate()["eval_loss"]]


@needs_chunked_loss
@pytest.mark.parametrize("bf16", [False, True])
def test_a_trainer_gets_the_same_losses_over_accumulation_too(tokenizer, packed, tmp_path, bf16):
    """Without `num_items_in_batch`, the loss of 4 x 2 would be another than that of 1 x 8."""
    ordinary = losses(tiny_model(tokenizer), packed, tmp_path, per_device_train_batch_size=8)
    chunked = tiny_model(tokenizer)
    use_chunked_loss(chunked)
    split = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "bf16": bf16}
    assert losses(chunked, packed, tmp_path, **split) == pytest.approx(ordinary, rel=2e-2 if bf16 else 1e-4)


def test_an_old_pytorch_is_refused(tokenizer, monkeypatch):
    monkeypatch.delattr(torch.nn.functional, "linear_cross_entropy", raising=False)
    with pytest.raises(UserError, match=r"chunked_loss: needs PyTorch 2\.13 or newer, this is"):
        use_chunked_loss(tiny_model(tokenizer))


@needs_chunked_loss
def test_a_model_that_scales_its_logits_is_refused():
    config = GraniteConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, logits_scaling=8.0,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    forward = model.forward
    with pytest.raises(UserError, match="chunked_loss: the logits of GraniteForCausalLM"):
        use_chunked_loss(model)
    assert model.forward == forward
    assert model.training
