import importlib.util
import shutil

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from peft.tuners.lora import LoraLayer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from hfchat.adapters import put_adapter
from hfchat.chat_template import TURN_END, TURN_START, fingerprint, set_chat_template
from hfchat.config import parse
from hfchat.errors import UserError
from hfchat.models import load_model
from hfchat.training.adapters import ModelArguments, describe_trainable, load_trainable
from hfchat.training.supervision import load_chat_tokenizer


def trainable(model):
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def test_by_default_an_adapter_on_every_linear_layer_but_the_head_is_trained(chat_model, tokenizer):
    model = load_trainable(ModelArguments(dtype="bfloat16"), str(chat_model), tokenizer)
    adapted = [name for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    assert len(adapted) == 2 * 7
    assert not any("lm_head" in name for name in adapted)
    assert {value.dtype for value in trainable(model).values()} == {torch.float32}
    assert model.get_base_model().lm_head.weight.dtype == torch.bfloat16


def test_all_weights_are_trained_in_float32(chat_model, tokenizer):
    model = load_trainable(ModelArguments(use_peft=False, dtype="bfloat16"), str(chat_model), tokenizer)
    assert len(trainable(model)) == len(list(model.parameters()))
    assert model.dtype == torch.float32


def test_dora_and_rslora_are_those_of_peft(chat_model, tokenizer):
    dora = load_trainable(ModelArguments(use_dora=True), str(chat_model), tokenizer)
    assert any("lora_magnitude_vector" in name for name in trainable(dora))
    rslora = load_trainable(ModelArguments(use_rslora=True, lora_r=16, lora_alpha=32), str(chat_model), tokenizer)
    layer = next(module for module in rslora.modules() if isinstance(module, LoraLayer))
    assert layer.scaling["default"] == 32 / 16**0.5


def test_turns_that_a_base_does_not_know_get_embeddings_that_are_trained_and_saved(plain_base, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(plain_base)
    new_tokens = set_chat_template(tokenizer, add_tokens=True)
    assert tokenizer.convert_ids_to_tokens(new_tokens) == [TURN_START, TURN_END]
    model = load_trainable(ModelArguments(dtype="float32"), str(plain_base), tokenizer, new_tokens)
    before = model.get_input_embeddings()(torch.arange(len(tokenizer))).detach().clone()
    torch.testing.assert_close(before[new_tokens[0]], before[: new_tokens[0]].mean(0))

    ids = torch.tensor([tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], return_dict=False)])
    optimizer = torch.optim.SGD(trainable(model).values(), lr=10.0)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    after = model.get_input_embeddings()(torch.arange(len(tokenizer))).detach()
    changed = (after != before).any(-1).nonzero().flatten().tolist()
    assert changed == new_tokens

    model.save_pretrained(tmp_path, save_embedding_layers=False)
    tokenizer.save_pretrained(tmp_path)
    reloaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path, dtype="float32")
    torch.testing.assert_close(reloaded(ids).logits[..., : len(tokenizer)], model(ids).logits[..., : len(tokenizer)])


def ask(model, tokenizer, question):
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False, return_tensors="pt"
    )
    return model.generate(prompt, do_sample=False, max_new_tokens=8, eos_token_id=tokenizer.eos_token_id)[
        0, prompt.shape[1] :
    ].tolist()


def test_an_adapter_on_a_base_without_turns_learns_to_stop(untied_base, tmp_path):
    tokenizer, new_tokens = load_chat_tokenizer(str(untied_base), "main", allow_mismatch=False)
    model = load_trainable(ModelArguments(dtype="float32"), str(untied_base), tokenizer, new_tokens)
    turns = [[{"role": "user", "content": f"Q {i}"}, {"role": "assistant", "content": "Yes."}] for i in range(8)]
    encoded = tokenizer.apply_chat_template(
        turns, return_dict=True, return_tensors="pt", return_assistant_tokens_mask=True, padding=True
    )
    ids, labels = encoded["input_ids"], encoded["input_ids"].masked_fill(encoded["assistant_masks"] == 0, -100)
    with model.disable_adapter():
        before = model(input_ids=ids).logits
    torch.testing.assert_close(model(input_ids=ids).logits, before)
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=2e-2)
    for _ in range(40):
        model(input_ids=ids, attention_mask=encoded["attention_mask"], labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    model.eval()
    answer = [*tokenizer("Yes.")["input_ids"], tokenizer.eos_token_id]
    assert ask(model, tokenizer, "Q 9") == answer
    with model.disable_adapter():
        torch.testing.assert_close(model(input_ids=ids).logits, before, msg="the base is the reference, as it was")
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    stored = load_model(str(untied_base))
    merged = put_adapter(stored, tmp_path, tokenizer).merge_and_unload()
    assert ask(merged, tokenizer, "Q 9") == answer
    for end in (merged.get_input_embeddings(), merged.get_output_embeddings()):
        assert not torch.equal(*end.weight[new_tokens])


def test_a_head_that_its_config_calls_tied_is_not_tied_when_it_grows(untied_base, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(untied_base)
    model.config.tie_word_embeddings = True  # and yet the file has an output layer of its own
    model.config.save_pretrained(tmp_path)
    shutil.copy(untied_base / "model.safetensors", tmp_path)
    tokenizer, new_tokens = load_chat_tokenizer(str(untied_base), "main", allow_mismatch=False)
    trained = load_trainable(ModelArguments(dtype="float32"), str(tmp_path), tokenizer, new_tokens)
    known = trained.get_output_embeddings().weight[: new_tokens[0]]
    torch.testing.assert_close(known, model.get_output_embeddings().weight)
    assert sum("trainable_tokens_delta" in name for name in trainable(trained)) == 2


@pytest.mark.parametrize(
    ("architecture", "options", "problem"),
    [
        ("phi", {}, "its output layer has a bias, and beside one an adapter cannot train the rows of new tokens"),
        ("llama", {"lora_modules_to_save": ["embed_tokens"]}, "lora_modules_to_save embed_tokens: holds the embed"),
    ],
)
def test_rows_that_an_adapter_cannot_train_are_refused(plain_base, tmp_path, architecture, options, problem):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model(architecture, vocab_size=320, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer, new_tokens = load_chat_tokenizer(str(plain_base), "main", allow_mismatch=False)
    with pytest.raises(UserError, match=problem):
        load_trainable(ModelArguments(**options), str(tmp_path), tokenizer, new_tokens)
    whole = ModelArguments(lora_modules_to_save=["lm_head"])
    if architecture == "llama":  # a head that is trained in all of its rows has theirs too
        model = load_trainable(whole, str(tmp_path), tokenizer, new_tokens)
        assert list(model.active_peft_config.trainable_token_indices) == ["model.embed_tokens"]


def test_an_adapter_is_no_base(chat_model, tokenizer, tmp_path):
    load_trainable(ModelArguments(), str(chat_model), tokenizer).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"is an adapter; merge it first, with `hfchat certify"):
        load_trainable(ModelArguments(), str(tmp_path), tokenizer)


def test_an_adapter_of_modules_that_the_base_lacks_is_refused(chat_model, tokenizer):
    with pytest.raises(UserError, match=r"the adapter does not fit .*: Target modules .*nope.* not found"):
        load_trainable(ModelArguments(lora_target_modules=["nope"]), str(chat_model), tokenizer)


def test_a_folder_has_no_revisions(chat_model, tokenizer):
    with pytest.raises(UserError, match=r"model_revision v2: .* is a folder, which has no revisions"):
        load_trainable(ModelArguments(model_revision="v2"), str(chat_model), tokenizer)


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (["--use_peft", "false", "--load_in_4bit", "true"], "use_peft: weights in 4 or 8 bits cannot be trained"),
        (["--use_peft", "false", "--use_dora", "true"], "use_dora: is a kind of adapter"),
        (["--dtype", "float8"], "dtype"),
        (["--lora_r", "0"], "lora_r: must be at least 1, not 0"),
    ],
)
def test_methods_that_exclude_each_other_are_refused(argv, problem):
    with pytest.raises(UserError, match=problem):
        parse(ModelArguments, argv=argv)


def test_weights_in_4_bits_are_frozen_under_an_adapter(chat_model, tokenizer):
    pytest.importorskip("bitsandbytes")
    model = load_trainable(ModelArguments(load_in_4bit=True, dtype="bfloat16"), str(chat_model), tokenizer)
    ids = torch.tensor([tokenizer("The answer is")["input_ids"]])
    model(input_ids=ids, labels=ids).loss.backward()
    packed = model.get_base_model().model.layers[0].mlp.down_proj.base_layer.weight
    assert packed.dtype == torch.uint8
    assert not packed.requires_grad
    assert all("lora_" in name and value.grad is not None for name, value in trainable(model).items())


def test_without_bitsandbytes_4_bits_say_what_to_install(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find_spec(name))
    with pytest.raises(UserError, match=r"pip install 'hfchat\[quantization\]'"):
        parse(ModelArguments, argv=["--load_in_4bit", "true"])


def test_what_is_trained_and_whose_template_it_is_are_said(chat_model, plain_base, tokenizer):
    layers = AutoModelForCausalLM.from_pretrained(chat_model).model.layers
    linear = [module for module in layers.modules() if isinstance(module, torch.nn.Linear)]
    weights = sum(4 * (module.in_features + module.out_features) for module in linear)
    args = ModelArguments(str(chat_model), lora_r=4)
    said = describe_trainable(load_trainable(args, str(chat_model), tokenizer), args, 2e-4, tokenizer)
    assert said.startswith(f"LoRA of rank 4 on {chat_model} (revision main): {weights:,} weights are trained, ")
    assert "learning rate 0.0002" in said
    assert f"chat template {fingerprint(tokenizer)}: that of the base" in said
    args = ModelArguments(str(plain_base), use_peft=False)
    plain, new_tokens = load_chat_tokenizer(str(plain_base), "main", allow_mismatch=False)
    model = load_trainable(args, str(plain_base), plain, new_tokens)
    said = describe_trainable(model, args, 2e-5, plain, new_tokens)
    assert said.startswith(f"all weights on {plain_base}")
    assert said.endswith("introduced here, with embeddings for 2 new tokens")
