"""The claims of SECURITY.md that no other test shows, and that the tests which it names exist."""

import ast
import asyncio
import builtins
import functools
import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from hfchat.config import parse
from hfchat.errors import UserError
from hfchat.models import load_model, load_tokenizer, resolve
from tests.conftest import ROOT

CLAIMS = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
SOURCES = [*(ROOT / "src").rglob("*.py"), *(ROOT / "recipes").glob("*.py")]
BY_TRANSFORMERS = re.compile(r"Auto\w+\.(from_pretrained|from_config)|pipeline|from_pretrained")


@functools.cache
def calls(path):
    """What a file calls: the function's name, and the call."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return [(ast.unparse(node.func), node) for node in nodes if isinstance(node, ast.Call)]


def test_the_tests_that_are_named_exist():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", CLAIMS)
    assert len(named) > 30
    for file, function in named:
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, (
            f"{file}::{function}"
        )


def test_every_claim_has_a_test_or_is_a_limit():
    rows = [line for line in CLAIMS.splitlines() if line.startswith("| ") and not line.startswith(("| what", "| ---"))]
    assert len(rows) > 20
    for row in rows:
        assert "::" in row or "**Limit" in row, row


def test_every_loader_says_that_no_code_is_run():
    found = 0
    for path in SOURCES:
        for name, call in calls(path):
            if BY_TRANSFORMERS.fullmatch(name):
                options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
                assert options.get("trust_remote_code") == "False", f"{path}:{call.lineno}"
                found += 1
    assert found > 10


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_code_of_a_model_is_not_run_whoever_answers(chat_model, tmp_path, monkeypatch, load):
    folder = tmp_path / "model"
    shutil.copytree(chat_model, folder)
    for name, classes in (
        ("config.json", {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["code.Tokenizer", "code.Tokenizer"]}),
    ):
        config = json.loads((folder / name).read_text())
        config |= {"model_type": "mine", "tokenizer_class": "Mine", "auto_map": classes}
        (folder / name).write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.setattr(builtins, "input", lambda _="": "y")
    with pytest.raises(UserError, match="it needs code that it brings, which is never run"):
        load(str(folder))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("recipe", ["finetune", "align"])
def test_a_recipe_refuses_to_trust_code(recipe):
    from hfchat.training.align_arguments import AlignArguments
    from hfchat.training.finetuning import FinetuneArguments

    arguments = {"finetune": FinetuneArguments, "align": AlignArguments}[recipe]
    command = ["--dataset_name", "d", "--output_dir", "o", "--trust_remote_code"]
    parse(arguments, argv=[*command, "false"])
    with pytest.raises(UserError, match="trust_remote_code: code that a model brings is never run"):
        parse(arguments, argv=[*command, "true"])


def test_no_dataset_brings_code(tmp_path):
    from datasets import load_dataset

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(Exception, match=r"script|No data|any data|supported"):
        load_dataset(str(tmp_path / "mine"))
    assert not (tmp_path / "ran").exists()


def test_weights_in_pickles_are_refused(chat_model, tmp_path):
    from safetensors.torch import load_file

    folder = tmp_path / "model"
    shutil.copytree(chat_model, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="it has no weights in safetensors, and those in pickles") as error:
        load_model(str(folder))
    assert "\n" not in str(error.value)


def test_an_adapter_in_a_pickle_is_refused(chat_model, tmp_path):
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file

    from hfchat.adapters import load_adapter

    model = get_peft_model(load_model(str(chat_model)), LoraConfig(target_modules="all-linear"))
    model.save_pretrained(tmp_path)
    assert load_adapter(load_model(str(chat_model)), tmp_path).peft_config
    weights = load_file(tmp_path / "adapter_model.safetensors")
    torch.save(weights, tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no adapter_model\.safetensors, and weights in pickles are not read"):
        load_adapter(load_model(str(chat_model)), tmp_path)


def test_adapters_are_loaded_in_one_place():
    places = [path.name for path in SOURCES for name, _ in calls(path) if name == "PeftModel.from_pretrained"]
    assert places == ["adapters.py"]


@pytest.mark.parametrize("name", ["../secret", "a/../../secret", "/etc/secret", "./secret"])
def test_a_path_is_not_a_name_on_the_hub(name):
    with pytest.raises(UserError, match="no such model folder"):
        resolve(name)


def test_nothing_is_unpacked():
    unpacking = {"extractall", "unpack_archive", "extract_archive"}
    found = [(path.name, name) for path in SOURCES for name, _ in calls(path) if name.split(".")[-1] in unpacking]
    assert not found
    sources = {path.name: path.read_text(encoding="utf-8") for path in SOURCES}
    opening = [name for name, source in sources.items() if re.search(r"^\s*import tarfile", source, re.M)]
    assert opening == ["contents.py"]  # which looks into what is to be published, in memory


def test_only_the_hash_of_a_key_is_kept():
    from hfchat.serving.http.auth import new_key

    key, entry = new_key("me")
    other, _ = new_key("me")
    assert key != other
    assert len(key) > 30
    assert key not in entry
    assert key.split("-")[-1] not in entry


def test_no_url_of_a_request_is_opened(serve, scripted):
    asked = []

    async def listen():
        server = await asyncio.start_server(lambda *_: asked.append(1), "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/x.png"
        served = serve(scripted())
        for part in ({"type": "image_url", "image_url": {"url": url}}, {"type": "file", "file": {"file_data": url}}):
            messages = [{"role": "user", "content": [part]}]
            response = await asyncio.to_thread(served.chat, messages=messages)
            assert response.status_code == 400, response.text
            assert response.json()["error"]["param"] == "messages[0].content[0].type"
        server.close()

    asyncio.run(listen())
    assert not asked


def test_an_upstream_cannot_send_the_server_elsewhere():
    from hfchat.serving.engines.engine import EngineError
    from tests.servers.streams import stream_server
    from tests.serving.engines.test_upstream import answer, upstream, whole

    async def run():
        async with stream_server(whole(200, {})) as target:
            moved = whole(307, {}, Location=f"{target.url}/chat/completions")
            async with upstream(moved) as (engine, _):
                with pytest.raises(EngineError):
                    await answer(engine)
            assert not target.requests

    asyncio.run(asyncio.wait_for(run(), 30))  # a followed redirect waits for an answer that does not come


@pytest.mark.parametrize(
    "path", ["../app.py", "%2e%2e/app.py", "..%2fapp.py", "%2e%2e%2f%2e%2e%2fmodels.py", "//etc/passwd"]
)
def test_only_the_files_of_the_page_are_served(serve, scripted, path):
    import http.client
    from urllib.parse import urlsplit

    served = serve(scripted())
    address = urlsplit(str(served.http.base_url))
    connection = http.client.HTTPConnection(address.hostname, address.port)  # httpx would take the dots out
    connection.request("GET", f"/page/{path}")
    response = connection.getresponse()
    content = response.read().decode()
    connection.close()
    assert response.status == 404, content[:200]
    assert "import" not in content


def test_no_file_of_the_page_is_a_link():
    assert not [path for path in Path(ROOT / "src/hfchat/serving/page").rglob("*") if path.is_symlink()]
