import json

import pytest

from hfchat.errors import UserError
from hfchat.model_code import refuse_code


@pytest.fixture
def model(tmp_path):
    """A folder as training leaves it."""
    folder = tmp_path / "model"
    (folder / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    (folder / "checkpoints" / "checkpoint-1" / "pytorch_model.bin").write_bytes(b"")
    (folder / "training_args.bin").write_bytes(b"")
    (folder / "model.safetensors").write_bytes(b"")
    (folder / "config.json").write_text('{"model_type": "llama", "auto_map": null, "attn_implementation": "sdpa"}')
    (folder / "vocab.json").write_text('{"auto_map": 7, "attn_implementation": 8}')
    (folder / "adapter_config.json").write_text('{"auto_mapping": {"parent_library": "transformers.models.llama"}}')
    (folder / "lineage.json").write_text('{"config": {"attn_implementation": "kernels-community/flash-attn2"}}')
    return folder


def test_a_model_without_code_is_taken(model):
    refuse_code(model)


@pytest.mark.parametrize(
    "file", ["modeling_mine.py", "sub/code.py", "custom_generate/generate.py", "op.so", "code.PYC"]
)
def test_modules_are_refused(model, file):
    (model / file).parent.mkdir(exist_ok=True)
    (model / file).write_text("")
    with pytest.raises(UserError, match=f"{file}: a model must not bring code; delete it"):
        refuse_code(model)


@pytest.mark.parametrize(
    "file", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "adapter_model.bin", "x.CKPT", "sub/weights.pth"]
)
def test_pickles_are_refused(model, file):
    (model / file).parent.mkdir(exist_ok=True)
    (model / file).write_bytes(b"")
    with pytest.raises(UserError, match=f"{file}: weights in pickles run code"):
        refuse_code(model)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        *(
            (file, {"auto_map": {"AutoTokenizer": ["code.Mine", None]}}, "auto_map asks whoever loads")
            for file in ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json",
                         "video_preprocessor_config.json", "sub/config.json")
        ),
        ("config.json", {"text_config": [{"auto_map": {"AutoModel": "a/b--code.M"}}]}, "auto_map asks"),
        ("config.json", {"custom_pipelines": {"mine": {"impl": "code.P"}}}, "custom_pipelines asks"),
        ("config.json", {"attn_implementation": "mallory/kernel"}, "names code of a repository, 'mallory/kernel'"),
        ("config.json", {"_attn_implementation": {"": "paged|mallory/kernel"}}, "names code of a repository"),
        ("adapter_config.json", {"auto_mapping": {"parent_library": "code"}}, "has PEFT import 'code'"),
    ],
)  # fmt: skip
def test_what_has_a_loader_fetch_code_is_refused(model, file, content, said):
    (model / file).parent.mkdir(exist_ok=True)
    (model / file).write_text(json.dumps(content))
    with pytest.raises(UserError) as error:
        refuse_code(model)
    assert str(error.value).startswith(f"{model / file}: ")
    assert said in str(error.value)


def test_an_escaped_key_is_the_same_key(model):
    (model / "tokenizer_config.json").write_text(r'{"auto\u005fmap": {"AutoTokenizer": "code.Mine"}}')
    with pytest.raises(UserError, match="auto_map asks"):
        refuse_code(model)


@pytest.mark.parametrize("content", ["{", "[" * 100_000, "\xff"])
def test_what_cannot_be_read_is_refused(model, content):
    (model / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=r"config\.json: cannot be read as JSON"):
        refuse_code(model)
