import hashlib
import json

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from hfchat.chat_template import CHAT_TEMPLATE, SPECIAL_TOKENS, fingerprint, recorded_fingerprint
from hfchat.lineage import read_lineage
from hfchat.tokenization.bpe import train_bpe
from hfchat.tokenization.chat_tokenizer import save_tokenizer
from tests.conftest import ROOT, TEXTS


def test_a_text_opens_with_the_document_separator(tokenizer):
    assert tokenizer("text")["input_ids"][0] == tokenizer.bos_token_id


def test_special_tokens_are_single_and_the_template_is_saved(tokenizer):
    assert [tokenizer.encode(token, add_special_tokens=False) for token in SPECIAL_TOKENS] == [[0], [1], [2], [3]]
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert tokenizer.init_kwargs["chat_template_fingerprint"] == fingerprint(tokenizer)


def test_what_the_text_does_not_fill_is_reserved():
    tokenizer = train_bpe(["the the"], 512)
    reserved = [token for token in tokenizer.get_vocab() if token.startswith("<|reserved_")]
    assert len(tokenizer) == 320  # 4 special tokens, 256 bytes and 3 merges (th, the, Ġthe) are not a multiple of 64
    assert len(reserved) == 320 - 263
    assert tokenizer.decode(tokenizer("a<|reserved_0|>b")["input_ids"], skip_special_tokens=True) == "ab"
    assert not any("reserved" in token for token in train_bpe(TEXTS, 320).get_vocab())
    assert len(train_bpe(["the the"], 512, vocab_multiple=128)) == 384


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    tokenizer = train_bpe(TEXTS, 384)
    folder = tmp_path_factory.mktemp("saved")
    save_tokenizer(tokenizer, folder)
    return folder, tokenizer


def test_the_template_is_where_old_and_new_servers_look(saved):
    folder, _ = saved
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["chat_template"] == CHAT_TEMPLATE == (folder / "chat_template.jinja").read_text()
    assert (config["bos_token"], config["eos_token"], config["pad_token"]) == (
        "<|endoftext|>",
        "<|im_end|>",
        "<|pad|>",
    )
    # The only class of that name in transformers 4 and 5.
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert [config["added_tokens_decoder"][str(i)]["content"] for i in range(4)] == SPECIAL_TOKENS
    assert all(token["special"] for token in config["added_tokens_decoder"].values())


def test_it_reloads_as_it_was_with_and_without_transformers(saved):
    folder, tokenizer = saved
    text = "<|im_start|>user\nthe recipe é<|im_end|>"
    ids = tokenizer(text)["input_ids"]
    reloaded = AutoTokenizer.from_pretrained(folder)
    assert reloaded(text)["input_ids"] == ids
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids == ids
    assert reloaded.special_tokens_map == tokenizer.special_tokens_map


def test_the_tokenizer_that_comes_with_the_project_has_its_template_of_today():
    shipped = AutoTokenizer.from_pretrained(ROOT / "tokenizer")
    assert shipped.chat_template == CHAT_TEMPLATE
    assert recorded_fingerprint(shipped) == fingerprint(shipped)
    for name, file in read_lineage(ROOT / "tokenizer")["outputs"].items():
        assert hashlib.sha256((ROOT / "tokenizer" / name).read_bytes()).hexdigest() == file["sha256"], name
