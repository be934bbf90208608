import json

import pytest

from hfchat.hub.leaks import clean_paths, find_leaks, readable_text

SECRETS = {
    "Hugging Face": "hf_" + "aB3" * 11 + "x",
    "of hfchat": "hfchat-" + "Ab-9_" * 8 + "xyz",
    "OpenAI": "sk-proj-" + "Ab9_" * 8,
    "AWS": "AKIA" + "IOSFODNN7EXAMPLE",
    "GitHub": "ghp_" + "a1B2" * 9,
    "GitLab": "glpat-" + "a1B2_" * 4,
    "Slack": "xoxb-" + "123456789012-abc",
    "Google": "AIza" + "Sy_a1" * 7,
    "Stripe": "sk_live_" + "a1B2" * 5,
    "npm": "npm_" + "a1B2" * 9,
    "JSON Web Token": "eyJ" + "hbGciOiJIUzI1NiJ9" + ".eyJ" + "zdWIiOiIxMjM0NTY3ODkwIn0" + ".sig" + "nature_0123",
    "private key": "-----BEGIN OPENSSH " + "PRIVATE KEY-----",
    "in a URL": "postgresql://hfchat:" + "s3cret@db.example.org/feedback",
    "password or key": "wandb_api_key: " + "0123456789abcdef0123",
}
PATHS = (
    "/home/jane/models/mine", "/Users/jane/x.json", "/root", "/scratch/jane/corpus", "/data/jane", "file:///home/jane/x",
    "C:\\\\Users\\\\jane\\\\model", "D:/work/corpus",
)  # fmt: skip
HARMLESS = (
    '"pad_token": "<|endoftext|>"',
    '"eos_token_id": 2',
    '"sha256": "0432a01bbc73c2960702f2dc30ddbd867d9f8558dd3eac435a4b97baa9c2d5c7"',
    "hf_hub_download, `--hub_token $HF_TOKEN`, password: <your password>, api_key=${KEY}",
    "Passwords: choose one of twelve letters. The secret: practise.",
    "https://example.org/home/jane and https://host/data/train.jsonl, hf://datasets/alice/x/data/train.parquet",
    "outputs/demo/base, ./data/train.jsonl, data/train-*.parquet, …/hfchat/model, /v1/chat/completions, and/or",
    "sk-learn, task-oriented-dialogue-systems-for-all-of-us",
)


@pytest.mark.parametrize("kind", SECRETS)
def test_a_secret_is_found_on_its_line_and_not_repeated(kind):
    (leak,) = find_leaks(f'first\nsecond\n  "value": "{SECRETS[kind]}"\nlast')
    assert leak.line == 3
    assert kind in leak.what
    assert SECRETS[kind] not in leak.what


@pytest.mark.parametrize("path", PATHS)
def test_a_path_of_the_machine_is_found_and_can_be_cleaned(path):
    text = f'{{\n"base_model_name_or_path": "{path}"\n}}'
    (leak,) = find_leaks(text)
    assert (leak.line, leak.what) == (2, "a path of this machine")
    assert not find_leaks(clean_paths(text))
    assert not find_leaks(text, paths=False)


def test_the_working_directory_is_one_wherever_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_leaks(f"made in {tmp_path}/out")
    assert clean_paths(f"made in {tmp_path}/out/x.json") == "made in out/x.json"


@pytest.mark.parametrize("text", HARMLESS)
def test_what_only_looks_like_one_is_none(text):
    assert find_leaks(text) == []


def test_a_vocabulary_is_not_looked_at_but_what_else_a_tokenizer_says_is():
    secret = SECRETS["Hugging Face"]
    tokenizer = {
        "added_tokens": [],
        "model": {"type": "BPE", "vocab": {"/home/jane": 7}, "merges": [["password", "=a1b2c3d4"]]},
    }
    assert not find_leaks(readable_text("tokenizer.json", json.dumps(tokenizer).encode()))
    tokenizer["added_tokens"] = [{"content": secret}]
    assert find_leaks(readable_text("tokenizer.json", json.dumps(tokenizer).encode()))
    assert readable_text("weights", b"\xff\xfe\x00") is None
