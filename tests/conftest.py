"""Small artefacts that the tests share. Nothing here is downloaded."""

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# `datasets` caches by path, and pytest uses the same temporary paths again.
_datasets_cache = tempfile.TemporaryDirectory(prefix="hfchat-tests-", ignore_cleanup_errors=True)
os.environ["HF_DATASETS_CACHE"] = _datasets_cache.name

pytest_plugins = ["tests.servers.storage", "tests.servers.speaker"]

ROOT = Path(__file__).parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"

needs_chunked_loss = pytest.mark.skipif(
    not hasattr(torch.nn.functional, "linear_cross_entropy"), reason="PyTorch is older than 2.13"
)

TEXTS = [
    f"Document {i}: the recipe reads {i * 7} files from a folder, and the model learns what comes next in each.\n"
    f"A tokenizer turns the text into numbers; number {i} is not the last, as {i + 1} follows it.\n"
    f"Then {i * 3} of the {i * 7} files are kept for validation, and the model is asked what it makes of them.\n"
    for i in range(60)
]


def pytest_make_parametrize_id(val, argname):
    """Tests are not named by bytes: gzip writes the time into them, and all workers must give a test the same name."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """The project's tokenizer with a small vocabulary, saved and reloaded."""
    from transformers import AutoTokenizer

    from hfchat.tokenization.bpe import train_bpe

    folder = tmp_path_factory.mktemp("tokenizer")
    train_bpe(TEXTS, vocab_size=512).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def tokenizer_folder(tokenizer, tmp_path_factory) -> Path:
    """Where the tokenizer is saved."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """A corpus as `prepare_data.py` lays it out, without its lineage."""
    from datasets import Dataset

    folder = tmp_path_factory.mktemp("corpus")
    rows = [
        {"text": text, "id": str(i), "source": "test", "license": "CC0-1.0", "url": ""} for i, text in enumerate(TEXTS)
    ]
    Dataset.from_list(rows[6:]).to_parquet(folder / "data" / "train-00000.parquet")
    Dataset.from_list(rows[:6]).to_parquet(folder / "data" / "validation-00000.parquet")
    (folder / "README.md").write_text(
        "---\nlicense: cc0-1.0\nconfigs:\n- config_name: default\n  data_files:\n"
        "  - {split: train, path: data/train-*.parquet}\n"
        "  - {split: validation, path: data/validation-*.parquet}\n---\n"
    )
    return folder


def tiny_model(tokenizer, architecture: str = "llama", seed: int = 0):
    """A model of two layers, for the tokenizer's vocabulary."""
    import torch
    from transformers import AutoModelForCausalLM

    from hfchat.training.dial import Shape

    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(Shape.from_depth(2).model_config(architecture, tokenizer, block_size=128))


@pytest.fixture(scope="session")
def chat_model(tokenizer, tmp_path_factory) -> Path:
    """A folder with a tiny chat model and its tokenizer. It knows nothing."""
    from hfchat.chat_template import record_fingerprint

    folder = tmp_path_factory.mktemp("chat-model")
    model = tiny_model(tokenizer)
    record_fingerprint(tokenizer, model)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def random_llama(tokenizer, **config):
    """A tiny Llama that knows nothing; with a wide `initializer_range` it says something else to each prompt."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes | config)).eval()


@pytest.fixture(scope="session", params=["llama", "gpt2"])
def model(request, tokenizer):
    """One model with rotary and one with absolute positions: the latter notices if padding shifts them."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    if request.param == "llama":
        return random_llama(tokenizer, max_position_embeddings=256, initializer_range=0.5)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.5
    )
    return GPT2LMHeadModel(config).eval()


@pytest.fixture(scope="session")
def plain_base(tmp_path_factory) -> Path:
    """A base model that knows no turns: GPT-2's architecture, with a tokenizer that has only the end of a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(TEXTS, trainer)
    end = "<|endoftext|>"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=end, eos_token=end)
    folder = tmp_path_factory.mktemp("plain-base")
    tokenizer.save_pretrained(folder)
    config = GPT2Config(
        vocab_size=320, n_positions=128, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture
def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def run_recipe(tmp_path):
    """Runs a recipe as a user does. Returns the finished process, its output as text."""

    def run(name: str, *arguments: object, launch: str | None = None, check: bool = True):
        launcher = [sys.executable]
        if launch:
            config = ROOT / "accelerate_configs" / f"{launch}.yaml"
            launcher = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--config_file", str(config)]
        command = [*launcher, str(ROOT / "recipes" / f"{name}.py"), *map(str, arguments)]
        finished = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=300)
        if check:
            assert finished.returncode == 0, finished.stderr[-4000:]
        return finished

    return run
