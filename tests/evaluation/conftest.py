"""Models small enough to be made by the tests."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session", params=["llama", "gpt2"])
def model(request, tokenizer):
    """One model with rotary and one with absolute positions: the latter notices if padding shifts them."""
    torch.manual_seed(0)
    if request.param == "llama":
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=256,
            initializer_range=0.5,
        )
        return LlamaForCausalLM(config).eval()
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.5
    )
    return GPT2LMHeadModel(config).eval()
