import copy
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from datasets import Dataset
from tokenizers import AddedToken
from transformers import AutoTokenizer, default_data_collator
from transformers import modeling_flash_attention_utils as flash_utils

from hfchat.errors import out_of_space
from hfchat.tokenization.sentencepiece import train_sentencepiece_bpe, train_unigram
from hfchat.training.packing import (
    IGNORE,
    PackedDataset,
    collate_for_flash_attention,
    encode_documents,
    make_block,
    pack,
    separator_id,
    tokenize_corpus,
)
from hfchat.training.streaming import StreamedDataset
from tests.conftest import TEXTS, tiny_model

DOCUMENTS = ["first document", "the second document is a little longer than the first", "third"]


def test_a_full_disk_is_recognised(tokenizer, tmp_path):
    (tmp_path / "tokens.writing").mkdir()
    (tmp_path / "tokens.writing" / "tokens.bin").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as raised:
        tokenize_corpus(Dataset.from_dict({"text": DOCUMENTS * 2000}), "text", tokenizer, tmp_path / "tokens", "test")
    assert out_of_space(raised.value)
    assert not (tmp_path / "tokens").exists()


SPELLED = "A turn begins with <|im_start|>user and ends with <|im_end|>, a text with <|endoftext|>, </s> or <pad>."


@pytest.fixture(scope="session", params=["bpe", "sentencepiece_bpe", "unigram", "plain_base"])
def any_tokenizer(request, tokenizer, plain_base):
    """Tokenizers with and without byte fallback, and one of a base that knows one special token only."""
    if request.param == "plain_base":
        return AutoTokenizer.from_pretrained(plain_base)
    trained = {"sentencepiece_bpe": train_sentencepiece_bpe, "unigram": train_unigram}
    return trained[request.param](TEXTS, vocab_size=600) if request.param in trained else copy.deepcopy(tokenizer)


def test_a_text_that_spells_a_special_token_stays_text(any_tokenizer, tmp_path):
    (document,) = encode_documents([SPELLED], any_tokenizer)
    separator = separator_id(any_tokenizer)
    assert document[0] == document[-1] == separator
    assert not set(document[1:-1].tolist()) & set(any_tokenizer.all_special_ids)
    assert any_tokenizer.decode(document[1:-1]) == SPELLED
    tokenize_corpus(Dataset.from_dict({"text": [SPELLED]}), "text", any_tokenizer, tmp_path / "tokens", "test")
    assert PackedDataset(tmp_path / "tokens", 16, any_tokenizer).tokens.tolist() == document.tolist()
    rows = Dataset.from_dict({"text": [SPELLED]}).to_iterable_dataset()
    block = next(iter(StreamedDataset(rows, "text", len(document) - 1, any_tokenizer)))
    assert block["input_ids"].tolist() == document[:-1].tolist()


def test_a_token_that_is_added_but_not_special_is_text_all_the_time(any_tokenizer):
    tokenizer = copy.deepcopy(any_tokenizer)
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    (document,) = encode_documents(["I <think> so."], tokenizer)
    assert tokenizer.decode(document, skip_special_tokens=True) == "I <think> so."


def test_a_stream_leaves_the_tokenizer_of_others_alone(any_tokenizer):
    """Samples are printed while a thread tokenizes: in their prompts, a special token is one."""
    end = any_tokenizer.eos_token
    expected = any_tokenizer(end, add_special_tokens=False)["input_ids"]
    next(
        iter(
            StreamedDataset(
                Dataset.from_dict({"text": [SPELLED] * 9}).to_iterable_dataset(), "text", 16, any_tokenizer
            )
        )
    )
    assert not any_tokenizer.backend_tokenizer.encode_special_tokens
    assert any_tokenizer(end, add_special_tokens=False)["input_ids"] == expected == [any_tokenizer.eos_token_id]


@pytest.fixture
def stream(tokenizer, tmp_path):
    tokenize_corpus(Dataset.from_dict({"text": DOCUMENTS}), "text", tokenizer, tmp_path / "tokens", "test")
    return tmp_path / "tokens"


def encode(tokenizer, text):
    return [tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False), tokenizer.bos_token_id]


def spread(lengths):
    """Documents of those lengths, one after the other with a separator between them."""
    lengths = np.array(lengths, dtype=np.int64)
    return np.concatenate([[0], np.cumsum(lengths + 1)[:-1]]), lengths


def packed(lengths, block_size):
    """The pieces of each block, as the numbers of their documents and their positions in them."""
    starts, lengths = spread(lengths)
    pieces, firsts, cut = pack(starts, lengths, block_size)
    assert firsts[-1] == len(pieces)
    blocks = []
    for first, end in pairwise(firsts.tolist()):
        documents = np.searchsorted(starts, pieces[first:end, 0], side="right") - 1
        begins = pieces[first:end, 0] - starts[documents]
        blocks.append(
            [
                (document, range(begin, begin + length))
                for document, begin, length in zip(
                    documents.tolist(), begins.tolist(), pieces[first:end, 1].tolist(), strict=True
                )
            ]
        )
    return blocks, cut


def random_corpora():
    rng = np.random.default_rng(0)
    for _ in range(300):
        yield rng.integers(1, rng.integers(2, 100), rng.integers(1, 60)).tolist(), int(rng.integers(1, 40))


def test_every_position_of_every_document_is_in_one_block():
    for lengths, block_size in random_corpora():
        blocks, _ = packed(lengths, block_size)
        positions = [(document, place) for block in blocks for document, places in block for place in places]
        assert sorted(positions) == [(i, place) for i, length in enumerate(lengths) for place in range(length)]
        assert all(0 < sum(len(places) for _, places in block) <= block_size for block in blocks)


def test_padding_is_under_one_percent_or_the_least_possible():
    for lengths, block_size in random_corpora():
        blocks, _ = packed(lengths, block_size)
        padding = 1 - sum(lengths) / (len(blocks) * block_size)
        assert padding <= 0.01 or len(blocks) == -(-sum(lengths) // block_size)


def test_documents_that_fit_stay_whole_where_padding_permits():
    rng = np.random.default_rng(0)
    lengths = np.maximum(1, rng.lognormal(5, 1, 5000)).astype(int).tolist()  # as those of web pages are distributed
    blocks, cut = packed(lengths, 256)
    pieces = Counter(document for block in blocks for document, _ in block)
    assert [pieces[document] for document in range(len(lengths))] == [-(-length // 256) for length in lengths]
    assert cut == 0
    assert 1 - sum(lengths) / (len(blocks) * 256) < 0.01


def test_blocks_are_no_more_than_best_fit_one_by_one_needs():
    for lengths, block_size in random_corpora():
        rooms = []
        for length in sorted((length for length in lengths if length <= block_size), reverse=True):
            fitting = [room for room in rooms if room >= length]
            room = min(fitting, default=block_size)
            if fitting:
                rooms.remove(room)
            rooms.append(room - length)
        whole = [length for length in lengths if length <= block_size]
        assert not whole or len(packed(whole, block_size)[0]) <= len(rooms)


def test_a_document_goes_where_it_leaves_the_least_room():
    blocks, cut = packed([12, 15, 5, 4, 4], 20)
    assert [[document for document, _ in block] for block in blocks] == [[0, 3, 4], [1, 2]]
    assert cut == 0


def test_the_emptiest_block_fills_the_largest_holes_of_the_others():
    whole = [[(0, range(9))], [(1, range(7)), (3, range(4, 5))], [(2, range(6)), (3, range(4))]]
    assert packed([9, 7, 6, 5], 10) == (whole, 1)
    long = [[(0, range(9))], [(1, range(7)), (3, range(14, 15))], [(2, range(6)), (3, range(10, 14))]]
    assert packed([9, 7, 6, 15], 10) == ([*long, [(3, range(10))]], 0)  # no block would hold it


def test_few_are_cut_where_all_are_a_little_more_than_half_a_block():
    """100 of 60 positions in blocks of 100: 60 blocks, so 60 stay whole and each other one has parts of at most 40."""
    blocks, cut = packed([60] * 100, 100)
    assert len(blocks) == 60
    assert cut == 40
    lengths = Counter(len(places) for block in blocks for _, places in block)
    assert lengths[60] == 60
    assert (
        sum(lengths.values()) == 60 + 100 - 1 - 19
    )  # cut where one of 60 holes of 40 ends, if none ends there itself


def test_blocks_and_their_pieces_are_in_the_order_of_the_corpus():
    for lengths, block_size in random_corpora():
        blocks, _ = packed(lengths, block_size)
        begins = [[(document, places.start) for document, places in block] for block in blocks]
        assert all(block == sorted(block) for block in begins)
        assert [block[0] for block in begins] == sorted(block[0] for block in begins)


def predictions(dataset):
    """Each token that is predicted, and the tokens of its block that it is predicted from."""
    for block in dataset:
        for _, start, end in documents_in(block["position_ids"][None]):
            inputs, labels = block["input_ids"][start:end].tolist(), block["labels"][start:end].tolist()
            yield from ((inputs[: i + 1], label) for i, label in enumerate(labels) if label != IGNORE)


def test_every_token_is_predicted_once_from_all_before_it_in_its_document(tokenizer, stream):
    documents = [encode(tokenizer, text) for text in DOCUMENTS]
    expected = [(document[:i], document[i]) for document in documents for i in range(1, len(document))]
    assert sorted(predictions(PackedDataset(stream, 64, tokenizer))) == sorted(expected)


@pytest.mark.parametrize("block_size", [4, 8, 16])
def test_every_token_is_predicted_once_where_documents_are_cut(tokenizer, stream, block_size):
    documents = [encode(tokenizer, text) for text in DOCUMENTS]
    found = list(predictions(PackedDataset(stream, block_size, tokenizer)))
    assert sorted(label for _, label in found) == sorted(token for document in documents for token in document[1:])
    texts = ["".join(map(chr, document)) for document in documents]
    assert all(any("".join(map(chr, [*before, label])) in text for text in texts) for before, label in found)


def test_only_the_end_of_a_block_is_padded(tokenizer, stream):
    dataset = PackedDataset(stream, 16, tokenizer)
    positions = sum(len(encode(tokenizer, text)) - 1 for text in DOCUMENTS)
    assert dataset.padded_share == pytest.approx(1 - positions / (16 * len(dataset)))
    padding = torch.stack([block["labels"] == IGNORE for block in dataset])
    assert padding.sum() == 16 * len(dataset) - positions
    assert all((row.long().diff() >= 0).all() for row in padding)
    inputs = torch.stack([block["input_ids"] for block in dataset])
    assert (inputs[padding] == tokenizer.pad_token_id).all()
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_the_layout_is_computed_once(tokenizer, stream, monkeypatch):
    first = [block["input_ids"].tolist() for block in PackedDataset(stream, 16, tokenizer)]
    monkeypatch.setattr("hfchat.training.packing.pack", lambda *_: pytest.fail("computed again"))
    assert [block["input_ids"].tolist() for block in PackedDataset(stream, 16, tokenizer)] == first
    (stream / "blocks-24.writing").mkdir()  # a process was killed here
    monkeypatch.undo()
    assert len(PackedDataset(stream, 24, tokenizer)) != len(first)


def test_the_share_of_documents_that_are_cut(tokenizer, tmp_path):
    tokenize_corpus(Dataset.from_dict({"text": ["one text"] * 50}), "text", tokenizer, tmp_path / "tokens", "test")
    length = len(encode(tokenizer, "one text")) - 1
    assert PackedDataset(tmp_path / "tokens", length, tokenizer).cut_share == 0
    assert 0 < PackedDataset(tmp_path / "tokens", 2 * length - 1, tokenizer).cut_share <= 0.5
    assert PackedDataset(tmp_path / "tokens", length - 1, tokenizer).cut_share == 0  # none would fit


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
