import argparse
import importlib.util
import json
import math
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from hfchat.adapters import put_adapter
from hfchat.behaviour import Behaviour, Prompts, compare, default_conversations
from hfchat.chat_template import record_fingerprint, set_chat_template
from hfchat.errors import UserError
from hfchat.export import certificate, reloading
from hfchat.export.certificate import certify_adapter, certify_model, export, handler
from hfchat.models import embed_new_tokens
from tests.conftest import TEXTS, random_llama, tiny_model

CONVERSATIONS = [
    [{"role": "user", "content": f"Question {i}?"}, {"role": "assistant", "content": f"The answer is {i}."}]
    for i in range(3)
]


def with_adapter(base, **options):
    """An adapter with weights that matter."""
    torch.manual_seed(1)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype="auto", **options), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


@pytest.fixture(autouse=True)
def in_this_process(request, monkeypatch):
    """A fresh process takes seconds to start; one test has one."""
    if "fresh_process" not in request.fixturenames:
        monkeypatch.setattr(reloading, "_in_fresh_process", reloading.answer)


@pytest.fixture
def fresh_process():
    """Asks for a real one."""


@pytest.fixture(scope="module")
def base(tokenizer, tmp_path_factory):
    """A chat model in bfloat16, as published ones are."""
    folder = tmp_path_factory.mktemp("base")
    model = tiny_model(tokenizer).bfloat16()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def exported(base, tmp_path_factory):
    """An adapter and its merged model, certified."""
    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reloading, "_in_fresh_process", reloading.answer)
        export(with_adapter(base), AutoTokenizer.from_pretrained(base), folder, CONVERSATIONS, base=str(base))
    return folder


@pytest.fixture
def copied(exported, tmp_path):
    """To break, without a certificate that would say that a file has changed."""
    shutil.copytree(exported, tmp_path / "exported")
    (tmp_path / "exported" / "merged" / "certificate.json").unlink()
    return tmp_path / "exported"


def edit(path, **changes):
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def change_weight(path, name, change):
    tensors = load_file(path)
    tensors[name] = change(tensors[name])
    save_file(tensors, path, metadata={"format": "pt"})


def refused(folder, message, **options):
    with pytest.raises(UserError, match=message) as error:
        certify_model(folder, CONVERSATIONS, **options)
    assert "\n" not in str(error.value)
    assert not (folder / "certificate.json").exists()


def test_an_adapter_is_merged_saved_and_is_the_same_in_a_fresh_process(base, tmp_path, fresh_process):
    model = with_adapter(base).train()
    configured = model.generation_config
    issued = export(
        model, AutoTokenizer.from_pretrained(base), tmp_path, CONVERSATIONS, base=str(base), revision="main"
    )
    assert all(check.ok for check in issued.checks)
    assert model.training
    assert model.generation_config is configured is model.get_base_model().generation_config
    record = json.loads((tmp_path / "merged" / "certificate.json").read_text())
    saved = record["differences"]["saved"]
    assert saved["mean_kl_nats"] == saved["max_kl_nats"] == saved["max_gap_nats"] == 0
    assert saved["top_token_agreement"] == saved["identical_answers"] == 1
    assert 0 < record["differences"]["rounded"]["mean_kl_nats"] < 0.02
    assert record["prompts"]["conversations"] == 3
    assert record["base"]["model_name_or_path"] == str(base)
    assert set(record["files"]) >= {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"}
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["revision"] == "main"

    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    assert merged.dtype == torch.bfloat16
    assert merged.config.use_cache
    ids = torch.tensor([AutoTokenizer.from_pretrained(tmp_path / "merged")("The answer")["input_ids"]])
    expected = model.eval()(ids).logits
    torch.testing.assert_close(merged(ids).logits.float(), expected.float(), atol=0.02, rtol=0.02)
    untrained = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    assert (merged(ids).logits - untrained(ids).logits).abs().max() > 0.1, "the adapter was not merged"


def test_a_wholly_trained_model_is_stored_in_the_dtype_of_its_base(base, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(base, dtype="float32")
    torch.nn.init.normal_(model.model.layers[0].mlp.down_proj.weight, std=0.1)
    tokenizer = AutoTokenizer.from_pretrained(base)
    issued = export(model, tokenizer, tmp_path, CONVERSATIONS, base=str(base))
    assert issued.folder == tmp_path / "model"
    assert issued.metrics["saved_kl_nats"] == 0
    assert 0 < issued.metrics["rounded_kl_nats"] < 0.02
    assert model.dtype == torch.float32
    stored = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto")
    weight = "model.layers.0.mlp.down_proj.weight"
    stored, exact = stored.get_parameter(weight), model.get_parameter(weight)
    assert stored.dtype == torch.bfloat16
    torch.testing.assert_close(stored.float(), exact, rtol=torch.finfo(torch.bfloat16).eps, atol=0)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_an_adapter_trained_on_4_bits_is_merged_in_full_precision_and_the_drift_reported(base, tmp_path):
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = with_adapter(base, quantization_config=quantization)
    issued = export(model, AutoTokenizer.from_pretrained(base), tmp_path, CONVERSATIONS, base=str(base))
    assert 1e-5 < issued.metrics["trained_kl_nats"] < 1
    assert issued.metrics["rounded_kl_nats"] < issued.metrics["trained_kl_nats"]
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    assert not hasattr(merged.config, "quantization_config")
    assert merged.get_parameter("model.layers.0.mlp.down_proj.weight").dtype == torch.bfloat16


def test_the_same_export_gives_the_same_figures(base, exported, tmp_path):
    again = export(with_adapter(base), AutoTokenizer.from_pretrained(base), tmp_path, CONVERSATIONS, base=str(base))
    first = json.loads((exported / "merged" / "certificate.json").read_text())
    second = json.loads((again.folder / "certificate.json").read_text())
    for moment in ("certified", "duration_s"):
        del first[moment], second[moment]
    assert first == second


@pytest.fixture
def with_new_tokens(tmp_path):
    """An adapter on a base without turns, with trained rows for the new tokens in the modules of `ends`."""

    def make(tied, ends):
        tokenizer = AutoTokenizer.from_pretrained(_plain_tokenizer(tmp_path))
        model = random_llama(tokenizer, tie_word_embeddings=tied, max_position_embeddings=256, dtype="bfloat16")
        model.bfloat16().save_pretrained(tmp_path / "base")
        tokenizer.save_pretrained(tmp_path / "base")
        added = set_chat_template(tokenizer, add_tokens=True)
        embed_new_tokens(model.float(), len(tokenizer) - len(added), len(tokenizer))
        rows = {"trainable_token_indices": dict.fromkeys(ends, added) if ends else added}
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", **rows))
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if "trainable_tokens_delta" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        return model, tokenizer, added

    return make


@pytest.mark.parametrize(("tied", "ends"), [(True, []), (False, ["model.embed_tokens", "lm_head"])])
def test_rows_of_new_tokens_are_merged(with_new_tokens, tmp_path, tied, ends):
    model, tokenizer, added = with_new_tokens(tied, ends)
    issued = export(model, tokenizer, tmp_path / "out", CONVERSATIONS, base=str(tmp_path / "base"))
    assert issued.metrics["saved_kl_nats"] == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "merged", dtype="auto")
    for end in ("get_input_embeddings", "get_output_embeddings"):
        trained = getattr(model, end)().weight[added]
        torch.testing.assert_close(getattr(merged, end)().weight[added].float(), trained, atol=0, rtol=0.01)
    adapter = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    rows = [tensor.shape[0] for name, tensor in adapter.items() if "embed_tokens" in name or "lm_head" in name]
    assert rows == [len(added)] * max(1, len(ends)), "the base has the other rows"


def test_a_model_that_cannot_tell_the_end_of_a_turn_from_another_token_is_refused(with_new_tokens, tmp_path):
    model, tokenizer, _ = with_new_tokens(False, [])  # as PEFT takes a list: of the embeddings alone
    with pytest.raises(UserError, match=r"end of turn: its row in the output layer is 0.0\d+ of .* it never stops"):
        export(model, tokenizer, tmp_path / "out", CONVERSATIONS, base=str(tmp_path / "base"))


def _plain_tokenizer(folder):
    """Without the tokens of the chat."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(TEXTS, vocab_size=400, special_tokens=["<|endoftext|>"], show_progress=False)
    plain = PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )
    plain.save_pretrained(folder / "plain")
    return folder / "plain"


def test_the_divergence_is_from_what_was_to_what_became(base):
    before, after = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.25, 0.25]]), torch.tensor([[0.5, 0.25, 0.25]] * 2)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    behaviours = (Behaviour([probabilities.log() + 3], [[1]]) for probabilities in (before, after))
    difference = compare(*behaviours, Prompts([], [[1]], [[1]]), model, tokenizer)
    expected = sum(p * math.log(p / q) for p, q in zip(before[0].tolist(), after[0].tolist(), strict=True))
    assert difference.max_kl_nats == pytest.approx(expected)
    assert difference.mean_kl_nats == pytest.approx(expected / 2)
    assert expected == pytest.approx(0.0993, abs=1e-4)


def test_training_on_another_base_than_the_one_named_is_seen(base, tokenizer, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(base, other)
    change_weight(other / "model.safetensors", "model.layers.1.mlp.up_proj.weight", lambda weight: weight * 1.01)
    with pytest.raises(
        UserError, match=r"certified: base: 1 weights differ .*up_proj.*name the same base and revision"
    ):
        export(with_adapter(base), AutoTokenizer.from_pretrained(base), tmp_path, CONVERSATIONS, base=str(other))
    assert not (tmp_path / "merged" / "certificate.json").exists()


@pytest.mark.parametrize("left_out", ["self_attn.v_proj", "mlp.down_proj"])
def test_an_adapter_that_is_merged_wrongly_is_seen(base, tmp_path, monkeypatch, left_out):
    merge = Linear.merge

    def merge_all_but_one(self, *args, **kwargs):
        if self.base_layer is not skipped:
            merge(self, *args, **kwargs)

    def put(*args):
        nonlocal skipped
        model = put_adapter(*args)
        skipped = next(
            module.base_layer for name, module in model.named_modules() if name.endswith(f"layers.1.{left_out}")
        )
        return model

    skipped = None
    monkeypatch.setattr(Linear, "merge", merge_all_but_one)
    monkeypatch.setattr(certificate, "put_adapter", put)
    with pytest.raises(UserError, match=r"merged: logits: .*PEFT merged this kind of adapter wrongly"):
        export(with_adapter(base), AutoTokenizer.from_pretrained(base), tmp_path, CONVERSATIONS, base=str(base))


def test_one_changed_weight_is_seen(copied):
    def change(weight):
        weight[3, 5] += 0.01
        return weight

    change_weight(copied / "merged" / "model.safetensors", "model.layers.1.self_attn.v_proj.weight", change)
    refused(copied / "merged", r"saved: weights: 1 of \d+ differ \(model.layers.1.self_attn.v_proj.weight\)")


def test_a_file_that_changed_since_its_certificate_is_named(exported, tmp_path):
    shutil.copytree(exported / "merged", tmp_path / "merged")
    change_weight(tmp_path / "merged" / "model.safetensors", "model.norm.weight", lambda weight: weight + 1)
    with pytest.raises(UserError, match=r"model.safetensors changed since the certificate was issued"):
        certify_model(tmp_path / "merged", CONVERSATIONS)


def test_a_head_that_is_no_longer_tied_is_seen(base, tokenizer, tmp_path):
    tied = tmp_path / "tied"
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    model.config.tie_word_embeddings = True
    model.tie_weights()
    record_fingerprint(tokenizer, model)
    model.save_pretrained(tied)
    tokenizer.save_pretrained(tied)
    out = tmp_path / "out"
    export(with_adapter(tied), AutoTokenizer.from_pretrained(tied), out, CONVERSATIONS, base=str(tied))
    (out / "merged" / "certificate.json").unlink()
    weights = out / "merged" / "model.safetensors"
    tensors = load_file(weights)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 0.1}, weights, {"format": "pt"})
    refused(out / "merged", "lm_head.weight.*also failed: .*embeddings and head")


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("generation_config.json", {"eos_token_id": None}, "eos token: .*generation_config None, must be the same"),
        ("generation_config.json", {"pad_token_id": 5}, "pad token: .*generation_config 5.*set pad_token_id"),
        ("config.json", {"eos_token_id": 7}, "eos token: .*config 7"),
        ("config.json", {"chat_template_fingerprint": "0" * 16}, "fingerprint: .*config.json says 0000"),
        ("tokenizer_config.json", {"chat_template": "{{ messages }}"}, "differs in tokenizer_config.json"),
        ("tokenizer_config.json", {"pad_token": "<|im_end|>"}, "the pad token is the end-of-turn token"),
    ],
)
def test_what_one_file_says_otherwise_is_named(copied, file, changes, message):
    edit(copied / "merged" / file, **changes)
    refused(copied / "merged", message)


def test_a_changed_template_is_seen(copied):
    path = copied / "merged" / "chat_template.jinja"
    path.write_text(path.read_text().replace("\\n", " "))
    refused(copied / "merged", "chat template: differs in chat_template.jinja and as loaded")


@pytest.mark.parametrize("file", ["generation_config.json", "config.json", "model.safetensors"])
def test_a_missing_file_is_named(copied, file):
    (copied / "merged" / file).unlink()
    refused(copied / "merged", f"it has no .*{file.split('.')[-1]}")


def test_a_model_without_its_tokenizer_is_refused(copied):
    (copied / "merged" / "tokenizer_config.json").unlink()
    refused(copied / "merged", "has no tokenizer")


def test_pickles_are_refused(copied):
    (copied / "merged" / "pytorch_model.bin").write_bytes(b"")
    refused(copied / "merged", "weights' format: pytorch_model.bin, must be safetensors")


def test_a_damaged_file_does_not_load(copied):
    shutil.rmtree(copied / "adapter")
    weights = copied / "merged" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"its weights cannot be read .*export it again"):
        certify_model(copied / "merged", CONVERSATIONS)


def test_a_model_alone_is_certified_as_it_is(copied):
    shutil.rmtree(copied / "adapter")
    issued = certify_model(copied / "merged", CONVERSATIONS)
    assert issued.base is None
    assert (copied / "merged" / "certificate.json").is_file()
    with pytest.raises(UserError, match=r"--base other: .* is a whole model with no adapter beside it"):
        certify_model(copied / "merged", CONVERSATIONS, base="other")


def test_a_base_with_other_weights_is_refused(base, exported, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(base, other)
    moved = certify_adapter(exported / "adapter", tmp_path / "merged", CONVERSATIONS, base=str(other))
    assert moved.base["model_name_or_path"] == str(base), "a copy of the base is the base"
    change_weight(other / "model.safetensors", "model.norm.weight", lambda weight: weight * 1.01)
    with pytest.raises(UserError, match=rf"{other}: its weights are not those .* of {base}"):
        certify_adapter(exported / "adapter", tmp_path / "again", CONVERSATIONS, base=str(other))
    assert not (tmp_path / "again").exists()


def test_an_adapter_from_elsewhere_is_held_to_the_name_and_the_revision_that_it_gives(copied, base, tmp_path):
    (copied / "adapter" / "base.json").unlink()
    edit(copied / "adapter" / "adapter_config.json", base_model_name_or_path="someone/model", revision="v1")
    with pytest.raises(UserError, match=rf"{base}: the adapter .* was trained on someone/model; take that"):
        certify_adapter(copied / "adapter", tmp_path / "out", CONVERSATIONS, base=str(base))
    with pytest.raises(UserError, match=r"--revision v2: the adapter .* was trained on revision v1 of someone/model"):
        certify_adapter(copied / "adapter", tmp_path / "out", CONVERSATIONS, revision="v2")


def test_a_folder_in_the_way_is_refused_before_any_work(exported, tmp_path):
    with pytest.raises(UserError, match=r"--output-dir .*: already exists"):
        certify_adapter(exported / "adapter", tmp_path, CONVERSATIONS)


@pytest.mark.parametrize(
    ("conversations", "message"),
    [
        ([], "the list is empty"),
        ([[{"role": "robot", "content": "Hi"}]], "conversations: number 0 turn 0 has the role"),
    ],
)
def test_what_is_no_conversation_is_refused(base, tmp_path, conversations, message):
    with pytest.raises(UserError, match=message):
        export(with_adapter(base), AutoTokenizer.from_pretrained(base), tmp_path, conversations, base=str(base))


def arguments(folder, **given):
    defaults = {"base": None, "revision": None, "prompts": None, "output_dir": None, "gguf": False, "quantize": []}
    return argparse.Namespace(folder=folder, **defaults | given)


def test_the_command_merges_beside_the_adapter_and_prints_the_checks(copied, tmp_path, capsys):
    shutil.rmtree(copied / "merged")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in CONVERSATIONS))
    handler(arguments(copied / "adapter", prompts=str(prompts)))
    output = capsys.readouterr().out
    assert "ok    saved: weights" in output
    assert "FAIL" not in output
    record = json.loads((copied / "merged" / "certificate.json").read_text())
    assert record["prompts"]["conversations"] == len(CONVERSATIONS)
    handler(arguments(copied / "merged"))
    record = json.loads((copied / "merged" / "certificate.json").read_text())
    assert record["prompts"]["conversations"] == len(default_conversations())


def test_the_command_prints_the_checks_that_fail(copied, capsys):
    edit(copied / "merged" / "generation_config.json", eos_token_id=None)
    with pytest.raises(UserError, match="not certified: eos token"):
        handler(arguments(copied / "merged"))
    output = capsys.readouterr().out
    assert "FAIL  eos token" in output
    assert "ok    pad token" in output


def test_the_command_names_a_folder_that_is_not_there():
    with pytest.raises(UserError, match=r"nowhere: no such folder"):
        handler(arguments("nowhere"))
