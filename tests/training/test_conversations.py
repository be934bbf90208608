import json
import shutil
from collections import Counter

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from hfchat.config import parse
from hfchat.errors import UserError
from hfchat.training.checkpoints import last_checkpoint
from hfchat.training.conversations import inputs_of, load_conversations
from hfchat.training.finetuning import FinetuneArguments, FinetuneTrainer
from hfchat.training.mixture import MixedDataset


@pytest.fixture
def arguments(tmp_path):
    def make(**settings):
        return FinetuneArguments(output_dir=str(tmp_path / "out"), dataset_name=str(tmp_path / "data"), **settings)

    return make


def save(folder, train, test):
    splits = {"train": train, "validation": test}
    for split, messages in splits.items():
        Dataset.from_dict({"messages": messages}).to_json(folder / "data" / f"{split}.jsonl")


def test_what_is_measured_on_must_not_be_learned(rows, tokenizer, arguments, tmp_path):
    messages = rows["messages"][:]
    save(tmp_path, messages[:8], messages[6:])
    with pytest.raises(UserError, match="2 of its 6 conversations are in the train split too, row 0 among them"):
        load_conversations(arguments(), tokenizer)
    assert len(load_conversations(arguments(allow_leakage=True), tokenizer).train) == 8
    save(tmp_path, messages[:6], messages[6:])
    conversations = load_conversations(arguments(), tokenizer)
    assert (len(conversations.train), len(conversations.test)) == (6, 6)
    assert conversations.held_out[0] == messages[6]


def test_of_one_file_a_twentieth_is_held_out(rows, tokenizer, arguments, tmp_path):
    messages = [
        [{"role": "user", "content": f"Question {i}?"}, {"role": "assistant", "content": f"Answer {i} {again}."}]
        for i in range(60)
        for again in (1, 2)
    ]
    file = tmp_path / "chats.jsonl"
    Dataset.from_dict({"messages": messages}).to_json(file)
    arguments = arguments()
    arguments.dataset_name = str(file)
    conversations = load_conversations(arguments, tokenizer)
    assert (len(conversations.train), len(conversations.test)) == (114, 6)
    held_out = {turns[0]["content"] for turns in conversations.held_out}
    assert len(held_out) == 3
    file.write_text("".join(sorted(file.read_text().splitlines(keepends=True), reverse=True)))
    assert {turns[0]["content"] for turns in load_conversations(arguments, tokenizer).held_out} == held_out
    Dataset.from_dict({"messages": messages[:4]}).to_json(file)
    assert len(load_conversations(arguments, tokenizer).test) == 2
    Dataset.from_dict({"messages": messages[:2]}).to_json(file)
    with pytest.raises(UserError, match=r"chats.jsonl: its conversations all begin alike, so none can be held out"):
        load_conversations(arguments, tokenizer)


def test_three_conversations_are_shown_from_all_over_the_dataset(rows, tokenizer, arguments, tmp_path):
    messages = rows["messages"][:]
    save(tmp_path, messages[:9], messages[9:])
    shown = load_conversations(arguments(), tokenizer).describe(tokenizer)
    assert [number for number in range(12) if f"Question {number}?" in shown] == [0, 3, 6]
    assert "⟦The answer is 6.<|im_end|>⟧" in shown


def test_a_conversation_with_calls_and_reasoning_is_shown_with_its_marks(rows, tokenizer, arguments, tmp_path):
    call = {"type": "function", "function": {"name": "weather", "arguments": '{"city": null}'}}
    tools = json.dumps([{"name": "weather", "description": "Now. " * 500}])
    thinks = {"role": "assistant", "content": "Ho.", "reasoning_content": "So."}
    calls = {"role": "assistant", "content": None, "tool_calls": [call, call]}
    both = calls | {"reasoning_content": "A call."}
    result = {"role": "tool", "content": "grey"}
    last = {"role": "assistant", "content": "Grey."}
    question = {"role": "user", "content": "How is it?"}
    special = [[question, thinks], [question, calls, result, thinks | {"weight": 0}, question, last]]
    special.append([question, both, result, last])
    lines = [{"messages": messages, "tools": None} for messages in rows["messages"][:9]]
    lines[4:4] = [{"messages": messages, "tools": tools} for messages in special]
    (tmp_path / "data").mkdir()
    for split, chosen in (("train", lines), ("validation", [{"messages": [question, last]}])):
        (tmp_path / "data" / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in chosen))
    conversations = load_conversations(arguments(max_length=4096), tokenizer)
    assert conversations.supervision.as_metrics("train") | {"train_calls": 4, "train_thoughts": 2} == (
        conversations.supervision.as_metrics("train")
    )
    shown = conversations.describe(tokenizer)
    assert "4 calls of tools and 2 turns with reasoning are learned" in shown
    written = '<tool_call>\n{"name": "weather", "arguments": {"city": null}}\n</tool_call>'
    assert f"assistant\n⟦<think>\nA call.\n</think>\n\n{written}\n{written}<|im_end|>⟧\n" in shown
    assert "<tool_response>\ngrey\n</tool_response><|im_end|>\n<|im_start|>assistant\n⟦Grey.<|im_end|>⟧" in shown
    assert " characters) … " in shown, "of the tools the middle is left out"
    assert len(shown) < 2500


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
    losses = {name: metrics[f"eval_{name}_loss"] for name in (some, many)}
    conversations = load_conversations(whole.args, tokenizer)
    tokens = [sum(label != -100 for row in part.test["labels"] for label in row) for part in conversations.parts]
    mean = (losses[some] * tokens[0] + losses[many] * tokens[1]) / sum(tokens)
    assert sum("eval_loss" in entry for entry in whole.state.log_history) == 1, "the curve is that of all"
    assert losses[some] != pytest.approx(losses[many])
    assert metrics["eval_loss"] == pytest.approx(mean, rel=1e-5)


def test_rows_are_taken_by_what_stands_in_a_column(rows, tokenizer, tmp_path):
    messages, kinds = rows["messages"][:], ["fact", "joke"] * 6
    (tmp_path / "data").mkdir()
    for split, part in (("train", slice(0, 8)), ("validation", slice(8, 12))):
        columns = {"messages": messages[part], "kind": kinds[part]}
        Dataset.from_dict(columns).to_json(tmp_path / "data" / f"{split}.jsonl")

    def load(**where):
        entry = MixedDataset.parse({"path": str(tmp_path / "data"), "where": where})
        return load_conversations(FinetuneArguments(output_dir="out", dataset_mixture=[entry]), tokenizer)

    conversations = load(kind=["fact"])
    assert (len(conversations.train), len(conversations.test)) == (4, 2)
    assert list(conversations.held_out) == messages[8:12:2]
    assert len(load(kind=["fact", "joke"]).train) == 8
    with pytest.raises(UserError, match=r"'where': no column 'sort', only \['messages', 'kind'\]"):
        load(sort=["fact"])
    with pytest.raises(UserError, match=r"'where': no row has one of \['poem'\] in 'kind'"):
        load(kind=["poem"])
