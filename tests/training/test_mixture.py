import json
import shutil
from collections import Counter

import pytest
import torch
from transformers import AutoModelForCausalLM

from hfchat.config import parse
from hfchat.errors import UserError
from hfchat.training.checkpoints import last_checkpoint
from hfchat.training.finetuning import FinetuneArguments, FinetuneTrainer
from hfchat.training.mixture import MixedDataset, amounts, draw, inputs_of
from hfchat.training.supervision import load_conversations
from recipes.finetune import main


def chat(question, answer="So it is."):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def folders(tmp_path):
    """Two datasets: ten conversations to learn and four to measure on; forty, some with tools, and two."""
    tools = json.dumps([{"name": "weather"}])
    some = {
        "train": [{"messages": chat(f"Some {i}?")} for i in range(10)],
        "validation": [{"messages": chat(f"Some {i}?")} for i in range(10, 14)],
    }
    many = {
        "train": [{"messages": chat(f"Many {i}?", "Indeed, it is."), "tools": tools} for i in range(40)],
        "validation": [{"messages": chat(f"Many {i}?"), "tools": tools} for i in range(40, 42)],
    }
    for name, splits in (("some", some), ("many", many)):
        (tmp_path / name).mkdir()
        for split, rows in splits.items():
            (tmp_path / name / f"{split}.jsonl").write_text(lines(rows))
    return tmp_path / "some", tmp_path / "many"


@pytest.fixture
def mixture(tmp_path):
    """Arguments of a run on a mixture, as the command line has it."""

    def make(*entries, **settings):
        argv = ["--dataset_mixture", *map(json.dumps, entries)] if entries else []
        argv += [part for key, value in settings.items() for part in (f"--{key}", str(value))]
        [args] = parse(FinetuneArguments, argv=[*argv, "--output_dir", str(tmp_path / "out"), "--bf16", "false"])
        return args

    return make


def seen(conversations, tokenizer):
    """How often each question is among the rows of a pass."""
    texts = map(tokenizer.decode, conversations.train["input_ids"])
    return Counter(text.partition("?")[0].rpartition("\n")[2] for text in texts)


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([{}, {}], [10, 40]),
        ([{"epochs": 3}, {"epochs": 0.25}], [30, 10]),
        ([{"epochs": 3}, {"weight": 2}], [30, 60]),
        ([{}, {"weight": 0.5}], [10, 5]),
        ([{"weight": 1}, {"weight": 1}], [10, 10]),
        ([{"weight": 1}, {"weight": 8}], [5, 40]),
        ([{"weight": 0.001}, {"epochs": 1}], [1, 40]),
    ],
)
def test_epochs_and_weights_say_how_much_a_pass_takes(entries, expected):
    mixed = [MixedDataset.parse({"path": f"data/{i}", **entry}) for i, entry in enumerate(entries)]
    assert amounts(mixed, [10, 40]) == expected


def test_rows_are_drawn_whole_before_any_is_drawn_again():
    rows = draw([4, 100], [10, 30], seed=7).tolist()
    counts = Counter(rows)
    assert sorted(counts[row] for row in range(4)) == [2, 2, 3, 3]
    assert sum(counts[row] for row in range(4, 104)) == 30 == len([row for row in counts if row >= 4])
    assert rows != sorted(rows)
    assert rows == draw([4, 100], [10, 30], seed=7).tolist()
    assert set(rows) != set(draw([4, 100], [10, 30], seed=8).tolist())


def test_a_mixture_has_what_its_entries_say_and_says_it(folders, mixture, tokenizer):
    some, many = map(str, folders)
    args = mixture({"path": some, "epochs": 3}, {"path": many, "weight": 0.5}, num_train_epochs=2)
    conversations = load_conversations(args, tokenizer)
    counts = seen(conversations, tokenizer)
    assert all(counts[f"Some {i}"] == 3 for i in range(10))
    assert sum(count for question, count in counts.items() if question.startswith("Many")) == 15
    assert counts.total() == conversations.supervision.conversations == 45
    labels = conversations.train["labels"]
    assert conversations.supervision.tokens == sum(map(len, conversations.train["input_ids"]))
    assert conversations.supervision.supervised_tokens == sum(label != -100 for row in labels for label in row)

    shown = conversations.describe(tokenizer)
    assert f"  {some}: 10 conversations, " in shown
    assert "; a pass takes each 3 times" in shown
    assert "; a pass takes 15 of them, once" in shown
    assert f"warning: {some}: each conversation is seen 6 times; beyond 4, repeating teaches less" in shown
    assert f"warning: {many}" not in shown
    assert "Some 0?" in shown
    assert "Many 0?" in shown

    metrics = conversations.metrics(2.0)
    assert metrics["train_conversations"] == 45
    assert (
        metrics["train_datasets"][some] | {"conversations": 10, "seen": 60, "times_seen": 6.0}
        == (metrics["train_datasets"][some])
    )
    assert metrics["train_datasets"][many]["seen"] == 30
    assert metrics["train_datasets"][many]["supervised_tokens"] > 0


def test_what_is_measured_on_is_of_all_datasets_in_turn(folders, mixture, tokenizer):
    some, many = map(str, folders)
    conversations = load_conversations(mixture({"path": some}, {"path": many}), tokenizer)
    asked = [messages[0]["content"] for messages in conversations.held_out]
    assert asked == ["Some 10?", "Many 40?", "Some 11?", "Many 41?", "Some 12?", "Some 13?"]
    assert [bool(tools) for tools in conversations.held_out_tools] == [False, True, False, True, False, False]
    assert len(conversations.test) == 6


def test_order_and_part_follow_from_the_seed(folders, mixture, tokenizer):
    some, many = map(str, folders)

    def rows(seed):
        args = mixture({"path": some, "epochs": 0.5}, {"path": many}, seed=seed)
        return load_conversations(args, tokenizer).train["input_ids"][:]

    assert rows(1) == rows(1) != rows(2)
    assert sorted(rows(1)) != sorted(rows(2)), "another half is drawn"


def test_one_dataset_alone_is_as_it_stands(folders, mixture, tokenizer):
    args = mixture(dataset_name=folders[0], num_train_epochs=5)
    conversations = load_conversations(args, tokenizer)
    assert list(seen(conversations, tokenizer)) == [f"Some {i}" for i in range(10)]
    assert inputs_of(args) == {"conversations": str(folders[0])}
    shown = conversations.describe(tokenizer)
    assert "a pass takes" not in shown
    assert f"warning: {folders[0]}: each conversation is seen 5 times" in shown
    steps = {"max_steps": 3, "per_device_train_batch_size": 1, "max_length": 64}
    few = load_conversations(mixture(dataset_name=folders[0], num_train_epochs=5, **steps), tokenizer)
    assert few.passes == 3 / few.sequences < 1, "steps count, not epochs"
    assert "warning" not in few.describe(tokenizer)


def test_a_dataset_without_a_test_split_gives_a_twentieth(folders, mixture, tokenizer):
    some, many = folders
    (many / "validation.jsonl").unlink()
    args = mixture({"path": str(some)}, {"path": str(many), "split": "train[:20]"})
    _, part = load_conversations(args, tokenizer).parts
    assert part.label == f"{many} train[:20]"
    assert (len(part.train), len(part.test)) == (19, 1)
    args = mixture({"path": str(some), "test_split": "validation[:1]"}, {"path": str(many / "train.jsonl")})
    first, second = load_conversations(args, tokenizer).parts
    assert (len(first.test), len(second.train), len(second.test)) == (1, 38, 2)


def test_a_leak_between_two_datasets_is_refused(folders, mixture, tokenizer):
    some, many = folders
    with (many / "train.jsonl").open("a") as file:
        file.write(lines([{"messages": chat("Some 12?")}]))
    entries = {"path": str(some)}, {"path": str(many)}
    problem = f"dataset_mixture {some}: split 'validation': 1 of its 4 conversations are in the train split of {many}"
    with pytest.raises(UserError, match=f"{problem} too, row 2 among them"):
        load_conversations(mixture(*entries), tokenizer)
    assert len(load_conversations(mixture(*entries, allow_leakage="true"), tokenizer).train) == 51


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ([{"path": "a", "weight": 1, "epochs": 1}], "dataset_mixture a: it has both 'epochs' and 'weight'"),
        ([{"path": "a", "epochs": 0}], "dataset_mixture a: 'epochs' must be greater than 0, not 0"),
        ([{"path": "a", "weight": "two"}], "dataset_mixture a: 'weight' must be a valid number, not 'two'"),
        ([{"path": "a", "wieght": 2}], "dataset_mixture a: unknown key 'wieght'; did you mean 'weight'"),
        ([{"weight": 2}], "each of dataset_mixture: needs 'path'"),
        ([{"path": "a"}, {"path": "a"}], "dataset_mixture a: stands there twice; give it once, with 'epochs'"),
        ([{"path": "./none"}], "dataset_mixture ./none: no such file or folder"),
        ([{"path": "{some}/train.jsonl", "split": "train"}], "'split' is a key of folders and Hub ids"),
    ],
)
def test_a_bad_entry_is_named_before_a_model_is_loaded(folders, tmp_path, entries, problem):
    entries = [json.dumps(entry).replace("{some}", str(folders[0])) for entry in entries]
    with pytest.raises(UserError, match=problem):
        main(["--dataset_mixture", *entries, "--output_dir", str(tmp_path / "out")])


def test_a_bad_dataset_of_a_mixture_is_named(folders, mixture, tokenizer):
    some, many = map(str, folders)
    with pytest.raises(UserError, match=f"dataset_name {some}: stands beside dataset_mixture"):
        mixture({"path": many}, dataset_name=some)
    with pytest.raises(UserError, match=f"dataset_mixture {many}: cannot load split 'tset'"):
        load_conversations(mixture({"path": some}, {"path": many, "test_split": "tset"}), tokenizer)
    (folders[1] / "train.jsonl").write_text(lines([{"messages": chat("Hi")[:1], "tools": "[]"}]))
    with pytest.raises(UserError, match=f"dataset_mixture {many}: row 0: the last turn must be the assistant's"):
        load_conversations(mixture({"path": some}, {"path": many}), tokenizer)


def test_a_resumed_run_of_a_mixture_ends_as_an_undisturbed_one(folders, mixture, tokenizer, chat_model, tmp_path):
    some, many = map(str, folders)

    def trainer():
        args = mixture(
            {"path": some, "epochs": 2}, {"path": many, "epochs": 0.5}, max_steps=6, save_steps=2,
            save_strategy="steps", eval_strategy="no", max_length=512, per_device_train_batch_size=2,
            learning_rate=1e-2, report_to="none", disable_tqdm="true", use_cpu="true",
        )  # fmt: skip
        conversations = load_conversations(args, tokenizer)
        torch.manual_seed(0)
        return FinetuneTrainer(
            model=AutoModelForCausalLM.from_pretrained(chat_model), args=args, processing_class=tokenizer,
            train_dataset=conversations.train, eval_dataset=conversations.test,
            eval_datasets={part.label: part.test for part in conversations.parts},
        )  # fmt: skip

    whole = trainer()
    whole.train()
    shutil.rmtree(tmp_path / "out" / "checkpoint-6")
    resumed = trainer()
    resumed.train(resume_from_checkpoint=last_checkpoint(tmp_path / "out"))
    expected = whole.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.model.state_dict().items())

    # Each dataset apart, and together.
    metrics = whole.final_metrics()
    losses, conversations = metrics["eval_losses"], load_conversations(whole.args, tokenizer)
    tokens = [sum(label != -100 for row in part.test["labels"] for label in row) for part in conversations.parts]
    mean = (losses[some] * tokens[0] + losses[many] * tokens[1]) / sum(tokens)
    assert losses[some] != pytest.approx(losses[many])
    assert metrics["eval_loss"] == pytest.approx(mean, rel=1e-5)
