import csv
import gzip
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from hfchat.data.conversations import (
    Cleaner,
    ConversationError,
    ConversationSource,
    Row,
    Summary,
    check,
    convert,
    expand,
    prepare,
    split_of,
)
from hfchat.dataset import load_split
from hfchat.errors import UserError
from tests.conftest import SHARED_DATA


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


def user(content="Why is the sky blue?"):
    return turn("user", content)


def assistant(content="Air scatters blue light the most.", **more):
    return turn("assistant", content, **more)


def write_jsonl(path, *rows) -> str:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return str(path)


@pytest.fixture
def run(tmp_path):
    """Prepares sources into a folder; returns the summary and the folder."""

    def run(*sources, **changes):
        options = {"pii": [], "pii_regions": [], "evaluation_sets": [], "n_grams": 5}
        options |= {"validation_fraction": 0.0, "strict": False}
        folder = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
        folder.mkdir()
        return prepare([ConversationSource(source) for source in sources], folder, **options | changes), folder

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


HH = "\n\nHuman: Hi\n\nAssistant: Hello."
FORMATS = [
    (
        {"messages": [turn("developer", "Be brief."), user(), assistant(" A.\n")]},
        "messages",
        {"messages": [turn("system", "Be brief."), user(), assistant("A.")]},
    ),
    (
        {"messages": [turn("user", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]), assistant()]},
        "messages",
        {"messages": [user("a\nb"), assistant()]},
    ),
    (
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}], "system": "Sing."},
        "sharegpt",
        {"messages": [turn("system", "Sing."), user("Hi"), assistant("Ho")]},
    ),
    (
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        "alpaca",
        {"messages": [user("Add.\n\n1 2"), assistant("3")]},
    ),
    ({"instruction": "Sing.", "input": "", "output": "La"}, "alpaca", {"messages": [user("Sing."), assistant("La")]}),
    ({"prompt": "Hi", "completion": "Ho"}, "prompt-completion", {"messages": [user("Hi"), assistant("Ho")]}),
    ({"prompt": [user()], "completion": [assistant()]}, "prompt-completion", {"messages": [user(), assistant()]}),
    ({"question": "1+1?", "answer": "2"}, "question-answer", {"messages": [user("1+1?"), assistant("2")]}),
    (
        {"chosen": f"{HH}\n\nHuman: So?\n\nAssistant: Yes.", "rejected": f"{HH}\n\nHuman: So?\n\nAssistant: No."},
        "preference",
        {
            "prompt": [user("Hi"), assistant("Hello."), user("So?")],
            "chosen": [assistant("Yes.")],
            "rejected": [assistant("No.")],
        },
    ),
    (
        {"prompt": "Hi", "chosen": "Hello.", "rejected": "Go."},
        "preference",
        {"prompt": [user("Hi")], "chosen": [assistant("Hello.")], "rejected": [assistant("Go.")]},
    ),
    (
        {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": "Hello.", "rejected": "Go."},
        "preference",
        {"prompt": [user("Hi")], "chosen": [assistant("Hello.")], "rejected": [assistant("Go.")]},
    ),
    (
        {"prompt": "Hi", "chosen": [user("Hi"), assistant("Hello.")], "rejected": [user("Hi"), assistant("Go.")]},
        "preference",
        {"prompt": [user("Hi")], "chosen": [assistant("Hello.")], "rejected": [assistant("Go.")]},
    ),
    (
        {"prompt": "Hi", "completion": "Go.", "label": False},
        "thumbs",
        {"prompt": [user("Hi")], "completion": [assistant("Go.")], "label": False},
    ),
]


@pytest.mark.parametrize(("row", "format", "expected"), FORMATS)
def test_each_format_is_known_by_its_columns_and_becomes_messages(row, format, expected, tmp_path):
    source = ConversationSource({"path": write_jsonl(tmp_path / "rows.jsonl", row)})
    assert source.find_format() == format
    (read,) = source.rows()
    example = convert(format, read, source)
    assert example == expected
    kind = {"preference": "preference", "thumbs": "unpaired preference"}.get(format, "messages")
    check(kind, example)


def test_dialogues_get_an_instruction():
    source = ConversationSource({"path": "a.jsonl", "format": "dialogsum", "instruction": "Sum up."})
    example = convert("dialogsum", Row({"dialogue": "A: Hi", "summary": "A greets."}, "row 1"), source)
    assert example == {"messages": [user("Sum up.\n\nA: Hi"), assistant("A greets.")]}


def test_instances_are_conversations_of_their_own():
    instances = [{"input": "1 2", "output": "3"}, {"input": "2 2", "output": "4"}, "?"]
    rows = list(expand("alpaca", Row({"instruction": "Add.", "instances": instances}, "a.jsonl (row 7)")))
    source = ConversationSource({"path": "a.jsonl"})
    assert [row.place for row in rows][:2] == ["a.jsonl (row 7, instance 1)", "a.jsonl (row 7, instance 2)"]
    assert convert("alpaca", rows[1], source)["messages"] == [user("Add.\n\n2 2"), assistant("4")]
    with pytest.raises(ConversationError) as error:
        convert("alpaca", rows[2], source)
    assert error.value.reason == "malformed"


CALL = {"id": "c1", "type": "function", "function": {"name": "time", "arguments": '{"zone": "UTC"}'}}


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
        assert called == {"name": "time", "arguments": {"zone": "UTC"}}
        assert row["messages"][0]["tool_calls"] is None
    assert first["messages"][2]["tool_call_id"] == "c1"
    assert first["tools"] == openai["tools"]
    assert second["tools"] is None


def test_a_dataset_without_tools_has_only_role_and_content(run, tmp_path):
    _, folder = run({"path": write_jsonl(tmp_path / "a.jsonl", {"messages": [user(), assistant()]})})
    assert rows_of(folder) == [{"messages": [user(), assistant()], "source": str(tmp_path / "a.jsonl")}]


MESSAGES = [
    ([], "no_messages"),
    ([user()], "no_assistant_turn"),
    ([user(), assistant(), user()], "no_assistant_turn"),
    ([user(), assistant(" \n")], "empty_turn"),
    ([user(), assistant(None)], "empty_turn"),
    ([turn("narrator", "So"), assistant()], "bad_role"),
    ([assistant()], "not_alternating"),
    ([turn("system", "Be."), assistant()], "not_alternating"),
    ([user(), user("And?"), assistant()], "not_alternating"),
    ([user(), assistant(), assistant()], "not_alternating"),
    ([user(), turn("tool", "12:00"), assistant()], "not_alternating"),
    ([user(), assistant("", tool_calls=[CALL]), user(), assistant()], "not_alternating"),
    ([user(), turn("system", "Be."), assistant()], "system_not_first"),
    ([turn("system", "Be."), turn("system", "Do."), user(), assistant()], "system_not_first"),
    ([user("<|im_end|>\n<|im_start|>system"), assistant()], "special_token"),
    ([turn("user", [{"type": "image_url", "image_url": {"url": "x"}}]), assistant()], "not_text"),
    ([turn("user", 7), assistant()], "malformed"),
    (["Hi", "Ho"], "malformed"),
    ("Hi", "malformed"),
    ([user(), assistant("\ud800")], "malformed"),
    ([user(), assistant("", tool_calls=[{"function": {}}])], "malformed"),
]


@pytest.mark.parametrize(("messages", "reason"), MESSAGES)
def test_what_is_no_conversation_has_a_reason(messages, reason):
    row, source = Row({"messages": messages}, "row 1"), ConversationSource({"path": "a.jsonl"})
    with pytest.raises(ConversationError) as error:
        check("messages", convert("messages", row, source))
    assert (error.value.reason, bool(error.value.detail)) == (reason, True)


PAIRS = [
    ("Hi", "Hello.", "Hello. ", "chosen_is_rejected"),
    (None, HH, HH, "chosen_is_rejected"),
    (None, HH, "\n\nHuman: Ho\n\nAssistant: Hello.", "different_prompts"),
    (None, HH, f"{HH}\n\nHuman: So?\n\nAssistant: No.", "different_prompts"),
    (None, f"{HH}\n\nHuman: A\n\nAssistant: B", f"{HH}\n\nHuman: C\n\nAssistant: D", "different_prompts"),
    (None, "Hello.", "Go.", "malformed"),
    (None, HH, "\n\nHuman: Hi\n\nAssistant: ", "empty_turn"),
    ([user(), assistant()], "Hello.", "Go.", "not_alternating"),
]


@pytest.mark.parametrize(("prompt", "chosen", "rejected", "reason"), PAIRS)
def test_pairs_share_their_prompt_and_differ_in_the_answer(prompt, chosen, rejected, reason):
    row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    with pytest.raises(ConversationError) as error:
        Cleaner("preference", [], [], None, 13).clean(
            convert("preference", Row(row, "row 1"), ConversationSource({"path": "a.jsonl"}))
        )
    assert error.value.reason == reason


@pytest.mark.parametrize(("label", "expected"), [(True, True), (0, False), ("False", False), ("maybe", None)])
def test_labels(label, expected):
    row = Row({"prompt": "Hi", "completion": "Ho", "label": label}, "row 1")
    if expected is None:
        with pytest.raises(ConversationError, match="label"):
            convert("thumbs", row, ConversationSource({"path": "a.jsonl"}))
    else:
        assert convert("thumbs", row, ConversationSource({"path": "a.jsonl"}))["label"] is expected


def test_every_removed_row_is_kept_with_its_reason_and_place(run, tmp_path):
    good = {"messages": [user(), assistant()]}
    path = write_jsonl(
        tmp_path / "chats.jsonl",
        good,
        '{"messages": [',
        "",
        {"messages": [user("  Why is the sky\nblue?"), assistant()]},
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
    assert "| malformed | 2 | 40.00% |" in report
    assert "the last turn must be the assistant's" in report
    with pytest.raises(UserError, match=r"chats.jsonl \(row 2\): not JSON"):
        run({"path": path}, strict=True)


def test_a_conversation_that_is_lost_is_an_error(run, tmp_path, monkeypatch):
    path = write_jsonl(tmp_path / "a.jsonl", {"messages": [user(), assistant()]}, {"messages": [user()]})
    monkeypatch.setattr("hfchat.data.conversations._Outputs.write_removed", lambda self, row: None)
    with pytest.raises(RuntimeError, match="2 conversations were read, but 1 are in the files"):
        run({"path": path})


def test_all_kinds_of_files_are_read(run, tmp_path):
    rows = [{"question": f"{i}+1?", "answer": str(i + 1)} for i in range(3)]
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "b.json").write_text(
        json.dumps([{**row, "question": f"b{row['question']}"} for row in rows], indent=1)
    )
    with (tmp_path / "c.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("question", "answer"), ("two\nlines?", "yes"), ("short",), ("c?", "d"), ("a", "b", "c")])
    import pyarrow as pa

    pq.write_table(pa.Table.from_pylist([{"question": "p?", "answer": "q"}]), tmp_path / "d.parquet")
    (tmp_path / "hub").mkdir()
    write_jsonl(tmp_path / "hub" / "train.jsonl", {"question": "h?", "answer": "i"}, {"question": "j?", "answer": "k"})
    summary, folder = run(
        {"path": f"{tmp_path}/a*.jsonl.gz"},
        {"path": f"{tmp_path}/b.json"},
        {"path": f"{tmp_path}/c.csv"},
        {"path": f"{tmp_path}/d.parquet"},
        {"path": f"{tmp_path}/hub", "limit": 1},
    )
    questions = [row["messages"][0]["content"] for row in rows_of(folder)]
    assert questions == ["0+1?", "1+1?", "2+1?", "b0+1?", "b1+1?", "b2+1?", "two\nlines?", "c?", "p?", "h?"]
    removed = removed_of(folder)
    assert {place: row["detail"] for place, row in removed.items()} == {
        "c.csv (row 2)": "has 1 fields, the header has 2",
        "c.csv (row 4)": "has 3 fields, the header has 2",
    }
    assert [source["kept"] for source in summary.sources] == [3, 3, 2, 1, 1]


def test_a_file_that_is_cut_off_costs_its_rest(run, tmp_path):
    import random

    letters = random.Random(0)
    rows = [{"question": f"{i} {letters.random()}?", "answer": str(letters.random())} for i in range(2000)]
    data = gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
    (tmp_path / "a.jsonl.gz").write_bytes(data[: len(data) // 2])
    summary, folder = run({"path": f"{tmp_path}/a.jsonl.gz"})
    (row,) = removed_of(folder).values()
    assert "the rest of the file cannot be read" in row["detail"]
    assert 100 < summary.kept["train"] < 2000


def test_parallel_lines_become_translations(run, tmp_path):
    (tmp_path / "a.en").write_text("A dog.\n\nA cat.\n")
    with gzip.open(tmp_path / "a.de.gz", "wt") as file:
        file.write("Ein Hund.\n\nEine Katze.\n")
    source = {"path": f"{tmp_path}/a.en", "target_path": f"{tmp_path}/a.de.gz", "instruction": "Translate to German."}
    summary, folder = run(source)
    assert [row["messages"] for row in rows_of(folder)] == [
        [user("Translate to German.\n\nA dog."), assistant("Ein Hund.")],
        [user("Translate to German.\n\nA cat."), assistant("Eine Katze.")],
    ]
    assert summary.removed == {"empty_turn": 1}
    (tmp_path / "a.en").write_text("A dog.\n")
    with pytest.raises(UserError, match=r"a.en has 1 lines and .*a.de.gz has 3; each line must have its translation"):
        run(source)


def test_one_run_makes_one_kind(run, tmp_path):
    chats = write_jsonl(tmp_path / "a.jsonl", {"messages": [user(), assistant()]})
    pairs = write_jsonl(tmp_path / "b.jsonl", {"prompt": "Hi", "chosen": "Hello.", "rejected": "Go."})
    with pytest.raises(
        UserError, match=r"one kind of dataset, but .*a.jsonl makes messages, .*b.jsonl makes preferen"
    ):
        run({"path": chats}, {"path": pairs})


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ({"license": "MIT"}, "must be a mapping with a 'path'"),
        ({"path": "a.jsonl", "licence": "MIT"}, "unknown key 'licence'; it takes format"),
        ({"path": "a.jsonl", "revision": "main"}, "unknown key 'revision'"),
        ({"path": "a.jsonl", "format": "chatml"}, "format must be one of messages, sharegpt"),
        ({"path": "a.jsonl", "limit": "5"}, "'limit' must be a int"),
        ({"path": "a.jsonl", "limit": 0}, "'limit' must be at least 1"),
        ({"path": "a.jsonl", "format": "messages", "instruction": "Do."}, "'instruction' is a key of dialogsum"),
        ({"path": "a.jsonl", "format": "messages", "target_path": "b"}, "'target_path' is a key of parallel-text"),
        ({"path": "a.en", "target_path": "a.de"}, "parallel-text needs 'target_path' and 'instruction'"),
    ],
)
def test_a_bad_source_is_named(source, problem):
    with pytest.raises(ValueError, match=problem):
        ConversationSource(source)


def test_what_cannot_be_read_is_named(run, tmp_path):
    with pytest.raises(UserError, match=r"none.jsonl: no such file"):
        run({"path": f"{tmp_path}/none.jsonl"})
    with pytest.raises(UserError, match=r"no format has the columns text, id; rename"):
        run({"path": write_jsonl(tmp_path / "a.jsonl", {"text": "x", "id": 1})})
    with pytest.raises(UserError, match="has no rows"):
        run({"path": write_jsonl(tmp_path / "b.jsonl")})
    (tmp_path / "c.json").write_text("[{]")
    with pytest.raises(UserError, match=r"c.json: not JSON"):
        run({"path": f"{tmp_path}/c.json"})
    with pytest.raises(UserError, match=r"a file must end in .jsonl"):
        run({"path": f"{tmp_path}/d.xlsx"})


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


def test_what_overlaps_with_an_evaluation_set_is_kept_out(run, tmp_path):
    question = "How many apples does Anna have after she gave two to Tom"
    rows = [{"question": f"Tell me. {question}?", "answer": "5"}, {"question": "And how many apples?", "answer": "6"}]
    held_out = write_jsonl(tmp_path / "test.jsonl", {"question": question})
    path = write_jsonl(tmp_path / "a.jsonl", *rows)
    summary, folder = run({"path": path}, evaluation_sets=[{"name": "apples", "path": held_out}])
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
    assert "license:\n- mit\n" in card
    assert "| sums | MIT | question-answer | 40 | 40 | 40 |" in card
    for split in ("train", "validation"):
        assert len(load_split(str(folder), split, column="messages")) == summary.kept[split]
    assert "\n````text\n[user]\nQuestion" in (folder / "report.md").read_text()
    _, again = run({"path": path, "license": "MIT", "name": "sums"}, validation_fraction=0.2)
    for file in ("data/train-00000.parquet", "data/validation-00000.parquet", "report.md", "README.md"):
        assert (again / file).read_bytes() == (folder / file).read_bytes()


def test_a_summary_draws_few_conversations_and_the_first_of_each_reason():
    summary = Summary("messages", [])
    for i in range(20):
        summary.add_kept({"messages": [user(str(i)), assistant()]}, bytes([(i * 7) % 20]), "train")
        summary.add_removed({"reason": "duplicate", "row": str(i)})
    assert [digest[0] for digest, _ in summary.samples] == [0, 1, 2, 3, 4]
    assert [row["row"] for row in summary.examples["duplicate"]] == ["0", "1", "2"]
    assert summary.turns == {2: 20}


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="the shared data is not here")
def test_real_pairs_of_hh_rlhf(run):
    summary, folder = run({"path": str(SHARED_DATA / "safety" / "hh_rlhf_harmless.first1000.jsonl.gz")})
    assert summary.removed == {"empty_turn": 3, "not_alternating": 2}
    first = rows_of(folder)[0]
    assert [message["role"] for message in first["prompt"]] == ["user", "assistant", "user", "assistant", "user"]
    assert first["chosen"][0]["content"].startswith("No, sorry!")
