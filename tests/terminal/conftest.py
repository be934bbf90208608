"""The servers of tests/serving, and a model in a folder."""

import pytest

from tests.serving.conftest import scripted, serve, tiny_model, tiny_tokenizer  # noqa: F401


@pytest.fixture(scope="session")
def tiny_folder(tiny_model, tiny_tokenizer, tmp_path_factory):  # noqa: F811
    """The folder of a tiny chat model that knows nothing."""
    folder = tmp_path_factory.mktemp("tiny-chat")
    tiny_model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder
