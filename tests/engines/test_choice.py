"""Which engine answers where nobody says, and what does not go together."""

import pytest

from hfchat.engines import choice, llamacpp, vllm
from hfchat.errors import UserError


@pytest.fixture
def installed(monkeypatch):
    """Says what is installed: `installed("vllm")`."""

    def only(*names):
        monkeypatch.setattr(llamacpp, "is_installed", lambda: "llamacpp" in names)
        monkeypatch.setattr(llamacpp, "runs_here", lambda: "llamacpp" in names)
        monkeypatch.setattr(vllm, "is_installed", lambda: "vllm" in names)

    return only


@pytest.mark.parametrize(
    ("here", "has_gpu", "engine", "weights"),
    [
        (("llamacpp", "vllm"), False, "llamacpp", "q8_0"),
        (("llamacpp",), False, "llamacpp", "q8_0"),
        (("vllm",), False, "transformers", "auto"),
        ((), False, "transformers", "auto"),
        (("llamacpp", "vllm"), True, "vllm", "auto"),
        (("vllm",), True, "vllm", "auto"),
        (("llamacpp",), True, "transformers", "auto"),
        ((), True, "transformers", "auto"),
    ],
)
def test_auto_is_the_fastest_that_is_installed(installed, here, has_gpu, engine, weights):
    installed(*here)
    chosen = choice.choose("auto", "auto", "some/model", has_gpu)
    assert (chosen.engine, chosen.weights, chosen.asked_for) == (engine, weights, False)


@pytest.mark.parametrize("has_gpu", [False, True])
@pytest.mark.parametrize(
    ("engine", "weights", "model", "expected"),
    [
        ("auto", "auto", "a.gguf", ("llamacpp", "auto")),
        ("llamacpp", "auto", "a.gguf", ("llamacpp", "auto")),
        ("auto", "q4_k_m", "folder", ("llamacpp", "q4_k_m")),
        ("llamacpp", "auto", "folder", ("llamacpp", "q8_0")),
        ("llamacpp", "f32", "folder", ("llamacpp", "f32")),
        ("transformers", "auto", "folder", ("transformers", "auto")),
        ("transformers", "bfloat16", "folder", ("transformers", "bfloat16")),
        ("vllm", "float32", "folder", ("vllm", "float32")),
    ],
)
def test_what_is_asked_for_or_only_one_has_is_that(installed, engine, weights, model, expected, has_gpu):
    installed("llamacpp", "vllm")
    chosen = choice.choose(engine, weights, model, has_gpu)
    assert (chosen.engine, chosen.weights) == expected
    assert chosen.asked_for  # so nothing else takes its place


def test_a_type_of_pytorchs_stays_there_without_a_gpu(installed):
    installed("llamacpp", "vllm")
    assert choice.choose("auto", "float32", "folder", False).engine == "transformers"
    assert choice.choose("auto", "bfloat16", "folder", True).engine == "vllm"


@pytest.mark.parametrize(
    ("engine", "weights", "model", "message"),
    [
        ("transformers", "auto", "a.gguf", "--engine transformers: a.gguf is a file for llama.cpp"),
        ("vllm", "auto", "a.gguf", "--engine vllm: a.gguf is a file for llama.cpp"),
        ("auto", "q8_0", "a.gguf", "--weights q8_0: a.gguf has its weights in a type already"),
        ("llamacpp", "bfloat16", "folder", "--weights bfloat16: --engine llamacpp has .*q8_0"),
        ("transformers", "q8_0", "folder", "--weights q8_0: --engine transformers has float32, bfloat16"),
        ("vllm", "q8_0", "folder", "--weights q8_0: --engine vllm has float32, bfloat16"),
    ],
)
def test_what_does_not_go_together_is_one_line(installed, engine, weights, model, message):
    installed("llamacpp", "vllm")
    with pytest.raises(UserError, match=f"^{message}"):
        choice.choose(engine, weights, model, has_gpu=False)


@pytest.mark.parametrize(
    ("engine", "weights", "model", "how"),
    [
        ("llamacpp", "auto", "folder", r"pip install 'hfchat\[llamacpp\]'"),
        ("auto", "q8_0", "folder", r"pip install 'hfchat\[llamacpp\]'"),
        ("auto", "auto", "a.gguf", r"pip install 'hfchat\[llamacpp\]'"),
        ("vllm", "auto", "folder", "pip install"),
    ],
)
def test_what_is_not_installed_is_one_line_that_says_how_to(installed, engine, weights, model, how):
    installed()
    with pytest.raises(UserError, match=how) as refused:
        choice.choose(engine, weights, model, has_gpu=False)
    assert "\n" not in str(refused.value)
