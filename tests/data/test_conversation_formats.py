import pytest

from hfchat.data.conversation_checks import check
from hfchat.data.conversation_formats import ConversationError, Row, convert, expand, find_format
from hfchat.data.conversation_sources import ConversationSource
from tests.data.chats import assistant, turn, user, write_jsonl

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
    (
        {"messages": [user("Hi"), assistant("Hello.")], "label": True},
        "thumbs",
        {"prompt": [user("Hi")], "completion": [assistant("Hello.")], "label": True},
    ),
]


@pytest.mark.parametrize(("row", "format", "expected"), FORMATS)
def test_each_format_is_known_by_its_columns_and_becomes_messages(row, format, expected, tmp_path):
    source = ConversationSource({"path": write_jsonl(tmp_path / "rows.jsonl", row)})
    assert source.find_format() == format
    (read,) = source.rows()
    example = convert(format, read)
    assert example == expected
    kind = {"preference": "preference", "thumbs": "unpaired preference"}.get(format, "messages")
    check(kind, example)


def test_a_column_without_a_value_says_nothing_of_the_format():
    assert find_format({"chosen": None, "rejected": None, "prompt": "Hi", "completion": "Ho"}) == "prompt-completion"
    assert find_format({"prompt": "Hi", "completion": None}) is None


def test_dialogues_get_an_instruction():
    example = convert("dialogsum", Row({"dialogue": "A: Hi", "summary": "A greets."}, "row 1"), "Sum up.")
    assert example == {"messages": [user("Sum up.\n\nA: Hi"), assistant("A greets.")]}


def test_parallel_lines_become_translations():
    row = Row({"source": "A dog.", "target": "Ein Hund."}, "row 1")
    example = convert("parallel-text", row, "Translate to German.")
    assert example == {"messages": [user("Translate to German.\n\nA dog."), assistant("Ein Hund.")]}
    with pytest.raises(ConversationError) as error:
        convert("parallel-text", Row({"source": "", "target": "Ein Hund."}, "row 2"), "Translate to German.")
    assert error.value.reason == "empty_turn"


def test_instances_are_conversations_of_their_own():
    instances = [{"input": "1 2", "output": "3"}, {"input": "2 2", "output": "4"}, "?"]
    rows = list(expand("alpaca", Row({"instruction": "Add.", "instances": instances}, "a.jsonl (row 7)")))
    assert [row.place for row in rows][:2] == ["a.jsonl (row 7, instance 1)", "a.jsonl (row 7, instance 2)"]
    assert convert("alpaca", rows[1])["messages"] == [user("Add.\n\n2 2"), assistant("4")]
    with pytest.raises(ConversationError) as error:
        convert("alpaca", rows[2])
    assert error.value.reason == "malformed"


@pytest.mark.parametrize(("label", "expected"), [(True, True), (0, False), ("False", False), ("maybe", None)])
def test_labels(label, expected):
    row = Row({"prompt": "Hi", "completion": "Ho", "label": label}, "row 1")
    if expected is None:
        with pytest.raises(ConversationError, match="label"):
            convert("thumbs", row)
    else:
        assert convert("thumbs", row)["label"] is expected
