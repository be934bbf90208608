"""Adapters beside their base: each answers as it would alone, and the base's weights are in memory once."""

import shutil

import pytest
import torch

from hfchat.adapters import load_base, put_adapter
from hfchat.errors import UserError
from hfchat.export.merging import save_adapter
from hfchat.models import add_special_tokens, embed_new_tokens
from hfchat.serving.engines.adapters import beside, parse_adapters
from hfchat.serving.settings import ServerSettings
from hfchat.serving.versions import loading


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny_tokenizer, tiny_model):
    folder = tmp_path_factory.mktemp("served") / "base"
    tiny_tokenizer.save_pretrained(folder)
    tiny_model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(base, tiny_tokenizer):
    return make_adapter(base, base.parent / "adapter", tiny_tokenizer, target_modules=["q_proj", "up_proj"])


def make_adapter(base, folder, tokenizer, added=0, **config):
    """An adapter with random weights, which changes what the base says."""
    from peft import LoraConfig, get_peft_model

    model = load_base(str(base))
    known = len(tokenizer) - added
    embed_new_tokens(model, known, len(tokenizer))
    if added:
        ends = ("model.embed_tokens", "lm_head")  # which are not tied
        config["trainable_token_indices"] = {end: list(range(known, len(tokenizer))) for end in ends}
    model = get_peft_model(model, LoraConfig(**config))
    torch.manual_seed(1)
    for weight in model.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.3)
    save_adapter(model, tokenizer, folder, str(base), None, load_base(str(base)))
    return folder


def greedy(model, tokenizer):
    messages = [{"role": "user", "content": "What is hfchat?"}]
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False, return_tensors="pt"
    )
    output = model.generate(prompt, do_sample=False, max_new_tokens=30)[0, prompt.shape[1] :]
    return tokenizer.decode(output, skip_special_tokens=True).rstrip("\ufffd")


def test_each_answers_as_it_would_alone(serve, base, adapter, tiny_model, tiny_tokenizer):
    settings = ServerSettings(model=str(base), adapters=(f"mine={adapter}",), weights="float32")
    models = loading.served_models(str(base), settings)
    assert [(model.id, model.parent) for model in models.list()] == [("base", None), ("mine", "base")]
    served = serve(models)
    expected = {
        "base": greedy(tiny_model, tiny_tokenizer),
        "mine": greedy(put_adapter(load_base(str(base)), adapter, tiny_tokenizer), tiny_tokenizer),
    }
    assert expected["base"] != expected["mine"]
    for name in ("base", "mine", "base"):
        messages = [{"role": "user", "content": "What is hfchat?"}]
        answer = served.chat(model=name, messages=messages, max_tokens=30, temperature=0).json()
        assert answer["choices"][0]["message"]["content"] == expected[name]


def test_the_weights_are_in_memory_once(base, adapter, tiny_tokenizer):
    stored = load_base(str(base))
    tensors = {tensor.data_ptr() for tensor in stored.parameters()}
    own = [
        name
        for name, tensor in beside(stored, adapter, tiny_tokenizer).named_parameters()
        if tensor.data_ptr() not in tensors
    ]
    assert own
    assert all("lora" in name for name in own)
    assert not any("lora" in name for name, _ in stored.named_parameters())


def test_new_tokens_of_an_adapter_are_not_put_into_the_base(base, tmp_path, tiny_tokenizer):
    tiny_tokenizer.save_pretrained(tmp_path / "tokenizer")
    tokenizer = type(tiny_tokenizer).from_pretrained(tmp_path / "tokenizer")
    add_special_tokens(tokenizer, ["<new>"])
    adapter = make_adapter(base, tmp_path / "adapter", tokenizer, added=1, target_modules=["q_proj"])
    stored = load_base(str(base))
    before = {name: tensor.clone() for name, tensor in stored.state_dict().items()}
    model = beside(stored, adapter, tokenizer)
    alone = put_adapter(load_base(str(base)), adapter, tokenizer)
    assert greedy(model, tokenizer) == greedy(alone, tokenizer)
    ids = torch.tensor([[len(tokenizer) - 1, 5]])
    torch.testing.assert_close(model(ids).logits, alone(ids).logits)
    assert not torch.equal(model.lm_head.weight[-1], model.lm_head.weight[:-1].mean(0)), "its row is the adapter's"
    after = stored.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_adapter_with_new_tokens_is_served_beside_its_base(serve, base, tmp_path, tiny_tokenizer):
    tiny_tokenizer.save_pretrained(tmp_path / "tokenizer")
    tokenizer = type(tiny_tokenizer).from_pretrained(tmp_path / "tokenizer")
    add_special_tokens(tokenizer, ["<new>"])
    adapter = make_adapter(base, tmp_path / "adapter", tokenizer, added=1, target_modules=["q_proj"])
    settings = ServerSettings(model=str(base), adapters=(f"mine={adapter}",), weights="float32")
    served = serve(loading.served_models(str(base), settings))
    messages = [{"role": "user", "content": "What is hfchat?"}]
    answer = served.chat(model="mine", messages=messages, max_tokens=30, temperature=0).json()
    expected = greedy(put_adapter(load_base(str(base)), adapter, tokenizer), tokenizer)
    assert answer["choices"][0]["message"]["content"] == expected


def test_an_adapter_of_another_base_is_refused(base, adapter, tmp_path, tiny_tokenizer):
    other = tmp_path / "other"
    shutil.copytree(base, other)
    model = load_base(str(other))
    model.lm_head.weight.data[0] += 1
    model.save_pretrained(other)
    settings = ServerSettings(model=str(other), adapters=(f"mine={adapter}",))
    with pytest.raises(UserError, match=f"{other}: its weights are not those that the adapter .* was trained on"):
        loading.served_models(str(other), settings)._load()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"adapters": ("adapter",)}, "NAME=FOLDER"),
        ({"adapters": ("mine=",)}, "NAME=FOLDER"),
        ({"adapters": ("mine=missing",)}, "no adapter_config.json"),
        ({"adapters": ("mine={adapter}", "mine={adapter}")}, "two adapters have the name mine"),
        ({"adapters": ("base={adapter}",)}, "is the name of the model"),
        ({"weights": "q8_0", "engine": "transformers"}, "--weights q8_0: --engine transformers has float32, bfloat16"),
    ],
)
def test_what_is_no_adapter_is_refused_before_weights_are_loaded(base, adapter, settings, words):
    settings["adapters"] = tuple(entry.format(adapter=adapter) for entry in settings.get("adapters", ()))
    with pytest.raises(UserError, match=words):
        loading.served_models(str(base), ServerSettings(model=str(base), **settings))


def test_a_name_may_hold_what_a_folder_may(adapter):
    assert parse_adapters([f"my model={adapter}"]) == {"my model": adapter}
