import numpy as np
import pytest
import torch
from datasets import Dataset

from hfchat.training.packing import IGNORE, PackedDataset, tokenize_corpus
from tests.conftest import tiny_model

DOCUMENTS = ["first document", "the second document is a little longer than the first", "third"]


@pytest.fixture
def stream(tokenizer, tmp_path):
    tokenize_corpus(Dataset.from_dict({"text": DOCUMENTS}), "text", tokenizer, tmp_path / "tokens", "test")
    return tmp_path / "tokens"


def encode(tokenizer, text):
    return [tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False), tokenizer.bos_token_id]


def test_no_token_is_lost_and_each_is_predicted_once(tokenizer, stream):
    documents = [encode(tokenizer, text) for text in DOCUMENTS]
    blocks = list(PackedDataset(stream, 8, tokenizer))
    inputs = torch.cat([block["input_ids"] for block in blocks]).tolist()
    everything = [token for document in documents for token in document]
    assert inputs[: len(everything) - 1] == everything[:-1]
    labels = [token for block in blocks for token in block["labels"].tolist() if token != IGNORE]
    assert labels == [token for document in documents for token in document[1:]]


def test_positions_start_again_with_every_document_and_block(tokenizer, stream):
    lengths = [len(encode(tokenizer, text)) for text in DOCUMENTS]
    whole = PackedDataset(stream, sum(lengths) - 1, tokenizer)
    assert len(whole) == 1
    expected = [position for length in lengths for position in range(length)][:-1]
    assert whole[0]["position_ids"].tolist() == expected
    second_block = PackedDataset(stream, 4, tokenizer)[1]
    assert second_block["position_ids"][0] == 0


def test_only_the_end_is_padded(tokenizer, stream):
    dataset = PackedDataset(stream, 16, tokenizer)
    tokens = sum(len(encode(tokenizer, text)) for text in DOCUMENTS) - 1
    assert dataset.padded_share == pytest.approx(1 - tokens / (16 * len(dataset)))
    last = dataset[len(dataset) - 1]
    padding = last["input_ids"] == tokenizer.pad_token_id
    assert padding.sum() == 16 * len(dataset) - tokens - 1  # the last token is read, but predicts nothing
    assert (last["labels"][padding] == IGNORE).all()
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_bytes_are_those_of_the_text(stream, tokenizer):
    assert PackedDataset(stream, 8, tokenizer).num_bytes == sum(len(text.encode()) for text in DOCUMENTS)


def test_a_vocabulary_beyond_16_bits_is_stored_whole(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(type(tokenizer), "__len__", lambda self: 2**16 + 1)
    tokenize_corpus(Dataset.from_dict({"text": DOCUMENTS}), "text", tokenizer, tmp_path / "tokens", "test")
    assert PackedDataset(tmp_path / "tokens", 8, tokenizer).tokens.dtype == np.uint32


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_documents_do_not_see_each_other(tokenizer, stream, architecture, attention):
    model = tiny_model(tokenizer, architecture).eval()
    model.set_attn_implementation(attention)
    documents = [encode(tokenizer, text) for text in DOCUMENTS]
    block = PackedDataset(stream, sum(map(len, documents)) - 1, tokenizer)[0]
    with torch.no_grad():
        # With a cache, transformers does not look for packed sequences; `Trainer` switches it off.
        packed = model(
            input_ids=block["input_ids"][None], position_ids=block["position_ids"][None], use_cache=False
        ).logits[0]
        start = 0
        for document in documents:
            alone = model(input_ids=torch.tensor([document])).logits[0]
            end = min(start + len(document), len(packed))
            torch.testing.assert_close(packed[start:end], alone[: end - start], atol=1e-5, rtol=1e-4)
            start = end
