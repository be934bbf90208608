import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, LlamaConfig

from hfchat.errors import UserError
from hfchat.tokenization.bpe import train_bpe
from hfchat.training.initial_model import load_initial_model
from hfchat.training.pretrain_arguments import PretrainArguments
from tests.conftest import TEXTS, tiny_model

IDS = torch.arange(10, 42).view(2, 16)


def arguments(**settings):
    return PretrainArguments(output_dir="unused", use_cpu=True, bf16=False, **{"block_size": 64} | settings)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def base(request, tokenizer, tmp_path_factory):
    """A base model of 128 tokens of context and its tokenizer, which leaves no row of the embeddings free."""
    folder = tmp_path_factory.mktemp(request.param)
    model = tiny_model(tokenizer, request.param)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("architecture", "config_type"), [("llama", LlamaConfig), ("gpt2", GPT2Config)])
def test_a_new_model_is_plain_and_reloads_as_it_was(tokenizer_folder, tmp_path, architecture, config_type, tied):
    args = arguments(
        tokenizer_name=tokenizer_folder, depth=2, architecture=architecture, tie_word_embeddings=tied,
        add_tokens=["<|tool|>"],
    )  # fmt: skip
    model, tokenizer = load_initial_model(args)
    assert tokenizer.convert_tokens_to_ids("<|tool|>") == len(tokenizer) - 1
    assert model.config.vocab_size == model.get_input_embeddings().num_embeddings == -(-len(tokenizer) // 64) * 64
    assert len(tokenizer) % 64 > 0
    assert model.config.max_position_embeddings == 64
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    model.save_pretrained(tmp_path)
    keys = json.loads((tmp_path / "config.json").read_text()).keys()
    assert keys <= config_type().to_dict().keys() | {"architectures", "dtype", "transformers_version"}
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(reloaded) is type(model)
    torch.testing.assert_close(reloaded(IDS).logits, model.eval()(IDS).logits, atol=0, rtol=0)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_every_layer_of_a_new_model_starts_as_the_identity(tokenizer_folder, architecture):
    model, _ = load_initial_model(arguments(tokenizer_name=tokenizer_folder, depth=2, architecture=architecture))
    seen = []
    layers = model.base_model.layers if architecture == "llama" else model.base_model.h
    for layer in layers:
        layer.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    model(IDS)
    assert len(seen) == 2
    for before, after in seen:
        assert torch.equal(before, after)
    assert model.get_input_embeddings().weight.std() > 0.01
    model(IDS, labels=IDS).loss.backward()
    assert any(parameter.grad.abs().sum() > 0 for parameter in layers.parameters()), "nothing could be learned"


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_dropout_is_there_in_training_alone(tokenizer_folder, architecture):
    settings = {"tokenizer_name": tokenizer_folder, "depth": 2, "architecture": architecture}
    model, _ = load_initial_model(arguments(dropout=0.5, **settings))
    for parameter in model.parameters():
        if parameter.ndim == 2 and not parameter.any():  # those that start as zero would hide it
            torch.nn.init.normal_(parameter, std=0.1)
    assert not torch.equal(model.train()(IDS).logits, model(IDS).logits)
    assert torch.equal(model.eval()(IDS).logits, model(IDS).logits)


def test_tokens_added_to_a_model_get_rows_near_the_mean_of_the_others(base):
    before = AutoModelForCausalLM.from_pretrained(base)
    old = before.get_input_embeddings().weight
    size = len(old)
    model, tokenizer = load_initial_model(arguments(model_name_or_path=base, add_tokens=["<|tool|>", "<|result|>"]))
    new = model.get_input_embeddings().weight
    assert tokenizer.encode("a<|tool|>b<|result|>", add_special_tokens=False)[1::2] == [size, size + 1]
    assert tokenizer.decode([size, size + 1], skip_special_tokens=True) == ""
    assert len(new) == model.config.vocab_size == -(-len(tokenizer) // 64) * 64
    assert torch.equal(new[:size], old)
    spread = (old - old.mean(0)).norm(dim=1).mean()
    assert ((new[size:] - old.mean(0)).norm(dim=1) < 0.1 * spread).all()
    assert model.get_output_embeddings().weight is new
    ids = torch.tensor([tokenizer.encode("the model<|tool|>")])
    assert model(ids).logits.shape[-1] == len(new)
    torch.testing.assert_close(model(IDS).logits[..., :size], before(IDS).logits)


def test_a_model_with_two_ends_gets_both(tokenizer, tmp_path):
    model = tiny_model(tokenizer)
    model.config.tie_word_embeddings = False
    model = type(model)(model.config)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    grown, extended = load_initial_model(arguments(model_name_or_path=str(tmp_path), add_tokens=["<|tool|>"]))
    head, old = grown.get_output_embeddings().weight, model.get_output_embeddings().weight
    assert head is not grown.get_input_embeddings().weight
    assert len(head) == -(-len(extended) // 64) * 64
    assert torch.equal(head[: len(old)], old)
    assert (head[len(old) :] - old.mean(0)).norm(dim=1).max() < 0.1 * old.norm(dim=1).mean()


def test_tokens_that_are_there_already_change_nothing(base, tokenizer):
    model, same = load_initial_model(arguments(model_name_or_path=base, add_tokens=["<|im_start|>", "<|im_end|>"]))
    assert len(same) == len(tokenizer)
    assert model.config.vocab_size == len(tokenizer)


def test_a_tokenizer_that_extends_the_models_own_is_taken(base, tmp_path):
    extended = AutoTokenizer.from_pretrained(base)
    extended.add_tokens(["<|tool|>"])
    extended.save_pretrained(tmp_path)
    model, tokenizer = load_initial_model(arguments(model_name_or_path=base, tokenizer_name=str(tmp_path)))
    assert "<|tool|>" in tokenizer.get_vocab()
    assert model.config.vocab_size >= len(tokenizer)


def test_a_foreign_tokenizer_is_refused(base, tmp_path):
    train_bpe(TEXTS[:3], vocab_size=400).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"^tokenizer_name .*: gives [\d,]+ of the model's tokens another id"):
        load_initial_model(arguments(model_name_or_path=base, tokenizer_name=str(tmp_path)))


def test_sequences_beyond_the_context_are_refused(base):
    load_initial_model(arguments(model_name_or_path=base, block_size=128))
    with pytest.raises(UserError, match="block_size 129: the model's context is 128 tokens"):
        load_initial_model(arguments(model_name_or_path=base, block_size=129))
