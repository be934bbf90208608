"""The archive for TorchServe is packed by its own program, and the handler in it answers as the model does."""

import importlib.util
import json
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import ROOT, random_llama

TORCHSERVE = ROOT / "deploy" / "torchserve"
REQUESTS = [
    {"messages": [{"role": "user", "content": "A tokenizer?"}], "max_new_tokens": 12},
    {"messages": [{"role": "user", "content": "What reads 7 files from a folder, and keeps 3?"}], "max_new_tokens": 5},
]


class Context:
    """What TorchServe hands to a handler (`ts.context.Context`), as far as this one uses it."""

    def __init__(self, folder, limits):
        self.system_properties = {"model_dir": str(folder), "gpu_id": None}
        self.model_yaml_config = limits
        self.statuses = {}

    def set_response_status(self, code=200, phrase="", idx=0):
        self.statuses[idx] = code


@pytest.fixture(scope="module")
def chat_model(tokenizer, tmp_path_factory):
    """A tiny chat model whose weights are large enough that it does not say one token for ever."""
    model = random_llama(tokenizer, max_position_embeddings=128, initializer_range=0.5)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    folder = tmp_path_factory.mktemp("chat-model")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def unpacked(chat_model, tmp_path_factory):
    """The archive of a tiny model, packed and unpacked."""
    if importlib.util.find_spec("model_archiver") is None:
        pytest.skip("torch-model-archiver is not installed")
    folder = tmp_path_factory.mktemp("torchserve")
    (folder / "scratch").mkdir()
    command = [sys.executable, "-c", "from model_archiver.model_packaging import generate_model_archive as g; g()"]
    options = ["--model-name", "assistant", "--version", "1.0", "--handler", TORCHSERVE / "handler.py"]
    options += [
        "--config-file",
        TORCHSERVE / "model-config.yaml",
        "--extra-files",
        chat_model,
        "--export-path",
        folder,
    ]
    # It packs in a folder of the model's name among the temporary files, and removes what it finds there.
    environment = {"TMPDIR": str(folder / "scratch"), "PATH": ""}
    subprocess.run([*command, *options], env=environment, check=True, capture_output=True)
    with zipfile.ZipFile(folder / "assistant.mar") as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def load(folder):
    """The class of the archive's handler, found as TorchServe finds it."""
    manifest = json.loads((folder / "MAR-INF" / "MANIFEST.json").read_text())["model"]
    spec = importlib.util.spec_from_file_location("packed_handler", folder / manifest["handler"])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (handler,) = [one for one in vars(module).values() if isinstance(one, type) and one.__module__ == module.__name__]
    return handler, yaml.safe_load((folder / manifest["configFile"]).read_text())


@pytest.fixture(scope="module")
def serving(unpacked):
    """A handler that has loaded its model, with what it makes of requests: answers, and statuses by their index."""
    handler_class, config = load(unpacked)
    handler = handler_class()
    handler.initialize(Context(unpacked, config))

    def ask(*bodies, context_length=None):
        context = Context(unpacked, config)
        known, handler._context = handler._context, context_length or handler._context
        try:
            answers = handler.handle([{"body": body} for body in bodies], context)
        finally:
            handler._context = known
        return answers, context.statuses

    return SimpleNamespace(ask=ask, handler=handler, config=config)


@pytest.fixture(scope="module")
def alone(chat_model):
    """The model's own answer to a request, made for it alone."""
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    model = AutoModelForCausalLM.from_pretrained(chat_model, dtype=torch.float32).eval()

    def answer(request):
        prompt = tokenizer.apply_chat_template(
            request["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        output = model.generate(**prompt, do_sample=False, max_new_tokens=request["max_new_tokens"])
        ids = output[0, prompt["input_ids"].shape[1] :].tolist()
        return tokenizer.decode(ids, skip_special_tokens=True), len(ids), prompt["input_ids"].shape[1]

    return answer


def test_a_batch_is_answered_as_its_requests_one_by_one(serving, alone):
    answers, statuses = serving.ask(*REQUESTS)
    assert not statuses
    for answer, request in zip(answers, REQUESTS, strict=True):
        text, tokens, prompt_tokens = alone(request)
        assert (answer["answer"], answer["completion_tokens"]) == (text, tokens)
        assert answer["prompt_tokens"] == prompt_tokens
        assert answer["finish_reason"] == "length"


def test_an_answer_ends_with_its_turn_while_another_goes_on(serving, monkeypatch):
    requests = [request | {"max_new_tokens": 12} for request in REQUESTS]
    first, second = (serving.handler._generate([serving.handler._read({"body": one})[0]], 12)[0] for one in requests)
    end = next(id for id in first[1:] if id not in second)
    monkeypatch.setattr(serving.handler, "_stop", [end])
    monkeypatch.setattr(serving.handler._model.generation_config, "eos_token_id", [end])
    answers, _ = serving.ask(*requests)
    assert [answer["finish_reason"] for answer in answers] == ["stop", "length"]
    assert [answer["completion_tokens"] for answer in answers] == [first.index(end) + 1, 12]


def test_a_batch_that_would_leave_the_context_is_answered_apart(serving, alone, monkeypatch):
    asked = []
    generate = serving.handler._generate
    monkeypatch.setattr(
        serving.handler, "_generate", lambda prompts, tokens: asked.append(len(prompts)) or generate(prompts, tokens)
    )
    lengths = [alone(request)[2] for request in REQUESTS]
    fits = max(length + request["max_new_tokens"] for length, request in zip(lengths, REQUESTS, strict=True))
    assert fits < max(lengths) + 12
    answers, statuses = serving.ask(*REQUESTS, context_length=fits)
    assert (asked, statuses) == ([1, 1], {})
    assert [answer["answer"] for answer in answers] == [alone(request)[0] for request in REQUESTS]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "JSON"),
        ([], "object"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages"),
        ({"messages": REQUESTS[0]["messages"], "max_new_tokens": 0}, "max_new_tokens"),
        ({"messages": REQUESTS[0]["messages"], "max_new_tokens": 100_000}, "max_new_tokens"),
        ({"messages": REQUESTS[0]["messages"], "max_new_tokens": 512}, "more than the model's 128"),
        ({"messages": REQUESTS[0]["messages"], "temperature": 1}, "temperature"),
    ],
)
def test_a_wrong_request_spoils_no_other(serving, alone, body, said):
    answers, statuses = serving.ask(body, json.dumps(REQUESTS[0]).encode())
    assert statuses == {0: 400}
    assert said in answers[0]["error"]
    assert answers[1]["answer"] == alone(REQUESTS[0])[0]


def test_a_model_without_a_chat_template_is_refused(unpacked, plain_base):
    handler_class, config = load(unpacked)
    with pytest.raises(ValueError, match="no chat template"):
        handler_class().initialize(Context(plain_base, config))
