import json
from collections import Counter

import pytest

from hfchat.data.conversation_checks import check
from hfchat.data.conversation_formats import convert, expand, find_format
from hfchat.data.conversation_sources import ConversationSource
from hfchat.data.rows import Row
from hfchat.data.turns import ConversationError
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
        {"messages": [user("ab"), assistant()]},  # as the server joins them
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
    (
        {
            "instruction": "So?",
            "input": None,
            "output": "Yes.",
            "system": "Be brief.",
            "history": [["Hi", "Hello."], ["Who?", "Me."]],
        },
        "alpaca",
        {
            "messages": [
                turn("system", "Be brief."),
                *(user("Hi"), assistant("Hello."), user("Who?"), assistant("Me.")),
                *(user("So?"), assistant("Yes.")),
            ]
        },
    ),
    (
        {"instruction": "When?", "context": "Built in 1801.\n", "response": "1801."},
        "alpaca",
        {"messages": [user("When?\n\nBuilt in 1801."), assistant("1801.")]},
    ),
    (
        {"context": "Built in 1801.", "question": "When?", "answers": {"text": ["1801"], "answer_start": [9]}},
        "question-answer",
        {"messages": [user("Built in 1801.\n\nWhen?"), assistant("1801")]},
    ),
    (
        {"context": "It is ten.", "prompt": "The hour?", "completion": " ten", "history": None, "system": "Be brief."},
        "prompt-completion",
        {"messages": [turn("system", "Be brief."), user("It is ten.\n\nThe hour?"), assistant("ten")]},
    ),
    (
        {"messages": [turn("system", "Be brief."), user("So?"), assistant("Yes.")], "history": [["Hi", "Hello."]]},
        "messages",
        {
            "messages": [
                *(turn("system", "Be brief."), user("Hi"), assistant("Hello."), user("So?"), assistant("Yes.")),
            ]
        },
    ),
    (
        {
            "messages": [
                user(),
                turn("assistant", None, function_call={"name": "f", "arguments": '{"x": 1}'}),
                turn("function", "2", name="f"),
                assistant(),
            ],
            "functions": [{"name": "f", "parameters": {}}],
        },
        "messages",
        {
            "messages": [
                user(),
                assistant("", tool_calls=[{"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}]),
                turn("tool", "2", name="f"),
                assistant(),
            ],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        },
    ),
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
        {"system": "Be.", "question": "Hi", "chosen": "Hello.", "rejected": "Go."},
        "preference",
        {
            "prompt": [turn("system", "Be."), user("Hi")],
            "chosen": [assistant("Hello.")],
            "rejected": [assistant("Go.")],
        },
    ),
    (
        {
            "conversations": [{"from": "human", "value": "Hi"}],
            "chosen": {"from": "gpt", "value": "Hello."},
            "rejected": {"from": "gpt", "value": "Go."},
        },
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
    source = ConversationSource.parse({"path": write_jsonl(tmp_path / "rows.jsonl", row)})
    assert source.find_format() == format
    (read,) = source.rows()
    example = convert(format, read)
    assert example == expected
    kind = {"preference": "preference", "thumbs": "unpaired preference"}.get(format, "messages")
    check(kind, example)


@pytest.mark.parametrize(
    ("given", "learned", "note"),
    [
        (
            {"reasoning_content": "Think.\n"},
            {"content": "A.", "reasoning_content": "Think."},
            "`reasoning_content` of a turn: learned before its content",
        ),
        ({"thinking": "Think."}, {"content": "A.", "reasoning_content": "Think."}, "`thinking` of a turn: learned"),
        (
            {"content": [{"type": "thinking", "thinking": "Think."}, {"type": "text", "text": "A."}]},
            {"content": "A.", "reasoning_content": "Think."},
            "`thinking` of a turn: learned before its content",
        ),
        (
            {"content": "<think>So.</think>A.", "reasoning": "So."},
            {"content": "<think>So.</think>A."},
            "`reasoning` of a turn: not used, because its content begins with <think>",
        ),
        ({"content": None, "refusal": "No."}, {"content": "No."}, "`refusal` of a turn: learned as its content"),
        ({"content": [{"type": "refusal", "refusal": "No."}]}, {"content": "No."}, None),
        ({"refusal": "No."}, {"content": "A."}, "`refusal` of a turn: not used"),
        ({"content": "A.\n"}, {"content": "A."}, "white space around a text"),
        ({"content": "\n  A.\n B."}, {"content": "  A.\n B."}, "white space around a text"),
        ({"weight": 0}, {"content": "A.", "weight": 0}, "`weight` 0 of a turn: the turn is kept, and not learned"),
        ({"weight": 1, "refusal": None, "annotations": []}, {"content": "A."}, None),
        ({"name": "Ada"}, {"content": "A."}, "`name` of a turn of the assistant: not used"),
        ({"mood": "glad"}, {"content": "A."}, "`mood` of a turn: not used"),
    ],
)
def test_every_field_of_a_message_is_learned_or_counted(given, learned, note):
    notes = Counter()
    messages = [user(), assistant("First."), user("And?"), {"role": "assistant", "content": "A."} | given]
    example = convert("messages", Row({"messages": messages}, "row 1"), notes=notes)
    assert example["messages"][-1] == {"role": "assistant"} | learned
    assert len(notes) == (note is not None)
    assert all(found.startswith(note) for found in notes)


def test_columns_that_are_not_used_are_counted():
    notes = Counter()
    row = {"instruction": "Add.", "output": "3", "category": "maths", "id": 7, "topic": None}
    convert("alpaca", Row(row, "row 1"), notes=notes)
    assert notes == {"column 'category': not used": 1, "column 'id': not used": 1}
    (instance,) = expand(
        "alpaca", Row({"instruction": "Add.", "name": "a", "instances": [{"output": "3"}]}, "(row 1)")
    )
    convert("alpaca", instance, notes=notes)
    assert notes["column 'name': not used"] == 1


def test_a_null_among_the_arguments_of_a_call_is_written(tokenizer):
    tools = json.dumps([{"name": "set", "parameters": {"default": None}}])
    calls = [
        {"function": {"name": "set", "arguments": arguments}}
        for arguments in ('{"time": null}', {"id": 1, "time": None}, {"id": 1}, None)
    ]
    row = {"messages": [user(), assistant("", tool_calls=calls)], "tools": tools}
    example = convert("messages", Row(row, "row 1"))
    text = tokenizer.apply_chat_template(example["messages"], tools=example["tools"], tokenize=False)
    for arguments in ('{"time": null}', '{"id": 1, "time": null}', '{"id": 1}', "{}"):
        assert f'{{"name": "set", "arguments": {arguments}}}' in text
    assert '"parameters": {"default": null}' in text


@pytest.mark.parametrize(
    ("ids", "order"), [(("a", "b"), "ab"), (("b", "a"), "ab"), (("b", None), "b-"), (("b", "c"), "bc")]
)
def test_results_stand_in_the_order_of_the_calls_that_they_name(ids, order):
    calls = [{"id": name, "function": {"name": "time", "arguments": {"zone": name}}} for name in "ab"]
    results = [turn("tool", name or "-", tool_call_id=name) for name in ids]
    notes = Counter()
    row = {"messages": [user(), assistant("", tool_calls=calls), *results, assistant()]}
    messages = convert("messages", Row(row, "row 1"), notes=notes)["messages"]
    assert "".join(message["content"] for message in messages[2:4]) == order
    assert notes.total() == (ids == ("b", "a"))


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


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"instruction": None, "output": "3"}, "'instruction' must be a text, not None"),
        ({"instruction": "Add.", "output": None}, "'output' must be a text, not None"),
        ({"instruction": "Add.", "output": "3", "system": 7}, "'system' must be a text, not 7"),
        ({"instruction": "Add.", "output": "3", "history": "Hi"}, "'history' must be a list, not 'Hi'"),
        ({"instruction": "Add.", "output": "3", "history": [["Hi"]]}, "'history' must be pairs of a question"),
        ({"instruction": "Add.", "output": "3", "tools": "{"}, "'tools': not JSON"),
        ({"instruction": "Add.", "output": "3", "tools": ["f"]}, "'tools': not JSON"),
        ({"instruction": "Add.", "output": "3", "tools": [7]}, "'tools': each must be a mapping, not 7"),
    ],
)
def test_a_column_that_is_not_as_it_should_be_is_named(row, words):
    with pytest.raises(ConversationError) as error:
        convert("alpaca", Row(row, "row 1"))
    assert error.value.reason == "malformed"
    assert words in error.value.detail


@pytest.mark.parametrize(("label", "expected"), [(True, True), (0, False), ("False", False), ("maybe", None)])
def test_labels(label, expected):
    row = Row({"prompt": "Hi", "completion": "Ho", "label": label}, "row 1")
    if expected is None:
        with pytest.raises(ConversationError, match="label"):
            convert("thumbs", row)
    else:
        assert convert("thumbs", row)["label"] is expected
