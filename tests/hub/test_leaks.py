import json

import pytest

from hfchat.hub.leaks import clean_paths, find_leaks

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
    "Groq": "gsk_" + "a1B2" * 13,
    "Replicate": "r8_" + "a1B2" * 9,
    "xAI": "xai-" + "a1B2" * 20,
    "Perplexity": "pplx-" + "a1B2" * 12,
    "Together": "tgp_v1_" + "a1B_" * 10,
    "NVIDIA": "nvapi-" + "a1B_" * 16,
    "Telegram": "123456789:" + "AAh" + "d1_q" * 8,
    "webhook of Discord": "https://discord.com/api/webhooks/" + "123456789012345678/" + "aB3_" * 17,
    "Discord bot": "MTAx" + "Nzk1" * 5 + ".GabcDe." + "a1B2" * 9 + "ab",
    "SendGrid": "SG." + "a1B2c3D4e5F6g7H8i9J0k1" + "." + "a1B2_" * 8,
    "DigitalOcean": "dop_v1_" + "a1b2" * 16,
    "Databricks": "dapi" + "0a1b" * 8,
    "key of Azure": "DefaultEndpointsProtocol=https;AccountName=x;AccountKey=" + "aB3/" * 21 + "aQ==",
    "signed URL": "https://x.blob.core.windows.net/c/f?sv=2023-01-03&sig=" + "aB3%2F" * 10 + "abc%3D",
    "token of Google": "ya29." + "a0AfB_" * 8,
    "webhook of Slack": "https://hooks.slack.com/services/" + "T0A1B2C3D/B0A1B2C3D/" + "aB3d" * 6,
    "token of Slack": "xapp-1-" + "A0123-456-" + "a1b2" * 8,
    "Twilio": "SK" + "0a1b" * 8,
    "Vault": "hvs." + "CAESI_" * 5,
    "a private key": "AGE-SECRET-KEY-1" + "QPZRY9X8" * 7 + "GF",
    "login of Docker": '{"auths": {"r": {"auth": "' + "YWxpY2U6czNjcmV0cHc=" + '"}}}',
    "a password in a URL": "redis://:" + "s3cret@cache.example.org:6379/0",
    "Authorization header": "Authorization: Bearer " + "a1b2c3d4" * 4,
    "a token": 'token\\": \\"' + "a1b2c3d4e5f6g7h8",
    ".netrc": "machine example.org login jane password " + "correct-horse",
    "a private key, in Base64": "client-key-data: "
    + "LS0tLS1CRUdJTiBSU0EgUFJJVkFURSBLRVktLS0tLQpNSUlFcEFJQkFBS0NBUUVBd0hvWXVxN2kz",
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
    "the password: first\\n1. choose, Bearer of 2 rings, a token: any, `auth: required`, login and password forms",
    '"token": "covid19", {"image_token": "<image_0001_of_2>"}, token = tokenizer.convert_ids_to_tokens(ids[0])',
    "https://sid.example/?CFTOKEN=1da5d5e517e7a485-37ABEB4E-25B3, postgresql://user:$PASSWORD@host, http://a:***@b",
    "https://books.example/?id=x&pg=PA1&sig=ACfU3U0aBcDeFgHiJkLmNoPqRsTuVwXyZ012345&hl=en",
    "sk-learn, task-oriented-dialogue-systems-for-all-of-us",
)


@pytest.mark.parametrize("kind", SECRETS)
def test_a_secret_is_found_on_its_line_and_not_repeated(kind):
    leaks = find_leaks(f'first\nsecond\n  "value": "{SECRETS[kind]}"\nlast')
    assert {leak.line for leak in leaks} == {3}
    assert any(leak.what in kind or kind in leak.what for leak in leaks)
    assert not any(SECRETS[kind] in leak.what for leak in leaks)


@pytest.mark.parametrize("kind", SECRETS)
@pytest.mark.parametrize("before", ["\n", "\t", "é", "日"])
def test_what_stands_before_a_secret_in_json_hides_it_nowhere(kind, before):
    of_kind = {leak.what for leak in find_leaks(SECRETS[kind])}
    for text in (f"{before}{SECRETS[kind]}", json.dumps(f"is{before}{SECRETS[kind]}")):
        assert of_kind <= {leak.what for leak in find_leaks(f"first{text}", paths=False)}


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


@pytest.mark.parametrize("text", ["password:", "eyJ-", "token: 1", "://", "machine a login ", "\\", "auth=a"])
def test_no_text_is_looked_at_for_long(text):
    # By the old rules the first of them took x4 for x2, which comes to minutes.
    assert find_leaks(text * (500_000 // len(text)), paths=False) == []
