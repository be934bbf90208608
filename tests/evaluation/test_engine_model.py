"""Answers by an engine: llama.cpp's where it is installed, and a scripted one for what happens around it."""

import json
import sys
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from hfchat.chat import Chat
from hfchat.chat_template import record_fingerprint
from hfchat.engines import llamacpp
from hfchat.engines.child import Program
from hfchat.engines.llamacpp import LlamaCpp
from hfchat.errors import UserError
from hfchat.evaluation import engine_model
from hfchat.evaluation.asking import Asked, ask
from hfchat.evaluation.engine_model import EngineChoice, EngineModel
from hfchat.evaluation.local_model import LocalModel
from hfchat.evaluation.model import EvaluatedModel, Reply
from hfchat.evaluation.records import read_records
from hfchat.evaluation.suite import open_model, prepare_suite, run_suite
from hfchat.evaluation.task import Example
from hfchat.evaluation.tasks.answers import Answers
from hfchat.evaluation.tasks.benchmark import Benchmark
from hfchat.results import Bootstrap
from tests.conftest import random_llama

needs_llamacpp = pytest.mark.skipif(not llamacpp.is_installed(), reason="hfchat[llamacpp] is not installed")
QUESTIONS = ["Why?", "What is the capital of France?", "Count to ten, and then to twenty.", "Who are you? 😀"]
EXAMPLES = [
    Example([{"role": "user", "content": question}], ["Because."], ["Because."], place=question)
    for question in QUESTIONS
]
LLAMACPP = EngineChoice("llamacpp", "f32")
# Says "one two" to everything: its second word is the end for those that stop at "two". It ends when it is asked for
# more than 9 tokens.
SCRIPT = """
import json, os, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

with open(sys.argv[2] + "-starts", "a") as log:
    log.write("x")

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def do_POST(self):
        assert self.headers["Authorization"] == "Bearer " + os.environ["KEY"]
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with open(sys.argv[2], "a") as log:
            log.write(json.dumps(request) + "\\n")
        if request["n_predict"] > 9:
            print("out of luck", flush=True)
            os._exit(3)
        self.send_response(200)
        self.end_headers()
        for count, word in enumerate(["one ", "two"], start=1):
            event = {"content": word, "tokens": [], "tokens_predicted": count}
            self.wfile.write(b"data: " + json.dumps(event).encode() + b"\\n\\n")
        event = {"stop_type": "eos", "tokens_predicted": 3}
        self.wfile.write(b"data: " + json.dumps(event).encode() + b"\\n\\n")

    def log_message(self, *args):
        pass

ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def scripted(monkeypatch, tmp_path, chat_model):
    """A model whose engine is the script. Its `requests` are those that came."""

    class Scripted(LlamaCpp):
        @property
        def program(self):
            return Program("scripted", [sys.executable, "-c", SCRIPT, "{port}", str(tmp_path / "log")], "KEY")

    monkeypatch.setattr(llamacpp, "is_installed", lambda: True)
    monkeypatch.setattr(engine_model, "LlamaCpp", Scripted)
    monkeypatch.setattr(engine_model, "cached_gguf", lambda folder, weights: tmp_path / "model.gguf")
    model = EngineModel("tiny", str(chat_model), 2, "float32", EngineChoice("llamacpp", "q4_0"))
    yield model
    model.free()


def requests(folder):
    return list(map(json.loads, (folder / "log").read_text().splitlines()))


@pytest.fixture(scope="module")
def babbler(tokenizer, tmp_path_factory):
    """A model that says something else to each prompt."""
    folder = tmp_path_factory.mktemp("babbler")
    model = random_llama(tokenizer, max_position_embeddings=512, initializer_range=0.5)
    record_fingerprint(tokenizer, model)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def by_llamacpp(babbler, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HFCHAT_CACHE", str(tmp_path_factory.mktemp("cache")))
        model = open_model("engine", str(babbler), 3, "float32", engine=LLAMACPP)
        model.prepare()
        yield model
        model.free()


def whole(answer):
    """Without a character that the longest answer cuts in two: that may be no text to llama.cpp."""
    return answer.rstrip("\N{REPLACEMENT CHARACTER}")


@needs_llamacpp
def test_llama_cpp_answers_as_transformers_does_in_the_same_weights(by_llamacpp, babbler, tmp_path):
    # The likeliest token of each of so many is so by 0.04 nats or more; llama.cpp keeps its cache in float16.
    asked = Asked(max_new_tokens=9, losses=True)
    local = LocalModel("local", str(babbler), 3, "float32")
    for model in (by_llamacpp, local):
        ask(model, EXAMPLES, tmp_path / model.name, asked, model.name)
    engine, own = (read_records(tmp_path / name) for name in ("engine", "local"))
    assert len({record.answer for record in own}) == len(EXAMPLES)
    for one, other in zip(engine, own, strict=True):
        assert whole(one.answer) == whole(other.answer)
        assert (one.answer_tokens, one.ended, one.losses) == (other.answer_tokens, other.ended, other.losses)
    assert all(record.seconds > 0 for record in engine)

    stop = own[0].answer[5:7]
    (cut,), (expected,) = (model.answer([EXAMPLES[0].prompt], 9, [stop]) for model in (by_llamacpp, local))
    assert (cut.text, cut.ended) == (expected.text, True)
    (text,), (expected,) = (model.answer(["The recipe"], 8) for model in (by_llamacpp, local))
    assert (whole(text.text), text.tokens) == (whole(expected.text), expected.tokens)


def test_calls_are_bound_by_a_grammar_and_read(scripted, monkeypatch, tmp_path):
    parameters = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
    tool = {"type": "function", "function": {"name": "f", "strict": True, "parameters": parameters}}
    chat = Chat([{"role": "user", "content": "Why?"}], [tool], tool_choice="required")
    (reply,) = scripted.answer_chats([chat], 9, False)
    assert (reply.text, reply.calls) == ("one two", ())  # what the script says is no call
    (request,) = requests(tmp_path)
    assert request["grammar"].startswith("%llguidance")
    assert '"f"' in request["grammar"].replace("\\", "")
    called = Reply('Sure.\n<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>', 9, True)
    monkeypatch.setattr(scripted, "continue_ids", lambda *_, **__: called)
    (reply,) = scripted.answer_chats([replace(chat, tool_choice="auto")], 9, False)
    assert (reply.text.strip(), reply.ended) == ("Sure.", True)
    assert [(call.name, call.arguments) for call in reply.calls] == [("f", '{"x": 1}')]


def gsm8k(folder):
    """A file of questions; the worked examples come from the first 100."""
    file = folder / "gsm8k.jsonl"
    rows = [{"question": f"What is {i} and {i}?", "answer": f"It is {2 * i}.\n#### {2 * i}"} for i in range(104)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@needs_llamacpp
@pytest.mark.parametrize("chat", [False, True])
def test_a_benchmark_that_only_generates_asks_the_engine(by_llamacpp, babbler, tmp_path, monkeypatch, chat):
    task = Benchmark(
        "gsm8k", ["gsm8k_local"], gsm8k(tmp_path), limit=3, num_fewshot=1, apply_chat_template=chat,
        gen_kwargs={"max_gen_toks": 12},
    )  # fmt: skip
    task.prepare()
    assert not task.needs_weights
    task.collect(LocalModel("local", str(babbler), 3, "float32"), tmp_path)
    monkeypatch.setattr(LocalModel, "_load", lambda self: pytest.fail("loaded the weights"))
    task.collect(by_llamacpp, tmp_path)
    engine, own = (read_records(tmp_path / f"{name}.jsonl") for name in ("engine", "local"))
    assert [(one.prompt, whole(one.answer), one.scores) for one in engine] == [
        (one.prompt, whole(one.answer), one.scores) for one in own
    ]
    assert any(record.answer for record in own)


def test_draws_stay_with_transformers(scripted, tmp_path):
    drawing = Benchmark("g", ["gsm8k_local"], gsm8k(tmp_path), gen_kwargs={"do_sample": True, "max_gen_toks": 2})
    drawing.prepare()
    assert drawing.needs_weights
    assert scripted.computed_by(needs_weights=True) == "engine:transformers|weights:float32"


def rows_file(folder):
    file = folder / "rows.jsonl"
    turns = [[{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": "one two"}] for i in range(5)]
    file.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in turns))
    return str(file)


def test_each_score_says_what_computed_it(scripted, chat_model, tmp_path):
    task = Answers("chat", rows_file(tmp_path), max_new_tokens=4, metrics=["rougeL", "perplexity"])
    models = [LocalModel("own", str(chat_model), 2, "float32"), scripted]
    prepare_suite([task], models)
    results = run_suite([task], models, tmp_path, Bootstrap(10, 1))
    signatures = {name: one.signature for name, one in results.tasks["chat"].scores["tiny"].items()}
    assert signatures["rougeL"].endswith("|engine:llamacpp|weights:q4_0")
    assert signatures["ended"].endswith("|engine:llamacpp|weights:q4_0")
    assert signatures["perplexity"].endswith("|engine:transformers|weights:float32")
    assert results.tasks["chat"].scores["own"]["rougeL"].computed_by == "engine:transformers|weights:float32"
    assert results.models["tiny"].generated_by == "llamacpp q4_0"
    assert results.models["own"].generated_by == "transformers float32"
    assert [one.answer for one in read_records(tmp_path / "records" / "chat" / "tiny.jsonl")] == ["one two"] * 5
    # The longest prompt with its answer fits, and there are as many at a time as asked for.
    assert len(requests(tmp_path)) == 5
    assert {request["temperature"] for request in requests(tmp_path)} == {0}
    assert results.models["tiny"].peak_memory_bytes is None


def test_a_suite_without_likelihoods_loads_no_weights(scripted, tmp_path, monkeypatch):
    monkeypatch.setattr(LocalModel, "_load", lambda self: pytest.fail("loaded the weights"))
    task = Answers("chat", rows_file(tmp_path), max_new_tokens=4, metrics=["rougeL"])
    prepare_suite([task], [scripted])
    results = run_suite([task], [scripted], tmp_path, Bootstrap(10, 1))
    assert results.tasks["chat"].scores["tiny"]["rougeL"].score == 1


def test_answers_that_are_there_get_likelihoods_without_being_asked_again(scripted, tmp_path):
    ask(scripted, EXAMPLES, tmp_path / "file", Asked(max_new_tokens=4), "answers")
    (tmp_path / "file").write_text("".join((tmp_path / "file").read_text().splitlines(keepends=True)[:3]))
    ask(scripted, EXAMPLES, tmp_path / "file", Asked(max_new_tokens=4, losses=True), "both")
    assert len(requests(tmp_path)) == len(EXAMPLES) + 1
    records = read_records(tmp_path / "file")
    assert all(record.answer == "one two" and len(record.losses) == 1 for record in records)
    assert [record.answer_tokens for record in records] == [3] * len(EXAMPLES)
    before = (tmp_path / "file").read_text()
    ask(scripted, EXAMPLES, tmp_path / "file", Asked(max_new_tokens=4, losses=True), "again")
    assert (tmp_path / "file").read_text() == before


def test_a_stop_ends_the_work_for_an_answer(scripted):
    (reply,) = scripted.answer([EXAMPLES[0].prompt], 4, stop=["two"])
    assert reply == Reply("one ", 2, True)


def test_an_answer_can_be_bound_to_a_grammar(scripted, tmp_path):
    grammar, special = '%llguidance {}\nstart: "one two"', scripted.tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert scripted.continue_ids([1, 2], 5, grammar=grammar, kept=frozenset({special})) == Reply("one two", 3, True)
    (request,) = requests(tmp_path)
    assert (request["prompt"], request["preserved_tokens"]) == ([1, 2], ["<|im_start|>"])
    assert request["grammar"].endswith('bound_answer: "one two"')


def test_an_engine_that_ends_is_one_line(scripted):
    with pytest.raises(UserError, match="scripted ended with status 3: out of luck") as error:
        scripted.answer([EXAMPLES[0].prompt], 10)
    assert "\n" not in str(error.value)


def test_freeing_ends_the_engine(scripted):
    before = set(threading.enumerate())
    scripted.answer([EXAMPLES[0].prompt], 4)
    watching = [thread for thread in threading.enumerate() if thread not in before]
    assert watching
    scripted.free()
    assert not any(thread.is_alive() for thread in watching)


def test_it_starts_again_for_a_longer_prompt(scripted, tmp_path):
    scripted.answer([EXAMPLES[0].prompt], 4)
    for tokens in (100, 1000):
        scripted.expect(tokens)
        scripted.answer([EXAMPLES[0].prompt], 4)
    assert len((tmp_path / "log-starts").read_text()) == 2


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        (EngineChoice("llamacpp", "q9"), "--weights q9: --engine llamacpp has f32, "),
        (EngineChoice("llamacpp", arguments="--x"), "engine_args: are arguments of `vllm serve`"),
        (EngineChoice("vllm", "q4_0"), "--weights q4_0: --engine vllm has float32, bfloat16"),
    ],
)
def test_what_an_engine_cannot_do_is_one_line(engine, message, chat_model, monkeypatch):
    monkeypatch.setattr(llamacpp, "is_installed", lambda: True)
    with pytest.raises(UserError, match=message):
        open_model("m", str(chat_model), 2, "float32", engine=engine)


def test_an_engine_that_is_not_installed_is_one_line(chat_model, monkeypatch):
    monkeypatch.setattr(llamacpp, "is_installed", lambda: False)
    with pytest.raises(UserError, match=r"--engine llamacpp: llama\.cpp is not installed; run `pip install"):
        open_model("m", str(chat_model), 2, "float32", engine=EngineChoice("llamacpp"))


def test_the_weights_are_the_evaluated_type_unless_said(chat_model, monkeypatch):
    monkeypatch.setattr(llamacpp, "is_installed", lambda: True)
    models = [
        open_model("m", str(chat_model), 2, dtype, engine=EngineChoice("llamacpp"))
        for dtype in ("bfloat16", "float32")
    ]
    assert [model.describe().weights for model in models] == ["bf16", "f32"]


def test_an_engine_is_asked_by_one_process(chat_model, monkeypatch):
    monkeypatch.setattr(engine_model, "launched", lambda: SimpleNamespace(num_processes=2))
    with pytest.raises(UserError, match="engine: llamacpp makes its own batches; start one process, and not several"):
        open_model("m", str(chat_model), 2, "float32", engine=LLAMACPP)


def test_an_adapter_answers_beside_its_base(scripted, chat_model, tokenizer, tmp_path, monkeypatch):
    adapter = tmp_path / "adapter"
    base = AutoModelForCausalLM.from_pretrained(chat_model)
    adapted = get_peft_model(base, LoraConfig(target_modules=["q_proj"]))
    adapted.peft_config["default"].base_model_name_or_path = str(chat_model)
    adapted.save_pretrained(adapter)
    tokenizer.save_pretrained(adapter)
    monkeypatch.setattr(engine_model, "cached_adapter_gguf", lambda adapter, base: tmp_path / "adapter.gguf")
    model = open_model("a", str(adapter), 2, "float32", engine=LLAMACPP)
    (reply,) = model.answer([EXAMPLES[0].prompt], 4)
    model.free()
    assert reply.text == "one two"
    assert requests(tmp_path)[0]["lora"] == [{"id": 0, "scale": 1.0}]


class Slow(EvaluatedModel):
    """A server that answers each prompt in a moment, however many there are at a time."""

    is_served = True

    def check(self, prompt, targets, max_new_tokens, place):
        return 0

    def answer(self, prompts, max_new_tokens, stop=()):
        time.sleep(0.05)
        return [Reply("so", 1, True) for _ in prompts]


def test_the_time_of_answers_is_shared_by_those_that_come_at_once(tmp_path):
    started = time.perf_counter()
    ask(Slow("slow", "slow", 4), EXAMPLES * 2, tmp_path / "file", Asked(max_new_tokens=4), "slow")
    elapsed = time.perf_counter() - started
    seconds = [record.seconds for record in read_records(tmp_path / "file")]
    assert len(seconds) == 8
    assert 0 < sum(seconds) <= elapsed
