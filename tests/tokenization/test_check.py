import pytest
from tokenizers import normalizers
from transformers import AutoTokenizer

from hfchat.tokenization.bpe import train_bpe
from hfchat.tokenization.check import SAMPLES, bytes_per_token, check_saved_tokenizer, lost_texts, unicode_blocks

TEXTS = ["the quick brown fox jumps over the lazy dog " * 5, "def f(x): return x ** 2\n" * 5]


def test_any_text_comes_back_exactly(tokenizer):
    assert lost_texts(tokenizer, SAMPLES | unicode_blocks()) == {}


def test_a_lossy_tokenizer_does_not_pass_unless_it_may_be(tmp_path):
    trained = train_bpe(TEXTS, 300)
    trained.save_pretrained(tmp_path / "good")
    check_saved_tokenizer(tmp_path / "good", trained)
    trained.backend_tokenizer.normalizer = normalizers.NFC()
    trained.save_pretrained(tmp_path / "lossy")
    with pytest.raises(ValueError, match="combining marks does not survive a round trip"):
        check_saved_tokenizer(tmp_path / "lossy", trained)
    reloaded = check_saved_tokenizer(tmp_path / "lossy", trained, lossless=False)
    assert list(lost_texts(reloaded, SAMPLES)) == ["combining marks"]
    assert "Georgian" not in lost_texts(reloaded, unicode_blocks())
    assert "CJK Compatibility Ideographs" in lost_texts(reloaded, unicode_blocks())


def test_a_tokenizer_that_reloads_as_another_does_not_pass(tmp_path):
    train_bpe(TEXTS, 300).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="gives other ids for code"):
        check_saved_tokenizer(tmp_path, train_bpe(TEXTS[:1], 290))
    trained = AutoTokenizer.from_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="the chat template was not saved"):
        check_saved_tokenizer(tmp_path, trained)


def test_blocks_hold_each_assigned_character_once():
    blocks = unicode_blocks()
    characters = "".join(blocks.values())
    assert blocks["Basic Latin"][0x41] == "A"
    assert "\u0378" not in characters  # not assigned
    assert "\ue000" in characters
    assert "\U0010fffd" in characters
    assert len(set(characters)) == len(characters)
    assert not any(0xD800 <= ord(character) <= 0xDFFF for character in characters)


def test_bytes_per_token_counts_bytes(tokenizer):
    tokens = len(tokenizer("ééé", add_special_tokens=False)["input_ids"])
    assert bytes_per_token(tokenizer, ["ééé", "ééé"]) == 6 / tokens
