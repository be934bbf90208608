import pytest


@pytest.fixture(scope="session")
def packed(tokenizer, corpus, tmp_path_factory):
    """The two splits of the corpus in blocks of 32 tokens."""
    from hfchat.dataset import load_split
    from hfchat.training.packing import PackedDataset, tokenize_corpus

    folder = tmp_path_factory.mktemp("tokens")
    splits = {}
    for split in ("train", "validation"):
        tokenize_corpus(load_split(str(corpus), split, "text"), "text", tokenizer, folder / split, split)
        splits[split] = PackedDataset(folder / split, 32, tokenizer)
    return splits
