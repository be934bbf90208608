import pytest
from datasets import Dataset
from tokenizers import normalizers
from transformers import AutoTokenizer

from hfchat.chat_template import CHAT_TEMPLATE, SPECIAL_TOKENS, fingerprint
from hfchat.tokenization.bpe import sample_text, train_bpe
from hfchat.tokenization.check import SAMPLES, bytes_per_token, check_saved_tokenizer

TEXTS = ["the quick brown fox jumps over the lazy dog " * 5, "def f(x): return x ** 2\n" * 5]


def test_any_text_comes_back_exactly(tokenizer):
    for text in [*SAMPLES.values(), "".join(map(chr, range(1, 0x300)))]:
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_a_text_opens_with_the_document_separator(tokenizer):
    assert tokenizer("text")["input_ids"][0] == tokenizer.bos_token_id


def test_special_tokens_are_single_and_the_template_is_saved(tokenizer):
    assert [tokenizer.encode(token, add_special_tokens=False) for token in SPECIAL_TOKENS] == [[0], [1], [2], [3]]
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert tokenizer.init_kwargs["chat_template_fingerprint"] == fingerprint(tokenizer)


def test_a_lossy_tokenizer_does_not_pass(tmp_path):
    trained = train_bpe(TEXTS, 300)
    trained.save_pretrained(tmp_path / "good")
    check_saved_tokenizer(tmp_path / "good", trained)
    trained.backend_tokenizer.normalizer = normalizers.NFC()
    trained.save_pretrained(tmp_path / "lossy")
    with pytest.raises(ValueError, match="combining marks does not survive a round trip"):
        check_saved_tokenizer(tmp_path / "lossy", trained)


def test_a_tokenizer_that_reloads_as_another_does_not_pass(tmp_path):
    train_bpe(TEXTS, 300).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="gives other ids for code"):
        check_saved_tokenizer(tmp_path, train_bpe(TEXTS[:1], 290))
    trained = AutoTokenizer.from_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="the chat template was not saved"):
        check_saved_tokenizer(tmp_path, trained)


def test_the_sample_keeps_to_its_bytes_and_its_seed():
    dataset = Dataset.from_dict({"text": [f"é{i:03d}" for i in range(100)]})  # 5 bytes each
    sample = list(sample_text(dataset, "text", sample_bytes=50, seed=1))
    assert len(sample) == 10
    assert sample == list(sample_text(dataset, "text", sample_bytes=50, seed=1))
    assert sample != list(sample_text(dataset, "text", sample_bytes=50, seed=2))
    assert len(list(sample_text(dataset, "text", sample_bytes=10**9, seed=1))) == 100


def test_bytes_per_token_counts_bytes(tokenizer):
    tokens = len(tokenizer("ééé", add_special_tokens=False)["input_ids"])
    assert bytes_per_token(tokenizer, ["ééé", "ééé"]) == 6 / tokens
