import itertools
import re

import pytest
import torch
from datasets import Dataset
from datasets.distributed import split_dataset_by_node

from hfchat.errors import UserError
from hfchat.training.packing import IGNORE
from hfchat.training.streaming import StreamedDataset

# More than are tokenized at once.
TEXTS = [f"Document {i} " + "says more than the one before it. " * (i % 7) for i in range(150)]


def stream(tokenizer, texts=TEXTS, process=0, processes=1):
    documents = Dataset.from_dict({"text": texts, "id": range(len(texts))}).to_iterable_dataset(num_shards=3)
    share = split_dataset_by_node(documents, rank=process, world_size=processes)
    return StreamedDataset(share, "text", 16, tokenizer)


def blocks_per_pass(tokenizer):
    return sum(len(ids) + 2 for ids in tokenizer(TEXTS, add_special_tokens=False)["input_ids"]) // 16


def take(dataset, count):
    return list(itertools.islice(dataset, count))


def same(blocks, others):
    return len(blocks) == len(others) and all(
        torch.equal(block[name], other[name]) for block, other in zip(blocks, others, strict=True) for name in block
    )


def test_blocks_are_the_documents_one_after_the_other(tokenizer):
    ids = tokenizer(TEXTS, add_special_tokens=False)["input_ids"]
    documents = [[tokenizer.bos_token_id, *document, tokenizer.bos_token_id] for document in ids]
    blocks = take(stream(tokenizer), blocks_per_pass(tokenizer))
    inputs = torch.cat([block["input_ids"] for block in blocks]).tolist()
    assert inputs == [token for document in documents for token in document][: len(inputs)]
    labels = torch.cat([block["labels"] for block in blocks]).tolist()
    expected = [token for document in documents for token in [IGNORE, *document[1:]]]
    assert labels == expected[1 : len(labels) + 1]


@pytest.mark.parametrize("passes", [0, 1, 2])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_it_goes_on_where_it_was_saved_also_beyond_its_end(tokenizer, tmp_path, passes, share):
    length = blocks_per_pass(tokenizer)
    trained = int(length * (passes + share))
    undisturbed = take(stream(tokenizer), trained + 3 * length)
    first = stream(tokenizer)
    take(first, trained + 5)  # some are on their way to the model when a checkpoint is saved
    first.save(tmp_path / "place.json", trained)
    resumed = stream(tokenizer)
    resumed.resume(tmp_path / "place.json")
    assert same(take(resumed, 3 * length), undisturbed[trained:])
    # And once more, from a place of the resumed run.
    resumed.save(tmp_path / "place.json", trained + length)
    again = stream(tokenizer)
    again.resume(tmp_path / "place.json")
    assert same(take(again, 2 * length), undisturbed[trained + length :])


def test_what_is_saved_does_not_grow_with_the_stream(tokenizer, tmp_path):
    dataset = stream(tokenizer)
    blocks = iter(dataset)
    for count in range(100, 1000, 100):
        take(blocks, 100)
        dataset.save(tmp_path / "place.json", count)
        assert (tmp_path / "place.json").stat().st_size < 2000
    assert len(dataset._places) < 10


def test_a_run_without_checkpoints_keeps_few_places(tokenizer):
    dataset = stream(tokenizer)
    blocks = iter(dataset)
    for count in range(100, 1000, 100):
        take(blocks, 100)
        dataset.forget(count)
    assert len(dataset._places) < 10


def test_processes_share_the_documents(tokenizer):
    shares = []
    for process in range(3):
        blocks = take(stream(tokenizer, process=process, processes=3), blocks_per_pass(tokenizer) // 3)
        text = tokenizer.decode(torch.cat([block["input_ids"] for block in blocks]), skip_special_tokens=True)
        shares.append(set(re.findall(r"Document \d+ ", text)))
    assert [len(share & other) for share, other in itertools.combinations(shares, 2)] == [0, 0, 0]
    assert len(set.union(*shares)) > 0.9 * len(TEXTS)


def test_another_number_of_processes_is_refused(tokenizer, tmp_path):
    with pytest.raises(UserError, match=r"checkpoint-2 has no stream-0-of-4\.json; .* as many processes"):
        stream(tokenizer).resume(tmp_path / "checkpoint-2" / "stream-0-of-4.json")


def test_a_stream_without_documents_is_refused(tokenizer):
    dataset = stream(tokenizer)
    dataset.documents = dataset.documents.skip(len(TEXTS))
    with pytest.raises(UserError, match="no document is left to train on; lower validation_documents"):
        next(iter(dataset))
