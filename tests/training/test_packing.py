from itertools import pairwise

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import default_data_collator
from transformers import modeling_flash_attention_utils as flash_utils

from hfchat.errors import out_of_space
from hfchat.training.packing import IGNORE, PackedDataset, collate_for_flash_attention, make_block, tokenize_corpus
from tests.conftest import tiny_model

DOCUMENTS = ["first document", "the second document is a little longer than the first", "third"]


def test_a_full_disk_is_recognised(tokenizer, tmp_path):
    (tmp_path / "tokens.writing").mkdir()
    (tmp_path / "tokens.writing" / "tokens.bin").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as raised:
        tokenize_corpus(Dataset.from_dict({"text": DOCUMENTS * 2000}), "text", tokenizer, tmp_path / "tokens", "test")
    assert out_of_space(raised.value)
    assert not (tmp_path / "tokens").exists()


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


def test_a_block_is_what_a_model_is_trained_on():
    """A document of three tokens, one of two that the block cuts, and what becomes of both."""
    window = np.array([1, 7, 1, 1, 8, 9])
    opens = np.array([True, False, False, True, False, False])
    block = {key: value.tolist() for key, value in make_block(window, opens).items()}
    assert block["input_ids"] == [1, 7, 1, 1, 8]
    assert block["position_ids"] == [0, 1, 2, 0, 1]
    assert block["labels"] == block["shift_labels"] == [7, 1, IGNORE, 8, 9]


def documents_in(positions):
    """Row, start and end of each document (or piece of one) in a batch."""
    for row, places in enumerate(positions.tolist()):
        starts = [place for place, position in enumerate(places) if position == 0]
        yield from ((row, start, end) for start, end in pairwise([*starts, len(places)]))


def inputs(batch):
    return {key: value for key, value in batch.items() if "labels" not in key}


def check_documents_are_apart(model, blocks, collate, attention):
    batch = inputs(collate(list(blocks)))
    documents = list(documents_in(batch["position_ids"]))
    # More than one row, so that what works for a batch of one alone is found out.
    assert len(batch["input_ids"]) > 1
    assert len(documents) > len(DOCUMENTS)
    model.eval().set_attn_implementation("eager")
    alone = [model(input_ids=batch["input_ids"][row, None, start:end]).logits[0] for row, start, end in documents]
    model.config._attn_implementation = attention
    # Compiled, flex attention takes half a minute; with a cache, transformers does not look for packed sequences
    # (`Trainer` switches it off).
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        packed = model(**batch, use_cache=False).logits
    for (row, start, end), expected in zip(documents, alone, strict=True):
        torch.testing.assert_close(packed[row, start:end], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(
    ("architecture", "attention"),
    [("llama", "eager"), ("llama", "sdpa"), ("llama", "flex_attention"), ("gpt2", "eager"), ("gpt2", "sdpa")],
)
def test_documents_do_not_see_each_other(tokenizer, stream, architecture, attention):
    model = tiny_model(tokenizer, architecture)
    check_documents_are_apart(model, PackedDataset(stream, 20, tokenizer), default_data_collator, attention)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_documents_do_not_see_each_other_in_flash_attention(tokenizer, stream, architecture, monkeypatch):
    """The kernels need a GPU. What is in question is what transformers hands them, and how."""

    def flash(q, k, v, softmax_scale=None, causal=False, **_):
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=softmax_scale)
        return out.transpose(1, 2)

    def flash_varlen(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale=None, causal=False
    ):
        assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
        assert max(cu_seqlens_q.diff()) <= max_seqlen_q
        parts = [
            flash(*(part[None, start:end] for part in (q, k, v)), softmax_scale=softmax_scale, causal=causal)[0]
            for start, end in pairwise(cu_seqlens_q.tolist())
        ]
        return torch.cat(parts)

    for name, stand_in in {
        "_loaded_implementation": "flash_attention_2",
        "_flash_fn": flash,
        "_flash_varlen_fn": flash_varlen,
        "_process_flash_kwargs_fn": flash_utils._lazy_define_process_function(flash_varlen),
    }.items():
        monkeypatch.setattr(flash_utils, name, stand_in)
    monkeypatch.setattr("transformers.integrations.flash_attention.get_target_dtype", lambda *_: None)
    blocks = PackedDataset(stream, 20, tokenizer)
    model = tiny_model(tokenizer, architecture)
    check_documents_are_apart(model, blocks, collate_for_flash_attention, "flash_attention_2")


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_loss_of_a_document_moves_no_other(tokenizer, stream, architecture, attention):
    model = tiny_model(tokenizer, architecture)
    model.set_attn_implementation(attention)
    batch = default_data_collator(list(PackedDataset(stream, 20, tokenizer)))
    embeddings = model.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()
    logits = model(inputs_embeds=embeddings, position_ids=batch["position_ids"], use_cache=False).logits
    for row, start, end in documents_in(batch["position_ids"]):
        (gradient,) = torch.autograd.grad(logits[row, start:end].logsumexp(-1).sum(), embeddings, retain_graph=True)
        assert gradient[row, start:end].abs().sum() > 0
        gradient[row, start:end] = 0
        assert gradient.abs().sum() == 0, "another document has a gradient"
