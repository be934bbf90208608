import pytest
import torch


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


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    from tests.training.runs import Runs

    runs = Runs(tmp_path_factory.mktemp("runs") / "log")
    yield runs
    runs.close()


@pytest.fixture(scope="session")
def inputs(corpus, tokenizer_folder) -> list:
    """Arguments of `recipes/pretrain.py`: what to train a tiny model on."""
    return [
        "--dataset_name", corpus, "--tokenizer_name", tokenizer_folder, "--depth", 1, "--block_size", 32,
        "--bf16", "false", "--sample_prompts", "The recipe", "--disable_tqdm", "true",
    ]  # fmt: skip


@pytest.fixture(scope="session", params=["llama", "gpt_neox"])
def untied_base(request, plain_base, tmp_path_factory):
    """A base that knows no turns, and whose output layer is not its embeddings, as Llama 3 8B's or Pythia's."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(plain_base)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    options = {"max_position_embeddings": 128, "initializer_range": 0.2, "tie_word_embeddings": False}
    config = AutoConfig.for_model(request.param, vocab_size=len(tokenizer), **sizes, **options)
    folder = tmp_path_factory.mktemp(f"untied-{request.param}")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def rows():
    """Twelve short conversations."""
    from datasets import Dataset

    messages = [
        [
            {"role": "user", "content": f"Question {i}?"},
            {"role": "assistant", "content": f"The answer is {i}." * (1 + i % 3)},
        ]
        for i in range(12)
    ]
    return Dataset.from_dict({"messages": messages})
