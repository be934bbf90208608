"""lm-eval's tasks under hfchat, against lm-eval's own command line and its own task files."""

import functools
import json
import math
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import lm_eval.tasks
import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.api import metrics
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from hfchat.errors import UserError
from hfchat.evaluation.bootstrap import estimate
from hfchat.evaluation.harness_scores import statistics
from hfchat.evaluation.local_model import LocalModel
from hfchat.evaluation.model import Reply
from hfchat.evaluation.openai_model import RemoteModel
from hfchat.evaluation.records import read_records
from hfchat.evaluation.suite import TaskEntry
from hfchat.evaluation.task import Record, result
from hfchat.evaluation.tasks import benchmark
from hfchat.evaluation.tasks.benchmark import LOCAL_TASKS, Benchmark
from hfchat.intervals import wilson_interval
from hfchat.results import Bootstrap
from tests.conftest import SHARED_DATA, tiny_model

LM_EVAL_TASKS = Path(lm_eval.tasks.__file__).parent
GSM8K, CROWS_PAIRS = SHARED_DATA / "sft/gsm8k.train.jsonl", SHARED_DATA / "bias/crows_pairs_anonymized.csv"
# lm-eval's program reads its own fourteen thousand task files first: half a minute, and nothing that is tested here.
PROGRAM = """
import functools
from lm_eval.tasks import TaskManager
TaskManager.__init__ = functools.partialmethod(TaskManager.__init__, include_defaults=False)
from lm_eval.__main__ import cli_evaluate
cli_evaluate()
"""
TASKS = ["crows_pairs_local", "gsm8k_local"]


@pytest.fixture(scope="module")
def path(tokenizer, tmp_path_factory) -> str:
    """A model whose answers differ from prompt to prompt, and end at different lengths."""
    from hfchat.chat_template import record_fingerprint

    model = tiny_model(tokenizer)
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    record_fingerprint(tokenizer, model)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    """Rows that both local tasks read."""
    types = ["age", "gender", "race-color"]
    rows = [
        {
            "question": f"Of {i * 7} files, {i} is read?",
            "answer": f"It is {'so ' * (i % 4)}. #### {i}",
            "sent_more": f"The recipe reads document {i}{' again' * (i % 5)}.",
            "sent_less": f"The model reads document {i}{' again' * (i % 5)}.",
            "bias_type": types[i % 3],
        }
        for i in range(110)
    ]
    file = tmp_path_factory.mktemp("data") / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.fixture
def model(path):
    return LocalModel("tiny", path, batch_size=3, dtype="bfloat16")


def both(data, **settings) -> Benchmark:
    settings = {"limit": 7, "num_fewshot": 1, "gen_kwargs": {"max_gen_toks": 12}} | settings
    task = Benchmark("both", TASKS, data, **settings)
    task.prepare()
    return task


def crows_pairs(data, **settings) -> Benchmark:
    task = Benchmark("crows", ["crows_pairs_local"], data, **{"limit": 7} | settings)
    task.prepare()
    return task


def scored(task, folder, *models):
    names = [model.name for model in models]
    for model in models:
        task.collect(model, folder)
    return asdict(result(task, names, folder, Bootstrap(10, 0)))


def said(folder, name="tiny"):
    """Everything in the records but the time that it took."""
    return [vars(record) | {"seconds": 0} for record in read_records(folder / f"{name}.jsonl")]


@pytest.mark.parametrize("chat", [False, True])
def test_figures_are_those_of_lm_evals_command_line_to_the_last_digit(model, path, data, tmp_path, chat):
    task = both(data, apply_chat_template=chat)
    scores = scored(task, tmp_path / "ours", model)["scores"]["tiny"]
    arguments = ["run", "--model", "hf", "--model_args", f"pretrained={path},dtype=bfloat16", "--device", "cpu"]
    arguments += ["--batch_size", "3", "--tasks", *TASKS, "--include_path", LOCAL_TASKS, "--limit", "7"]
    arguments += ["--metadata", json.dumps({"data": data}), "--num_fewshot", "1", "--gen_kwargs", "max_gen_toks=12"]
    arguments += ["--log_samples", "--output_path", tmp_path / "theirs.json"]
    arguments += ["--apply_chat_template"] if chat else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    finished = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert finished.returncode == 0, finished.stderr[-3000:]

    (file,) = tmp_path.glob("theirs_*.json")
    theirs = json.loads(file.read_text())["results"]
    expected = {
        f"{name} {key}": value
        for name, of_task in theirs.items()
        for key, value in of_task.items()
        if "," in key and "_stderr" not in key
    }
    assert {key: estimate["score"] for key, estimate in scores.items()} == expected
    assert set(expected) == {
        "crows_pairs_local likelihood_diff,none", "crows_pairs_local pct_stereotype,none",
        "gsm8k_local exact_match,strict-match", "gsm8k_local exact_match,flexible-extract",
    }  # fmt: skip
    records = read_records(tmp_path / "ours" / "tiny.jsonl")
    for name in TASKS:
        (file,) = tmp_path.glob(f"samples_{name}_*.jsonl")
        samples = {sample["doc_id"]: sample for sample in map(json.loads, file.read_text().splitlines())}
        ours = [record for record in records if record.group == name]
        assert len(ours) == len(samples) == 7
        for record in ours:
            sample = samples[record.info["document"]]
            assert record.prompt == sample["arguments"]["gen_args_0"]["arg_0"]
            if name == "gsm8k_local":
                assert record.answer == sample["resps"][0][0]
            else:
                assert record.losses == [-float(response[0][0]) for response in sample["resps"]]
    assert len({record.answer for record in records}) > 4  # answers that could have differed


def test_batches_are_lm_evals_own(model, data, own_tasks, monkeypatch, tmp_path):
    computed = []

    def noted(compute, *names):
        def note(self, *args, **kwargs):
            computed.append(
                [
                    tensor.tolist()
                    for tensor in (*args[:1], *(kwargs.get(name) for name in names))
                    if tensor is not None
                ]
            )
            return compute(self, *args, **kwargs)

        return note

    monkeypatch.setattr(HFLM, "_model_call", noted(HFLM._model_call))
    monkeypatch.setattr(HFLM, "_model_generate", noted(HFLM._model_generate, "context", "attention_mask"))
    task = Benchmark(
        "x", [*TASKS, "choices", "texts"], data, 7, 1, gen_kwargs={"max_gen_toks": 12}, include_path=own_tasks
    )
    task.prepare()
    task.collect(model, tmp_path)
    ours = computed.copy()
    computed.clear()
    plain = HFLM(model.model, tokenizer=model.tokenizer, batch_size=3)
    simple_evaluate(plain, tasks=task._leaves, task_manager=task._manager, limit=7, num_fewshot=1, bootstrap_iters=0)
    assert ours == computed
    assert len({len(batch[0]) for batch in ours}) > 1  # full ones, and what is left


def _definition(file: Path) -> dict:
    return load_yaml(file, resolve_func=True)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("gsm8k_local", "gsm8k/gsm8k"), ("crows_pairs_local", "crows_pairs/crows_pairs_english")]
    + [
        (f"crows_pairs_local_{kind}", f"crows_pairs/crows_pairs_english_{kind}")
        for kind in (
            "age", "disability", "gender", "nationality", "physical_appearance", "race_color", "religion",
            "sexual_orientation", "socioeconomic",
        )
    ],
)  # fmt: skip
def test_local_tasks_are_defined_as_lm_evals(ours, theirs):
    ours, theirs = _definition(LOCAL_TASKS / f"{ours}.yaml"), _definition(LM_EVAL_TASKS / f"{theirs}.yaml")
    assert ours["metadata"]["version"] == theirs["metadata"]["version"]
    of_data = {"task", "tag", "metadata", "dataset_path", "dataset_name", "custom_dataset"}
    keys = (ours.keys() | theirs.keys()) - of_data
    for key in keys:  # functions by what they do: lm-eval loads a module of its own for each
        one, other = (getattr(task.get(key), "__code__", task.get(key)) for task in (ours, theirs))
        assert one == other, key


@pytest.mark.skipif(not GSM8K.is_file(), reason=f"{GSM8K} is not there")
@pytest.mark.parametrize(
    ("name", "theirs", "data"),
    [
        ("gsm8k_local", "gsm8k/gsm8k", GSM8K),
        ("crows_pairs_local", "crows_pairs/crows_pairs_english", CROWS_PAIRS),
        ("crows_pairs_local_gender", "crows_pairs/crows_pairs_english_gender", CROWS_PAIRS),
    ],
)
def test_local_tasks_ask_of_real_rows_what_lm_evals_would(name, theirs, data):
    task = Benchmark("local", [name], str(data), limit=50)
    task.prepare()
    (ours,) = task._leaves
    definition = _definition(LM_EVAL_TASKS / f"{theirs}.yaml")
    theirs = ConfigurableTask(config=definition | {"custom_dataset": lambda **_: ours.dataset})
    assert len(theirs.eval_docs) == len(ours.eval_docs) > 200
    for one in (ours, theirs):
        one.set_fewshot_seed(1234)
        one.build_all_requests(limit=50)
    assert [one.args for one in ours.instances] == [one.args for one in theirs.instances]
    targets = [[one.doc_to_target(doc) for doc in one.eval_docs] for one in (ours, theirs)]
    assert targets[0] == targets[1]


def test_worked_examples_are_never_asked(data):
    (task,) = both(data)._asked["gsm8k_local"]
    shown, asked = ({*docs["question"]} for docs in (task.fewshot_docs(), task.eval_docs))
    assert (len(shown), len(asked)) == (100, 10)
    assert not shown & asked


def test_two_processes_say_the_same_as_one(path, data, in_two_processes, tmp_path):
    """But for what rounding does in other batches, as each process makes its own: so nothing here is in bfloat16."""
    both(data).collect(LocalModel("tiny", path, batch_size=3, dtype="float32"), tmp_path / "one")
    in_two_processes(
        "import torch",
        "from pathlib import Path",
        "from tests.evaluation.test_benchmark import LocalModel, both",
        "torch.set_num_threads(1)",
        f"model = LocalModel('tiny', {path!r}, batch_size=3, dtype='float32')",
        f"both({data!r}).collect(model, Path({str(tmp_path / 'two')!r}))",
    )
    for one, two in zip(said(tmp_path / "one"), said(tmp_path / "two"), strict=True):
        assert two["losses"] == pytest.approx(one["losses"], rel=1e-5)
        assert [two[key] for key in ("index", "answer", "target_tokens")] == [
            one[key] for key in ("index", "answer", "target_tokens")
        ]
        assert two["info"]["document"] == one["info"]["document"]
    assert not list(tmp_path.glob("two/*.db"))


@pytest.fixture
def batches(monkeypatch):
    """Sizes of the batches that lm-eval computes; fails at the one that `batches.stop` names."""

    class Batches(list):
        stop = None

    sizes = Batches()

    def counted(compute):
        def count(self, *arguments, **named):
            if len(sizes) == sizes.stop:
                raise KeyboardInterrupt
            sizes.append(len(*arguments, *(named[name] for name in named.keys() & {"context"})))
            return compute(self, *arguments, **named)

        return count

    for name in ("_model_call", "_model_generate"):
        monkeypatch.setattr(HFLM, name, counted(getattr(HFLM, name)))
    return sizes


def test_an_interrupted_run_goes_on_where_it_was(model, data, batches, tmp_path):
    task = both(data)
    task.collect(model, tmp_path / "whole")
    assert batches == [3, 3, 3, 3, 2, 3, 3, 1]  # 14 sentences, then 7 questions
    batches.clear()
    batches.stop = 6
    with pytest.raises(KeyboardInterrupt):
        task.collect(model, tmp_path / "parts")
    assert not (tmp_path / "parts" / "tiny.jsonl").exists()
    batches.clear()
    batches.stop = None
    task.collect(model, tmp_path / "parts")
    assert batches == [3, 1]
    assert said(tmp_path / "parts") == said(tmp_path / "whole")
    assert not list(tmp_path.glob("parts/*.db"))


def test_two_processes_go_on_where_one_was(path, data, batches, in_two_processes, tmp_path):
    model = LocalModel("tiny", path, batch_size=3, dtype="float32")
    both(data).collect(model, tmp_path / "one")
    batches.clear()
    batches.stop = 4
    with pytest.raises(KeyboardInterrupt):
        both(data).collect(model, tmp_path / "two")
    in_two_processes(
        "import torch",
        "from pathlib import Path",
        "from hfchat.evaluation.harness import find_caches",
        "from tests.evaluation.test_benchmark import HFLM, LocalModel, both",
        "torch.set_num_threads(1)",
        "asked, compute = [], HFLM._model_call",
        "HFLM._model_call = lambda self, texts: asked.append(len(texts)) or compute(self, texts)",
        f"model = LocalModel('tiny', {path!r}, batch_size=3, dtype='float32')",
        f"both({data!r}).collect(model, Path({str(tmp_path / 'two')!r}))",
        "assert asked in ([1], [2], []), asked  # two sentences of the fourteen were left",
    )
    for one, two in zip(said(tmp_path / "one"), said(tmp_path / "two"), strict=True):
        assert two["losses"] == pytest.approx(one["losses"], rel=1e-5)
        assert two["answer"] == one["answer"]


def test_a_finished_model_is_not_asked_and_not_loaded_again(model, path, data, batches, tmp_path):
    scores = scored(crows_pairs(data), tmp_path, model)
    batches.clear()
    again = LocalModel("tiny", path, batch_size=3, dtype="bfloat16")
    assert scored(crows_pairs(data), tmp_path, again) == scores
    assert again.parameters is None
    assert batches == []


def test_out_of_memory_halves_the_batch(model, data, monkeypatch, tmp_path):
    crows_pairs(data).collect(model, tmp_path / "whole")
    compute, sizes = HFLM._model_call, []

    def fail(self, texts):
        sizes.append(len(texts))
        if len(texts) > 2:
            raise MemoryError
        return compute(self, texts)

    monkeypatch.setattr(HFLM, "_model_call", fail)
    model.batch_size = 4
    crows_pairs(data).collect(model, tmp_path / "halves")
    assert sizes == [4, 2, 2, 2, 2, 2, 2, 2]
    assert model.batch_size == 2
    for whole, halves in zip(said(tmp_path / "whole"), said(tmp_path / "halves"), strict=True):
        assert halves["losses"] == pytest.approx(whole["losses"], rel=0.02)


def test_a_batch_size_of_its_own_is_for_this_task_alone(model, data, batches, tmp_path):
    crows_pairs(data, batch_size=7).collect(model, tmp_path)
    assert batches == [7, 7]
    assert model.batch_size == 3


def test_answers_of_other_tasks_leave_no_trace(model, data, tmp_path):
    both(data).collect(model, tmp_path / "first")
    model.answer([[{"role": "user", "content": "Why?"}]], max_new_tokens=1)
    both(data).collect(model, tmp_path / "after")
    assert said(tmp_path / "after") == said(tmp_path / "first")
    assert max(len(record["answer"]) for record in said(tmp_path / "after") if record["answer"]) > 1


def test_models_are_compared_document_by_document(model, path, data, tmp_path):
    other = LocalModel("other", path, batch_size=2, dtype="float32")
    task = both(data)
    entry = scored(task, tmp_path, model, other)
    (comparison,) = entry["comparisons"]
    assert (comparison["model"], comparison["baseline"]) == ("other", "tiny")
    assert set(comparison["metrics"]) == set(entry["scores"]["tiny"]) == set(entry["metrics"])
    assert entry["metrics"]["gsm8k_local exact_match,strict-match"] == {
        "label": "gsm8k_local exact_match (strict-match)", "better": "higher", "form": ".3f",
    }  # fmt: skip
    signature = entry["scores"]["other"]["gsm8k_local exact_match,strict-match"]["signature"]
    assert signature.startswith("exact_match,strict-match|lm-eval:0.")
    assert signature.endswith("|task:gsm8k_local|version:3.0|num_fewshot:1|limit:7|chat_template:False")
    assert entry["dataset"]["n"] == 14
    assert entry["dataset"]["split"] == "test"


def test_the_tasks_of_one_name_are_groups_and_one_score(model, data, tmp_path):
    task = Benchmark("bias", ["crows_pairs_local_[ag]*"], data, limit=2)
    task.prepare()
    entry = scored(task, tmp_path, model)
    kinds = ["age", "gender"]
    groups = entry["groups"]["tiny"]
    assert [*groups] == [f"crows_pairs_local_{kind}" for kind in kinds]
    overall = entry["scores"]["tiny"]["likelihood_diff,none"]
    assert overall["n"] == 4
    each = [group["likelihood_diff,none"]["score"] for group in groups.values()]
    assert overall["score"] == pytest.approx(sum(each) / 2)
    theirs = entry["details"]["tiny"]["results"]
    assert each == [theirs[name]["likelihood_diff,none"] for name in groups]


def write_tasks(folder: Path, data: object) -> str:
    """A folder of a user's own task files."""
    folder.mkdir()
    (folder / "texts.yaml").write_text(
        f"task: texts\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
        "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{sent_more}}'\nmetric_list:\n"
        "  - {metric: word_perplexity}\n  - {metric: byte_perplexity}\n  - {metric: bits_per_byte}\n"
    )
    (folder / "choices.yaml").write_text(
        f"task: choices\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: '{{question}}'\ndoc_to_choice: ['A', 'B', '{{answer}}']\n"
        "doc_to_target: 1\nmetric_list:\n  - {metric: acc}\n  - {metric: f1}\n  - {metric: brier_score}\n"
    )
    return str(folder)


@pytest.fixture
def own_tasks(tmp_path, data):
    return write_tasks(tmp_path / "tasks", data)


def test_a_task_of_ones_own_and_metrics_that_are_no_means(model, own_tasks, tmp_path):
    task = Benchmark("texts", ["texts"], limit=5, include_path=own_tasks)
    task.prepare()
    entry = scored(task, tmp_path / "texts", model)
    theirs = entry["details"]["tiny"]["results"]["texts"]
    keys = [f"{metric},none" for metric in ("word_perplexity", "byte_perplexity", "bits_per_byte")]
    assert {key: one["score"] for key, one in entry["scores"]["tiny"].items()} == {key: theirs[key] for key in keys}
    assert [entry["metrics"][key]["better"] for key in keys] == ["lower"] * 3
    assert [example.references for example in task.examples[:1]] == [["The recipe reads document 0."]]


def test_what_no_sums_make_is_left_to_lm_eval(model, own_tasks, tmp_path):
    task = Benchmark("choices", ["choices"], limit=5, include_path=own_tasks)
    task.prepare()
    entry = scored(task, tmp_path / "choices", model)
    theirs = entry["details"]["tiny"]["results"]["choices"]
    assert {key: one["score"] for key, one in entry["scores"]["tiny"].items()} == {
        key: pytest.approx(theirs[key], rel=1e-12) for key in ("acc,none", "brier_score,none")
    }
    assert "f1,none" in theirs


def test_documents_that_lm_eval_cuts_are_counted(model, tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [{"question": "Is it read? " * (30 * (i == 1) + 1), "answer": "so", "sent_more": "x"} for i in range(3)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = Benchmark("choices", ["choices"], include_path=write_tasks(tmp_path / "tasks", file))
    task.prepare()
    task.check(model)
    entry = scored(task, tmp_path / "out", model)
    assert [record.info["cut"] for record in read_records(tmp_path / "out" / "tiny.jsonl")] == [False, True, False]
    assert entry["details"]["tiny"]["cut"] == 1


class Server(RemoteModel):
    """A server that says the third word of what it is asked."""

    def __init__(self):
        self.name, self.path, self.batch_size = "server", "http://server/v1", 4
        self.asked = []

    def answer(self, prompts, max_new_tokens, stop=()):
        self.asked.append((prompts, max_new_tokens, stop))
        return [Reply(f"#### {prompt[-1]['content'].split()[2]}", 3, True) for prompt in prompts]


def test_a_server_is_asked_in_turns(data, tmp_path):
    task = Benchmark("gsm", ["gsm8k_local"], data, limit=5, num_fewshot=1, apply_chat_template=True)
    task.prepare()
    server = Server()
    assert task.refusal(server) is None
    task.check(server)
    entry = scored(task, tmp_path, server)
    assert len(server.asked) == 5
    for (prompt,), max_new_tokens, stop in server.asked:
        assert [turn["role"] for turn in prompt] == ["user", "assistant", "user"]
        assert prompt[-1]["content"].startswith("Question: Of 7")
        assert (max_new_tokens, stop) == (256, ["Question:", "</s>", "<|im_end|>"])
    assert entry["scores"]["server"]["exact_match,strict-match"]["score"] == 0
    records = read_records(tmp_path / "server.jsonl")
    assert [record.answer for record in records] == [f"#### {700 + 7 * i}" for i in range(5)]
    assert {record.answer_tokens for record in records} == {3}


@pytest.mark.parametrize(
    ("tasks", "chat", "why"),
    [
        (["crows_pairs_local"], True, "gives no likelihoods of given texts, which crows_pairs_local compares"),
        (["gsm8k_local"], False, "takes only turns: set apply_chat_template"),
    ],
)
def test_what_a_server_cannot_do_leaves_it_out(data, tasks, chat, why):
    task = Benchmark("x", tasks, data, apply_chat_template=chat)
    task.prepare()
    assert why in task.refusal(Server())


@pytest.fixture
def _known_tasks_alone(monkeypatch):
    """Without the index of lm-eval's own tasks, which takes half a minute."""
    alone = functools.partial(TaskManager, include_defaults=False)
    monkeypatch.setattr(benchmark, "TaskManager", lambda **kwargs: alone(**{**kwargs, "include_defaults": False}))


@pytest.mark.usefixtures("_known_tasks_alone")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": ["gsm8k_locale"]}, "no task 'gsm8k_locale'; did you mean gsm8k_local"),
        ({"tasks": ["gsm8k_local"]}, "tasks: x: data: gsm8k_local needs the file of its rows"),
        ({"tasks": ["gsm8k_local"], "data": "/none.jsonl"}, "/none.jsonl: no such file"),
        ({"tasks": ["crows_pairs_local"], "data": "GSM8K"}, "has no column 'sent_more'"),
        ({"tasks": ["gsm8k"], "include_path": str(LM_EVAL_TASKS / "gsm8k")}, "cannot load 'gsm8k': .*the Hub"),
        ({"tasks": ["texts"], "data": "GSM8K", "include_path": "own"}, "data: none of the tasks reads a file"),
        ({"tasks": ["crows_pairs_local_age", "crows_pairs_local_a*"], "data": "rows"}, "local_age: is asked twice"),
        ({"tasks": ["crows_pairs_local_religion"], "data": "rows"}, "'crows_pairs_local_religion' has no documents"),
    ],
)
def test_what_cannot_be_asked_is_one_line(settings, message, data, own_tasks, tmp_path):
    few = tmp_path / "few.jsonl"
    few.write_text('{"question": "1?", "answer": "1"}\n')
    names = {"rows": data, "own": own_tasks, "GSM8K": str(few)}
    task = Benchmark("x", **{key: names.get(value, value) if isinstance(value, str) else value
                             for key, value in settings.items()})  # fmt: skip
    with pytest.raises(UserError, match=message) as error:
        task.prepare()
    assert str(error.value).startswith("tasks: x: ")
    assert "\n" not in str(error.value)


def test_too_few_rows_for_worked_examples(tmp_path):
    file = tmp_path / "few.jsonl"
    file.write_text("".join(json.dumps({"question": f"{i}?", "answer": "1"}) + "\n" for i in range(100)))
    task = Benchmark("x", ["gsm8k_local"], str(file))
    with pytest.raises(UserError, match="needs more than the 100 rows that worked examples are drawn from"):
        task.prepare()


def test_answers_longer_than_the_context_are_refused_before_a_model_is_loaded(model, data):
    task = Benchmark("gsm", ["gsm8k_local"], data)
    task.prepare()
    with pytest.raises(
        UserError, match=r"answers of up to 256 tokens, but .* reads 128 with the question; set gen_kw"
    ):
        task.check(model)
    assert model.parameters is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": []}, "tasks: needs a value"),
        ({"tasks": ["x"], "limit": 0}, "limit: must be at least 1"),
        ({"tasks": ["x"], "num_fewshot": -1}, "num_fewshot: must be at least 0"),
        ({"tasks": ["x"], "include_path": "/none"}, "include_path /none: no such folder"),
    ],
)
def test_wrong_settings_name_the_key(settings, message):
    with pytest.raises(ValueError, match=message):
        TaskEntry.parse({"kind": "benchmark", "name": "x", **settings})


@pytest.mark.parametrize("row", [{"question": None, "answer": "1"}, {"question": "Why?", "answer": " "}])
def test_a_row_without_a_text_is_named(tmp_path, row):
    file = tmp_path / "rows.jsonl"
    rows = [{"question": f"{i}?", "answer": "1"} for i in range(120)] + [row]
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    column = "question" if row["question"] is None else "answer"
    with pytest.raises(UserError, match=rf"tasks: x: data .*rows.jsonl: row 121: {column} must be a text, not"):
        Benchmark("x", ["gsm8k_local"], str(file)).prepare()


def test_shares_of_documents_have_wilsons_interval_and_other_aggregates_have_not():
    task = SimpleNamespace(
        aggregation=lambda: {"acc": metrics.mean, "word_perplexity": metrics.weighted_perplexity},
        _filters=[SimpleNamespace(name="none")],
    )
    records = [
        Record(
            index,
            "",
            info={"items": {"word_perplexity,none": [-2.0 - index % 3, 5.0]}},
            scores={"acc,none": 1.0, "word_perplexity,none": 1.5},
        )
        for index in range(12)
    ]
    right = estimate(statistics(task, "acc,none", records, "x"), 100, seed=0)
    assert right.interval == pytest.approx(wilson_interval(12, 12))
    perplexity = estimate(statistics(task, "word_perplexity,none", records, "x"), 100, seed=0)
    assert perplexity.score == pytest.approx(math.exp(3 / 5))
    assert perplexity.interval[0] < perplexity.score < perplexity.interval[1]
