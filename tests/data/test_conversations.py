import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datasets import load_dataset, load_dataset_builder

from hfchat.data.conversation_sources import ConversationSource
from hfchat.data.conversations import prepare, split_of
from hfchat.data.decontamination import EvaluationSet
from hfchat.dataset import load_split
from hfchat.errors import UserError
from tests.conftest import SHARED_DATA
from tests.data.chats import CALL, assistant, turn, user, write_jsonl


@pytest.fixture
def run(tmp_path):
    """Prepares sources into a folder; returns the summary and the folder."""

    def run(*sources, **changes):
        options = {"pii": [], "pii_regions": [], "evaluation_sets": [], "n_grams": 5}
        options |= {"validation_fraction": 0.0, "strict": False}
        folder = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
        folder.mkdir()
        return prepare([ConversationSource.parse(source) for source in sources], folder, **options | changes), folder

    return run


def rows_of(folder: Path, split="train"):
    return pq.read_table(folder / "data" / f"{split}-00000.parquet").to_pylist()


def removed_of(folder: Path):
    rows = [
        row for file in sorted((folder / "removed").glob("*/*.parquet")) for row in pq.read_table(file).to_pylist()
    ]
    for row in rows:
        assert (folder / "removed" / row["reason"]).is_dir()
    return {row["place"].rsplit("/", 1)[-1]: row for row in rows}


def test_tool_calls_are_kept(run, tmp_path):
    openai = {
        "messages": [
            user("What time is it?"),
            assistant(None, tool_calls=[CALL]),
            turn("tool", "12:00", tool_call_id="c1"),
            assistant("Noon."),
        ],
        "tools": [{"type": "function", "function": {"name": "time"}}],
    }
    sharegpt = [
        {"from": "human", "value": "The hour?"},
        {"from": "function_call", "value": '{"name": "time", "arguments": {"zone": "UTC"}}'},
        {"from": "observation", "value": "12:00"},
        {"from": "gpt", "value": "Noon."},
    ]
    _, folder = run(
        {"path": write_jsonl(tmp_path / "a.jsonl", openai)},
        {"path": write_jsonl(tmp_path / "b.jsonl", {"conversations": sharegpt})},
    )
    first, second = load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    for row in (first, second):
        assert [message["role"] for message in row["messages"]] == ["user", "assistant", "tool", "assistant"]
        called = row["messages"][1]["tool_calls"][0]["function"]
        assert called == {"name": "time", "arguments": '{"zone": "UTC"}'}
        assert row["messages"][0]["tool_calls"] is None
    assert first["messages"][2]["tool_call_id"] == "c1"
    assert json.loads(first["tools"]) == openai["tools"]
    assert second["tools"] is None


def test_a_dataset_without_tools_has_only_role_and_content(run, tmp_path):
    _, folder = run({"path": write_jsonl(tmp_path / "a.jsonl", {"messages": [user(), assistant()]})})
    assert rows_of(folder) == [{"messages": [user(), assistant()], "source": str(tmp_path / "a.jsonl")}]


def test_every_removed_row_is_kept_with_its_reason_and_place(run, tmp_path):
    good = {"messages": [user(), assistant()]}
    path = write_jsonl(
        tmp_path / "chats.jsonl",
        good,
        '{"messages": [',
        "",
        {"messages": [user("\nWhy is the sky blue? \n"), assistant()]},
        {"messages": [user()]},
        "[]",
    )
    summary, folder = run({"path": path, "name": "chats"})
    removed = removed_of(folder)
    assert {place: row["reason"] for place, row in removed.items()} == {
        "chats.jsonl (row 2)": "malformed",
        "chats.jsonl (row 4)": "duplicate",
        "chats.jsonl (row 5)": "no_assistant_turn",
        "chats.jsonl (row 6)": "malformed",
    }
    assert removed["chats.jsonl (row 2)"]["row"] == '{"messages": ['
    assert json.loads(removed["chats.jsonl (row 5)"]["row"]) == {"messages": [user()]}
    assert removed["chats.jsonl (row 5)"]["source"] == "chats"
    counts = summary.counts()
    assert counts["rows"] == counts["conversations"] == 5
    assert counts["kept"] == {"train": 1, "validation": 0}
    assert counts["removed"] == {"malformed": 2, "duplicate": 1, "no_assistant_turn": 1}
    report = (folder / "report.md").read_text()
    assert "| malformed | 2 | 40.0% |" in report
    assert "the last turn must be the assistant's" in report
    with pytest.raises(UserError, match=r"chats.jsonl \(row 2\): not JSON"):
        run({"path": path}, strict=True)


def test_a_conversation_that_is_lost_is_an_error(run, tmp_path, monkeypatch):
    path = write_jsonl(tmp_path / "a.jsonl", {"messages": [user(), assistant()]}, {"messages": [user()]})
    monkeypatch.setattr("hfchat.data.conversations._Outputs.write_removed", lambda self, row: None)
    with pytest.raises(RuntimeError, match="2 conversations were read, but 1 are in the files"):
        run({"path": path})


def test_one_run_makes_one_kind(run, tmp_path):
    chats = write_jsonl(tmp_path / "a.jsonl", {"messages": [user(), assistant()]})
    pairs = write_jsonl(tmp_path / "b.jsonl", {"prompt": "Hi", "chosen": "Hello.", "rejected": "Go."})
    with pytest.raises(
        UserError, match=r"one kind of dataset, but .*a.jsonl makes messages, .*b.jsonl makes preferen"
    ):
        run({"path": chats}, {"path": pairs})


def test_personal_data_is_replaced_wherever_it_is(run, tmp_path):
    secret = "jane.roe@corp-mail.com"
    good = {"prompt": f"I am {secret}", "chosen": f"Hi {secret}", "rejected": "Go."}
    path = write_jsonl(tmp_path / "a.jsonl", good, {**good, "rejected": f"Hi {secret}"})
    summary, folder = run({"path": path}, pii=["email"])
    assert summary.personal_data == {"email": 2}
    (row,) = rows_of(folder)
    assert row["prompt"] == [user("I am email@example.com")]
    assert row["chosen"] == [assistant("Hi email@example.com")]
    assert "email@example.com" in removed_of(folder)["a.jsonl (row 2)"]["row"]
    assert not any(secret.encode() in file.read_bytes() for file in folder.rglob("*.*"))
    untouched, folder = run({"path": path})
    assert secret in rows_of(folder)[0]["prompt"][0]["content"]
    assert not untouched.personal_data


def test_personal_data_in_calls_results_and_reasoning_is_replaced_and_json_stays_json(run, tmp_path):
    secret, phone, card = "jane.roe@corp-mail.com", 2122368537, 4111111111111111
    arguments = {"to": secret, f"of {secret}": None, "phone": phone, "card": card, "in": [f"a\n{secret}"], "n": 5}
    call = {"id": "c1", "type": "function", "function": {"name": "mail", "arguments": json.dumps(arguments)}}
    messages = [
        user("Write."),
        assistant(None, thinking=f"To {secret}.", tool_calls=[call]),
        turn("tool", json.dumps({"phone": phone, "n": 5}), tool_call_id="c1"),
        assistant("Done."),
    ]
    tools = [{"type": "function", "function": {"name": "mail", "description": f"Ask {secret}"}}]
    path = write_jsonl(tmp_path / "a.jsonl", {"messages": messages, "tools": tools})
    summary, folder = run({"path": path}, pii=["email", "phone", "card"], pii_regions=["US"])
    (row,) = rows_of(folder)
    _, called, result, _ = row["messages"]
    assert called["reasoning_content"] == "To email@example.com."
    assert json.loads(called["tool_calls"][0]["function"]["arguments"]) == {
        "to": "email@example.com",
        "of email@example.com": None,
        "phone": 5555550100,
        "card": 0,
        "in": ["a\nemail@example.com"],
        "n": 5,
    }
    assert json.loads(result["content"]) == {"phone": 5555550100, "n": 5}
    assert json.loads(row["tools"])[0]["function"]["description"] == "Ask email@example.com"
    assert summary.personal_data == {"email": 5, "phone": 2, "card": 1}
    assert not any(secret.encode() in file.read_bytes() for file in folder.rglob("*.*"))
    _, folder = run({"path": path})
    assert rows_of(folder)[0]["messages"][1]["tool_calls"][0]["function"]["arguments"] == json.dumps(arguments)


def test_the_same_calls_with_other_ids_are_the_same_conversation(run, tmp_path):
    def says(identifier, zone="UTC", thought="So."):
        call = CALL | {"id": identifier, "function": {"name": "time", "arguments": {"zone": zone}}}
        result = turn("tool", "12:00", tool_call_id=identifier)
        return {"messages": [user(), assistant(None, thinking=thought, tool_calls=[call]), result, assistant()]}

    rows = [says("a"), says("b"), says("c", zone="CET"), says("d", thought="Else.")]
    summary, _ = run({"path": write_jsonl(tmp_path / "a.jsonl", *rows)})
    assert (summary.kept["train"], summary.removed) == (3, {"duplicate": 1})


@pytest.mark.parametrize("place", ["arguments", "reasoning_content"])
def test_what_is_called_and_thought_is_kept_out_too_if_it_is_in_an_evaluation_set(run, tmp_path, place):
    question = "How many apples does Anna have after she gave two to Tom"
    call = CALL | {"function": {"name": "ask", "arguments": {"of": [f"Say:\n{question}?"]}}}
    answer = assistant(None, tool_calls=[call]) if place == "arguments" else assistant(reasoning_content=question)
    held_out = write_jsonl(tmp_path / "test.jsonl", {"question": question})
    path = write_jsonl(tmp_path / "a.jsonl", {"messages": [user(), answer]}, {"messages": [user(), assistant()]})
    summary, _ = run({"path": path}, evaluation_sets=[EvaluationSet(name="apples", path=str(held_out))])
    assert (summary.kept["train"], summary.removed) == (1, {"contaminated": 1})


def test_what_overlaps_with_an_evaluation_set_is_kept_out(run, tmp_path):
    question = "How many apples does Anna have after she gave two to Tom"
    rows = [{"question": f"Tell me. {question}?", "answer": "5"}, {"question": "And how many apples?", "answer": "6"}]
    held_out = write_jsonl(tmp_path / "test.jsonl", {"question": question})
    path = write_jsonl(tmp_path / "a.jsonl", *rows)
    summary, folder = run({"path": path}, evaluation_sets=[EvaluationSet(name="apples", path=str(held_out))])
    assert [row["messages"][0]["content"] for row in rows_of(folder)] == ["And how many apples?"]
    assert removed_of(folder)["a.jsonl (row 1)"]["detail"].startswith("apples: how many apples")
    assert summary.counts()["evaluation_sets"]["apples"]["rows"] == 1


def test_the_split_stays_when_data_is_added(run, tmp_path):
    rows = [{"question": f"Question {i}?", "answer": f"Answer {i}."} for i in range(200)]
    again = [{"question": f"Question {i}?", "answer": "Another."} for i in range(200)]
    _, small = run({"path": write_jsonl(tmp_path / "a.jsonl", *rows[:100])}, validation_fraction=0.2)
    _, large = run({"path": write_jsonl(tmp_path / "b.jsonl", *again, *rows)}, validation_fraction=0.2)

    def questions(folder, split):
        return {row["messages"][0]["content"] for row in rows_of(folder, split)}

    assert questions(small, "validation") < questions(large, "validation")
    assert 5 < len(questions(small, "validation")) < 40
    assert not questions(large, "train") & questions(large, "validation")


def test_twins_are_in_one_split(run, tmp_path):
    rows = [{"question": f"Question {i}?", "answer": f"Answer {i}."} for i in range(60)]
    twins = [{"question": f"question {i}", "answer": f"Another {i}."} for i in range(60)]
    _, folder = run({"path": write_jsonl(tmp_path / "a.jsonl", *rows, *twins)}, validation_fraction=0.3)
    train, validation = (
        {row["messages"][0]["content"].lower().rstrip("?") for row in rows_of(folder, split)}
        for split in ("train", "validation")
    )
    assert not train & validation
    assert len(train | validation) == 60


def test_a_turn_that_is_not_to_be_learned_keeps_its_weight(run, tmp_path):
    weighed = {"messages": [user(), assistant("Bad.", weight=0), user("Again."), assistant("Good.", weight=1)]}
    plain = {"messages": [user("So?"), assistant()]}
    summary, folder = run({"path": write_jsonl(tmp_path / "a.jsonl", weighed, plain)})
    first, second = rows_of(folder)
    assert [message["weight"] for message in first["messages"]] == [None, 0, None, None]
    assert {frozenset(message) for message in second["messages"]} == {frozenset(("role", "content", "weight"))}
    assert summary.notes == {"`weight` 0 of a turn: the turn is kept, and not learned": 1}


def test_the_report_lists_what_is_not_used_once(run, tmp_path):
    rows = [{"question": f"Q{i}?", "answer": "A.", "category": "x", f"column|{i}": 1} for i in range(150)]
    summary, folder = run({"path": write_jsonl(tmp_path / "a.jsonl", *rows)})
    assert summary.notes["column 'category': not used"] == 150
    assert summary.notes["other columns: not used"] == 51
    report = (folder / "report.md").read_text()
    assert "\n| column 'category': not used | 150 |\n" in report
    assert "| column 'column\\|1': not used | 1 |" in report


def test_a_row_that_is_nested_too_deeply_costs_itself(run, tmp_path):
    deep = '{"messages": [], "x": ' + "[" * 900 + "]" * 900 + "}"
    path = write_jsonl(tmp_path / "a.jsonl", {"messages": [user(), assistant()]}, deep, deep.replace('"x"', '"tools"'))
    summary, _ = run({"path": path})
    assert summary.kept["train"] == 1
    assert summary.removed.total() == 2


def test_the_system_prompt_does_not_decide_the_split():
    plain, told = [user(), assistant()], [turn("system", "Be."), user(), assistant()]
    for fraction in (0.1, 0.3, 0.5, 0.7, 0.9):
        assert split_of({"messages": plain}, fraction) == split_of({"messages": told}, fraction)


def test_an_empty_split_is_an_error(run, tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", {"messages": [user(), assistant()]})
    with pytest.raises(UserError, match="the validation split came out empty"):
        run({"path": path}, validation_fraction=1e-9)
    with pytest.raises(UserError, match="the train split came out empty"):
        run({"path": write_jsonl(tmp_path / "b.jsonl", {"messages": [user()]})})


def test_the_dataset_opens_and_names_its_licences(run, tmp_path):
    rows = [{"question": f"Question {i}?", "answer": f"A | B\n```py\n{i}\n```"} for i in range(40)]
    path = write_jsonl(tmp_path / "a.jsonl", *rows)
    summary, folder = run({"path": path, "license": "MIT", "name": "sums"}, validation_fraction=0.2)
    assert summary.licenses == ["MIT"]
    card = (folder / "README.md").read_text()
    splits = load_dataset_builder(str(folder)).info.splits
    assert {name: split.num_examples for name, split in splits.items()} == dict(summary.kept)
    assert all(split.num_bytes for split in splits.values())
    assert "license: mit\n" in card
    assert "Columns: `messages`, `source`, in TRL's" in card
    assert "| sums | MIT | question-answer | 40 | 40 | 40 |" in card
    for split in ("train", "validation"):
        assert len(load_split(str(folder), split, "messages")) == summary.kept[split]
    assert "\n````text\n[user]\nQuestion" in (folder / "report.md").read_text()
    _, again = run({"path": path, "license": "MIT", "name": "sums"}, validation_fraction=0.2)
    for file in ("data/train-00000.parquet", "data/validation-00000.parquet", "report.md", "README.md"):
        assert (again / file).read_bytes() == (folder / file).read_bytes()


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="the shared data is not here")
def test_real_pairs_of_hh_rlhf(run):
    summary, folder = run({"path": str(SHARED_DATA / "safety" / "hh_rlhf_harmless.first1000.jsonl.gz")})
    assert summary.removed == {"empty_turn": 3, "not_alternating": 2}
    first = rows_of(folder)[0]
    assert [message["role"] for message in first["prompt"]] == ["user", "assistant", "user", "assistant", "user"]
    assert first["chosen"][0]["content"].startswith("No, sorry!")


def test_a_dataset_that_is_made_again_is_loaded_as_it_is_now(tmp_path):
    options = {"pii": [], "pii_regions": [], "evaluation_sets": [], "n_grams": 5, "strict": False}
    folder = tmp_path / "out"
    folder.mkdir()
    for answers in (["one", "two"], ["three hundred and forty-five", "six"]):
        write_jsonl(tmp_path / "a.jsonl", [{"messages": [user(f"Ask {a}?"), assistant(a)]} for a in answers])
        prepare(
            [ConversationSource.parse({"path": f"{tmp_path}/a.jsonl"})], folder, validation_fraction=0.0, **options
        )
        found = load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
        assert sorted(row[-1]["content"] for row in found["messages"]) == sorted(answers)
